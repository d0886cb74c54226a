"""How all scores depend on the size of the model, on several data sets: figures S8 and S11 to S15 of CtDB."""

import contextlib
import textwrap
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from ctdb.errors import MissingError
from ctdb.figures import FIGURES
from ctdb.figures.base import WIDTH, Figure, FigureSettings, say_missing
from ctdb.figures.planned import SCORES, Need, Planned
from ctdb.figures.published import STYLE, comparison
from ctdb.figures.score_table import LABELS
from ctdb.figures.sweeps import anchors_of, in_rows, scale_of_sweep, sweep_needs, sweep_scores, text_of
from ctdb.settings import DYNAMICS_SCORES, NonEmpty, Settings

KIND = "ctd_sweep"
FROM_TRUTH = ("lyapunov_max", "kaplan_yorke_dimension")
"""Metrics without a best value: what is drawn is their distance from that of the true system."""
DEFAULT = [
    "rate_r2",
    "state_r2_true_to_inferred",
    "co_bps_ctd",
    "cycle_consistency",
    "dsa_similarity",
    "fixed_point_recall",
    "flow_field_r2",
    "lyapunov_max",
]
MARKERS = "os^v"
ANCHORS = {"floor": {"color": "0.6", "lw": 0.7, "ls": ":"}, "ceiling": {"color": "0.6", "lw": 0.7, "ls": "--"}}


class SweptSettings(Settings):
    """One sweep: fits of `model` to `dataset` whose `key` was swept over numbers.

    `series` names published numbers to compare with.
    """

    dataset: str
    model: str
    key: str = "latent_size"
    series: Literal["", "nbff_node", "nbff_gru", "phase_coded_memory"] = ""


class CtdSweepSettings(FigureSettings):
    """Settings of figure `ctd_sweep`."""

    sweeps: NonEmpty[SweptSettings]
    metrics: NonEmpty[str] = DEFAULT


