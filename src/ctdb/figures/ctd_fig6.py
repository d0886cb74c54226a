"""Are inferred inputs right where spikes are predicted well? Figure 6 of CtDB: a sweep of the penalty on them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from pydantic import Field

from ctdb.dynamics import FixedPoints
from ctdb.dynamics_scores import POINTS
from ctdb.errors import MissingError
from ctdb.figures import FIGURES
from ctdb.figures.base import WIDTH, Figure, FigureSettings, say_missing
from ctdb.figures.fixed_points import MARKERS, draw_points, point_style
from ctdb.figures.planned import Need, Planned
from ctdb.figures.portraits import Portraits, portraits_of
from ctdb.figures.published import STYLE, comparison
from ctdb.figures.sweeps import (
    draw_fits,
    draw_published,
    in_rows,
    label_of,
    scale_of_sweep,
    styles_of,
    sweep_fits,
    sweep_needs,
    sweep_scores,
    text_of,
)
from ctdb.files import read_hdf5
from ctdb.settings import Count

KIND = "ctd_fig6"
SERIES = "infer"


class CtdFig6Settings(FigureSettings):
    """Settings of figure `ctd_fig6`.

    `model` infers its inputs, and `key` is swept. Of `metrics`, the first is that of the inputs, and the four others
    are drawn against it.
    """

    dataset: str
    model: str
    key: str = "kl_co_scale"
    metrics: Annotated[list[str], Field(min_length=5, max_length=5)] = [
        "input_r2_true_to_inferred",
        "co_bps_ctd",
        "cycle_consistency",
        "rate_r2",
        "state_r2_true_to_inferred",
    ]
    n_trials: Count = 8


@dataclass(frozen=True)
class Chosen:
    """A fit that was chosen by its score on the valid trials: the value of what was swept, the model, and the seed."""

    x: float
    model: str
    seed: int


@FIGURES.register("ctd_fig6")
class CtdFig6(Figure):
    """Above, other scores against how well the inputs were inferred, a point per fit, by the weight of the penalty.

    Below, the same score of the inputs against that weight, with the mean over seeds as a line, and the fixed points
    of the network and of two fits, in the true states' principal components: the fit with the best inputs and the one
    with the worst, chosen on the valid trials (the weight by the mean over seeds, then the seed). Hollow diamonds are
    the means that CtDB published, tied to ours of the same weight.
    """

    Settings = CtdFig6Settings
    fields = ("latents",)
    partial = True

    @staticmethod
    def needs(settings: CtdFig6Settings, planned: Planned) -> list[Need]:
        """Scores of the sweep; the dataset, and the fits of the sweep with their dynamics, two of which are drawn."""
        needs = sweep_needs(planned, settings.dataset, settings.model, settings.key, settings.metrics)
        if fits := sweep_fits(planned, settings.dataset, settings.model, settings.key):
            needs += [("dataset", settings.dataset), ("dynamics", settings.dataset)]
            needs += [(what, *fit) for what in ("fit", "dynamics") for fit in fits]
        return needs

    @staticmethod
    def draw(settings: CtdFig6Settings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the scores of the split that scores are reported on, and the points of the two fits."""
        fits = _fits(settings, files)
        canvas = plt.figure(figsize=(WIDTH, 4.8))
        above = canvas.add_gridspec(1, 4, left=0.085, right=0.99, top=0.92, bottom=0.645, wspace=0.55)
        below = canvas.add_gridspec(1, 4, left=0.085, right=0.99, top=0.5, bottom=0.22, wspace=0.12)
        styles = styles_of(fits["x"])
        rows = in_rows(fits, settings.dataset, SERIES, settings.metrics)
        compared = comparison(KIND, rows).query("series == @SERIES")
        inputs, *others = settings.metrics
        tables = []
        for place, metric in enumerate(others):
            ax = canvas.add_subplot(above[place])
            if draw_fits(ax, fits, inputs, metric, styles).empty:
                _say_none(ax, f"none of {len(fits)} fits has both")
            theirs = draw_published(ax, compared, inputs, metric)
            own = fits.assign(drawn="fit", panel=metric, across=fits[inputs], up=fits[metric])
            tables += [own, theirs.assign(drawn="published", panel=metric)]
        tables += _draw_sweep(canvas.add_subplot(below[0]), settings, fits, compared, styles)
        tables.append(_draw_portraits(canvas, below, settings, files))
        handles = [Line2D([], [], label=text_of(value), **style) for value, style in styles.items()]
        handles.append(Line2D([], [], label="published", **STYLE))
        canvas.legend(handles=handles, loc="lower center", ncols=len(handles), bbox_to_anchor=(0.5, 0.03))
        canvas.suptitle(f"{settings.dataset}: inputs inferred by {settings.model}", x=0.02, ha="left")
        columns = ["panel", "drawn", "x", "model", "seed", "status", "across", "up"]
        table = pd.concat([table for table in tables if len(table)], ignore_index=True)
        table = table[columns + [name for name in table if name not in (*columns, *settings.metrics)]]
        return canvas, table.rename(columns={"x": settings.key})

    @staticmethod
    def findings(settings: CtdFig6Settings, table: pd.DataFrame) -> str:
        """Which weight infers the inputs best, what the spikes say of it, and how many points two fits have."""
        inputs, spikes, key = settings.metrics[0], settings.metrics[1], settings.key
        fits = table[(table["drawn"] == "fit") & (table["panel"] == spikes)]
        means = fits.groupby(key)[["across", "up"]].mean().dropna(subset="across")
        sentences = []
        if len(means) > 1:
            best, least = means["across"].idxmax(), means.index.min()
            told = f"{label_of(inputs)} is highest at {key} {text_of(best)}: {means.loc[best, 'across']:.3f}"
            if best != least:
                ratio = means.loc[best, "across"] / means.loc[least, "across"]
                told += f", beside {means.loc[least, 'across']:.3f} at {text_of(least)}"
                told += f" ({ratio:.1f} times)" if ratio > 0 else ""
            spread = means["up"].max() - means["up"].min()
            sentences.append(f"{told}. {label_of(spikes)} differs by {spread:.4f} at most between weights.")
        if bad := (fits["status"] != "ok").sum():
            sentences.append(f"{len(fits) - bad} of {len(fits)} fits went well.")
        points = table[table["drawn"] == "fixed point"]
        for panel, own in points.groupby("panel", sort=False):
            n_stable, n_unstable = _counts(own["stable"].astype(bool), own["index"])
            sentences.append(f"Fixed points of {panel}: {n_stable} stable, {n_unstable} unstable.")
        return " ".join(sentences)

    @staticmethod
    def reproduction(settings: CtdFig6Settings, files: Mapping[Need, str]) -> pd.DataFrame:
        """Means by weight, and how many points the two fits have, beside those of CtDB."""
        rows = [in_rows(_fits(settings, files), settings.dataset, SERIES, settings.metrics).astype({"x": object})]
        try:
            chosen = _chosen(settings, files)
            for series, fit in chosen.items():
                counts = _counts_of(files["dynamics", settings.dataset, fit.model, fit.seed])
                named = zip(("stable_points", "unstable_points"), counts, strict=True)
                own = pd.DataFrame([{"metric": metric, "value": float(count)} for metric, count in named])
                rows.append(own.assign(x="", series=series, dataset=settings.dataset, model=fit.model))
        except MissingError:
            pass  # scores are compared without
        return comparison(KIND, pd.concat(rows, ignore_index=True))


