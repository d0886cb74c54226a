"""What a registered metric is given: one split of a dataset beside what a fit inferred."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ctdb.datasets import SpikeDataset, Split
from ctdb.errors import MetricError
from ctdb.registry import Registry

METRICS = Registry("ctdb.metrics")
"""Functions ``score(case) -> TrialSums | float`` by the name of their score; NotApplicableError where it has no
meaning. A score that is no ratio of sums over trials is a plain number, and has no interval."""
COSTLY = frozenset({"nonlinear_cycle_consistency"})
"""Scores that cost more than all others together, and are made only where the configuration names them."""


class NotApplicableError(MetricError):
    """A score that this dataset or model cannot have, such as a rate R2 of a recording. The message says why.

    Attributes
    ----------
    of_dataset
        Whether the dataset, and so every model of it, cannot have the score.
    """

    def __init__(self, message: str, of_dataset: bool = False):
        super().__init__(message)
        self.of_dataset = of_dataset


@dataclass(frozen=True)
class Case:
    """A fit, or an anchor in its place, on one split.

    Attributes
    ----------
    dataset
        The dataset.
    outputs
        Split name to the arrays inferred for it: `rates`, and `latents` where there are any.
    split
        The split to score; regressions are fitted on `train`.
    """

    dataset: SpikeDataset
    outputs: Mapping[str, Mapping[str, np.ndarray]]
    split: str

    @property
    def trials(self) -> Split:
        """The split to score."""
        return self.dataset[self.split]

    @property
    def train(self) -> Split:
        """The train trials."""
        return self.dataset["train"]

    @property
    def mean_rates(self) -> Float[np.ndarray, " neurons"]:
        """Mean train count of each neuron in the bins that a model sees: the floor that no fit should fall below."""
        n_bins = self.dataset.n_bins
        seen = self.train.observed()[:, :n_bins]
        total = np.where(seen, self.train.recon_data[:, :n_bins], 0).sum((0, 1), dtype=np.float64)
        return total / np.maximum(seen.sum((0, 1)), 1)

    def inferred(self, name: str, split: str | None = None) -> np.ndarray:
        """Inferred array of the scored split, or of another; NotApplicableError if the model has none."""
        arrays = self.outputs[split or self.split]
        if name not in arrays:
            raise NotApplicableError(f"there are no inferred {name}")
        return arrays[name]

    def known(self, name: str, split: str | None = None) -> np.ndarray:
        """True array of the scored split, or of another; NotApplicableError if the dataset does not know it."""
        array = getattr(self.dataset[split or self.split], name)
        if array is None:
            raise NotApplicableError(f"the dataset has no {name}", of_dataset=True)
        return array
