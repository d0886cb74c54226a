"""Published windows: rows to units, runs to splits, and the real files."""

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from ctdb.datasets import DATASETS, SPLITS, read, write
from ctdb.datasets.ibl.windows import IblWindows, IblWindowsSettings
from ctdb.errors import IblMissingError, IblNoTrialsError, IblNoUnitsError, IblPrepareError

PID = "f475ae14-9415-453e-b800-1480ea1c868d"
OTHER = "00000000-0000-4000-8000-000000000001"
LENGTH = 10


def settings(**options) -> IblWindowsSettings:
    return IblWindowsSettings(**({"kind": "ibl_windows", "path": "not used", "block_windows": 2} | options))


def spikes(start, unit):
    """Whether a unit spikes in a bin: known of every bin and unit, and different between them."""
    return (start * 7919 + unit * 104729) % 11 < 3


def put(folder, start, first, n_units=6, pid=PID, length=LENGTH):
    rows = [[spikes(start + t, first + row) for t in range(length)] for row in range(n_units)]
    frame = pd.DataFrame(rows, columns=[str(t) for t in range(length)])
    name = f"{pid}_{start}-{start + length}_{first}-{first + n_units}.parquet"
    frame.to_parquet(folder / name)
    return folder / name


@pytest.fixture
def folder(tmp_path):
    """Ten windows; units 4 and 5 are in all, unit 3 in those that begin with it or before."""
    for index, start in enumerate([100, 110, 120, 200, 300, 310, 400, 500, 600, 700]):
        put(tmp_path, start, index % 5)
    return tmp_path


def prepare(folder, **options):
    return IblWindows.prepare(settings(**options), [folder])


@pytest.mark.parametrize(("units", "n_windows"), [(None, 10), ([4, 6], 10), ([3, 6], 8), ([1, 6], 4)])
def test_rows_are_stacked_by_unit_and_windows_without_the_units_left_out(folder, units, n_windows):
    dataset = prepare(folder, units=units, valid_fraction=0.3, test_fraction=0.3, block_windows=1)
    low, high = units or (4, 6)
    assert dataset.names["neurons"] == [f"unit {unit}" for unit in range(low, high)]
    seen = []
    for split in dataset.splits.values():
        for counts, start in zip(split.recon_data, split.trial.tolist(), strict=True):
            expected = [[spikes(start + t, unit) for unit in range(low, high)] for t in range(LENGTH)]
            np.testing.assert_array_equal(counts, expected)
            seen.append(start)
    assert len(seen) == len(set(seen)) == n_windows
    assert dataset.provenance["n_windows_without_the_units"] == 10 - n_windows
    assert dataset.provenance["pid"] == PID
    assert dataset.bin_s == 0.005


def test_windows_that_adjoin_go_to_one_split_up_to_a_block(folder):
    apart = []
    for seed in range(5):
        dataset = prepare(folder, seed=seed)
        split_of = {start: name for name, split in dataset.splits.items() for start in split.trial.tolist()}
        assert split_of[100] == split_of[110]  # 120 begins another block of at most 2
        assert split_of[300] == split_of[310]
        apart.append(split_of[110] != split_of[120])
    assert any(apart)
    whole = [prepare(folder, seed=seed, block_windows=3) for seed in range(5)]
    for dataset in whole:
        assert any({100, 110, 120} <= set(split.trial.tolist()) for split in dataset.splits.values())
    assert any(set(one["test"].trial) != set(whole[0]["test"].trial) for one in whole[1:])


def test_bins_may_be_merged(folder):
    fine, coarse = prepare(folder), prepare(folder, merge_bins=5)
    assert coarse.bin_s == pytest.approx(0.025)
    for split in SPLITS:
        expected = fine[split].recon_data.reshape(-1, 2, 5, 2).sum(2)
        np.testing.assert_array_equal(coarse[split].recon_data, expected)
    with pytest.raises(IblPrepareError, match="`merge_bins` is 3, which does not divide the 10 bins"):
        prepare(folder, merge_bins=3)


