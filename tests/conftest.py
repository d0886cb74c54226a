"""Fixtures that several test files share."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import jaxtyping
import numpy as np
import pytest

from ctdb.datasets import SPLITS, SpikeDataset, Split

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: the sums of several are in another order, and so are the last bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the public data files, which the repository does not hold."""
    return Path(os.environ.get("CTDB_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def data_file(data_folder: Path) -> Callable[[str], Path]:
    """Path of a public data file; the test is skipped, saying why, where it is absent."""

    def find(name: str) -> Path:
        path = data_folder / name
        if not path.exists():
            pytest.skip(f"{path} is absent: set CTDB_DATA to the folder that holds {name}")
        return path

    return find


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., SpikeDataset]:
    """Factory of small random datasets that are whole; the same arguments give the same values.

    ``make_dataset(ext_input=2, latents=3)`` adds such fields with that many channels, `truth` and `per_trial` add the
    rates behind the counts and (n_bins, condition, trial), `splits`, `bin_s`, `names` and `provenance` are passed on.
    The valid and test splits have half as many trials as the train split, at least two.
    """

    def make(
        n_trials: int = 8,
        n_bins: int = 6,
        n_heldin: int = 4,
        n_heldout: int = 2,
        *,
        n_recon_bins: int | None = None,
        truth: bool = True,
        per_trial: bool = False,
        seed: int = 0,
        splits: tuple[str, ...] = SPLITS,
        bin_s: float | None = 0.01,
        names: Mapping[str, list[str]] | None = None,
        provenance: Mapping[str, Any] | None = None,
        **channels: int,
    ) -> SpikeDataset:
        generator = np.random.default_rng(seed)
        recon_bins = n_recon_bins or n_bins

        def split(trials: int) -> Split:
            rates = generator.gamma(2.0, 0.4, (trials, recon_bins, n_heldin + n_heldout)).astype(np.float32)
            counts = generator.poisson(rates).astype(np.float32)
            fields = {
                name: generator.normal(size=(trials, recon_bins, number)).astype(np.float32)
                for name, number in channels.items()
            }
            if truth:
                fields["truth"] = rates
            if per_trial:
                fields["n_bins"] = generator.integers(1, recon_bins + 1, trials)
                fields["condition"] = generator.integers(0, 3, trials)
                fields["trial"] = generator.permutation(1000)[:trials]
            return Split(encod_data=counts[:, :n_bins, :n_heldin].copy(), recon_data=counts, **fields)

        sizes = {name: n_trials if name == "train" else max(2, n_trials // 2) for name in splits}
        return SpikeDataset({name: split(size) for name, size in sizes.items()}, bin_s, names or {}, provenance or {})

    return make


@pytest.fixture(scope="session")
def flat_arrays() -> Callable[[SpikeDataset], dict[str, np.ndarray]]:
    """Arrays of a dataset under the keys that a file gives them."""

    def flatten(dataset: SpikeDataset) -> dict[str, np.ndarray]:
        return {
            f"{name}_{key}": value.copy()
            for name, split in dataset.splits.items()
            for key, value in split.arrays().items()
        }

    return flatten


@pytest.fixture
def write_raw(tmp_path: Path) -> Callable[..., Path]:
    """Write arrays to an HDF5 file with h5py alone, as another program would, unchecked."""

    def write(
        arrays: Mapping[str, Any], attributes: Mapping[str, Any] | None = None, name: str = "session_a.h5"
    ) -> Path:
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file[key] = value
            file.attrs.update(attributes or {})
        return path

    return write


@pytest.fixture
def shapes_unchecked() -> Iterator[None]:
    """Run as users do, without jaxtyping: ill-shaped input then reaches the checks that are written for it."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
