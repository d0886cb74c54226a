"""How well a network does its task: inputs, targets and outputs of a few simulation trials."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas

from ctdb.figures import FIGURES
from ctdb.figures.base import TRUTH_COLOUR, WIDTH, Figure, FigureSettings, Need
from ctdb.files import read_hdf5
from ctdb.settings import Count, Seed


class TaskPerformanceSettings(FigureSettings):
    """Settings of figure `task_performance`."""

    network: str
    seed: Seed = 0
    n_trials: Count = 2


@FIGURES.register("task_performance")
class TaskPerformance(Figure):
    """One row per output channel, one column per trial: the input with the same index, target and output."""

    Settings = TaskPerformanceSettings

    @staticmethod
    def needs(settings: TaskPerformanceSettings) -> list[Need]:
        """Activity of the network."""
        return [("activity", settings.network, settings.seed)]

    @staticmethod
    def draw(settings: TaskPerformanceSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the first `n_trials` simulation trials."""
        (path,) = files.values()
        activity, facts = read_hdf5(path)
        n_trials = min(settings.n_trials, len(activity["outputs"]))
        names = list(facts["output_names"])
        time = facts["bin_s"] * np.arange(activity["outputs"].shape[1])
        canvas, axes = plt.subplots(
            len(names),
            n_trials,
            figsize=(WIDTH, 0.5 + 0.9 * len(names)),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        rows = []
        for trial in range(n_trials):
            for channel, name in enumerate(names):
                ax = axes[channel, trial]
                traces = {key: activity[key][trial, :, channel] for key in ("targets", "outputs")}
                if channel < activity["inputs"].shape[2]:
                    traces["inputs"] = activity["inputs"][trial, :, channel]
                    ax.plot(time, traces["inputs"], color="0.65", lw=0.6, label="input")
                ax.plot(time, traces["targets"], color=TRUTH_COLOUR, lw=1.2, ls="--", label="target")
                ax.plot(time, traces["outputs"], color="C0", lw=1.0, label="output")
                if trial == 0:
                    ax.set_ylabel(f"{name}\n(a.u.)")
                if channel == len(names) - 1:
                    ax.set_xlabel("time (s)")
                if channel == 0:
                    ax.set_title(f"trial {trial + 1}")
                rows.append(pd.DataFrame({"trial": trial + 1, "channel": name, "time_s": time, **traces}))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        share = facts["loss"] / facts["baseline_loss"]
        canvas.legend(handles, labels, loc="outside upper right", ncols=3)
        canvas.suptitle(f"{settings.network}: loss {share:.1%} of always answering the mean", x=0.02, ha="left")
        return canvas, pd.concat(rows, ignore_index=True)
