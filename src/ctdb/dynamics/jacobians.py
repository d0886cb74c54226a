"""Derivatives of a step with respect to state and input: in closed form for our cells, else by autograd."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ctdb.recurrent import (
    Cell,
    ClippedGRUCell,
    GRUCell,
    LeakyRateCell,
    LinearCell,
    TanhCell,
)
from ctdb.recurrent.rate_cells import ChaoticRateCell, EIRateCell, OscillatorCell, SwitchingLinearCell

Step = Callable[[Tensor, Tensor], Tensor]
"""``step(state (n, d), input (n, i)) -> next state (n, d)``, each row by itself."""


class Jacobians(NamedTuple):
    """Derivatives of the next state, one matrix for each row: ``state[n, a, b]`` is that of unit a by unit b."""

    state: Float[Tensor, "n d d"]
    input: Float[Tensor, "n d i"]


Linearise = Callable[[Tensor, Tensor], Jacobians]
"""``linearise(state (n, d), input (n, i)) -> Jacobians``."""


def jacobian_of(step: Step) -> Linearise:
    """Function that gives the Jacobians of `step`.

    Parameters
    ----------
    step
        Any function whose rows do not depend on each other. Closed forms are used for the `step` of our networks,
        autoencoders and LFADS where their cell has one, and autograd for any other, a subclass's own one included.

    Returns
    -------
    ``linearise(state, input)``; it leaves gradients, and what requires them, alone.
    """
    cell = cell_of(step)
    closed = None if cell is None else CLOSED_FORMS.get(type(cell).forward)
    if closed is None:
        return lambda state, input: _by_autograd(step, state, input)

    def linearise(state: Tensor, input: Tensor) -> Jacobians:
        n_given = input.shape[1]
        with torch.no_grad():
            # LFADS sets its inferred inputs, which come first, to 0 where external ones alone are given.
            by_state, by_input = closed(cell, nn.functional.pad(input, (cell.n_inputs - n_given, 0)), state)
        return Jacobians(by_state, by_input[:, :, cell.n_inputs - n_given :])

    return linearise


def cell_of(step: Step) -> Cell | None:
    """Cell that does the whole work of `step`; None where that is not known.

    The methods are known by name, so that a fixed-point search depends on the code of no model that it does not use.
    """
    method = getattr(step, "__func__", None)
    attribute = _CELL_OF_STEP.get((getattr(method, "__module__", ""), getattr(method, "__qualname__", "")))
    return None if attribute is None else getattr(step.__self__, attribute)


_CELL_OF_STEP = {
    ("ctdb.networks.base", "Network.step"): "cell",
    ("ctdb.models.autoencoder", "SequentialAutoencoder.step"): "cell",
    ("ctdb.models.lfads", "LFADS.step"): "generator",
}


def _by_autograd(step: Step, state: Tensor, input: Tensor) -> Jacobians:
    with torch.inference_mode(False), torch.enable_grad():
        state, input = (value.detach().clone().requires_grad_() for value in (state, input))
        following = step(state, input)
        n, d = following.shape
        if not following.requires_grad:  # it depends on neither
            return Jacobians(state.new_zeros(n, d, d), state.new_zeros(n, d, input.shape[1]))
        ones = torch.eye(d, dtype=following.dtype, device=following.device)[:, None].expand(d, n, d)

        def rows(which: Tensor, batched: bool) -> tuple[Tensor, ...]:
            found = torch.autograd.grad(
                following, (state, input), which, is_grads_batched=batched, retain_graph=True, allow_unused=True
            )
            # Zeros that torch itself would give for what the step ignores have no axis for the batch.
            return tuple(
                one.new_zeros(*which.shape[:-2], *one.shape) if gradient is None else gradient
                for one, gradient in zip((state, input), found, strict=True)
            )

        try:
            by_state, by_input = rows(ones, True)
        except (RuntimeError, NotImplementedError):  # an operation of the step knows no `vmap`
            by_state, by_input = (torch.stack(part) for part in zip(*[rows(one, False) for one in ones], strict=True))
    if not input.shape[1]:  # torch loses the shape of an empty gradient
        return Jacobians(by_state.transpose(0, 1), state.new_zeros(n, d, 0))
    return Jacobians(by_state.transpose(0, 1), by_input.transpose(0, 1))


def _scaled(*terms: tuple[Tensor, Tensor]) -> Tensor:
    """Sum of diag(gains) @ weight over ``(gains (n, d), weight (d, k))``, as (n, d, k)."""
    (gains, weight), *rest = terms
    total = gains[:, :, None] * weight
    for gains, weight in rest:
        total.addcmul_(gains[:, :, None], weight)
    return total


def _add_diagonal(matrices: Tensor, diagonal: Tensor | float) -> Tensor:
    matrices.diagonal(dim1=1, dim2=2).add_(diagonal)
    return matrices


def _gru(cell: GRUCell, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    a_r, a_z, a_n = nn.functional.linear(input, cell.weight_ih, cell.bias_ih).chunk(3, 1)
    c_r, c_z, c_n = nn.functional.linear(state, cell.weight_hh, cell.bias_hh).chunk(3, 1)
    r, z = (a_r + c_r).sigmoid(), (a_z + c_z).sigmoid()
    new = (a_n + r * c_n).tanh()
    by_z, by_n = (state - new) * z * (1 - z), (1 - z) * (1 - new**2)
    by_r = by_n * c_n * r * (1 - r)
    (u_r, u_z, u_n), (w_r, w_z, w_n) = cell.weight_ih.chunk(3), cell.weight_hh.chunk(3)
    by_state = _scaled((by_r, w_r), (by_z, w_z), (by_n * r, w_n))
    return _add_diagonal(by_state, z), _scaled((by_r, u_r), (by_z, u_z), (by_n, u_n))


def _clipped_gru(cell: ClippedGRUCell, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    a_z, a_r, a_n = nn.functional.linear(input, cell.weight_ih, cell.bias).chunk(3, 1)
    (u_z, u_r, u_n), (w_z, w_r, w_n) = cell.weight_ih.chunk(3), cell.weight_hh.chunk(3)
    z, r = (a_z + state @ w_z.T).sigmoid(), (a_r + state @ w_r.T).sigmoid()
    new = (a_n + (r * state) @ w_n.T).tanh()
    moves = (torch.lerp(new, state, z).abs() <= cell.clip).to(state.dtype)
    by_z, by_n = moves * (state - new) * z * (1 - z), moves * (1 - z) * (1 - new**2)
    # The candidate sees r * h, which depends on the state directly and through r.
    seen_r = state * r * (1 - r)
    by_state = _scaled((by_z, w_z)) + by_n[:, :, None] * (w_n * r[:, None, :] + (w_n * seen_r[:, None, :]) @ w_r)
    by_input = _scaled((by_z, u_z), (by_n, u_n)) + by_n[:, :, None] * ((w_n * seen_r[:, None, :]) @ u_r)
    return _add_diagonal(by_state, moves * z), by_input


def _rate(cell: TanhCell | LeakyRateCell, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    drive = nn.functional.linear(input, cell.weight_ih, cell.bias_ih)
    drive = drive + nn.functional.linear(state, cell.weight_hh, cell.bias_hh)
    leak, activation = (cell.leak, cell.activation) if isinstance(cell, LeakyRateCell) else (1.0, "tanh")
    slope = {
        "tanh": lambda: 1 - drive.tanh() ** 2,
        "relu": lambda: (drive > 0).to(drive.dtype),
        "softplus": drive.sigmoid,
    }[activation]()
    gain = leak * slope
    return _add_diagonal(_scaled((gain, cell.weight_hh)), 1 - leak), _scaled((gain, cell.weight_ih))


def _linear(cell: LinearCell, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    n = len(state)
    by_input = state.new_zeros(cell.n_states, 0) if cell.input is None else cell.input.weight
    return cell.recurrent.weight.repeat(n, 1, 1), by_input.repeat(n, 1, 1)


def _chaotic(cell: ChaoticRateCell, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    slope = cell.leak * (1 - state.tanh() ** 2)
    by_input = (cell.leak * cell.weight_ih).repeat(len(state), 1, 1)
    return _add_diagonal(cell.weight_hh * slope[:, None, :], 1 - cell.leak), by_input


def _ei(cell: EIRateCell, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    slope = cell.leak * (state > 0).to(state.dtype)
    by_input = (cell.leak * cell.weight_ih).repeat(len(state), 1, 1)
    return _add_diagonal(cell.recurrent_weight() * slope[:, None, :], 1 - cell.leak), by_input


def _oscillator(cell: OscillatorCell, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    n, half, tau = len(state), cell.n_states // 2, cell.time_step
    force = nn.functional.linear(input, cell.weight_ih, cell.bias) + nn.functional.linear(state, cell.weight_hh)
    slope, friction = tau * (1 - force.tanh() ** 2), 1 + tau * cell.damping
    velocity = _scaled((slope, cell.weight_hh))
    velocity[:, :, :half].diagonal(dim1=1, dim2=2).sub_(tau * cell.stiffness)
    velocity[:, :, half:].diagonal(dim1=1, dim2=2).add_(1)
    velocity, by_input = velocity / friction, _scaled((slope / friction, cell.weight_ih))
    place = tau * velocity
    place[:, :, :half].diagonal(dim1=1, dim2=2).add_(1)
    return torch.cat([place, velocity], 1), torch.cat([tau * by_input, by_input], 1).reshape(n, cell.n_states, -1)


def _switching(cell: SwitchingLinearCell, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    shares, moved = cell.mode_shares(state), cell.moved_by_each(input, state)
    following = (shares[:, :, None] * moved).sum(1, keepdim=True)
    by_logit = shares[:, :, None] * (moved - following)
    by_state = torch.einsum("nk,kab->nab", shares, cell.weight_hh) + by_logit.mT @ cell.mode_weight
    return by_state, torch.einsum("nk,kab->nab", shares, cell.weight_ih)


CLOSED_FORMS: dict[Callable, Callable[[Cell, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    GRUCell.forward: _gru,
    ClippedGRUCell.forward: _clipped_gru,
    TanhCell.forward: _rate,
    LeakyRateCell.forward: _rate,
    LinearCell.forward: _linear,
    ChaoticRateCell.forward: _chaotic,
    EIRateCell.forward: _ei,
    OscillatorCell.forward: _oscillator,
    SwitchingLinearCell.forward: _switching,
}
"""Closed form ``(cell, input, state) -> Jacobians`` of each cell's `forward`; one that is overridden has none here."""
