"""Scores of chosen models as points of a figure, one per fit, which figures of LFADS and BAND share."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ctdb.errors import MissingError
from ctdb.figures.base import scores_in
from ctdb.figures.planned import Need, Planned
from ctdb.figures.score_table import report_split

LABELS = {"lfads": "LFADS", "band": "BAND"}
LOOKS = {"lfads": ("C0", "o"), "band": ("C1", "s")}
"""Colour and marker of a series."""
COLUMNS = ["dataset", "session", "series", "model", "seed", "metric", "value", "status"]
"""Columns of the points; `value` is NaN for a fit without that score."""


@dataclass(frozen=True)
class Points:
    """Scores of some models on some data sets, on the split that each data set reports.

    Attributes
    ----------
    table
        Columns of :data:`COLUMNS`, one row per fit, session and metric.
    missing
        Series to the reason why there is no fit of it at all.
    """

    table: pd.DataFrame
    missing: dict[str, str] = field(default_factory=dict)

    def of(self, series: str, metric: str) -> pd.DataFrame:
        """Rows of one series and metric."""
        return self.table[(self.table["series"] == series) & (self.table["metric"] == metric)]


def fits_of(planned: Planned, datasets: Iterable[str], models: Iterable[str]) -> list[tuple[str, str, int]]:
    """Every seed of some models on some data sets, without the points of sweeps; seed 0 where nothing is planned."""
    models = list(models)
    found = []
    for dataset in datasets:
        for model in models:
            own = [fit for fit in planned.fits_of(dataset, [model]) if fit[1] == model]
            found += own or [(dataset, model, 0)]
    return found


def score_needs(planned: Planned, datasets: Iterable[str], models: Iterable[str]) -> list[Need]:
    """Scores of those fits, and of what is to be compared with them on the same data sets."""
    datasets = list(datasets)
    return [
        *(("scores", dataset) for dataset in datasets),
        *(("scores", *fit) for fit in fits_of(planned, datasets, models)),
    ]


def points_of(files: Mapping[Need, str], datasets: Iterable[str], models: Mapping[str, str]) -> Points:
    """Scores of fits among `files`; `models` maps series to models."""
    datasets = list(datasets)
    parts = [pd.DataFrame(columns=COLUMNS)]
    for dataset in datasets:
        scores = reported(files, dataset)
        scores = scores[scores["role"] == "fit"]
        parts += [scores[scores["model"] == model].assign(series=series)[COLUMNS] for series, model in models.items()]
    table = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    lacking = {
        series: why_missing(files, datasets, model)
        for series, model in models.items()
        if not (table["series"] == series).any()
    }
    return Points(table, lacking)


def reported(files: Mapping[Need, str], dataset: str) -> pd.DataFrame:
    """Rows of the scores table of a data set on the split that it reports; none where there is no table."""
    try:
        scores = scores_in(files, dataset)
    except MissingError:
        return pd.DataFrame(columns=[*COLUMNS, "role", "split", "sweep"])
    return scores[scores["split"] == report_split(scores)].assign(session=scores["session"].fillna(""))


def why_missing(files: Mapping[Need, str], datasets: Iterable[str], model: str) -> str:
    """Reason why a model has no scores on any of some data sets."""
    reasons = getattr(files, "missing", {})
    for dataset in datasets:
        for need, reason in reasons.items():
            if need[:3] == ("scores", dataset, model) or need == ("scores", dataset):
                return reason
    return f"no fit of {model!r}"


def counted(rows: pd.DataFrame) -> str:
    """How many fits have a score, if that is not all of them."""
    n_ok, n = int(rows["value"].notna().sum()), len(rows)
    return "" if n_ok == n else f"{n_ok} of {n} fits"


def spread(n: int, width: float) -> np.ndarray:
    """Offsets that set `n` points side by side."""
    return np.linspace(-width / 2, width / 2, n) if n > 1 else np.zeros(n)


def draw_column(ax: Axes, at: float, rows: pd.DataFrame, colour: str, marker: str, filled: bool = True) -> None:
    """Points of one series above the place `at`, the mean of several as a bar, and below how many have no score."""
    good = rows["value"].dropna().astype(float).to_numpy()
    face = colour if filled else "none"
    ax.plot(at + spread(len(good), 0.3), good, ls="none", marker=marker, ms=3, mec=colour, mfc=face, mew=0.7, alpha=0.8)
    if len(good) > 1:
        ax.plot([at - 0.28, at + 0.28], [good.mean()] * 2, color=colour, lw=1.4)
    if words := counted(rows):
        ax.annotate(words, (at, 0), (0, 2), ("data", "axes fraction"), "offset points", ha="center", fontsize=5)


def say_below(canvas: Canvas, reasons: Iterable[str]) -> None:
    """Write below all panels why something is missing from them."""
    if words := "; ".join(dict.fromkeys(reasons)):
        canvas.supxlabel(textwrap.fill(f"Missing: {words}.", 180), fontsize=5, color="0.35")


def difference_between(table: pd.DataFrame, metric: str, above: str = "band", below: str = "lfads") -> pd.Series:
    """Score of one series minus that of another, for each data set, session and seed that both are fitted with."""
    rows = table[table["metric"] == metric].astype({"value": float})
    upper, lower = (
        rows[rows["series"] == series].set_index(["dataset", "session", "seed"])["value"] for series in (above, below)
    )
    return (upper - lower).dropna()


def named(datasets: Sequence[str]) -> str:
    """Name of several data sets that are drawn as one."""
    first, *others = datasets
    return f"{first} and {len(others)} more" if others else first


def told(rows: pd.DataFrame, of: str = "fits") -> str:
    """Mean of some scores in words, with their range and how many there are, which are those `of` what."""
    good = rows["value"].dropna().astype(float)
    if good.empty:
        return f"no score of {len(rows)} {of}"
    text = f"{good.mean():.3f}"
    if len(good) > 1:
        text += f" ({good.min():.3f} to {good.max():.3f} over {len(good)} {of}"
        return text + (f" of {len(rows)})" if len(good) < len(rows) else ")")
    return text + (f" (1 of {len(rows)} {of})" if len(rows) > 1 else "")
