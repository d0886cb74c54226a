"""Are few-dimensional dynamics found through other embeddings and by other models? Supplement of CtDB."""

import textwrap
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from ctdb.errors import MissingError
from ctdb.figures import FIGURES
from ctdb.figures.base import WIDTH, Figure, FigureSettings, say_missing, scores_in
from ctdb.figures.planned import Need, Planned
from ctdb.figures.published import STYLE, comparison, spelling
from ctdb.figures.score_table import report_split
from ctdb.figures.sweeps import in_rows, label_of, sweep_needs, sweep_scores, text_of
from ctdb.settings import NonEmpty, Settings

KIND = "ctd_embedding"
OURS = {"color": "C0", "marker": "o", "ms": 3, "mec": "C0", "mfc": "white", "mew": 0.7}


class EmbeddedSettings(Settings):
    """One column: fits of `model` to `dataset` whose `key` was swept, and other models beside them.

    `series` names the published numbers to compare with. Of these, some are of other models: `also` says which of ours
    (with the point of its sweep, if it has one) each of them is.
    """

    dataset: str
    model: str
    key: str = "latent_size"
    series: Literal["node_to_gru", "nonlinear_to_gru", "slds"]
    also: dict[Literal["node", "lds", "gru"], str] = {}


class CtdEmbeddingSettings(FigureSettings):
    """Settings of figure `ctd_embedding`."""

    sweeps: NonEmpty[EmbeddedSettings]
    metrics: NonEmpty[str] = ["rate_r2", "state_r2_true_to_inferred"]


