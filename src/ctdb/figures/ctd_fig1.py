"""Three ways in which a model of a flip-flop of one bit is wrong, and which score tells of each; nothing is trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from scipy.optimize import minimize_scalar
from torch import Tensor

from ctdb.dynamics import FixedPoints, find_fixed_points
from ctdb.figures import FIGURES
from ctdb.figures.base import TRUTH_COLOUR, WIDTH, Figure, FigureSettings
from ctdb.figures.planned import Need, Planned
from ctdb.metrics import rate_r2, state_r2
from ctdb.settings import Count, Positive

TIMES, AMPLITUDE, DEVIATION = (10.0, 60.0), 0.475, 0.7
"""Centres, height and standard deviation of the two pulses of a trial (Versteeg et al. 2025, figure 1)."""
SIGNS = ((1, -1), (1, 1), (-1, 1), (-1, -1))
"""Signs of the two pulses: the trials are all four sequences."""
LOG_RATES = ((-1.0, 2.0), (0.5, -1.5), (0.0, 1.0), (-0.5, 0.5))
"""Offset and slope of each neuron's log-rate in the state that is read out."""
EVERY = 2
"""Of how many bins one is drawn."""
SCORES = {"rate_r2": "rate R²", "state_r2": "state R²", "input_r2": "input R²"}
Field = Callable[[Tensor, Tensor], Tensor]


class CtdFig1Settings(FigureSettings):
    """Settings of figure `ctd_fig1`: speed of the flip-flop, rate of decay of the state that the inputs hold, grid."""

    speed: Positive = 1.0
    decay: Positive = 1.0
    duration: Positive = 100.0
    n_bins: Count = 1000


@dataclass(frozen=True, eq=False)
class Case:
    """A system and what it did on the four trials.

    Attributes
    ----------
    name, says
        What it is called, and in which way it is wrong.
    field
        Velocity (n, d) at states (n, d) under inputs (n, 1).
    states, inputs
        Its states (trials, bins, d) and the inputs (trials, bins, 1) that it had, was given or inferred.
    points
        Its fixed points without input.
    """

    name: str
    says: str
    field: Field
    states: Float[np.ndarray, "trials bins states"]
    inputs: Float[np.ndarray, "trials bins 1"]
    points: FixedPoints

    @property
    def traces(self) -> dict[str, Float[np.ndarray, "trials drawn"]]:
        """What is drawn of the trials."""
        drawn = {"input": self.inputs[..., 0]} | dict(zip("xy", np.moveaxis(self.states, 2, 0), strict=False))
        return {name: values[:, ::EVERY] for name, values in drawn.items()}

    @property
    def rates(self) -> Float[np.ndarray, "trials bins neurons"]:
        """Rates of the neurons, which depend on the first state alone."""
        offset, slope = np.array(LOG_RATES).T
        return np.exp(offset + self.states[..., :1] * slope)


