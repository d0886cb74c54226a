"""One window of a recording as LFADS sees it: spikes, rates, factors, inferred inputs and the initial condition."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ctdb.errors import DatasetError, MissingError
from ctdb.figures import FIGURES
from ctdb.figures.base import WIDTH, Figure, FigureSettings, fit_outputs, fit_title, read_session, say_missing
from ctdb.figures.planned import Need, Planned
from ctdb.settings import Seed

BRIGHTEST = 0.995
"""Share of the rates that the colour scale of rates holds."""


class PylfadsWindowSettings(FigureSettings):
    """Settings of figure `pylfads_window`; `trial` counts the windows of the split that scores are reported on."""

    dataset: str
    model: str
    session: str = ""
    seed: Seed = 0
    trial: Seed = 0


@FIGURES.register("pylfads_window")
class PylfadsWindow(Figure):
    """All that LFADS infers of one window: spikes and rates of every neuron, factors and inferred inputs over time.

    Spikes are marks, larger where a bin holds several; a line separates held-out neurons, which the model did not see.
    Bands around the inferred inputs, and bars at the initial condition, are one posterior standard deviation. The loss
    over the training is in the figure `learning_curve` of the same fit.
    """

    Settings = PylfadsWindowSettings
    partial = True

    @staticmethod
    def needs(settings: PylfadsWindowSettings, planned: Planned) -> list[Need]:
        """Data set and fit."""
        return [("dataset", settings.dataset), ("fit", settings.dataset, settings.model, settings.seed)]

    @staticmethod
    def draw(settings: PylfadsWindowSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw window number `trial` of the split that scores are reported on."""
        dataset = read_session(files["dataset", settings.dataset], settings.session)
        split, trial = dataset.report_split, settings.trial
        trials = dataset[split]
        if trial >= trials.n_trials:
            raise DatasetError(
                f"figure `pylfads_window`: trial {trial} of {trials.n_trials} {split} trials, counted from 0"
            )
        path = files["fit", settings.dataset, settings.model, settings.seed]
        n_bins = int(trials.valid_bins[trial].sum())
        outputs = {name: value[trial] for name, value in fit_outputs(path, split, settings.session).items()}
        one = {name: value[:n_bins] if value.ndim == 2 else value for name, value in outputs.items()}
        spikes = trials.recon_data[trial, :n_bins]
        if not dataset.bin_s:
            raise DatasetError(f"{settings.dataset}: the width of its bins is not known; set `bin_s` of the data set")
        time = dataset.bin_s * np.arange(n_bins)

        canvas = plt.figure(figsize=(WIDTH, 4.6), layout="constrained")
        above, below = canvas.subfigures(2, 1, height_ratios=[1.25, 1])
        left, right = above.subplots(1, 2, sharex=True, sharey=True)
        extent = (0.0, time[-1] + dataset.bin_s)
        _draw_spikes(left, spikes, dataset.n_heldin, time + dataset.bin_s / 2, extent)
        image = right.imshow(
            one["rates"].T / dataset.bin_s,
            aspect="auto",
            extent=(*extent, spikes.shape[1] - 0.5, -0.5),
            cmap="cividis",
            vmin=0,
            vmax=float(np.quantile(one["rates"], BRIGHTEST)) / dataset.bin_s,
        )
        above.colorbar(image, ax=right, label="rate (spikes/s)", shrink=0.8)
        right.set_title("inferred rates")
        if dataset.n_heldin < dataset.n_neurons:
            right.axhline(dataset.n_heldin - 0.5, color="white", lw=0.8)
        factors, inputs, start = below.subplots(1, 3, width_ratios=[1.2, 1.2, 0.8])
        _draw_factors(factors, one, time)
        _draw_inputs(inputs, one, time)
        _draw_initial_condition(start, one)
        for ax in (left, right, factors, inputs):
            ax.set_xlabel("time (s)")
        title = fit_title(path, settings.model)
        where = f"{split} window {trial}" + (f" of {settings.session}" if settings.session else "")
        canvas.suptitle(
            f"{settings.dataset}: {where} in bins of {1000 * dataset.bin_s:g} ms, {title}", x=0.02, ha="left"
        )
        return canvas, _table(one, spikes, time)

    @staticmethod
    def findings(settings: PylfadsWindowSettings, table: pd.DataFrame) -> str:
        """How many spikes there are, and how many the rates expect."""
        spikes, rates = (table.loc[table["panel"] == panel, "value"].sum() for panel in ("spikes", "rates"))
        return f"The window holds {spikes:g} spikes; the inferred rates expect {rates:.0f}."


