"""Small variability of behaviour: what single trials deviate by from their condition, and how pushes are corrected."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from pydantic import Field, model_validator

from ctdb.datasets import SpikeDataset
from ctdb.errors import DatasetError, MissingError
from ctdb.figures import FIGURES
from ctdb.figures.base import (
    TRUTH_COLOUR,
    WIDTH,
    Figure,
    FigureSettings,
    fit_outputs,
    fit_title,
    read_session,
    say_missing,
)
from ctdb.figures.fit_points import (
    LABELS,
    LOOKS,
    Points,
    draw_column,
    points_of,
    score_needs,
    told,
)
from ctdb.figures.planned import Need, Planned
from ctdb.figures.published import STYLE as PUBLISHED
from ctdb.figures.published import comparison, published
from ctdb.metrics import Case
from ctdb.metrics.behavior import condition_means, known_behavior
from ctdb.metrics.r2 import linear_map
from ctdb.settings import Count, Seed

METRIC = "behavior_r2_uive"
HEADLINE = "C 10-07, five folds"
"""`x` of the published numbers that there are of both models."""
LEFT_OUT = -1.5
"""Scores below are not drawn, but told."""


class BandSmallVariabilitySettings(FigureSettings):
    """Settings of figure `band_small_variability`.

    `models` maps `lfads` and `band` to our names of them. `pushes` maps true inputs that push what moves to the
    channels of behaviour along the same axes; with it, trials are aligned on their first push and drawn from `before_s`
    before it to `after_s` after. `published` draws the published numbers, which are of a reaching task.
    """

    dataset: str
    models: dict[Literal["lfads", "band"], str] = Field(min_length=1)
    session: str = ""
    seed: Seed = 0
    n_trials: Count = 4
    pushes: dict[str, str] = {}
    before_s: float = Field(0.1, ge=0)
    after_s: float = Field(0.5, gt=0)
    published: bool = False

    @model_validator(mode="after")
    def _channels_are_paired(self) -> "BandSmallVariabilitySettings":
        if len(set(self.pushes.values())) < len(self.pushes):
            raise ValueError(f"pushes {self.pushes} must name another channel of behaviour for each input")
        return self


@dataclass(frozen=True)
class Deviations:
    """Behaviour of the reported trials less the mean of their condition, in standard deviations of the train trials.

    Attributes
    ----------
    true
        What was recorded (trials, bins, channels); NaN where it is not known.
    decoded
        Series to what it decodes.
    channels
        Names.
    """

    true: Float[np.ndarray, "trials bins channels"]
    decoded: dict[str, Float[np.ndarray, "trials bins channels"]]
    channels: list[str]


@FIGURES.register("band_small_variability")
class BandSmallVariability(Figure):
    """Behaviour of single trials less the mean of their condition's train trials: recorded, and decoded by each model.

    Each point above is a bin of a channel, in standard deviations of the train trials. On the right is the share of the
    variance around the condition means that each fit explains (UIVE), with a number at the bottom for points below the
    axis. Diamonds, where there are any, are published values of another session. Below are the trials that deviate
    most, each of another condition; or, where it is known what pushed in a trial, means over trials that are aligned on
    the push, along its direction: black what was, solid what a model infers, dashed without its inferred inputs. These
    are drawn as their image in the push, by a linear regression on the train trials.
    """

    Settings = BandSmallVariabilitySettings
    partial = True

    @staticmethod
    def needs(settings: BandSmallVariabilitySettings, planned: Planned) -> list[Need]:
        """Data set, scores of all seeds of the models, and the outputs of one."""
        return [
            ("dataset", settings.dataset),
            *score_needs(planned, [settings.dataset], settings.models.values()),
            *(("fit", settings.dataset, model, settings.seed) for model in settings.models.values()),
        ]

    @staticmethod
    def draw(settings: BandSmallVariabilitySettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the trials of the split that scores are reported on."""
        dataset = read_session(files["dataset", settings.dataset], settings.session)
        fits, reasons, titles = {}, {}, {}
        for series, model in settings.models.items():
            try:
                path = files["fit", settings.dataset, model, settings.seed]
            except MissingError as error:
                reasons[series] = error
                continue
            outputs = {split: fit_outputs(path, split, settings.session) for split in ("train", dataset.report_split)}
            if "behavior" in outputs["train"]:
                fits[series], titles[series] = outputs, fit_title(path, LABELS[series])
            else:
                reasons[series] = MissingError(f"behaviour that {model!r} decodes: it decodes none")
        points = _points(settings, files)
        canvas = plt.figure(figsize=(WIDTH, 4.5), layout="constrained")
        above, below = canvas.subfigures(2, 1, height_ratios=[1.15, 1])
        axes = above.subplots(1, len(settings.models) + 1, squeeze=False)[0]
        parts = []
        try:
            deviations = _deviations(dataset, fits)
        except MissingError as error:
            deviations = None
            for ax in axes[:-1]:
                say_missing(ax, error)
        else:
            limit = 1.05 * max(float(np.nanmax(np.abs(deviations.true))), 1e-9)
            for ax, series in zip(axes, settings.models, strict=False):
                if series in reasons:
                    say_missing(ax, reasons[series])
                    ax.set_title(LABELS[series])
                else:
                    parts.append(_draw_bins(ax, deviations, series, limit))
                    ax.set_title(titles[series])
            axes[0].set_ylabel("decoded deviation (s.d.)")
        parts.append(_draw_scores(axes[-1], settings, points))
        if settings.pushes:
            parts += _draw_pushes(below, settings, dataset, fits)
        elif deviations is not None:
            parts += _draw_trials(below, settings, dataset, deviations)
        lines = [Line2D([], [], color=TRUTH_COLOUR, lw=1.2, label="true")]
        lines += [Line2D([], [], color=LOOKS[series][0], label=LABELS[series]) for series in fits]
        if settings.pushes:
            lines.append(Line2D([], [], color="0.4", ls="--", lw=0.8, label="without inferred inputs"))
        if settings.published:
            lines.append(Line2D([], [], label="published", **PUBLISHED))
        canvas.legend(handles=lines, loc="outside lower center", ncols=len(lines))
        title = f"{settings.dataset}: {dataset.report_split} trials less the means of their conditions"
        canvas.suptitle(title, x=0.02, ha="left")
        return canvas, pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)

    @staticmethod
    def reproduction(settings: BandSmallVariabilitySettings, files: Mapping[Need, str]) -> pd.DataFrame:
        """Ours beside the published numbers; empty where these are not asked for."""
        rows = comparison("band_small_variability", _points(settings, files).table.assign(x=HEADLINE))
        return rows[(rows["x"] == HEADLINE) & settings.published].reset_index(drop=True)

    @staticmethod
    def findings(settings: BandSmallVariabilitySettings, table: pd.DataFrame) -> str:
        """Scores, and how much of the mean course after a push is decoded."""
        sentences = []
        for series in settings.models:
            rows = table[(table["panel"] == "scores") & (table["series"] == series)]
            if rows["value"].notna().any():
                sentences.append(f"{LABELS[series]} explains {told(rows)} of the variance around the condition means.")
        curves = table[table["panel"] == "behaviour along the push"]
        if len(curves):
            curves = curves.pivot(index="time_s", columns="series", values="value").dropna()
            true = curves["true"]
            for series in curves.columns.intersection(list(settings.models)):
                left = ((curves[series] - true) ** 2).sum() / ((true - true.mean()) ** 2).sum()
                sentences.append(f"{LABELS[series]} decodes the mean course around a push with R² {1 - left:.3f}.")
        return " ".join(sentences)


