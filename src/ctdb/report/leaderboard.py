"""The leaderboard: every model of every dataset between floor and ceiling, and the best of each dataset."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ctdb.figures.score_table import (
    LABELS,
    MAIN,
    OWN_UNITS,
    RANKING,
    ROLES,
    named_by_session,
    report_split,
    share_of_ceiling,
    summary,
)
from ctdb.settings import DYNAMICS_SCORES

COLUMNS = ["dataset", "task", "model", "role", "split", "metric", "mean", "low", "high", "interval", "n_ok", "n"]
"""Of the long table. `n` counts the seeds that were planned (none for floor and ceiling), `n_ok` those whose fit went
well and has the score."""
SEEDS, TRIALS = "seeds", "bootstrap over trials"
LOWER_IS_BETTER = frozenset({"poisson_nll", "fixed_point_distance"})
"""Scores whose first click sorts upwards."""


class Cell(NamedTuple):
    """A score of a row: mean, interval, and where it lies from floor (0) to ceiling (1); NaN where there is none."""

    mean: float
    low: float
    high: float
    share: float


class Row(NamedTuple):
    """A model of a dataset; `interval` says what bounds its scores, in words."""

    dataset: str
    task: str
    model: str
    role: str
    n_ok: int
    n: int
    interval: str
    cells: Mapping[str, Cell]


class Column(NamedTuple):
    """A metric: its label, the groups that show it, and whether sorting begins with its lowest value."""

    metric: str
    label: str
    groups: str
    ascending: bool
    digits: int


def task_of(plan: Mapping[str, Any], dataset: str) -> str:
    """Task of the network behind a dataset, or behind the dataset that it is made from; "" where there is none."""
    for what, *names in plan["datasets"][dataset]["sources"]:
        if what == "activity":
            return plan["networks"][names[0]]["task"]
        if what == "dataset":
            return task_of(plan, names[0])
    return ""


def table(plan: Mapping[str, Any], scores: pd.DataFrame) -> pd.DataFrame:
    """All scores of the split that each dataset is reported on, mean and interval over seeds, in :data:`COLUMNS`.

    Parameters
    ----------
    plan
        Of :func:`ctdb.config.load`.
    scores
        The scores table. Planned fits that it has no row of get one without values.
    """
    planned = Counter((fit["dataset"], fit["model"]) for fit in plan["fits"])
    tables = []
    for dataset in plan["datasets"]:
        own = scores[scores["dataset"] == dataset]
        named = named_by_session(own)
        split = report_split(own)
        here = own["split"] == split
        model_of = dict(zip(named["model"], own["model"], strict=True))
        parts = [summary(named[here], RANKING)] if here.any() else []
        absent = [model for where, model in planned if where == dataset and model not in set(model_of.values())]
        parts += [pd.DataFrame({"role": "fit", "model": [model], "n_ok": 0}) for model in absent]
        if not parts:
            continue
        one = pd.concat(parts, ignore_index=True).rename(columns={"range_of": "interval"})
        counts = one["model"].map(lambda model, of=model_of, at=dataset: planned.get((at, of.get(model, model))))
        tables.append(one.assign(dataset=dataset, task=task_of(plan, dataset), split=split, n=counts))
    whole = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return whole.reindex(columns=COLUMNS).astype({"n_ok": "Int64", "n": "Int64"})


def rows(long: pd.DataFrame) -> list[Row]:
    """Rows of the leaderboard: of each dataset the ceiling, fits from the best on, baselines and the floor."""
    found = []
    for dataset, own in long.groupby("dataset", sort=False):
        known = own[own["metric"].notna()]
        cells = known.set_index(["model", "metric"])
        roles = own.drop_duplicates("model").set_index("model")["role"]
        for model in sorted(roles.index, key=lambda model, roles=roles: ROLES.index(roles[model])):
            mine = own[own["model"] == model]
            scored = {
                one.metric: Cell(one.mean, one.low, one.high, _share(cells, roles, one.metric, one.mean))
                for one in known[known["model"] == model].itertuples()
                if np.isfinite(one.mean)
            }
            found.append(
                Row(
                    str(dataset),
                    mine["task"].iloc[0],
                    model,
                    mine["role"].iloc[0],
                    int(mine["n_ok"].max()),
                    0 if mine["n"].isna().all() else int(mine["n"].max()),
                    _in_words(mine),
                    scored,
                )
            )
    return found


def _share(cells: pd.DataFrame, roles: pd.Series, metric: str, value: float) -> float:
    return math.nan if metric in OWN_UNITS else share_of_ceiling(cells, roles, metric, value)


def _in_words(mine: pd.DataFrame) -> str:
    kinds = set(mine["interval"].dropna())
    if SEEDS in kinds:
        return f"lowest and highest of {mine['n_ok'].max()} seeds"
    return "95 % over trials" if TRIALS in kinds else ""


def columns(long: pd.DataFrame) -> list[Column]:
    """Metrics that some model has, the known ones first."""
    there = set(long.loc[np.isfinite(long["mean"].astype(float)), "metric"])
    order = [metric for metric in LABELS if metric in there]
    order += sorted(there - set(order))
    return [
        Column(
            metric,
            LABELS.get(metric, metric.replace("_", " ")).replace("\n", " "),
            " ".join([*(["main"] if metric in MAIN else []), "dynamics" if metric in DYNAMICS_SCORES else "fit"]),
            metric in LOWER_IS_BETTER,
            4 if metric == "poisson_nll" else 3,
        )
        for metric in order
    ]


class Best(NamedTuple):
    """The best fit of a dataset by one metric, between the floor and the ceiling of that; None where there is none."""

    dataset: str
    task: str
    model: str
    metric: str
    value: float
    floor: float | None
    ceiling: float | None
    n_ok: int
    n: int


def best(plan: Mapping[str, Any], board: list[Row]) -> list[Best]:
    """Best fit of each dataset by held-in bits per spike or, where there are none, by its first metric."""
    found = []
    for dataset in plan["datasets"]:
        fits = [row for row in board if row.dataset == dataset and row.role == "fit"]
        scored = [row for row in fits if row.cells]
        if not scored:
            continue
        metric = RANKING if any(RANKING in row.cells for row in scored) else next(iter(scored[0].cells))
        ranked = [row for row in scored if metric in row.cells]
        top = (min if metric in LOWER_IS_BETTER else max)(ranked, key=lambda row: row.cells[metric].mean)
        anchors = {row.role: row.cells[metric].mean for row in board if row.dataset == dataset and metric in row.cells}
        ends = anchors.get("floor"), anchors.get("ceiling")
        count = sum(row.n_ok for row in fits), sum(row.n for row in fits)
        found.append(Best(dataset, top.task, top.model, metric, top.cells[metric].mean, *ends, *count))
    return found
