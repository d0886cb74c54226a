"""Fixed points as a page that is turned with the mouse: one file, which opens offline."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from plotly import graph_objects as go

from ctdb.figures.base import STYLE
from ctdb.figures.portraits import COLOURS, Portrait, Portraits
from ctdb.figures.principal import MARGIN

SYMBOLS = dict(zip(COLOURS, ["circle", "circle-open", "diamond-open", "square-open", "cross"], strict=True))
MODES = 3
"""Modes of a point that are told, the largest first."""


def page_of(name: str, shown: Portraits) -> str:
    """Page of a dataset's true system and fits: a menu chooses one, the legend hides parts of it.

    A point says what it is where the mouse rests. Small crosses beside a fit's points are the true ones.
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
            "method": "update",
            "args": [{"visible": [owner == portrait.name for owner in owners]}],
        }
        for portrait in shown.systems
    ]
    titles = [*shown.space.labels[-len(shown.space.share) :], "", ""]
    limits = [(low - MARGIN * (high - low), high + MARGIN * (high - low)) for low, high in shown.limits]
    ranges = [*limits, (-1, 1), (-1, 1)]
    axes = {
        f"{letter}axis": {"title": {"text": title}, "range": limit}
        for letter, title, limit in zip("xyz", titles, ranges, strict=False)
    }
    headline = f"{name}: fixed points in the true states' principal components (a.u.)"
    canvas.update_layout(
        title={"text": headline, "y": 0.98, "yanchor": "top"},
        margin={"t": 100},  # the title, and below it the menu
        scene={"aspectmode": "cube", **axes},
        updatemenus=[{"buttons": choices, "x": 0.0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"}],
        legend={"itemsizing": "constant"},
        template="plotly_white",
    )
    return canvas.to_html(include_plotlyjs=True, div_id="ctdb", config={"displaylogo": False})


def _traces(portrait: Portrait, truth: Portrait | None) -> list[go.Scatter3d]:
    """Trajectories as one line with gaps, points by their stability, and the true points where these are others'."""
    gap = np.full((1, portrait.coordinates.shape[1]), np.nan)
    lines = [part for trial in portrait.trajectories for part in (trial, gap)] or [gap]
    traces = [_scatter(np.concatenate(lines), "trajectories", mode="lines", line={"color": "lightgrey", "width": 2})]
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
