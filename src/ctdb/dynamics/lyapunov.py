"""Lyapunov exponents: how fast neighbouring states part or meet along a trajectory."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ctdb.errors import MetricError

Step = Callable[[Tensor, Tensor], Tensor]
"""Next state (n, d) from a state (n, d) and an input (n, i)."""


@dataclass(frozen=True)
class LyapunovSpectrum:
    """Lyapunov exponents, largest first.

    Attributes
    ----------
    exponents
        Nats per bin, averaged over bins and trajectories.
    standard_error
        Of `exponents`, from the spread of blocks of bins of all trajectories.
    of_trajectories
        Exponents of each trajectory.
    bin_s
        Seconds per bin.
    n_states
        Dimensions of the state, at least the number of exponents.
    """

    exponents: Float[np.ndarray, " exponents"]
    standard_error: Float[np.ndarray, " exponents"]
    of_trajectories: Float[np.ndarray, "trajectories exponents"]
    bin_s: float
    n_states: int

    @property
    def per_second(self) -> Float[np.ndarray, " exponents"]:
        """Exponents in nats per second."""
        return self.exponents / self.bin_s

    @property
    def standard_error_per_second(self) -> Float[np.ndarray, " exponents"]:
        """Standard errors in nats per second."""
        return self.standard_error / self.bin_s

    @property
    def dimension(self) -> float:
        """Kaplan-Yorke dimension; NaN where more exponents are needed to know it."""
        return kaplan_yorke(self.exponents, self.n_states)


def lyapunov_spectrum(
    step: Step,
    start: Float[Tensor, "trajectories states"],
    n_bins: int,
    inputs: Float[Tensor, "..."] | None = None,
    transient: int = 0,
    bin_s: float = 1.0,
    jacobian: Callable[[Tensor, Tensor], Tensor] | None = None,
    n_exponents: int | None = None,
    n_blocks: int = 10,
) -> LyapunovSpectrum:
    r"""Lyapunov spectrum of a map along trajectories, by repeated QR decomposition of its Jacobians.

    :math:`Q_{t+1} R_{t+1} = J(x_t, u_t) Q_t` and :math:`\lambda_i = \langle \log |R_{t,ii}| \rangle_t`. All
    trajectories advance together, in float64.

    Parameters
    ----------
    step
        The system; a network's or a fit's ``step``, or :func:`rk4_map` of an ODE. One in float32 limits what exponents
        near 0 can be told apart. Its parameters are left as they are.
    start
        First states, one per trajectory.
    n_bins
        Bins that count.
    inputs
        One constant input (inputs,), inputs of the bins of all trajectories (bins, inputs), or of each (trajectories,
        bins, inputs), with ``transient + n_bins`` bins; None for an input of no channels.
    transient
        Bins before them, in which trajectories reach the attractor and the directions settle.
    bin_s
        Seconds per bin.
    jacobian
        Derivative of the next state by the state, (n, d, d); by automatic differentiation if None.
    n_exponents
        Number of exponents, from the largest; all if None.
    n_blocks
        Blocks of each trajectory for the standard error. Blocks should be long against the correlation time.

    Raises
    ------
    MetricError
        If shapes disagree, there are too few bins for the blocks, or the state leaves the finite numbers.

    References
    ----------
    Benettin et al. (1980); Engelken, Wolf & Abbott (2023), Lyapunov spectra of chaotic recurrent neural networks.
    """
    state = torch.as_tensor(start).detach().to(torch.float64).clone()
    if state.ndim != 2 or not len(state):
        raise MetricError(f"start is (trajectories, states); found shape {tuple(state.shape)}")
    n_trajectories, n_states = state.shape
    n_exponents = n_states if n_exponents is None else n_exponents
    if not 1 <= n_exponents <= n_states:
        raise MetricError(f"n_exponents is {n_exponents}; expected 1 to {n_states}, the dimensions of the state")
    if n_blocks < 1 or n_bins < n_blocks or transient < 0:
        raise MetricError(f"{n_bins} bins do not make {n_blocks} blocks; use more bins or fewer blocks")
    at = _input_of(inputs, n_trajectories, transient + n_bins, state.device)
    first_of_block = {int(block[0]): i for i, block in enumerate(np.array_split(np.arange(n_bins), n_blocks))}
    axes = torch.eye(n_states, n_exponents, dtype=torch.float64, device=state.device).repeat(n_trajectories, 1, 1)
    stretched = torch.zeros(n_blocks, n_trajectories, n_exponents, dtype=torch.float64, device=state.device)
    lengths, block = np.zeros(n_blocks), 0
    for t in range(-transient, n_bins):
        now = at(t + transient)
        if jacobian is None:
            state, slope = _step_and_jacobian(step, state, now)
        else:
            slope = jacobian(state, now).detach().to(torch.float64)
            with torch.no_grad():
                state = step(state, now).to(torch.float64)
        if t % 100 == 0 or t == n_bins - 1:
            _check_finite(state, slope, t + transient)
        axes, upper = torch.linalg.qr(slope @ axes)
        if t >= 0:
            block = first_of_block.get(t, block)
            stretched[block] += upper.diagonal(dim1=-2, dim2=-1).abs().log()
            lengths[block] += 1
    of_blocks = stretched.cpu().numpy() / lengths[:, None, None]
    of_trajectories = stretched.sum(0).cpu().numpy() / n_bins
    exponents = of_trajectories.mean(0)
    order = np.argsort(-exponents, kind="stable")
    pooled = of_blocks.reshape(-1, n_exponents)
    with np.errstate(invalid="ignore"):
        error = pooled.std(0, ddof=1) / np.sqrt(len(pooled)) if len(pooled) > 1 else np.full(n_exponents, np.nan)
    return LyapunovSpectrum(exponents[order], error[order], of_trajectories[:, order], bin_s, n_states)


def kaplan_yorke(exponents: Float[np.ndarray, " exponents"], n_states: int | None = None) -> float:
    r"""Kaplan-Yorke dimension :math:`k + \sum_{i \le k} \lambda_i / |\lambda_{k+1}|`.

    k is the largest number of exponents whose sum is not negative.

    Parameters
    ----------
    exponents
        Largest first.
    n_states
        Dimensions of the state, if `exponents` may be the largest ones only.

    Returns
    -------
    0 if the largest exponent is negative, the dimensions of the state if volumes do not shrink, NaN if exponents that
    are not given decide.

    References
    ----------
    Kaplan & Yorke (1979).
    """
    sums = np.cumsum(exponents)
    not_shrinking = np.flatnonzero(sums >= 0)
    if not len(not_shrinking):
        return 0.0
    k = int(not_shrinking[-1]) + 1
    if k == len(exponents):
        return float(k) if n_states is None or k == n_states else np.nan
    return float(k + sums[k - 1] / abs(exponents[k]))


def rk4_map(flow: Step, time_per_bin: float, substeps: int = 1) -> Step:
    """Map of one bin of the ODE ``dx/dt = flow(x, u)`` by the classical Runge-Kutta method, u constant in the bin.

    With ``bin_s=time_per_bin``, exponents per second are per unit of the ODE's time.
    """
    h = time_per_bin / substeps

    def step(state: Tensor, input: Tensor) -> Tensor:
        for _ in range(substeps):
            k1 = flow(state, input)
            k2 = flow(state + h / 2 * k1, input)
            k3 = flow(state + h / 2 * k2, input)
            k4 = flow(state + h * k3, input)
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return state

    return step


def _input_of(inputs: Tensor | None, n_trajectories: int, n_bins: int, device: torch.device) -> Callable[[int], Tensor]:
    if inputs is None:
        nothing = torch.zeros(n_trajectories, 0, dtype=torch.float64, device=device)
        return lambda t: nothing
    given = torch.as_tensor(inputs).detach().to(device, torch.float64)
    if given.ndim == 1:
        constant = given.expand(n_trajectories, -1)
        return lambda t: constant
    fits = given.ndim in (2, 3) and given.shape[-2] == n_bins and (given.ndim == 2 or len(given) == n_trajectories)
    if not fits:
        raise MetricError(
            f"inputs are (inputs,), ({n_bins}, inputs) or ({n_trajectories}, {n_bins}, inputs), with the transient; "
            f"found shape {tuple(given.shape)}"
        )
    return lambda t: given[..., t, :].expand(n_trajectories, -1)


def _step_and_jacobian(step: Step, state: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
    n_states = state.shape[1]
    with torch.enable_grad():
        state = state.detach().requires_grad_()
        after = step(state, input)
        rows = torch.eye(n_states, dtype=after.dtype, device=after.device)[:, None].expand(-1, len(state), -1)
        (slope,) = torch.autograd.grad(after, state, rows, is_grads_batched=True)
    return after.detach().to(torch.float64), slope.transpose(0, 1).to(torch.float64)


def _check_finite(state: Tensor, slope: Tensor, bin: int) -> None:
    if not (torch.isfinite(state).all() and torch.isfinite(slope).all()):
        raise MetricError(
            f"the state or its Jacobian is not finite by bin {bin}: the system runs away from these starts"
        )
