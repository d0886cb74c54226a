"""A recurrent encoder that reads trials in both directions."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ctdb.recurrent.cells import Cell
from ctdb.recurrent.scan import scan


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
        valid = None if n_bins is None else torch.arange(inputs.shape[1], device=inputs.device) < n_bins[:, None]
        starts = self.initial[:, None].expand(-1, len(inputs), -1)
        ahead = scan(self.ahead, starts[0], inputs, valid)
        back = scan(self.back, starts[1], inputs.flip(1), None if valid is None else valid.flip(1))
        return ahead, back.flip(1)
