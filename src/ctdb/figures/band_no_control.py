"""LFADS and BAND without a controller, and with one that sees the past alone, beside those with a whole one."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from pydantic import Field

from ctdb.errors import MissingError
from ctdb.figures import FIGURES
from ctdb.figures.base import WIDTH, Figure, FigureSettings, say_missing
from ctdb.figures.fit_points import LABELS, LOOKS, Points, draw_column, named, points_of, say_below, score_needs, told
from ctdb.figures.planned import Need, Planned
from ctdb.figures.published import STYLE as PUBLISHED
from ctdb.figures.published import comparison, published
from ctdb.settings import NonEmpty

Series = Literal[
    "lfads", "lfads_causal", "lfads_no_control", "lfads_no_control_causal",
    "band", "band_causal", "band_no_control", "band_no_control_causal",
]  # fmt: skip
VARIANTS = {
    "": "controller",
    "_causal": "causal\ncontroller",
    "_no_control": "none",
    "_no_control_causal": "none,\ncausal",
}
"""End of a series' name to what is said of its controller."""
ABOVE = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center"}
PANELS = {
    "behavior_r2": "R² of behaviour",
    "behavior_r2_ridge_sequence": "R², ridge, all bins",
    "bits_per_spike_heldin": "bits per spike",
}


class BandNoControlSettings(FigureSettings):
    """Settings of figure `band_no_control`; `datasets`, `models` and `published` as in `band_decoding`.

    `models` maps `lfads` and `band`, and each with `_causal` (a controller that sees the past), `_no_control` and
    `_no_control_causal` after its name, to our names of such models.
    """

    datasets: NonEmpty[str]
    models: dict[Series, str] = Field(min_length=1)
    published: bool = False


@FIGURES.register("band_no_control")
class BandNoControl(Figure):
    """A point per fit and a bar for the mean of several: models with a controller, with a causal one, and with none.

    Without a controller a trial's initial condition alone tells it from others. Diamonds, where there are any, are
    published values of another session, those of BAND in the first panel and those of LFADS in the second, by how they
    were decoded.
    """

    Settings = BandNoControlSettings
    partial = True

    @staticmethod
    def needs(settings: BandNoControlSettings, planned: Planned) -> list[Need]:
        """Scores of the models."""
        return score_needs(planned, settings.datasets, settings.models.values())

    @staticmethod
    def draw(settings: BandNoControlSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw a panel per score."""
        points = _points(settings, files)
        theirs = published("band_no_control") if settings.published else published("band_no_control").iloc[:0]
        canvas, axes = plt.subplots(len(PANELS), 1, figsize=(WIDTH, 5.2), sharex=True, layout="constrained")
        places = {
            f"{model}{variant}": float(number) + 0.6 * (model == "band")
            for number, (model, variant) in enumerate((model, variant) for model in LABELS for variant in VARIANTS)
        }
        for ax, (metric, title) in zip(axes, PANELS.items(), strict=True):
            ax.set_ylabel(title)
            known = theirs[theirs["metric"] == metric]
            if points.table[points.table["metric"] == metric].empty and known.empty:
                say_missing(ax, MissingError(next(iter(points.missing.values()), "no fit has this score")))
                continue
            for series, at in places.items():
                colour, marker = LOOKS[series.partition("_")[0]]
                own = points.of(series, metric)
                draw_column(ax, at, own, colour, marker, filled="no_control" not in series)
                values = known.loc[known["series"] == series, "value"]
                ax.plot(np.full(len(values), at + 0.38), values, **PUBLISHED)
            ax.margins(y=0.15)
        _say_what_is_missing(canvas, axes, places, points, settings)
        labels = [VARIANTS[series.removeprefix("lfads").removeprefix("band")] for series in places]
        axes[-1].set_xticks(list(places.values()), labels)
        axes[-1].set_xlim(-0.6, max(places.values()) + 0.6)
        for model, name in LABELS.items():
            middle = np.mean([at for series, at in places.items() if series.startswith(model)])
            axes[0].annotate(name, (middle, 1), (0, 3), **ABOVE, color=LOOKS[model][0])
        if settings.published:
            handles = [Line2D([], [], label="published", **PUBLISHED)]
            canvas.legend(handles=handles, loc="outside upper right")
        canvas.suptitle(f"{named(settings.datasets)}: models with and without a controller", x=0.02, ha="left")
        return canvas, points.table

    @staticmethod
    def reproduction(settings: BandNoControlSettings, files: Mapping[Need, str]) -> pd.DataFrame:
        """Ours beside the published numbers; empty where these are not asked for."""
        rows = comparison("band_no_control", _points(settings, files).table.assign(x=""))
        return rows if settings.published else rows.iloc[:0]

    @staticmethod
    def findings(settings: BandNoControlSettings, table: pd.DataFrame) -> str:
        """R² with and without a controller."""
        sentences = []
        for model, name in LABELS.items():
            said = []
            for variant, words in VARIANTS.items():
                rows = table[(table["series"] == model + variant) & (table["metric"] == "behavior_r2")]
                if len(rows):
                    words = words.replace("\n", " ").replace("none", "no controller")
                    said.append(f"{told(rows)} with {words}")
            if said:
                sentences.append(f"{name}: R² of behaviour {', '.join(said)}.")
        return " ".join(sentences)


def _points(settings: BandNoControlSettings, files: Mapping[Need, str]) -> Points:
    points = points_of(files, settings.datasets, settings.models)
    table = points.table[points.table["metric"].isin(list(PANELS))]
    return Points(
        table.sort_values(["series", "metric", "dataset", "session", "seed"], ignore_index=True), points.missing
    )


def _say_what_is_missing(
    canvas: Canvas, axes: np.ndarray, places: Mapping[str, float], points: Points, settings: BandNoControlSettings
) -> None:
    """In the place of each series without fits that it is missing, and below all panels why."""
    reasons = []
    for series, at in places.items():
        reason = points.missing.get(series, "" if series in settings.models else f"models.{series} is not set")
        if reason:
            reasons.append(reason)
            for ax in axes:
                write = {"ha": "center", "va": "bottom", "fontsize": 5, "color": "0.35"}
                ax.text(at, 0.02, "missing", transform=ax.get_xaxis_transform(), **write)
    say_below(canvas, reasons)
