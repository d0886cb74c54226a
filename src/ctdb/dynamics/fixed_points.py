"""Find the fixed points of any step: starts between visited states, Newton's method, rounds until nothing is new."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ctdb.dynamics import starts as starting
from ctdb.dynamics.jacobians import Jacobians, Linearise, Step, cell_of, jacobian_of
from ctdb.dynamics.known import EQUAL, EXACT, KnownPoints
from ctdb.dynamics.newton import Region, Status, search
from ctdb.dynamics.points import FixedPoints
from ctdb.errors import DynamicsError
from ctdb.seeds import derive

MAX_STEP = 0.15
"""Longest step of the search, in radii of the visited states."""
MAX_ROUNDS, BARREN_ROUNDS = 12, 2
"""Rounds of midpoints at most, and rounds without a new point after which the search ends."""
MAX_POLISH = 30
"""Newton steps that make a found point exact, at most; two are usual."""


def find_fixed_points(
    step: Step,
    states: Tensor | np.ndarray,
    inputs: Tensor | np.ndarray | Sequence[float] | None = None,
    *,
    starts: Literal["hull", "given"] = "hull",
    n_starts: int = 160,
    seed: int = 0,
    thorough: bool = False,
    bin_s: float | None = None,
    tolerance: float = 1e-11,
    reach: float = 1.5,
    max_iterations: int = 50,
    chunk: int | None = None,
    linearise: Linearise | None = None,
) -> FixedPoints:
    r"""Fixed points :math:`F(x, u) = x` under constant input.

    Starts are drawn in the convex hull of the visited states and followed by a damped Newton's method in double
    precision (:func:`ctdb.dynamics.newton.search`). Then midpoints of pairs of found points are tried, those in the
    largest holes first, until two rounds find nothing new. That all points are found is likely, not proven: see
    :attr:`FixedPoints.discovery`, and try `thorough`.

    Parameters
    ----------
    step
        ``step(state (n, d), input (n, i)) -> next state (n, d)`` in torch, float64, each row by itself: the `step` of a
        network or model, of :func:`closed_loop_step`, or any function.
    states
        Visited states (m, d), such as those of trials; (trials, bins, d) is taken too. Rows with NaN are left out.
    inputs
        The constant input: (i,) or (1, i) for all, or (m, i), one for each state. None is no input: zeros for our
        networks and models, no channels for other steps.
    starts
        `hull`: starts are drawn between states. `given`: the states are the starts, with nothing added but midpoints.
    n_starts
        Number of starts in the hull; a round of midpoints has up to a third as many.
    seed
        Seed of the starts. No global random state is read or changed.
    thorough
        Add as many starts again that Adam moved downhill, and as many that lie around the states, in noise.
    bin_s
        Duration of a step in seconds, for time constants and frequencies.
    tolerance
        Largest :math:`|F(x) - x|` of a fixed point, in units of the state.
    reach
        How far from the mean of the states to search, in units of their largest distance from it. Where all states are
        one, there is no bound. Far out, gates saturate and much looks like a fixed point.
    max_iterations
        Jacobians that a start may cost.
    chunk
        Starts that run at once; by default at most 64, and as many as have their Jacobians in the processor's cache.
    linearise
        The step's Jacobians, if it has a closed form that :func:`jacobian_of` does not know.

    Returns
    -------
    The points. Starts that end elsewhere, or whose states are NaN, are told in its `status_counts`.

    Raises
    ------
    DynamicsError
        If shapes or types do not go together, or no state is finite.

    References
    ----------
    Sussillo & Barak (2013), Opening the black box, Neural Computation 25:626; Golub & Sussillo (2018), JOSS 3:1003.
    """
    if starts not in ("hull", "given"):
        raise DynamicsError(f"starts is {starts!r}; expected 'hull' or 'given'")
    states, inputs = _checked(step, states, inputs)
    finite = states.isfinite().all(1) & inputs.isfinite().all(1)
    visited = states[finite]
    if not len(visited):
        raise DynamicsError(f"none of the {len(states)} states is finite, with its input; give states that are")
    centre = visited.mean(0)
    radius = float((visited - centre).norm(dim=1).max())
    if radius > 0:
        region = Region(centre, radius, reach * radius, MAX_STEP * radius)
    else:  # a single state says nothing about how far to look
        region = Region(centre, max(1.0, float(centre.norm())), math.inf, math.inf)
    chunk = chunk or min(64, max(4, 2**21 // states.shape[1] ** 2))
    known = KnownPoints(states.shape[1], inputs.shape[1], region.radius)
    found = _Search(
        step, _fresh(linearise) if linearise else jacobian_of(step), region, known, tolerance, max_iterations, chunk
    )
    if starts == "given":
        found.run(states, inputs)
    else:
        generator = torch.Generator().manual_seed(derive("fixed points", seed))
        first, parents = starting.hull(visited, n_starts, generator)
        of_visited = inputs[finite]
        found.run(first, of_visited[parents])
        if thorough:
            again, parents = starting.hull(visited, n_starts, generator)
            found.run(starting.descended(step, again, of_visited[parents]), of_visited[parents])
            around, parents = starting.noisy(visited, n_starts, generator)
            found.run(around, of_visited[parents])
    tried: set[tuple[int, int]] = set()
    per_round = max(1, (len(states) if starts == "given" else n_starts) // 3)
    barren = 0
    for _ in range(MAX_ROUNDS):
        before = len(known.x)
        between, parents = starting.midpoints(known.x, known.input, tried, per_round)
        if len(between):
            found.run(between, known.input[parents])
        barren = 0 if len(known.x) > before else barren + 1
        if barren == BARREN_ROUNDS or not len(between):
            break
    return found.points(visited, bin_s)


class _Search:
    """A search under way: the points it knows, and how each start ended."""

    def __init__(
        self,
        step: Step,
        linearise: Linearise,
        region: Region,
        known: KnownPoints,
        tolerance: float,
        max_iterations: int,
        chunk: int,
    ):
        self.step, self.linearise, self.region, self.known = step, linearise, region, known
        self.tolerance, self.max_iterations, self.chunk = tolerance, max_iterations, chunk
        self.ends: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def run(self, starts: Tensor, inputs: Tensor) -> None:
        """Follow some more starts."""
        good = starts.isfinite().all(1) & inputs.isfinite().all(1)
        x, norm, status = (
            starts.clone(),
            starts.new_full((len(starts),), torch.nan),
            torch.full((len(starts),), int(Status.INVALID)),
        )
        x[good], norm[good], status[good] = search(
            self.step,
            self.linearise,
            starts[good],
            inputs[good],
            self.region,
            self.known,
            self.tolerance,
            self.max_iterations,
            self.chunk,
        )
        self.ends.append((x, inputs, norm, status))

    def points(self, visited: Tensor, bin_s: float | None) -> FixedPoints:
        """The points, exact to rounding and in order, with the slow ones beside them."""
        x, u, norm, status = (torch.cat(part) for part in zip(*self.ends, strict=True))
        facts = {"start_status": status, "radius": self.region.radius, "bin_s": bin_s}
        made = []
        for wanted in (Status.SLOW, Status.FIXED):
            distinct = KnownPoints(x.shape[1], u.shape[1], self.region.radius)
            ended, reached = status == wanted, torch.full((len(status),), -1)
            if wanted == Status.SLOW:
                reached[ended] = distinct.add(x[ended], u[ended], norm[ended])
            else:
                distinct.add(*self._polished(self.known.x, self.known.input))
                reached[ended] = distinct.nearest(x[ended], u[ended])[1]
            made.append(self._describe(distinct, reached, visited, facts))
        slow, fixed = made
        slow = _reordered(slow, slow.residual.argsort(stable=True))
        return replace(_reordered(fixed, (fixed.index + (~fixed.stable)).argsort(stable=True)), slow=slow)

    def _polished(self, x: Tensor, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States, inputs and residuals after Newton's method for as long as it halves the residual."""
        x, unit = x.clone(), torch.eye(x.shape[1], dtype=x.dtype)
        with torch.no_grad():
            norm, going = (self.step(x, input) - x).norm(dim=1), torch.arange(len(x))
            for _ in range(MAX_POLISH):
                better = []
                for who in going.split(self.chunk):
                    J = self.linearise(x[who], input[who]).state - unit
                    move = torch.linalg.solve_ex(J, x[who] - self.step(x[who], input[who]))[0].nan_to_num(0, 0, 0)
                    new = x[who] + move
                    norm_new = (self.step(new, input[who]) - new).norm(dim=1)
                    good = (norm_new < norm[who] / 2) & (move.norm(dim=1) < EQUAL * self.region.radius)
                    x[who[good]], norm[who[good]] = new[good], norm_new[good]
                    better.append(who[good])
                if not better or not len(going := torch.cat(better)):
                    break
        return x, input, norm

    def _describe(self, known: KnownPoints, reached: Tensor, visited: Tensor, facts: dict) -> FixedPoints:
        x, u, d, k = known.x, known.input, known.x.shape[1], len(known.x)
        residual, distance = x.new_zeros(k), x.new_zeros(k)
        by_state, by_input = x.new_zeros(k, d, d), x.new_zeros(k, d, u.shape[1])
        for who in torch.arange(k).split(self.chunk) if k else ():
            with torch.no_grad():
                residual[who] = (self.step(x[who], u[who]) - x[who]).norm(dim=1)
            by_state[who], by_input[who] = self.linearise(x[who], u[who])
            distance[who] = torch.cdist(x[who], visited, compute_mode=EXACT).amin(1)
        n_starts = reached[reached >= 0].bincount(minlength=k)
        return FixedPoints(x, u, residual, by_state, by_input, distance, n_starts, start_point=reached, **facts)


