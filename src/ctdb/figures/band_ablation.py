"""What the inferred inputs are worth: behaviour and spikes of LFADS and BAND with them and without."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from pydantic import Field

from ctdb import datasets
from ctdb.errors import MetricError, MissingError
from ctdb.figures import FIGURES
from ctdb.figures.base import WIDTH, Figure, FigureSettings, fit_outputs, say_missing
from ctdb.figures.fit_points import LABELS, LOOKS, Points, fits_of, named, points_of, say_below, score_needs, told
from ctdb.figures.planned import Need, Planned
from ctdb.figures.published import STYLE as PUBLISHED
from ctdb.figures.published import comparison, published
from ctdb.metrics import Case
from ctdb.metrics.behavior import behavior_r2_sums, condition_means
from ctdb.settings import NonEmpty

PANELS = {
    "behavior_r2": "R² of behaviour",
    "behavior_r2_uive": "R² around condition means (UIVE)",
    "bits_per_spike_heldin": "bits per spike",
}
LOSSES = {"behavior_r2": "control_behavior_r2", "bits_per_spike_heldin": "control_bits_per_spike"}
"""Score to that of what it loses without the inferred inputs."""
LEFT_OUT = -1.5
"""Scores below are not drawn, but told."""
AT_AXIS = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center", "fontsize": 5}
KEY = ["dataset", "session", "series", "model", "seed", "metric"]


class BandAblationSettings(FigureSettings):
    """Settings of figure `band_ablation`; `published` draws the published numbers, which are of a reaching task.

    `datasets` are drawn as one, such as the folds of a recording; `models` maps `lfads` and `band` to our names of
    them.
    """

    datasets: NonEmpty[str]
    models: dict[Literal["lfads", "band"], str] = Field(min_length=1)
    published: bool = False


@FIGURES.register("band_ablation")
class BandAblation(Figure):
    """A line per fit from its score with the inferred inputs to that with the inputs set to 0; thick, the means.

    Filled points have the inputs and hollow ones have none. The second score counts only what single trials deviate by
    from the mean behaviour of their condition: the small variability that inputs carry and autonomous dynamics cannot.
    A number at the bottom is the mean of points below the axis. Diamonds, where there are any, are published values, of
    another session.
    """

    Settings = BandAblationSettings
    partial = True

    @staticmethod
    def needs(settings: BandAblationSettings, planned: Planned) -> list[Need]:
        """Data sets, and scores and outputs of the fits."""
        fits = fits_of(planned, settings.datasets, settings.models.values())
        return [
            *(("dataset", name) for name in settings.datasets),
            *score_needs(planned, settings.datasets, settings.models.values()),
            *(("fit", *fit) for fit in fits),
        ]

    @staticmethod
    def draw(settings: BandAblationSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw a panel per score."""
        points, table = _table(settings, files)
        theirs = published("band_ablation") if settings.published else published("band_ablation").iloc[:0]
        canvas, axes = plt.subplots(1, len(PANELS), figsize=(WIDTH, 2.5), layout="constrained")
        for ax, (metric, title) in zip(axes, PANELS.items(), strict=True):
            ax.set_title(title)
            rows = table[table["metric"] == metric]
            if rows["value"].isna().all():
                reasons = [*points.missing.values(), "no fit has this score"]
                say_missing(ax, MissingError(reasons[0]))
                continue
            _draw(ax, settings, points, rows, theirs[theirs["metric"] == metric])
        say_below(canvas, points.missing.values())
        handles = [
            Line2D([], [], ls="none", marker="o", ms=3.5, color="0.3", label="with inferred inputs"),
            Line2D([], [], ls="none", marker="o", ms=3.5, mec="0.3", mfc="none", label="without"),
        ]
        if settings.published:
            handles.append(Line2D([], [], label="published", **PUBLISHED))
        canvas.legend(handles=handles, loc="outside upper right", ncols=len(handles))
        canvas.suptitle(f"{named(settings.datasets)}: what the inferred inputs are worth", x=0.02, ha="left")
        return canvas, table

    @staticmethod
    def reproduction(settings: BandAblationSettings, files: Mapping[Need, str]) -> pd.DataFrame:
        """Ours beside the published numbers; empty where these are not asked for."""
        rows = comparison("band_ablation", _table(settings, files)[1])
        return rows if settings.published else rows.iloc[:0]

    @staticmethod
    def findings(settings: BandAblationSettings, table: pd.DataFrame) -> str:
        """Means with and without the inferred inputs."""
        sentences = []
        for metric, title in PANELS.items():
            for series in settings.models:
                rows = table[(table["metric"] == metric) & (table["series"] == series)]
                if rows["value"].notna().any():
                    whole, without = (told(rows[rows["x"] == x]) for x in ("with", "without"))
                    sentences.append(f"{LABELS[series]}, {title}: {whole} with inferred inputs, {without} without.")
        return " ".join(sentences)