def _points(settings: BandSmallVariabilitySettings, files: Mapping[Need, str]) -> Points:
    points = points_of(files, [settings.dataset], settings.models)
    table = points.table
    return Points(table[(table["metric"] == METRIC) & (table["session"] == settings.session)], points.missing)


def _deviations(dataset: SpikeDataset, fits: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> Deviations:
    """Raises MissingError where conditions, behaviour or all fits are missing."""
    split = dataset.report_split
    if dataset.n_behaviors == 0 or dataset[split].condition is None:
        raise MissingError("behaviour and conditions of the trials, which the data set does not have")
    case = Case(dataset, {}, split)
    mean = condition_means(case)
    spread = np.nanstd(known_behavior(case, "train"), (0, 1))
    true = (known_behavior(case, split) - mean) / spread
    decoded = {
        series: (outputs[split]["behavior"][:, : true.shape[1]] - mean) / spread for series, outputs in fits.items()
    }
    names = dataset.names.get("behavior") or [f"behaviour {channel}" for channel in range(true.shape[2])]
    return Deviations(true, decoded, names)


def _draw_bins(ax: Axes, deviations: Deviations, series: str, limit: float) -> pd.DataFrame:
    """Decoded against true deviation of each bin, a shade per channel."""
    colour, marker = LOOKS[series]
    ax.plot([-limit, limit], [-limit, limit], color="0.75", lw=0.6, zorder=0)
    decoded = deviations.decoded[series]
    parts = []
    for channel, name in enumerate(deviations.channels):
        known = ~np.isnan(deviations.true[..., channel])
        x, y = deviations.true[..., channel][known], decoded[..., channel][known]
        face = colour if channel == 0 else "none"
        ax.plot(x, y, ls="none", marker=marker, ms=1.6, mec=colour, mfc=face, mew=0.35, alpha=0.7, rasterized=True)
        trial, time = np.nonzero(known)
        columns = {"series": series, "channel": name, "trial": trial, "bin": time, "true": x, "value": y}
        parts.append(pd.DataFrame({"panel": "bins"} | columns))
    if len(deviations.channels) > 1:
        words = f"filled: {deviations.channels[0]}\nhollow: {', '.join(deviations.channels[1:])}"
        ax.text(0.03, 0.97, words, transform=ax.transAxes, va="top", fontsize=5, color="0.35")
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-limit, limit)
    ax.set_aspect("equal")
    ax.set_xlabel("true deviation (s.d.)")
    return pd.concat(parts, ignore_index=True)


