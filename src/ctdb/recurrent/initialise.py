"""Seeded initial weights, independent of torch's global random state."""

import math

import torch
from torch import nn

from ctdb.recurrent.cells import LinearCell


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights of `module` from `generator`, in place, with the bounds that torch uses.

    A layer with a method `draw_weights`, such as a cell, draws its own. Linear layers: U(-1/sqrt(fan in),
    1/sqrt(fan in)); torch's recurrent layers: U(-1/sqrt(states), 1/sqrt(states)). The matrix of a linear system starts
    near the identity, scaled to a norm of 0.95, and its offset at 0, so that it remembers tens of bins and cannot
    explode. Parameters that a module owns directly, outside these layers, keep the values its constructor gave them.
    """
    with torch.no_grad():
        for layer in module.modules():
            bound = None
            if hasattr(layer, "draw_weights"):
                layer.draw_weights(generator)
            elif isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
            elif isinstance(layer, nn.GRU):
                bound = 1 / math.sqrt(layer.hidden_size)
            if bound is not None:
                for parameter in layer.parameters(recurse=False):
                    parameter.uniform_(-bound, bound, generator=generator)
        for layer in module.modules():
            if isinstance(layer, LinearCell):
                matrix = layer.recurrent.weight
                matrix.mul_(0.1).add_(torch.eye(layer.n_states))
                matrix.mul_(0.95 / torch.linalg.matrix_norm(matrix, 2))
                layer.recurrent.bias.zero_()