def _table(settings: BandAblationSettings, files: Mapping[Need, str]) -> tuple[Points, pd.DataFrame]:
    """Points of the fits, and each score with (`x`) and without the inferred inputs."""
    points = points_of(files, settings.datasets, settings.models)
    scores = points.table.set_index(KEY)["value"].astype(float)
    rows = []
    for key, value in scores.items():
        named = dict(zip(KEY, key, strict=True))
        metric = named["metric"]
        if metric not in PANELS:
            continue
        if metric in LOSSES:
            lost = scores.get((*key[:-1], LOSSES[metric]), np.nan)
            without = value - lost
        else:
            without = _around_means(files, named) if np.isfinite(value) else np.nan
        rows += [named | {"x": "with", "value": value}, named | {"x": "without", "value": without}]
    return points, pd.DataFrame(rows, columns=[*KEY, "x", "value"])


def _around_means(files: Mapping[Need, str], fit: Mapping[str, str | int]) -> float:
    """R² around the condition means of what a fit decodes without inferred inputs; NaN where it has none."""
    dataset = datasets.read(files["dataset", fit["dataset"]]).sessions[fit["session"]]
    split = dataset.report_split
    outputs = fit_outputs(files["fit", fit["dataset"], fit["model"], int(fit["seed"])], split, fit["session"])
    if "ablated_behavior" not in outputs:
        return np.nan
    case = Case(dataset, {split: outputs}, split)
    true = case.known("behavior")
    decoded = outputs["ablated_behavior"][:, : true.shape[1]]
    try:
        return behavior_r2_sums(true, decoded, case.trials.n_bins, condition_means(case)).value
    except MetricError:
        return np.nan


def _draw(ax: Axes, settings: BandAblationSettings, points: Points, rows: pd.DataFrame, theirs: pd.DataFrame) -> None:
    """A pair of columns per model."""
    ax.axhline(0, color="0.85", lw=0.6, zorder=0)
    known = pd.concat([rows["value"], theirs["value"]]).dropna()
    low = max(LEFT_OUT, known.min())
    margin = 0.12 * (known.max() - low)
    ax.set_ylim(low - margin, known.max() + margin)
    places = {}
    for number, series in enumerate(settings.models):
        colour, marker = LOOKS[series]
        left, right = places[series] = (3.4 * number, 3.4 * number + 1.3)
        own = rows[rows["series"] == series]
        pairs = own.pivot(index=["dataset", "session", "seed"], columns="x", values="value")
        for pair in pairs[["with", "without"]].to_numpy() if len(pairs) else []:
            ax.plot([left, right], pair, color=colour, lw=0.5, alpha=0.6)
            ax.plot(left, pair[0], marker=marker, ms=3, mec=colour, mfc=colour, ls="none")
            ax.plot(right, pair[1], marker=marker, ms=3, mec=colour, mfc="none", mew=0.7, ls="none")
        if len(pairs) > 1:
            ax.plot([left, right], pairs[["with", "without"]].mean(), color=colour, lw=1.8)
        for x, at, side in (("with", left, -0.45), ("without", right, 0.45)):
            published_here = theirs[(theirs["series"] == series) & (theirs["x"] == x)]
            ax.plot(np.full(len(published_here), at + side), published_here["value"], **PUBLISHED)
            mean = own.loc[own["x"] == x, "value"].mean()
            if mean < low:
                ax.annotate(f"{mean:.1f}", (at, 0), (0, 2), **AT_AXIS, color=colour)
        n_ok = int(pairs.notna().all(axis=1).sum()) if len(pairs) else 0
        words = "" if n_ok == len(pairs) else f"{n_ok} of {len(pairs)} fits"
        if series in points.missing:
            words = "missing"
        ax.annotate(words, ((left + right) / 2, 1), (0, 0), **AT_AXIS, va="top")
    ax.set_xticks([sum(pair) / 2 for pair in places.values()], [LABELS[series] for series in places])
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-1, 3.4 * len(places) - 1.1)
