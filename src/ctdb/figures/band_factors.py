"""Behaviour and spikes of LFADS and BAND against their number of factors."""

import json
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from pydantic import Field

from ctdb.errors import MissingError
from ctdb.figures import FIGURES
from ctdb.figures.base import WIDTH, Figure, FigureSettings, fit_outputs, say_missing
from ctdb.figures.fit_points import LABELS, LOOKS, counted, reported, told, why_missing
from ctdb.figures.planned import Need, Planned
from ctdb.figures.published import STYLE as PUBLISHED
from ctdb.figures.published import comparison, published

KEY = "fac_dim"
PANELS = {
    "behavior_r2": "R² of behaviour",
    "behavior_r2_ridge_sequence": "R², ridge regression from all bins",
    "bits_per_spike_heldin": "bits per spike",
}
COLUMNS = ["series", "dataset", "model", "seed", "x", "metric", "value", "status"]


class BandFactorsSettings(FigureSettings):
    """Settings of figure `band_factors`, as in `band_decoding`; `fits` sweeps the models over `fac_dim`."""

    dataset: str
    models: dict[Literal["lfads", "band"], str] = Field(min_length=1)
    session: str = ""
    published: bool = False


@FIGURES.register("band_factors")
class BandFactors(Figure):
    """A point per fit, lines through their means; a cross at the bottom is a fit without the score.

    Models as they are configured stand among the points of their sweep. Diamonds, where there are any, are published
    values of another session, those of BAND in the first panel and those of LFADS in the second, by how they were
    decoded.
    """

    Settings = BandFactorsSettings
    partial = True

    @staticmethod
    def needs(settings: BandFactorsSettings, planned: Planned) -> list[Need]:
        """Scores of the sweep and of the models themselves, and an output of these, which shows their factors."""
        needs: list[Need] = [("scores", settings.dataset)]
        for model in settings.models.values():
            fits = [fit for fit in planned.fits_of(settings.dataset, [model]) if _is_point(fit[1])]
            needs += [("scores", *fit) for fit in fits or [(settings.dataset, model, 0)]]
            needs += [("fit", *fit) for fit in fits if fit[1] == model][:1]
        return needs

    @staticmethod
    def draw(settings: BandFactorsSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw a panel per score."""
        table = _table(settings, files)
        missing = {
            series: why_missing(files, [settings.dataset], model)
            for series, model in settings.models.items()
            if not (table["series"] == series).any()
        }
        theirs = published("band_factors") if settings.published else published("band_factors").iloc[:0]
        theirs = theirs.assign(x=theirs["x"].astype(float))
        canvas, axes = plt.subplots(1, len(PANELS), figsize=(WIDTH, 2.6), layout="constrained")
        for ax, (metric, title) in zip(axes, PANELS.items(), strict=True):
            ax.set_title(title)
            rows = table[table["metric"] == metric]
            if rows.empty:
                say_missing(ax, MissingError(next(iter(missing.values()), "no fit has this score")))
                continue
            _draw(ax, settings, rows, theirs[theirs["metric"] == metric])
        handles = []
        for series in settings.models:
            colour, marker = LOOKS[series]
            words = LABELS[series] + (f" (missing: {missing[series]})" if series in missing else "")
            handles.append(Line2D([], [], color=colour, marker=marker, ms=3, mfc="none", label=words))
        if settings.published:
            handles.append(Line2D([], [], label="published", **PUBLISHED))
        canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        without = sorted(set(theirs["x"]) - set(table["x"]))
        words = f"; published and not fitted here: {', '.join(f'{x:g}' for x in without)}" if without else ""
        canvas.suptitle(f"{settings.dataset}: scores against the number of factors{words}", x=0.02, ha="left")
        return canvas, table

    @staticmethod
    def reproduction(settings: BandFactorsSettings, files: Mapping[Need, str]) -> pd.DataFrame:
        """Ours beside the published numbers; empty where these are not asked for."""
        rows = comparison("band_factors", _table(settings, files))
        return rows if settings.published else rows.iloc[:0]

    @staticmethod
    def findings(settings: BandFactorsSettings, table: pd.DataFrame) -> str:
        """R² with the fewest and the most factors."""
        sentences = []
        for series in settings.models:
            rows = table[(table["series"] == series) & (table["metric"] == "behavior_r2")]
            sizes = sorted(set(rows["x"]))
            if sizes:
                ends = dict.fromkeys([sizes[0], sizes[-1]])
                said = [f"{told(rows[rows['x'] == x])} with {x:g} factors" for x in ends]
                sentences.append(f"{LABELS[series]}: R² of behaviour {', '.join(said)}.")
        return " ".join(sentences)


def _is_point(label: str) -> bool:
    """Whether a fit is of a model itself, or of a sweep over nothing but the number of factors."""
    point = label.partition("@")[2]
    return not point or (point.startswith(f"{KEY}=") and "," not in point)


def _table(settings: BandFactorsSettings, files: Mapping[Need, str]) -> pd.DataFrame:
    """A row per fit and score, with the number of factors as `x`."""
    scores = reported(files, settings.dataset)
    scores = scores[scores["metric"].isin(list(PANELS)) & (scores["role"] == "fit")]
    scores = scores[scores["session"] == settings.session]
    parts = [pd.DataFrame(columns=COLUMNS)]
    for series, model in settings.models.items():
        is_own = [label.partition("@")[0] == model and _is_point(label) for label in scores["model"]]
        own = scores.loc[np.array(is_own, bool)]
        size = _own_size(settings, files, model)
        x = [json.loads(point).get(KEY, size) for point in own["sweep"]]
        parts.append(own.assign(series=series, x=np.array(x, float))[COLUMNS])
    table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    return table.sort_values(["series", "metric", "x", "seed"], ignore_index=True)


def _own_size(settings: BandFactorsSettings, files: Mapping[Need, str], model: str) -> float:
    """Number of factors of a model as it is configured; NaN where no such fit is planned."""
    missing = getattr(files, "missing", {})
    for need in files:
        if need[:3] == ("fit", settings.dataset, model) and need not in missing:
            outputs = fit_outputs(files[need], "train", settings.session)
            return float(outputs["factors"].shape[2])
    return np.nan


def _draw(ax: Axes, settings: BandFactorsSettings, rows: pd.DataFrame, theirs: pd.DataFrame) -> None:
    said = []
    for series in settings.models:
        colour, marker = LOOKS[series]
        own = rows[rows["series"] == series].astype({"value": float})
        good, failed = own[own["value"].notna()], own[own["value"].isna()]
        ax.plot(good["x"], good["value"], ls="none", marker=marker, ms=3, mfc="none", mec=colour, mew=0.7)
        mean = good.groupby("x")["value"].mean()
        ax.plot(mean.index, mean, color=colour)
        bottom = {"transform": ax.get_xaxis_transform(), "ls": "none", "marker": "x", "ms": 4, "color": colour}
        ax.plot(failed["x"], np.full(len(failed), 0.03), **bottom)
        if words := counted(own):
            said.append(f"{LABELS[series]}: {words}")
    above = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "fontsize": 5}
    ax.annotate("; ".join(said), (0.5, 1), (0, 3), **above)
    ax.set_title(PANELS[rows["metric"].iloc[0]], pad=11 if said else None)
    ax.plot(theirs["x"], theirs["value"], **PUBLISHED)
    ax.set_xscale("log")
    values = sorted({*rows["x"], *theirs["x"]})
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.minorticks_off()
    ax.margins(x=0.12, y=0.14)
    ax.set_xlabel("factors")
