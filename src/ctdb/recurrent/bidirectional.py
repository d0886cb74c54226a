"""A recurrent encoder that reads trials in both directions."""

import functools
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ctdb.recurrent.backends import scan_both_ways
from ctdb.recurrent.cells import Cell, gru_cell, transformed
from ctdb.recurrent.eager import Scanned


class Bidirectional(nn.Module):
    """One cell reads forward in time, another backward, each from a learned initial state.

    Parameters
    ----------
    make_cell
        Makes one cell; called twice.
    """

    def __init__(self, make_cell: Callable[[], Cell]):
        super().__init__()
        self.ahead, self.back = make_cell(), make_cell()
        self.initial = nn.Parameter(torch.zeros(2, self.ahead.n_states))

    def forward(
        self, inputs: Float[Tensor, "trials bins inputs"], n_bins: Int[Tensor, " trials"] | None = None
    ) -> tuple[Float[Tensor, "trials bins states"], Float[Tensor, "trials bins states"]]:
        """States of both directions, in the order of time.

        Parameters
        ----------
        inputs
            What to read.
        n_bins
            Valid bins of each trial; in the others the state stays as it is, so the last forward and the first
            backward states summarise the valid bins alone.
        """
        ahead, back = self._scan(inputs, n_bins, states=True)
        return ahead.states, back.states

    def summary(
        self, inputs: Float[Tensor, "trials bins inputs"], n_bins: Int[Tensor, " trials"] | None = None
    ) -> Float[Tensor, "trials both_states"]:
        """State of each direction when it has read everything, side by side; parameters as for a call."""
        ahead, back = self._scan(inputs, n_bins, states=False)
        return torch.cat([ahead.last, back.last], 1)

    def _scan(self, inputs: Tensor, n_bins: Tensor | None, states: bool) -> tuple[Scanned, Scanned]:
        valid = None if n_bins is None else torch.arange(inputs.shape[1], device=inputs.device) < n_bins[:, None]
        return scan_both_ways((self.ahead, self.back), self.initial, inputs, valid, states)


def gru_summary(
    gru: nn.GRU, inputs: Float[Tensor, "trials bins inputs"], n_bins: Int[Tensor, " trials"] | None = None
) -> Float[Tensor, "trials both_states"]:
    """State of each direction of torch's own GRU when it has read everything, side by side.

    Functorch's transforms see neither into cuDNN nor into packed sequences: inside them, the same loop runs cell by
    cell.

    Parameters
    ----------
    gru
        One layer, bidirectional, batch first.
    inputs, n_bins
        As for :class:`Bidirectional`; a trial has at least one valid bin.
    """
    if not transformed():
        if n_bins is not None:
            inputs = nn.utils.rnn.pack_padded_sequence(inputs, n_bins.cpu(), True, enforce_sorted=False)
        _, last = gru(inputs)
        return torch.cat([last[0], last[1]], 1)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    ahead, back = (
        functools.partial(gru_cell, **{name.removesuffix("_l0"): getattr(gru, name + direction) for name in names})
        for direction in ("", "_reverse")
    )
    valid = None if n_bins is None else torch.arange(inputs.shape[1], device=inputs.device) < n_bins[:, None]
    made = scan_both_ways((ahead, back), inputs.new_zeros(2, gru.hidden_size), inputs, valid, states=False)
    return torch.cat([one.last for one in made], 1)
