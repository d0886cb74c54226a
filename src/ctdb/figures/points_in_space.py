"""Fixed points in three dimensions that are turned: what plotly draws in the report."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from plotly import graph_objects as go

from ctdb.figures.base import STYLE
from ctdb.figures.portraits import COLOURS, Portrait, Portraits
from ctdb.figures.space import laid_out, lines, scatter

SYMBOLS = dict(zip(COLOURS, ["circle", "circle-open", "diamond-open", "square-open", "cross"], strict=True))
MODES = 3
"""Modes of a point that are told, the largest first."""


def fixed_points_in_space(name: str, shown: Portraits) -> go.Figure:
    """Fixed points of a dataset's true system and of fits, one system at a time.

    A point says what it is where the mouse rests; the table of the figure says the same. Small black diamonds beside a
    fit's points are the true ones. ``layout.meta.choices`` names the systems, and which traces are each one's.
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
    return laid_out(canvas, f"{name}: fixed points", shown.space, shown.limits, choices)


def _traces(portrait: Portrait, truth: Portrait | None) -> list[go.Scatter3d]:
    """Trajectories as one line with gaps, points by their stability, and the true points where these are others'."""
    trials = portrait.trajectories or [np.full((1, portrait.coordinates.shape[1]), np.nan)]
    traces = [lines(trials, "trajectories", {"color": "darkgrey", "width": 2})]
    if truth is not None and len(truth.points):
        marker = {"symbol": "diamond", "size": 3, "color": "black"}
        traces.append(scatter(truth.coordinates, "true points", mode="markers", marker=marker))
    with mpl.style.context(STYLE):
        colours = {label: mpl.colors.to_hex(colour) for label, colour in COLOURS.items()}
    for label, symbol in SYMBOLS.items():
        here = portrait.at(label) & portrait.near
        if here.any():
            marker = {"symbol": symbol, "size": 6, "color": colours[label]}
            words = [_words(portrait, number) for number in np.flatnonzero(here).tolist()]
            style = {"marker": marker, "text": words, "hoverinfo": "text"}
            traces.append(scatter(portrait.coordinates[here], label, mode="markers", **style))
    return traces


def _words(portrait: Portrait, number: int) -> str:
    """What is known of a point."""
    point, found = portrait.points.loc[number], portrait.found
    told = [f"point {number}: {point['kind']}, {point['index']} unstable of {found.x.shape[1]} directions"]
    for mode in range(min(MODES, found.x.shape[1])):
        size = float(found.eigenvalues[number, mode].abs())
        seconds, hertz = float(found.time_constants[number, mode]), float(found.frequencies[number, mode])
        verb = "grows" if seconds < 0 else "decays"
        told.append(f"|eigenvalue| {size:.3f}: {verb} in {abs(seconds):.3g} s, turns at {hertz:.3g} Hz")
    told.append(f"reached from {point['n_starts']} starts; residual {point['residual']:.1e}")
    if pd.notna(point["true_point"]):
        told.append(f"matches true point {point['true_point']}, {point['distance']:.2f} spreads away")
    return "<br>".join(told)
