"""Datasets on disk: flat HDF5 keys ``{split}_{name}``, shared with lfads-torch and BAND-torch.

Their files and CtDB's are read as they are: `inputs` is read as `ext_input`, `activity` as `truth`, `inds` as
`trial`, `cond_idx` as `condition`, and `truth` is divided by lfads-torch's `conversion_factor` where there is one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ctdb.datasets.dataset import FIELDS, PER_TRIAL, REQUIRED, SPLITS, SpikeDataset, Split, check
from ctdb.datasets.multi_session import MultiSession, check_sessions
from ctdb.errors import DatasetError, nearest
from ctdb.files import read_hdf5, write_hdf5

FORMAT = "ctdb-dataset-1"
SESSIONS_FORMAT = "ctdb-sessions-1"
STANDARD_SPLITS = {split: split for split in SPLITS}
_FOREIGN_NAMES = {"ext_input": "inputs", "truth": "activity", "trial": "inds", "condition": "cond_idx"}


def write(path: Path | str, dataset: SpikeDataset | MultiSession) -> None:
    """Write a checked dataset, atomically; equal datasets give equal bytes.

    The keys of several sessions begin with the session's name: ``{session}/{split}_{name}``.

    Raises
    ------
    DatasetError
        If the dataset is not whole (see :func:`ctdb.datasets.check`).
    WriteError
        If the file cannot be written.
    """
    if isinstance(dataset, MultiSession):
        check_sessions(dataset, str(path))
        own = {name: _attributes(session) for name, session in dataset.sessions.items()}
        attributes = {"format": SESSIONS_FORMAT, "sessions": json.dumps(own)}
    else:
        check(dataset, str(path))
        attributes = {"format": FORMAT, **_attributes(dataset)}
    arrays = {
        f"{name}/{split}_{key}".lstrip("/"): value
        for name, session in dataset.sessions.items()
        for split in SPLITS
        if split in session.splits
        for key, value in session[split].arrays().items()
    }
    write_hdf5(path, arrays, attributes)


def _attributes(dataset: SpikeDataset) -> dict[str, Any]:
    attributes = {
        "heldin": dataset.n_heldin,
        "names": json.dumps(dict(dataset.names), sort_keys=True),
        "provenance": json.dumps(dict(dataset.provenance), sort_keys=True),
    }
    if dataset.bin_s is not None:
        attributes["bin_s"] = dataset.bin_s
    if dataset.missing_spikes:
        attributes["missing_spikes"] = True
    if dataset.signal != "spikes":
        attributes["signal"] = dataset.signal
    return attributes


def read(
    path: Path | str,
    splits: Mapping[str, str] = STANDARD_SPLITS,
    *,
    missing_spikes: bool = False,
    signal: str = "spikes",
) -> SpikeDataset | MultiSession:
    """Read a dataset of ours, of lfads-torch, of BAND-torch or of CtDB.

    Parameters
    ----------
    path
        HDF5 file with at least ``{train,valid}_encod_data`` and ``{train,valid}_recon_data``.
    splits
        Our split to what the file calls it.
    missing_spikes, signal
        Whether NaN counts are missing ones, and what the values are (see :class:`SpikeDataset`), of a foreign file.

    Returns
    -------
    The dataset with float32 arrays, checked. ``bin_s`` is None for a foreign file, which does not tell it.

    Raises
    ------
    DatasetError
        If the file is absent, is not HDF5, lacks a key, or holds values that cannot be spike counts.
    """
    arrays, attributes = open_arrays(path)
    if str(attributes.get("format")) == SESSIONS_FORMAT:
        sessions = {}
        for name, own in json.loads(attributes["sessions"]).items():
            prefix = f"{name}/"
            found = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
            sessions[name] = _read_session(f"{path}: {name}", found, own, splits, ours=True)
        return check_sessions(MultiSession(sessions), str(path))
    ours = str(attributes.get("format")) == FORMAT
    own = attributes if ours else {"missing_spikes": missing_spikes, "signal": signal} | _bin_width(attributes)
    return check(_read_session(path, arrays, own, splits, ours), str(path))


def _bin_width(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {"bin_s": attributes["bin_s"]} if "bin_s" in attributes else {}


def _read_session(
    path: Path | str,
    arrays: dict[str, np.ndarray],
    attributes: Mapping[str, Any],
    splits: Mapping[str, str],
    ours: bool,
) -> SpikeDataset:
    read_splits = {}
    for split, source in splits.items():
        present = {name: found for name in FIELDS if (found := _find(arrays, source, name)) is not None}
        if source == split and not present:
            continue
        if source == "test" and not set(REQUIRED) <= present.keys():
            continue  # lfads-torch's test split may hold no targets: nothing can be scored on it
        for name in REQUIRED:
            if name not in present:
                raise missing_key(path, f"{source}_{name}", arrays)
        if not ours:
            present = _from_lfads_torch(present, arrays, path)
        read_splits[split] = as_split(present, f"{path}: {source}")
    bin_s = attributes.get("bin_s")
    if not read_splits:
        raise missing_key(path, "train_encod_data", arrays)
    # Another program's attributes of the same names need not be JSON.
    names, provenance = (json.loads(attributes.get(key, "{}")) if ours else {} for key in ("names", "provenance"))
    return SpikeDataset(
        read_splits,
        None if bin_s is None else float(bin_s),
        names,
        provenance,
        bool(attributes.get("missing_spikes", False)),
        str(attributes.get("signal", "spikes")),
    )


def open_arrays(path: Path | str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and attributes of an HDF5 file; raises DatasetError if it is absent or is not HDF5."""
    if not Path(path).is_file():
        raise DatasetError(f"{path}: no such file; correct the path, or make the file first")
    try:
        return read_hdf5(path)
    except OSError as error:
        raise DatasetError(
            f"{path}: not a readable HDF5 file ({error}); copy or convert it again. h5py.is_hdf5 says "
            f"{h5py.is_hdf5(path)}"
        ) from None


