"""Latent trajectories of fits beside those of the system behind the spikes, in the same three dimensions."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas

from ctdb import datasets
from ctdb.errors import DatasetError
from ctdb.figures import FIGURES
from ctdb.figures.base import TRUTH_COLOUR, WIDTH, Figure, FigureSettings, Need, fit_outputs, fit_title, read_session
from ctdb.metrics.r2 import linear_map
from ctdb.settings import Count, NonEmpty, Seed


class LatentsSettings(FigureSettings):
    """Settings of figure `latents`."""

    dataset: str
    models: NonEmpty[str]
    session: str = ""
    seed: Seed = 0
    n_trials: Count = 8


@FIGURES.register("latents")
class Latents(Figure):
    """True states in their first three principal components; inferred ones mapped there by regression."""

    Settings = LatentsSettings
    fields = ("latents",)

    @staticmethod
    def needs(settings: LatentsSettings) -> list[Need]:
        """Dataset and fits."""
        return [
            ("dataset", settings.dataset),
            *(("fit", settings.dataset, model, settings.seed) for model in settings.models),
        ]

    @staticmethod
    def draw(settings: LatentsSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the first `n_trials` trials of the split that scores are reported on."""
        dataset = read_session(files["dataset", settings.dataset], settings.session)
        split = dataset.report_split
        if dataset["train"].latents is None:
            raise DatasetError(
                f"dataset {settings.dataset!r} has no true latents, which figure `latents` needs; draw another dataset"
            )
        valid = {name: _valid_bins(trials) for name, trials in dataset.splits.items()}
        states = dataset["train"].latents[valid["train"]].astype(np.float64)
        axes_of_state, share = _principal_axes(states)
        centre = states.mean(0)
        target = (states - centre) @ axes_of_state
        lengths = valid[split].sum(1)[: settings.n_trials]
        shown = {"true states": (dataset[split].latents[: len(lengths)] - centre) @ axes_of_state}
        for model in settings.models:
            path = files["fit", settings.dataset, model, settings.seed]
            weights, offset = linear_map(
                fit_outputs(path, "train", settings.session)["latents"][valid["train"]], target
            )
            inferred = fit_outputs(path, split, settings.session)["latents"][: len(lengths)]
            shown[fit_title(path, model)] = inferred @ weights + offset
        trajectories = {
            name: [trial[:length] for trial, length in zip(trials, lengths, strict=True)]
            for name, trials in shown.items()
        }
        return _draw(settings, split, trajectories, share, dataset.bin_s)


def _valid_bins(trials: datasets.Split) -> np.ndarray:
    """Mask (trials, bins) of bins that are not padding."""
    n_trials, length = trials.recon_data.shape[:2]
    return np.arange(length) < (np.full(n_trials, length) if trials.n_bins is None else trials.n_bins)[:, None]


def _principal_axes(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First three principal axes (states, 3), with the sign of their largest weight positive, and variance shares."""
    values, vectors = np.linalg.eigh(np.cov(states.T).reshape(states.shape[1], -1))
    vectors = vectors[:, ::-1][:, :3]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    return vectors * signs, values[::-1][:3] / values.sum()


def _draw(
    settings: LatentsSettings, split: str, shown: dict[str, list[np.ndarray]], share: np.ndarray, bin_s: float
) -> tuple[Canvas, pd.DataFrame]:
    n_axes = min(3, len(share))
    labels = [f"PC {axis + 1} ({share[axis]:.0%})" for axis in range(n_axes)]
    everything = np.concatenate(shown["true states"])
    limits = [(everything[:, axis].min(), everything[:, axis].max()) for axis in range(n_axes)]
    if n_axes == 1:
        labels = ["time (s)", *labels]
        limits = [(0, bin_s * max(map(len, shown["true states"]))), *limits]
    canvas = plt.figure(figsize=(WIDTH, 0.4 + WIDTH / max(3, len(shown))))
    projection = {"projection": "3d"} if n_axes == 3 else {}
    panels = canvas.subplots(1, len(shown), squeeze=False, subplot_kw=projection)[0]
    canvas.subplots_adjust(left=0.03, right=0.97, bottom=0.04 if n_axes == 3 else 0.1, top=0.86, wspace=0.12)
    rows = []
    for index, (ax, (name, points)) in enumerate(zip(panels, shown.items(), strict=True)):
        for trial in points:
            colour = TRUTH_COLOUR if name == "true states" else f"C{index - 1}"
            coordinates = [trial[:, axis] for axis in range(n_axes)]
            if n_axes == 1:
                coordinates.insert(0, bin_s * np.arange(len(trial)))
            ax.plot(*coordinates, color=colour, lw=0.5, alpha=0.8)
        ax.set_title(name)
        if n_axes == 3:
            ax.set_box_aspect((1, 1, 1), zoom=0.95)
        for letter, label, (low, high) in zip("xyz", labels, limits, strict=False):
            margin = 0.08 * (high - low)
            getattr(ax, f"set_{letter}lim")(low - margin, high + margin)
            getattr(ax, f"set_{letter}label")(label, labelpad=-14 if n_axes == 3 else None)
            if not label.startswith("time"):
                getattr(ax, f"set_{letter}ticks")([])
        for number, trial in enumerate(points):
            columns = {f"pc{axis + 1}": trial[:, axis] for axis in range(n_axes)}
            rows.append(
                pd.DataFrame({"source": name, "trial": number, "time_s": bin_s * np.arange(len(trial)), **columns})
            )
    canvas.suptitle(
        f"{settings.dataset}: {len(rows) // len(shown)} {split} trials in the true states' principal components (a.u.)",
        x=0.02,
        ha="left",
    )
    return canvas, pd.concat(rows, ignore_index=True)
