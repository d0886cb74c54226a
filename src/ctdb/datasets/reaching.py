"""Trials of a reaching recording, stacked along time, as windows of one length aligned on movement."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ctdb.datasets.dataset import SPLITS, SpikeDataset, Split, check
from ctdb.datasets.hdf5 import missing_key, open_arrays
from ctdb.datasets.held_out import held_out_last
from ctdb.datasets.kind import DATASETS, DatasetKind, FileBased, Source
from ctdb.errors import DatasetError
from ctdb.seeds import numpy_generator
from ctdb.settings import Count, NonEmpty, NonNegative, Positive, Seed, Settings


class ReachingKeys(Settings):
    """Keys of the file; all but `n_bins` and `condition` have one row per bin, trial after trial."""

    spikes: str = "spikes"
    n_bins: str = "trial_n_bins"
    condition: str | None = "target"
    behavior: NonEmpty[str] = ["velocity", "position"]
    velocity: str = "velocity"


class ReachingSettings(FileBased):
    """Settings of a dataset of kind `reaching`."""

    kind: Literal["reaching"]
    keys: ReachingKeys = ReachingKeys()
    bin_s: Positive | None = None
    align: Literal["start", "onset"] = "start"
    onset_share: float = Field(0.2, gt=0, lt=1)
    bins_before: int = Field(0, ge=0)
    n_bins: Count
    min_rate_hz: NonNegative = 0.5
    n_heldout: int = Field(0, ge=0)
    n_folds: int = Field(5, ge=2)
    fold: int = Field(0, ge=0)
    valid_fraction: float = Field(0.2, gt=0, lt=1)
    seed: Seed = 0

    @model_validator(mode="after")
    def _fold_of_folds(self) -> "ReachingSettings":
        if self.fold >= self.n_folds:
            raise ValueError(f"fold {self.fold} of {self.n_folds}: folds are counted from 0")
        if self.align == "start" and self.bins_before:
            raise ValueError("bins_before needs `align: onset`: before a trial's start there are no bins")
        return self


@DATASETS.register("reaching")
class Reaching(DatasetKind):
    """Windows of `n_bins` bins, from the trial's start or from movement onset, `bins_before` earlier.

    Onset is the first bin whose speed reaches `onset_share` of the trial's peak. Trials without a whole window, or
    whose speed is not known up to its peak where onset is asked for, are left out, and counted in the provenance.
    Units below `min_rate_hz` in the train trials are left out. The test trials are those whose number modulo `n_folds`
    is `fold`, as in BAND's cross-validation.
    """

    Settings = ReachingSettings

    @staticmethod
    def sources(settings: ReachingSettings) -> list[Source]:
        """The recording."""
        return [("file", settings.path)]

    @staticmethod
    def prepare(settings: ReachingSettings, files: Sequence[Path | str]) -> SpikeDataset:
        """Cut the windows and split the trials."""
        path, keys = files[0], settings.keys
        arrays, attributes = open_arrays(path)
        per_bin = list(dict.fromkeys([keys.spikes, keys.velocity, *keys.behavior]))
        for key in [*per_bin, keys.n_bins, *([keys.condition] if keys.condition else [])]:
            if key not in arrays:
                raise missing_key(path, key, arrays)
        bin_s = settings.bin_s or attributes.get("bin_s")
        if bin_s is None:
            raise DatasetError(f"{path}: the file does not tell its bin width; give `bin_s` (seconds)")
        whole_numbers = [keys.n_bins, *([keys.condition] if keys.condition else [])]
        for key in whole_numbers:
            if not (np.isfinite(arrays[key]).all() and (arrays[key] == np.round(arrays[key])).all()):
                raise DatasetError(f"{path}: {key!r} must hold one whole number for each trial; number the conditions")
        for key in per_bin:
            if arrays[key].ndim != 2:
                raise DatasetError(f"{path}: {key!r} has shape {arrays[key].shape}; expected (bins, channels)")
        lengths = arrays[keys.n_bins].astype(np.int64)
        for key in per_bin:
            if len(arrays[key]) != lengths.sum():
                raise DatasetError(
                    f"{path}: {key!r} has {len(arrays[key])} bins, but {keys.n_bins!r} adds up to {lengths.sum()}; "
                    "every signal needs one row for each bin of each trial"
                )
        if keys.condition and len(arrays[keys.condition]) != len(lengths):
            raise DatasetError(f"{path}: {keys.condition!r} has not one value for each of the {len(lengths)} trials")
        first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        begin = _begin(settings, arrays[keys.velocity], first, lengths)
        whole = (begin >= 0) & (begin + settings.n_bins <= lengths)
        trial = np.flatnonzero(whole)
        if len(trial) < settings.n_folds:
            raise DatasetError(
                f"{path}: {len(trial)} of {len(lengths)} trials hold a whole window of {settings.n_bins} bins; the "
                f"trials have {lengths.min()} to {lengths.max()} bins: shorten the window"
            )
        rows = (first + begin)[trial, None] + np.arange(settings.n_bins)
        counts = arrays[keys.spikes][rows].astype(np.float32)
        member = _members(settings, trial)
        keep = np.flatnonzero(counts[member["train"]].mean((0, 1)) >= settings.min_rate_hz * bin_s)
        if len(keep) <= settings.n_heldout:
            raise DatasetError(
                f"{path}: {len(keep)} units fire at least {settings.min_rate_hz} Hz; lower `min_rate_hz` or `n_heldout`"
            )
        order = held_out_last(keep, settings.n_heldout, settings.seed)
        n_heldin = len(keep) - settings.n_heldout
        behavior = np.concatenate([arrays[key][rows].astype(np.float32) for key in keys.behavior], 2)
        split = Split(
            encod_data=counts[:, :, order[:n_heldin]],
            recon_data=counts[:, :, order],
            behavior=behavior,
            condition=arrays[keys.condition][trial].astype(np.int64) if keys.condition else None,
            trial=trial,
        )
        names = {
            "neurons": [f"unit {unit}" for unit in order],
            "behavior": [f"{key} {axis}" for key in keys.behavior for axis in _axes(arrays[key].shape[1])],
        }
        provenance = settings.model_dump(exclude={"path", "optional"}) | {
            "source": Path(path).name,
            "n_trials_too_short": int((~whole).sum()),
            "n_units_too_quiet": int(counts.shape[2] - len(keep)),
        }
        splits = {name: split.take(np.flatnonzero(member[name])) for name in SPLITS}
        return check(SpikeDataset(splits, float(bin_s), names, provenance), str(path))


def _begin(settings: ReachingSettings, velocity: np.ndarray, first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """First bin of each trial's window, counted from the trial's start."""
    if settings.align == "start":
        return np.zeros(len(lengths), np.int64)
    speed = np.linalg.norm(velocity, axis=1)
    trials = [speed[start : start + length] for start, length in zip(first, lengths, strict=True)]
    onset = np.array([_onset(one, settings.onset_share) for one in trials])
    return np.where(onset < 0, -1, onset - settings.bins_before)


def _onset(speed: np.ndarray, share: float) -> int:
    """First bin that reaches the share of the highest speed; -1 where that is not known."""
    known = np.nan_to_num(speed, nan=-1.0)
    return -1 if np.isnan(speed[: known.argmax() + 1]).any() else int(np.argmax(known >= share * known.max()))


def _members(settings: ReachingSettings, trial: np.ndarray) -> dict[str, np.ndarray]:
    test = trial % settings.n_folds == settings.fold
    rest = np.flatnonzero(~test)
    rng = numpy_generator("valid trials", settings.seed, settings.fold)
    chosen = rng.permutation(rest)[: max(1, round(settings.valid_fraction * len(rest)))]
    valid = np.zeros(len(trial), bool)
    valid[chosen] = True
    return {"train": ~test & ~valid, "valid": valid, "test": test}


def _axes(n_axes: int) -> list[str]:
    return list("xyz"[:n_axes]) if n_axes <= 3 else [str(axis) for axis in range(n_axes)]
