"""Latent trajectories of fits beside those of the system behind the spikes, in the same three dimensions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas

from ctdb.figures import FIGURES
from ctdb.figures.base import TRUTH_COLOUR, WIDTH, Figure, FigureSettings, fit_outputs, fit_title, read_session
from ctdb.figures.planned import Need, Planned
from ctdb.figures.principal import PrincipalSpace, limits_of, principal_space
from ctdb.metrics.r2 import linear_map
from ctdb.settings import Count, NonEmpty, Seed

if TYPE_CHECKING:
    from plotly import graph_objects as go


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
) -> tuple[dict[str, list[np.ndarray]], PrincipalSpace, str, float]:
    """Trials (bins, axes) of the truth and of each fit, their space, their split, and the width of a bin in seconds."""
    dataset = read_session(files["dataset", settings.dataset], settings.session)
    split = dataset.report_split
    space = principal_space(dataset, settings.dataset, "latents")
    train = dataset["train"].valid_bins
    target = space(dataset["train"].latents[train].astype(np.float64))
    lengths = dataset[split].valid_bins.sum(1)[: settings.n_trials]
    shown = {"true states": space(dataset[split].latents[: len(lengths)])}
    for model in settings.models:
        path = files["fit", settings.dataset, model, settings.seed]
        weights, offset = linear_map(fit_outputs(path, "train", settings.session)["latents"][train], target)
        inferred = fit_outputs(path, split, settings.session)["latents"][: len(lengths)]
        shown[fit_title(path, model)] = inferred @ weights + offset
    trajectories = {
        name: [trial[:length] for trial, length in zip(trials, lengths, strict=True)] for name, trials in shown.items()
    }
    return trajectories, space, split, dataset.bin_s


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
