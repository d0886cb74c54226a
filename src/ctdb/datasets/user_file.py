"""A user's own HDF5 file as a dataset: map its keys, hold neurons out, and carve a test split where it has none."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ctdb.datasets.dataset import SPLITS, SpikeDataset, Split, check
from ctdb.datasets.hdf5 import as_split, missing_key, open_arrays, read
from ctdb.datasets.held_out import held_out_last
from ctdb.datasets.kind import DATASETS, DatasetKind, FileBased, Source
from ctdb.datasets.multi_session import MultiSession
from ctdb.errors import DatasetError
from ctdb.seeds import numpy_generator
from ctdb.settings import Fraction, Positive, Seed, Settings


class KeyMap(Settings):
    """Where each of our fields stands in the user's file; ``{split}`` stands for the file's name of the split.

    Without `encod_data`, the held-in neurons of `recon_data` are what the model sees.
    """

    recon_data: str
    encod_data: str | None = None
    ext_input: str | None = None
    behavior: str | None = None
    truth: str | None = None
    latents: str | None = None
    inputs_true: str | None = None
    n_bins: str | None = None
    condition: str | None = None
    trial: str | None = None

    @model_validator(mode="after")
    def _every_split_has_its_own_key(self) -> "KeyMap":
        for name, key in self.model_dump().items():
            if key is not None and "{split}" not in key:
                raise ValueError(f"{name}: {key!r} is the same in every split; put {{split}} where they differ")
        return self


class SplitNames(Settings):
    """What the file calls its splits. `test` is used where the file has it."""

    train: str = "train"
    valid: str = "valid"
    test: str = "test"

    @model_validator(mode="after")
    def _different_trials(self) -> "SplitNames":
        if len({self.train, self.valid, self.test}) < 3:
            raise ValueError("train, valid and test must be different trials; to report on valid, set `test: valid`")
        return self


class FileSettings(FileBased):
    """Settings of a dataset of kind `file`."""

    kind: Literal["file"]
    keys: KeyMap | None = None
    splits: SplitNames = SplitNames()
    bin_s: Positive | None = None
    truth_unit: Literal["spikes_per_bin", "hz"] = "spikes_per_bin"
    n_heldout: int = Field(0, ge=0)
    test: Literal["carve", "valid"] = "carve"
    test_fraction: Fraction = 0.2
    missing_spikes: bool = False
    signal: Literal["spikes", "continuous"] = "spikes"
    seed: Seed = 0


@DATASETS.register("file")
class UserFile(DatasetKind):
    """A user's HDF5 file."""

    Settings = FileSettings

    @staticmethod
    def sources(settings: FileSettings) -> list[Source]:
        """The file."""
        return [("file", settings.path)]

    @staticmethod
    def prepare(settings: FileSettings, files: Sequence[Path | str]) -> SpikeDataset:
        """As :func:`prepare_file`."""
        return prepare_file(settings, files[0])


def prepare_file(settings: FileSettings, path: Path | str) -> SpikeDataset:
    """Read a user's file as a dataset.

    A file without a test split gets one carved from its train trials by `settings.seed`; with ``test: valid`` there
    is none, and scores are reported on the valid trials that also select. With `n_heldout`, that many neurons,
    drawn by the seed, are moved behind the held-in ones and hidden from the models.

    Parameters
    ----------
    settings
        Key map, units and split choices.
    path
        The file.

    Returns
    -------
    The checked dataset, `truth` in spikes per bin.

    Raises
    ------
    DatasetError
        If a key is absent (with the nearest one there), the values cannot be spike counts, the bin width is not
        known, or more neurons are held out than there are.
    """
    if settings.keys is None:
        dataset = read(
            path, settings.splits.model_dump(), missing_spikes=settings.missing_spikes, signal=settings.signal
        )
    else:
        dataset = _read_mapped(settings, path)
    if isinstance(dataset, MultiSession):
        raise DatasetError(
            f"{path}: holds the sessions {list(dataset.sessions)}; a dataset of kind `file` is one session: prepare "
            "each by itself, and join them by one of kind `sessions`"
        )
    bin_s = settings.bin_s or dataset.bin_s
    if bin_s is None:
        raise DatasetError(f"{path}: the file does not tell its bin width; give `bin_s` (seconds) in the configuration")
    splits = dict(dataset.splits)
    if settings.truth_unit == "hz":
        splits = {name: _replace(split, truth=_scaled(split.truth, bin_s)) for name, split in splits.items()}
    splits, order = _hold_out(splits, settings, path)
    if "test" not in splits and settings.test == "carve":
        splits |= _carve(splits["train"], settings, path)
    provenance = settings.model_dump(exclude={"path", "optional"}) | {"source": Path(path).name}
    if dataset.provenance:
        provenance["source_provenance"] = dict(dataset.provenance)
    neurons = dataset.names.get("neurons") or [f"neuron {i}" for i in range(len(order))]
    names = {**dataset.names, "neurons": [neurons[i] for i in order]}
    return check(SpikeDataset(splits, bin_s, names, provenance, dataset.missing_spikes, dataset.signal), str(path))