@FIGURES.register("ctd_fig1")
class CtdFig1(Figure):
    """Three models of a flip-flop of one bit, each wrong in its own way, and the score that tells of it.

    The true system is dx/dt = -s(2x - 6x² + 4x³) + I with two Gaussian pulses per trial; all four sequences of their
    signs are simulated. The columns beside it: the best linear system, which has one fixed point and cannot hold the
    state (underfitting); the true system beside a second bit that nothing reads out (invented features); and a
    decaying state that is held by the inputs inferred for it (misattribution). Top: velocity without input, with
    fixed points by our own search, filled where stable. Middle: inputs and states of the four trials, the true states
    dashed. Bottom: R² of the rates, of the states and of the inputs, the last two by regression from true to inferred.
    """

    Settings = CtdFig1Settings

    @staticmethod
    def needs(settings: CtdFig1Settings, planned: Planned) -> list[Need]:
        """Nothing."""
        return []

    @staticmethod
    def draw(settings: CtdFig1Settings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Simulate the four systems, score the three models, and draw them."""
        cases = _cases(settings)
        canvas, axes = plt.subplots(
            4, len(cases), figsize=(WIDTH, 6.3), height_ratios=(1.25, 1.2, 1.2, 0.75), layout="constrained"
        )
        time = settings.duration / settings.n_bins * np.arange(settings.n_bins)[::EVERY]
        tables = []
        for place, (case, column) in enumerate(zip(cases, axes.T, strict=True)):
            column[0].set_title(f"{case.name}\n{case.says}")
            _draw_flow(column[0], case)
            colour, truth = f"C{place}" if place else TRUTH_COLOUR, cases[0] if place else None
            for ax, name, step in ((column[1], "input", 1.6), (column[2], "x", 2.0)):
                _draw_trials(ax, time, case.traces[name], truth and truth.traces[name], colour, step)
            for number, values in enumerate(case.traces.get("y", [])):
                column[2].plot(time, values - 2.0 * number, color="C4", lw=0.9, ls="-.")
            tables += [_points_table(case), _traces_table(case, time)]
            if place:
                scores = _scores(cases[0], case)
                _draw_scores(column[3], scores, colour)
                tables.append(pd.DataFrame({"system": case.name, "quantity": list(scores), "value": scores.values()}))
        _draw_legend(axes[3, 0])
        for ax, label in zip(
            axes[:3, 0], ("dx/dt without input", "input of 4 trials", "states of 4 trials"), strict=True
        ):
            ax.set_ylabel(label)
        return canvas, pd.concat(tables, ignore_index=True)

    @staticmethod
    def findings(settings: CtdFig1Settings, table: pd.DataFrame) -> str:
        """Scores and numbers of fixed points of each model."""
        said = []
        for name in dict.fromkeys(table["system"]):
            own = table[table["system"] == name]
            points = own[own["quantity"] == "fixed point"]
            scores = own[own["quantity"].isin(SCORES)].set_index("quantity")["value"]
            numbers = ", ".join(f"{label} {scores[key]:.2f}" for key, label in SCORES.items() if key in scores)
            said.append(
                f"{name}: {len(points)} fixed point{'s' * (len(points) != 1)}, {int(points['stable'].sum())} stable"
            )
            said[-1] += f"; {numbers}." if numbers else "."
        return " ".join(said)


def bit(x: Tensor, speed: float) -> Tensor:
    """Velocity of the flip-flop without input: stable at 0 and 1, unstable at a half."""
    return -speed * (2 * x - 6 * x**2 + 4 * x**3)


def pulses(settings: CtdFig1Settings) -> Float[np.ndarray, "trials bins 1"]:
    """Inputs of the four trials."""
    time = settings.duration / settings.n_bins * np.arange(settings.n_bins)
    shapes = np.stack([AMPLITUDE * np.exp(-((time - at) ** 2) / (2 * DEVIATION**2)) for at in TIMES])
    return (np.array(SIGNS, float) @ shapes)[..., None]


def simulate(
    field: Field, start: Float[np.ndarray, "trials states"], inputs: Float[np.ndarray, "trials bins 1"], dt: float
) -> Float[np.ndarray, "trials bins states"]:
    """States of all trials by Euler's method; the first is the start."""
    state, given, states = torch.as_tensor(start), torch.as_tensor(inputs), []
    for now in given.unbind(1):
        states.append(state)
        state = state + dt * field(state, now)
    return torch.stack(states, 1).numpy()


def best_linear(
    true: Float[np.ndarray, "trials bins 1"], inputs: Float[np.ndarray, "trials bins 1"], dt: float
) -> tuple[float, float, float]:
    """Decay a, centre c and gain b of dx/dt = -a(x - c) + b I, from x = 0, with the least squared error of the state.

    For each a, the state is linear in c and b, which least squares give.
    """

    def of(log_decay: float) -> tuple[float, np.ndarray]:
        decay = np.exp(log_decay)
        start = np.zeros((len(true), 1))
        by_gain = simulate(lambda x, u: -decay * x + u, start, inputs, dt)
        by_centre = np.broadcast_to(1 - (1 - decay * dt) ** np.arange(inputs.shape[1])[:, None], by_gain.shape)
        design = np.stack([by_centre.ravel(), by_gain.ravel()], 1)
        weights, *_ = np.linalg.lstsq(design, true.ravel(), rcond=None)
        return float(((design @ weights - true.ravel()) ** 2).sum()), weights

    found = minimize_scalar(lambda log_decay: of(log_decay)[0], bounds=(np.log(1e-3), np.log(1.0)), method="bounded")
    centre, gain = of(found.x)[1]
    return float(np.exp(found.x)), float(centre), float(gain)


def _cases(settings: CtdFig1Settings) -> list[Case]:
    dt, given = settings.duration / settings.n_bins, pulses(settings)

    def case(name: str, says: str, field: Field, start: np.ndarray, inputs: np.ndarray) -> Case:
        states = simulate(field, start, inputs, dt)
        grid = torch.linspace(-0.5, 1.5, 9, dtype=torch.float64)
        around = torch.cartesian_prod(*[grid] * start.shape[1]).reshape(-1, start.shape[1])
        points = find_fixed_points(lambda x, u: x + dt * field(x, u), around, torch.zeros(1), starts="given", bin_s=dt)
        return Case(name, says, field, states, inputs, points)

    zero = np.zeros((len(SIGNS), 1))
    truth = case("truth", "holds one bit", lambda x, u: bit(x, settings.speed) + u, zero, given)
    decay, centre, gain = best_linear(truth.states, given, dt)
    other = np.array([[0.0, float(number in (1, 2))] for number in range(len(SIGNS))])
    share = torch.tensor([1.0, 0.25], dtype=torch.float64)
    held = np.diff(truth.states, axis=1, append=truth.states[:, -1:]) / dt + settings.decay * truth.states

    def linear(x: Tensor, u: Tensor) -> Tensor:
        return -decay * (x - centre) + gain * u

    def two_bits(x: Tensor, u: Tensor) -> Tensor:
        return bit(x, settings.speed) + share * u

    def leaky(x: Tensor, u: Tensor) -> Tensor:
        return -settings.decay * x + u

    return [
        truth,
        case("underfitting", "misses the dynamics", linear, zero, given),
        case("invented features", "more than the data ask for", two_bits, other, given),
        case("misattribution", "inputs do what dynamics do", leaky, zero, held),
    ]


def _scores(truth: Case, model: Case) -> dict[str, float]:
    """The three R² of a model; regressions are fitted to the trials that they score, as there is no noise."""

    def regressed(true: np.ndarray, inferred: np.ndarray) -> float:
        return state_r2(true, inferred, true, inferred, "true_to_inferred")

    return {
        "rate_r2": rate_r2(truth.rates, model.rates),
        "state_r2": regressed(truth.states, model.states),
        "input_r2": regressed(truth.inputs, model.inputs),
    }


def _draw_flow(ax: Axes, case: Case) -> None:
    """Velocity by state, with arrows along the state's axis; of two states, the directions of the flow."""
    n_states = case.states.shape[2]
    if n_states == 1:
        x = torch.linspace(-0.45, 1.45, 200, dtype=torch.float64)[:, None]
        ax.plot(x, case.field(x, torch.zeros(1)), color="0.35")
        ax.axhline(0, color="0.6", lw=0.6)
        at = x[10::18]
        ways = torch.sign(case.field(at, torch.zeros(1)))
        for way, marker in ((1, ">"), (-1, "<")):
            here = at[ways == way]
            ax.plot(here, np.zeros(len(here)), ls="none", marker=marker, ms=3, color="0.5", mec="none")
        where = [case.points.x[:, 0], torch.zeros(len(case.points))]
        ax.set_ylim(-0.55, 0.55)
        ax.set_xlabel("x")
    else:
        grid = np.linspace(-0.4, 1.4, 25)
        states = torch.from_numpy(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2))
        flow = case.field(states, torch.zeros(1)).reshape(25, 25, 2).numpy()
        style = {"color": "0.6", "linewidth": 0.4, "arrowsize": 0.5, "density": 0.8}
        ax.streamplot(grid, grid, flow[..., 0], flow[..., 1], **style)
        where = list(case.points.x.T)
        ax.set_xlabel("x")
        ax.set_ylabel("second bit y", labelpad=0)
        ax.set_ylim(-0.45, 1.45)
    stable = case.points.stable
    for kind, fill in ((stable, "black"), (~stable, "white")):
        ax.plot(where[0][kind], where[1][kind], ls="none", marker="o", ms=4, mec="black", mfc=fill, mew=0.8, zorder=4)
    ax.set_xlim(-0.45, 1.45)


