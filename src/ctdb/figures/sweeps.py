"""Fits of a sweep: what figures of them need, their scores beside what was swept, and how a point is drawn."""

import json
from collections.abc import Iterable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ctdb.errors import MissingError
from ctdb.figures.base import scores_in
from ctdb.figures.planned import Need, Planned
from ctdb.figures.published import STYLE
from ctdb.figures.score_table import LABELS, report_split
from ctdb.settings import DYNAMICS_SCORES

MARKERS = "os^vPX<>ph"
"""One per swept value, in turn; the diamond is that of published values."""
COLOURS = mpl.colormaps["viridis"]
LINK = {"color": "0.6", "lw": 0.5, "zorder": 1}
"""Line from our mean to the published one."""


def sweep_fits(planned: Planned, dataset: str, model: str, key: str) -> list[tuple[str, str, int]]:
    """Fits of a model to a data set whose `key` was swept."""
    return [
        fit
        for fit in planned.fits_of(dataset, [model])
        if any(part.startswith(f"{key}=") for part in fit[1].partition("@")[2].split(","))
    ]


def sweep_needs(planned: Planned, dataset: str, model: str, key: str, metrics: Iterable[str]) -> list[Need]:
    """Scores of the fits of a sweep, and of the floor and ceiling of their data set.

    Scores of dynamics are among them where `metrics` name some. Where there is no such fit, the need of one without a
    value, ``{model}@{key}``, says so.
    """
    wanted = set(metrics)
    fits = [(dataset,), *(sweep_fits(planned, dataset, model, key) or [(dataset, f"{model}@{key}", 0)])]
    needs: list[Need] = [("scores", *fit) for fit in fits]
    if wanted & set(DYNAMICS_SCORES) - {"dsa_similarity"}:
        needs += [("dynamics_scores", *fit) for fit in fits]
    if "dsa_similarity" in wanted:
        needs.append(("dsa_scores", dataset))
    return needs


def swept(scores: pd.DataFrame, model: str, key: str) -> pd.DataFrame:
    """Rows of the fits of a sweep, with the value `x` of `key`, and `others`, the settings swept along with it."""
    points = [json.loads(point) for point in scores["sweep"]]
    own = [
        role == "fit" and name.partition("@")[0] == model and key in point
        for role, name, point in zip(scores["role"], scores["model"], points, strict=True)
    ]
    points = [point for point, is_own in zip(points, own, strict=True) if is_own]
    others = [", ".join(f"{name}={value}" for name, value in point.items() if name != key) for point in points]
    return scores.loc[np.array(own, bool)].assign(x=[float(point[key]) for point in points], others=others)


def sweep_scores(
    files: Mapping[Need, str], dataset: str, model: str, key: str, metrics: Sequence[str], split: str = ""
) -> pd.DataFrame:
    """Scores of the fits of a sweep: a row per fit, and a column per metric, NaN where a fit has no such score.

    Parameters
    ----------
    files
        Files of the needs that :func:`sweep_needs` named.
    dataset, model, key
        The sweep.
    metrics
        Scores to take.
    split
        Split that they are of; the one that scores are reported on where it is not given.

    Returns
    -------
    Columns `x` (value of `key`), `model`, `seed`, `status` (of the fit) and the metrics.

    Raises
    ------
    MissingError
        If there is no such fit.
    """
    scores = scores_in(files, dataset)
    rows = swept(scores[scores["split"] == (split or report_split(scores))], model, key)
    if rows.empty:
        raise MissingError(f"fits of {model!r} to {dataset!r} that sweep {key!r}; add such a `sweep` to `fits`")
    fits = rows.groupby(["x", "model", "seed"])
    status = fits["status"].agg(lambda own: next((one for one in own if one not in ("ok", "undefined")), "ok"))
    values = rows[rows["metric"].isin(metrics)].set_index(["x", "model", "seed", "metric"])["value"].unstack()
    return pd.DataFrame({"status": status}).join(values.reindex(columns=list(metrics))).reset_index()


