"""The readable definition of every recurrent loop. What the other backends compute is this, only faster.

Any cell, any device, any precision; gradients, Jacobians and `vmap` come from autograd.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import linear

from ctdb.recurrent.noise import StateNoise


class Linear(NamedTuple):
    """Weights (outputs, inputs) and offset of a linear map."""

    weight: Tensor
    bias: Tensor

    def __call__(self, value: Tensor) -> Tensor:
        """Map the last axis."""
        return linear(value, self.weight, self.bias)


class Scanned(NamedTuple):
    """What a scan gives; what was not asked for may be None."""

    states: Tensor | None
    last: Tensor
    outputs: Tensor | None


class Kept(NamedTuple):
    """Dropout of a controlled scan: 1 where a value is kept, and what kept values are multiplied by."""

    start: UInt8[Tensor, "trials states"] | None
    ci: UInt8[Tensor, "trials bins ci"] | None
    factors: UInt8[Tensor, "trials bins factors"] | None
    states: UInt8[Tensor, "trials bins states"]
    scale: float | Tensor


class Generated(NamedTuple):
    """One run of a generator; each (trials, bins, channels). The states and inputs may be None if not asked for."""

    gen_states: Tensor | None
    factors: Tensor
    gen_inputs: Tensor | None
    con_states: Tensor | None
    co_means: Tensor | None
    co_stds: Tensor | None


def scan(
    cell: Callable[[Tensor, Tensor], Tensor],
    state: Float[Tensor, "trials states"],
    inputs: Float[Tensor, "trials bins inputs"],
    valid: Bool[Tensor, "trials bins"] | None = None,
    noise: StateNoise | None = None,
    readout: Callable[[Tensor], Tensor] | None = None,
) -> Scanned:
    """``clean_t = cell(input_t, state_{t-1})``, ``state_t = clean_t + noise_t``, ``output_t = readout(clean_t)``.

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
    noise
        Added to each state before the next step.
    readout
        Of each state, before its noise.
    """
    kicks = None if noise is None else noise.tensor(inputs.shape[1], state.shape[1], state)
    states, clean = [], []
    for t, current in enumerate(inputs.unbind(1)):
        following = cell(current, state)
        clean.append(following)
        if kicks is not None:
            following = following + kicks[:, t]
        state = following if valid is None else torch.where(valid[:, t, None], following, state)
        states.append(state)
    outputs = None if readout is None else readout(torch.stack(clean, 1))
    return Scanned(torch.stack(states, 1), state, outputs)


def controlled_scan(
    generator: Callable[[Tensor, Tensor], Tensor],
    controller: Callable[[Tensor, Tensor], Tensor] | None,
    to_factors: Float[Tensor, "factors states"],
    state: Float[Tensor, "trials states"],
    ext_input: Float[Tensor, "trials bins inputs"],
    to_co: Linear | None = None,
    con_state: Float[Tensor, "trials con_states"] | None = None,
    ci: Float[Tensor, "trials bins ci"] | None = None,
    kept: Kept | None = None,
    co_noise: Float[Tensor, "trials bins co"] | None = None,
    control: Float[Tensor, " bins"] | None = None,
) -> Generated:
    r"""Run LFADS's generator and, where there is one, the controller that drives it.

    .. math::
        c_t &= con([drop(ci_t), drop(f_{t-1})], c_{t-1}), \quad [\mu_t, \log \sigma_t^2] = W_u c_t + b_u \\
        g_t &= gen([k_t (\mu_t + \sigma_t \epsilon_t), a_t], g_{t-1}), \quad f_t = W_f\, drop(g_t)

    Parameters
    ----------
    generator, controller
        Cells; no controller, and the external input alone drives the generator.
    to_factors
        :math:`W_f`.
    state, con_state
        States before the first bin.
    ext_input
        External input a; its channel axis may be empty.
    to_co
        :math:`W_u, b_u`: means, then log-variances of the inferred inputs.
    ci
        What the controller sees of the data.
    kept
        Dropout; none where not given.
    co_noise
        Standard normal :math:`\epsilon`; 0 where not given.
    control
        Factor k on the inferred input of each bin; 1 where not given.
    """
    if controller is None:
        states = scan(generator, state, ext_input).states
        seen = states if kept is None else states * (kept.states.to(states) * kept.scale)
        none = states[:, :, :0]
        return Generated(states, linear(seen, to_factors), ext_input, none, none, none)
    drop = [None if kept is None or mask is None else mask.to(state) * kept.scale for mask in (kept or [None] * 4)[:4]]
    factors = linear(_times(state, drop[0]), to_factors)
    rows = []
    for t in range(ext_input.shape[1]):
        drop_ci, drop_factors, drop_state = (None if mask is None else mask[:, t] for mask in drop[1:])
        con_state = controller(torch.cat([_times(ci[:, t], drop_ci), _times(factors, drop_factors)], 1), con_state)
        co_mean, log_variance = to_co(con_state).chunk(2, 1)
        co_std = (0.5 * log_variance).exp()
        inferred = co_mean if co_noise is None else co_mean + co_std * co_noise[:, t]
        if control is not None:
            inferred = inferred * control[t]
        gen_input = torch.cat([inferred, ext_input[:, t]], 1)
        state = generator(gen_input, state)
        factors = linear(_times(state, drop_state), to_factors)
        rows.append((state, factors, gen_input, con_state, co_mean, co_std))
    return Generated(*(torch.stack(column, 1) for column in zip(*rows, strict=True)))


def masked(
    data: Tensor, masks: Sequence[UInt8[Tensor, "trials bins channels"]], factor: Float[Tensor, " bins"]
) -> Float[Tensor, "trials bins channels"]:
    """Product of data (trials, bins, channels), whole or floating, with 0/1 masks and a factor for each bin."""
    made = data.to(factor.dtype) * factor[:, None]
    for mask in masks:
        made = made * mask
    return made


def poisson_nll(
    factors: Float[Tensor, "trials bins factors"],
    readout: Linear,
    counts: Tensor,
    weight: Float[Tensor, "trials bins 1"] | Float[Tensor, "trials bins neurons"],
    learned: UInt8[Tensor, "trials bins neurons"] | None = None,
) -> Float[Tensor, ""]:
    r"""Weighted sum of :math:`e^{x} - n x + \log n!` over trials, bins and neurons, with log-rates x read out.

    Parameters
    ----------
    factors
        What is read out.
    readout
        To log-rates.
    counts
        Spike counts n, (trials, bins, neurons), whole or floating; where their weight is 0 they may be anything.
    weight
        Of each bin, or of each value.
    learned
        Values whose error may teach; the others count in the sum, but have no gradient. All where not given.
    """
    # Where nothing weighs, a rate may be beyond all numbers: 0 times that would be NaN.
    log_rates, counts = (torch.where(weight > 0, value, 0) for value in (readout(factors), counts.to(factors.dtype)))
    nll = log_rates.exp() - counts * log_rates + torch.lgamma(counts + 1)
    if learned is not None:
        nll = torch.where(learned > 0, nll, nll.detach())
    return (weight * nll).sum()


def _times(value: Tensor, mask: Tensor | None) -> Tensor:
    return value if mask is None else value * mask