def _draw_trials(
    ax: Axes, time: np.ndarray, own: np.ndarray, true: np.ndarray | None, colour: str, step: float
) -> None:
    """Traces (trials, bins) of the four trials, one above the other, the true ones dashed; a tick is a trial's zero."""
    for number, shift in enumerate(-step * np.arange(len(SIGNS))):
        ax.axhline(shift, color="0.85", lw=0.5, zorder=0)
        ax.plot(time, own[number] + shift, color=colour, lw=0.9)
        if true is not None:
            ax.plot(time, true[number] + shift, color=TRUTH_COLOUR, lw=0.7, ls="--")
    names = ["".join("+" if sign > 0 else "−" for sign in signs) for signs in SIGNS]
    ax.set_yticks(-step * np.arange(len(SIGNS)), names)
    ax.set_ylim(-step * (len(SIGNS) - 1) - 0.8, 1.5)
    ax.set_xlabel("time")


def _draw_scores(ax: Axes, scores: Mapping[str, float], colour: str) -> None:
    for place, value in enumerate(scores.values()):
        ax.barh(-place, value, height=0.65, color=colour)
        ax.text(max(value, 0), -place, f" {value:.2f}", va="center", fontsize=6)
    ax.set_yticks([-place for place in range(len(scores))], [SCORES[name] for name in scores])
    ax.set_xlim(min(0.0, *scores.values()), 1.3)
    ax.set_xticks([0, 0.5, 1])


def _draw_legend(ax: Axes) -> None:
    ax.set_axis_off()
    point = {"ls": "none", "marker": "o", "ms": 4, "mec": "black"}
    ax.legend(
        handles=[
            Line2D([], [], label="stable fixed point", mfc="black", **point),
            Line2D([], [], label="unstable fixed point", mfc="white", **point),
            Line2D([], [], color=TRUTH_COLOUR, ls="--", lw=0.8, label="truth"),
            Line2D([], [], color="C4", ls="-.", lw=0.9, label="second bit, not read out"),
        ],
        loc="center left",
        borderaxespad=0,
    )


def _points_table(case: Case) -> pd.DataFrame:
    columns = {
        name: case.points.x[:, axis].numpy() for axis, name in zip(range(case.states.shape[2]), "xy", strict=False)
    }
    stable = case.points.stable.numpy()
    return pd.DataFrame({"system": case.name, "quantity": "fixed point", **columns, "stable": stable})


def _traces_table(case: Case, time: np.ndarray) -> pd.DataFrame:
    return pd.concat(
        [
            pd.DataFrame({"system": case.name, "quantity": name, "trial": number, "time": time, "value": values})
            for name, trials in case.traces.items()
            for number, values in enumerate(trials)
        ]
    )
