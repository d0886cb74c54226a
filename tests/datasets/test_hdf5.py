"""The dataset format: what is written, what is read back, and the files of other programs."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from ctdb.datasets import SPLITS, SpikeDataset, read, write
from ctdb.errors import DatasetError


@pytest.fixture
def full_dataset(make_dataset):
    return make_dataset(
        n_recon_bins=9,
        per_trial=True,
        ext_input=2,
        behavior=2,
        latents=3,
        inputs_true=1,
        bin_s=0.02,
        names={"neurons": ["a", "b"], "behavior": ["x", "ÿ"]},
        provenance={"kind": "simulated", "seed": 3, "noise": {"dispersion": 0.1, "on": True, "none": None}},
    )


def facts(dataset: SpikeDataset):
    return (dataset.bin_s, dict(dataset.names), dict(dataset.provenance), dataset.missing_spikes, dataset.signal)


def assert_same(first: SpikeDataset, second: SpikeDataset):
    assert list(first.splits) == list(second.splits)
    for name in first.splits:
        one, other = first[name].arrays(), second[name].arrays()
        assert list(one) == list(other)
        for key in one:
            assert one[key].dtype == other[key].dtype, key
            np.testing.assert_array_equal(one[key], other[key], err_msg=f"{name}_{key}")
    assert facts(first) == facts(second)


def test_what_is_written_is_read_back_exactly(full_dataset, tmp_path):
    write(tmp_path / "d.h5", full_dataset)
    assert_same(read(tmp_path / "d.h5"), full_dataset)


@pytest.mark.parametrize("splits", [("train", "valid"), SPLITS])
def test_a_dataset_of_spikes_alone_is_read_back_exactly(make_dataset, tmp_path, splits):
    dataset = make_dataset(n_heldout=0, truth=False, splits=splits, bin_s=None)
    write(str(tmp_path / "d.h5"), dataset)
    found = read(str(tmp_path / "d.h5"))
    assert_same(found, dataset)
    assert found.bin_s is None
    assert found.report_split == splits[-1]


def test_sizes_are_those_of_the_arrays(full_dataset, tmp_path):
    write(tmp_path / "d.h5", full_dataset)
    found = read(tmp_path / "d.h5")
    sizes = (found.n_heldin, found.n_neurons, found.n_bins, found.n_recon_bins, found.n_inputs)
    assert sizes == (4, 6, 6, 9, 2)


def test_behavior_may_have_missing_values(make_dataset, tmp_path):
    dataset = make_dataset(behavior=2)
    dataset["train"].behavior[0, 1, 1] = np.nan
    write(tmp_path / "d.h5", dataset)
    assert_same(read(tmp_path / "d.h5"), dataset)


def test_equal_datasets_give_equal_bytes(make_dataset, tmp_path):
    options = {"ext_input": 2, "per_trial": True, "names": {"b": ["1"], "a": ["2"]}}
    write(tmp_path / "one.h5", make_dataset(**options, provenance={"seed": 1, "kind": {"x": 1, "y": 2}}))
    options["names"] = {"a": ["2"], "b": ["1"]}
    write(tmp_path / "elsewhere" / "two.h5", make_dataset(**options, provenance={"kind": {"y": 2, "x": 1}, "seed": 1}))
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "elsewhere" / "two.h5").read_bytes()


def test_order_of_splits_and_a_second_writing_do_not_change_the_bytes(full_dataset, tmp_path):
    write(tmp_path / "one.h5", full_dataset)
    backwards = SpikeDataset(
        dict(reversed(full_dataset.splits.items())), full_dataset.bin_s, full_dataset.names, full_dataset.provenance
    )
    write(tmp_path / "two.h5", backwards)
    write(tmp_path / "three.h5", read(tmp_path / "one.h5"))
    one = (tmp_path / "one.h5").read_bytes()
    assert (tmp_path / "two.h5").read_bytes() == one
    assert (tmp_path / "three.h5").read_bytes() == one


def test_different_datasets_give_different_bytes(make_dataset, tmp_path):
    for seed in (0, 1):
        write(tmp_path / f"{seed}.h5", make_dataset(seed=seed))
    assert (tmp_path / "0.h5").read_bytes() != (tmp_path / "1.h5").read_bytes()


def test_no_time_is_stored(full_dataset, tmp_path):
    write(tmp_path / "d.h5", full_dataset)
    with h5py.File(tmp_path / "d.h5") as file:
        assert [h5py.h5g.get_objinfo(file.id, key.encode()).mtime for key in ("/", *file)] == [0] * (len(file) + 1)


def test_keys_and_attributes_are_those_of_the_format(full_dataset, tmp_path):
    write(tmp_path / "d.h5", full_dataset)
    counts, signals = ("encod_data", "recon_data"), ("ext_input", "behavior", "truth", "latents", "inputs_true")
    fields = (*counts, *signals, "n_bins", "condition", "trial")
    with h5py.File(tmp_path / "d.h5") as file:
        assert set(file) == {f"{split}_{name}" for split in ("train", "valid", "test") for name in fields}
        assert set(file.attrs) == {"format", "bin_s", "heldin", "names", "provenance"}
        assert file.attrs["bin_s"] == 0.02
        assert file.attrs["heldin"] == 4
        assert json.loads(file.attrs["provenance"])["noise"] == {"dispersion": 0.1, "on": True, "none": None}
        assert json.loads(file.attrs["names"])["behavior"] == ["x", "ÿ"]


def test_lfads_torch_finds_its_own_key_names_in_our_file(full_dataset, tmp_path):
    write(tmp_path / "d.h5", full_dataset)
    with h5py.File(tmp_path / "d.h5") as file:
        for split in SPLITS:
            encod, recon = file[f"{split}_encod_data"][()], file[f"{split}_recon_data"][()]
            assert encod.dtype == recon.dtype == np.float32
            assert encod.ndim == recon.ndim == 3
            np.testing.assert_array_equal(recon[:, : encod.shape[1], : encod.shape[2]], encod)
            np.testing.assert_array_equal(file[f"{split}_ext_input"][()], full_dataset[split].ext_input)
            np.testing.assert_array_equal(file[f"{split}_truth"][()], full_dataset[split].truth)
            np.testing.assert_array_equal(file[f"{split}_behavior"][()], full_dataset[split].behavior)
        assert "conversion_factor" not in file


def test_a_file_of_ctdb_is_read_without_a_key_map(make_dataset, write_raw):
    source = make_dataset(n_heldin=5, n_heldout=1, ext_input=3, latents=4, splits=("train", "valid"))
    arrays = {"readout": np.ones((4, 6)), "orig_mean": np.zeros((1, 1)), "perm_neurons": np.arange(6)}
    for name, split in source.splits.items():
        arrays |= {
            f"{name}_encod_data": split.encod_data.astype(np.float64),
            f"{name}_recon_data": split.recon_data.astype(np.float64),
            f"{name}_inputs": split.ext_input,
            f"{name}_activity": split.truth,
            f"{name}_latents": split.latents,
            f"{name}_inds": np.arange(split.n_trials).astype(np.float64) + 7,
            f"{name}_extra": np.zeros((split.n_trials, 2)),
        }
    found = read(write_raw(arrays))
    assert list(found.splits) == ["train", "valid"]
    assert found.bin_s is None
    for name, split in source.splits.items():
        assert set(found[name].arrays()) == {"encod_data", "recon_data", "ext_input", "truth", "latents", "trial"}
        for key in ("encod_data", "recon_data", "ext_input", "truth", "latents"):
            assert getattr(found[name], key).dtype == np.float32
            np.testing.assert_array_equal(getattr(found[name], key), getattr(split, key))
        np.testing.assert_array_equal(found[name].trial, np.arange(split.n_trials) + 7)


@pytest.mark.parametrize("factor", [4.0, np.array([4.0])])
def test_a_file_of_lfads_torch_is_read_without_a_key_map(make_dataset, write_raw, factor):
    source = make_dataset(ext_input=2, splits=("train", "valid"))
    arrays = {"conversion_factor": factor, "psth": np.zeros((2, 6, 6))}
    for name, split in source.splits.items():
        arrays |= {
            f"{name}_encod_data": split.encod_data.astype(np.uint8),
            f"{name}_recon_data": split.recon_data.astype(np.int64),
            f"{name}_ext_input": split.ext_input.astype(np.float64),
            f"{name}_truth": split.truth * np.float32(4),
            f"{name}_cond_idx": np.arange(split.n_trials)[:, None],
            f"{name}_inds": np.arange(split.n_trials) * 2,
        }
    found = read(write_raw(arrays))
    for name, split in source.splits.items():
        np.testing.assert_array_equal(found[name].encod_data, split.encod_data)
        np.testing.assert_array_equal(found[name].recon_data, split.recon_data)
        np.testing.assert_array_equal(found[name].ext_input, split.ext_input)
        np.testing.assert_array_equal(found[name].truth, split.truth)
        np.testing.assert_array_equal(found[name].condition, np.arange(split.n_trials))
        np.testing.assert_array_equal(found[name].trial, np.arange(split.n_trials) * 2)
        assert found[name].recon_data.dtype == np.float32


def test_a_test_split_without_targets_is_left_out(make_dataset, flat_arrays, write_raw):
    arrays = flat_arrays(make_dataset(truth=False))
    del arrays["test_recon_data"]
    found = read(write_raw(arrays))
    assert list(found.splits) == ["train", "valid"]
    assert found.report_split == "valid"


def test_our_name_of_a_field_goes_before_a_foreign_one(make_dataset, flat_arrays, write_raw):
    dataset = make_dataset(ext_input=2)
    others = {f"{split}_inputs": np.zeros_like(dataset[split].ext_input) for split in SPLITS}
    found = read(write_raw(flat_arrays(dataset) | others))
    np.testing.assert_array_equal(found["train"].ext_input, dataset["train"].ext_input)


def test_groups_and_attributes_of_other_programs_are_ignored(make_dataset, flat_arrays, write_raw):
    attributes = {"names": "Chewie, Mihi", "provenance": np.arange(3), "day": "2013-10-03"}
    path = write_raw(flat_arrays(make_dataset()) | {"notes/electrode": np.arange(4)}, attributes)
    found = read(path)
    assert (found.bin_s, dict(found.names), dict(found.provenance)) == (None, {}, {})


def test_short_inputs_of_lfads_torch_are_padded_with_zeros(make_dataset, write_raw, flat_arrays):
    source = make_dataset(ext_input=2, n_recon_bins=12, n_bins=8)
    arrays = flat_arrays(source)
    arrays |= {key: value[:, :8] for key, value in arrays.items() if key.endswith("ext_input")}
    found = read(write_raw(arrays))["valid"].ext_input
    np.testing.assert_array_equal(found[:, :8], source["valid"].ext_input[:, :8])
    assert found.shape[1] == 12
    assert not found[:, 8:].any()


@pytest.mark.parametrize("factor", [np.ones(3), 0.0, -1.0])
def test_a_conversion_factor_that_is_not_one_positive_number_is_refused(factor, make_dataset, write_raw, flat_arrays):
    path = write_raw(flat_arrays(make_dataset(truth=True)) | {"conversion_factor": np.asarray(factor)})
    with pytest.raises(DatasetError, match="expected one number above 0"):
        read(path)


@pytest.mark.parametrize("value", [np.nan, 7.9])
def test_a_per_trial_number_that_is_not_whole_is_refused(value, make_dataset, write_raw, flat_arrays):
    arrays = flat_arrays(make_dataset(per_trial=True))
    arrays["valid_trial"] = arrays["valid_trial"] + 0.0
    arrays["valid_trial"][0] = value
    with pytest.raises(DatasetError, match="valid_trial must hold one whole number per trial"):
        read(write_raw(arrays))


def with_missing_spikes(dataset, share=0.2):
    """NaN at random, the same in what is seen and what is predicted."""
    drawn = np.random.default_rng(4)
    for split in dataset.splits.values():
        split.recon_data[drawn.random(split.recon_data.shape) < share] = np.nan
        split.encod_data[...] = split.recon_data[:, : split.encod_data.shape[1], : split.encod_data.shape[2]]
    return replace(dataset, missing_spikes=True)


def test_missing_spikes_are_written_and_read_back_without_being_asked_for(full_dataset, tmp_path):
    dataset = with_missing_spikes(full_dataset)
    write(tmp_path / "d.h5", dataset)
    assert_same(read(tmp_path / "d.h5"), dataset)
    with h5py.File(tmp_path / "d.h5") as file:
        assert file.attrs["missing_spikes"]
    write(tmp_path / "again.h5", read(tmp_path / "d.h5"))
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "d.h5").read_bytes()


def test_missing_spikes_are_not_written_unless_the_dataset_has_them(full_dataset, tmp_path):
    dataset = replace(with_missing_spikes(full_dataset), missing_spikes=False)
    with pytest.raises(DatasetError, match=r"train_encod_data holds nan .*set `missing_spikes`"):
        write(tmp_path / "d.h5", dataset)
    assert not (tmp_path / "d.h5").exists()


def test_our_file_says_itself_whether_spikes_are_missing_and_what_its_values_are(make_dataset, tmp_path):
    write(tmp_path / "d.h5", make_dataset())
    found = read(tmp_path / "d.h5", missing_spikes=True, signal="continuous")
    assert (found.missing_spikes, found.signal) == (False, "spikes")


def test_a_continuous_signal_is_written_and_read_back(full_dataset, tmp_path):
    dataset = with_missing_spikes(replace(full_dataset, signal="continuous"))
    for split in dataset.splits.values():
        split.recon_data[...] -= 0.4
        split.encod_data[...] -= 0.4
    write(tmp_path / "d.h5", dataset)
    assert_same(read(tmp_path / "d.h5"), dataset)
    with h5py.File(tmp_path / "d.h5") as file:
        assert file.attrs["signal"] == "continuous"


def test_a_foreign_signal_is_read_where_it_is_asked_for(make_dataset, flat_arrays, write_raw):
    source = make_dataset(truth=False)
    arrays = {key: value - 0.4 for key, value in flat_arrays(source).items()}
    with pytest.raises(DatasetError, match="a negative count"):
        read(write_raw(arrays))
    found = read(write_raw(arrays), signal="continuous")
    assert (found.signal, found.missing_spikes) == ("continuous", False)
    np.testing.assert_array_equal(found["test"].recon_data, arrays["test_recon_data"])


def test_missing_spikes_of_a_foreign_file_are_read_where_they_are_asked_for(make_dataset, flat_arrays, write_raw):
    source = with_missing_spikes(make_dataset())
    path = write_raw(flat_arrays(source), {"missing_spikes": True, "signal": "continuous"})  # not the file's to say
    with pytest.raises(DatasetError, match=r"train_encod_data holds nan .*set `missing_spikes`"):
        read(path)
    found = read(path, missing_spikes=True)
    assert (found.missing_spikes, found.signal) == (True, "spikes")
    for name, split in source.splits.items():
        np.testing.assert_array_equal(found[name].encod_data, split.encod_data)
        np.testing.assert_array_equal(found[name].recon_data, split.recon_data)


def test_the_first_bin_of_each_window_is_read_back_as_whole_numbers(make_dataset, tmp_path):
    dataset = make_dataset()
    splits = {name: replace(split, start=7 * np.arange(split.n_trials)) for name, split in dataset.splits.items()}
    write(tmp_path / "d.h5", replace(dataset, splits=splits))
    found = read(tmp_path / "d.h5")["train"]
    assert found.start.dtype == np.int64
    assert found.start.tolist() == [7 * trial for trial in range(found.n_trials)]
    assert found.take(np.array([3, 1])).start.tolist() == [21, 7]


@pytest.mark.parametrize("dtype", [np.float64, np.int16])
def test_short_behaviour_of_band_is_padded_with_nan(dtype, make_dataset, write_raw, flat_arrays):
    arrays = flat_arrays(make_dataset(behavior=2, n_recon_bins=12, n_bins=8))
    arrays |= {key: (10 * value[:, :7]).astype(dtype) for key, value in arrays.items() if key.endswith("behavior")}
    found = read(write_raw(arrays))
    for split in SPLITS:
        behavior = found[split].behavior
        assert behavior.shape[1] == 12
        np.testing.assert_array_equal(behavior[:, :7], arrays[f"{split}_behavior"].astype(np.float32))
        assert np.isnan(behavior[:, 7:]).all()


def test_our_own_short_behaviour_stays_as_it_is(make_dataset, tmp_path):
    dataset = make_dataset(behavior=2, n_recon_bins=12, n_bins=8)
    splits = {name: replace(split, behavior=split.behavior[:, :8]) for name, split in dataset.splits.items()}
    dataset = replace(dataset, splits=splits)
    write(tmp_path / "d.h5", dataset)
    assert_same(read(tmp_path / "d.h5"), dataset)
