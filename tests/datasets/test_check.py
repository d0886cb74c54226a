"""A bad spike file gives one error that says where, what was expected, what was found and what to do."""

import numpy as np
import pytest

from ctdb.datasets import SpikeDataset, Split, check, read, write
from ctdb.errors import DatasetError

pytestmark = pytest.mark.usefixtures("shapes_unchecked")


@pytest.fixture
def arrays(make_dataset, flat_arrays):
    """Eight train trials and four others of 6 bins (9 to predict), 4 held-in and 2 held-out neurons."""
    return flat_arrays(make_dataset(n_recon_bins=9, per_trial=True, ext_input=2, latents=3, inputs_true=1))


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
    "NaN": (
        put_count("train_encod_data", (2, 3, 1), np.nan),
        ["train_encod_data holds nan", "trial 2, bin 3, channel 1", "expected finite numbers", "Remove such trials"],
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
