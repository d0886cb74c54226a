"""The loop over time."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def scan(
    cell: Callable[[Tensor, Tensor], Tensor],
    state: Float[Tensor, "trials states"],
    inputs: Float[Tensor, "trials bins inputs"],
) -> Float[Tensor, "trials bins states"]:
    """States after each input: ``state_t = cell(input_t, state_{t-1})``.

    Parameters
    ----------
    cell
        Maps (input, state) to the next state.
    state
        State before the first bin.
    inputs
        Input of each bin; its channel axis may be empty, its length sets the number of steps.
    """
    states = []
    for current in inputs.unbind(1):
        state = cell(current, state)
        states.append(state)
    return torch.stack(states, 1)