@FIGURES.register("ctd_embedding")
class CtdEmbedding(Figure):
    """One column per sweep and one row per score: the mean over seeds with their range, and other models on the right.

    Hollow diamonds are means that CtDB published; some are of sizes that were not fitted here.
    """

    Settings = CtdEmbeddingSettings
    partial = True

    @staticmethod
    def needs(settings: CtdEmbeddingSettings, planned: Planned) -> list[Need]:
        """Scores of the sweeps and of the models beside them."""
        needs = []
        for sweep in settings.sweeps:
            needs += sweep_needs(planned, sweep.dataset, sweep.model, sweep.key, settings.metrics)
            for model in sweep.also.values():
                fits = [fit for fit in planned.fits_of(sweep.dataset, [model]) if fit[1] == model]
                needs += [("scores", *fit) for fit in fits or [(sweep.dataset, model, 0)]]
        return needs

    @staticmethod
    def draw(settings: CtdEmbeddingSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the scores of the split that scores are reported on."""
        n_rows, n_columns = len(settings.metrics), len(settings.sweeps)
        size = (min(WIDTH, 0.6 + 2.4 * n_columns), 0.7 + 1.5 * n_rows)
        canvas, axes = plt.subplots(n_rows, n_columns, squeeze=False, figsize=size, layout="constrained")
        tables = []
        for column, sweep in zip(axes.T, settings.sweeps, strict=True):
            try:
                rows = _rows(settings, sweep, files)
            except MissingError as error:
                say_missing(column[0], error)
                for ax in column[1:]:
                    ax.set_axis_off()
                continue
            compared = comparison(KIND, rows).query("series == @sweep.series")
            table = _summary(rows, compared)
            for ax, metric in zip(column, settings.metrics, strict=True):
                _draw_panel(ax, table[table["metric"] == metric], list(sweep.also))
                ax.set_ylabel(label_of(metric) if ax.get_subplotspec().is_first_col() else "")
            column[0].set_title(textwrap.fill(f"{sweep.model} on {sweep.dataset}", 32))
            column[-1].set_xlabel(sweep.key)
            tables.append(table.assign(series=sweep.series, dataset=sweep.dataset))
        handles = [
            Line2D([], [], label="mean and range over seeds", **OURS),
            Line2D([], [], label="published", **STYLE),
        ]
        canvas.legend(handles=handles, loc="outside lower center", ncols=2)
        return canvas, pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["series"])

    @staticmethod
    def findings(settings: CtdEmbeddingSettings, table: pd.DataFrame) -> str:
        """At which point each score is best, and how many fits have none."""
        sentences = []
        for sweep in settings.sweeps:
            own = table[(table["series"] == sweep.series) & (table["drawn"] == "fits")] if len(table) else table
            best = []
            for metric, rows in own.dropna(subset="value").groupby("metric", sort=False) if len(own) else ():
                swept = rows[~rows["x"].isin(sweep.also)]
                if len(swept):
                    row = swept.loc[swept["value"].idxmax()]
                    best.append(f"{label_of(metric)} {row['value']:.3f} at {row['x']}")
            if best:
                sentences.append(f"{sweep.model} on {sweep.dataset}, best by {sweep.key}: {', '.join(best)}.")
            counts = own.groupby("x")[["n", "n_fits"]].max().sum() if len(own) else None
            if counts is not None and counts["n"] < counts["n_fits"]:
                sentences.append(f"{counts['n']:.0f} of its {counts['n_fits']:.0f} fits have scores.")
        return " ".join(sentences)

    @staticmethod
    def reproduction(settings: CtdEmbeddingSettings, files: Mapping[Need, str]) -> pd.DataFrame:
        """Means by size and of the models beside them, next to those of CtDB."""
        rows, reasons = [], []
        for sweep in settings.sweeps:
            try:
                rows.append(_rows(settings, sweep, files))
            except MissingError as error:
                reasons.append(error)
        if not rows:
            raise reasons[0]
        return comparison(KIND, pd.concat(rows, ignore_index=True))


def _rows(settings: CtdEmbeddingSettings, sweep: EmbeddedSettings, files: Mapping[Need, str]) -> pd.DataFrame:
    """Scores of a column, one row per fit and metric; `x` is what was swept, or the other model's published name.

    Raises
    ------
    MissingError
        If there are no fits of the sweep.
    """
    swept = sweep_scores(files, sweep.dataset, sweep.model, sweep.key, settings.metrics)
    rows = in_rows(swept, sweep.dataset, sweep.series, settings.metrics)
    parts = [rows.assign(x=rows["x"].map(text_of))]
    scores = scores_in(files, sweep.dataset)
    scores = scores[(scores["split"] == report_split(scores)) & scores["metric"].isin(settings.metrics)]
    for name, model in sweep.also.items():
        own = scores[(scores["role"] == "fit") & (scores["model"] == model)]
        parts.append(own[["model", "seed", "status", "metric", "value", "dataset"]].assign(x=name, series=sweep.series))
    return pd.concat(parts, ignore_index=True)


def _summary(rows: pd.DataFrame, compared: pd.DataFrame) -> pd.DataFrame:
    """Mean and range over seeds at each point, and what is published there or elsewhere."""
    grouped = rows.assign(value=rows["value"].astype(float)).groupby(["metric", "x"], sort=False)
    own = pd.DataFrame(
        {
            "model": grouped["model"].first(),
            "value": grouped["value"].mean(),
            "low": grouped["value"].min(),
            "high": grouped["value"].max(),
            "n": grouped["value"].count(),
            "n_fits": grouped.size(),
        }
    ).reset_index()
    theirs = compared[["metric", "x", "published"]].rename(columns={"published": "value"})
    return pd.concat([own.assign(drawn="fits"), theirs.assign(drawn="published")], ignore_index=True)


def _draw_panel(ax: Axes, table: pd.DataFrame, also: list[str]) -> None:
    """Points side by side: the sweep in order, joined by a line, and the other models after it."""
    swept = sorted({spelling(x) for x in table["x"] if spelling(x) not in ("node", "lds", "gru")}, key=float)
    others = [*also, *(x for x in dict.fromkeys(table["x"]) if x not in also and x in ("node", "lds", "gru"))]
    places = {x: place + 0.5 * (x in others) for place, x in enumerate([*swept, *others])}
    at = table.assign(place=table["x"].map(lambda x: places[spelling(x)]))
    good = at[(at["drawn"] == "fits") & np.isfinite(at["value"])]
    for is_swept, own in good.groupby(good["place"] < len(swept)):
        own = own.sort_values("place")
        reach = [own["value"] - own["low"], own["high"] - own["value"]]
        ax.errorbar(own["place"], own["value"], reach, lw=0.9 if is_swept else 0, elinewidth=0.6, **OURS)
    theirs = at[at["drawn"] == "published"]
    ax.plot(theirs["place"], theirs["value"], **STYLE)
    if others:
        ax.axvline(len(swept) - 0.25, color="0.8", lw=0.6)
    ax.set_xticks(list(places.values()), [text_of(float(x)) if x in swept else x for x in places])
    ax.margins(0.08)
