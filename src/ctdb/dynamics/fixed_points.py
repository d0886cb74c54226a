"""Find the fixed points of any step: starts between visited states, Newton's method, rounds until nothing is new."""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ctdb.dynamics import starts as starting
from ctdb.dynamics.jacobians import Linearise, Step, cell_of, jacobian_of
from ctdb.dynamics.newton import NEAR, Region, Status, search
from ctdb.dynamics.points import FixedPoints
from ctdb.errors import DynamicsError
from ctdb.seeds import derive

EQUAL = 1e-3
"""Distance, in radii of the region, below which two points are one."""
MAX_ROUNDS, MAX_POLISH = 8, 30


def find_fixed_points(
    step: Step,
    states: Tensor | np.ndarray,
    inputs: Tensor | np.ndarray | None = None,
    *,
    starts: Literal["hull", "given"] = "hull",
    n_starts: int = 256,
    seed: int = 0,
    thorough: bool = False,
    bin_s: float | None = None,
    tolerance: float = 1e-11,
    reach: float = 1.5,
    max_iterations: int = 200,
    chunk: int = 64,
    linearise: Linearise | None = None,
) -> FixedPoints:
    r"""Fixed points :math:`F(x, u) = x` under constant input.

    Starts are drawn in the convex hull of the visited states and followed by a damped Newton's method in double
    precision (:func:`ctdb.dynamics.newton.search`). Then the midpoints of found points are tried, the nearest first, in
    rounds until one finds nothing new. That all points are found is likely, not proven: see
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
        Number of starts in the hull; a round of midpoints has up to half as many.
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
        Starts that run at once; more do not fit into the processor's cache.
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
    # A single state says nothing about how far to look.
    far = reach * radius if radius > 0 else float("inf")
    region = Region(centre, radius or max(1.0, float(centre.norm())), far)
    found = _Search(step, linearise or jacobian_of(step), region, tolerance, max_iterations, chunk)
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
    per_round = max(1, (len(states) if starts == "given" else n_starts) // 2)
    for _ in range(MAX_ROUNDS):
        before = len(found.x)
        between, parents = starting.midpoints(found.x, found.input, tried, per_round)
        if len(between):
            found.run(between, found.input[parents])
        if len(found.x) == before:
            break
    return found.points(visited, bin_s)


class _Search:
    """What was found so far: distinct fixed points in the order of their discovery, and how each start ended."""

    def __init__(
        self,
        step: Step,
        linearise: Linearise,
        region: Region,
        tolerance: float,
        max_iterations: int,
        chunk: int,
    ):
        self.step, self.linearise, self.region, self.tolerance = step, linearise, region, tolerance
        self.max_iterations, self.chunk = max_iterations, chunk
        self.x, self.input = torch.empty(0, 0), torch.empty(0, 0)
        self.status: list[Tensor] = []
        self.end: list[Tensor] = []
        self.norm: list[Tensor] = []
        self.under: list[Tensor] = []

    def run(self, starts: Tensor, inputs: Tensor) -> None:
        """Follow some more starts."""
        for x, u in zip(starts.split(self.chunk), inputs.split(self.chunk), strict=True):
            good = x.isfinite().all(1) & u.isfinite().all(1)
            x, norm, status = search(
                self.step,
                self.linearise,
                torch.where(good[:, None], x, self.region.centre),
                torch.where(good[:, None], u, 0),
                self.region,
                self.tolerance,
                self.max_iterations,
                self._arrived,
            )
            status[~good] = Status.INVALID
            for kept, value in zip((self.end, self.norm, self.status, self.under), (x, norm, status, u), strict=True):
                kept.append(value)
            fixed = (status == Status.FIXED).nonzero()[:, 0]
            fixed = fixed[norm[fixed] < self.tolerance]  # the others arrived at points that are known
            _, self.x, self.input = _merge(
                x[fixed], u[fixed], norm[fixed], EQUAL * self.region.radius, self.x, self.input
            )

    def _arrived(self, x: Tensor, input: Tensor) -> Tensor:
        if not len(self.x):
            return torch.zeros(len(x), dtype=torch.bool)
        same = (input[:, None] == self.input[None]).all(2)
        return ((torch.cdist(x, self.x) < NEAR * self.region.radius) & same).any(1)

    def points(self, visited: Tensor, bin_s: float | None) -> FixedPoints:
        """The points, exact to rounding and in order."""
        status, end, under = torch.cat(self.status), torch.cat(self.end), torch.cat(self.under)
        norm = torch.cat(self.norm)
        known = {"start_status": status, "radius": self.region.radius, "bin_s": bin_s}
        slow = (status == Status.SLOW).nonzero()[:, 0]
        which, x, u = _merge(end[slow], under[slow], norm[slow], EQUAL * self.region.radius)
        reached = torch.full((len(status),), -1)
        reached[slow] = which
        slow_points = self._describe(x, u, reached, visited, known)
        slow_points = _reordered(slow_points, slow_points.residual.argsort(stable=True))

        fixed = (status == Status.FIXED).nonzero()[:, 0]
        x, u = (self.x, self.input) if len(fixed) else (end[:0], under[:0])
        x, norm = self._polished(x, u)
        _, x, u = _merge(x, u, norm, EQUAL * self.region.radius)
        nearest = torch.cdist(end[fixed], x)
        nearest[(under[fixed, None] != u[None]).any(2)] = torch.inf
        reached = torch.full((len(status),), -1)
        reached[fixed] = nearest.argmin(1) if len(fixed) else fixed
        points = self._describe(x, u, reached, visited, known)
        return replace(_reordered(points, (points.index + (~points.stable)).argsort(stable=True)), slow=slow_points)

    def _polished(self, x: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
        """States and residuals after Newton's method for as long as it halves the residual."""
        x = x.clone()
        with torch.no_grad():
            norm = (self.step(x, input) - x).norm(dim=1) if len(x) else x.new_zeros(0)
            going = torch.arange(len(x))
            for _ in range(MAX_POLISH):
                if not len(going):
                    break
                u = input[going]
                J = self.linearise(x[going], u).state - torch.eye(x.shape[1], dtype=x.dtype)
                move = torch.linalg.solve_ex(J, x[going] - self.step(x[going], u))[0]
                new = x[going] + move.nan_to_num(0, 0, 0)
                norm_new = (self.step(new, u) - new).norm(dim=1)
                good = (norm_new < norm[going] / 2) & (move.norm(dim=1) < EQUAL * self.region.radius)
                going = going[good]
                x[going], norm[going] = new[good], norm_new[good]
        return x, norm

    def _describe(self, x: Tensor, u: Tensor, reached: Tensor, visited: Tensor, known: dict) -> FixedPoints:
        k, d = x.shape
        if k:
            with torch.no_grad():
                residual = (self.step(x, u) - x).norm(dim=1)
            parts = [self.linearise(*both) for both in zip(x.split(self.chunk), u.split(self.chunk), strict=True)]
            jacobian, by_input = (torch.cat(part).clone() for part in zip(*parts, strict=True))
            distance = torch.cat([torch.cdist(one, visited).amin(1) for one in x.split(self.chunk)])
        else:
            residual, distance, jacobian = x.new_zeros(0), x.new_zeros(0), x.new_zeros(0, d, d)
            by_input = x.new_zeros(0, d, u.shape[1])
        n_starts = reached[reached >= 0].bincount(minlength=k)
        return FixedPoints(x, u, residual, jacobian, by_input, distance, n_starts, start_point=reached, **known)


