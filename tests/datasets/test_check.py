"""A bad spike file gives one error that says where, what was expected, what was found and what to do."""

import re
from dataclasses import replace

import numpy as np
import pytest

from ctdb.datasets import SPLITS, SpikeDataset, Split, check, read, write
from ctdb.errors import DatasetError

pytestmark = pytest.mark.usefixtures("shapes_unchecked")


@pytest.fixture
def arrays(make_dataset, flat_arrays):
    """Eight train trials and four others of 6 bins (9 to predict), 4 held-in and 2 held-out neurons."""
    return flat_arrays(make_dataset(n_recon_bins=9, per_trial=True, ext_input=2, behavior=2, latents=3, inputs_true=1))


def message(call, *arguments) -> str:
    with pytest.raises(DatasetError) as raised:
        call(*arguments)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    return str(raised.value)


def put(key, position, value):
    def edit(arrays):
        arrays[key][position] = value

    return edit


def put_count(key, position, value):
    """Also in recon_data, so that the count is the only thing that is wrong."""

    def edit(arrays):
        arrays[key][position] = value
        arrays[key.replace("encod", "recon")][position] = value

    return edit


def change(key, function):
    def edit(arrays):
        arrays[key] = function(arrays[key])

    return edit


def change_split(split, function):
    def edit(arrays):
        for key in [key for key in arrays if key.startswith(split)]:
            arrays[key] = function(arrays[key])

    return edit


def rename(key, new):
    def edit(arrays):
        arrays[new] = arrays.pop(key)

    return edit


def without(*prefixes):
    def edit(arrays):
        for key in [key for key in arrays if key.startswith(prefixes)]:
            del arrays[key]

    return edit


def in_all(name, function):
    def edit(arrays):
        for key in [key for key in arrays if key.endswith(f"_{name}")]:
            arrays[key] = function(arrays[key])

    return edit


