"""Reaching recordings: windows, alignment and folds against loops over trials, and a real recording."""

import h5py
import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.metrics import r2_score

from ctdb.datasets import read, write
from ctdb.datasets.reaching import Reaching, ReachingSettings
from ctdb.errors import DatasetError
from ctdb.metrics.behavior import decode

TRIALS, UNITS = 23, 9


def settings(**options) -> ReachingSettings:
    return ReachingSettings(**({"kind": "reaching", "path": "not used", "n_bins": 6, "min_rate_hz": 0.0} | options))


def make_arrays(seed=0, lengths=None):
    """Trials of 5 to 12 bins, one after another, with a reach at some time in each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 13, TRIALS) if lengths is None else np.asarray(lengths)
    total = lengths.sum()
    return {
        "spikes": rng.poisson(rng.uniform(0.2, 2, UNITS), (total, UNITS)).astype(np.uint8),
        "trial_n_bins": lengths.astype(np.int32),
        "velocity": rng.gamma(0.3, 5.0, (total, 2)) * rng.choice([-1, 1], (total, 2)),
        "position": rng.normal(size=(total, 2)),
        "force": rng.normal(size=(total, 3)),
        "target": rng.integers(0, 4, len(lengths)).astype(np.int32),
    }


@pytest.fixture
def recording(write_raw):
    arrays = make_arrays()
    return write_raw(arrays, {"bin_s": 0.05}), arrays


def trials_of(arrays, key):
    """List of the trials of a stacked array."""
    found, start = [], 0
    for length in arrays["trial_n_bins"]:
        found.append(arrays[key][start : start + length])
        start += length
    return found


def windows(arrays, n_bins, begin):
    """Trial number to (spikes, velocity, position) of its window, for trials that hold one whole."""
    found = {}
    for number, length in enumerate(arrays["trial_n_bins"]):
        first = begin(number)
        if first < 0 or first + n_bins > length:
            continue
        parts = (trials_of(arrays, key)[number][first : first + n_bins] for key in ("spikes", "velocity", "position"))
        found[number] = tuple(part.astype(np.float32) for part in parts)
    return found


def assert_windows(dataset, expected):
    seen = []
    for split in dataset.splits.values():
        for i, number in enumerate(split.trial.tolist()):
            spikes, velocity, position = expected[number]
            np.testing.assert_array_equal(split.recon_data[i], spikes)
            np.testing.assert_array_equal(split.behavior[i], np.concatenate([velocity, position], 1))
            seen.append(number)
    assert sorted(seen) == sorted(expected)


def message(chosen, path) -> str:
    with pytest.raises(DatasetError) as raised:
        Reaching.prepare(chosen, [path])
    assert str(path) in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("n_bins", [5, 8])
def test_windows_from_the_start_are_the_first_bins_of_each_trial(recording, n_bins):
    path, arrays = recording
    dataset = Reaching.prepare(settings(n_bins=n_bins), [path])
    expected = windows(arrays, n_bins, lambda number: 0)
    assert_windows(dataset, expected)
    assert dataset.provenance["n_trials_too_short"] == TRIALS - len(expected)
    assert (len(expected) == TRIALS) == (n_bins == 5)


@pytest.mark.parametrize(("share", "before"), [(0.2, 0), (0.5, 2), (0.9, 1)])
def test_windows_at_onset_begin_where_speed_first_reaches_its_share_of_the_trials_peak(recording, share, before):
    path, arrays = recording
    velocity = trials_of(arrays, "velocity")

    def begin(number):
        speed = [(x**2 + y**2) ** 0.5 for x, y in velocity[number]]
        return next(t for t, value in enumerate(speed) if value >= share * max(speed)) - before

    dataset = Reaching.prepare(settings(n_bins=4, align="onset", onset_share=share, bins_before=before), [path])
    expected = windows(arrays, 4, begin)
    assert 5 < len(expected) < TRIALS
    assert len({begin(number) for number in expected}) > 2
    assert_windows(dataset, expected)
    assert dataset.provenance["n_trials_too_short"] == TRIALS - len(expected)


def test_behaviour_and_condition_follow_the_keys(recording):
    path, arrays = recording
    keys = {"behavior": ["velocity", "force"]}
    dataset = Reaching.prepare(settings(keys=keys, n_bins=7), [path])
    assert dataset.names["behavior"] == ["velocity x", "velocity y", "force x", "force y", "force z"]
    for split in dataset.splits.values():
        np.testing.assert_array_equal(split.condition, arrays["target"][split.trial])
        for i, number in enumerate(split.trial):
            both = np.concatenate([trials_of(arrays, key)[number][:7] for key in keys["behavior"]], 1)
            np.testing.assert_array_equal(split.behavior[i], both.astype(np.float32))
    assert Reaching.prepare(settings(keys={"condition": None}), [path])["train"].condition is None


def test_keys_may_have_other_names(write_raw):
    arrays = make_arrays()
    names = {"spikes": "counts", "trial_n_bins": "lengths", "target": "goal", "velocity": "hand_speed"}
    path = write_raw({names.get(key, key): value for key, value in arrays.items()}, {"bin_s": 0.05})
    keys = {"spikes": "counts", "n_bins": "lengths", "condition": "goal", "velocity": "hand_speed"}
    keys["behavior"] = ["hand_speed", "position"]
    dataset = Reaching.prepare(settings(keys=keys, align="onset", n_bins=3), [path])
    own = write_raw(arrays, {"bin_s": 0.05}, name="own.h5")
    same = Reaching.prepare(settings(align="onset", n_bins=3), [own])
    for split in dataset.splits:
        for key, value in same[split].arrays().items():
            np.testing.assert_array_equal(dataset[split].arrays()[key], value)
    assert dataset.names["behavior"][:2] == ["hand_speed x", "hand_speed y"]


def test_many_channels_are_numbered(write_raw):
    arrays = make_arrays() | {"emg": np.zeros((make_arrays()["trial_n_bins"].sum(), 4))}
    dataset = Reaching.prepare(settings(keys={"behavior": ["emg"]}), [write_raw(arrays, {"bin_s": 0.05})])
    assert dataset.names["behavior"] == ["emg 0", "emg 1", "emg 2", "emg 3"]


@pytest.mark.parametrize("n_folds", [2, 5])
def test_folds_part_the_trials_by_their_number(recording, n_folds):
    path, arrays = recording
    whole = {number for number, length in enumerate(arrays["trial_n_bins"]) if length >= 6}
    tested = []
    for fold in range(n_folds):
        dataset = Reaching.prepare(settings(n_folds=n_folds, fold=fold), [path])
        numbers = {name: split.trial.tolist() for name, split in dataset.splits.items()}
        assert numbers["test"] == sorted(number for number in whole if number % n_folds == fold)
        assert sorted(number for own in numbers.values() for number in own) == sorted(whole)
        assert len(numbers["valid"]) == round(0.2 * (len(whole) - len(numbers["test"])))
        tested += numbers["test"]
    assert sorted(tested) == sorted(whole)


def test_valid_trials_are_drawn_by_seed_and_fold(recording):
    path, _ = recording

    def splits(**options):
        dataset = Reaching.prepare(settings(**options), [path])
        return dataset["train"].trial.tolist(), dataset["valid"].trial.tolist()

    chosen = [splits(seed=seed)[1] for seed in (0, 0, 1, 2)]
    assert chosen[0] == chosen[1]
    assert len({tuple(numbers) for numbers in chosen}) == 3
    assert chosen[0] != sorted([*splits()[0], *chosen[0]])[: len(chosen[0])]  # drawn, not the first ones
    for share in (0.5, 0.01):
        train, valid = splits(valid_fraction=share)
        assert len(valid) == max(1, round(share * (len(train) + len(valid))))


def test_quiet_units_are_those_of_the_train_trials_alone(recording, write_raw):
    """Unit 0 fires in valid and test trials alone, unit 1 in train trials alone, unit 2 just at the threshold."""
    path, arrays = recording
    split_of = {
        number: name
        for name, split in Reaching.prepare(settings(), [path]).splits.items()
        for number in split.trial.tolist()
    }
    train_bins = 6 * list(split_of.values()).count("train")
    start = np.concatenate([[0], np.cumsum(arrays["trial_n_bins"])[:-1]])
    spikes = arrays["spikes"].copy()
    spikes[:, :4] = 0
    for number, name in split_of.items():
        spikes[start[number] : start[number] + 6, 1 if name == "train" else 0] = 1
    train = [number for number, name in split_of.items() if name == "train"]
    spikes[start[train[0]], 2], spikes[start[train[1]] + 1, 2] = 2, 1
    spikes[start[train[0]] + 6 :, 3] = 0
    spikes[start[train[0]], 3] = 2
    threshold = 3 / (train_bins * 0.05)  # Hz: three spikes in the train trials
    path = write_raw(arrays | {"spikes": spikes}, {"bin_s": 0.05}, name="quiet.h5")
    dataset = Reaching.prepare(settings(min_rate_hz=threshold * (1 - 1e-5)), [path])
    assert dataset.names["neurons"] == [f"unit {unit}" for unit in (1, 2, 4, 5, 6, 7, 8)]
    assert dataset.provenance["n_units_too_quiet"] == 2
    number = dataset["train"].trial[0]
    np.testing.assert_array_equal(
        dataset["train"].recon_data[0], spikes[start[number] : start[number] + 6][:, [1, 2, 4, 5, 6, 7, 8]]
    )


def test_held_out_units_are_behind_the_others(recording):
    path, arrays = recording
    orders = []
    for seed in (0, 0, 1, 2):
        dataset = Reaching.prepare(settings(n_heldout=3, seed=seed), [path])
        order = [int(name.removeprefix("unit ")) for name in dataset.names["neurons"]]
        assert (sorted(order[:6]), sorted(order[6:]), sorted(order)) == (order[:6], order[6:], list(range(UNITS)))
        for split in dataset.splits.values():
            np.testing.assert_array_equal(split.encod_data, split.recon_data[:, :, :6])
            spikes = np.stack([trials_of(arrays, "spikes")[number][:6][:, order] for number in split.trial])
            np.testing.assert_array_equal(split.recon_data, spikes)
        orders.append(tuple(order))
    assert orders[0] == orders[1]
    assert len(set(orders)) == 3


def test_it_is_written_and_read_as_it_is(recording, tmp_path):
    path, _ = recording
    for name in ("a.h5", "b.h5"):
        write(tmp_path / name, Reaching.prepare(settings(path=str(path)), [path]))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "a.h5").read_bytes()
    found = read(tmp_path / "a.h5")
    assert found.provenance["source"] == "session_a.h5"
    assert found.bin_s == 0.05
    assert Reaching.sources(settings(path="here.h5")) == [("file", "here.h5")]


def test_the_bin_width_of_the_settings_goes_before_that_of_the_file(recording, write_raw):
    path, arrays = recording
    assert Reaching.prepare(settings(bin_s=0.1), [path]).bin_s == 0.1
    bare = write_raw(arrays, name="bare.h5")
    assert "does not tell its bin width; give `bin_s`" in message(settings(), bare)
    assert Reaching.prepare(settings(bin_s=0.1), [bare]).bin_s == 0.1


@pytest.mark.parametrize("key", ["spikes", "velocity", "position", "trial_n_bins", "target"])
def test_an_absent_key_is_told_with_the_nearest(write_raw, key):
    arrays = make_arrays()
    arrays[f"{key}s"] = arrays.pop(key)
    found = message(settings(), write_raw(arrays, {"bin_s": 0.05}))
    assert f"no key {key!r} (did you mean '{key}s'?)" in found


@pytest.mark.parametrize("key", ["spikes", "velocity", "position"])
def test_a_signal_of_other_bins_is_told(write_raw, key):
    arrays = make_arrays()
    total = arrays["trial_n_bins"].sum()
    arrays[key] = arrays[key][:-2]
    found = message(settings(), write_raw(arrays, {"bin_s": 0.05}))
    assert f"{key!r} has {total - 2} bins, but 'trial_n_bins' adds up to {total}" in found


def test_conditions_of_other_trials_are_told(write_raw):
    arrays = make_arrays()
    arrays["target"] = arrays["target"][:-1]
    assert f"'target' has not one value for each of the {TRIALS} trials" in message(
        settings(), write_raw(arrays, {"bin_s": 0.05})
    )


def test_windows_that_no_trial_holds_are_told_with_the_lengths(recording):
    path, _ = recording
    found = message(settings(n_bins=13), path)
    assert (
        f"0 of {TRIALS} trials hold a whole window of 13 bins; the trials have 5 to 12 bins: shorten the window"
        in found
    )
    few = make_arrays(lengths=[5] * 19 + [12] * 4)
    with h5py.File(path, "w") as file:
        for key, value in few.items():
            file[key] = value
        file.attrs["bin_s"] = 0.05
    assert "4 of 23 trials hold a whole window" in message(settings(n_bins=12), path)
    assert Reaching.prepare(settings(n_bins=12, n_folds=3), [path])


def test_too_few_units_are_told(recording):
    path, _ = recording
    assert "0 units fire at least 1000.0 Hz; lower `min_rate_hz`" in message(settings(min_rate_hz=1000.0), path)
    assert "9 units fire at least 0.0 Hz; lower `min_rate_hz` or `n_heldout`" in message(settings(n_heldout=9), path)
    assert Reaching.prepare(settings(n_heldout=8), [path]).n_heldin == 1


def test_an_absent_file_and_one_that_is_not_hdf5_are_told(tmp_path):
    assert "no such file" in message(settings(), tmp_path / "nowhere.h5")
    (tmp_path / "text.h5").write_text("1,2,3")
    assert "not a readable HDF5 file" in message(settings(), tmp_path / "text.h5")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fold": 5}, "fold 5 of 5: folds are counted from 0"),
        ({"bins_before": 1}, "bins_before needs `align: onset`"),
        ({"n_folds": 1}, "n_folds"),
        ({"onset_share": 1.0}, "onset_share"),
        ({"align": "peak"}, "align"),
        ({"keys": {"behavior": []}}, "keys.behavior"),
        ({"keys": {"speed": "x"}}, "keys.speed"),
        ({"valid_fraction": 0.0}, "valid_fraction"),
        ({"fould": 1}, "fould"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, expected):
    with pytest.raises(ValidationError) as raised:
        settings(**options)
    assert expected in str(raised.value)


# ------------------------------------------------------------------------------------------------- a real recording


@pytest.fixture(scope="module")
def chewie(data_file):
    path = data_file("chewie_2013-10-03.h5")
    with h5py.File(path) as file:
        arrays = {key: value[()] for key, value in file.items()}
    options = {"n_bins": 9, "keys": {"behavior": ["velocity"]}}
    return arrays, [Reaching.prepare(settings(fold=fold, **options), [path]) for fold in range(5)]


def test_a_real_recording_is_cut_as_its_file_says(chewie):
    arrays, folds = chewie
    velocity, spikes = trials_of(arrays, "velocity"), trials_of(arrays, "spikes")
    dataset = folds[2]
    assert sum(split.n_trials for split in dataset.splits.values()) == 159
    assert dataset.bin_s == 0.1
    for split in dataset.splits.values():
        assert split.recon_data.shape[1:] == (9, 174)
        for i, number in enumerate(split.trial):
            np.testing.assert_array_equal(split.behavior[i], velocity[number][:9])
            np.testing.assert_array_equal(split.recon_data[i], spikes[number][:9])
    assert sorted(number for fold in folds for number in fold["test"].trial) == list(range(159))
    assert dataset.provenance["n_trials_too_short"] == 0


def test_a_real_recording_is_decoded_as_well_as_published(chewie):
    """Sequence-to-sequence ridge from all units: 0.87 and 0.81 with the penalty chosen on valid trials."""
    _, folds = chewie
    true, decoded = [], []
    for dataset in folds:
        spikes = {name: split.encod_data for name, split in dataset.splits.items()}
        behavior = {name: split.behavior for name, split in dataset.splits.items()}
        true.append(behavior["test"])
        decoded.append(decode(spikes, behavior, "sequence")["test"])
    scores = r2_score(
        np.concatenate(true).reshape(-1, 2), np.concatenate(decoded).reshape(-1, 2), multioutput="raw_values"
    )
    np.testing.assert_allclose(scores, [0.87, 0.813], atol=0.01)


@pytest.mark.parametrize(("key", "value"), [("target", 0.785), ("target", np.nan), ("trial_n_bins", 8.5)])
def test_conditions_and_lengths_that_are_no_whole_numbers_are_told(write_raw, key, value):
    arrays = make_arrays()
    arrays[key] = arrays[key].astype(float)
    arrays[key][3] = value
    assert f"{key!r} must hold one whole number for each trial" in message(
        settings(), write_raw(arrays, {"bin_s": 0.05})
    )


def test_a_signal_without_channels_is_told(write_raw):
    arrays = make_arrays()
    arrays["velocity"] = arrays["velocity"][:, 0]
    assert "'velocity' has shape" in message(settings(), write_raw(arrays, {"bin_s": 0.05}))


def test_a_trial_whose_onset_is_not_known_is_left_out(write_raw):
    arrays = make_arrays()
    arrays["velocity"][arrays["trial_n_bins"][:4].sum()] = np.nan  # the first bin of trial 4
    path = write_raw(arrays, {"bin_s": 0.05})
    dataset = Reaching.prepare(settings(align="onset", n_bins=3), [path])
    assert 4 not in np.concatenate([split.trial for split in dataset.splits.values()])
