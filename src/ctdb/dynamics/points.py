"""Fixed points as they were found: where they are, how the system moves around them, how the search for them went."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ctdb.dynamics.known import EXACT
from ctdb.dynamics.newton import Status
from ctdb.errors import DynamicsError
from ctdb.files import read_hdf5, write_hdf5

FORMAT = "ctdb-fixed-points-1"
MARGINAL = 1e-3
r"""A mode with \|\|eigenvalue\| - 1\| up to this is marginal: in a thousand bins it neither dies out nor grows."""
ROUNDING = 1e-6
"""How far from 1 an eigenvalue's size must be to tell which side it is on."""
DEFECTIVE = 1e12
"""Size of left eigenvectors from which on right ones count as parallel."""
LINKED, MANY = 0.15, 8
"""Marginal points at most that many radii apart belong together, and that many make a continuous set."""


@dataclass(frozen=True, eq=False)
class ContinuousSet:
    """A line, ring or sheet of fixed points, of which the search found some.

    Attributes
    ----------
    members
        Numbers of its points.
    dimension
        Its local dimension: the number of eigenvalues next to 1 that most of its points have.
    """

    members: Int[Tensor, " points"]
    dimension: int


@dataclass(frozen=True, eq=False)
class FixedPoints:
    r"""Fixed points of :math:`x' = F(x, u)`, the stable ones first, then by their number of unstable directions.

    All tensors are in double precision, on the CPU.

    Attributes
    ----------
    x, input
        The points, and the constant input under which each is one.
    residual
        \|F(x, u) - x\|.
    jacobian, input_jacobian
        Derivatives of F by state and by input; ``[k, a, b]`` is that of unit a by b.
    distance
        To the nearest visited state, in units of the state.
    n_starts
        How many starts reached each point.
    start_status, start_point
        Of every start, in their order: how it ended (:class:`Status`), and the number of its point, or -1.
    radius
        Largest distance of a visited state from their mean, the unit of the search's distances.
    bin_s
        Duration of a step in seconds, where it was given.
    slow
        In the same form, points where the speed has a local minimum that is not 0. These are no fixed points.
    """

    x: Float[Tensor, "k d"]
    input: Float[Tensor, "k i"]
    residual: Float[Tensor, " k"]
    jacobian: Float[Tensor, "k d d"]
    input_jacobian: Float[Tensor, "k d i"]
    distance: Float[Tensor, " k"]
    n_starts: Int[Tensor, " k"]
    start_status: Int[Tensor, " starts"]
    start_point: Int[Tensor, " starts"]
    radius: float
    bin_s: float | None = None
    slow: "FixedPoints | None" = None

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def eigenvalues(self) -> Complex[Tensor, "k d"]:
        """Eigenvalues of each Jacobian, the largest in size first."""
        values = torch.linalg.eigvals(self.jacobian) if self.jacobian.numel() else self.x.to(torch.complex128)
        order = np.lexsort([-values.imag.numpy(), -values.real.numpy(), -values.abs().numpy()], axis=-1)
        return values.gather(1, torch.from_numpy(order))

    @cached_property
    def right_eigenvectors(self) -> Complex[Tensor, "k d d"]:
        """Of norm 1, in columns, in the order of the eigenvalues: ``jacobian @ right = right * eigenvalues``."""
        found, vectors = torch.linalg.eig(self.jacobian) if len(self) else (self.eigenvalues, self.jacobian + 0j)
        ordered = torch.empty_like(vectors)
        for k, wanted in enumerate(self.eigenvalues):  # another routine gives another order
            _, columns = linear_sum_assignment((wanted[:, None] - found[k]).abs().numpy())
            ordered[k] = vectors[k][:, torch.from_numpy(columns)]
        return ordered

    @cached_property
    def left_eigenvectors(self) -> Complex[Tensor, "k d d"]:
        """In rows, scaled so that ``left @ right`` is the identity; NaN where eigenvectors do not span the space."""
        left, failed = torch.linalg.inv_ex(self.right_eigenvectors)
        left[(failed > 0) | (left.abs().flatten(1) > DEFECTIVE).any(1)] = torch.nan
        return left

    @property
    def stable(self) -> Bool[Tensor, " k"]:
        """Whether every mode dies out."""
        return (self.eigenvalues.abs() < 1 - ROUNDING).all(1)

    @property
    def index(self) -> Int[Tensor, " k"]:
        """Number of unstable directions: eigenvalues larger than 1 in size."""
        return (self.eigenvalues.abs() > 1 + ROUNDING).sum(1)

    @property
    def marginal(self) -> Bool[Tensor, " k"]:
        """Whether some mode neither dies out nor grows, as far as :data:`MARGINAL` tells."""
        return ((self.eigenvalues.abs() - 1).abs() <= MARGINAL).any(1)

    @property
    def kind(self) -> list[str]:
        """Each point in words: ``stable``, ``unstable``, a ``saddle``, or ``marginal`` where it is none of them.

        The first three are followed by ``node`` or ``focus``, the latter where the eigenvalue of largest size is
        complex, as in ``stable focus``.
        """
        turns = self.eigenvalues[:, :1].imag.abs().gt(ROUNDING).any(1).tolist()
        words, d = [], self.x.shape[1]
        for focus, stable, index in zip(turns, self.stable.tolist(), self.index.tolist(), strict=True):
            word = ("unstable" if index == d else "saddle") if index else "stable" if stable else "marginal"
            words.append(word if word == "marginal" else f"{word} {'focus' if focus else 'node'}")
        return words

    @property
    def time_constants(self) -> Float[Tensor, "k d"]:
        """Seconds in which each mode falls to 1/e, or grows to e where negative; infinite where it does neither."""
        return -self._seconds() / self.eigenvalues.abs().log()

    @property
    def frequencies(self) -> Float[Tensor, "k d"]:
        """Frequency in Hz at which each mode turns, from 0 to half of the bins per second."""
        return self.eigenvalues.angle().abs() / (2 * math.pi * self._seconds())

    @property
    def discovery(self) -> Int[Tensor, " starts"]:
        """How many points were found with the starts up to each one."""
        new = torch.zeros(len(self.start_point), dtype=torch.long)
        reached = self.start_point.tolist()
        for at in {point: at for at, point in reversed(list(enumerate(reached))) if point >= 0}.values():
            new[at] = 1
        return new.cumsum(0)

    @property
    def status_counts(self) -> dict[str, int]:
        """How many starts ended in which way."""
        return {status.name.lower(): int((self.start_status == status).sum()) for status in Status}

    @cached_property
    def continuous_sets(self) -> list[ContinuousSet]:
        """Continuous attractors and the like, whose points are not to be counted: sets of many marginal points."""
        points = self.marginal.nonzero()[:, 0]
        near = torch.cdist(self.x[points], self.x[points], compute_mode=EXACT) <= LINKED * self.radius
        near &= (self.input[points, None] == self.input[None, points]).all(2)
        sets, free = [], torch.ones(len(points), dtype=torch.bool)
        at_one = ((self.eigenvalues[points] - 1).abs() <= MARGINAL).sum(1)
        for seed in range(len(points)):
            if not free[seed]:
                continue
            linked = torch.zeros_like(free)
            linked[seed], size = True, 0
            while (now := int(linked.sum())) > size:
                size, linked = now, near[linked].any(0)
            free &= ~linked
            if size >= MANY and (dimension := int(at_one[linked].median())):
                sets.append(ContinuousSet(points[linked], dimension))
        return sets

    def save(self, path: Path | str) -> None:
        """Write to an HDF5 file, the same bytes for the same points. Raises WriteError where it cannot."""
        arrays = self._arrays()
        if self.slow is not None:
            arrays |= {f"slow/{name}": value for name, value in self.slow._arrays().items()}
        times = {} if self.bin_s is None else {"bin_s": self.bin_s}
        write_hdf5(path, arrays, {"format": FORMAT, "radius": self.radius, **times})

    @classmethod
    def load(cls, path: Path | str) -> "FixedPoints":
        """Read what :meth:`save` wrote.

        Raises
        ------
        DynamicsError
            If the file holds something else.
        """
        arrays, attributes = read_hdf5(path)
        if attributes.get("format") != FORMAT:
            raise DynamicsError(f"{path}: its format is {attributes.get('format')!r}; fixed points have {FORMAT!r}")
        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}
        bin_s = None if "bin_s" not in attributes else float(attributes["bin_s"])
        known = {"radius": float(attributes["radius"]), "bin_s": bin_s}
        slow = {name.removeprefix("slow/"): value for name, value in tensors.items() if name.startswith("slow/")}
        fixed = {name: value for name, value in tensors.items() if "/" not in name}
        return cls._of(fixed, **known, slow=cls._of(slow, **known) if slow else None)

    def _arrays(self) -> dict[str, np.ndarray]:
        names = [name for name, kind in FixedPoints.__annotations__.items() if name not in ("radius", "bin_s", "slow")]
        return {name: getattr(self, name).numpy() for name in [*names, "eigenvalues"]}

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], **rest: object) -> "FixedPoints":
        eigenvalues = tensors.pop("eigenvalues")
        made = cls(**tensors, **rest)
        made.__dict__["eigenvalues"] = eigenvalues  # in the very bytes of the file
        return made

    def _seconds(self) -> float:
        if self.bin_s is None:
            raise DynamicsError("times need the duration of a step: give `bin_s`, in seconds, to find_fixed_points")
        return self.bin_s
