"""Lyapunov exponents of two systems whose exponents are known: our computation against published values."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from torch import Tensor

from ctdb.dynamics.lyapunov import LyapunovSpectrum, Step, lyapunov_spectrum, rk4_map
from ctdb.figures import FIGURES
from ctdb.figures.base import WIDTH, Figure, FigureSettings
from ctdb.figures.planned import Need, Planned
from ctdb.figures.published import STYLE as PUBLISHED
from ctdb.figures.published import comparison
from ctdb.seeds import derive
from ctdb.settings import Count, Seed


class CtdLyapunovSettings(FigureSettings):
    """Settings of figure `ctd_lyapunov`: how many trajectories there are, and the seed of their starts."""

    n_trajectories: Count = 48
    seed: Seed = 0


@dataclass(frozen=True, eq=False)
class System:
    """A quadratic system dx/dt = c + A x + products of two states, with its Runge-Kutta map and the derivative of that.

    Attributes
    ----------
    says
        Its name and parameters.
    constant, linear
        c (3,) and A (3, 3).
    products
        Row and two states to the coefficient of their product.
    dt, substeps
        Time from one bin to the next, and the steps of the Runge-Kutta method in it.
    transient, duration
        Time before the average, in which directions settle, and of the average.
    start
        Mean of the starts, around which they are normal with standard deviation 1.
    """

    says: str
    constant: tuple[float, ...]
    linear: tuple[tuple[float, ...], ...]
    products: Mapping[tuple[int, int, int], float]
    dt: float
    substeps: int
    transient: float
    duration: float
    start: float

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """c, A, and the derivative of the Jacobian by the state, as (3, 9)."""
        curvature = torch.zeros(3, 3, 3, dtype=torch.float64)
        for (row, first, second), coefficient in self.products.items():
            curvature[second, row, first] += coefficient
            curvature[first, row, second] += coefficient
        constant, linear = (torch.tensor(part, dtype=torch.float64) for part in (self.constant, self.linear))
        return constant, linear, curvature.reshape(3, 9)

    def _bent(self, state: Tensor) -> Tensor:
        """What the products add to the Jacobian."""
        return (state @ self._parts[2]).view(-1, 3, 3)

    def flow(self, state: Tensor, input: Tensor) -> Tensor:
        """Velocity (n, 3) at states (n, 3); there is no input."""
        constant, linear, _ = self._parts
        return constant + ((linear + self._bent(state) / 2) @ state[..., None])[..., 0]

    def slope(self, state: Tensor) -> Tensor:
        """Derivative (n, 3, 3) of the velocity by the state."""
        return self._parts[1] + self._bent(state)

    @property
    def step(self) -> Step:
        """State of the next bin."""
        return rk4_map(self.flow, self.dt, self.substeps)

    def jacobian(self, state: Tensor, input: Tensor) -> Tensor:
        """Derivative (n, 3, 3) of the next bin's state by this one's, by the variational equation."""
        h, eye = self.dt / self.substeps, torch.eye(3, dtype=torch.float64)
        whole = eye.expand(len(state), 3, 3)
        for _ in range(self.substeps):
            v1, j1 = self.flow(state, input), self.slope(state)
            second = state + h / 2 * v1
            v2, j2 = self.flow(second, input), self.slope(second) @ (eye + h / 2 * j1)
            third = state + h / 2 * v2
            v3, j3 = self.flow(third, input), self.slope(third) @ (eye + h / 2 * j2)
            last = state + h * v3
            j4 = self.slope(last) @ (eye + h * j3)
            whole = (eye + h / 6 * (j1 + 2 * j2 + 2 * j3 + j4)) @ whole
            state = state + h / 6 * (v1 + 2 * v2 + 2 * v3 + self.flow(last, input))
        return whole

    def spectrum(self, settings: CtdLyapunovSettings) -> LyapunovSpectrum:
        """Lyapunov exponents in nats per bin, and by trajectory."""
        n_bins, transient = round(self.duration / self.dt), round(self.transient / self.dt)
        starts = self.starts(settings)
        return lyapunov_spectrum(self.step, starts, n_bins, None, transient, self.dt, self.jacobian)

    def starts(self, settings: CtdLyapunovSettings) -> Float[Tensor, "trajectories 3"]:
        """First states."""
        generator = np.random.default_rng(derive("lyapunov", settings.seed))
        return torch.from_numpy(self.start + generator.normal(size=(settings.n_trajectories, 3)))


SYSTEMS = {
    "lorenz": System(
        "Lorenz: σ 10, ρ 28, β 8/3",
        (0.0, 0.0, 0.0),
        ((-10.0, 10.0, 0.0), (28.0, -1.0, 0.0), (0.0, 0.0, -8 / 3)),
        {(1, 0, 2): -1.0, (2, 0, 1): 1.0},
        dt=0.06,
        substeps=3,
        transient=9.0,
        duration=30.0,
        start=5.0,
    ),
    "rossler": System(
        "Rössler: a 0.2, b 0.2, c 5.7",
        (0.0, 0.0, 0.2),
        ((0.0, -1.0, -1.0), (1.0, 0.2, 0.0), (0.0, 0.0, -5.7)),
        {(2, 0, 2): 1.0},
        dt=0.2,
        substeps=4,
        transient=40.0,
        duration=200.0,
        start=0.0,
    ),
}
"""The systems of Lorenz (1963) and Rössler (1976)."""
TURNS = {"lorenz": 30.0, "rossler": 150.0}
"""How long the trajectory is that is drawn."""


@FIGURES.register("ctd_lyapunov")
class CtdLyapunov(Figure):
    """Lyapunov exponents of the Lorenz and Rössler systems, whose values are known.

    A trajectory of each system, and on its right the exponents of each of many trajectories (points), their mean with
    its standard error, and the published values. Nothing is fitted: this checks the computation behind the scores of
    fits.
    """

    Settings = CtdLyapunovSettings

    @staticmethod
    def needs(settings: CtdLyapunovSettings, planned: Planned) -> list[Need]:
        """Nothing."""
        return []

    @staticmethod
    def draw(settings: CtdLyapunovSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Compute the exponents and draw them beside a trajectory."""
        canvas, axes = plt.subplots(1, 4, figsize=(WIDTH, 2.1), width_ratios=(1, 1.1, 1, 1.1), layout="constrained")
        found = {name: system.spectrum(settings) for name, system in SYSTEMS.items()}
        compared = _compared(found)
        tables = [compared.assign(panel="exponents")]
        for place, (name, system) in enumerate(SYSTEMS.items()):
            tables.append(_draw_trajectory(axes[2 * place], name, system, settings, f"C{place}"))
            tables.append(_draw_exponents(axes[2 * place + 1], name, found[name], compared, f"C{place}"))
        axes[1].legend(loc="lower left", handletextpad=0.3)
        return canvas, pd.concat(tables, ignore_index=True)

    @staticmethod
    def findings(settings: CtdLyapunovSettings, table: pd.DataFrame) -> str:
        """Exponents beside the published ones."""
        rows = table[table["panel"] == "exponents"]
        said = []
        for name, own in rows.groupby("series", sort=False):
            ours, theirs = (
                ", ".join(f"{round(value, 2) + 0.0:.2f}" for value in own[key]) for key in ("ours", "published")
            )
            said.append(f"{SYSTEMS[name].says.partition(':')[0]}: {ours} (published {theirs}).")
        return " ".join(said)

    @staticmethod
    def reproduction(settings: CtdLyapunovSettings, files: Mapping[Need, str]) -> pd.DataFrame:
        """Exponents beside the published ones."""
        return _compared({name: system.spectrum(settings) for name, system in SYSTEMS.items()})