def _merge(
    x: Tensor, input: Tensor, norm: Tensor, equal: float, x_known: Tensor | None = None, u_known: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Number of the distinct point that each state is, and these points; the lowest residuals stand for their like."""
    empty = x_known is None or not x_known.numel()
    points, inputs = ([], []) if empty else (list(x_known), list(u_known))
    which = torch.full((len(x),), -1)
    for row in norm.argsort(stable=True).tolist():
        if points:
            far = (torch.stack(points) - x[row]).norm(dim=1)
            far[(torch.stack(inputs) != input[row]).any(1)] = torch.inf
            if far.min() < equal:
                which[row] = far.argmin()
                continue
        which[row] = len(points)
        points.append(x[row])
        inputs.append(input[row])
    if not points:
        return which, x, input
    return which, torch.stack(points), torch.stack(inputs)


def _reordered(points: FixedPoints, order: Tensor) -> FixedPoints:
    number = torch.empty(len(order) + 1, dtype=torch.long)
    number[order], number[-1] = torch.arange(len(order)), -1
    names = ("x", "input", "residual", "jacobian", "input_jacobian", "distance", "n_starts")
    return replace(
        points,
        **{name: getattr(points, name)[order] for name in names},
        start_point=number[points.start_point],
    )


def _checked(step: Step, states: Tensor | np.ndarray, inputs: Tensor | np.ndarray | None) -> tuple[Tensor, Tensor]:
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
