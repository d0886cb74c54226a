"""One test trial: its spikes, the true rates, and the rates that models infer."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas

from ctdb.datasets import SpikeDataset
from ctdb.errors import DatasetError
from ctdb.figures import FIGURES
from ctdb.figures.base import TRUTH_COLOUR, WIDTH, Figure, FigureSettings, fit_outputs, fit_title, read_session
from ctdb.figures.planned import Need, Planned
from ctdb.settings import Count, NonEmpty, Seed


class RasterSettings(FigureSettings):
    """Settings of figure `raster`."""

    dataset: str
    models: NonEmpty[str]
    session: str = ""
    seed: Seed = 0
    trial: Seed = 0
    n_traces: Count = 4


@FIGURES.register("raster")
class Raster(Figure):
    """Above, neurons by time as images in one colour scale; below, the neurons whose rate varies most.

    Neurons are sorted by the time of their highest rate; a line separates held-out neurons from held-in ones.
    """

    Settings = RasterSettings

    @staticmethod
    def needs(settings: RasterSettings, planned: Planned) -> list[Need]:
        """Dataset and fits."""
        return [
            ("dataset", settings.dataset),
            *(("fit", settings.dataset, model, settings.seed) for model in settings.models),
        ]

    @staticmethod
    def draw(settings: RasterSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw trial number `trial` of the split that scores are reported on."""
        dataset = read_session(files["dataset", settings.dataset], settings.session)
        split = dataset.report_split
        trials = dataset[split]
        if (trial := settings.trial) >= trials.n_trials:
            raise DatasetError(f"figure `raster`: trial {trial} of {trials.n_trials} {split} trials, counted from 0")
        n_bins = trials.recon_data.shape[1] if trials.n_bins is None else int(trials.n_bins[trial])
        spikes = trials.recon_data[trial, :n_bins]
        rates = {} if trials.truth is None else {"true rates": trials.truth[trial, :n_bins]}
        for model in settings.models:
            path = files["fit", settings.dataset, model, settings.seed]
            rates[fit_title(path, model)] = fit_outputs(path, split, settings.session)["rates"][trial, :n_bins]
        return _draw(settings, dataset, split, spikes, rates)


def _draw(
    settings: RasterSettings,
    dataset: SpikeDataset,
    split: str,
    spikes: np.ndarray,
    rates: dict[str, np.ndarray],
) -> tuple[Canvas, pd.DataFrame]:
    reference = next(iter(rates.values()))
    time = dataset.bin_s * np.arange(len(spikes))
    heldin = np.arange(dataset.n_heldin)
    heldout = np.arange(dataset.n_heldin, dataset.n_neurons)
    order = np.concatenate(
        [group[np.argsort(reference[:, group].argmax(0), kind="stable")] for group in (heldin, heldout)]
    )
    candidates = heldout if len(heldout) else heldin
    shown = candidates[np.argsort(-reference[:, candidates].std(0), kind="stable")][: settings.n_traces]

    panels = {"spikes": spikes, **rates}
    canvas = plt.figure(figsize=(WIDTH, 4.6), layout="constrained")
    above, below = canvas.subfigures(2, 1, height_ratios=[1.25, 1])
    images = above.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    top = float(np.quantile(np.stack(list(rates.values())), 0.995))
    for ax, (name, values) in zip(images, panels.items(), strict=True):
        extent = (0, time[-1] + dataset.bin_s, len(order), 0)
        image = ax.imshow(values[:, order].T, aspect="auto", extent=extent, cmap="cividis", vmin=0, vmax=top)
        if len(heldout):
            ax.axhline(len(heldin), color="white", lw=0.8)
        ax.set_title(name)
        ax.set_xlabel("time (s)")
    images[0].set_ylabel("neuron (below the line: held out)" if len(heldout) else "neuron")
    above.colorbar(image, ax=list(images), label="spikes per bin", shrink=0.8)

    axes = below.subplots(1, len(shown), sharex=True, squeeze=False)[0]
    for ax, neuron in zip(axes, shown, strict=True):
        height = max(float(values[:, neuron].max()) for values in rates.values())
        ax.vlines(time[spikes[:, neuron] > 0], -0.12 * height, -0.04 * height, color="0.4", lw=0.5)
        for name, values in rates.items():
            true = name == "true rates"
            colour = TRUTH_COLOUR if true else None
            ax.plot(time, values[:, neuron], color=colour, lw=1.4 if true else 0.9, label=name)
        ax.set_ylim(-0.16 * height, 1.05 * height)
        ax.set_yticks([tick for tick in ax.get_yticks() if 0 <= tick <= height])
        ax.set_title(f"neuron {neuron}, {'held out' if neuron in heldout else 'held in'}")
        ax.set_xlabel("time (s)")
    axes[0].set_ylabel("rate (spikes per bin)")
    handles, labels = axes[0].get_legend_handles_labels()
    below.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    canvas.suptitle(f"{settings.dataset}: one {split} trial, bins of {1000 * dataset.bin_s:g} ms", x=0.02, ha="left")

    columns = {"spikes": spikes, **rates}
    table = pd.DataFrame(
        {
            "neuron": np.tile(np.arange(dataset.n_neurons), len(spikes)),
            "heldout": np.tile(np.arange(dataset.n_neurons) >= dataset.n_heldin, len(spikes)),
            "time_s": np.repeat(time, dataset.n_neurons),
            **{name.replace(" ", "_"): values.ravel() for name, values in columns.items()},
        }
    )
    return canvas, table