def _draw_scores(ax: Axes, settings: BandSmallVariabilitySettings, points: Points) -> pd.DataFrame:
    """R² around the condition means of every seed."""
    theirs = published("band_small_variability")
    values = points.table["value"].dropna().astype(float)
    shown = [*values, *(theirs["value"] if settings.published else [])]
    if not shown:
        reasons = [*points.missing.values(), "no fit has this score"]
        say_missing(ax, MissingError(reasons[0]))
        return pd.DataFrame()
    low, high = max(LEFT_OUT, min(0.0, *shown)), max(0.1, *shown)
    ax.set_ylim(low - 0.12 * (high - low), high + 0.12 * (high - low))
    ax.axhline(0, color="0.85", lw=0.6, zorder=0)
    for place, series in enumerate(settings.models):
        rows = points.of(series, METRIC)
        colour, marker = LOOKS[series]
        draw_column(ax, float(place), rows[~(rows["value"] < low)], colour, marker)
        if len(outside := rows[rows["value"] < low]):
            words = f"{outside['value'].astype(float).mean():.1f}"
            at_axis = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            ax.annotate(words, (place, 0), (0, 8), **at_axis, ha="center", fontsize=5, color=colour)
        known = theirs[theirs["series"] == series]
        if settings.published:
            ax.plot(np.full(len(known), place + 0.38), known["value"], **PUBLISHED)
    ax.set_xticks(range(len(settings.models)), [LABELS[series] for series in settings.models])
    ax.set_xlim(-0.6, len(settings.models) - 0.4)
    ax.set_title("R² around condition means (UIVE)")
    return points.table[["series", "seed", "value", "status"]].assign(panel="scores")


def _draw_trials(
    figure: SubFigure, settings: BandSmallVariabilitySettings, dataset: SpikeDataset, deviations: Deviations
) -> list[pd.DataFrame]:
    """The trials that deviate most, each of another condition; channels one above the other."""
    conditions = dataset[dataset.report_split].condition
    size = np.nansum(deviations.true**2, (1, 2))
    order = np.argsort(-size, kind="stable")
    first = np.unique(conditions[order], return_index=True)[1]
    shown = order[np.sort(first)][: settings.n_trials]
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    step = 2.2 * float(np.nanmax(np.abs(deviations.true[shown])))
    names, parts = dataset.names.get("condition"), []
    for ax, trial in zip(axes, shown, strict=True):
        time = dataset.bin_s * np.arange(deviations.true.shape[1])
        for channel, name in enumerate(deviations.channels):
            ax.axhline(channel * step, color="0.8", lw=0.5, zorder=0)
            curves = {"true": deviations.true} | deviations.decoded
            for series, values in curves.items():
                colour, marker = LOOKS.get(series, (TRUTH_COLOUR, "."))
                curve = values[trial, :, channel]
                curve = np.where(np.isnan(deviations.true[trial, :, channel]), np.nan, curve)
                ax.plot(time, curve + channel * step, color=colour, marker=marker, ms=1.8, lw=0.9)
                columns = {"series": series, "channel": name, "trial": trial, "time_s": time, "value": curve}
                parts.append(pd.DataFrame({"panel": "trials"} | columns))
        condition = conditions[trial]
        ax.set_title(names[condition] if names else f"condition {condition}")
        ax.set_xlabel("time (s)")
    axes[0].set_yticks(step * np.arange(len(deviations.channels)), deviations.channels)
    return parts


