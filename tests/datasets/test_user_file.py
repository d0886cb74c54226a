"""A user's own file: key map, units, held-out neurons and test split, on the public Lorenz data and small files."""

import h5py
import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import gammaln

from ctdb.datasets import FileSettings, MultiSession, SpikeDataset, prepare_file, read, write
from ctdb.datasets.kind import DATASETS
from ctdb.errors import DatasetError

LORENZ_KEYS = {
    "recon_data": "{split}_data",
    "truth": "{split}_truth",
    "latents": "{split}_lowd",
    "trial": "{split}_inds",
}


def settings(**options) -> FileSettings:
    return FileSettings(**({"kind": "file", "path": "not used", "bin_s": 0.01} | options))


def message(chosen: FileSettings, path) -> str:
    with pytest.raises(DatasetError) as raised:
        prepare_file(chosen, path)
    assert str(path) in str(raised.value)
    return str(raised.value)


def poisson_nll(rates, counts) -> float:
    rates, counts = np.asarray(rates, np.float64), np.asarray(counts, np.float64)
    return float((rates - counts * np.log(rates) + gammaln(counts + 1)).mean())


@pytest.fixture
def mapped_file(make_dataset, write_raw):
    """Splits called `fit` and `check`, all neurons in one array, rates in Hz at bins of 20 ms."""
    source = make_dataset(
        n_trials=10, n_heldin=6, n_heldout=0, splits=("train", "valid"), latents=2, behavior=1, per_trial=True
    )
    arrays = {}
    for split, name in (("train", "fit"), ("valid", "check")):
        trials = source[split]
        arrays |= {
            f"spikes_{name}": trials.recon_data.astype(np.int32),
            f"{name}/unused": np.zeros(3),
            f"rate_{name}_hz": trials.truth.astype(np.float64) / 0.02,
            f"state_{name}": trials.latents,
            f"hand_{name}": trials.behavior,
            f"length_{name}": trials.n_bins,
            f"target_{name}": trials.condition,
            f"number_{name}": trials.trial,
        }
    keys = {
        "recon_data": "spikes_{split}",
        "truth": "rate_{split}_hz",
        "latents": "state_{split}",
        "behavior": "hand_{split}",
        "n_bins": "length_{split}",
        "condition": "target_{split}",
        "trial": "number_{split}",
    }
    chosen = {
        "keys": keys,
        "splits": {"train": "fit", "valid": "check"},
        "bin_s": 0.02,
        "truth_unit": "hz",
        "test": "valid",
    }
    return write_raw(arrays), chosen, source


@pytest.fixture
def plain_file(make_dataset, tmp_path):
    """Our own format with 20 train and 10 valid trials of 7 neurons, none held out, and no test split."""
    path = tmp_path / "recording.h5"
    write(
        path,
        make_dataset(n_trials=20, n_heldin=7, n_heldout=0, splits=("train", "valid"), ext_input=2, per_trial=True),
    )
    return path


@pytest.fixture(scope="module")
def lorenz(data_file):
    path = data_file("lorenz.h5")
    return prepare_file(settings(keys=LORENZ_KEYS, truth_unit="hz"), path)


def test_lorenz_has_the_shapes_of_its_file_and_a_fifth_of_the_train_trials_for_test(lorenz):
    assert list(lorenz.splits) == ["train", "valid", "test"]
    for split, n_trials in (("train", 512), ("valid", 160), ("test", 128)):
        trials = lorenz[split]
        assert trials.encod_data.shape == trials.recon_data.shape == trials.truth.shape == (n_trials, 100, 60)
        assert trials.latents.shape == (n_trials, 100, 3)
        assert trials.encod_data.dtype == trials.truth.dtype == trials.latents.dtype == np.float32
    assert lorenz.bin_s == 0.01
    assert lorenz.provenance["source"] == "lorenz.h5"


def test_lorenz_true_rates_reach_the_published_oracle_likelihood(lorenz):
    assert poisson_nll(lorenz["valid"].truth, lorenz["valid"].recon_data) == pytest.approx(0.07755, abs=1e-4)


def test_lorenz_mean_rates_reach_the_published_null_likelihood(lorenz):
    train = np.concatenate([lorenz["train"].recon_data, lorenz["test"].recon_data])
    mean = train.mean((0, 1), dtype=np.float64)
    assert poisson_nll(mean, lorenz["valid"].recon_data) == pytest.approx(0.08967, abs=2e-4)


