"""A recurrent encoder that reads trials in both directions."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ctdb.recurrent.backends import scan_both_ways
from ctdb.recurrent.cells import Cell
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