def test_neurons_are_held_out_by_the_seed(folder):
    dataset = prepare(folder, units=[3, 6], n_heldout=1)
    assert dataset.n_heldin == 2
    names = [prepare(folder, units=[3, 6], n_heldout=1, seed=seed).names["neurons"] for seed in range(6)]
    assert all(set(one) == {"unit 3", "unit 4", "unit 5"} for one in names)
    assert len({one[2] for one in names}) > 1
    trial = dataset["train"].trial[0]
    for column, name in enumerate(dataset.names["neurons"]):
        expected = [spikes(trial + t, int(name.split()[1])) for t in range(LENGTH)]
        np.testing.assert_array_equal(dataset["train"].recon_data[0, :, column], expected)


def test_equal_runs_write_equal_bytes(folder, tmp_path):
    for name in ("a.h5", "b.h5"):
        write(tmp_path / name, prepare(folder))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert read(tmp_path / "a.h5").provenance["source"] == folder.name


def test_what_cannot_be_used_is_named(folder, tmp_path):
    with pytest.raises(IblMissingError, match="no such folder"):
        prepare(folder / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(IblMissingError, match="no file of any insertion is named"):
        prepare(tmp_path / "empty")
    with pytest.raises(IblMissingError, match=f"no file of {OTHER}"):
        prepare(folder, pid=OTHER)
    with pytest.raises(IblNoTrialsError, match="none of the 10 windows holds units 0 to 19"):
        prepare(folder, units=[0, 20])
    with pytest.raises(IblNoUnitsError, match="10 windows share 2 units, expected more than `n_heldout`, 2"):
        prepare(folder, n_heldout=2)
    with pytest.raises(IblNoTrialsError, match="too few for train, valid and test"):
        prepare(folder, units=[4, 10], block_windows=1)
    with pytest.raises(ValidationError, match="leave no held-in neuron"):
        settings(units=[4, 6], n_heldout=2)
    with pytest.raises(ValidationError, match="must leave some for train"):
        settings(valid_fraction=0.5, test_fraction=0.5)


def test_insertions_are_not_mixed(folder):
    put(folder, 800, 2, pid=OTHER)
    with pytest.raises(IblPrepareError, match="holds windows of 2 insertions; choose one in `pid`"):
        prepare(folder)
    assert prepare(folder, pid=PID).provenance["pid"] == PID


def test_files_that_do_not_go_together_are_refused(folder):
    twice = put(folder, 500, 3)
    with pytest.raises(IblPrepareError, match="two files hold the same bins"):
        prepare(folder)
    twice.unlink()
    longer = put(folder, 900, 3, length=12)
    with pytest.raises(IblPrepareError, match="different lengths, such as 12"):
        prepare(folder)
    longer.rename(longer.with_name(longer.name.replace("900-912", "900-910")))
    with pytest.raises(IblPrepareError, match=r"holds \(units, bins\) \(6, 12\), expected \(6, 10\)"):
        prepare(folder)


@pytest.mark.parametrize(("units", "n_windows"), [([72, 136], 22), (None, 30), ([115, 147], 28)])
def test_the_published_files_share_units(data_file, units, n_windows):
    folder = data_file("ibl_mo_spikes")
    dataset = IblWindows.prepare(settings(units=units, block_windows=4), [folder])
    n_units = 21 if units is None else units[1] - units[0]
    assert sum(split.n_trials for split in dataset.splits.values()) == n_windows
    assert dataset["train"].recon_data.shape[1:] == (160, n_units)
    assert set(np.unique(dataset["train"].recon_data)) == {0, 1}


def test_units_of_the_published_files_keep_their_rates_from_window_to_window(data_file):
    """Rows are units only when shifted by the name's first unit: else halves of the files would not correlate."""
    dataset = IblWindows.prepare(settings(units=[72, 136]), [data_file("ibl_mo_spikes")])
    counts = np.concatenate([split.recon_data.mean(1) for split in dataset.splits.values()])
    odd, even = counts[::2].mean(0), counts[1::2].mean(0)
    assert np.corrcoef(odd, even)[0, 1] > 0.85


def test_the_kind_is_known_by_its_name_and_made_from_a_folder():
    assert DATASETS["ibl_windows"] is IblWindows
    assert IblWindows.sources(settings(path="here")) == [("file", "here")]
