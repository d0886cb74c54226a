"""Fixed points of the system behind the spikes and of fits to it, in the same three dimensions, and their spectra."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from ctdb.figures import FIGURES
from ctdb.figures.base import WIDTH, Figure, FigureSettings
from ctdb.figures.planned import Need, Planned
from ctdb.figures.portraits import COLOURS, Portrait, Portraits, portraits_of
from ctdb.settings import Count, NonEmpty, Seed

if TYPE_CHECKING:
    from plotly import graph_objects as go

COLUMNS = 4
"""Systems beside one another; further ones go below."""
MARKERS = dict(zip(COLOURS, "oD^s*", strict=True))
"""Marker of a point by its stability; only those of stable points are filled."""


class FixedPointsSettings(FigureSettings):
    """Settings of figure `fixed_points`."""

    dataset: str
    models: NonEmpty[str]
    seed: Seed = 0
    n_trials: Count = 8


@FIGURES.register("fixed_points")
class FixedPointsFigure(Figure):
    """Above, fixed points among grey trajectories, a fit's carried over by regression; below, all their eigenvalues.

    Colour and marker tell how many directions are unstable; stable points are filled. Points of a fit that lie far
    from all true states are counted in its panel instead.
    """

    Settings = FixedPointsSettings
    fields = ("latents",)

    @staticmethod
    def needs(settings: FixedPointsSettings, planned: Planned) -> list[Need]:
        """Dataset, fits, and the dynamics of all of them."""
        fits = [(settings.dataset, model, settings.seed) for model in settings.models]
        return [
            ("dataset", settings.dataset),
            ("dynamics", settings.dataset),
            *(("fit", *fit) for fit in fits),
            *(("dynamics", *fit) for fit in fits),
        ]

    @staticmethod
    def draw(settings: FixedPointsSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the first `n_trials` trials of the split that scores are reported on, and all points."""
        shown = portraits_of(settings.dataset, settings.models, settings.seed, settings.n_trials, files)
        table = pd.concat([portrait.points for portrait in shown.systems], ignore_index=True)
        return _draw(settings.dataset, shown), table.drop(columns="stability")

    @staticmethod
    def interactive(settings: FixedPointsSettings, files: Mapping[Need, str]) -> "go.Figure":
        """The same in a space that can be turned, in which a point says what it is."""
        from ctdb.figures.points_in_space import fixed_points_in_space  # plotly, which nothing else needs

        shown = portraits_of(settings.dataset, settings.models, settings.seed, settings.n_trials, files)
        return fixed_points_in_space(settings.dataset, shown)


def _draw(name: str, shown: Portraits) -> Canvas:
    space, portraits = shown.space, shown.systems
    n_columns = max(3, min(COLUMNS, len(portraits)))
    n_rows = -(-len(portraits) // n_columns)
    size = WIDTH / n_columns
    height = 0.75 + n_rows * (1.75 * size + 0.35)
    canvas = plt.figure(figsize=(size * min(n_columns, len(portraits)), height))
    grid = canvas.add_gridspec(
        n_rows,
        min(n_columns, len(portraits)),
        left=0.06 * WIDTH / canvas.get_figwidth(),
        right=1 - 0.02 * WIDTH / canvas.get_figwidth(),
        bottom=0.62 / height,
        top=1 - 0.45 / height,
        wspace=0.12,
        hspace=0.2,
    )
    sizes = [portrait.found.eigenvalues.abs().max().item() for portrait in portraits if len(portrait.found)]
    reach = 1.05 * max([1.07, *sizes])
    for place, portrait in enumerate(portraits):
        cell = grid[place].subgridspec(2, 1, height_ratios=[1, 0.75], hspace=0.08 if len(space.share) == 3 else 0.4)
        above = canvas.add_subplot(cell[0], **space.projection)
        below = canvas.add_subplot(cell[1])
        draw_points(above, portrait, shown)
        draw_spectrum(below, portrait, reach)
        if place % n_columns:
            below.set_yticklabels([])
        else:
            below.set_ylabel("imaginary part")
        below.set_xlabel("real part of eigenvalues")
    seen = [label for label in MARKERS if any(portrait.at(label).any() for portrait in portraits)]
    handles = [Line2D([], [], ls="none", label=label, **point_style(label, 4.0)) for label in seen]
    canvas.legend(handles=handles, loc="lower center", ncols=max(len(seen), 1))
    components = "principal components" if len(space.share) > 1 else "principal component"
    canvas.suptitle(f"{name}: fixed points in the true states' {components} (a.u.)", x=0.02, ha="left")
    return canvas


def point_style(label: str, size: float) -> dict[str, object]:
    """How points of one stability are drawn."""
    marker, colour = MARKERS[label], COLOURS[label]
    filled = colour if label == "stable" else "none"
    return {"marker": marker, "ms": size * (1.5 if marker == "*" else 1), "mec": colour, "mfc": filled, "mew": 0.7}


def draw_points(ax: Axes, portrait: Portrait, shown: Portraits) -> None:
    """Trajectories and points; over a single component, points stand at the end of time."""
    space, single = shown.space, len(shown.space.share) == 1
    for trial in portrait.trajectories:
        ax.plot(*space.coordinates(trial, shown.bin_s), color="0.75", lw=0.4, zorder=1)
    end = shown.bin_s * max(map(len, shown.systems[0].trajectories))
    for label in MARKERS:
        points = portrait.coordinates[portrait.at(label) & portrait.near]
        if len(points):
            at = [np.full(len(points), end), points[:, 0]] if single else list(points.T)
            ax.plot(*at, ls="none", zorder=3, **point_style(label, 3.5))
    space.frame(ax, [(0.0, end), *shown.limits] if single else shown.limits)
    ax.set_title(portrait.title)
    write = ax.text2D if len(space.share) == 3 else ax.text
    write(0.5, 0.96, portrait.note, transform=ax.transAxes, ha="center", va="top", fontsize=6, color="0.35")


def draw_spectrum(ax: Axes, portrait: Portrait, reach: float) -> None:
    """Eigenvalues of all points and the unit circle, on which nothing grows or dies out."""
    turn = np.linspace(0, 2 * np.pi, 200)
    ax.plot(np.cos(turn), np.sin(turn), color="0.5", lw=0.6, zorder=1)
    for label in MARKERS:
        values = portrait.found.eigenvalues.numpy()[portrait.at(label)].ravel()
        if len(values):
            ax.plot(values.real, values.imag, ls="none", zorder=2, **point_style(label, 1.6) | {"mew": 0.3})
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    ax.set_aspect("equal", adjustable="box")
    ax.set_xticks([-1, 0, 1])
    ax.set_yticks([-1, 0, 1])
