"""States in three dimensions that are turned: what plotly draws in the report."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from plotly import graph_objects as go

from ctdb.figures.base import STYLE, TRUTH_COLOUR
from ctdb.figures.principal import MARGIN, PrincipalSpace, limits_of

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Line of each fit beside the truth, whose own is solid and black."""


def trajectories_in_space(
    name: str, shown: Mapping[str, Sequence[Float[np.ndarray, "bins axes"]]], space: PrincipalSpace
) -> go.Figure:
    """Trials of the true system (the first of `shown`) and of fits: all at once, or each fit beside the truth."""
    truth, *fits = shown
    canvas = go.Figure()
    with mpl.style.context(STYLE):
        colours = [mpl.colors.to_hex(f"C{index % 10}") for index in range(len(fits))]
    canvas.add_trace(lines(shown[truth], truth, {"color": TRUTH_COLOUR, "width": 3}))
    for index, (fit, colour) in enumerate(zip(fits, colours, strict=True)):
        line = {"color": colour, "width": 3, "dash": DASHES[index % len(DASHES)]}
        canvas.add_trace(lines(shown[fit], fit, line))
    choices = [{"label": f"{truth} and all fits", "visible": [True] * len(shown)}]
    for number, system in enumerate(shown):
        label = system if system == truth else f"{truth} and {system}"
        choices.append({"label": label, "visible": [index in (0, number) for index in range(len(shown))]})
    return laid_out(canvas, f"{name}: states", space, limits_of(np.concatenate(shown[truth])), choices)


def laid_out(
    canvas: go.Figure,
    what: str,
    space: PrincipalSpace,
    limits: Sequence[tuple[float, float]],
    choices: list[dict[str, object]],
) -> go.Figure:
    """Axes of the space, in which all systems have the same limits, and the choices that a reader has.

    Parameters
    ----------
    canvas
        The figure, with its traces; it is changed and returned.
    what
        Begin of its title, in ``layout.meta.title``.
    space, limits
        The space, and the lowest and highest value that is drawn along each of its axes.
    choices
        What a reader can choose, in ``layout.meta.choices``: of each a `label`, and which traces are `visible`.
    """
    titles = [*space.labels[-len(space.share) :], "", ""]
    wider = [(low - MARGIN * (high - low), high + MARGIN * (high - low)) for low, high in limits]
    axes = {
        f"{letter}axis": {"title": {"text": title}, "range": limit, "showspikes": False}
        for letter, title, limit in zip("xyz", titles, [*wider, (-1, 1), (-1, 1)], strict=False)
    }
    return canvas.update_layout(
        meta={"title": f"{what} in the true states' principal components (a.u.)", "choices": choices},
        margin={"t": 0, "r": 0, "b": 0, "l": 0},
        scene={"aspectmode": "cube", **axes},
        legend={"itemsizing": "constant", "orientation": "h", "y": 0.0, "yanchor": "top"},
        template="plotly_white",
    )


def lines(trials: Sequence[np.ndarray], name: str, line: Mapping[str, object]) -> go.Scatter3d:
    """Trajectories (bins, axes) as one line with gaps."""
    gap = np.full((1, trials[0].shape[1]), np.nan)
    points = np.concatenate([part for trial in trials for part in (trial, gap)])
    return scatter(points, name, mode="lines", line=dict(line))


def scatter(points: np.ndarray, name: str, **style: object) -> go.Scatter3d:
    """Points (n, axes) in space; an axis that there is not is 0."""
    space = np.zeros((len(points), 3), np.float32)
    space[:, : points.shape[1]] = points
    style = {"hoverinfo": "skip"} | style
    return go.Scatter3d(x=space[:, 0], y=space[:, 1], z=space[:, 2], name=name, legendgroup=name, **style)
