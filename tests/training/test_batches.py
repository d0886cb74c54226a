"""Batches of one session and of several: order, and the share of a batch in the mean over all trials."""

import math

import numpy as np
import pytest
import torch

from ctdb.training import Batches, SessionBatches


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_sessions(sizes, n_bins=4, missing=0.0):
    """Numbered trials; each session has neurons of its own, and padding or missing values where `missing` is not 0."""
    sessions = {}
    for index, (name, n_trials) in enumerate(sizes.items()):
        weight = torch.ones(n_trials, n_bins, 1 if missing == 0 else index + 2)
        weight[torch.rand(weight.shape, generator=generator(index)) < missing] = 0
        sessions[name] = {"x": torch.arange(n_trials) + 1000 * index, "weight": weight}
    return sessions


UNEQUAL = {"large": 40, "small": 5, "middle": 12}


def parts_of(batches, epoch):
    """Trial numbers of every session in every batch of an epoch."""
    batches.set_epoch(epoch)
    return [{name: own["x"].tolist() for name, own in batch.items()} for batch in batches]


def order_of(batches, epoch):
    parts = parts_of(batches, epoch)
    return {name: [trial for part in parts for trial in part.get(name, [])] for name in batches.sessions}


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 12, 19, 57, 1000])
@pytest.mark.parametrize("sizes", [UNEQUAL, {"one": 1, "many": 30}, {"alone": 7}], ids=lambda sizes: "-".join(sizes))
def test_every_trial_of_every_session_comes_once_per_epoch(sizes, batch_size, seed):
    batches = SessionBatches(make_sessions(sizes), batch_size, seed)
    for epoch in range(2):
        parts = parts_of(batches, epoch)
        assert len(parts) == len(batches) == math.ceil(sum(sizes.values()) / batch_size)
        for index, (name, n_trials) in enumerate(sizes.items()):
            found = sorted(trial for part in parts for trial in part.get(name, []))
            assert found == list(range(1000 * index, 1000 * index + n_trials))
        assert all(own for part in parts for own in part.values())


