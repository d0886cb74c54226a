"""The loop over time."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def scan(
    cell: Callable[[Tensor, Tensor], Tensor],
    state: Float[Tensor, "trials states"],
    inputs: Float[Tensor, "trials bins inputs"],
    valid: Bool[Tensor, "trials bins"] | None = None,
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
    valid
        Bins in which the state moves on; in the others it stays. All where not given.
    """
    states = []
    for t, current in enumerate(inputs.unbind(1)):
        following = cell(current, state)
        state = following if valid is None else torch.where(valid[:, t, None], following, state)
        states.append(state)
    return torch.stack(states, 1)
