"""Recordings without trials: overlapping windows out, and what was inferred of them merged back."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, model_validator

from ctdb.datasets.dataset import SPLITS, SpikeDataset, Split, check
from ctdb.datasets.hdf5 import missing_key, open_arrays
from ctdb.datasets.held_out import held_out_last
from ctdb.datasets.kind import DATASETS, DatasetKind, FileBased, Source
from ctdb.errors import DatasetError
from ctdb.seeds import numpy_generator
from ctdb.settings import Count, Positive, Seed, Settings


class ContinuousKeys(Settings):
    """Keys of the file; each array is (bins, channels)."""

    spikes: str = "spikes"
    ext_input: str | None = None
    behavior: str | None = None
    truth: str | None = None
    latents: str | None = None
    inputs_true: str | None = None


class BlockedWindows(Settings):
    """Settings of windows over a recording, dealt to the splits by blocks."""

    window_bins: Count
    overlap_bins: int = Field(0, ge=0)
    block_bins: Count
    n_heldout: int = Field(0, ge=0)
    valid_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.1, gt=0, lt=1)
    seed: Seed = 0

    @model_validator(mode="after")
    def _windows_fit(self) -> "BlockedWindows":
        if self.overlap_bins >= self.window_bins:
            raise ValueError("overlap_bins must be below window_bins")
        if self.block_bins < self.window_bins:
            raise ValueError("block_bins must be at least window_bins: windows do not cross from block to block")
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction and test_fraction must leave blocks for train: their sum must be below 1")
        return self


class ContinuousSettings(BlockedWindows, FileBased):
    """Settings of a dataset of kind `continuous`."""

    kind: Literal["continuous"]
    keys: ContinuousKeys = ContinuousKeys()
    bin_s: Positive | None = None
    missing_spikes: bool = False
    signal: Literal["spikes", "continuous"] = "spikes"


@DATASETS.register("continuous")
class Continuous(DatasetKind):
    """Windows of a recording, by blocks: whole blocks go to train, valid or test, so that no bin is in two splits.

    `start` is the first bin of each window in the recording, by which :func:`merge` puts windows together again.
    """

    Settings = ContinuousSettings

    @staticmethod
    def sources(settings: ContinuousSettings) -> list[Source]:
        """The recording."""
        return [("file", settings.path)]

    @staticmethod
    def prepare(settings: ContinuousSettings, files: Sequence[Path | str]) -> SpikeDataset:
        """Cut the windows and deal the blocks to the splits."""
        path = files[0]
        arrays, attributes = open_arrays(path)
        keys = {name: key for name, key in settings.keys.model_dump().items() if key is not None}
        for key in keys.values():
            if key not in arrays:
                raise missing_key(path, key, arrays)
        signals = {name: np.asarray(arrays[key], np.float32) for name, key in keys.items()}
        n_bins = len(signals["spikes"])
        for name, signal in signals.items():
            if signal.ndim != 2 or len(signal) != n_bins:
                raise DatasetError(
                    f"{path}: {keys[name]!r} has shape {signal.shape}; expected (bins, channels) with the {n_bins} "
                    f"bins of {keys['spikes']!r}"
                )
        bin_s = settings.bin_s or attributes.get("bin_s")
        if bin_s is None:
            raise DatasetError(f"{path}: the file does not tell its bin width; give `bin_s` (seconds)")
        n_neurons = signals["spikes"].shape[1]
        if settings.n_heldout >= n_neurons:
            raise DatasetError(f"{path}: `n_heldout` is {settings.n_heldout} but there are {n_neurons} neurons")
        order = held_out_last(np.arange(n_neurons), settings.n_heldout, settings.seed)
        n_heldin = n_neurons - settings.n_heldout
        splits = {}
        for split, start in blocked_starts(settings, n_bins, path).items():
            rows = start[:, None] + np.arange(settings.window_bins)
            recon = signals["spikes"][rows][:, :, order]
            known = {name: signal[rows] for name, signal in signals.items() if name not in ("spikes", "truth")}
            if "truth" in signals:
                known["truth"] = signals["truth"][rows][:, :, order]
            splits[split] = Split(encod_data=recon[:, :, :n_heldin].copy(), recon_data=recon, start=start, **known)
        provenance = settings.model_dump(exclude={"path", "optional"}) | {"source": Path(path).name, "n_bins": n_bins}
        names = {"neurons": [f"neuron {i}" for i in order]}
        dataset = SpikeDataset(splits, float(bin_s), names, provenance, settings.missing_spikes, settings.signal)
        return check(dataset, str(path))


def window_starts(n_bins: int, window: int, overlap: int) -> Int[np.ndarray, " windows"]:
    """First bins of windows that cover `n_bins` bins; the last one ends with them, and so may overlap more.

    Raises
    ------
    DatasetError
        If the recording is shorter than a window.
    """
    if n_bins < window:
        raise DatasetError(f"{n_bins} bins do not hold a window of {window}; choose a shorter window")
    starts = np.arange(0, n_bins - window + 1, window - overlap)
    return starts if starts[-1] + window == n_bins else np.append(starts, n_bins - window)


def chop(
    recording: Float[np.ndarray, "bins channels"], window: int, overlap: int
) -> tuple[Float[np.ndarray, "windows window channels"], Int[np.ndarray, " windows"]]:
    """Overlapping windows of a recording, and the first bin of each.

    Parameters
    ----------
    recording
        Any signal.
    window, overlap
        Bins of a window, and bins that neighbouring windows share.

    Raises
    ------
    DatasetError
        If the recording is shorter than a window.
    """
    starts = window_starts(len(recording), window, overlap)
    return recording[starts[:, None] + np.arange(window)], starts


def merge(
    windows: Float[np.ndarray, "windows window channels"], starts: Int[np.ndarray, " windows"], n_bins: int
) -> Float[np.ndarray, "bins channels"]:
    """Put windows together again; where several hold a bin, their smooth weighted mean.

    A window weighs most in its middle and falls off to both ends as a half sine; weights are divided by their sum in
    each bin, so where windows agree the result is exact, however much they overlap (autolfads-tf2's blend was wrong
    beyond half a window).

    Parameters
    ----------
    windows
        What was inferred of each window.
    starts
        First bin of each window in the recording; in any order.
    n_bins
        Bins of the recording.

    Returns
    -------
    The recording; NaN in bins that no window holds.

    Raises
    ------
    DatasetError
        If a window lies outside the recording.
    """
    length = windows.shape[1]
    if len(starts) and (min(starts) < 0 or max(starts) + length > n_bins):
        raise DatasetError(f"windows reach bin {max(starts) + length}, beyond the recording of {n_bins} bins")
    weight = np.sin(np.pi * (np.arange(length) + 0.5) / length)
    reference = np.full((n_bins, windows.shape[2]), np.nan)  # weights act on differences, which are 0 where all agree
    total, moved = np.zeros(n_bins), np.zeros((n_bins, windows.shape[2]))
    for window, start in zip(windows.astype(np.float64), starts, strict=True):
        bins = slice(start, start + length)
        reference[bins] = np.where(np.isnan(reference[bins]), window, reference[bins])
        moved[bins] += weight[:, None] * (window - reference[bins])
        total[bins] += weight
    return reference + moved / np.where(total > 0, total, 1)[:, None]


def merge_fit(dataset: SpikeDataset, inferred: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a fit inferred, as signals over the recording that the dataset was cut from.

    Parameters
    ----------
    dataset
        Of kind `continuous`.
    inferred
        ``{split}_{name}`` as in a fit's `output.h5`.

    Returns
    -------
    Name to (bins, channels), of what has bins; and `split` (bins,), 0, 1, 2 for train, valid, test and -1 where no
    window is.

    Raises
    ------
    DatasetError
        If the dataset was not cut from a recording.
    """
    if dataset["train"].start is None or "n_bins" not in dataset.provenance:
        raise DatasetError("only datasets of kind `continuous` are merged: their windows know where they began")
    n_bins = int(dataset.provenance["n_bins"])
    starts = {split: trials.start for split, trials in dataset.splits.items()}
    lengths = {split: trials.recon_data.shape[1] for split, trials in dataset.splits.items()}
    names = {key.removeprefix("train_") for key in inferred if key.startswith("train_")}
    merged = {}
    for name in sorted(names):
        if inferred[f"train_{name}"].ndim == 3:
            windows = np.concatenate([inferred[f"{split}_{name}"] for split in starts])
            merged[name] = merge(windows, np.concatenate(list(starts.values())), n_bins).astype(np.float32)
    member = np.full(n_bins, -1, np.int64)
    for split, first in starts.items():
        member[(first[:, None] + np.arange(lengths[split])).ravel()] = SPLITS.index(split)
    return merged | {"split": member}