def test_lorenz_train_and_test_trials_together_are_the_train_trials_of_the_file(lorenz, data_file):
    with h5py.File(data_file("lorenz.h5")) as file:
        numbers, counts = file["train_inds"][()], file["train_data"][()]
    found = {number: trial for split in ("train", "test") for number, trial in lorenz_trials(lorenz[split])}
    assert sum(lorenz[split].n_trials for split in ("train", "test")) == len(found) == 640
    assert all(np.array_equal(found[number], trial) for number, trial in zip(numbers, counts, strict=True))


def lorenz_trials(split):
    return zip(split.trial.tolist(), split.recon_data, strict=True)


def test_every_mapped_key_arrives_with_its_values(mapped_file):
    path, chosen, source = mapped_file
    found = prepare_file(settings(**chosen), path)
    assert list(found.splits) == ["train", "valid"]
    assert found.bin_s == 0.02
    assert found.report_split == "valid"
    for split in found.splits:
        for key in ("encod_data", "recon_data", "latents", "behavior", "n_bins", "condition", "trial"):
            np.testing.assert_array_equal(getattr(found[split], key), getattr(source[split], key), err_msg=key)
        np.testing.assert_allclose(found[split].truth, source[split].truth, rtol=1e-6)
        assert found[split].truth.dtype == np.float32


def test_rates_per_bin_are_left_as_they_are(mapped_file):
    path, chosen, source = mapped_file
    found = prepare_file(settings(**chosen | {"truth_unit": "spikes_per_bin"}), path)
    np.testing.assert_allclose(found["train"].truth, source["train"].truth * 50, rtol=1e-6)


def test_the_same_trials_cannot_be_two_splits():
    with pytest.raises(ValidationError, match="must be different trials"):
        settings(splits={"train": "fit", "valid": "check", "test": "check"})
    with pytest.raises(ValidationError, match="is the same in every split"):
        settings(keys={"recon_data": "spikes"})


def test_a_file_without_true_rates_has_none(mapped_file):
    path, chosen, _ = mapped_file
    found = prepare_file(settings(**chosen | {"keys": {"recon_data": "spikes_{split}"}}), path)
    assert set(found["train"].arrays()) == {"encod_data", "recon_data"}


def test_what_the_model_sees_may_have_its_own_key(make_dataset, write_raw):
    source = make_dataset(splits=("train", "valid"), n_recon_bins=8)
    arrays = {
        f"{split}_{key}": getattr(source[split], f"{key}_data") for split in source.splits for key in ("encod", "recon")
    }
    keys = {"recon_data": "{split}_recon", "encod_data": "{split}_encod"}
    found = prepare_file(settings(keys=keys), write_raw(arrays))
    assert (found.n_bins, found.n_heldin, found.n_recon_bins, found.n_neurons) == (6, 4, 8, 6)


def test_the_carved_test_trials_leave_train_and_nothing_is_lost_or_doubled(plain_file):
    source, found = read(plain_file), prepare_file(settings(), plain_file)
    train, test = found["train"], found["test"]
    assert (train.n_trials, test.n_trials) == (16, 4)
    assert not set(train.trial) & set(test.trial)
    where = {number: i for i, number in enumerate(source["train"].trial)}
    for split in (train, test):
        places = np.array([where[number] for number in split.trial])
        assert (np.diff(places) > 0).all()
        for key, value in source["train"].arrays().items():
            np.testing.assert_array_equal(split.arrays()[key], value[places], err_msg=key)
    assert set(train.trial) | set(test.trial) == set(source["train"].trial)
    for key, value in source["valid"].arrays().items():
        np.testing.assert_array_equal(found["valid"].arrays()[key], value, err_msg=key)


def test_the_carve_is_the_same_for_the_same_seed_alone(plain_file):
    carved = [prepare_file(settings(seed=seed), plain_file)["test"].trial.tolist() for seed in (0, 0, 1, 2)]
    assert carved[0] == carved[1]
    assert len({tuple(trials) for trials in carved}) == 3


