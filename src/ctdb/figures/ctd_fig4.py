"""Canonical fits: how the networks learned, what the fits make of their states, and scores beside published ones."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.gridspec import GridSpec, SubplotSpec
from matplotlib.lines import Line2D
from pydantic import Field

from ctdb.errors import MissingError
from ctdb.figures import FIGURES
from ctdb.figures.base import (
    TRUTH_COLOUR,
    WIDTH,
    Figure,
    FigureSettings,
    fit_title,
    read_session,
    say_missing,
    scores_in,
)
from ctdb.figures.latents import trajectories_of, true_trajectories
from ctdb.figures.planned import Need, Planned
from ctdb.figures.principal import limits_of, principal_space
from ctdb.figures.published import NOTHING, comparison
from ctdb.figures.published import STYLE as PUBLISHED
from ctdb.figures.score_table import report_split
from ctdb.settings import Count, Seed, Settings

METRICS = {
    "rate_r2": "rate R²",
    "state_r2_true_to_inferred": "state R²",
    "cycle_consistency": "cycle c.",
    "co_bps_ctd": "co-bps",
}
"""Scores that are drawn; the last has an axis of its own."""
TASKS = ("nbff", "multitask", "random_target")
ROLES = {"gru": ("C0", "o"), "lfads": ("C1", "s"), "lds": ("C2", "^")}
"""Colour and marker of each role."""
Files = Mapping[Need, str]


class Canonical(Settings):
    """Fits to the data of one task: role to model. The network behind it, for its learning, may be left out."""

    dataset: str
    models: dict[Literal["gru", "lfads", "lds"], str] = Field(min_length=1)
    seed: Seed = 0
    network: str = ""
    network_seed: Seed = 0


class CtdFig4Settings(FigureSettings):
    """Settings of figure `ctd_fig4`; each task may be left out. `solved` is the success from which a task is solved."""

    nbff: Canonical | None = None
    multitask: Canonical | None = None
    random_target: Canonical | None = None
    n_trials: Count = 6
    solved: float = Field(0.95, gt=0, le=1)

    def tasks(self) -> Iterator[tuple[str, Canonical]]:
        """Tasks that are set."""
        for name in TASKS:
            if getattr(self, name) is not None:
                yield name, getattr(self, name)


@FIGURES.register("ctd_fig4")
class CtdFig4(Figure):
    """Canonical fits to the data of each task, and how the networks behind them learned.

    Top: valid loss of each network, in units of its first, and success; the dotted line is the first epoch in which
    success is as high as the dashed one. Below, a row per task: true states in their first principal components, and
    those of a GRU, LFADS and a linear system, carried over by regression; then the scores of every fit, beside
    published ones, which have a bar where it is stated how far off ours still counts as reproduced. A cross at the
    bottom is a model with fits without a score, with how many have one. State R² is by regression from true to inferred
    states, co-bps over the neurons that CtDB took.
    """

    Settings = CtdFig4Settings
    partial = True

    @staticmethod
    def needs(settings: CtdFig4Settings, planned: Planned) -> list[Need]:
        """Histories of the networks; data sets, fits of the seed that is drawn, and scores of all seeds."""
        needs: list[Need] = []
        for _, task in settings.tasks():
            if task.network:
                needs.append(("network_history", task.network, task.network_seed))
            needs.append(("dataset", task.dataset))
            for model in task.models.values():
                shown = (task.dataset, model, task.seed)
                own = [fit for fit in planned.fits_of(task.dataset, [model]) if fit[1] == model]
                needs += [("fit", *shown), *(("scores", *fit) for fit in dict.fromkeys([*own, shown]))]
        return needs

    @staticmethod
    def draw(settings: CtdFig4Settings, files: Files) -> tuple[Canvas, pd.DataFrame]:
        """Draw the learning of the networks, and a row per task."""
        height = 6.4
        canvas = plt.figure(figsize=(WIDTH, height))
        top = canvas.add_gridspec(1, 3, left=0.075, right=0.985, bottom=0.83, top=0.955, wspace=0.35)
        grid = canvas.add_gridspec(
            3, 5, left=0.01, right=0.99, bottom=0.075, top=0.745, wspace=0.1, hspace=0.3, width_ratios=(1, 1, 1, 1, 1.9)
        )
        compared = CtdFig4.reproduction(settings, files)
        tables = [compared.assign(panel="published")]
        for place, name in enumerate(TASKS):
            task = getattr(settings, name)
            tables += _draw_learning(canvas.add_subplot(top[place]), name, task, settings.solved, compared, files)
            tables += _draw_task(canvas, grid, place, name, task, settings.n_trials, compared, files)
        handles = [
            Line2D([], [], ls="none", marker=mark, color=colour, ms=4, label=role.upper())
            for role, (colour, mark) in ROLES.items()
        ]
        handles.append(Line2D([], [], label="published", **PUBLISHED))
        canvas.legend(handles=handles, loc="lower right", ncols=4, bbox_to_anchor=(0.99, 0.0))
        return canvas, pd.concat(tables, ignore_index=True)

    @staticmethod
    def findings(settings: CtdFig4Settings, table: pd.DataFrame) -> str:
        """When tasks were solved, and how many published numbers are reproduced."""
        said = []
        solved = table[table["panel"] == "solved"]
        for name, own in solved.groupby("task", sort=False) if len(solved) else ():
            epoch = own["epoch"].iloc[0]
            when = "in no epoch" if np.isnan(epoch) else f"from epoch {epoch:.0f}"
            said.append(f"{name}: success of {settings.solved:.0%} {when}.")
        rows = table[table["panel"] == "published"]
        known, banded = rows["ours"].notna(), rows["within"].notna()
        if len(rows):
            within = rows["within"].fillna(False).astype(bool).sum()
            said.append(
                f"{known.sum()} of {len(rows)} published numbers have ours beside them; {within} of {banded.sum()} "
                "with a stated band are within it."
            )
        return " ".join(said)

    @staticmethod
    def reproduction(settings: CtdFig4Settings, files: Files) -> pd.DataFrame:
        """Scores of all fits, and the epochs in which tasks were solved, beside the published ones."""
        rows = []
        for name, task in settings.tasks():
            with suppress(MissingError):
                for row in _scores(task, files).itertuples():
                    own = {"series": f"{name}_{row.role_of_model}", "x": name, "metric": row.metric, "value": row.value}
                    rows.append({**own, "dataset": task.dataset, "model": row.model})
            with suppress(MissingError):
                epoch = _solved(_history(task, files), settings.solved)
                own = {"series": f"{name}_network", "x": name, "metric": "epochs_to_solve", "value": epoch}
                rows.append({**own, "dataset": task.dataset, "model": ""})
        return comparison("ctd_fig4", pd.DataFrame(rows) if rows else NOTHING)


def _history(task: Canonical | None, files: Files) -> pd.DataFrame:
    if task is None or not task.network:
        raise MissingError("`network` of this task is not set in this figure")
    return pd.read_csv(files["network_history", task.network, task.network_seed])


def _solved(history: pd.DataFrame, success: float) -> float:
    """First epoch with that success, counted from 1; NaN where there is none."""
    good = history.loc[history["valid_success"] >= success, "epoch"]
    return float(good.iloc[0]) + 1 if len(good) else np.nan


def _scores(task: Canonical, files: Files) -> pd.DataFrame:
    """Scores of the fits of a task that there are, with the role of each model; MissingError if there are none."""
    table = scores_in(files, task.dataset)
    roles = {model: role for role, model in task.models.items()}
    chosen = (table["role"] == "fit") & (table["split"] == report_split(table)) & (table["session"].fillna("") == "")
    chosen &= table["model"].isin(list(roles)) & table["metric"].isin(list(METRICS))
    if not chosen.any():
        raise MissingError(f"{', '.join(METRICS)} of these fits; add them to `scores`")
    table = table.loc[chosen, ["model", "metric", "value", "seed"]]
    return table.assign(role_of_model=table["model"].map(roles))


def _draw_learning(
    ax: Axes, name: str, task: Canonical | None, solved: float, compared: pd.DataFrame, files: Files
) -> list[pd.DataFrame]:
    """Loss and success over epochs."""
    try:
        history = _history(task, files)
    except MissingError as error:
        say_missing(ax, error)
        return []
    epochs, loss = history["epoch"] + 1, history["valid_loss"] / history["valid_loss"].iloc[0]
    ax.plot(epochs, loss, color="0.45", label="loss")
    ax.plot(epochs, history["valid_success"], color="C0", ls="-.", label="success")
    ax.axhline(solved, color="0.7", lw=0.6, ls="--")
    epoch = _solved(history, solved)
    if np.isfinite(epoch):
        ax.axvline(epoch, color="0.4", lw=0.8, ls=":")
    theirs = compared[(compared["series"] == f"{name}_network") & (compared["published"] <= epochs.max())]
    ax.plot(theirs["published"], np.full(len(theirs), solved), **PUBLISHED)
    ax.set_ylim(-0.05, 1.1)
    ax.set_title(f"{task.network}: learning")
    ax.set_xlabel("epoch", labelpad=1)
    if name == TASKS[0]:
        ax.legend(loc="center right")
    about = {"panel": "learning", "task": name, "epoch": epochs}
    return [
        pd.DataFrame({**about, "loss": loss, "success": history["valid_success"]}),
        pd.DataFrame([{"panel": "solved", "task": name, "epoch": epoch}]),
    ]


def _draw_task(
    canvas: Canvas,
    grid: GridSpec,
    row: int,
    name: str,
    task: Canonical | None,
    n_trials: int,
    compared: pd.DataFrame,
    files: Files,
) -> list[pd.DataFrame]:
    """Trajectories of the truth and of each fit, and their scores."""
    try:
        if task is None:
            raise MissingError(f"`{name}` of this figure is not set")
        dataset = read_session(files["dataset", task.dataset])
    except MissingError as error:
        say_missing(canvas.add_subplot(grid[row, :]), error)
        return []
    space = principal_space(dataset, task.dataset, "ctd_fig4")
    true = true_trajectories(dataset, space, n_trials)
    limits = limits_of(np.concatenate(true))
    shown = {"truth": (f"{task.dataset}: truth", true)}
    for role in ROLES:
        try:
            if role not in task.models:
                raise MissingError(f"`models.{role}` of `{name}` is not set in this figure")
            model = task.models[role]
            path = files["fit", task.dataset, model, task.seed]
            shown[role] = fit_title(path, model), trajectories_of(path, dataset, space, n_trials)
        except MissingError as error:
            shown[role] = str(error), None
    tables = []
    for place, (role, (title, trials)) in enumerate(shown.items()):
        if trials is None:
            say_missing(canvas.add_subplot(grid[row, place]), MissingError(title))
            continue
        ax = canvas.add_subplot(grid[row, place], **space.projection)
        for number, trial in enumerate(trials):
            colour = ROLES[role][0] if role in ROLES else TRUTH_COLOUR
            ax.plot(*space.coordinates(trial, dataset.bin_s), color=colour, lw=0.4, alpha=0.8)
            where = {f"pc{axis + 1}": values for axis, values in enumerate(trial.T)}
            tables.append(pd.DataFrame({"panel": "states", "task": name, "source": role, "trial": number, **where}))
        space.frame(ax, limits if len(space.share) > 1 else [(0.0, dataset.bin_s * max(map(len, true))), *limits])
        ax.set_title(title, pad=-2 if len(space.share) == 3 else 3)
        if len(space.share) == 3:
            _short_labels(ax)
    tables += _draw_scores(canvas, grid[row, 4], name, task, compared, files)
    return tables


def _short_labels(ax: Axes) -> None:
    for letter in "xyz":
        label = getattr(ax, f"get_{letter}label")().partition(" (")[0]
        getattr(ax, f"set_{letter}label")(label, labelpad=-16, fontsize=5.5)


def _draw_scores(
    canvas: Canvas, cell: SubplotSpec, name: str, task: Canonical, compared: pd.DataFrame, files: Files
) -> list[pd.DataFrame]:
    """A point per fit and metric, and the published value beside it."""
    try:
        scores = _scores(task, files)
    except MissingError as error:
        say_missing(canvas.add_subplot(cell), error)
        return []
    parts = cell.subgridspec(1, 3, wspace=0.52, width_ratios=(0.02, 2.3, 0.85))
    left, right = canvas.add_subplot(parts[1]), canvas.add_subplot(parts[2])
    for metric in METRICS:
        ax = right if metric == "co_bps_ctd" else left
        middle = list(METRICS).index(metric) if ax is left else 0
        for place, (role, (colour, marker)) in enumerate(ROLES.items()):
            at = middle + 0.3 * (place - 1)
            own = scores[(scores["metric"] == metric) & (scores["role_of_model"] == role)]
            good = own.dropna(subset="value")
            ax.plot(
                np.full(len(good), at - 0.05),
                good["value"],
                ls="none",
                marker=marker,
                ms=3,
                mfc="none",
                mec=colour,
                mew=0.8,
            )
            failed = len(own) - len(good)
            if failed:
                ax.plot(at - 0.05, 0.03, marker="x", ms=4, color=colour, transform=ax.get_xaxis_transform())
                said = f"{len(good)}/{len(own)}"
                ax.text(at - 0.05, 0.07, said, transform=ax.get_xaxis_transform(), ha="center", fontsize=5, rotation=90)
            theirs = compared[(compared["series"] == f"{name}_{role}") & (compared["metric"] == metric)]
            ax.plot(np.full(len(theirs), at + 0.07), theirs["published"], **PUBLISHED)
            for row in theirs.dropna(subset="band").itertuples():
                ax.errorbar(at + 0.07, row.published, row.band, color="black", lw=0.6, capsize=1.5)
        ax.axhline(0, color="0.8", lw=0.5, zorder=0)
    left.set_xticks(range(3), list(METRICS.values())[:3])
    left.set_xlim(-0.5, 2.5)
    right.set_xticks([0], ["co-bps"])
    right.set_xlim(-0.5, 0.5)
    for ax in (left, right):
        ax.margins(y=0.1)
        ax.tick_params(axis="y", labelsize=5.5, pad=1)
    return [scores.assign(panel="scores", task=name)]
