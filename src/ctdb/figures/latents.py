"""Latent trajectories of fits beside those of the system behind the spikes, in the same three dimensions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas

from ctdb.datasets import SpikeDataset
from ctdb.figures import FIGURES
from ctdb.figures.base import TRUTH_COLOUR, WIDTH, Figure, FigureSettings, fit_outputs, fit_title, read_session
from ctdb.figures.planned import Need, Planned
from ctdb.figures.principal import PrincipalSpace, limits_of, principal_space
from ctdb.metrics.r2 import linear_map
from ctdb.settings import Count, NonEmpty, Seed

if TYPE_CHECKING:
    from plotly import graph_objects as go

Trajectory = Float[np.ndarray, "bins axes"]


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
    def needs(settings: LatentsSettings, planned: Planned) -> list[Need]:
        """Dataset and fits."""
        return [
            ("dataset", settings.dataset),
            *(("fit", settings.dataset, model, settings.seed) for model in settings.models),
        ]

    @staticmethod
    def draw(settings: LatentsSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the first `n_trials` trials of the split that scores are reported on."""
        trajectories, space, split, bin_s = _trajectories(settings, files)
        return _draw(settings, split, trajectories, space, bin_s)

    @staticmethod
    def interactive(settings: LatentsSettings, files: Mapping[Need, str]) -> "go.Figure":
        """The same in a space that can be turned, with the truth beside each fit."""
        from ctdb.figures.space import trajectories_in_space  # plotly, which nothing else needs

        trajectories, space, *_ = _trajectories(settings, files)
        return trajectories_in_space(settings.dataset, trajectories, space)


def _trajectories(
    settings: LatentsSettings, files: Mapping[Need, str]
) -> tuple[dict[str, list[Trajectory]], PrincipalSpace, str, float]:
    """Trials of the truth and of each fit, their space, their split, and the width of a bin in seconds."""
    dataset = read_session(files["dataset", settings.dataset], settings.session)
    space = principal_space(dataset, settings.dataset, "latents")
    trajectories = {"true states": true_trajectories(dataset, space, settings.n_trials)}
    for model in settings.models:
        path = files["fit", settings.dataset, model, settings.seed]
        own = trajectories_of(path, dataset, space, settings.n_trials, settings.session)
        trajectories[fit_title(path, model)] = own
    return trajectories, space, dataset.report_split, dataset.bin_s


def true_trajectories(dataset: SpikeDataset, space: PrincipalSpace, n_trials: int) -> list[Trajectory]:
    """Coordinates of the true states of the first `n_trials` trials of the split that scores are reported on."""
    split = dataset[dataset.report_split]
    lengths = split.valid_bins.sum(1)[:n_trials]
    return [space(trial[:length]) for trial, length in zip(split.latents, lengths, strict=False)]


def trajectories_of(
    path: str, dataset: SpikeDataset, space: PrincipalSpace, n_trials: int, session: str = ""
) -> list[Trajectory]:
    """The same of a fit, whose latents are carried over by a regression on the train trials."""
    train, split = dataset["train"], dataset[dataset.report_split]
    target = space(train.latents[train.valid_bins].astype(np.float64))
    weights, offset = linear_map(fit_outputs(path, "train", session)["latents"][train.valid_bins], target)
    inferred = fit_outputs(path, dataset.report_split, session)["latents"]
    lengths = split.valid_bins.sum(1)[:n_trials]
    return [trial[:length] @ weights + offset for trial, length in zip(inferred, lengths, strict=False)]


def _draw(
    settings: LatentsSettings, split: str, shown: dict[str, list[np.ndarray]], space: PrincipalSpace, bin_s: float
) -> tuple[Canvas, pd.DataFrame]:
    n_axes = len(space.share)
    limits = limits_of(np.concatenate(shown["true states"]))
    if n_axes == 1:
        limits = [(0.0, bin_s * max(map(len, shown["true states"]))), *limits]
    canvas = plt.figure(figsize=(WIDTH, 0.4 + WIDTH / max(3, len(shown))))
    panels = canvas.subplots(1, len(shown), squeeze=False, subplot_kw=space.projection)[0]
    canvas.subplots_adjust(left=0.03, right=0.97, bottom=0.04 if n_axes == 3 else 0.1, top=0.86, wspace=0.12)
    rows = []
    for index, (ax, (name, points)) in enumerate(zip(panels, shown.items(), strict=True)):
        for trial in points:
            colour = TRUTH_COLOUR if name == "true states" else f"C{index - 1}"
            ax.plot(*space.coordinates(trial, bin_s), color=colour, lw=0.5, alpha=0.8)
        ax.set_title(name)
        space.frame(ax, limits)
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