def test_the_share_of_test_trials_is_the_chosen_one(plain_file):
    assert prepare_file(settings(test_fraction=0.5), plain_file)["test"].n_trials == 10


def test_without_a_carve_scores_are_reported_on_valid_trials(plain_file):
    found = prepare_file(settings(test="valid"), plain_file)
    assert list(found.splits) == ["train", "valid"]
    assert found["train"].n_trials == 20
    assert found.report_split == "valid"


def test_a_test_split_of_the_file_is_kept(make_dataset, tmp_path):
    write(tmp_path / "d.h5", make_dataset())
    found = prepare_file(settings(), tmp_path / "d.h5")
    assert [found[split].n_trials for split in ("train", "valid", "test")] == [8, 4, 4]


def test_held_out_neurons_move_behind_the_others_in_every_array_and_split(plain_file):
    source = read(plain_file)
    found = prepare_file(settings(n_heldout=3, test="valid"), plain_file)
    order = [int(name.removeprefix("neuron ")) for name in found.names["neurons"]]
    assert sorted(order) == list(range(7))
    assert order[:4] == sorted(order[:4])
    assert order[4:] == sorted(order[4:])
    assert (found.n_heldin, found.n_neurons) == (4, 7)
    for split in found.splits:
        np.testing.assert_array_equal(found[split].encod_data, source[split].recon_data[:, :, order[:4]])
        np.testing.assert_array_equal(found[split].recon_data, source[split].recon_data[:, :, order])
        np.testing.assert_array_equal(found[split].truth, source[split].truth[:, :, order])
        np.testing.assert_array_equal(found[split].ext_input, source[split].ext_input)


def test_which_neurons_are_held_out_follows_the_seed_alone(plain_file):
    chosen = [prepare_file(settings(n_heldout=3, seed=seed), plain_file).names["neurons"] for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1]
    assert len({tuple(names) for names in chosen}) > 2


def test_without_held_out_neurons_their_order_is_that_of_the_file(plain_file):
    assert prepare_file(settings(), plain_file).names["neurons"] == [f"neuron {i}" for i in range(7)]


def test_provenance_holds_the_choices_and_the_name_of_the_file_but_no_path(plain_file, tmp_path):
    found = prepare_file(settings(n_heldout=2, seed=5, path="/somewhere/recording.h5"), plain_file)
    assert found.provenance["source"] == "recording.h5"
    assert found.provenance["n_heldout"] == 2
    assert found.provenance["seed"] == 5
    assert "path" not in found.provenance
    write(tmp_path / "out.h5", found)
    assert str(tmp_path).encode() not in (tmp_path / "out.h5").read_bytes()
    assert dict(read(tmp_path / "out.h5").provenance) == dict(found.provenance)


def test_the_same_settings_give_the_same_bytes(mapped_file, tmp_path):
    path, chosen, _ = mapped_file
    for name in ("one.h5", "two.h5"):
        write(tmp_path / name, prepare_file(settings(**chosen | {"n_heldout": 2, "test": "carve"}), path))
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_the_bin_width_of_the_settings_goes_before_that_of_the_file(plain_file):
    assert prepare_file(settings(bin_s=0.05), plain_file).bin_s == 0.05
    assert prepare_file(settings(bin_s=None), plain_file).bin_s == 0.01


@pytest.mark.parametrize("mapped", [False, True])
def test_an_unknown_bin_width_is_refused(make_dataset, write_raw, flat_arrays, mapped):
    path = write_raw(flat_arrays(make_dataset(n_heldout=0)))
    keys = {"recon_data": "{split}_recon_data"} if mapped else None
    found = message(settings(bin_s=None, keys=keys), path)
    assert "does not tell its bin width" in found
    assert "give `bin_s` (seconds)" in found


def test_a_mapped_key_that_is_absent_is_refused_with_the_nearest_one(mapped_file):
    path, chosen, _ = mapped_file
    keys = chosen["keys"] | {"latents": "sate_{split}"}
    found = message(settings(**chosen | {"keys": keys}), path)
    assert "no key 'sate_fit'" in found
    assert "did you mean 'state_fit'?" in found
    assert "`keys`" in found


def test_a_split_that_is_absent_under_its_mapped_name_is_refused(mapped_file):
    path, chosen, _ = mapped_file
    found = message(settings(**chosen | {"splits": {"train": "fit", "valid": "check", "test": "report"}}), path)
    assert "no key 'spikes_report'" in found


