"""Shuffled controls: what is permuted, within which split, and what stays as it was."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from ctdb.datasets import MultiSession, check, read, write
from ctdb.datasets.shuffled import Shuffled, ShuffledSettings
from ctdb.errors import DatasetError


def settings(shuffle, **options) -> ShuffledSettings:
    return ShuffledSettings(**({"kind": "shuffled", "dataset": "some", "shuffle": shuffle} | options))


@pytest.fixture
def shuffle(tmp_path):
    """Write a dataset and shuffle it."""

    def make(dataset, how, **options):
        write(tmp_path / "some.h5", dataset)
        return Shuffled.prepare(settings(how, **options), [tmp_path / "some.h5"])

    return make


@pytest.fixture
def dataset(make_dataset):
    made = make_dataset(
        n_trials=30, n_recon_bins=9, ext_input=2, behavior=3, latents=2, inputs_true=1, names={"behavior": list("abc")}
    )
    numbered = {name: replace(split, trial=np.arange(split.n_trials)) for name, split in made.splits.items()}
    return replace(made, splits=numbered)


def order_of(moved, source):
    """Trial of `source` that each trial of `moved` was; raises where one is none of them."""
    return [next(i for i, other in enumerate(source) if np.array_equal(trial, other)) for trial in moved]


def test_behaviour_moves_between_trials_of_a_split_and_nothing_else_does(dataset, shuffle):
    found = shuffle(dataset, "behavior")
    for name, split in dataset.splits.items():
        order = order_of(found[name].behavior, split.behavior)
        assert sorted(order) == list(range(split.n_trials))
        assert order != list(range(split.n_trials))
        for key, value in split.arrays().items():
            if key != "behavior":
                np.testing.assert_array_equal(found[name].arrays()[key], value, err_msg=key)
    orders = [order_of(found[name].behavior, dataset[name].behavior) for name in ("valid", "test")]
    assert orders[0] != orders[1]
    assert found.names == dataset.names
    assert found.bin_s == dataset.bin_s


def test_each_neuron_keeps_its_trials_and_no_population_is_left(dataset, shuffle):
    found = shuffle(dataset, "neurons")
    for name, split in dataset.splits.items():
        moved = found[name]
        orders = []
        for neuron in range(6):
            pairs = zip(moved.recon_data[:, :, neuron], moved.truth[:, :, neuron], strict=True)
            both = list(zip(split.recon_data[:, :, neuron], split.truth[:, :, neuron], strict=True))
            order = [next(i for i, (n, r) in enumerate(both) if (n == a).all() and (r == b).all()) for a, b in pairs]
            assert sorted(order) == list(range(split.n_trials))  # counts and rates together, each trial once
            orders.append(tuple(order))
        assert len(set(orders)) == 6
        assert tuple(range(split.n_trials)) not in orders
        np.testing.assert_array_equal(moved.encod_data, moved.recon_data[:, :6, :4])
        population = {trial.tobytes() for trial in split.recon_data}
        assert not population & {trial.tobytes() for trial in moved.recon_data}
        for key in ("behavior", "ext_input", "trial"):
            np.testing.assert_array_equal(getattr(moved, key), getattr(split, key))
        assert moved.latents is None
        assert moved.inputs_true is None
    check(found, "shuffled")


def test_neurons_shuffled_across_trials_lose_what_they_shared(make_dataset, shuffle):
    rng = np.random.default_rng(0)
    made = make_dataset(n_trials=200, n_bins=4, n_heldin=5, n_heldout=0, truth=False)
    common = rng.gamma(2, 2, 200)[:, None, None]
    counts = rng.poisson(common * np.ones((200, 4, 5))).astype(np.float32)
    made.splits["train"] = replace(made["train"], encod_data=counts, recon_data=counts)
    off = ~np.eye(5, dtype=bool)

    def correlation(split):
        return np.corrcoef(split.recon_data.sum(1).T)[off].mean()

    assert correlation(made["train"]) > 0.7
    assert abs(correlation(shuffle(made, "neurons")["train"])) < 0.1


@pytest.mark.parametrize("how", ["behavior", "neurons"])
def test_the_shuffle_is_that_of_its_seed(dataset, shuffle, how):
    key = "behavior" if how == "behavior" else "recon_data"
    found = [getattr(shuffle(dataset, how, seed=seed)["train"], key).tobytes() for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_provenance_holds_both_origins(dataset, shuffle):
    found = shuffle(replace(dataset, provenance={"made": "by hand"}), "neurons", seed=3)
    assert found.provenance["source_provenance"] == {"made": "by hand"}
    assert (found.provenance["shuffle"], found.provenance["seed"]) == ("neurons", 3)
    assert Shuffled.sources(settings("neurons")) == [("dataset", "some")]


def test_sessions_are_shuffled_each_by_itself_and_stay_sessions(dataset, shuffle, tmp_path):
    several = MultiSession({"one": dataset, "two": dataset})
    found = shuffle(several, "behavior")
    assert list(found.sessions) == ["one", "two"]
    orders = [order_of(session["train"].behavior, dataset["train"].behavior) for session in found.sessions.values()]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(30))
    assert orders[0] != orders[1]
    write(tmp_path / "shuffled.h5", found)
    again = read(tmp_path / "shuffled.h5")
    np.testing.assert_array_equal(again.sessions["two"]["test"].behavior, found.sessions["two"]["test"].behavior)


def test_a_dataset_without_behaviour_has_none_to_shuffle(make_dataset, shuffle):
    with pytest.raises(DatasetError, match="'some' has no behavior to shuffle; shuffle its neurons, or drop it"):
        shuffle(make_dataset(), "behavior")


def test_neurons_of_trials_of_several_lengths_are_not_shuffled(make_dataset, shuffle):
    uneven = make_dataset(per_trial=True)
    with pytest.raises(DatasetError, match="different lengths; cut them to one length"):
        shuffle(uneven, "neurons")
    even = {
        name: replace(split, n_bins=np.full(split.n_trials, 5))
        for name, split in make_dataset(per_trial=True).splits.items()
    }
    assert shuffle(replace(uneven, splits=even), "neurons")["train"].n_bins.tolist() == [5] * 8


def test_unknown_shuffles_are_refused():
    with pytest.raises(ValidationError, match="shuffle"):
        settings("trials")


def test_no_trial_keeps_its_own_behaviour_and_padding_is_not_known(make_dataset, shuffle):
    data = make_dataset(n_trials=9, n_bins=8, behavior=1, per_trial=True)
    for split in data.splits.values():
        split.behavior[np.arange(8) >= split.n_bins[:, None]] = 99
    moved = shuffle(data, "behavior")
    for name, split in data.splits.items():
        given = moved[name].behavior
        assert not (given == 99).any()
        assert sorted((~np.isnan(given)).sum((1, 2))) == sorted(split.n_bins)
        assert all(not np.array_equal(ours[0], theirs[0]) for ours, theirs in zip(given, split.behavior, strict=True))