def _fits(settings: CtdFig6Settings, files: Mapping[Need, str], split: str = "") -> pd.DataFrame:
    return sweep_scores(files, settings.dataset, settings.model, settings.key, settings.metrics, split)


def _chosen(settings: CtdFig6Settings, files: Mapping[Need, str]) -> dict[str, Chosen]:
    """The fits with the best and with the worst inputs on the valid trials.

    Raises
    ------
    MissingError
        If fewer than two have a score.
    """
    score = settings.metrics[0]
    fits = _fits(settings, files, "valid")
    fits = fits[np.isfinite(fits[score]) & (fits["status"] == "ok")]
    if len(fits) < 2:
        raise MissingError(f"two fits of {settings.model!r} with {label_of(score)}")
    means, chosen = fits.groupby("x")[score].mean(), {}
    for name, x, which in (("best", means.idxmax(), "idxmax"), ("worst", means.idxmin(), "idxmin")):
        own = fits[fits["x"] == x]
        row = own.loc[getattr(own[score], which)()]
        chosen[name] = Chosen(float(x), str(row["model"]), int(row["seed"]))
    return chosen


def _counts(stable: pd.Series, index: pd.Series) -> tuple[int, int]:
    """How many points are stable, and how many have unstable directions."""
    return int((stable & (index == 0)).sum()), int((index > 0).sum())