def test_more_held_out_neurons_than_there_are_is_refused(plain_file):
    found = message(settings(n_heldout=7), plain_file)
    assert "`n_heldout` is 7 but there are 7 neurons" in found
    assert "hold out fewer" in found
    assert prepare_file(settings(n_heldout=6), plain_file).n_heldin == 1


def test_holding_out_neurons_of_a_file_that_does_so_itself_is_refused(make_dataset, tmp_path):
    write(tmp_path / "d.h5", make_dataset(n_heldin=4, n_heldout=2))
    found = message(settings(n_heldout=1), tmp_path / "d.h5")
    assert "the file itself holds out 2 neurons" in found
    assert "leave `n_heldout` at 0" in found


@pytest.mark.parametrize(("share", "n_test"), [(0.0, 0), (0.02, 0), (0.99, 20)])
def test_a_share_that_leaves_a_split_empty_is_refused(plain_file, share, n_test):
    found = message(settings(test_fraction=share), plain_file)
    assert f"`test_fraction` {share} of 20 train trials leaves {n_test} for test" in found
    assert "`test: valid`" in found


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.nan, "holds nan"), (-1, "holds a negative count, -1,"), (0.5, "holds a fraction, 0.5,")],
)
def test_counts_that_cannot_be_are_refused_with_their_place(mapped_file, write_raw, value, expected):
    _, chosen, source = mapped_file
    counts = source["train"].recon_data.astype(np.float64)
    counts[3, 2, 1] = value
    path = write_raw({"spikes_fit": counts, "spikes_check": source["valid"].recon_data}, name="bad.h5")
    found = message(settings(**chosen | {"keys": {"recon_data": "spikes_{split}"}}), path)
    assert expected in found
    assert "trial 3, bin 2, channel 1" in found


def test_keys_of_different_trials_are_refused(mapped_file, write_raw, shapes_unchecked):
    _, chosen, source = mapped_file
    arrays = {f"spikes_{name}": source[split].recon_data for split, name in (("train", "fit"), ("valid", "check"))}
    arrays |= {f"rate_{name}_hz": arrays[f"spikes_{name}"][:3] for name in ("fit", "check")}
    keys = {"recon_data": "spikes_{split}", "truth": "rate_{split}_hz"}
    found = message(settings(**chosen | {"keys": keys}), write_raw(arrays, name="bad.h5"))
    assert "train_truth ('rate_fit_hz' in the file) has 3 trials" in found
    assert "train_recon_data ('spikes_fit' in the file) has 10" in found


@pytest.mark.parametrize("mapped", [False, True])
def test_an_absent_file_is_refused(tmp_path, mapped):
    keys = {"recon_data": "{split}_recon_data"} if mapped else None
    assert "no such file" in message(settings(keys=keys), tmp_path / "nowhere.h5")


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_that_is_not_hdf5_is_refused(tmp_path, mapped):
    (tmp_path / "spikes.h5").write_text("0,1,0,2\n")
    keys = {"recon_data": "{split}_recon_data"} if mapped else None
    assert "not a readable HDF5 file" in message(settings(keys=keys), tmp_path / "spikes.h5")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"n_held_out": 3}, "n_held_out"),
        ({"keys": {"recon": "{split}_data"}}, "recon"),
        ({"keys": {"truth": "{split}_truth"}}, "recon_data"),
        ({"bin_s": 0}, "bin_s"),
        ({"bin_s": "0.01"}, "bin_s"),
        ({"n_heldout": -1}, "n_heldout"),
        ({"test_fraction": 1.0}, "test_fraction"),
        ({"truth_unit": "Hz"}, "truth_unit"),
        ({"test": "train"}, "test"),
        ({"splits": {"validation": "val"}}, "splits.validation"),
    ],
)
def test_settings_that_are_unknown_or_out_of_range_are_refused(options, key):
    with pytest.raises(ValidationError) as raised:
        settings(**options)
    assert key in str(raised.value)


