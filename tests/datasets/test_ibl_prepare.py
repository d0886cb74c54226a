"""Recordings to datasets: known tuning found again, brute force, determinism, and every way it can fail."""

import hashlib
import json
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from ctdb.datasets import DATASETS, SPLITS, MultiSession, read, write
from ctdb.datasets.ibl.continuous import IblContinuous, IblContinuousSettings
from ctdb.datasets.ibl.prepare import Ibl, IblSettings
from ctdb.datasets.ibl.synthetic import SyntheticSettings, true_tuning
from ctdb.datasets.ibl.wheel import movement
from ctdb.errors import (
    IblChecksumError,
    IblMissingError,
    IblNoTrialsError,
    IblNoUnitsError,
    IblPrepareError,
)
from ctdb.metrics import behavior_r2
from ctdb.metrics.behavior import decode
from ibl_recording import Recording

SESSION = SyntheticSettings(n_trials=200, n_units=30)
SMALL = SyntheticSettings(n_trials=60, n_units=12, seed=5)


def settings(**options) -> IblSettings:
    return IblSettings(**({"kind": "ibl", "recording": "mine"} | options))


def continuous(**options) -> IblContinuousSettings:
    return IblContinuousSettings(**({"kind": "ibl_continuous", "recording": "mine", "block_bins": 1600} | options))


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Not to be changed."""
    return Recording(tmp_path_factory.mktemp("recording"), SESSION)


@pytest.fixture
def small(tmp_path):
    """To be changed."""
    return Recording(tmp_path, SMALL)


@pytest.fixture(scope="module")
def dataset(recording):
    return Ibl.prepare(settings(behavior=["wheel_velocity", "choice"]), recording.files)


def load(recording, session=0):
    """The files as arrays: trials, wheel, and per probe times, clusters, labels, regions."""
    trials = pd.read_parquet(recording.path("_ibl_trials.table.pqt", session=session))
    probes = {}
    for probe in ("probe00", "probe01"):
        files = {name: recording.path(name, probe, session) for name in ("spikes.times.npy", "spikes.clusters.npy", "clusters.metrics.pqt")}  # fmt: skip
        times, clusters = (np.load(path) for path in list(files.values())[:2])
        probes[probe] = (times, clusters, pd.read_parquet(files["clusters.metrics.pqt"]).set_index("cluster_id").label)
    return trials, probes


def histogram(times, edges):
    """Counts of half-open bins, one comparison at a time."""
    return np.array([np.sum((times >= low) & (times < high)) for low, high in pairwise(edges)])


# ------------------------------------------------------------------------------------------------------ what is made


@pytest.mark.parametrize("align", ["stimOn_times", "firstMovement_times", "feedback_times", "goCue_times", "response_times"])  # fmt: skip
def test_counts_are_those_around_each_trials_event(recording, align):
    chosen = settings(align=align, window_s=[-0.2, 0.3], bin_s=0.05, behavior=[])
    dataset = Ibl.prepare(chosen, recording.files)
    trials, probes = load(recording)
    for split in dataset.splits.values():
        for row in (0, split.n_trials - 1):
            edges = trials[align][split.trial[row]] + (-0.2 + 0.05 * np.arange(11))
            for column in range(0, dataset.n_neurons, 5):
                probe, cluster, _ = dataset.names["neurons"][column].split()
                times, clusters, _ = probes[probe]
                expected = histogram(times[clusters == int(cluster)], edges)
                np.testing.assert_array_equal(split.recon_data[row, :, column], expected)


def test_trials_are_those_of_the_masks_definition(recording, dataset):
    trials, _ = load(recording)
    reaction = trials.firstMovement_times - trials.stimOn_times
    keep = reaction.between(0.08, 2) & (trials.choice != 0) & (trials.feedback_times - trials.goCue_times <= 10)
    used = np.sort(np.concatenate([split.trial for split in dataset.splits.values()]))
    counts = dataset.provenance["trials"]
    assert counts["recorded"] == 200
    assert counts["kept"] == len(used) == keep.sum() - counts["overlap"]
    assert set(used) <= set(np.flatnonzero(keep))
    assert counts["no_go"] == (trials.choice == 0).sum() > 0
    assert counts["missing"] == trials.stimOn_times.isna().sum() > 0
    assert counts["reaction_time"] == (~reaction.between(0.08, 2) & reaction.notna() & (trials.choice != 0)).sum() > 0


def test_conditions_are_choices(recording, dataset):
    trials, _ = load(recording)
    for split in dataset.splits.values():
        named = [dataset.names["condition"][code] for code in split.condition]
        assert named == [{-1: "right", 1: "left"}[choice] for choice in trials.choice[split.trial]]
    other = Ibl.prepare(settings(condition="stim_side_choice"), recording.files)
    left = trials.contrastLeft.notna()[other["train"].trial].to_numpy()
    named = [other.names["condition"][code].split(", ")[0] for code in other["train"].condition]
    assert named == np.where(left, "left", "right").tolist()


def test_units_are_the_good_ones_of_all_probes(recording, dataset):
    tuning = true_tuning(SESSION)
    good = {probe: set(np.flatnonzero(one.label == 1)) for probe, one in tuning.items()}
    for probe in good:
        chosen = {int(name.split()[1]) for name in dataset.names["neurons"] if name.startswith(probe)}
        assert chosen == good[probe]
    units = dataset.provenance["units"]
    assert units["recorded"] == 60
    assert units["kept"] == dataset.n_neurons == sum(map(len, good.values()))
    assert units["recorded"] - units["low_label"] - units["other_region"] - units["too_quiet"] == units["kept"]
    for column, name in enumerate(dataset.names["neurons"]):
        probe, cluster, uuid = name.split()
        text = recording.path("clusters.uuids.csv", probe).read_text().split()
        assert uuid == text[1 + int(cluster)]
        assert dataset.provenance["unit_region"][column] == tuning[probe].region[int(cluster)]
        assert dataset.provenance["unit_label"][column] == 1


def test_units_with_another_label_come_with_a_lower_threshold(recording):
    tuning = true_tuning(SESSION)
    for least, expected in ((0.5, lambda label: label >= 0.5), (0.0, lambda label: label == label)):
        dataset = Ibl.prepare(settings(min_label=least, behavior=[]), recording.files)
        assert dataset.n_neurons == sum(expected(one.label).sum() for one in tuning.values())
    everything = Ibl.prepare(settings(min_label=0.0, min_rate_hz=0.0, behavior=[]), recording.files)
    assert everything.n_neurons == 60  # the one that the metrics lack, and that never spikes, too
    assert None in everything.provenance["unit_label"]


def test_regions_choose_units(recording):
    tuning = true_tuning(SESSION)
    dataset = Ibl.prepare(settings(regions=[993, 672], behavior=[], min_units=1), recording.files)
    assert set(dataset.provenance["unit_region"]) == {993, 672}
    expected = [(one.label == 1) & np.isin(one.region, (993, 672)) for one in tuning.values()]
    assert dataset.n_neurons == np.sum(expected)
    outside = np.sum([(one.label == 1) & ~np.isin(one.region, (993, 672)) for one in tuning.values()])
    assert dataset.provenance["units"]["other_region"] == outside


def test_quiet_units_are_judged_on_the_train_trials_alone(recording):
    loud = Ibl.prepare(settings(min_rate_hz=8.0, behavior=[], min_units=1), recording.files)
    every = Ibl.prepare(settings(min_rate_hz=0.0, behavior=[]), recording.files)
    rate = every["train"].recon_data.mean((0, 1), dtype=np.float64) / 0.02
    assert loud.names["neurons"] == [name for name, one in zip(every.names["neurons"], rate, strict=True) if one >= 8]
    np.testing.assert_allclose(every.provenance["unit_rate_hz"], rate, atol=1e-3)
    assert loud.provenance["units"]["too_quiet"] == (rate < 8).sum()


def test_neurons_are_held_out_by_the_seed(recording):
    one, other = (Ibl.prepare(settings(n_heldout=6, behavior=[], seed=seed), recording.files) for seed in (0, 1))
    for dataset in (one, other):
        assert dataset.n_neurons - dataset.n_heldin == 6
        for split in dataset.splits.values():
            np.testing.assert_array_equal(split.encod_data, split.recon_data[:, :, :-6])
    assert set(one.names["neurons"]) == set(other.names["neurons"])
    assert one.names["neurons"][-6:] != other.names["neurons"][-6:]
    assert len(one.provenance["unit_region"]) == one.n_neurons
    rate = one["train"].recon_data.mean((0, 1), dtype=np.float64) / 0.02
    np.testing.assert_allclose(one.provenance["unit_rate_hz"], rate, atol=1e-3)


def test_behaviour_is_standardised_on_train_and_can_be_undone(recording, dataset):
    mean, std = (np.array(dataset.provenance[f"behavior_{name}"]) for name in ("mean", "std"))
    train = dataset["train"].behavior.astype(np.float64)
    np.testing.assert_allclose(train.mean((0, 1)), 0, atol=1e-6)
    np.testing.assert_allclose(train.std((0, 1)), 1, atol=1e-5)
    trials, _ = load(recording)
    for split in dataset.splits.values():
        choice = split.behavior[:, :, 1] * std[1] + mean[1]
        expected = np.repeat(-trials.choice[split.trial].to_numpy()[:, None], dataset.n_bins, 1)
        np.testing.assert_allclose(choice, expected, atol=1e-5)
    assert abs(dataset["test"].behavior.mean((0, 1))).max() > 1e-3  # not standardised by itself


def test_every_behaviour_is_what_its_name_says(recording):
    names = ["wheel_position", "wheel_velocity", "wheel_speed", "stim_side", "contrast", "block", "feedback", "reaction_time"]  # fmt: skip
    dataset = Ibl.prepare(settings(behavior=names, align="firstMovement_times", window_s=[-0.1, 0.5]), recording.files)
    assert dataset.names["behavior"] == names
    trials, _ = load(recording)
    mean, std = (np.array(dataset.provenance[f"behavior_{name}"]) for name in ("mean", "std"))
    split = dataset["test"]
    values = dict(zip(names, np.moveaxis(split.behavior * std + mean, 2, 0), strict=True))
    rows = trials.iloc[split.trial]
    right = rows.contrastRight.notna().to_numpy()
    for name, expected in {
        "stim_side": np.where(right, 1, -1),
        "contrast": np.where(right, rows.contrastRight, -rows.contrastLeft),
        "block": rows.probabilityLeft,
        "feedback": rows.feedbackType,
        "reaction_time": rows.firstMovement_times - rows.stimOn_times,
    }.items():
        np.testing.assert_allclose(values[name], np.repeat(np.asarray(expected)[:, None], 30, 1), atol=1e-5)
    assert (values["wheel_speed"] >= np.abs(values["wheel_velocity"]) - 1e-5).all()
    np.testing.assert_allclose(values["wheel_position"][:, 0], 0, atol=1e-6)
    moved = np.cumsum(values["wheel_velocity"], 1)[:, :-1] * 0.02  # up to half a bin on either side
    np.testing.assert_allclose(values["wheel_position"][:, 1:], moved, atol=0.08)
    turned = np.interp(rows.feedback_times, np.load(recording.path("_ibl_wheel.timestamps.npy")), np.load(recording.path("_ibl_wheel.position.npy")))  # fmt: skip
    before = np.interp(rows.firstMovement_times - 0.1, np.load(recording.path("_ibl_wheel.timestamps.npy")), np.load(recording.path("_ibl_wheel.position.npy")))  # fmt: skip
    short = (rows.feedback_times - rows.firstMovement_times < 0.4).to_numpy()
    np.testing.assert_allclose(values["wheel_position"][short, -1], (turned - before)[short], atol=0.15)


def test_wheel_signals_are_means_over_the_bins_of_each_trial(recording):
    names = ["wheel_velocity", "wheel_speed", "wheel_position"]
    dataset = Ibl.prepare(settings(behavior=names), recording.files)
    trials, _ = load(recording)
    mean, std = (np.array(dataset.provenance[f"behavior_{name}"]) for name in ("mean", "std"))
    wheel = movement(*(np.load(recording.path(f"_ibl_wheel.{name}.npy")) for name in ("timestamps", "position")))
    for split in dataset.splits.values():
        for row in (0, split.n_trials // 2):
            edges = trials.stimOn_times[split.trial[row]] + (-0.5 + 0.02 * np.arange(101))
            inside = [(wheel.times >= low) & (wheel.times < high) for low, high in pairwise(edges)]
            position = np.array([wheel.position[one].mean() for one in inside])
            velocity = np.array([wheel.velocity[one].mean() for one in inside])
            speed = np.array([np.abs(wheel.velocity[one]).mean() for one in inside])
            expected = np.stack([velocity, speed, position - position[0]], 1)
            np.testing.assert_allclose(split.behavior[row] * std + mean, expected, atol=1e-5)
            assert np.abs(speed - np.abs(velocity)).max() > 1e-3


def test_windows_lie_in_the_recording_of_every_probe_and_of_the_wheel(small):
    trials, probes = load(small)
    low, high = np.quantile(trials.stimOn_times.dropna(), (0.2, 0.8))

    def dropped(**options):
        dataset = Ibl.prepare(settings(min_trials=5, min_units=1, block_trials=2, **options), small.files)
        used = np.concatenate([trials.stimOn_times[split.trial] for split in dataset.splits.values()])
        return dataset.provenance["trials"]["outside_recording"], used.min() - 0.5, used.max() + 1.5

    assert dropped()[0] == 0
    times = np.load(small.path("_ibl_wheel.timestamps.npy"))
    for name in ("timestamps", "position"):
        small.change(f"_ibl_wheel.{name}.npy", lambda values: values[(times > low) & (times < high)])
    n, first, last = dropped()
    assert n > 10
    assert first >= low
    assert last <= high
    assert dropped(behavior=["choice"])[0] == 0
    for probe, keep in (("probe00", lambda times: times > low), ("probe01", lambda times: times < high)):
        kept = keep(probes[probe][0])
        for name in ("times", "clusters"):
            small.change(f"spikes.{name}.npy", lambda values, kept=kept: values[kept], probe)
    n, first, last = dropped(behavior=["choice"])
    assert n > 10
    assert first >= low
    assert last <= high


def test_a_channel_that_does_not_vary_is_zero(small):
    small.change("_ibl_trials.table.pqt", lambda frame: frame.assign(probabilityLeft=0.5))
    dataset = Ibl.prepare(settings(behavior=["block"]), small.files)
    np.testing.assert_array_equal(dataset["train"].behavior, 0)
    assert dataset.provenance["behavior_std"] == [1.0]


def test_blocks_of_neighbours_stay_together(recording):
    dataset = Ibl.prepare(settings(block_trials=8, behavior=[]), recording.files)
    blocks = [set(split.trial // 8) for split in dataset.splits.values()]
    assert not blocks[0] & blocks[1] | blocks[0] & blocks[2] | blocks[1] & blocks[2]
    single = Ibl.prepare(settings(split="random", behavior=[]), recording.files)
    assert (np.diff(np.sort(single["test"].trial)) > 1).mean() > 0.5 > (np.diff(np.sort(dataset["test"].trial)) > 1).mean()  # fmt: skip


def test_long_windows_share_no_time_across_splits(recording):
    dataset = Ibl.prepare(settings(window_s=[-2.0, 4.0], behavior=[], split="random"), recording.files)
    trials, _ = load(recording)
    on = {name: trials.stimOn_times[split.trial].to_numpy() for name, split in dataset.splits.items()}
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert np.abs(on[one][:, None] - on[other]).min() >= 6
    assert dataset.provenance["trials"]["overlap"] > 0


# ---------------------------------------------------------------------------------------------------- known tuning


def test_choices_part_the_counts_of_tuned_units(dataset):
    """Difference of the mean counts of right and left choices after the stimulus, against the true tuning."""
    tuning = true_tuning(SESSION)
    found, true, weight = [], [], []
    bins = slice(30, 45)  # 0.1 s to 0.4 s after the onset: most movements
    counts = np.concatenate([split.recon_data[:, bins].sum(1) for split in dataset.splits.values()])
    condition = np.concatenate([split.condition for split in dataset.splits.values()])
    for column, name in enumerate(dataset.names["neurons"]):
        probe, cluster, _ = name.split()
        one, cluster = tuning[probe], int(cluster)
        right, left = (counts[condition == code, column].mean() + 0.05 for code in (1, 0))
        found.append(np.log(right / left) / 2)
        true.append(one.choice[cluster] + 0.5 * one.stimulus[cluster] + 0.3 * one.wheel[cluster])
        weight.append(one.base_rate_hz[cluster])
    found, true = np.array(found), np.array(true)
    assert np.corrcoef(found, true)[0, 1] > 0.85
    tuned = (np.abs(true) > 0.4) & (np.array(weight) > 3)
    assert tuned.sum() >= 5
    assert (np.sign(found[tuned]) == np.sign(true[tuned])).all()


def test_the_wheel_turns_with_the_choice(dataset):
    for split in dataset.splits.values():
        velocity = split.behavior[:, 25:60, 0].mean(1)
        assert velocity[split.condition == 1].min() > velocity[split.condition == 0].max()


def test_the_wheel_is_decoded_from_the_counts(recording):
    dataset = Ibl.prepare(settings(align="firstMovement_times", window_s=[-0.2, 0.6]), recording.files)
    smooth = {
        name: np.apply_along_axis(np.convolve, 1, split.encod_data, np.ones(5) / 5, mode="same")
        for name, split in dataset.splits.items()
    }
    velocity = {name: split.behavior for name, split in dataset.splits.items()}
    assert behavior_r2(velocity["test"], decode(smooth, velocity, "linear")["test"]) > 0.65
    shuffled = velocity | {"train": np.random.default_rng(0).permutation(velocity["train"])}
    assert behavior_r2(velocity["test"], decode(smooth, shuffled, "linear")["test"]) < 0.25


def test_choice_is_decoded_from_the_counts(dataset):
    features = {name: split.encod_data[:, 25:50].sum(1) for name, split in dataset.splits.items()}
    classifier = LogisticRegression(C=0.05, max_iter=2000).fit(features["train"], dataset["train"].condition)
    right = classifier.predict(features["test"]) == dataset["test"].condition
    per_choice = [right[dataset["test"].condition == code].mean() for code in (0, 1)]
    assert np.mean(per_choice) > 0.85
    shuffled = np.random.default_rng(0).permutation(dataset["train"].condition)
    chance = LogisticRegression(C=0.05, max_iter=2000).fit(features["train"], shuffled).predict(features["test"])
    assert np.mean([(chance == code)[dataset["test"].condition == code].mean() for code in (0, 1)]) < 0.75


# ----------------------------------------------------------------------------------------------------- on the disk


@pytest.mark.parametrize("kind", ["ibl", "ibl_continuous"])
def test_equal_runs_write_equal_bytes_wherever_the_cache_is(recording, tmp_path, kind):
    elsewhere = Recording(tmp_path / "elsewhere", SESSION)
    chosen = {"kind": kind, "recording": "mine", "n_heldout": 3}
    for name, source in (("a", recording), ("b", recording), ("c", elsewhere)):
        made = DATASETS[kind].prepare(DATASETS[kind].Settings(**chosen), source.files)
        write(tmp_path / f"{name}.h5", made)
    first = (tmp_path / "a.h5").read_bytes()
    assert first == (tmp_path / "b.h5").read_bytes() == (tmp_path / "c.h5").read_bytes()
    assert str(recording.cache).encode() not in first
    kept = read(tmp_path / "a.h5")
    assert kept.provenance["eid"] == SESSION.eid
    assert len(kept.provenance["files"]) == 17
    assert kept.provenance["pids"] == [SESSION.pid("probe00"), SESSION.pid("probe01")]


def test_the_order_of_probes_and_files_in_the_manifest_does_not_matter(small, tmp_path):
    write(tmp_path / "a.h5", Ibl.prepare(settings(), small.files))
    content = small.content
    for key in ("probes", "files"):
        content["sessions"][0][key].reverse()
    small.write(content)
    write(tmp_path / "b.h5", Ibl.prepare(settings(), small.files))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_spikes_in_any_order_give_the_same_counts(small):
    expected = Ibl.prepare(settings(), small.files)
    order = np.random.default_rng(0).permutation(len(np.load(small.path("spikes.times.npy", "probe01"))))
    for name in ("spikes.times.npy", "spikes.clusters.npy"):
        small.change(name, lambda values: values[order], "probe01")
    found = Ibl.prepare(settings(), small.files)
    for split in SPLITS:
        np.testing.assert_array_equal(found[split].recon_data, expected[split].recon_data)


def test_rows_of_the_metrics_may_come_in_any_order(small):
    expected = Ibl.prepare(settings(), small.files)
    small.change("clusters.metrics.pqt", lambda frame: frame.iloc[::-1], "probe00")
    assert Ibl.prepare(settings(), small.files).names == expected.names


def test_sessions_are_sessions_of_one_model(tmp_path):
    second = SMALL.model_copy(update={"number": 2, "seed": 6, "n_units": 16})
    both = Recording(tmp_path, SMALL, second)
    dataset = Ibl.prepare(settings(min_units=5), both.files)
    assert isinstance(dataset, MultiSession)
    assert set(dataset.sessions) == {"SYN_001_2024-01-15_001", "SYN_001_2024-01-15_002"}
    alone = Recording(tmp_path / "alone", second)
    single = Ibl.prepare(settings(min_units=5), alone.files)
    np.testing.assert_array_equal(
        dataset.sessions["SYN_001_2024-01-15_002"]["test"].recon_data, single["test"].recon_data
    )
    write(tmp_path / "both.h5", dataset)
    assert set(read(tmp_path / "both.h5").sessions) == set(dataset.sessions)
    windows = IblContinuous.prepare(continuous(min_units=5), both.files)
    assert set(windows.sessions) == set(dataset.sessions)


# ------------------------------------------------------------------------------------------------------ continuous


def test_windows_cover_the_recording_and_count_every_spike_once(recording):
    dataset = IblContinuous.prepare(continuous(min_rate_hz=0.0), recording.files)
    _, probes = load(recording)
    n_bins = dataset.provenance["n_bins"]
    assert n_bins * 0.005 <= min(one[0][-1] for one in probes.values()) < (n_bins + 1) * 0.005
    start = np.concatenate([split.start for split in dataset.splits.values()])
    counts = np.concatenate([split.recon_data for split in dataset.splits.values()])
    assert len(np.unique(start)) == len(start)
    for column in range(0, dataset.n_neurons, 6):
        probe, cluster, _ = dataset.names["neurons"][column].split()
        own = probes[probe][0][probes[probe][1] == int(cluster)]
        for row in (0, len(start) // 2, len(start) - 1):
            edges = (start[row] + np.arange(161)) * 0.005
            np.testing.assert_array_equal(counts[row, :, column], histogram(own, edges))
    covered = np.zeros(n_bins, int)
    for first in start:
        covered[first : first + 160] += 1
    assert (covered > 0).all()
    assert (covered == 1).mean() > 0.9  # only the last window of a block may reach back


@pytest.mark.parametrize("bin_s", [0.005, 0.007, 0.02])
def test_spikes_on_the_edges_of_windows_are_counted_once(small, bin_s):
    n_bins = int(30 / bin_s)
    for probe in ("probe00", "probe01"):
        for name in ("times", "clusters"):
            edges = np.arange(n_bins + 1) * bin_s if name == "times" else np.zeros(n_bins + 1, np.int32)
            small.change(f"spikes.{name}.npy", lambda values, edges=edges: edges, probe)
    chosen = continuous(bin_s=bin_s, window_bins=10, block_bins=100, min_label=0.0, min_rate_hz=1.0, min_units=2)
    for split in IblContinuous.prepare(chosen, small.files).splits.values():
        np.testing.assert_array_equal(split.recon_data, np.ones((split.n_trials, 10, 2)))


def test_windows_of_different_splits_share_no_bin(recording):
    dataset = IblContinuous.prepare(continuous(window_bins=100, overlap_bins=50, bin_s=0.01), recording.files)
    bins = [set((split.start[:, None] + np.arange(100)).ravel().tolist()) for split in dataset.splits.values()]
    assert not bins[0] & bins[1] | bins[0] & bins[2] | bins[1] & bins[2]
    assert dataset.bin_s == 0.01
    assert dataset["train"].behavior is None


def test_continuous_units_are_filtered_as_those_of_trials(recording):
    dataset = IblContinuous.prepare(continuous(regions=[985], min_rate_hz=4.0, min_units=1, n_heldout=1), recording.files)  # fmt: skip
    rate = dataset["train"].recon_data.mean((0, 1), dtype=np.float64) / 0.005
    assert (rate >= 4).all()
    np.testing.assert_allclose(dataset.provenance["unit_rate_hz"], rate, atol=1e-3)
    assert set(dataset.provenance["unit_region"]) == {985}
    assert dataset.n_heldin == dataset.n_neurons - 1
    with pytest.raises(IblNoTrialsError, match="too few for train, valid and"):
        IblContinuous.prepare(continuous(block_bins=10**6), recording.files)
    with pytest.raises(IblNoUnitsError, match="`min_rate_hz` 1000"):
        IblContinuous.prepare(continuous(min_rate_hz=1000.0), recording.files)


# --------------------------------------------------------------------------------------------------------- failures


def fails(recording, error, match, **options):
    with pytest.raises(error, match=match) as raised:
        Ibl.prepare(settings(**options), recording.files)
    assert type(raised.value) is error
    assert "\n" not in str(raised.value).rstrip()


def test_too_few_units_tell_what_each_filter_dropped(recording):
    fails(recording, IblNoUnitsError, r"SYN_001_2024-01-15_001.*0 units.*Of 60 clusters.*`min_rate_hz` 1000 \d+ more", min_rate_hz=1000.0)  # fmt: skip
    fails(recording, IblNoUnitsError, "`regions` [1-9]", regions=[12345])
    fails(recording, IblNoUnitsError, "`min_units`, 100", min_units=100)
    fails(recording, IblNoUnitsError, "`n_heldout`, 70", n_heldout=70)


def test_too_few_trials_tell_what_each_filter_dropped(recording):
    fails(recording, IblNoTrialsError, r"0 trials are left.*'reaction_time': \d+", reaction_time_s=[1.9, 1.95])
    fails(recording, IblNoTrialsError, "'outside_recording': 1", window_s=[-2000.0, 0.0], bin_s=1.0)
    fails(recording, IblNoTrialsError, "beside the windows of other splits.*: 0", window_s=[-100.0, 100.0], bin_s=1.0, min_trials=1)  # fmt: skip
    chosen = {"window_s": [-2.0, 4.0], "behavior": [], "split": "random"}
    kept = Ibl.prepare(settings(**chosen), recording.files).provenance["trials"]["kept"]
    Ibl.prepare(settings(min_trials=kept, **chosen), recording.files)
    fails(recording, IblNoTrialsError, "beside the windows of other splits", min_trials=kept + 1, **chosen)
    fails(recording, IblNoTrialsError, "too few for train, valid and test", block_trials=150)


@pytest.mark.parametrize("dataset", ["_ibl_trials.table.pqt", "_ibl_wheel.position.npy", "_ibl_wheel.timestamps.npy"])
def test_a_file_of_the_session_that_is_not_in_the_manifest_is_named(small, dataset):
    small.forget(dataset)
    fails(small, IblMissingError, f"no {dataset} in alf")


@pytest.mark.parametrize(
    "dataset", ["spikes.times.npy", "spikes.clusters.npy", "clusters.channels.npy", "clusters.metrics.pqt"]
)
def test_a_file_of_a_probe_that_is_not_in_the_manifest_is_named(small, dataset):
    small.forget(dataset, "probe01")
    fails(small, IblMissingError, f"no {dataset} in alf/probe01")


def test_the_wheel_is_not_needed_where_it_is_not_wanted(small):
    small.forget("_ibl_wheel.position.npy")
    assert Ibl.prepare(settings(behavior=["choice"]), small.files).n_behaviors == 1
    assert Ibl.prepare(settings(behavior=[]), small.files).n_behaviors == 0


def test_uuids_and_regions_are_not_needed_where_they_are_not_wanted(small):
    small.forget("clusters.uuids.csv", "probe00")
    small.forget("channels.brainLocationIds_ccf_2017.npy", "probe00")
    dataset = Ibl.prepare(settings(), small.files)
    assert {len(name.split()) for name in dataset.names["neurons"] if name.startswith("probe00")} == {2}
    assert None in dataset.provenance["unit_region"]
    fails(small, IblMissingError, "probe00 has no channels.brainLocationIds", regions=[993])


def test_a_changed_file_is_refused(small):
    path = small.path("spikes.times.npy", "probe00")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    fails(small, IblChecksumError, "spikes.times.npy")
    path.unlink()
    fails(small, IblMissingError, "spikes.times.npy")


# fmt: off
BROKEN = {
    "lengths of spikes": ("spikes.times.npy", "probe00", lambda v: v[:-1], r"spike times but \(\d+,\) spike clusters"),
    "times not finite": (
        "spikes.times.npy",
        "probe00",
        lambda v: np.where(np.arange(len(v)) == 7, np.nan, v),
        "spikes.times holds times that are not finite",
    ),
    "whole times": ("spikes.times.npy", "probe00", lambda v: v.astype(np.int64), "spike times are int64"),
    "fractional clusters": ("spikes.clusters.npy", "probe00", lambda v: v.astype(float), "clusters float64"),
    "more clusters than channels": (
        "clusters.channels.npy",
        "probe00",
        lambda v: v[:5],
        "clusters.channels has 5 clusters",
    ),
    "negative cluster": ("spikes.clusters.npy", "probe00", lambda v: v - 1, "spikes are of clusters -1 to"),
    "channel beyond the probe": ("clusters.channels.npy", "probe01", lambda v: v + 1, "names channel 384"),
    "uuids short": (
        "clusters.uuids.csv",
        "probe01",
        lambda text: text.rsplit("\n", 2)[0],
        "has 11 uuids for 12 clusters",
    ),
    "metrics twice": ("clusters.metrics.pqt", "probe00", lambda f: pd.concat([f, f.iloc[:1]]), "at most once"),
    "metrics of another probe": (
        "clusters.metrics.pqt",
        "probe00",
        lambda f: f.assign(cluster_id=f.cluster_id + 5),
        "each of the 12 clusters",
    ),
    "no label": (
        "clusters.metrics.pqt",
        "probe00",
        lambda f: f.drop(columns="label"),
        r"lacks the columns \['label'\]",
    ),
    "no choice": ("_ibl_trials.table.pqt", "", lambda f: f.drop(columns="choice"), r"lacks the columns \['choice'\]"),
    "wheel lengths": ("_ibl_wheel.position.npy", "", lambda v: v[:-1], r"times but \(\d+,\) positions"),
    "wheel not finite": ("_ibl_wheel.position.npy", "", lambda v: v * np.nan, "not finite"),
    "wheel backwards": ("_ibl_wheel.timestamps.npy", "", lambda v: v[::-1], "backwards after sample 0"),
}
# fmt: on


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_do_not_go_together_are_refused(small, case):
    dataset, probe, edit, expected = BROKEN[case]
    small.change(dataset, edit, probe)
    fails(small, IblPrepareError, expected)


def test_a_probe_without_spikes_is_named(small):
    for name in ("spikes.times.npy", "spikes.clusters.npy"):
        small.change(name, lambda values: values[:0], "probe01")
    fails(small, IblNoUnitsError, "probe01 has no spikes")


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("spikes.times.npy", "not an array of numbers"), ("clusters.metrics.pqt", "not a parquet table")],
)
def test_files_that_are_no_arrays_or_tables_are_refused(small, dataset, expected):
    path = small.path(dataset, "probe00")
    path.write_bytes(b"x" * path.stat().st_size)
    small.update(dataset, "probe00", md5=hashlib.md5(path.read_bytes()).hexdigest())
    fails(small, IblPrepareError, expected)


def test_two_revisions_or_sorters_are_refused(small):
    content = small.content
    record = next(one for one in content["sessions"][0]["files"] if one["dataset"] == "spikes.times.npy")
    content["sessions"][0]["files"].append(record | {"revision": "2023-01-01"})
    small.write(content)
    fails(small, IblPrepareError, "2 files spikes.times.npy in alf/probe0")
    content["sessions"][0]["files"].pop()
    small.write(content)
    small.update("spikes.clusters.npy", "probe00", revision="2023-01-01")
    fails(small, IblPrepareError, "of the revisions.*2023-01-01")


def test_a_manifest_without_sessions_or_probes_is_refused(small):
    content = small.content
    small.write(json.loads(json.dumps(content)) | {"sessions": []})
    fails(small, IblMissingError, "names no session")
    content["sessions"][0]["probes"] = []
    small.write(content)
    fails(small, IblMissingError, "there is no probe")


def test_settings_that_do_not_go_together_are_refused():
    for options, expected in (
        ({"bin_s": 0.03}, "bins of bin_s"),
        ({"behavior": ["choice", "choice"]}, "names a channel twice"),
        ({"behavior": ["whisker"]}, "behavior"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "must leave some for train"),
        ({"min_label": 1.5}, "less than or equal to 1"),
        ({"align": "none"}, "align"),
        ({"regions": []}, "at least 1"),
    ):
        with pytest.raises(ValidationError, match=expected):
            settings(**options)


def test_a_bin_narrower_than_the_wheels_samples_is_refused(small):
    fails(small, IblPrepareError, "holds no sample of the wheel.*wider bins", bin_s=0.0005, window_s=[-0.1, 0.1])


# ---------------------------------------------------------------------------------------------------------- regions


class FakeRegions:
    """As iblatlas has it: ids of the left hemisphere are negative, and the topmost have no parent."""

    id = np.array([997, 500, 985, 993, 656, 672, -997, -500, -985, -993, -656, -672])
    acronym = np.array(["root", "MO", "MOp", "MOs", "MOs1", "CP"] * 2)
    parent = np.array([np.nan, 997, 500, 500, 993, 997, np.nan, -997, -500, -500, -993, -997])


def test_an_acronym_is_a_region_with_all_its_parts(recording, monkeypatch):
    module = SimpleNamespace(BrainRegions=FakeRegions)
    monkeypatch.setitem(sys.modules, "iblatlas", SimpleNamespace(regions=module))
    monkeypatch.setitem(sys.modules, "iblatlas.regions", module)
    for regions, expected in ((["MO"], {985, 993}), (["MOs"], {993}), (["MOs", 672], {993, 672}), (["root"], {985, 993, 672, 997})):  # fmt: skip
        dataset = Ibl.prepare(settings(regions=regions, behavior=[], min_units=1), recording.files)
        assert set(dataset.provenance["unit_region"]) == expected
    fails(recording, IblPrepareError, "'MOz' is no acronym of the atlas: did you mean", regions=["MOz"])


def test_acronyms_without_the_atlas_say_what_to_do(recording, monkeypatch):
    monkeypatch.setitem(sys.modules, "iblatlas", None)
    monkeypatch.setitem(sys.modules, "iblatlas.regions", None)
    fails(recording, IblPrepareError, "pip install iblatlas, or give Allen ids", regions=["MOs"])


def test_kinds_are_known_by_name_and_made_from_a_recording():
    for kind, chosen in (("ibl", settings()), ("ibl_continuous", continuous())):
        assert isinstance(chosen, DATASETS[kind].Settings)
        assert DATASETS[kind].sources(chosen) == [("recording", "mine")]
