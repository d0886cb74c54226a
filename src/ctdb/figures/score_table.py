"""The scores of one dataset as a table that is read at a glance: models between floor and ceiling."""

from collections.abc import Mapping
from typing import Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas

from ctdb.figures import FIGURES
from ctdb.figures.base import WIDTH, Figure, FigureSettings, scores_in
from ctdb.figures.planned import Need, Planned
from ctdb.settings import NonEmpty

LABELS = {
    "rate_r2": "rate R²",
    "state_r2_true_to_inferred": "state R²\ntrue→inferred",
    "state_r2_inferred_to_true": "state R²\ninferred→true",
    "bits_per_spike_heldin": "held-in\nbits/spike",
    "bits_per_spike_heldout": "held-out\nbits/spike",
    "co_bps_ctd": "co-bps as\nin CtDB",
    "poisson_nll": "NLL\n(nats/bin)",
    "cycle_consistency": "cycle\nconsistency",
    "bits_per_spike_forward": "forward\nbits/spike",
    "behavior_r2": "behaviour\nR²",
    "behavior_r2_uive": "behaviour\nR² (UIVE)",
    "input_r2_inferred_to_true": "input R²\ninferred→true",
    "flow_field_r2": "flow field\nR²",
    "forecast_skill": "forecast\nskill",
    "dsa_similarity": "DSA\nsimilarity",
    "fixed_point_recall": "fixed points\nfound",
    "fixed_point_precision": "fixed points\nright",
    "fixed_point_distance": "distance\nof points",
    "fixed_point_stability": "stability\nright",
    "fixed_point_index": "unstable\ndirections",
    "fixed_point_time_constants": "time\nconstants",
    "fixed_point_edges": "connections\nof points",
    "lyapunov_max": "Lyapunov\nmax (1/s)",
    "kaplan_yorke_dimension": "Lyapunov\ndimension",
    "procrustes_similarity": "Procrustes\nsimilarity",
    "power_spectrum_skill": "power\nspectrum",
    "marginal_wasserstein_skill": "marginals",
    "cca": "CCA",
    "cka": "CKA",
}
MAIN = list(LABELS)[: list(LABELS).index("flow_field_r2")]
"""What a table shows where it is not asked for something else."""
OWN_UNITS = {"fixed_point_distance", "lyapunov_max", "kaplan_yorke_dimension"}
"""Scores that do not run from a floor to a ceiling, and have no shade."""
RANKING = "bits_per_spike_heldin"
"""What fits are ordered by where it is shown; otherwise by the first metric."""
ROLES = ["ceiling", "fit", "baseline", "floor"]


class ScoreTableSettings(FigureSettings):
    """Settings of figure `score_table`."""

    dataset: str
    split: Literal["valid", "test"] | None = None
    metrics: NonEmpty[str] = MAIN