def anchors_of(files: Mapping[Need, str], dataset: str) -> pd.Series:
    """Scores of the floor and the ceiling of a data set, by metric and role."""
    scores = scores_in(files, dataset)
    own = scores["role"].isin(["floor", "ceiling"]) & (scores["split"] == report_split(scores))
    return scores[own].set_index(["metric", "role"])["value"]


def in_rows(fits: pd.DataFrame, dataset: str, series: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Scores of a sweep as rows that :func:`ctdb.figures.published.comparison` takes, one per fit and metric."""
    kept = ["x", "model", "seed", "status"]
    return fits.melt(kept, list(metrics), "metric", "value").assign(dataset=dataset, series=series)


def label_of(metric: str) -> str:
    """Label of an axis that shows a metric."""
    plain = metric.replace("_true_to_", " true→").replace("_r2", " R²").replace("_", " ")
    return LABELS.get(metric, plain).replace("\n", " ")


def text_of(value: float) -> str:
    """A swept value as text: 8, 0.001, 1e-6."""
    return f"{value:g}".replace("e-0", "e-")


def scale_of_sweep(ax: Axes, values: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with a tick for each swept value; linear below the lowest if some is 0."""
    positive = [value for value in values if value > 0]
    if positive and len(positive) == len(values):
        ax.set_xscale("log")
    elif positive:
        ax.set_xscale("symlog", linthresh=min(positive))
    ax.set_xticks(values, [text_of(value) for value in values], rotation=60)
    ax.minorticks_off()


def styles_of(values: Iterable[float]) -> dict[float, dict[str, object]]:
    """How the points of each swept value are drawn: the lighter the larger, and each with a marker of its own."""
    ordered = sorted(set(values))
    shades = np.linspace(0, 0.92, max(len(ordered), 2))
    return {
        value: {"ls": "none", "marker": MARKERS[place % len(MARKERS)], "ms": 3.5, "mec": "white", "mew": 0.3}
        | {"color": COLOURS(shade)}
        for place, (value, shade) in enumerate(zip(ordered, shades, strict=False))
    }


def draw_fits(
    ax: Axes, fits: pd.DataFrame, across: str, up: str, styles: Mapping[float, Mapping[str, object]]
) -> pd.DataFrame:
    """Draw one score against another, a point per fit, and return the fits that have both."""
    good = fits[np.isfinite(fits[across]) & np.isfinite(fits[up])]
    for value, own in good.groupby("x"):
        ax.plot(own[across], own[up], zorder=3, **styles[value])
    ax.set_xlabel(label_of(across))
    ax.set_ylabel(label_of(up))
    ax.margins(0.1)
    ax.locator_params(axis="x", nbins=4)
    return good


def draw_published(ax: Axes, compared: pd.DataFrame, across: str, up: str) -> pd.DataFrame:
    """Draw the published means of two scores by what was swept, tied to ours, and return them as `x`, `across`, `up`.

    Parameters
    ----------
    ax
        Panel with our fits.
    compared
        Rows of :func:`ctdb.figures.published.comparison`, of one series.
    across, up
        Metrics on the two axes.
    """
    swept_rows = compared[compared["x"] != ""]
    theirs = swept_rows.pivot(index="x", columns="metric", values="published").reindex(columns=[across, up]).dropna()
    ours = swept_rows.pivot(index="x", columns="metric", values="ours").reindex(columns=[across, up]).dropna()
    for x in theirs.index.intersection(ours.index):
        ax.plot([theirs.loc[x, across], ours.loc[x, across]], [theirs.loc[x, up], ours.loc[x, up]], **LINK)
    ax.plot(theirs[across], theirs[up], **STYLE)
    return pd.DataFrame({"x": theirs.index.astype(float), "across": theirs[across], "up": theirs[up]})