def _fresh(linearise: Linearise) -> Linearise:
    """The same with Jacobians that may be changed."""
    return lambda state, input: Jacobians(*[part.detach().clone() for part in linearise(state, input)])


def _reordered(points: FixedPoints, order: Tensor) -> FixedPoints:
    number = torch.empty(len(order) + 1, dtype=torch.long)
    number[order], number[-1] = torch.arange(len(order)), -1
    names = ("x", "input", "residual", "jacobian", "input_jacobian", "distance", "n_starts")
    parts = {name: getattr(points, name)[order] for name in names}
    moved = replace(points, **parts, start_point=number[points.start_point])
    moved.__dict__["eigenvalues"] = points.eigenvalues[order]  # which took as long as all else
    return moved


def _checked(
    step: Step, states: Tensor | np.ndarray, inputs: Tensor | np.ndarray | Sequence[float] | None
) -> tuple[Tensor, Tensor]:
    """Own copies in double precision, with one input for each state."""
    states = torch.as_tensor(states).detach().to("cpu", torch.float64, copy=True)
    if states.ndim not in (2, 3) or not states.numel():
        raise DynamicsError(f"states have the shape {tuple(states.shape)}; expected (states, units), with some of both")
    states = states.reshape(-1, states.shape[-1])
    if inputs is None:
        cell = cell_of(step)
        inputs = torch.zeros(1, getattr(step, "n_inputs", 0) if cell is None else cell.n_inputs)
    inputs = torch.as_tensor(inputs).detach().to("cpu", torch.float64, copy=True)
    inputs = inputs[None] if inputs.ndim == 1 else inputs
    if inputs.ndim != 2 or len(inputs) not in (1, len(states)):
        raise DynamicsError(
            f"inputs have the shape {tuple(inputs.shape)}; expected one constant input (channels,), or "
            f"({len(states)}, channels), one for each state"
        )
    inputs = inputs.expand(len(states), -1)
    with torch.no_grad():
        after = step(states[:2].clone(), inputs[:2].clone())
    if after.shape != states[:2].shape:
        raise DynamicsError(
            f"step turned states of the shape {tuple(states[:2].shape)} into {tuple(after.shape)}; it must give the "
            "next state, (n, units), of each"
        )
    if after.dtype != torch.float64:
        raise DynamicsError(
            f"step works in {after.dtype}, too coarse for fixed points; give it float64, for a network or model by "
            "`.double()`, or load it with dtype=torch.float64"
        )
    return states, inputs
