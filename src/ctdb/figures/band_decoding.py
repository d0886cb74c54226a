"""How well behaviour is decoded: LFADS and BAND beside what needs no model, and beside shuffled data."""

import textwrap
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
from ctdb.figures.base import WIDTH, Figure, FigureSettings
from ctdb.figures.fit_points import (
    LABELS,
    LOOKS,
    counted,
    difference_between,
    named,
    points_of,
    reported,
    score_needs,
    told,
    why_missing,
)
from ctdb.figures.planned import Need, Planned
from ctdb.figures.published import STYLE as PUBLISHED
from ctdb.figures.published import comparison, published
from ctdb.metrics import Case
from ctdb.metrics.behavior import behavior_r2_sums, condition_means
from ctdb.scores import BASELINE, SMOOTHED
from ctdb.settings import NonEmpty

DECODERS = {
    "behavior_r2": ("the model's own", "o"),
    "behavior_r2_ridge": ("ridge regression from the same bin", "^"),
    "behavior_r2_ridge_sequence": ("ridge regression from all bins", "s"),
}
"""What decodes, by the score of it: its words and its marker."""
NO_MODEL = "0.35"
ROWS = {
    "band": LABELS["band"],
    "lfads": LABELS["lfads"],
    "ridge_on_spikes": "spikes",
    "smoothed_spikes": "smoothed spikes",
    "condition_mean": "condition means",
    "behavior_shuffled": "BAND, behaviour shuffled",
    "neurons_shuffled": "BAND, neurons shuffled",
}
THEIRS = {
    "band": "BAND",
    "lfads": "LFADS",
    "birnn": "bidirectional RNN",
    "condition_mean": "condition means",
    "psid": "PSID",
    "cebra": "CEBRA",
}
HERE = "this session"
"""`x` of published numbers that are of the very recording of ours."""
HEADLINE = "C 10-07 AD"
"""`x` of the published numbers of another session, of which there is one for every model."""
BEHIND = {"fc": "white", "ec": "none", "pad": 0.5}
LEFT_OUT = -0.3
"""Scores below are drawn at the edge."""


class BandDecodingSettings(FigureSettings):
    """Settings of figure `band_decoding`; `published` draws the published numbers beside, which are of a reaching task.

    `datasets` are drawn as one, such as the folds of a recording; `models` maps `lfads` and `band` to our names of
    them.
    """

    datasets: NonEmpty[str]
    models: dict[Literal["lfads", "band"], str] = Field(min_length=1)
    behavior_shuffled: str = ""
    neurons_shuffled: str = ""
    published: bool = False