@FIGURES.register("ctd_sweep")
class CtdSweep(Figure):
    """One row per score and one column per data set: the mean over seeds against the size, with their range.

    Dashed lines are the ceiling, dotted ones the floor. Of a Lyapunov exponent or dimension, the distance from that of
    the true system is drawn, so that 0 is right. Hollow diamonds are means that CtDB published.
    """

    Settings = CtdSweepSettings
    partial = True

    @staticmethod
    def needs(settings: CtdSweepSettings, planned: Planned) -> list[Need]:
        """Scores of the fits of the sweeps; those by DSA, which compares all fits to a data set, if they are shown."""
        needs = [
            sweep_needs(planned, sweep.dataset, sweep.model, sweep.key, settings.metrics) for sweep in settings.sweeps
        ]
        return [need for own in needs for need in own]

    @staticmethod
    def draw(settings: CtdSweepSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the scores of the split that scores are reported on."""
        columns = list(dict.fromkeys(sweep.dataset for sweep in settings.sweeps))
        n_rows, n_columns = len(settings.metrics), len(columns)
        size = (min(WIDTH, 1.2 + 2.2 * n_columns), 0.8 + 0.88 * n_rows)
        canvas, axes = plt.subplots(n_rows, n_columns, squeeze=False, sharex="col", figsize=size, layout="constrained")
        canvas.get_layout_engine().set(h_pad=0.02, w_pad=0.02)
        tables = []
        for column, dataset in zip(axes.T, columns, strict=True):
            own = [sweep for sweep in settings.sweeps if sweep.dataset == dataset]
            tables += _draw_column(column, own, settings, files)
            column[0].set_title(textwrap.fill(dataset.replace("_", " "), 17), fontsize=6)
        for ax, metric in zip(axes[:, 0], settings.metrics, strict=True):
            label = LABELS.get(metric, metric.replace("_", " "))
            ax.annotate(
                f"{label},\nfrom truth" if metric in FROM_TRUTH else label,
                (-0.42 if n_columns > 3 else -0.25, 0.5),
                xycoords="axes fraction",
                rotation=90,
                ha="center",
                va="center",
                fontsize=6,
            )
        handles = [Line2D([], [], label=role, **style) for role, style in ANCHORS.items()]
        handles.append(Line2D([], [], label="published", **STYLE))
        canvas.legend(handles=handles, loc="outside lower center", ncols=3)
        table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["dataset", "drawn"])
        return canvas, table

    @staticmethod
    def findings(settings: CtdSweepSettings, table: pd.DataFrame) -> str:
        """At which size each score is best, and how many fits have no scores."""
        if "x" not in table:
            return ""
        sentences = []
        for (dataset, model), own in table[table["drawn"] == "fits"].groupby(["dataset", "model"], sort=False):
            best = []
            for metric, rows in own.dropna(subset="value").groupby("metric", sort=False):
                row = rows.loc[rows["value"].idxmin() if metric in FROM_TRUTH else rows["value"].idxmax()]
                best.append(f"{LABELS.get(metric, metric)} {text_of(row['x'])}".replace("\n", " "))
            if best:
                sentences.append(f"{model} on {dataset}, the best {own['key'].iloc[0]} by score: {', '.join(best)}.")
            counts = own.groupby("x")[["n_ok", "n_fits"]].first().sum()
            if counts["n_ok"] < counts["n_fits"]:
                sentences.append(f"{counts['n_ok']:.0f} of its {counts['n_fits']:.0f} fits went well.")
        return " ".join(sentences)

    @staticmethod
    def reproduction(settings: CtdSweepSettings, files: Mapping[Need, str]) -> pd.DataFrame:
        """Means by size, beside those of CtDB, of the sweeps that have published numbers."""
        rows = []
        for sweep in settings.sweeps:
            with contextlib.suppress(MissingError):
                if sweep.series:
                    rows.append(_rows(settings, sweep, files))
        if not rows:
            raise MissingError("fits of a sweep with published numbers, which is one with a `series`")
        return comparison(KIND, pd.concat(rows, ignore_index=True))


def _rows(settings: CtdSweepSettings, sweep: SweptSettings, files: Mapping[Need, str]) -> pd.DataFrame:
    """Fits of a sweep, one row per fit and metric."""
    fits = sweep_scores(files, sweep.dataset, sweep.model, sweep.key, settings.metrics)
    return in_rows(fits, sweep.dataset, sweep.series, settings.metrics)


def _draw_column(
    column: np.ndarray, sweeps: list[SweptSettings], settings: CtdSweepSettings, files: Mapping[Need, str]
) -> list[pd.DataFrame]:
    """Draw the sweeps of one data set; the rows of the table."""
    dataset, tables, reasons, values = sweeps[0].dataset, [], [], set()
    legend = []
    for number, sweep in enumerate(sweeps):
        try:
            rows = _rows(settings, sweep, files)
        except MissingError as error:
            reasons.append(error)
            legend.append(Line2D([], [], ls="none", label=f"{sweep.model}: missing"))
            continue
        anchors, compared = anchors_of(files, dataset), comparison(KIND, rows)
        compared = compared[compared["series"] == sweep.series]
        colour, marker = f"C{number % 7}", MARKERS[number % len(MARKERS)]
        style = {"color": colour, "marker": marker, "ms": 3, "mec": colour, "mfc": "white", "mew": 0.7}
        legend.append(Line2D([], [], label=sweep.model, **style))
        values |= {*rows["x"]}
        for ax, metric in zip(column, settings.metrics, strict=True):
            table = _summary(rows[rows["metric"] == metric], metric, anchors)
            theirs = compared[compared["metric"] == metric]
            theirs = pd.DataFrame({"x": theirs["x"].astype(float), "value": theirs["published"], "drawn": "published"})
            good = table[table["drawn"] == "fits"].dropna(subset="value")
            if len(good):
                reach = [good["value"] - good["low"], good["high"] - good["value"]]
                ax.errorbar(good["x"], good["value"], reach, lw=0.9, elinewidth=0.6, **style)
                ax.plot(theirs["x"], theirs["value"], **STYLE)
                for role, at in table[table["drawn"].isin(ANCHORS)].set_index("drawn")["value"].items():
                    ax.axhline(at, **ANCHORS[role], zorder=1)
                values |= {*theirs["x"]}
            about = {"dataset": dataset, "model": sweep.model, "key": sweep.key, "metric": metric}
            parts = [table, theirs] if len(good) else [table]
            tables.append(pd.concat([part.assign(**about) for part in parts if len(part)], ignore_index=True))
    _finish(column, sweeps, settings, sorted(values), reasons, getattr(files, "missing", {}))
    if legend:
        column[-1].legend(handles=legend, loc="upper center", bbox_to_anchor=(0.5, -0.65), fontsize=5, handlelength=1.5)
    return tables


def _summary(rows: pd.DataFrame, metric: str, anchors: pd.Series) -> pd.DataFrame:
    """Mean and range over seeds of one metric by size, and its floor and ceiling."""
    truth = anchors.get((metric, "ceiling"), np.nan)
    if metric in FROM_TRUTH:
        rows = rows.assign(value=(rows["value"] - truth).abs())
    by_size = rows.groupby("x")
    table = pd.DataFrame(
        {
            "drawn": "fits",
            "value": by_size["value"].mean(),
            "low": by_size["value"].min(),
            "high": by_size["value"].max(),
            "n": by_size["value"].count(),
            "n_ok": by_size["status"].agg(lambda own: (own == "ok").sum()),
            "n_fits": by_size.size(),
        }
    ).reset_index()
    lines = {role: anchors.get((metric, role), np.nan) for role in ANCHORS}
    if metric in FROM_TRUTH:
        lines = {"ceiling": 0.0 * truth}
    known = [{"drawn": role, "value": value} for role, value in lines.items() if np.isfinite(value)]
    return pd.concat([table, pd.DataFrame(known)], ignore_index=True) if known else table


def _finish(
    column: np.ndarray,
    sweeps: list[SweptSettings],
    settings: CtdSweepSettings,
    values: list[float],
    reasons: list[MissingError],
    missing: Mapping[Need, str],
) -> None:
    """Axes of a column; panels without a score say why."""
    drawn = [ax for ax in column if ax.has_data()]
    for ax, metric in zip(column, settings.metrics, strict=True):
        if ax in drawn:
            scale_of_sweep(ax, values)
            ax.tick_params(labelsize=5, labelbottom=ax is drawn[-1])
            ax.margins(x=0.08, y=0.12)
            continue
        own = [reason for need, reason in missing.items() if _makes(need, sweeps[0].dataset, metric)]
        why = reasons[0] if reasons else MissingError(own[0] if own else "no fit has this score")
        if not drawn and ax is not column[0] and reasons:
            ax.set_axis_off()
        else:
            say_missing(ax, why)
    if drawn:
        drawn[-1].set_xlabel(", ".join(dict.fromkeys(sweep.key for sweep in sweeps)), fontsize=6)


def _makes(need: Need, dataset: str, metric: str) -> bool:
    """Whether a file of scores is where a metric would be."""
    where = "dsa_scores" if metric == "dsa_similarity" else "dynamics_scores" if metric in DYNAMICS_SCORES else "scores"
    return need[0] in SCORES and need[:2] == (where, dataset)
