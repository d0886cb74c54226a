"""Scores against a setting that was swept, such as the size of the latent state."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from ctdb.figures import FIGURES
from ctdb.figures.base import WIDTH, Figure, FigureSettings, scores_in
from ctdb.figures.planned import Need, Planned
from ctdb.figures.score_table import LABELS, report_split
from ctdb.figures.sweeps import swept
from ctdb.settings import NonEmpty

COLUMNS = 4
"""Panels beside one another; further ones go below."""
ANCHOR = {"color": "0.6", "lw": 0.7, "ls": "--"}


class ScoreAgainstSettings(FigureSettings):
    """Settings of figure `score_against`; `model` is swept over `key`, whose values are numbers."""

    dataset: str
    model: str
    key: str
    session: str = ""
    metrics: NonEmpty[str] = ["rate_r2", "state_r2_inferred_to_true", "cycle_consistency", "flow_field_r2"]
    log_x: bool = True


@FIGURES.register("score_against")
class ScoreAgainst(Figure):
    """One panel per metric: a point per fit, the mean over seeds, and a regression line with Pearson's r.

    Dashed lines are the floor and the ceiling. Where several settings were swept together, each combination of the
    others has its own colour. A cross at the bottom is a fit without that score.
    """

    Settings = ScoreAgainstSettings

    @staticmethod
    def needs(settings: ScoreAgainstSettings, planned: Planned) -> list[Need]:
        """Scores of the fits of the sweep."""
        return planned.scores(settings.dataset, [settings.model])

    @staticmethod
    def draw(settings: ScoreAgainstSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the scores of the split that scores are reported on."""
        scores = scores_in(files, settings.dataset)
        scores = scores[scores["session"].fillna("") == settings.session]
        scores = scores[(scores["split"] == report_split(scores)) & scores["metric"].isin(settings.metrics)]
        anchors = scores[scores["role"].isin(["floor", "ceiling"])].set_index(["metric", "role"])["value"]
        table = _fits(scores[scores["role"] == "fit"], settings)
        return _draw(settings, table, anchors), table.rename(columns={"x": settings.key})


def _fits(scores: pd.DataFrame, settings: ScoreAgainstSettings) -> pd.DataFrame:
    """One row per fit of the sweep and metric, with the line through those of the same other settings."""
    rows = swept(scores, settings.model, settings.key)
    table = rows[["metric", "seed", "value", "status", "reason", "x", "others"]]
    table = table.sort_values(["metric", "others", "x", "seed"], ignore_index=True)
    for _, group in table.groupby(["metric", "others"]):
        for name, value in _line(group, settings.log_x).items():
            table.loc[group.index, name] = value
    return table


def _line(fits: pd.DataFrame, log_x: bool) -> dict[str, float]:
    """Regression of the score on the setting, or on its logarithm; NaN where there is none."""
    good = fits[np.isfinite(fits["value"])]
    x, y = np.log10(good["x"]) if log_x else good["x"], good["value"]
    nothing = {"slope": np.nan, "intercept": np.nan, "r": np.nan}
    if len(good) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return nothing
    slope, intercept = np.polyfit(x, y, 1)
    return {"slope": slope, "intercept": intercept, "r": np.corrcoef(x, y)[0, 1]}


def _draw(settings: ScoreAgainstSettings, table: pd.DataFrame, anchors: pd.Series) -> Canvas:
    n = len(settings.metrics)
    n_columns, n_rows = min(n, COLUMNS), -(-n // COLUMNS)
    colours = {others: f"C{number % 7}" for number, others in enumerate(sorted(set(table["others"])))}
    canvas = plt.figure(figsize=(WIDTH, 0.8 + (1.8 + 0.1 * len(colours)) * n_rows), layout="constrained")
    for place, metric in enumerate(settings.metrics):
        ax = canvas.add_subplot(n_rows, n_columns, 1 + place)
        ax.set_title(LABELS.get(metric, metric).replace("\n", " "), pad=4 + 8 * len(colours))
        rows = table[table["metric"] == metric]
        if rows.empty:
            ax.text(0.5, 0.5, "no scores", transform=ax.transAxes, ha="center", color="0.35")
            ax.set_axis_off()
            continue
        for role in ("floor", "ceiling"):
            if np.isfinite(value := anchors.get((metric, role), np.nan)):
                ax.axhline(value, **ANCHOR)
        for line, (others, fits) in enumerate(rows.groupby("others")):
            said = _draw_fits(ax, fits, settings.log_x, colours[others])
            ax.annotate(
                said, (0, 1), (0, 3 + 8 * line), "axes fraction", "offset points", fontsize=6, color=colours[others]
            )
        if settings.log_x:
            ax.set_xscale("log")
        values = sorted(set(rows["x"]))
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()
        ax.margins(x=0.12, y=0.12)
        ax.set_xlabel(settings.key)
    lines = [Line2D([], [], label="floor and ceiling", **ANCHOR)]
    style = {"marker": "o", "ms": 3, "mfc": "none"}
    lines += [Line2D([], [], color=colour, label=others, **style) for others, colour in colours.items() if others]
    canvas.legend(handles=lines, loc="outside lower center", ncols=3)
    canvas.suptitle(f"{settings.dataset}: {settings.model}, scores against {settings.key}", x=0.02, ha="left")
    return canvas


def _draw_fits(ax: Axes, fits: pd.DataFrame, log_x: bool, colour: str) -> str:
    """Fits of one colour, and what is said of them: the correlation, and how many there are if not all."""
    good, failed = fits[np.isfinite(fits["value"])], fits[~np.isfinite(fits["value"])]
    ax.plot(good["x"], good["value"], ls="none", marker="o", ms=3, mfc="none", mec=colour, mew=0.7)
    mean = good.groupby("x")["value"].mean()
    ax.plot(mean.index, mean, color=colour)
    bottom = {"transform": ax.get_xaxis_transform(), "ls": "none", "marker": "x", "ms": 4, "color": colour}
    ax.plot(failed["x"], np.full(len(failed), 0.03), **bottom)
    said = []
    slope, intercept, r = fits[["slope", "intercept", "r"]].iloc[0]
    if np.isfinite(r):
        ends = np.array([good["x"].min(), good["x"].max()])
        ax.plot(ends, intercept + slope * (np.log10(ends) if log_x else ends), color=colour, lw=0.7, ls=":")
        said.append(f"r = {r:.2f}")
    if len(failed):
        said.append(f"{len(good)} of {len(fits)} fits")
    return ", ".join(said)
