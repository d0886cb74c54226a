"""Latent trajectories of fits beside those of the system behind the spikes, in the same three dimensions."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas

from ctdb import datasets
from ctdb.errors import DatasetError
from ctdb.figures import FIGURES
from ctdb.figures.base import TRUTH_COLOUR, WIDTH, Figure, FigureSettings, Need, fit_outputs, fit_title
from ctdb.metrics.r2 import linear_map
from ctdb.settings import Count, Seed


class LatentsSettings(FigureSettings):
    """Settings of figure `latents`."""

    dataset: str
    models: list[str]
    seed: Seed = 0
    n_trials: Count = 8


@FIGURES.register("latents")
class Latents(Figure):
    """True states in their first three principal components; inferred ones mapped there by regression."""

    Settings = LatentsSettings

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
        dataset = datasets.read(files["dataset", settings.dataset])
        split = dataset.report_split
        if dataset["train"].latents is None:
            raise DatasetError(
                f"dataset {settings.dataset!r} has no true latents, which figure `latents` needs; draw another dataset"
            )
        n_trials = min(settings.n_trials, dataset[split].n_trials)
        axes_of_state, share = _principal_axes(dataset["train"].latents)
        centre = dataset["train"].latents.mean((0, 1))
        shown = {"true states": (dataset[split].latents[:n_trials] - centre) @ axes_of_state}
        target = (dataset["train"].latents - centre) @ axes_of_state
        for model in settings.models:
            path = files["fit", settings.dataset, model, settings.seed]
            inferred = fit_outputs(path, "train")["latents"]
            weights, offset = linear_map(inferred.reshape(-1, inferred.shape[2]), target.reshape(-1, target.shape[2]))
            shown[fit_title(path, model)] = fit_outputs(path, split)["latents"][:n_trials] @ weights + offset
        return _draw(settings, split, shown, share, dataset.bin_s)


def _principal_axes(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First three principal axes (states, 3), with the sign of their largest weight positive, and variance shares."""
    flat = states.reshape(-1, states.shape[2]).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(flat.T).reshape(flat.shape[1], -1))
    vectors = vectors[:, ::-1][:, :3]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    return vectors * signs, values[::-1][:3] / values.sum()


def _draw(
    settings: LatentsSettings, split: str, shown: dict[str, np.ndarray], share: np.ndarray, bin_s: float
) -> tuple[Canvas, pd.DataFrame]:
    n_axes = min(3, len(share))
    canvas = plt.figure(figsize=(WIDTH, 0.4 + WIDTH / max(3, len(shown))))
    projection = {"projection": "3d"} if n_axes == 3 else {}
    panels = canvas.subplots(1, len(shown), squeeze=False, subplot_kw=projection)[0]
    canvas.subplots_adjust(left=0.01, right=0.97, bottom=0.04, top=0.86, wspace=0.12)
    reference = shown["true states"]
    limits = [(reference[..., axis].min(), reference[..., axis].max()) for axis in range(n_axes)]
    rows = []
    for index, (ax, (name, points)) in enumerate(zip(panels, shown.items(), strict=True)):
        for trial in points:
            colour = TRUTH_COLOUR if name == "true states" else f"C{index - 1}"
            ax.plot(*(trial[:, axis] for axis in range(n_axes)), color=colour, lw=0.5, alpha=0.8)
        ax.set_title(name)
        if n_axes == 3:
            ax.set_box_aspect((1, 1, 1), zoom=0.95)
        for axis, (letter, (low, high)) in enumerate(zip("xyz", limits, strict=False)):
            margin = 0.08 * (high - low)
            getattr(ax, f"set_{letter}lim")(low - margin, high + margin)
            getattr(ax, f"set_{letter}label")(f"PC {axis + 1} ({share[axis]:.0%})", labelpad=-14)
            getattr(ax, f"set_{letter}ticks")([])
        for number, trial in enumerate(points):
            columns = {f"pc{axis + 1}": trial[:, axis] for axis in range(n_axes)}
            rows.append(
                pd.DataFrame({"source": name, "trial": number, "time_s": bin_s * np.arange(len(trial)), **columns})
            )
    canvas.suptitle(
        f"{settings.dataset}: {len(reference)} {split} trials in the true states' principal components (a.u.)",
        x=0.02,
        ha="left",
    )
    return canvas, pd.concat(rows, ignore_index=True)