def _draw_pushes(
    figure: SubFigure,
    settings: BandSmallVariabilitySettings,
    dataset: SpikeDataset,
    fits: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]],
) -> list[pd.DataFrame]:
    """Push, its image in the inferred inputs, and behaviour along it."""
    left, middle, right = figure.subplots(1, 3)
    split = dataset.report_split
    trials = dataset[split]
    inputs = [_channel(dataset, "inputs_true", name) for name in settings.pushes]
    outputs = [_channel(dataset, "behavior", name) for name in settings.pushes.values()]
    push = trials.inputs_true[:, :, inputs].astype(np.float64)
    onset = [np.flatnonzero(np.abs(one).sum(1)) for one in push]
    pushed = np.array([trial for trial, bins in enumerate(onset) if len(bins)], int)
    if not len(pushed):
        for ax in (left, middle, right):
            say_missing(ax, MissingError(f"a push among the {trials.n_trials} {split} trials"))
        return []
    bins = np.arange(-round(settings.before_s / dataset.bin_s), round(settings.after_s / dataset.bin_s) + 1)
    starts = np.array([onset[trial][0] for trial in pushed])
    directions = np.stack([push[trial, start] for trial, start in zip(pushed, starts, strict=True)])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    inside = trials.valid_bins[:, : push.shape[1]]

    def along(values: np.ndarray) -> np.ndarray:
        """Mean over trials of values (trials, bins, axes) along the push, from before to after its onset."""
        known = np.where(inside[:, : values.shape[1], None], values, np.nan)
        at = starts[:, None] + bins
        there = (at >= 0) & (at < values.shape[1])
        rows = known[pushed[:, None], np.clip(at, 0, values.shape[1] - 1)]
        course = np.where(there, np.einsum("tba,ta->tb", rows, directions), np.nan)
        counts = (~np.isnan(course)).sum(0)
        return np.where(counts > 0, np.nansum(course, 0) / np.maximum(counts, 1), np.nan)

    time, parts = dataset.bin_s * bins, []

    def line(ax: Axes, panel: str, series: str, values: np.ndarray, dashed: bool = False) -> None:
        mean = along(values)
        colour = LOOKS[series][0] if series in LOOKS else TRUTH_COLOUR
        style = {"ls": "--", "lw": 0.8} if dashed else {"lw": 1.3 if series == "true" else 1.0}
        ax.plot(time, mean, color=colour, **style)
        name = f"{series}, without inputs" if dashed else series
        parts.append(pd.DataFrame({"panel": panel, "series": name, "time_s": time, "value": mean}))

    line(left, "push", "true", push)
    line(right, "behaviour along the push", "true", trials.behavior[:, :, outputs].astype(np.float64))
    train = dataset["train"]
    valid = train.observed().any(2)
    for series, fit in fits.items():
        if "co_means" in fit[split]:
            source = fit["train"]["co_means"][valid].astype(np.float64)
            weights, offset = linear_map(source, train.inputs_true[valid][:, inputs].astype(np.float64))
            line(middle, "push in the inferred inputs", series, fit[split]["co_means"] @ weights + offset)
        line(right, "behaviour along the push", series, fit[split]["behavior"][:, :, outputs])
        if "ablated_behavior" in fit[split]:
            line(right, "behaviour along the push", series, fit[split]["ablated_behavior"][:, :, outputs], dashed=True)
    if not middle.lines:
        say_missing(middle, MissingError("a fit with inferred inputs"))
    titles = ("push", "its image in the inferred inputs", "behaviour along it")
    for ax, title in zip((left, middle, right), titles, strict=True):
        ax.set_title(f"{title}, mean of {len(pushed)} trials" if ax is left else title)
        if ax.lines:
            ax.axvline(0, color="0.8", lw=0.6, zorder=0)
            ax.axhline(0, color="0.8", lw=0.6, zorder=0)
            ax.set_xlabel("time from the push (s)")
    left.set_ylabel(", ".join(settings.pushes))
    right.set_ylabel(", ".join(settings.pushes.values()))
    return parts


def _channel(dataset: SpikeDataset, field: str, name: str) -> int:
    names = dataset.names.get(field) or []
    if name not in names:
        raise DatasetError(f"figure `band_small_variability`: `pushes` names {name!r}, but {field} has {list(names)}")
    return names.index(name)
