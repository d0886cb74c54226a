"""Do scores that need the truth follow from scores that need none? Figure 5 of CtDB: a sweep of the latent size."""

from collections.abc import Iterator, Mapping
from typing import Annotated

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from pydantic import Field

from ctdb.errors import MissingError
from ctdb.figures import FIGURES
from ctdb.figures.base import WIDTH, Figure, FigureSettings, say_missing
from ctdb.figures.planned import Need, Planned
from ctdb.figures.published import STYLE, comparison
from ctdb.figures.sweeps import (
    draw_fits,
    draw_published,
    in_rows,
    label_of,
    styles_of,
    sweep_needs,
    sweep_scores,
    text_of,
)

KIND = "ctd_fig5"


class CtdFig5Settings(FigureSettings):
    """Settings of figure `ctd_fig5`.

    `model` is the neural ODE, or whatever is to be compared with that of CtDB, and `gru` a second model; both are
    swept over `key`. `metrics` are those of rates, states and spikes, and the cycle consistency, in this order.
    """

    dataset: str
    model: str | None = None
    gru: str | None = None
    key: str = "latent_size"
    metrics: Annotated[list[str], Field(min_length=4, max_length=4)] = [
        "rate_r2",
        "state_r2_true_to_inferred",
        "co_bps_ctd",
        "cycle_consistency",
    ]

    @property
    def series(self) -> dict[str, str]:
        """Models by the series of published numbers that they are compared with."""
        models = {"node": self.model, "gru": self.gru}
        return {series: model for series, model in models.items() if model is not None}

    @property
    def panels(self) -> list[tuple[str, str]]:
        """Metrics across and up in each panel."""
        rates, states, spikes, cycle = self.metrics
        return [(rates, spikes), (states, cycle), (rates, states), (spikes, cycle)]


@FIGURES.register("ctd_fig5")
class CtdFig5(Figure):
    """Scores that need the truth against scores that need none, over fits with latent states of many sizes.

    A point is a fit, its colour and marker the size of its latent state; the line is the regression over all fits,
    with Pearson's r. Hollow diamonds are the means that CtDB published, tied to our means of the same size. Where r is
    near 1, the score without truth can stand in for the one with it: co-bps for how well the rates were found, cycle
    consistency for whether states were invented.
    """

    Settings = CtdFig5Settings
    partial = True

    @staticmethod
    def needs(settings: CtdFig5Settings, planned: Planned) -> list[Need]:
        """Scores of the fits of the sweeps."""
        models = settings.series.values()
        needs = [sweep_needs(planned, settings.dataset, model, settings.key, settings.metrics) for model in models]
        return [need for own in needs for need in own]

    @staticmethod
    def draw(settings: CtdFig5Settings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw a row of panels for each model, of the split that scores are reported on."""
        found = {}
        for series, model in settings.series.items():
            try:
                found[series] = sweep_scores(files, settings.dataset, model, settings.key, settings.metrics)
            except MissingError as error:
                found[series] = error
        return _draw(settings, found)

    @staticmethod
    def findings(settings: CtdFig5Settings, table: pd.DataFrame) -> str:
        """The correlations, and how many fits have no scores."""
        sentences = []
        for model in settings.series.values():
            own = table[table["model"].str.partition("@")[0] == model] if len(table) else table
            if own.empty:
                continue
            lines = own[(own["drawn"] == "regression") & own["r"].notna()]
            told = [f"{label_of(row.across)} and {label_of(row.up)} {row.r:.2f}" for row in lines.itertuples()]
            if told:
                sentences.append(f"{model}, Pearson's r over fits: {'; '.join(told)}.")
            fits = own[own["drawn"] == "fit"].drop_duplicates(["model", "seed"])
            if len(bad := fits[fits["status"] != "ok"]):
                sentences.append(f"{len(fits) - len(bad)} of {len(fits)} fits of {model} went well.")
        return " ".join(sentences)

    @staticmethod
    def reproduction(settings: CtdFig5Settings, files: Mapping[Need, str]) -> pd.DataFrame:
        """Means by size and the correlations, beside those of CtDB."""
        rows = [rows for _, rows in _ours(settings, files)]
        if not rows:
            raise MissingError(f"fits to {settings.dataset!r} that sweep {settings.key!r}")
        return comparison(KIND, pd.concat(rows, ignore_index=True))


def _ours(settings: CtdFig5Settings, files: Mapping[Need, str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Series and our rows to compare, of the sweeps that there are."""
    for series, model in settings.series.items():
        try:
            fits = sweep_scores(files, settings.dataset, model, settings.key, settings.metrics)
        except MissingError:
            continue
        yield series, _rows(settings, series, fits)


def _rows(settings: CtdFig5Settings, series: str, fits: pd.DataFrame) -> pd.DataFrame:
    """Scores of the fits, and their correlations, as rows to compare with published ones."""
    correlations = [
        {"x": "", "model": fits["model"].iloc[0], "metric": f"r_{across}_{up}"}
        | {"value": line_of(fits, across, up)["r"]}
        for across, up in settings.panels
    ]
    of_all = pd.DataFrame(correlations).assign(dataset=settings.dataset, series=series)
    rows = in_rows(fits, settings.dataset, series, settings.metrics).astype({"x": object})
    return pd.concat([rows, of_all], ignore_index=True)


def line_of(fits: pd.DataFrame, across: str, up: str) -> dict[str, float]:
    """Regression of one score on another over the `n` fits that have both: `r`, `slope`, `intercept`.

    They are NaN for fewer than three fits, or where a score is the same for all.
    """
    x, y = fits.loc[np.isfinite(fits[across]) & np.isfinite(fits[up]), [across, up]].to_numpy(float).T
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"r": np.nan, "slope": np.nan, "intercept": np.nan, "n": len(x)}
    slope, intercept = np.polyfit(x, y, 1)
    return {"r": np.corrcoef(x, y)[0, 1], "slope": slope, "intercept": intercept, "n": len(x)}


