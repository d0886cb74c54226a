"""Figures in three dimensions that are turned: what plotly draws in the report."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float
from plotly import graph_objects as go

from ctdb.figures.base import STYLE, TRUTH_COLOUR
from ctdb.figures.portraits import COLOURS, Portrait, Portraits
from ctdb.figures.principal import MARGIN, PrincipalSpace, limits_of

SYMBOLS = dict(zip(COLOURS, ["circle", "circle-open", "diamond-open", "square-open", "cross"], strict=True))
MODES = 3
"""Modes of a point that are told, the largest first."""


DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
"""Line of each fit beside the truth, whose own is solid and black."""


def fixed_points_in_space(name: str, shown: Portraits) -> go.Figure:
    """Fixed points of a dataset's true system and of fits, one system at a time.

    A point says what it is where the mouse rests; the table of the figure says the same. Small crosses beside a fit's
    points are the true ones. ``layout.meta.choices`` names the systems, and which traces are each one's.
    """
    canvas, owners = go.Figure(), []
    for portrait in shown.systems:
        traces = _traces(portrait, None if portrait is shown.systems[0] else shown.systems[0])
        canvas.add_traces(traces)
        owners += [portrait.name] * len(traces)
    for trace, owner in zip(canvas.data, owners, strict=True):
        trace.visible = owner == owners[0]
    choices = [
        {
            "label": portrait.title + (f" ({portrait.note})" if portrait.note else ""),
            "visible": [owner == portrait.name for owner in owners],
        }
        for portrait in shown.systems
    ]
    return _laid_out(canvas, f"{name}: fixed points", shown.space, shown.limits, choices)


def trajectories_in_space(
    name: str, shown: Mapping[str, Sequence[Float[np.ndarray, "bins axes"]]], space: PrincipalSpace
) -> go.Figure:
    """Trials of the true system (the first of `shown`) and of fits: all at once, or each fit beside the truth."""
    truth, *fits = shown
    canvas = go.Figure()
    with mpl.style.context(STYLE):
        colours = [mpl.colors.to_hex(f"C{index % 10}") for index in range(len(fits))]
    canvas.add_trace(_lines(shown[truth], truth, {"color": TRUTH_COLOUR, "width": 3}))
    for index, (fit, colour) in enumerate(zip(fits, colours, strict=True)):
        line = {"color": colour, "width": 3, "dash": DASHES[index % len(DASHES)]}
        canvas.add_trace(_lines(shown[fit], fit, line))
    choices = [{"label": f"{truth} and all fits", "visible": [True] * len(shown)}]
    for number, system in enumerate(shown):
        label = system if system == truth else f"{truth} and {system}"
        choices.append({"label": label, "visible": [index in (0, number) for index in range(len(shown))]})
    limits = limits_of(np.concatenate([trial for trials in shown.values() for trial in trials]))
    return _laid_out(canvas, f"{name}: states", space, limits, choices)


def _laid_out(
    canvas: go.Figure,
    what: str,
    space: PrincipalSpace,
    limits: Sequence[tuple[float, float]],
    choices: list[dict[str, object]],
) -> go.Figure:
    """Axes of the space, in which all systems have the same limits, and the choices that a reader has."""
    titles = [*space.labels[-len(space.share) :], "", ""]
    wider = [(low - MARGIN * (high - low), high + MARGIN * (high - low)) for low, high in limits]
    axes = {
        f"{letter}axis": {"title": {"text": title}, "range": limit}
        for letter, title, limit in zip("xyz", titles, [*wider, (-1, 1), (-1, 1)], strict=False)
    }
    return canvas.update_layout(
        meta={"title": f"{what} in the true states' principal components (a.u.)", "choices": choices},
        margin={"t": 0, "r": 0, "b": 0, "l": 0},
        scene={"aspectmode": "cube", **axes},
        legend={"itemsizing": "constant", "orientation": "h", "y": 0.0, "yanchor": "top"},
        template="plotly_white",
    )


def _traces(portrait: Portrait, truth: Portrait | None) -> list[go.Scatter3d]:
    """Trajectories as one line with gaps, points by their stability, and the true points where these are others'."""
    trials = portrait.trajectories or [np.full((1, portrait.coordinates.shape[1]), np.nan)]
    traces = [_lines(trials, "trajectories", {"color": "darkgrey", "width": 2})]
    if truth is not None and len(truth.points):
        marker = {"symbol": "x", "size": 2, "color": "black"}
        traces.append(_scatter(truth.coordinates, "true points", mode="markers", marker=marker))
    with mpl.style.context(STYLE):
        colours = {label: mpl.colors.to_hex(colour) for label, colour in COLOURS.items()}
    for label, symbol in SYMBOLS.items():
        here = portrait.at(label) & portrait.near
        if here.any():
            marker = {"symbol": symbol, "size": 6, "color": colours[label]}
            words = [_words(portrait, number) for number in np.flatnonzero(here).tolist()]
            style = {"marker": marker, "text": words, "hoverinfo": "text"}
            traces.append(_scatter(portrait.coordinates[here], label, mode="markers", **style))
    return traces


def _lines(trials: Sequence[np.ndarray], name: str, line: Mapping[str, object]) -> go.Scatter3d:
    """Trajectories (bins, axes) as one line with gaps."""
    gap = np.full((1, trials[0].shape[1]), np.nan)
    points = np.concatenate([part for trial in trials for part in (trial, gap)])
    return _scatter(points, name, mode="lines", line=dict(line))


def _scatter(points: np.ndarray, name: str, **style: object) -> go.Scatter3d:
    """Points (n, axes) in space; an axis that there is not is 0."""
    space = np.zeros((len(points), 3), np.float32)
    space[:, : points.shape[1]] = points
    style = {"hoverinfo": "skip"} | style
    return go.Scatter3d(x=space[:, 0], y=space[:, 1], z=space[:, 2], name=name, legendgroup=name, **style)


def _words(portrait: Portrait, number: int) -> str:
    """What is known of a point."""
    point, found = portrait.points.loc[number], portrait.found
    lines = [f"point {number}: {point['kind']}, {point['index']} unstable of {found.x.shape[1]} directions"]
    for mode in range(min(MODES, found.x.shape[1])):
        size = float(found.eigenvalues[number, mode].abs())
        seconds, hertz = float(found.time_constants[number, mode]), float(found.frequencies[number, mode])
        verb = "grows" if seconds < 0 else "decays"
        lines.append(f"|eigenvalue| {size:.3f}: {verb} in {abs(seconds):.3g} s, turns at {hertz:.3g} Hz")
    lines.append(f"reached from {point['n_starts']} starts; residual {point['residual']:.1e}")
    if pd.notna(point["true_point"]):
        lines.append(f"matches true point {point['true_point']}, {point['distance']:.2f} spreads away")
    return "<br>".join(lines)