BAD_FILES = {
    "missing key": (without("train_encod_data"), ["no key 'train_encod_data'", "Map other names with `keys`"]),
    "misspelt key": (
        rename("train_recon_data", "train_recon_dta"),
        ["no key 'train_recon_data'", "did you mean 'train_recon_dta'?"],
    ),
    "no keys we know": (lambda arrays: arrays.clear(), ["no key 'train_encod_data'", "none to choose from"]),
    "no valid split": (without("valid"), ["no 'valid' split", "'train' and 'valid'", "Split the trials"]),
    "no train split": (without("train"), ["no 'train' split", "'train' and 'valid'"]),
    "NaN count": (
        put_count("train_encod_data", (2, 3, 1), np.nan),
        [
            "train_encod_data holds nan",
            "trial 2, bin 3, channel 1",
            "expected finite numbers",
            "Where NaN stands for what was not recorded, set `missing_spikes`; else remove such trials",
        ],
    ),
    "NaN count of a held-out neuron": (
        put("valid_recon_data", (1, 8, 5), np.nan),
        ["valid_recon_data holds nan", "trial 1, bin 8, channel 5", "set `missing_spikes`; else remove such trials"],
    ),
    "NaN": (
        put("train_ext_input", (2, 3, 1), np.nan),
        [
            "train_ext_input holds nan",
            "trial 2, bin 3, channel 1",
            "expected finite numbers",
            "Remove such trials, or interpolate them, before the file is used",
        ],
    ),
    "infinite count": (
        put_count("train_encod_data", (2, 3, 1), np.inf),
        ["train_encod_data holds inf", "trial 2, bin 3, channel 1", "Remove such trials, or interpolate them"],
    ),
    "infinite behaviour": (
        put("test_behavior", (3, 0, 1), -np.inf),
        ["test_behavior holds -inf", "trial 3, bin 0, channel 1", "Remove such trials, or interpolate them"],
    ),
    "infinite": (
        put("test_latents", (1, 0, 2), np.inf),
        ["test_latents holds inf", "trial 1, bin 0, channel 2", "expected finite numbers"],
    ),
    "negative": (
        put_count("valid_encod_data", (0, 5, 3), -2),
        ["valid_encod_data holds a negative count, -2,", "trial 0, bin 5, channel 3", "0, 1, 2", "baseline"],
    ),
    "rates in place of counts": (
        put_count("train_encod_data", (7, 0, 0), 0.25),
        ["train_encod_data holds a fraction, 0.25,", "trial 7, bin 0, channel 0", "counts per bin", "as truth"],
    ),
    "fraction in a held-out neuron": (
        put("test_recon_data", (3, 8, 5), 1.5),
        ["test_recon_data holds a fraction, 1.5,", "trial 3, bin 8, channel 5"],
    ),
    "fewer trials in one key": (
        change("train_encod_data", lambda value: value[:5]),
        ["train_encod_data has 5 trials", "train_recon_data has 8", "same trials"],
    ),
    "fewer trials of an input": (
        change("valid_ext_input", lambda value: value[:3]),
        ["valid_ext_input has 3 trials", "valid_recon_data has 4"],
    ),
    "fewer numbers than trials": (
        change("test_condition", lambda value: value[:1]),
        ["test_condition has 1 trials", "test_recon_data has 4"],
    ),
    "more bins of an input": (
        in_all("ext_input", lambda value: np.repeat(value, 2, axis=1)),
        ["train_ext_input has 18 bins", "train_recon_data has 9", "same bins"],
    ),
    "more bins of true rates": (
        in_all("truth", lambda value: np.repeat(value, 2, axis=1)),
        ["train_truth has 18 bins", "train_recon_data has 9"],
    ),
    "more bins of behaviour": (
        in_all("behavior", lambda value: np.repeat(value, 2, axis=1)),
        ["train_behavior has 18 bins", "train_recon_data has 9", "in the bins of the spikes", "resample or cut it"],
    ),
    "other neurons in true rates": (
        in_all("truth", lambda value: value[:, :, :4]),
        ["train_truth has 4 neurons", "train_recon_data has 6"],
    ),
    "negative true rates": (
        put("valid_truth", (0, 0, 0), -0.1),
        ["valid_truth holds a negative rate, -0.1", "expected spikes per bin"],
    ),
    "two dimensions": (
        change("train_recon_data", lambda value: value[:, 0]),
        ["train_recon_data has shape (8, 6)", "float32", "expected numbers of shape (trials, bins, channels)"],
    ),
    "two dimensions where one is due": (
        change("train_trial", lambda value: np.stack([value, value], axis=1)),
        ["train_trial has shape (8, 2)", "expected numbers of shape (trials,)"],
    ),
    "text": (
        change("valid_condition", lambda value: np.array([b"left"] * len(value))),
        ["valid_condition has shape (4,)", "type |S4", "expected numbers"],
    ),
    "held-in neurons not first": (
        change("train_recon_data", lambda value: value[:, :, ::-1]),
        ["first 4 neurons of train_recon_data differ from train_encod_data", "must come first, in the same order"],
    ),
    "more neurons to see than to predict": (
        in_all("recon_data", lambda value: value[:, :, :3]),
        ["train_encod_data has (bins, neurons) (6, 4)", "train_recon_data with (9, 3)", "held-in neurons first"],
    ),
    "more bins to see than to predict": (
        in_all("recon_data", lambda value: value[:, :5]),
        ["train_encod_data has (bins, neurons) (6, 4)", "train_recon_data with (5, 6)"],
    ),
    "split without trials": (
        change_split("valid", lambda value: value[:0]),
        ["split 'valid' has no trials", "more trials"],
    ),
    "no bins": (in_all("encod_data", lambda value: value[:, :0]), ["train_encod_data is empty: shape (8, 0, 4)"]),
    "no neurons": (in_all("encod_data", lambda value: value[:, :, :0]), ["train_encod_data is empty: shape (8, 6, 0)"]),
    "trial of no bins": (put("train_n_bins", 3, 0), ["train_n_bins", "between 1 and the 9 bins"]),
    "trial longer than the array": (put("test_n_bins", 0, 10), ["test_n_bins", "between 1 and the 9 bins"]),
    "splits of different neurons": (
        lambda arrays: arrays.update({key: arrays[key][:, :, :5] for key in ("valid_recon_data", "valid_truth")}),
        ["valid_recon_data has (bins, channels) (9, 5)", "train_recon_data has (9, 6)", "cut or pad"],
    ),
    "splits of different bins": (
        change("test_encod_data", lambda value: value[:, :4]),
        ["test_encod_data has (bins, channels) (4, 4)", "train_encod_data has (6, 4)"],
    ),
    "key in the train split alone": (
        without("valid_latents"),
        ["valid_latents is missing although train_latents is there", "for every split or for none"],
    ),
    "key in the valid split alone": (
        without("train_ext_input", "test_ext_input"),
        ["train_ext_input is missing although valid_ext_input is there", "for every split or for none"],
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_file_key_finding_and_remedy(arrays, write_raw, case):
    edit, expected = BAD_FILES[case]
    edit(arrays)
    path = write_raw(arrays)
    found = message(read, path)
    for part in [str(path), *expected]:
        assert part in found


def test_the_unspoilt_file_is_accepted(arrays, write_raw):
    assert list(read(write_raw(arrays)).splits) == ["train", "valid", "test"]


def test_an_absent_file_is_refused(tmp_path):
    found = message(read, tmp_path / "nowhere.h5")
    assert found.startswith(f"{tmp_path / 'nowhere.h5'}: no such file")
    assert "correct the path" in found


def test_a_folder_is_no_file(tmp_path):
    assert "no such file" in message(read, tmp_path)


@pytest.mark.parametrize("content", [b"", b"trial,bin,count\n0,0,1\n", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_not_hdf5_is_refused(tmp_path, content):
    path = tmp_path / "spikes.h5"
    path.write_bytes(content)
    found = message(read, path)
    assert f"{path}: not a readable HDF5 file" in found
    assert "copy or convert it again" in found


def test_a_file_cut_short_is_refused(arrays, write_raw):
    path = write_raw(arrays)
    path.write_bytes(path.read_bytes()[:-500])
    found = message(read, path)
    assert f"{path}: not a readable HDF5 file" in found
    assert "truncated" in found


def test_a_good_dataset_passes_and_is_given_back(make_dataset):
    dataset = make_dataset()
    assert check(dataset, "somewhere") is dataset


def test_a_bad_dataset_is_not_written_and_what_stood_there_stays(make_dataset, tmp_path):
    path = tmp_path / "d.h5"
    write(path, make_dataset())
    before = path.read_bytes()
    bad = make_dataset(seed=1)
    bad["valid"].recon_data[0, 0, 5] = -1
    assert f"{path}: valid_recon_data holds a negative count" in message(write, path, bad)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["d.h5"]


def test_a_dataset_without_valid_trials_names_where_it_came_from(make_dataset):
    dataset = make_dataset(splits=("train", "test"))
    assert "recording 7: no 'valid' split" in message(check, dataset, "recording 7")


def test_trials_are_taken_from_every_array_in_the_given_order(make_dataset):
    split = make_dataset(per_trial=True, ext_input=2)["train"]
    some = split.take(np.array([5, 0, 2]))
    assert some.n_trials == 3
    for key, value in split.arrays().items():
        np.testing.assert_array_equal(some.arrays()[key], value[[5, 0, 2]])


def test_a_split_of_a_dataset_is_found_by_its_name(make_dataset):
    dataset = make_dataset()
    assert isinstance(dataset, SpikeDataset)
    assert isinstance(dataset["valid"], Split)
    assert dataset["valid"] is dataset.splits["valid"]


MISSING = [
    ("train_encod_data", (2, 3, 1), np.nan, None),
    ("test_recon_data", (3, 8, 5), np.nan, None),
    ("train_behavior", (0, 0, 0), np.nan, None),
    ("train_encod_data", (2, 3, 1), np.inf, "train_encod_data holds inf"),
    ("test_recon_data", (3, 8, 5), -np.inf, "test_recon_data holds -inf"),
    ("valid_encod_data", (0, 5, 3), -2, "valid_encod_data holds a negative count, -2,"),
    ("valid_encod_data", (0, 5, 3), 0.25, "valid_encod_data holds a fraction, 0.25,"),
    ("train_ext_input", (2, 3, 1), np.nan, "train_ext_input holds nan"),
    ("train_truth", (2, 3, 1), np.nan, "train_truth holds nan"),
    ("valid_latents", (0, 0, 0), np.nan, "valid_latents holds nan"),
    ("valid_inputs_true", (0, 0, 0), np.nan, "valid_inputs_true holds nan"),
]


@pytest.mark.parametrize(("key", "position", "value", "expected"), MISSING)
def test_where_spikes_may_be_missing_counts_alone_may_be_nan_and_nothing_may_be_infinite(
    key, position, value, expected, arrays, write_raw
):
    edit = put_count if key.endswith("encod_data") else put
    edit(key, position, value)(arrays)
    path = write_raw(arrays)
    if expected is None:
        found = read(path, missing_spikes=True)
        split, name = key.split("_", 1)
        assert np.isnan(found[split].arrays()[name][position])
        assert np.isnan(found[split].arrays()[name]).sum() == 1
    else:
        with pytest.raises(DatasetError, match=f"{re.escape(expected)}.* at trial {position[0]}, bin {position[1]}"):
            read(path, missing_spikes=True)


def test_a_missing_held_in_count_must_be_missing_in_both_arrays(arrays, write_raw):
    arrays["train_encod_data"][2, 3, 1] = np.nan
    with pytest.raises(DatasetError, match="first 4 neurons of train_recon_data differ from train_encod_data"):
        read(write_raw(arrays), missing_spikes=True)


def lacking(dataset, split, seen):
    """Dataset whose counts of one split are recorded where `seen` says so, a boolean per trial, bin and neuron."""
    old = dataset[split]
    recon = np.where(seen, old.recon_data, np.float32(np.nan))
    encod = recon[:, : old.encod_data.shape[1], : old.encod_data.shape[2]]
    new = replace(old, encod_data=encod, recon_data=recon)
    return replace(dataset, splits={**dataset.splits, split: new}, missing_spikes=True)


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_without_any_recorded_value_is_refused(split, make_dataset):
    dataset = make_dataset(n_recon_bins=9)
    nothing = lacking(dataset, split, np.zeros(dataset[split].recon_data.shape, bool))
    assert f"there: {split}_recon_data holds no recorded value; remove the split or the session" in message(
        check, nothing, "there"
    )


def test_a_value_in_padding_is_no_recorded_value(make_dataset):
    dataset = make_dataset()
    seen = np.zeros(dataset["train"].recon_data.shape, bool)
    seen[:, 4:] = True
    check(lacking(dataset, "train", seen), "there")
    padded = replace(dataset["train"], n_bins=np.full(dataset["train"].n_trials, 4))
    others = {name: replace(dataset[name], n_bins=np.full(dataset[name].n_trials, 6)) for name in ("valid", "test")}
    dataset = replace(dataset, splits={"train": padded, **others})
    assert "train_recon_data holds no recorded value" in message(check, lacking(dataset, "train", seen), "there")


def test_one_recorded_value_is_enough(make_dataset):
    dataset = make_dataset()
    seen = np.zeros(dataset["valid"].recon_data.shape, bool)
    seen[1, 2, 3] = True
    check(lacking(dataset, "valid", seen), "there")


def test_a_signal_need_not_be_counts(make_dataset):
    dataset = make_dataset()
    for split in dataset.splits.values():
        split.recon_data[...] -= 0.3
        split.encod_data[...] -= 0.3
    assert "a negative count" in message(check, dataset, "there")
    signal = replace(dataset, signal="continuous")
    assert check(signal, "there") is signal
    for value, found in ((np.nan, "holds nan"), (np.inf, "holds inf")):
        before = signal["train"].recon_data[1, 0, 5]
        signal["train"].recon_data[1, 0, 5] = value
        assert found in message(check, signal, "there")
        signal["train"].recon_data[1, 0, 5] = before


def test_a_signal_may_have_missing_values_and_needs_samples(make_dataset):
    dataset = replace(make_dataset(), signal="continuous")
    seen = np.ones(dataset["train"].recon_data.shape, bool)
    seen[:, :, 1] = False
    check(lacking(dataset, "train", seen), "there")
    empty = {name: replace(split, encod_data=split.encod_data[:, :0]) for name, split in dataset.splits.items()}
    assert "train_encod_data is empty" in message(check, replace(dataset, splits=empty), "there")


@pytest.mark.parametrize(("n_bins", "accepted"), [(9, True), (6, True), (7, False), (5, False), (10, False)])
def test_behaviour_has_the_bins_that_a_model_predicts_or_sees(n_bins, accepted, make_dataset):
    dataset = make_dataset(n_recon_bins=9)
    splits = {
        name: replace(split, behavior=np.zeros((split.n_trials, n_bins, 2), np.float32))
        for name, split in dataset.splits.items()
    }
    dataset = replace(dataset, splits=splits)
    if accepted:
        assert check(dataset, "there").n_behaviors == 2
    else:
        found = message(check, dataset, "there")
        assert f"train_behavior has {n_bins} bins but train_recon_data has 9" in found


def test_the_number_of_behaviour_channels_is_told(make_dataset):
    assert make_dataset(behavior=3).n_behaviors == 3
    assert make_dataset().n_behaviors == 0


@pytest.mark.parametrize("padded", [False, True])
def test_observed_is_what_is_neither_padding_nor_missing(padded, make_dataset):
    split = make_dataset(n_recon_bins=9, per_trial=padded)["train"]
    split.recon_data[np.random.default_rng(1).random(split.recon_data.shape) < 0.3] = np.nan
    found = split.observed()
    assert found.shape == split.recon_data.shape
    assert found.dtype == bool
    for trial, b, neuron in np.ndindex(found.shape):
        in_trial = not padded or b < split.n_bins[trial]
        assert found[trial, b, neuron] == (in_trial and split.recon_data[trial, b, neuron] >= 0)
    assert 0 < found.sum() < found.size


def test_a_dataset_is_its_own_only_session(make_dataset):
    dataset = make_dataset()
    assert list(dataset.sessions) == [""]
    assert dataset.sessions[""] is dataset