def _counts_of(dynamics: str) -> tuple[int | float, int | float]:
    """The same of the points behind a file of dynamics; NaN where the fit could not be analysed."""
    if read_hdf5(dynamics)[1]["status"] != "ok":
        return np.nan, np.nan
    found = FixedPoints.load(Path(dynamics).with_name(POINTS))
    return _counts(pd.Series(found.stable.tolist(), dtype=bool), pd.Series(found.index.tolist(), dtype=int))


def _draw_sweep(
    ax: Axes,
    settings: CtdFig6Settings,
    fits: pd.DataFrame,
    compared: pd.DataFrame,
    styles: Mapping[float, Mapping[str, object]],
) -> list[pd.DataFrame]:
    """The score of the inputs against what was swept, on an axis that is logarithmic but has a 0."""
    inputs = settings.metrics[0]
    good = fits[np.isfinite(fits[inputs])]
    mean = good.groupby("x")[inputs].mean()
    ax.plot(mean.index, mean, color="0.35", lw=0.8, zorder=2)
    for value, own in good.groupby("x"):
        ax.plot(own["x"], own[inputs], zorder=3, **styles[value])
    if good.empty:
        _say_none(ax, f"none of {len(fits)} fits has it")
    theirs = compared[(compared["metric"] == inputs) & (compared["x"] != "")]
    theirs = pd.DataFrame(
        {"x": theirs["x"].astype(float), "across": theirs["x"].astype(float), "up": theirs["published"]}
    )
    ax.plot(theirs["across"], theirs["up"], **STYLE)
    scale_of_sweep(ax, sorted({*fits["x"], *theirs["x"]}))
    ax.margins(x=0.1)
    ax.set_xlabel(settings.key)
    ax.set_ylabel(label_of(inputs))
    own = fits.assign(drawn="fit", panel=settings.key, across=fits["x"], up=fits[inputs])
    return [own, theirs.assign(drawn="published", panel=settings.key)]


def _say_none(ax: Axes, words: str) -> None:
    """Say that there is nothing of ours in a panel, above what is published."""
    ax.annotate(words, (0.5, 1), (0, 2), "axes fraction", "offset points", ha="center", fontsize=6, color="0.35")


def _draw_portraits(canvas: Canvas, grid: object, settings: CtdFig6Settings, files: Mapping[Need, str]) -> pd.DataFrame:
    """Fixed points of the true system and of the two fits; also as rows of the table."""
    try:
        chosen = _chosen(settings, files)
        titles, found = ["network"], {}
        for name, fit in chosen.items():
            own = portraits_of(settings.dataset, [fit.model], fit.seed, settings.n_trials, files)
            found[name] = own
            titles.append(f"{name}: {text_of(fit.x)}, seed {fit.seed}")
    except MissingError as error:
        say_missing(canvas.add_subplot(grid[1:]), error)
        return pd.DataFrame()
    first = next(iter(found.values()))
    shown = [first.systems[0], *(own.systems[1] for own in found.values())]
    tables = []
    for place, (title, name) in enumerate(zip(titles, ("network", *found), strict=True)):
        points = shown[place].points
        n_stable, n_unstable = _counts(points["stable"], points["index"])
        label = f"{title}\n{n_stable} stable, {n_unstable} unstable"
        shown[place] = replace(shown[place], title=label)
        fit = chosen.get(name)
        about = {"model": fit.model, "seed": fit.seed, "x": fit.x} if fit else {"model": name}
        tables.append(points.assign(drawn="fixed point", panel=name, **about))
    portraits = Portraits(first.space, first.bin_s, shown)
    for place, portrait in enumerate(shown):
        draw_points(canvas.add_subplot(grid[1 + place], **first.space.projection), portrait, portraits)
    seen = [label for label in MARKERS if any(portrait.at(label).any() for portrait in shown)]
    handles = [Line2D([], [], ls="none", label=label, **point_style(label, 4.0)) for label in seen]
    canvas.add_artist(canvas.legend(handles=handles, loc="lower center", ncols=max(len(seen), 1)))
    return pd.concat(tables, ignore_index=True).drop(columns=["source", "stability"])
