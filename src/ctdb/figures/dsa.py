"""How far apart the dynamics of fits and of the true system are: every pair, and all of them on a map."""

from collections.abc import Mapping
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ctdb.dsa_scores import TRUTH
from ctdb.dynamics.systems import Comparison
from ctdb.figures import FIGURES
from ctdb.figures.base import TRUTH_COLOUR, WIDTH, Figure, FigureSettings
from ctdb.figures.planned import Need, Planned
from ctdb.files import read_hdf5

LEVEL = 0.95
"""Quantile of the distances between halves of one system that a pair must exceed to be different."""
MARKERS = "osD^vPX"
NUMBERED, BESIDE = 7, 15
"""Systems up to which distances stand in their cells; and up to which names stand below and the map beside them."""


class DsaFigureSettings(FigureSettings):
    """Settings of figure `dsa`; `models` are those to show, all where there are none."""

    dataset: str
    models: list[str] = []


@FIGURES.register("dsa")
class Dsa(Figure):
    """Distances between all pairs, in an order that puts like beside like, and the systems as a map.

    A frame marks pairs that are no further apart than random halves of one of the two. Lines in the colour bar are
    that distance for the true system (null), and its distance from its own bins in random order (no dynamics).
    """

    Settings = DsaFigureSettings

    @staticmethod
    def needs(settings: DsaFigureSettings, planned: Planned) -> list[Need]:
        """Distances, which name a dataset."""
        return [("dsa", settings.dataset)]

    @staticmethod
    def draw(settings: DsaFigureSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the systems that could be compared."""
        arrays, facts = read_hdf5(files["dsa", settings.dataset])
        names = [str(name) for name in facts["names"]]
        found = Comparison(tuple(names), arrays["distances"], arrays["null"], {"metric": str(facts["metric"])})
        shown = [i for i in arrays["order"].tolist() if _is_shown(names[i], settings.models)]
        table = _table(found, facts, sorted(shown))
        return _draw(settings.dataset, found, facts, arrays, shown), table


def _model(name: str) -> str:
    """Model of a system called `model seed 0`."""
    return name.rpartition(" seed ")[0] or name


def _is_shown(name: str, models: list[str]) -> bool:
    return name == TRUTH or not models or _model(name) in models


def _table(found: Comparison, facts: Mapping[str, object], shown: list[int]) -> pd.DataFrame:
    different = found.different(LEVEL)
    pairs = list(combinations(shown, 2))
    return pd.DataFrame(
        {
            "first": [found.names[i] for i, _ in pairs],
            "second": [found.names[j] for _, j in pairs],
            "distance": [found.distances[pair] for pair in pairs],
            "different": [different[pair] if found.null.shape[1] else pd.NA for pair in pairs],
            "metric": str(facts["metric"]),
            "n_delays": int(facts["n_delays"]),
            "rank": int(facts["rank"]),
        }
    )


def _draw(
    name: str, found: Comparison, facts: Mapping[str, object], arrays: Mapping[str, np.ndarray], shown: list[int]
) -> Canvas:
    if not shown:
        canvas = plt.figure(figsize=(WIDTH, 1.0))
        canvas.text(0.5, 0.4, "no system could be compared; the scores say why", ha="center", color="0.35")
        canvas.suptitle(f"{name}: dynamical similarity, {facts['metric']}", x=0.02, ha="left")
        return canvas
    few = len(shown) <= BESIDE
    canvas = plt.figure(figsize=(WIDTH, 3.4 if few else 9.0), layout="constrained")
    places = {"width_ratios": [1.25, 1]} if few else {"height_ratios": [2.2, 1]}
    left, right = canvas.subplots(*((1, 2) if few else (2, 1)), gridspec_kw=places)
    _draw_matrix(canvas, left, found, arrays.get("floor"), shown)
    _draw_map(right, found, arrays["points"], sorted(shown), few)
    canvas.suptitle(
        f"{name}: dynamical similarity, {facts['metric']}, {facts['n_delays']} delays, rank {facts['rank']}",
        x=0.02,
        ha="left",
    )
    return canvas


def _draw_matrix(canvas: Canvas, ax: Axes, found: Comparison, floor: np.ndarray | None, shown: list[int]) -> None:
    distances = found.distances[np.ix_(shown, shown)]
    n, different = len(shown), found.different(LEVEL)
    highest = max([distances.max(), *(floor if floor is not None else [])]) or 1.0
    scale = mpl.colors.PowerNorm(0.5, 0, highest)  # small distances are told apart too
    image = ax.imshow(distances, cmap="Blues", norm=scale)
    for row, i in enumerate(shown):
        for column, j in enumerate(shown):
            if i == j:
                continue
            if n <= NUMBERED:
                colour = "white" if scale(distances[row, column]) > 0.6 else "black"
                text = f"{distances[row, column]:.2g}"
                ax.text(column, row, text, ha="center", va="center", fontsize=5, color=colour)
            if found.null.shape[1] and not different[i, j]:
                frame = mpl.patches.Rectangle(
                    (column - 0.46, row - 0.46), 0.92, 0.92, fill=False, ec="C1", lw=min(0.9, 20 / n)
                )
                ax.add_patch(frame)
    names = [found.names[i] for i in shown]
    ax.set_yticks(range(n), names, fontsize=min(6.0, 260 / n))
    if n <= BESIDE:
        ax.set_xticks(range(n), names, rotation=90)
    else:
        ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if found.null.shape[1]:
        ax.set_title("framed: no further than halves of one", fontsize=6, loc="left")
    bar = canvas.colorbar(image, ax=ax, location="right", shrink=0.8, aspect=25, label="distance")
    if TRUTH in found.names:
        lines = {} if floor is None else {"no dynamics": float(floor[0])}
        if found.null.shape[1]:
            lines["null of truth"] = float(np.quantile(found.null[found.names.index(TRUTH)], LEVEL))
        for label, at in lines.items():
            bar.ax.axhline(at, color=TRUTH_COLOUR, lw=0.8)
            place = {"transform": bar.ax.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 5}
            bar.ax.text(-0.3, at, label, **place)


def _draw_map(ax: Axes, found: Comparison, points: np.ndarray, shown: list[int], few: bool) -> None:
    """Systems as points; those of one model, with several seeds, share colour and marker."""
    models = list(dict.fromkeys(_model(found.names[i]) for i in shown if found.names[i] != TRUTH))
    for number, model in enumerate(models):
        own = points[[i for i in shown if _model(found.names[i]) == model and found.names[i] != TRUTH]]
        marker, colour = MARKERS[number // 7 % len(MARKERS)], f"C{number % 7}"
        ax.plot(*own.T, ls="none", marker=marker, mfc="none", mec=colour, ms=4.5, label=model)
    if TRUTH in found.names:
        ax.plot(
            *points[found.names.index(TRUTH)], ls="none", marker="*", color=TRUTH_COLOUR, ms=8, label=TRUTH, zorder=1
        )
    unit = "square root of distance" if found.settings["metric"] == "wasserstein" else "distance"
    ax.set_xlabel(f"dimension 1 ({unit})")
    ax.set_ylabel("dimension 2")
    ax.set_aspect("equal", adjustable="datalim")
    if few:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    else:
        ax.figure.legend(loc="outside lower center", ncols=3)