@FIGURES.register("band_decoding")
class BandDecoding(Figure):
    """R² of behaviour on trials that neither trained nor selected: a hollow point per fit, filled the mean of them.

    Markers tell what decodes. Spikes and smoothed spikes are decoded without any model. Condition means give each trial
    the mean behaviour of its condition's train trials, and so nothing that single trials differ by. On shuffled data,
    what is decoded was learned from the labels and not from the neurons. Diamonds, where there are any, are published
    values: on the left those that were measured on this very recording, on the right those of other sessions and
    animals, which show what to expect, and which nothing of ours is to equal.
    """

    Settings = BandDecodingSettings
    partial = True

    @staticmethod
    def needs(settings: BandDecodingSettings, planned: Planned) -> list[Need]:
        """Scores of the models, of what needs no model, and of BAND on shuffled data; the data sets."""
        shuffled = [name for name in (settings.behavior_shuffled, settings.neurons_shuffled) if name]
        band = [settings.models["band"]] if "band" in settings.models else []
        return [
            *(("dataset", name) for name in settings.datasets),
            *score_needs(planned, settings.datasets, settings.models.values()),
            *score_needs(planned, shuffled, band),
        ]

    @staticmethod
    def draw(settings: BandDecodingSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw a row per model, and the published numbers of other sessions beside them where they are asked for."""
        table, missing = _ours(settings, files)
        theirs = published("band_decoding") if settings.published else published("band_decoding").iloc[:0]
        height = 0.95 + 0.42 * len(ROWS)
        canvas = plt.figure(figsize=(WIDTH if settings.published else 0.72 * WIDTH, height), layout="constrained")
        widths = [1.6, 1] if settings.published else [1]
        ours, *others = canvas.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
        _draw_ours(ours, table, missing, theirs[theirs["x"] == HERE])
        for ax in others:
            _draw_theirs(ax, theirs[theirs["x"] != HERE])
            ax.set_xlim(min(0.5, theirs["value"].min() - 0.02), 1)
        handles = [
            Line2D([], [], ls="none", marker=marker, ms=3.5, mec="0.2", mfc="none", label=words)
            for words, marker in DECODERS.values()
        ]
        if settings.published:
            handles.append(Line2D([], [], label="published", **PUBLISHED))
        canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles), title="decoder")
        canvas.suptitle(f"{named(settings.datasets)}: behaviour decoded", x=0.02, ha="left")
        drawn = [table.assign(of="ours")]
        if settings.published:
            drawn.append(theirs[["series", "x", "metric", "value", "source", "note"]].assign(of="published"))
        return canvas, pd.concat([part for part in drawn if len(part)] or drawn[:1], ignore_index=True)

    @staticmethod
    def reproduction(settings: BandDecodingSettings, files: Mapping[Need, str]) -> pd.DataFrame:
        """Ours beside the published numbers of the same models; empty where these are not asked for."""
        table, _ = _ours(settings, files)
        rows = comparison("band_decoding", pd.concat([table.assign(x=x) for x in (HERE, HEADLINE)]))
        chosen = rows["series"].isin(list(ROWS)) & rows["x"].isin([HERE, HEADLINE]) & settings.published
        return rows[chosen].reset_index(drop=True)

    @staticmethod
    def findings(settings: BandDecodingSettings, table: pd.DataFrame) -> str:
        """R² of each model, and how BAND compares with LFADS and with the condition means."""
        ours = table[table["of"] == "ours"]
        sentences = []
        for series in ("band", "lfads", "ridge_on_spikes", "condition_mean", "behavior_shuffled", "neurons_shuffled"):
            rows = ours[(ours["series"] == series) & (ours["metric"] == "behavior_r2")]
            if len(rows):
                of = "data sets" if rows["seed"].isna().all() else "fits"
                sentences.append(f"{ROWS[series]}: R² {told(rows, of)}.")
        difference = difference_between(ours, "behavior_r2")
        if len(difference):
            above = int((difference > 0).sum())
            sentences.append(
                f"BAND is above LFADS in {above} of {len(difference)} pairs of fits, by {difference.mean():.3f} on "
                "average."
            )
        return " ".join(sentences)


def _ours(settings: BandDecodingSettings, files: Mapping[Need, str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Every point of ours, and by series the reason where there is none."""
    points = points_of(files, settings.datasets, settings.models)
    parts, missing = [points.table[points.table["metric"].isin(list(DECODERS))]], dict(points.missing)
    for series in ("lfads", "band"):
        if series not in settings.models:
            missing[series] = f"models.{series} is not set"
    baselines = {BASELINE: "ridge_on_spikes", SMOOTHED: "smoothed_spikes"}
    for dataset in settings.datasets:
        scores = reported(files, dataset)
        rows = scores[scores["model"].isin(list(baselines)) & scores["metric"].isin(list(DECODERS))]
        parts.append(rows.assign(series=rows["model"].map(baselines))[points.table.columns])
    for series in baselines.values():
        if not any((part["series"] == series).any() for part in parts):
            missing[series] = why_missing(files, settings.datasets, series)
    means, reasons = _condition_means(settings.datasets, files)
    parts.append(means)
    if means.empty:
        missing["condition_mean"] = "; ".join(reasons) or "nothing to average"
    for series in ("behavior_shuffled", "neurons_shuffled"):
        name = getattr(settings, series)
        if not name or "band" not in settings.models:
            missing[series] = f"{series} is not set" if not name else "models.band is not set"
            continue
        shuffled = points_of(files, [name], {series: settings.models["band"]})
        parts.append(shuffled.table[shuffled.table["metric"].isin(list(DECODERS))])
        missing |= shuffled.missing
    table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    return table.sort_values(["series", "metric", "dataset", "session", "seed"], ignore_index=True), missing


def _condition_means(names: list[str], files: Mapping[Need, str]) -> tuple[pd.DataFrame, list[str]]:
    """R² of the mean behaviour of each trial's condition, per data set and session, and where it cannot be had."""
    rows, reasons = [], []
    for name in names:
        try:
            sessions = datasets.read(files["dataset", name]).sessions
        except MissingError as error:
            reasons.append(str(error))
            continue
        for session, dataset in sessions.items():
            case = Case(dataset, {}, dataset.report_split)
            row = {
                "dataset": name,
                "session": session,
                "series": "condition_mean",
                "model": "",
                "metric": "behavior_r2",
            }
            try:
                score = behavior_r2_sums(case.known("behavior"), condition_means(case), case.trials.n_bins).value
            except MetricError as error:
                reasons.append(str(error))
                continue
            rows.append(row | {"metric": "behavior_r2", "seed": pd.NA, "value": score, "status": "ok"})
    return pd.DataFrame(rows), list(dict.fromkeys(reasons))


def _draw_ours(ax: Axes, table: pd.DataFrame, missing: Mapping[str, str], here: pd.DataFrame) -> None:
    """Rows from above; in each, what decodes with which marker."""
    values = pd.concat([table["value"], here["value"]]).dropna().astype(float)
    low = max(LEFT_OUT, min(0.0, values.min() - 0.03)) if len(values) else 0.0
    ax.set_xlim(low, 1.17)
    ax.axvline(0, color="0.85", lw=0.6, zorder=0)
    for place, series in enumerate(ROWS):
        own = table[table["series"] == series]
        colour = LOOKS.get(series.partition("_")[0] if series in LOOKS else series, (NO_MODEL, ""))[0]
        if series in missing:
            words = textwrap.fill(f"missing: {missing[series]}", 56)
            middle = {"transform": ax.get_yaxis_transform(), "ha": "center", "va": "center"}
            ax.text(0.5, -place, words, **middle, fontsize=5, color="0.35", bbox=BEHIND)
            continue
        present = [metric for metric in DECODERS if (own["metric"] == metric).any()]
        for line, metric in enumerate(present):
            rows = own[own["metric"] == metric]
            at = -place + 0.24 * ((len(present) - 1) / 2 - line)
            marker = _marker(series, metric)
            good = rows["value"].dropna().astype(float).to_numpy()
            shown = np.maximum(good, low)
            ax.plot(shown, np.full(len(good), at), ls="none", marker=marker, ms=3, mec=colour, mfc="none", mew=0.6)
            if len(good):
                if len(good) > 1:
                    ax.plot([shown.min(), shown.max()], [at, at], color=colour, lw=0.7)
                ax.plot(max(good.mean(), low), at, marker=marker, ms=4, mec=colour, mfc=colour)
            words = f"{good.mean():.3f}" if len(good) else "–"
            outside = " (below the axis)" if len(good) and good.mean() < low else ""
            words = ", ".join(filter(None, [words + outside, counted(rows)]))
            ax.text(1.03, at, words, va="center", fontsize=5, color=colour)
        known = here[here["series"] == series]
        ax.plot(known["value"], np.full(len(known), -place), **PUBLISHED)
    ax.set_yticks([-place for place in range(len(ROWS))], list(ROWS.values()))
    ax.set_ylim(-len(ROWS) + 0.4, 0.6)
    ax.set_xlabel("R² of behaviour")
    ax.set_title("here")


def _marker(series: str, metric: str) -> str:
    """Marker of what decodes; spikes have no decoder of their own but a regression from all bins, means none at all."""
    if series == "condition_mean":
        return "P"
    return DECODERS["behavior_r2_ridge_sequence" if series == "ridge_on_spikes" else metric][1]


def _draw_theirs(ax: Axes, theirs: pd.DataFrame) -> None:
    """Rows of published numbers, a diamond per session."""
    for place, series in enumerate(THEIRS):
        rows = theirs[theirs["series"] == series]
        ax.plot(rows["value"], np.full(len(rows), -place), **PUBLISHED)
        ax.text(1.0, -place + 0.3, f"n = {len(rows)}", ha="right", va="center", fontsize=5, color="0.35")
    ax.set_yticks([-place for place in range(len(THEIRS))], list(THEIRS.values()))
    ax.set_ylim(-len(THEIRS) + 0.4, 0.6)
    ax.set_xlabel("R² of behaviour")
    ax.set_title("published, other sessions")