def blocked_starts(settings: BlockedWindows, n_bins: int, where: Path | str) -> dict[str, Int[np.ndarray, " windows"]]:
    """First bins of the windows of each split; a rest too short for a window belongs to the last block.

    Raises
    ------
    DatasetError
        If there are too few blocks for train, valid and test; names `where`.
    """
    n_blocks = max(1, n_bins // settings.block_bins)
    edges = [*(index * settings.block_bins for index in range(n_blocks)), n_bins]
    blocks = list(pairwise(edges))
    n_valid = max(1, round(settings.valid_fraction * n_blocks))
    n_test = max(1, round(settings.test_fraction * n_blocks))
    if n_blocks - n_valid - n_test < 1 or n_bins < settings.window_bins:
        raise DatasetError(
            f"{where}: {n_bins} bins make {n_blocks} blocks of {settings.block_bins}, too few for train, valid and "
            "test; shorten `block_bins`"
        )
    order = numpy_generator("blocks", settings.seed).permutation(n_blocks)
    chosen = {"test": order[:n_test], "valid": order[n_test : n_test + n_valid], "train": order[n_test + n_valid :]}
    starts = [low + window_starts(high - low, settings.window_bins, settings.overlap_bins) for low, high in blocks]
    return {split: np.concatenate([starts[index] for index in sorted(chosen[split])]) for split in SPLITS}
