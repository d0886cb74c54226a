"""What is shown of a system's dynamics: where it went, its fixed points, and how it moves around them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ctdb.dsa_scores import TRUTH
from ctdb.dynamics import FixedPoints
from ctdb.dynamics_scores import POINTS
from ctdb.figures.base import fit_outputs, fit_title, read_session
from ctdb.figures.planned import Need
from ctdb.figures.principal import PrincipalSpace, limits_of, principal_space, trials_of_condition
from ctdb.files import read_hdf5

COLOURS = {
    "stable": "C0",
    "marginal": "0.35",
    "1 unstable direction": "C1",
    "2 unstable directions": "C2",
    "3 or more": "C3",
}
"""Colour of a point by its stability."""
FAR = 0.5
"""How far a fit's point may lie from what is drawn of the truth, in extents of that, to be drawn itself."""


@dataclass(frozen=True, eq=False)
class Portrait:
    """What is drawn of one system.

    Attributes
    ----------
    name, title
        What it is called in the table, and over its panel.
    trajectories
        Coordinates (bins, axes) of some trials in the space of the figure.
    points
        One row per fixed point: coordinates, stability, and what the search and the comparison say of it.
    found
        The points themselves.
    near
        Which points are drawn: those of a fit that lie far from the true states and points are not.
    note
        Why there are no points, or how many are not drawn; empty where all are.
    """

    name: str
    title: str
    trajectories: list[np.ndarray]
    points: pd.DataFrame
    found: FixedPoints
    near: Bool[np.ndarray, " points"]
    note: str

    def at(self, label: str) -> Bool[np.ndarray, " points"]:
        """Which points have the stability `label`, a key of :data:`COLOURS`."""
        return (self.points["stability"] == label).to_numpy(bool)

    @property
    def coordinates(self) -> Float[np.ndarray, "points axes"]:
        """Where the points are."""
        return self.points.filter(regex=r"^pc\d$").to_numpy(np.float64)


@dataclass(frozen=True, eq=False)
class Portraits:
    """The portraits of a dataset's true system and of fits, and the space that they share."""

    space: PrincipalSpace
    bin_s: float
    systems: list[Portrait]

    @property
    def limits(self) -> list[tuple[float, float]]:
        """Of the true trajectories and of all points that are drawn, along each axis."""
        points = [system.coordinates[system.near] for system in self.systems]
        return limits_of(np.concatenate([*self.systems[0].trajectories, *points]))


def portraits_of(
    name: str, models: Sequence[str], seed: int, n_trials: int, files: Mapping[Need, str], condition: str = ""
) -> Portraits:
    """Portraits of the true system and of fits, with the first trials of the split that scores are reported on.

    Parameters
    ----------
    name
        The dataset.
    models, seed
        The fits.
    n_trials
        How many trials to show.
    files
        The dataset, the fits, and the dynamics of all of them.
    condition
        Name of the condition whose trials are shown, in their own principal components; all if empty.

    Raises
    ------
    DatasetError
        If the dataset has no true states, several sessions, or no trials of the condition.
    """
    dataset = read_session(files["dataset", name])
    space = principal_space(dataset, name, "fixed_points", condition)
    split = dataset[dataset.report_split]
    shown = trials_of_condition(dataset, dataset.report_split, name, condition)[:n_trials]
    lengths = split.valid_bins.sum(1)[shown]

    def cut(states: np.ndarray) -> list[np.ndarray]:
        return [space(trial[:length]) for trial, length in zip(states[shown], lengths, strict=True)]

    found = FixedPoints.load(Path(files["dynamics", name]).with_name(POINTS))
    n_states, nowhere = len(space.centre), np.zeros((0, len(space.share)))
    title = f"{TRUTH} (network and body)" if found.x.shape[1] > n_states else TRUTH
    known = found.x.shape[1] > 0
    where = space(found.x.numpy()[:, :n_states]) if known else nowhere
    truth = cut(split.latents)
    seen = np.concatenate([*truth, where])
    note = "" if len(found) else "none found" if known else "no network is known"
    systems = [Portrait(TRUTH, title, truth, _table(TRUTH, found, where, {}), found, np.ones(len(found), bool), note)]
    for model in models:
        fit = (name, model, seed)
        facts, about = read_hdf5(files["dynamics", *fit])
        title = fit_title(files["fit", *fit], model)
        found = FixedPoints.load(Path(files["dynamics", *fit]).with_name(POINTS))
        where, carried, note = nowhere, [], "not analysed"
        if about["status"] == "ok":
            weights, offset = facts["to_true_weights"], facts["to_true_offset"]
            carried = cut(fit_outputs(files["fit", *fit], dataset.report_split)["latents"] @ weights + offset)
            where, note = space(found.x.numpy() @ weights + offset), "" if len(found) else "none found"
        margin = FAR * np.ptp(seen, axis=0)
        near = ((where >= seen.min(0) - margin) & (where <= seen.max(0) + margin)).all(1)
        if not near.all():
            note = f"{(~near).sum()} of {len(near)} points farther off"
        systems.append(Portrait(model, title, carried, _table(model, found, where, facts), found, near, note))
    return Portraits(space, dataset.bin_s, systems)


def _table(
    name: str, found: FixedPoints, where: Float[np.ndarray, "points axes"], facts: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Points of one system, where they are, and what the comparison with the true ones says of them."""
    n = len(found)
    partner, distance = pd.array([pd.NA] * n, "Int64"), np.full(n, np.nan)
    if "pairs" in facts:
        true, own = facts["pairs"].T
        partner[own], distance[own] = true, facts["distance"]
    stable, index = found.stable.tolist(), found.index.tolist()
    largest, seconds, hertz = np.zeros((3, 0))
    if n:
        largest = found.eigenvalues.abs().numpy()[:, 0]
        seconds, hertz = found.time_constants.numpy()[:, 0], found.frequencies.numpy()[:, 0]
    return pd.DataFrame(
        {
            "source": name,
            "point": np.arange(n),
            **{f"pc{axis + 1}": values for axis, values in enumerate(where.T)},
            "residual": found.residual.numpy(),
            "stable": np.array(stable, bool),
            "index": np.array(index, np.int64),
            "kind": found.kind,
            "eigenvalue_abs": largest,
            "time_constant_s": seconds,
            "frequency_hz": hertz,
            "n_starts": found.n_starts.numpy(),
            "true_point": partner,
            "distance": distance,
            "stability": pd.array([_label(*one) for one in zip(stable, index, strict=True)], "string"),
        },
        index=np.arange(n),
    )


def _label(stable: bool, index: int) -> str:
    """Key of :data:`COLOURS`."""
    if not index:
        return "stable" if stable else "marginal"
    return list(COLOURS)[min(index, 3) + 1]