def as_split(values: Mapping[str, np.ndarray], label: str) -> Split:
    """Split from raw arrays: counts and signals as float32, per-trial integers as int64.

    Raises
    ------
    DatasetError
        If an array has the wrong number of dimensions or no numbers in it.
    """
    converted = {}
    for name, value in values.items():
        value = np.asarray(value)
        expected = 1 if name in PER_TRIAL else 3
        if expected == 1 and value.ndim == 2 and value.shape[1] == 1:
            value = value[:, 0]
        if value.ndim != expected or value.dtype.kind not in "fiub":
            axes = "(trials,)" if expected == 1 else "(trials, bins, channels)"
            raise DatasetError(
                f"{label}_{name} has shape {value.shape} and type {value.dtype}; expected numbers of shape {axes}"
            )
        if name in PER_TRIAL and not (np.isfinite(value).all() and (value == np.round(value)).all()):
            raise DatasetError(f"{label}_{name} must hold one whole number per trial")
        converted[name] = value.astype(np.int64 if name in PER_TRIAL else np.float32)
    return Split(**converted)


def missing_key(path: Path | str, key: str, arrays: Mapping[str, np.ndarray]) -> DatasetError:
    """Error for an absent key that names the nearest one in the file."""
    return DatasetError(
        f"{path}: no key {key!r} ({nearest(key, arrays)}). Map other names with `keys` in the configuration"
    )


def _from_lfads_torch(
    present: dict[str, np.ndarray], arrays: Mapping[str, np.ndarray], path: Path | str
) -> dict[str, np.ndarray]:
    """Arrays as lfads-torch takes them.

    Rates are divided by its conversion factor, short inputs padded with zeros, short behaviour with NaN.
    """
    factor = np.asarray(arrays.get("conversion_factor", 1.0)).squeeze()
    if factor.ndim or factor.dtype.kind not in "fiu" or not factor > 0:
        raise DatasetError(f"{path}: conversion_factor is {factor}; expected one number above 0")
    changed = dict(present)
    if "truth" in present and factor != 1:
        changed["truth"] = present["truth"] / factor
    n_missing = present["recon_data"].shape[1] - present.get("ext_input", present["recon_data"]).shape[1]
    if n_missing > 0:
        changed["ext_input"] = np.pad(present["ext_input"], ((0, 0), (0, n_missing), (0, 0)))
    if "behavior" in present and present["behavior"].ndim == 3:
        n_missing = present["recon_data"].shape[1] - present["behavior"].shape[1]
        if n_missing > 0:  # BAND-torch compares behaviour with as many bins of its prediction
            padding = ((0, 0), (0, n_missing), (0, 0))
            changed["behavior"] = np.pad(present["behavior"].astype(np.float32), padding, constant_values=np.nan)
    return changed


def _find(arrays: Mapping[str, np.ndarray], split: str, name: str) -> np.ndarray | None:
    for candidate in (name, _FOREIGN_NAMES.get(name)):
        if candidate is not None and f"{split}_{candidate}" in arrays:
            return arrays[f"{split}_{candidate}"]
    return None