def _draw_spikes(ax: Axes, spikes: np.ndarray, n_heldin: int, time: np.ndarray, extent: tuple[float, float]) -> None:
    """A mark for each bin with spikes."""
    at, neuron = np.nonzero(np.nan_to_num(spikes))
    ax.scatter(time[at], neuron, s=1.2 * spikes[at, neuron], c="black", marker="s", lw=0)
    if n_heldin < spikes.shape[1]:
        ax.axhline(n_heldin - 0.5, color="0.5", lw=0.6)
    ax.set_xlim(*extent)
    ax.set_ylim(spikes.shape[1] - 0.5, -0.5)
    ax.set_ylabel("neuron (below the line: held out)" if n_heldin < spikes.shape[1] else "neuron")
    ax.set_title("spikes")


def _draw_factors(ax: Axes, one: Mapping[str, np.ndarray], time: np.ndarray) -> None:
    """Factors one above the other, each a line."""
    if "factors" not in one:
        say_missing(ax, MissingError("factors, which this model does not have"))
        return
    values = one["factors"]
    step = 1.05 * float(np.ptp(values, axis=0).max()) or 1.0
    for channel, factor in enumerate(values.T):
        ax.plot(time[: len(factor)], factor - factor.mean() - channel * step, color="C0", lw=0.8)
    n = values.shape[1]
    shown = range(0, n, -(-n // 10))
    ax.set_yticks([-channel * step for channel in shown], [str(channel) for channel in shown])
    ax.set_ylabel("factor")
    ax.set_title("factors, less their means")


def _draw_inputs(ax: Axes, one: Mapping[str, np.ndarray], time: np.ndarray) -> None:
    """Posterior mean and standard deviation of every inferred input."""
    if "co_means" not in one:
        say_missing(ax, MissingError("inferred inputs: this model has no controller"))
        return
    for channel, mean in enumerate(one["co_means"].T):
        std = one["co_stds"][:, channel]
        style = ("-", "--", ":", "-.")[channel % 4]
        ax.plot(time[: len(mean)], mean, color=f"C{channel % 7}", ls=style, label=f"input {channel}")
        ax.fill_between(time[: len(mean)], mean - std, mean + std, color=f"C{channel % 7}", alpha=0.2, lw=0)
    ax.axhline(0, color="0.8", lw=0.5, zorder=0)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.2 * (high - low))
    ax.legend(loc="upper center", ncols=4)
    ax.set_title("inferred inputs")


def _draw_initial_condition(ax: Axes, one: Mapping[str, np.ndarray]) -> None:
    """Posterior mean and standard deviation of every dimension of the initial condition."""
    if "ic_mean" not in one:
        say_missing(ax, MissingError("an initial condition, which this model does not infer"))
        return
    mean, std = one["ic_mean"], one["ic_std"]
    ax.errorbar(mean, np.arange(len(mean)), xerr=std, fmt="o", ms=2, color="C0", lw=0.7)
    ax.axvline(0, color="0.8", lw=0.5, zorder=0)
    ax.set_ylim(len(mean) - 0.5, -0.5)
    ax.set_ylabel("dimension")
    ax.set_xlabel("a.u.")
    ax.set_title("initial condition")


def _table(one: Mapping[str, np.ndarray], spikes: np.ndarray, time: np.ndarray) -> pd.DataFrame:
    """One row per panel, channel and bin; spikes and rates are per bin."""
    panels = {"spikes": spikes}
    names = {"rates": "rates", "factors": "factors", "co_means": "inferred inputs", "co_stds": "inferred inputs, s.d."}
    panels |= {panel: one[name] for name, panel in names.items() if name in one}
    panels |= {
        panel: one[name][None]
        for name, panel in {"ic_mean": "initial condition", "ic_std": "initial condition, s.d."}.items()
        if name in one
    }
    parts = []
    for panel, values in panels.items():
        n_bins, n_channels = values.shape
        at = np.full(1, np.nan) if panel.startswith("initial condition") else time[:n_bins]
        columns = {"channel": np.tile(np.arange(n_channels), n_bins), "time_s": np.repeat(at, n_channels)}
        parts.append(pd.DataFrame({"panel": panel} | columns | {"value": values.ravel()}))
    return pd.concat(parts, ignore_index=True)
