"""The space that states are drawn in: the first principal components of the true ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes

from ctdb.datasets import SpikeDataset
from ctdb.errors import DatasetError, nearest

MARGIN = 0.08
"""Of a panel around what is drawn in it, as a share of that."""


@dataclass(frozen=True)
class PrincipalSpace:
    """The first principal components, three where there are so many, of the true states of the train trials.

    Attributes
    ----------
    centre
        Mean state.
    axes
        Principal axes, with the sign of their largest weight positive.
    share
        Share of the variance that each explains.
    """

    centre: Float[np.ndarray, " states"]
    axes: Float[np.ndarray, "states axes"]
    share: Float[np.ndarray, " axes"]

    def __call__(self, states: Float[np.ndarray, "*n states"]) -> Float[np.ndarray, "*n axes"]:
        """Coordinates of true states, or of states carried into their space."""
        return (states - self.centre) @ self.axes

    @property
    def labels(self) -> list[str]:
        """Labels of the axes of a panel; time stands before a single component."""
        components = [f"PC {axis + 1} ({share:.0%})" for axis, share in enumerate(self.share)]
        return ["time (s)", *components] if len(components) == 1 else components

    @property
    def projection(self) -> dict[str, str]:
        """What a panel of this space is made with."""
        return {"projection": "3d"} if len(self.share) == 3 else {}

    def coordinates(self, trial: Float[np.ndarray, "bins axes"], bin_s: float) -> list[np.ndarray]:
        """A trajectory by the axes of a panel."""
        return [bin_s * np.arange(len(trial)), trial[:, 0]] if len(self.share) == 1 else list(trial.T)

    def frame(self, ax: Axes, limits: Sequence[tuple[float, float]]) -> None:
        """Limits, with a margin, and labels of a panel's axes."""
        if len(self.share) == 3:
            ax.set_box_aspect((1, 1, 1), zoom=0.95)
        for letter, label, (low, high) in zip("xyz", self.labels, limits, strict=False):
            margin = MARGIN * (high - low)
            getattr(ax, f"set_{letter}lim")(low - margin, high + margin)
            getattr(ax, f"set_{letter}label")(label, labelpad=-14 if len(self.share) == 3 else None)
            if not label.startswith("time"):
                getattr(ax, f"set_{letter}ticks")([])


def principal_space(dataset: SpikeDataset, name: str, figure: str, condition: str = "") -> PrincipalSpace:
    """Principal components of a dataset's true states, of one condition where it is named.

    Raises
    ------
    DatasetError
        In the figure's name, if there are no true states, or no trials of the condition.
    """
    train = dataset["train"]
    if train.latents is None:
        raise DatasetError(f"dataset {name!r} has no true latents, which figure `{figure}` needs; draw another dataset")
    train = train.take(trials_of_condition(dataset, "train", name, condition))
    states = train.latents[train.valid_bins].astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(states.T).reshape(states.shape[1], -1))
    vectors = vectors[:, ::-1][:, :3]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    return PrincipalSpace(states.mean(0), vectors * signs, values[::-1][:3] / values.sum())


def trials_of_condition(dataset: SpikeDataset, split: str, name: str, condition: str) -> Int[np.ndarray, " trials"]:
    """Numbers of a split's trials of one condition, of all if it is empty; raises DatasetError where there are none."""
    trials, names = dataset[split], dataset.names.get("condition", [])
    if not condition:
        return np.arange(trials.n_trials)
    if trials.condition is None or condition not in names:
        raise DatasetError(f"dataset {name!r} has no condition called {condition!r}; {nearest(condition, names)}")
    chosen = np.flatnonzero(trials.condition == names.index(condition))
    if not len(chosen):
        raise DatasetError(f"dataset {name!r} has no {split} trial of condition {condition!r}; choose another one")
    return chosen


def limits_of(points: Float[np.ndarray, "n axes"]) -> list[tuple[float, float]]:
    """Lowest and highest value on each axis."""
    return [(float(low), float(high)) for low, high in zip(points.min(0), points.max(0), strict=True)]
