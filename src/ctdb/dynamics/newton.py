r"""Damped Newton's method on :math:`F(x, u) = x` for many starts at once, with a fallback that is never stuck."""

from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ctdb.dynamics.jacobians import Linearise, Step
from ctdb.dynamics.known import KnownPoints


class Status(IntEnum):
    r"""How the search from one start ended.

    `FIXED`: at a fixed point. `SLOW`: at a local minimum of the speed :math:`|F(x) - x|` that is not 0, such as the
    ghost of a saddle-node. `OUT`: it left the region of interest. `UNFINISHED`: the iterations ran out. `INVALID`: the
    start, or the step or its Jacobian there, is NaN or infinite.
    """

    FIXED = 0
    SLOW = 1
    OUT = 2
    UNFINISHED = 3
    INVALID = 4


@dataclass(frozen=True)
class Region:
    """Ball that holds all visited states.

    Attributes
    ----------
    centre
        Mean of the visited states.
    radius
        Largest distance of one from it; the unit of all distances in the search.
    reach
        Radius of the ball in which is searched.
    max_step
        Longest step. A full Newton step would jump over saddles to the stable points.
    """

    centre: Float[Tensor, " d"]
    radius: float
    reach: float
    max_step: float


SINGULAR = 1e-13
"""Smallest over largest pivot below which a matrix counts as singular."""
SHORTER = (0.3, 0.1)
"""Shares of a Newton step that are tried where the whole one does not lower the speed."""
PATIENCE = 3
"""Newton steps of a start that may fail before it stays with Levenberg-Marquardt steps."""
FLAT = 1e-6
r"""Gradient :math:`|J^T r| / (|J| |r|)` below which the speed counts as flat; :math:`|J|` is that at the start."""
STALLED = 1e-3
"""Share of the speed by which a step must lower it for the speed to be still falling; near a fixed point with a mode
that dies out slower than exponentially it is flat as well. Also the distance, in radii, at which a minimum is told."""
LAP = 15
"""Iterations that each chunk of starts gets by itself; the few that need more then go on together."""


