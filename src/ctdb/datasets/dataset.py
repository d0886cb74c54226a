"""The dataset every stage works on: spike counts per split, with whatever is known of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from ctdb.errors import DatasetError

SPLITS = ("train", "valid", "test")
"""`train` fits, `valid` selects (best epoch, early stop), `test` reports."""


@dataclass(frozen=True)
class Split:
    """Trials of one split. Counts and rates are per bin; bins beyond a trial's `n_bins` are padding.

    NaN is a missing value, in `behavior` always and in the counts where the dataset says so.

    Attributes
    ----------
    encod_data
        Spike counts of the held-in neurons that a model sees.
    recon_data
        Spike counts that a model must predict: held-in neurons first, then held-out ones; it may have more bins.
    ext_input
        External input given to the model, as noisy as the network saw it.
    behavior
        Recorded or simulated movement.
    truth
        True rates, in expected spikes per bin, for the neurons and bins of `recon_data`.
    latents
        True hidden state behind the spikes.
    inputs_true
        Noise-free input.
    n_bins
        Number of valid bins of each trial.
    condition, trial
        Condition of each trial and its number in the source.
    start
        First bin of each window in the recording that was chopped.
    """

    encod_data: Float[np.ndarray, "trials bins heldin"]
    recon_data: Float[np.ndarray, "trials recon_bins neurons"]
    ext_input: Float[np.ndarray, "trials recon_bins inputs"] | None = None
    behavior: Float[np.ndarray, "trials _ behaviors"] | None = None
    truth: Float[np.ndarray, "trials recon_bins neurons"] | None = None
    latents: Float[np.ndarray, "trials recon_bins states"] | None = None
    inputs_true: Float[np.ndarray, "trials recon_bins true_inputs"] | None = None
    n_bins: Int[np.ndarray, " trials"] | None = None
    condition: Int[np.ndarray, " trials"] | None = None
    trial: Int[np.ndarray, " trials"] | None = None
    start: Int[np.ndarray, " trials"] | None = None

    @property
    def n_trials(self) -> int:
        """Number of trials."""
        return len(self.recon_data)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays that are present, by name, in the order of the format."""
        named = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def valid_bins(self) -> Bool[np.ndarray, "trials recon_bins"]:
        """Which bins are no padding."""
        n_trials, length = self.recon_data.shape[:2]
        lengths = np.full(n_trials, length) if self.n_bins is None else self.n_bins
        return np.arange(length) < lengths[:, None]

    def observed(self) -> Bool[np.ndarray, "trials recon_bins neurons"]:
        """Which values of `recon_data` are neither padding nor missing (NaN)."""
        return ~np.isnan(self.recon_data) & self.valid_bins[..., None]

    def take(self, trials: Int[np.ndarray, " some"]) -> "Split":
        """Split with only the given trials, in the given order."""
        return Split(**{name: value[trials] for name, value in self.arrays().items()})


REQUIRED = ("encod_data", "recon_data")
PER_TRIAL = ("n_bins", "condition", "trial", "start")
PER_BIN = tuple(item.name for item in fields(Split) if item.name not in PER_TRIAL)
FIELDS = PER_BIN + PER_TRIAL


