"""How well a network does its task: inputs, targets and answers of a few simulation trials, and its success."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ctdb.figures import FIGURES
from ctdb.figures.base import TRUTH_COLOUR, WIDTH, Figure, FigureSettings
from ctdb.figures.planned import Need, Planned
from ctdb.files import read_hdf5
from ctdb.settings import Count, Seed

MOST_LINES = 6
"""Inputs beyond this number are shown as an image."""


class TaskPerformanceSettings(FigureSettings):
    """Settings of figure `task_performance`; `variant` names other trials than the simulation's own."""

    network: str
    seed: Seed = 0
    variant: str = ""
    n_trials: Count = 2


@FIGURES.register("task_performance")
class TaskPerformance(Figure):
    """One column per trial, of as many conditions as there are columns; success by condition on the right.

    The first row shows all inputs, as lines or, where they are many, as an image; the others a target and the
    network's answer, which is its output or, where it moves a body, what the body did. Grey marks bins that do not
    count. A body that reaches gets a row with the path of its hand.
    """

    Settings = TaskPerformanceSettings

    @staticmethod
    def needs(settings: TaskPerformanceSettings, planned: Planned) -> list[Need]:
        """Activity of the network."""
        return [("activity", settings.network, settings.seed, settings.variant)]

    @staticmethod
    def draw(settings: TaskPerformanceSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the first trial of `n_trials` conditions; where there are fewer, more trials of each."""
        (path,) = files.values()
        activity, facts = read_hdf5(path)
        trials = _first_of_each_condition(activity, settings.n_trials)
        names = [str(name) for name in facts["target_names"]]
        moves = "behavior" in activity
        answers = activity["behavior" if moves else "outputs"]
        by_condition = _success_by_condition(activity, facts)
        several = len(by_condition) > 1
        n_rows = 1 + len(names) + moves
        canvas, axes = plt.subplots(
            n_rows,
            len(trials) + several,
            figsize=(WIDTH, 0.7 + 0.85 * n_rows + 0.4 * moves),
            squeeze=False,
            layout="constrained",
            gridspec_kw={
                "height_ratios": [1.3, *[1.0] * len(names), *[1.6] * moves],
                "width_ratios": [*[1.0] * len(trials), *[0.55] * several],
            },
        )
        rows = []
        for column, trial in enumerate(trials):
            length = int(activity["n_bins"][trial]) if "n_bins" in activity else answers.shape[1]
            time = facts["bin_s"] * np.arange(length)
            _draw_inputs(axes[0, column], activity["inputs"][trial, :length], time)
            axes[0, column].set_title(_title(activity, facts, trial))
            for channel, name in enumerate(names):
                ax = axes[1 + channel, column]
                target, answer = (traces[trial, :length, channel] for traces in (activity["targets"], answers))
                counts = activity["loss_weight"][trial, :length, channel] > 0
                ax.fill_between(time, 0, 1, where=~counts, transform=ax.get_xaxis_transform(), color="0.93", lw=0)
                ax.plot(time, target, color=TRUTH_COLOUR, lw=1.2, ls="--", label="target")
                ax.plot(time, answer, color="C0", lw=1.0, label="answer")
                if column == 0:
                    ax.set_ylabel(name)
                else:
                    ax.sharey(axes[1 + channel, 0])
                traces = {"time_s": time, "target": target, "answer": answer, "counts": counts}
                rows.append(pd.DataFrame({"trial": trial, "channel": name, **traces}))
            axes[len(names), column].set_xlabel("time (s)")
            if moves:
                draw_path(axes[-1, column], answers[trial, :length, :2], activity["targets"][trial, :length])
        axes[0, 0].set_ylabel("inputs")
        handles, labels = axes[1, 0].get_legend_handles_labels()
        if several:
            for ax in axes[:, -1]:
                ax.remove()
            _draw_success(canvas.add_subplot(axes[0, -1].get_gridspec()[:, -1]), by_condition)
        canvas.legend(handles, labels, loc="outside upper right", ncols=2)
        canvas.suptitle(_headline(settings.network, facts), x=0.02, ha="left")
        return canvas, pd.concat([*rows, by_condition], ignore_index=True)


def _first_of_each_condition(activity: Mapping[str, np.ndarray], n_trials: int) -> list[int]:
    """Trials to show: turn by turn one of each condition."""
    condition = activity.get("condition", np.zeros(len(activity["outputs"]), int))
    found = [np.flatnonzero(condition == one).tolist() for one in np.unique(condition)]
    turns = [one[turn] for turn in range(max(map(len, found))) for one in found if turn < len(one)]
    return turns[:n_trials]


def _success_by_condition(activity: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> pd.DataFrame:
    names = [str(name) for name in facts["condition_names"]]
    success = pd.Series(activity["success"])
    parts = [("all", success)]
    if names:
        parts += [(names[one], success[activity["condition"] == one]) for one in np.unique(activity["condition"])]
    return pd.DataFrame([{"condition": name, "success": own.mean(), "n_trials": len(own)} for name, own in parts])


def _title(activity: Mapping[str, np.ndarray], facts: Mapping[str, Any], trial: int) -> str:
    names = list(facts["condition_names"])
    return f"trial {trial}: {names[activity['condition'][trial]]}" if names else f"trial {trial}"


def _headline(network: str, facts: Mapping[str, Any]) -> str:
    line = f"{network}: success {facts['success']:.1%}"
    if facts.get("baseline_loss"):
        line += f", loss {facts['loss'] / facts['baseline_loss']:.1%} of always answering the mean"
    return line


def _draw_inputs(ax: Axes, inputs: np.ndarray, time: np.ndarray) -> None:
    """All inputs above one another, scaled alike."""
    largest = max(float(np.abs(inputs).max()), 1e-12)
    if inputs.shape[1] > MOST_LINES:
        ax.pcolormesh(time, -np.arange(inputs.shape[1]), inputs.T, cmap="RdBu_r", vmin=-largest, vmax=largest)
    else:
        for channel in range(inputs.shape[1]):
            ax.plot(time, inputs[:, channel] / (2 * largest) - channel, color="0.35", lw=0.4)
    ax.set_yticks([])


def draw_path(ax: Axes, hand: np.ndarray, target: np.ndarray) -> None:
    """Path of the hand in the plane, with the places where it should be."""
    ax.plot(*hand.T, color="C0", lw=1.0)
    ax.plot(*hand[0], color="C0", marker="o", ms=3)
    ax.plot(*target[-1], color=TRUTH_COLOUR, marker="+", ms=6, ls="none")
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel("x (m)")
    ax.set_ylabel("y (m)")


def _draw_success(ax: Axes, table: pd.DataFrame) -> None:
    at = -np.arange(len(table))
    ax.barh(at, table["success"], height=0.7, color=["0.3", *["C0"] * (len(table) - 1)])
    ax.set_yticks(at, table["condition"])
    ax.set_xlim(0, 1)
    ax.set_xlabel("success")