def _read_mapped(settings: FileSettings, path: Path | str) -> SpikeDataset:
    arrays, _ = open_arrays(path)
    keys = {name: key for name, key in settings.keys.model_dump().items() if key is not None}
    splits, sources = {}, {}
    for split in SPLITS:
        source = getattr(settings.splits, split)
        own = {name: key.replace("{split}", source) for name, key in keys.items()}
        if source == "test" and own["recon_data"] not in arrays:
            continue
        for key in own.values():
            if key not in arrays:
                raise missing_key(path, key, arrays)
        sources |= {f"{split}_{name}": key for name, key in own.items()}
        values = {name: arrays[key] for name, key in own.items()}
        splits[split] = {"encod_data": values["recon_data"]} | values
    try:
        made = {split: as_split(values, f"{path}: {split}") for split, values in splits.items()}
        whole = SpikeDataset(made, settings.bin_s, missing_spikes=settings.missing_spikes, signal=settings.signal)
        return check(whole, str(path))
    except DatasetError as error:
        raise DatasetError(_in_their_words(str(error), sources)) from None


def _in_their_words(message: str, sources: Mapping[str, str]) -> str:
    """Error message with the file's own key behind each of ours."""
    for ours, theirs in sources.items():
        if ours != theirs:
            message = re.sub(rf"\b{ours}\b", f"{ours} ({theirs!r} in the file)", message)
    return message


def _hold_out(splits: dict[str, Split], settings: FileSettings, path: Path | str) -> tuple[dict[str, Split], list[int]]:
    n_neurons, n_heldin = splits["train"].recon_data.shape[2], splits["train"].encod_data.shape[2]
    if settings.n_heldout == 0:
        return splits, list(range(n_neurons))
    if n_heldin < n_neurons:
        raise DatasetError(
            f"{path}: the file itself holds out {n_neurons - n_heldin} neurons; leave `n_heldout` at 0 to use them"
        )
    if settings.n_heldout >= n_neurons:
        raise DatasetError(
            f"{path}: `n_heldout` is {settings.n_heldout} but there are {n_neurons} neurons; hold out fewer"
        )
    order = held_out_last(np.arange(n_neurons), settings.n_heldout, settings.seed)
    n_heldin = n_neurons - settings.n_heldout
    moved = {
        name: _replace(
            split,
            encod_data=split.encod_data[:, :, order[:n_heldin]],
            recon_data=split.recon_data[:, :, order],
            truth=None if split.truth is None else split.truth[:, :, order],
        )
        for name, split in splits.items()
    }
    return moved, order.tolist()


def _carve(train: Split, settings: FileSettings, path: Path | str) -> dict[str, Split]:
    n_test = round(settings.test_fraction * train.n_trials)
    if not 0 < n_test < train.n_trials:
        raise DatasetError(
            f"{path}: `test_fraction` {settings.test_fraction} of {train.n_trials} train trials leaves {n_test} "
            "for test; choose a share that leaves some on both sides, or `test: valid`"
        )
    order = numpy_generator("test split", settings.seed).permutation(train.n_trials)
    return {"train": train.take(np.sort(order[n_test:])), "test": train.take(np.sort(order[:n_test]))}


def _replace(split: Split, **arrays: np.ndarray | None) -> Split:
    return Split(**(split.arrays() | arrays))


def _scaled(truth: np.ndarray | None, bin_s: float) -> np.ndarray | None:
    return None if truth is None else truth * np.float32(bin_s)