@dataclass(frozen=True)
class SpikeDataset:
    """Splits of one data set, the bin width in seconds, and where it came from.

    Attributes
    ----------
    splits
        Split name to its trials; `train` and `valid` are always there.
    bin_s
        Width of a bin in seconds; None where a foreign file does not tell it.
    names
        Field name to the names of its channels.
    provenance
        Settings and seeds that made the data, as plain values.
    missing_spikes
        Whether NaN counts are values that were not recorded. Without it they are an error.
    signal
        `spikes`: counts. `continuous`: any signal in their place, such as calcium events or EMG.
    """

    splits: Mapping[str, Split]
    bin_s: float | None
    names: Mapping[str, list[str]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    missing_spikes: bool = False
    signal: Literal["spikes", "continuous"] = "spikes"

    @property
    def sessions(self) -> dict[str, "SpikeDataset"]:
        """Sessions by name: the dataset itself under the empty name, as :class:`MultiSession` has several."""
        return {"": self}

    def __getitem__(self, split: str) -> Split:
        return self.splits[split]

    @property
    def n_heldin(self) -> int:
        """Number of neurons a model sees."""
        return self.splits["train"].encod_data.shape[2]

    @property
    def n_neurons(self) -> int:
        """Number of neurons a model predicts: held-in and held-out."""
        return self.splits["train"].recon_data.shape[2]

    @property
    def n_bins(self) -> int:
        """Number of bins a model sees."""
        return self.splits["train"].encod_data.shape[1]

    @property
    def n_recon_bins(self) -> int:
        """Number of bins a model predicts."""
        return self.splits["train"].recon_data.shape[1]

    @property
    def n_inputs(self) -> int:
        """Number of external input channels, 0 without external input."""
        ext_input = self.splits["train"].ext_input
        return 0 if ext_input is None else ext_input.shape[2]

    @property
    def n_behaviors(self) -> int:
        """Number of behaviour channels, 0 without behaviour."""
        behavior = self.splits["train"].behavior
        return 0 if behavior is None else behavior.shape[2]

    @property
    def report_split(self) -> str:
        """Split that scores are reported on: `test`, or `valid` where the user chose to have no test split."""
        return "test" if "test" in self.splits else "valid"


def check(dataset: SpikeDataset, where: str) -> SpikeDataset:
    """Return `dataset` if it is whole and its counts can be spike counts.

    Parameters
    ----------
    dataset
        What to check.
    where
        Name of the file or source, for the message.

    Raises
    ------
    DatasetError
        Names the key, what was expected, what was found and the remedy.
    """
    for needed in ("train", "valid"):
        if needed not in dataset.splits:
            raise DatasetError(
                f"{where}: no {needed!r} split; every dataset needs 'train' and 'valid' trials. "
                "Split the trials, or map the file's own names in `splits`"
            )
    for name, split in dataset.splits.items():
        _check_split(name, split, where, dataset)
    reference = {key: value.shape[1:] for key, value in dataset["train"].arrays().items()}
    for name, split in dataset.splits.items():
        for key, value in split.arrays().items():
            if key in reference and value.shape[1:] != reference[key]:
                raise DatasetError(
                    f"{where}: {name}_{key} has (bins, channels) {value.shape[1:]} but train_{key} has "
                    f"{reference[key]}; all splits must agree, so cut or pad them alike"
                )
        if unmatched := reference.keys() ^ split.arrays().keys():
            key = min(unmatched)
            has, lacks = ("train", name) if key in reference else (name, "train")
            raise DatasetError(
                f"{where}: {lacks}_{key} is missing although {has}_{key} is there; give it for every split or for none"
            )
    return dataset


def _check_split(name: str, split: Split, where: str, dataset: SpikeDataset) -> None:
    if split.n_trials == 0:
        raise DatasetError(f"{where}: split {name!r} has no trials; use a larger share or more trials")
    for key, value in split.arrays().items():
        label = f"{where}: {name}_{key}"
        if len(value) != split.n_trials:
            raise DatasetError(
                f"{label} has {len(value)} trials but {name}_recon_data has {split.n_trials}; "
                "all keys of a split must have the same trials"
            )
        may_miss = key == "behavior" or (key in REQUIRED and dataset.missing_spikes)
        bad = np.isinf(value) if may_miss else ~np.isfinite(value)
        if bad.any():
            at = np.argwhere(bad)[0]
            remedy = "Remove such trials, or interpolate them, before the file is used"
            if key in REQUIRED and np.isnan(value[tuple(at)]):
                remedy = "Where NaN stands for what was not recorded, set `missing_spikes`; else remove such trials"
            raise DatasetError(
                f"{label} holds {value[tuple(at)]} at {_position(at)}; expected finite numbers. {remedy}"
            )
    encod, recon = split.encod_data, split.recon_data
    for key in REQUIRED:
        _check_counts(getattr(split, key), f"{where}: {name}_{key}", dataset.signal)
    if encod.shape[1] > recon.shape[1] or encod.shape[2] > recon.shape[2]:
        raise DatasetError(
            f"{where}: {name}_encod_data has (bins, neurons) {encod.shape[1:]}, more than {name}_recon_data with "
            f"{recon.shape[1:]}; recon_data must hold every held-in neuron and bin (held-in neurons first)"
        )
    if not np.array_equal(encod, recon[:, : encod.shape[1], : encod.shape[2]], equal_nan=True):
        raise DatasetError(
            f"{where}: the first {encod.shape[2]} neurons of {name}_recon_data differ from {name}_encod_data; "
            "held-in neurons must come first, in the same order, in both"
        )
    for key in ("ext_input", "truth", "latents", "inputs_true"):
        value = getattr(split, key)
        if value is not None and value.shape[1] != recon.shape[1]:
            raise DatasetError(
                f"{where}: {name}_{key} has {value.shape[1]} bins but {name}_recon_data has {recon.shape[1]}; "
                "all keys of a split must have the same bins"
            )
    if split.behavior is not None and split.behavior.shape[1] not in (recon.shape[1], encod.shape[1]):
        raise DatasetError(
            f"{where}: {name}_behavior has {split.behavior.shape[1]} bins but {name}_recon_data has {recon.shape[1]}; "
            "behaviour must be sampled in the bins of the spikes: resample or cut it, NaN where it is not known"
        )
    if not split.observed().any():
        raise DatasetError(f"{where}: {name}_recon_data holds no recorded value; remove the split or the session")
    if split.truth is not None:
        if split.truth.shape[2] != recon.shape[2]:
            raise DatasetError(
                f"{where}: {name}_truth has {split.truth.shape[2]} neurons but {name}_recon_data has {recon.shape[2]}; "
                "give the true rate of every neuron, held-in ones first"
            )
        if split.truth.min() < 0:
            raise DatasetError(
                f"{where}: {name}_truth holds a negative rate, {split.truth.min():g}; expected spikes per bin. "
                "If these are log-rates, exponentiate them first"
            )
    if split.n_bins is not None and not (split.n_bins.min() >= 1 and split.n_bins.max() <= recon.shape[1]):
        raise DatasetError(
            f"{where}: {name}_n_bins runs from {split.n_bins.min()} to {split.n_bins.max()}; expected "
            f"lengths between 1 and the {recon.shape[1]} bins of the trials"
        )


def _check_counts(counts: np.ndarray, label: str, signal: str) -> None:
    if counts.size == 0:
        raise DatasetError(f"{label} is empty: shape {counts.shape}; expected (trials, bins, neurons) with none zero")
    if signal == "continuous":
        return
    counts = np.nan_to_num(counts)
    for bad, what, remedy in (
        (counts < 0, "a negative count", "spike counts are 0, 1, 2, ...; was a baseline subtracted?"),
        (
            counts != np.round(counts),
            "a fraction",
            "give counts per bin, not rates; if they are rates, map them as truth",
        ),
    ):
        if bad.any():
            at = np.argwhere(bad)[0]
            raise DatasetError(f"{label} holds {what}, {counts[tuple(at)]:g}, at {_position(at)}: {remedy}")


def _position(index: np.ndarray) -> str:
    return ", ".join(f"{axis} {i}" for axis, i in zip(("trial", "bin", "channel"), index.tolist(), strict=False))
