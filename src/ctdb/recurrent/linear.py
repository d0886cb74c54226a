"""Linear maps that LFADS starts or uses in its own way."""

import math

import torch
from torch import Tensor, nn


class FanInLinear(nn.Linear):
    """Linear map whose weights start normal with variance 1 / inputs, and whose offset starts at 0."""

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights, in place."""
        self.weight.normal_(0, 1 / math.sqrt(max(self.in_features, 1)), generator=generator)
        if self.bias is not None:
            self.bias.zero_()


class UnitRowLinear(FanInLinear):
    """Linear map without offset whose rows have norm 1: factors cannot shrink to dodge a penalty."""

    def __init__(self, n_inputs: int, n_outputs: int):
        super().__init__(n_inputs, n_outputs, bias=False)

    def unit_weight(self) -> Tensor:
        """Weights as they act."""
        return nn.functional.normalize(self.weight, dim=1)

    def forward(self, input: Tensor) -> Tensor:
        """Map the last axis."""
        return nn.functional.linear(input, self.unit_weight())