def test_a_test_split_under_another_name_is_used_with_and_without_a_key_map(make_dataset, write_raw, flat_arrays):
    arrays = flat_arrays(make_dataset(n_heldin=4, n_heldout=1))
    renamed = {key.replace("test_", "report_"): value for key, value in arrays.items()}
    path = write_raw(renamed)
    expected = arrays["test_recon_data"]
    for keys in (None, {"recon_data": "{split}_recon_data", "encod_data": "{split}_encod_data"}):
        dataset = prepare_file(settings(splits={"test": "report"}, keys=keys), path)
        np.testing.assert_array_equal(dataset["test"].recon_data, expected)
    found = message(settings(splits={"test": "reports"}), path)
    assert "no key 'reports_encod_data'" in found
    assert "report_encod_data" in found


def test_neuron_names_and_provenance_of_our_own_format_are_kept(make_dataset, tmp_path):
    source = make_dataset(
        n_heldin=4, n_heldout=0, names={"neurons": ["a", "b", "c", "d"]}, provenance={"made": "by hand"}
    )
    write(tmp_path / "own.h5", source)
    dataset = prepare_file(settings(n_heldout=1), tmp_path / "own.h5")
    order = [source["train"].recon_data[0].T.tolist().index(row) for row in dataset["train"].recon_data[0].T.tolist()]
    assert dataset.names["neurons"] == ["abcd"[i] for i in order]
    assert dataset.provenance["source_provenance"] == {"made": "by hand"}


@pytest.mark.parametrize("mapped", [False, True])
def test_counts_that_are_not_recorded_are_kept_where_they_are_expected(make_dataset, write_raw, flat_arrays, mapped):
    arrays = flat_arrays(make_dataset(n_heldout=0, truth=False))
    for key in ("train_recon_data", "train_encod_data"):
        arrays[key][1, 2:4, 3] = np.nan
    path = write_raw(arrays)
    keys = {"recon_data": "{split}_recon_data"} if mapped else None
    assert "Where NaN stands for what was not recorded, set `missing_spikes`" in message(settings(keys=keys), path)
    found = prepare_file(settings(keys=keys, missing_spikes=True), path)
    assert found.missing_spikes
    np.testing.assert_array_equal(found["train"].recon_data, arrays["train_recon_data"])
    held = prepare_file(settings(keys=keys, missing_spikes=True, n_heldout=2), path)
    order = [int(name.removeprefix("neuron ")) for name in held.names["neurons"]]
    np.testing.assert_array_equal(held["train"].recon_data, arrays["train_recon_data"][:, :, order])
    assert held.missing_spikes


@pytest.mark.parametrize("mapped", [False, True])
def test_a_signal_that_is_no_count_is_taken_where_it_is_said(make_dataset, write_raw, flat_arrays, tmp_path, mapped):
    arrays = {key: value - 0.25 for key, value in flat_arrays(make_dataset(n_heldout=0, truth=False)).items()}
    path = write_raw(arrays)
    keys = {"recon_data": "{split}_recon_data"} if mapped else None
    assert "holds a negative count, -0.25" in message(settings(keys=keys), path)
    found = prepare_file(settings(keys=keys, signal="continuous"), path)
    assert found.signal == "continuous"
    np.testing.assert_array_equal(found["train"].recon_data, arrays["train_recon_data"])
    write(tmp_path / "written.h5", found)
    assert read(tmp_path / "written.h5").signal == "continuous"
    missing = message(settings(keys=keys, signal="continuous"), write_raw({**arrays, "train_recon_data": np.where(arrays["train_recon_data"] > 2, np.nan, arrays["train_recon_data"])}, name="nan.h5"))  # fmt: skip
    assert "nan" in missing


def test_a_file_of_several_sessions_is_refused(make_dataset, tmp_path):
    path = tmp_path / "several.h5"
    write(path, MultiSession({"monday": make_dataset(), "friday": make_dataset(n_heldin=5)}))
    found = message(settings(), path)
    assert "holds the sessions ['monday', 'friday']" in found
    assert "join them by one of kind `sessions`" in found


def test_the_kind_is_known_by_its_name(plain_file):
    kind = DATASETS["file"]
    chosen = kind.Settings(kind="file", path="here.h5", n_heldout=2)
    assert kind.sources(chosen) == [("file", "here.h5")]
    made = kind.prepare(chosen, [plain_file])
    assert isinstance(made, SpikeDataset)
    assert made.names == prepare_file(chosen, plain_file).names
