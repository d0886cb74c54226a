"""Controls that keep supervision honest: a dataset whose behaviour, or whose neurons, are shuffled across trials.

A model that still decodes behaviour from such data learned it from the labels and not from the neurons (CEBRA issue
226 tells how easily that happens).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ctdb.datasets.dataset import SpikeDataset, Split
from ctdb.datasets.hdf5 import read
from ctdb.datasets.kind import DATASETS, DatasetKind, DatasetSettings, Source
from ctdb.datasets.multi_session import MultiSession
from ctdb.errors import DatasetError
from ctdb.seeds import numpy_generator
from ctdb.settings import Seed


class ShuffledSettings(DatasetSettings):
    """Settings of a dataset of kind `shuffled`."""

    kind: Literal["shuffled"]
    dataset: str
    shuffle: Literal["behavior", "neurons"]
    seed: Seed = 0


@DATASETS.register("shuffled")
class Shuffled(DatasetKind):
    """Another dataset, shuffled across the trials of each split.

    `behavior`: trials get the behaviour of other trials; the neurons stay. `neurons`: each neuron's trials are
    permuted by themselves, so that each keeps its counts but the population of one trial never was.
    """

    Settings = ShuffledSettings

    @staticmethod
    def sources(settings: ShuffledSettings) -> list[Source]:
        """The dataset."""
        return [("dataset", settings.dataset)]

    @staticmethod
    def prepare(settings: ShuffledSettings, files: Sequence[Path | str]) -> SpikeDataset | MultiSession:
        """Shuffle within each split of each session."""
        source = read(files[0])
        shuffled = {name: _session(session, name, settings) for name, session in source.sessions.items()}
        return MultiSession(shuffled) if isinstance(source, MultiSession) else shuffled[""]


def _session(session: SpikeDataset, name: str, settings: ShuffledSettings) -> SpikeDataset:
    if settings.shuffle == "behavior" and not session.n_behaviors:
        raise DatasetError(f"dataset {settings.dataset!r} has no behavior to shuffle; shuffle its neurons, or drop it")
    rngs = {split: numpy_generator("shuffle", settings.seed, name, split) for split in session.splits}
    shuffle = _behavior if settings.shuffle == "behavior" else _neurons
    splits = {split: shuffle(trials, rngs[split]) for split, trials in session.splits.items()}
    provenance = settings.model_dump() | {"source_provenance": dict(session.provenance)}
    return replace(session, splits=splits, provenance=provenance)


def _behavior(trials: Split, rng: np.random.Generator) -> Split:
    if trials.n_trials < 2:
        raise DatasetError("a split of one trial cannot be shuffled; use a larger share of the trials")
    behavior = trials.behavior
    if trials.n_bins is not None:  # what stands in the padding of a trial is not known
        in_trial = np.arange(behavior.shape[1]) < trials.n_bins[:, None]
        behavior = np.where(in_trial[..., None], behavior, np.nan).astype(behavior.dtype)
    order = rng.permutation(trials.n_trials)
    given = np.empty_like(behavior)
    given[order] = behavior[np.roll(order, 1)]  # along a random circle, so that no trial keeps its own
    return replace(trials, behavior=given)


def _neurons(trials: Split, rng: np.random.Generator) -> Split:
    if trials.n_bins is not None and len(np.unique(trials.n_bins)) > 1:
        raise DatasetError("neurons cannot be shuffled across trials of different lengths; cut them to one length")
    recon = trials.recon_data
    order = rng.permuted(np.tile(np.arange(trials.n_trials)[:, None], recon.shape[2]), axis=0)
    recon = np.take_along_axis(recon, order[:, None, :], 0)
    truth = None if trials.truth is None else np.take_along_axis(trials.truth, order[:, None, :], 0)
    encod = recon[:, : trials.encod_data.shape[1], : trials.encod_data.shape[2]].copy()
    return replace(trials, encod_data=encod, recon_data=recon, truth=truth, latents=None, inputs_true=None)