def _compared(found: Mapping[str, LyapunovSpectrum]) -> pd.DataFrame:
    rows = [
        {"series": name, "x": number + 1, "metric": "lyapunov", "value": value, "dataset": "", "model": ""}
        for name, spectrum in found.items()
        for number, value in enumerate(spectrum.per_second)
    ]
    return comparison("ctd_lyapunov", pd.DataFrame(rows))


def _draw_trajectory(ax: Axes, name: str, system: System, settings: CtdLyapunovSettings, colour: str) -> pd.DataFrame:
    """First trajectory after the transient, by its first and last state."""
    states, nothing = [system.starts(settings)[:1]], torch.zeros(1, 0)
    step = rk4_map(system.flow, system.dt / system.substeps)
    for _ in range(system.substeps * round((system.transient + TURNS[name]) / system.dt)):
        states.append(step(states[-1], nothing))
    drawn = torch.cat(states[-system.substeps * round(TURNS[name] / system.dt) :]).numpy()
    ax.plot(drawn[:, 0], drawn[:, 2], color=colour, lw=0.3)
    ax.set_title(system.says)
    ax.set_xlabel("x")
    ax.set_ylabel("z")
    return pd.DataFrame({"panel": "trajectory", "series": name, "state_x": drawn[:, 0], "state_z": drawn[:, 2]})


def _draw_exponents(ax: Axes, name: str, found: LyapunovSpectrum, compared: pd.DataFrame, colour: str) -> pd.DataFrame:
    """Exponents of each trajectory, their mean and the published ones."""
    number = np.arange(found.of_trajectories.shape[1]) + 1
    each = found.of_trajectories / found.bin_s
    ax.axhline(0, color="0.7", lw=0.6)
    aside = np.broadcast_to(number - 0.22, each.shape)
    ax.plot(aside.ravel(), each.ravel(), ls="none", marker=".", ms=2, color=colour, alpha=0.5)
    ax.errorbar(
        number,
        found.per_second,
        found.standard_error_per_second,
        fmt="o",
        ms=3.5,
        color=colour,
        capsize=2,
        label="ours",
    )
    theirs = compared[compared["series"] == name]
    ax.plot(theirs["x"].astype(float) + 0.22, theirs["published"], label="published", **PUBLISHED)
    for place, value in zip(number, found.per_second, strict=True):
        ax.annotate(
            f"{round(value, 2) + 0.0:.2f}",
            (place, value),
            (0, -9 if value > -2 else 6),
            textcoords="offset points",
            ha="center",
            fontsize=6,
        )
    ax.set_xticks(number)
    ax.set_xlim(0.5, len(number) + 0.6)
    ax.margins(y=0.15)
    ax.set_xlabel("exponent")
    ax.set_ylabel("nats per unit of time")
    trajectory = np.repeat(np.arange(len(each)), len(number))
    return pd.DataFrame(
        {
            "panel": "of trajectories",
            "series": name,
            "trajectory": trajectory,
            "x": np.tile(number, len(each)),
            "value": each.ravel(),
        }
    )
