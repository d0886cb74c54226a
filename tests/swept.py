"""Made-up scores of sweeps, and a figure drawn from them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from ctdb.figures import FIGURES
from ctdb.figures.base import STYLE
from ctdb.figures.planned import Files
from ctdb.scores import COLUMNS


def fit_rows(
    model: str,
    key: str,
    values: Mapping[tuple[float, int], Mapping[str, float]],
    dataset: str = "some",
    split: str = "test",
) -> list[dict]:
    """Rows of a sweep: (value of the setting, seed) to metric to score; NaN is a fit that diverged."""
    rows = []
    for (x, seed), scores in values.items():
        about = {"dataset": dataset, "model": f"{model}@{key}={x}", "kind": "k", "sweep": json.dumps({key: x})}
        for metric, value in scores.items():
            status = "ok" if value == value else "diverged"
            own = {"metric": metric, "value": value, "status": status, "role": "fit", "seed": seed, "split": split}
            rows.append(about | own)
    return rows


def anchor_rows(metrics: Mapping[str, tuple[float, float]], dataset: str = "some") -> list[dict]:
    """Rows of floor and ceiling: metric to both scores."""
    about = {"dataset": dataset, "kind": "anchor", "sweep": "{}", "status": "ok", "split": "test"}
    return [
        about | {"model": role, "role": role, "metric": metric, "value": value}
        for metric, pair in metrics.items()
        for role, value in zip(("floor", "ceiling"), pair, strict=True)
    ]


def write(path: Path, rows: list[dict]) -> str:
    """Write rows as a table of scores, where they say nothing with what most have."""
    blank = {"session": "", "n_trials": 4, "reason": ""}
    pd.DataFrame([blank | row for row in rows], columns=list(COLUMNS)).astype(COLUMNS).to_csv(path, index=False)
    return str(path)


def draw(kind: str, files: Files, show: Callable = lambda canvas: None, **options):
    """Draw a figure: its table, what `show` made of the canvas, what it says of itself, and its settings."""
    figure = FIGURES[kind]
    settings = figure.Settings(kind=kind, **options)
    with plt.style.context(STYLE):
        canvas, table = figure.draw(settings, files)
        canvas.canvas.draw()
        seen = show(canvas)
        plt.close(canvas)
    return table, seen, figure.findings(settings, table), settings


def marked(ax, marker: str) -> list[list[float]]:
    """Sorted points of a panel that have a marker."""
    return sorted(
        [x, y] for line in ax.lines if line.get_marker() == marker for x, y in zip(*line.get_data(), strict=True)
    )