def _draw(settings: CtdFig5Settings, found: Mapping[str, pd.DataFrame | MissingError]) -> tuple[Canvas, pd.DataFrame]:
    if not found:
        found = {"": MissingError("a model to draw; name one in `model` or `gru` of the figure")}
    heights = [0.5 if isinstance(fits, MissingError) else 1.75 for fits in found.values()]
    size = (WIDTH, 0.75 + sum(heights))
    canvas, axes = plt.subplots(
        len(found), 4, squeeze=False, figsize=size, layout="constrained", gridspec_kw={"height_ratios": heights}
    )
    sweeps = [fits for fits in found.values() if isinstance(fits, pd.DataFrame)]
    styles = styles_of(pd.concat([fits["x"] for fits in sweeps])) if sweeps else {}
    tables = []
    for row, (series, fits) in zip(axes, found.items(), strict=True):
        if isinstance(fits, MissingError):
            place = row[0].get_subplotspec()
            for ax in row:
                ax.remove()
            say_missing(canvas.add_subplot(place.get_gridspec()[place.rowspan.start, :]), fits)
            continue
        compared = comparison(KIND, _rows(settings, series, fits)).query("series == @series")
        for ax, (across, up) in zip(row, settings.panels, strict=True):
            if not (np.isfinite(fits[across]) & np.isfinite(fits[up])).any():
                both = f"{label_of(across)} and {label_of(up)}"
                say_missing(ax, MissingError(f"fits with both {both}; none of {len(fits)} has them"))
                continue
            line = _draw_panel(ax, fits, across, up, styles)
            theirs = draw_published(ax, compared, across, up)
            kept = fits[["model", "seed", "status", "x"]].assign(drawn="fit", at=fits[across], to=fits[up])
            parts = [kept, theirs.rename(columns={"across": "at", "up": "to"}).assign(drawn="published")]
            parts.append(pd.DataFrame([line]).assign(drawn="regression"))
            table = pd.concat(parts, ignore_index=True).assign(across=across, up=up, series=series)
            tables.append(table.fillna({"model": settings.series[series]}))
        row[0].set_title(settings.series[series], loc="left", pad=10)
    handles = [Line2D([], [], label=text_of(value), **style) for value, style in styles.items()]
    handles.append(Line2D([], [], label="published", **STYLE))
    canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles), title=settings.key)
    canvas.suptitle(f"{settings.dataset}: scores with and without the truth", x=0.02, ha="left")
    columns = [
        "series",
        "model",
        "drawn",
        "x",
        "seed",
        "status",
        "across",
        "up",
        "at",
        "to",
        "r",
        "slope",
        "intercept",
        "n",
    ]
    table = pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
    return canvas, table.rename(columns={"x": settings.key})


def _draw_panel(
    ax: Axes, fits: pd.DataFrame, across: str, up: str, styles: Mapping[float, Mapping[str, object]]
) -> dict[str, float]:
    """Points and their regression line, which is returned."""
    good, line = draw_fits(ax, fits, across, up, styles), line_of(fits, across, up)
    said = f"n = {line['n']}"
    if np.isfinite(line["r"]):
        ends = np.array([good[across].min(), good[across].max()])
        ax.plot(ends, line["intercept"] + line["slope"] * ends, color="0.35", lw=0.8, zorder=2)
        said = f"r = {line['r']:.2f}, {said}"
    if len(good) < len(fits):
        said += f" of {len(fits)}"
    ax.annotate(said, (1, 1), (0, 2), "axes fraction", "offset points", ha="right", fontsize=6, color="0.25")
    return line