@FIGURES.register("score_table")
class ScoreTable(Figure):
    """One row per model, one column per metric; shade runs from the floor (light) to the ceiling (dark).

    A cell holds the mean over seeds; below it the 95 % bootstrap interval over trials of a single seed, if it has one,
    or the lowest and highest of several seeds. ``n/N`` in a row's name says how many of its fits succeeded, where some
    did not.
    """

    Settings = ScoreTableSettings

    @staticmethod
    def needs(settings: ScoreTableSettings, planned: Planned) -> list[Need]:
        """Scores of all fits to the dataset."""
        return planned.scores(settings.dataset)

    @staticmethod
    def draw(settings: ScoreTableSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the table of the split that scores are reported on, or of `split`."""
        scores = named_by_session(scores_in(files, settings.dataset))
        split = settings.split or report_split(scores)
        scores = scores[scores["split"] == split]
        metrics = [metric for metric in settings.metrics if (scores["metric"] == metric).any()]
        first = RANKING if RANKING in metrics else next(iter(metrics), RANKING)
        table = summary(scores[scores["metric"].isin(metrics)], first)
        return _draw(settings.dataset, split, table, metrics), table


def report_split(scores: pd.DataFrame) -> str:
    """Split that the scores of a dataset are reported on."""
    return "test" if (scores["split"] == "test").any() else "valid"


def named_by_session(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores whose models are named with their session, where a dataset has several."""
    session = scores["session"].fillna("")
    named = scores["model"] + " (" + session + ")"
    return scores.assign(model=scores["model"].where(session == "", named))


def summary(scores: pd.DataFrame, ranking: str) -> pd.DataFrame:
    """Mean and range over seeds of each model and metric: ceiling, fits from the best in one metric on, floor.

    Parameters
    ----------
    scores
        Rows of the scores table: one dataset, one split.
    ranking
        Metric by which models are ordered.

    Returns
    -------
    One row per model and metric: `role`, `model`, `metric`; `mean` of the seeds that went well; `low` and `high`, of
    what `range_of` says; `n_ok` of `n` scores that are there.
    """
    rows = []
    for (role, model, metric), group in scores.groupby(["role", "model", "metric"], sort=False):
        good = group[group["status"] == "ok"]
        several = len(good) > 1
        rows.append(
            {
                "role": role,
                "model": model,
                "metric": metric,
                "mean": good["value"].mean(),
                "low": good["value"].min() if several else good["low"].mean(),
                "high": good["value"].max() if several else good["high"].mean(),
                "range_of": "seeds" if several else "bootstrap over trials" if good["low"].notna().any() else "",
                "n_ok": len(good),
                "n": len(group),
            }
        )
    table = pd.DataFrame(rows)
    best = table[table["metric"] == ranking].set_index("model")["mean"]
    table["_role"] = table["role"].map(ROLES.index)
    table["_rank"] = -table["model"].map(best).astype(float)
    return table.sort_values(["_role", "_rank", "model", "metric"], ignore_index=True).drop(columns=["_role", "_rank"])


def _draw(dataset: str, split: str, table: pd.DataFrame, metrics: list[str]) -> Canvas:
    models = list(dict.fromkeys(table["model"]))
    cells = table.set_index(["model", "metric"])
    roles = table.drop_duplicates("model").set_index("model")["role"]
    canvas, ax = plt.subplots(figsize=(WIDTH, 0.9 + 0.34 * len(models)), layout="constrained")
    shades = mpl.colormaps["Blues"]
    for row, model in enumerate(models):
        for column, metric in enumerate(metrics):
            if (model, metric) not in cells.index or not np.isfinite(cells.loc[(model, metric), "mean"]):
                ax.text(column, row, "–", ha="center", va="center", color="0.5")
                continue
            cell = cells.loc[(model, metric)]
            digits = 4 if metric == "poisson_nll" else 3
            share = share_of_ceiling(cells, roles, metric, cell["mean"])
            ax.add_patch(
                mpl.patches.Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, color=shades(0.05 + 0.8 * share))
            )
            colour = "white" if share > 0.7 else "black"
            ax.text(column, row - 0.13, f"{cell['mean']:.{digits}f}", ha="center", va="center", color=colour)
            if roles[model] == "fit" and np.isfinite([cell["low"], cell["high"]]).all():
                text = f"{cell['low']:.{digits}f} … {cell['high']:.{digits}f}"
                ax.text(column, row + 0.24, text, ha="center", va="center", color=colour, fontsize=4.5)
    counts = table.groupby("model")[["n_ok", "n"]].max()
    names = [model if n_ok == n else f"{model} ({n_ok}/{n})" for model, n_ok, n in counts.loc[models].itertuples()]
    ax.set_yticks(range(len(models)), names)
    ax.set_xticks(range(len(metrics)), [LABELS.get(metric, metric) for metric in metrics])
    ax.xaxis.tick_top()
    ax.set_xlim(-0.5, len(metrics) - 0.5)
    ax.set_ylim(len(models) - 0.5, -0.5)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    canvas.suptitle(f"{dataset}: {split} scores, shaded from floor to ceiling", x=0.02, ha="left")
    return canvas


def share_of_ceiling(cells: pd.DataFrame, roles: pd.Series, metric: str, value: float) -> float:
    """Where a value lies between floor (0) and ceiling (1) of its metric; an R2 has 0 and 1, own units no shade.

    Parameters
    ----------
    cells
        What :func:`summary` returns, by model and metric.
    roles
        Role of each model.
    metric, value
        The score.
    """
    if metric in OWN_UNITS:
        return 0.0
    anchors = {
        role: cells.loc[(model, metric), "mean"]
        for model, role in roles.items()
        if role != "fit" and (model, metric) in cells.index
    }
    floor = anchors.get("floor", 0.0)
    ceiling = anchors.get("ceiling", 1.0)
    if not np.isfinite([floor, ceiling]).all() or floor == ceiling:
        floor, ceiling = 0.0, 1.0
    return float(np.clip((value - floor) / (ceiling - floor), 0, 1))