def search(
    step: Step,
    linearise: Linearise,
    starts: Float[Tensor, "n d"],
    input: Float[Tensor, "n i"],
    region: Region,
    known: KnownPoints,
    tolerance: float,
    max_iterations: int,
    chunk: int,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"], Int[Tensor, " n"]]:
    r"""Where each start leads.

    With :math:`r = F(x) - x` and :math:`J = \partial r / \partial x`, a Newton step solves :math:`J s = -r`. It is
    taken, cut to the longest allowed or shorter, only where :math:`|r|` falls; elsewhere a Levenberg-Marquardt step
    :math:`(J^T J + \mu I) s = -J^T r` is, whose :math:`\mu` grows until :math:`|r|` does fall.

    Parameters
    ----------
    step, linearise
        The system and its Jacobians.
    starts, input
        Starts, and the constant input of each.
    region
        Where to search.
    known
        Points found so far, which a start need only come near; new ones are added.
    tolerance
        Largest :math:`|r|` of a fixed point.
    max_iterations
        Jacobians that a start may cost.
    chunk
        Starts that run at once.

    Returns
    -------
    States, :math:`|r|` there, and status. A start that came near a known point is `FIXED` where it stopped.

    References
    ----------
    Sussillo & Barak (2013), Neural Computation 25:626; Nocedal & Wright (2006), chapters 10 and 11.
    """
    batch = _Batch(step, linearise, starts, input, region)
    for part in torch.arange(len(starts)).split(chunk):
        for _ in range(min(LAP, max_iterations)):
            if len(going := batch.going(part, known, tolerance)):
                batch.advance(going)
    for _ in range(LAP, max_iterations):
        for part in batch.going(torch.arange(len(starts)), known, tolerance).split(chunk):
            batch.advance(part)
    batch.going(torch.arange(len(starts)), known, tolerance)
    return batch.x, batch.norm, batch.status


class _Batch:
    """Starts that are followed together; `who` are the numbers of some of them, `J` their Jacobians of r."""

    def __init__(self, step: Step, linearise: Linearise, starts: Tensor, input: Tensor, region: Region):
        self.step, self.linearise, self.input, self.region = step, linearise, input, region
        self.x = starts.clone()
        self.r = self._residual(self.x, input)
        self.norm = self.r.norm(dim=1)
        self.before, self.size = self.norm + torch.inf, torch.zeros_like(self.norm)
        self.damping, self.failures = torch.full_like(self.norm, 1e-3), torch.zeros(len(self.x), dtype=torch.long)
        self.status = torch.full((len(self.x),), int(Status.UNFINISHED))
        self.status[~self.norm.isfinite()] = Status.INVALID
        self.unit = torch.eye(starts.shape[1], dtype=starts.dtype)

    def going(self, who: Tensor, known: KnownPoints, tolerance: float) -> Tensor:
        """Those of `who` that have not come to an end."""
        who = who[self.status[who] == Status.UNFINISHED]
        fixed = self.norm[who] < tolerance
        self.status[who[fixed]] = Status.FIXED
        known.add(self.x[who[fixed]], self.input[who[fixed]], self.norm[who[fixed]])
        who = who[~fixed]
        self.status[who[(self.x[who] - self.region.centre).norm(dim=1) > self.region.reach]] = Status.OUT
        self.status[who[known.reached(self.x[who], self.input[who])]] = Status.FIXED
        return who[self.status[who] == Status.UNFINISHED]

    def advance(self, who: Tensor) -> None:
        """One step of each, or its end."""
        J = self.linearise(self.x[who], self.input[who]).state
        J.diagonal(dim1=1, dim2=2).sub_(1)
        first = self.before[who].isinf()
        self.size[who[first]] = J[first].flatten(1).norm(dim=1) if first.any() else 0
        stalled = self.norm[who] > (1 - STALLED) * self.before[who]
        self.before[who] = self.norm[who]
        if stalled.any():
            self._judge(who[stalled], J[stalled])
        going = self.status[who] == Status.UNFINISHED
        newton = (going & (self.failures[who] < PATIENCE)).nonzero()[:, 0]
        if len(newton):
            moved = self._newton(who[newton], J if len(newton) == len(J) else J[newton])
            going[newton[moved]] = False
        if going.any():
            self._levenberg_marquardt(who[going], J[going])

    def _judge(self, who: Tensor, J: Tensor) -> None:
        """End where the speed is minimal; leave where it is merely flat, as between two fixed points."""
        self.status[who[~J.isfinite().flatten(1).all(1)]] = Status.INVALID
        gradient = (J.mT @ self.r[who, :, None])[:, :, 0]
        flat = gradient.norm(dim=1) <= FLAT * self.size[who] * self.norm[who]
        flat &= self.status[who] == Status.UNFINISHED
        if flat.any():
            who = who[flat]
            flattest = torch.linalg.svd(J[flat])[2][:, -1] * (STALLED * self.region.radius)
            moved = self._attempt(who, flattest) | self._attempt(who, -flattest)
            self.status[who[~moved]] = Status.SLOW

    def _newton(self, who: Tensor, J: Tensor) -> Tensor:
        # LAPACK wants columns: the factors of the transpose need no copy.
        factors, pivots, _ = torch.linalg.lu_factor_ex(J.mT)
        move = torch.linalg.lu_solve(factors, pivots, -self.r[who, :, None], adjoint=True)[:, :, 0]
        # Along a continuous set the matrix is singular but for rounding, of which nothing but noise would come.
        pivot = factors.diagonal(dim1=1, dim2=2).abs()
        move[pivot.amin(1) < SINGULAR * pivot.amax(1)] = 0
        moved = self._attempt(who, move)
        for share in SHORTER:
            again = ~moved
            if not again.any():
                break
            moved[again] = self._attempt(who[again], share * self._cut(move[again]))
        self.failures[who[~moved]] += 1
        return moved

    def _levenberg_marquardt(self, who: Tensor, J: Tensor) -> None:
        square, gradient = J.mT @ J, (J.mT @ self.r[who, :, None])[:, :, 0]
        for _ in range(4):  # damping that are worth trying before the Jacobian is computed again
            mu = self.damping[who] * self.size[who] ** 2
            factor = torch.linalg.cholesky_ex(square + mu[:, None, None] * self.unit)[0]
            moved = self._attempt(who, torch.cholesky_solve(-gradient[:, :, None], factor)[:, :, 0])
            self.damping[who] *= torch.where(moved, 1 / 4, 8)
            who, square, gradient = who[~moved], square[~moved], gradient[~moved]
            if not len(who):
                break
        # No descent even along the gradient: what is left is rounding.
        self.status[who[self.damping[who] > 1e8]] = Status.SLOW

    def _attempt(self, who: Tensor, move: Tensor) -> Tensor:
        """Move those whose residual falls, and say which."""
        x = self.x[who] + self._cut(move)
        r = self._residual(x, self.input[who])
        norm = r.norm(dim=1)
        good = norm < self.norm[who]
        self.x[who[good]], self.r[who[good]], self.norm[who[good]] = x[good], r[good], norm[good]
        return good

    def _cut(self, move: Tensor) -> Tensor:
        """The move, no longer than allowed; none where it is not finite."""
        move = move.nan_to_num(0, 0, 0)
        return move * (self.region.max_step / move.norm(dim=1, keepdim=True).clamp(min=1e-300)).clamp(max=1)

    def _residual(self, x: Tensor, input: Tensor) -> Tensor:
        with torch.no_grad():
            return self.step(x, input) - x