def test_all_sessions_are_in_every_batch_alike_and_end_together():
    parts = parts_of(SessionBatches(make_sessions(UNEQUAL), 12, 0), 0)
    assert len(parts) == 5
    for name, n_trials in UNEQUAL.items():
        sizes = [len(part[name]) for part in parts]
        assert set(sizes) <= {n_trials // 5, n_trials // 5 + 1}


@pytest.mark.parametrize(
    ("sizes", "batch_size"), [([3] * 4, 3), ([20] * 10, 8), ([1] * 5, 2), ([7] * 3, 4), ([40, 1, 2, 2], 5)], ids=str
)
def test_no_batch_is_empty_or_larger_than_the_batch_size(sizes, batch_size):
    sessions = make_sessions({f"session {i}": n_trials for i, n_trials in enumerate(sizes)})
    found = [sum(map(len, part.values())) for part in parts_of(SessionBatches(sessions, batch_size, 0), 0)]
    assert min(found) >= 1
    assert max(found) <= batch_size


def test_order_of_sessions_depends_on_seed_and_epoch_alone():
    sessions = make_sessions(UNEQUAL)
    first = order_of(SessionBatches(sessions, 12, 3), 5)
    torch.manual_seed(0)
    batches = SessionBatches(sessions, 19, 3)
    order_of(batches, 4)
    assert order_of(batches, 5) == first
    other_epoch, other_seed = order_of(batches, 6), order_of(SessionBatches(sessions, 12, 4), 5)
    for name in UNEQUAL:
        assert other_epoch[name] != first[name]
        assert other_seed[name] != first[name]


def test_the_order_of_a_session_depends_on_its_name_and_not_on_the_others():
    sessions = make_sessions({"a": 15, "b": 15})
    both = order_of(SessionBatches(sessions, 10, 0), 0)
    assert both["a"] != [trial - 1000 for trial in both["b"]]
    alone = SessionBatches({"b": sessions["b"]}, 10, 0)
    assert order_of(alone, 0)["b"] == both["b"]


def test_without_a_seed_sessions_keep_their_order():
    found = order_of(SessionBatches(make_sessions(UNEQUAL), 12), 4)
    for index, (name, n_trials) in enumerate(UNEQUAL.items()):
        assert found[name] == list(range(1000 * index, 1000 * index + n_trials))


def test_tensors_of_a_session_belong_to_the_same_trials():
    sessions = make_sessions(UNEQUAL)
    for own in sessions.values():
        own["y"] = 2 * own["x"]
    for batch in SessionBatches(sessions, 12, 0):
        for name, own in batch.items():
            assert set(own) == {"x", "y", "weight", "trial_index"}
            assert torch.equal(own["y"], 2 * own["x"])
            assert torch.equal(sessions[name]["x"][own["trial_index"]], own["x"])


@pytest.mark.parametrize("seed", [None, 3])
def test_batches_say_which_trials_they_hold(seed):
    values = torch.randn(11, 2, generator=generator(1))
    batches = Batches({"values": values}, 4, seed)
    for one in (batches, batches.to(torch.device("cpu"))):
        one.set_epoch(1)
        found = list(one)
        for batch in found:
            assert batch["trial_index"].dtype == torch.int64
            assert torch.equal(values[batch["trial_index"]], batch["values"])
        assert sorted(torch.cat([batch["trial_index"] for batch in found]).tolist()) == list(range(11))


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_shares_of_sessions_are_their_valid_bins_and_sum_to_one(missing):
    sessions = make_sessions(UNEQUAL, missing=missing)
    batches = SessionBatches(sessions, 12, 0)
    total = sum(own["weight"].numpy().mean(2).sum() for own in sessions.values())
    shares = []
    for batch in batches:
        shares.append(float(batches.share(batch)))
        bins = sum(own["weight"].numpy().mean(2).sum() for own in batch.values())
        assert shares[-1] == pytest.approx(bins / total, rel=1e-5)
    assert sum(shares) == pytest.approx(1, rel=1e-5)
    assert np.std(shares) > 0.001 or missing == 0


def test_batches_of_a_session_hold_what_they_were_given_on_the_device():
    batches = SessionBatches(make_sessions(UNEQUAL), 12, 3)
    moved = batches.to(torch.device("cpu"))
    assert parts_of(moved, 2) == parts_of(batches, 2)
    assert set(batches.tensors) == {f"{name}/{key}" for name in UNEQUAL for key in ("x", "weight")}


def mean_over(values, weight):
    weight = np.broadcast_to(weight, values.shape)
    return (weight * values).sum() / weight.sum()


@pytest.mark.parametrize("what", ["nothing", "padding", "missing values"])
def test_means_of_batches_weighted_by_share_are_the_mean_over_all_values(what):
    rng = np.random.default_rng(0)
    values, weight = rng.normal(size=(23, 6, 5)).astype(np.float32), np.ones((23, 6, 1), np.float32)
    if what == "padding":
        weight[...] = np.arange(6)[None, :, None] < rng.integers(1, 7, 23)[:, None, None]
    if what == "missing values":
        weight = (rng.random((23, 6, 5)) < np.linspace(0.2, 1, 23)[:, None, None]).astype(np.float32)
    batches = Batches({"values": torch.from_numpy(values), "weight": torch.from_numpy(weight)}, 5, 0)
    shares = [float(batches.share(batch)) for batch in batches]
    means = [mean_over(batch["values"].numpy(), batch["weight"].numpy()) for batch in batches]
    assert sum(shares) == pytest.approx(1, rel=1e-5)
    assert np.dot(shares, means) == pytest.approx(mean_over(values, weight), rel=1e-4)


def test_without_weights_the_share_of_a_batch_is_that_of_its_trials():
    batches = Batches({"x": torch.arange(10)}, 4)
    assert [batches.share(batch) for batch in batches] == [0.4, 0.4, 0.2]
