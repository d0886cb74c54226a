"""Read-ins that join sessions, against scikit-learn's principal components and ridge regression."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lfads_by_hand import SIZES, generator, make_batch
from scipy.ndimage import gaussian_filter1d
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from ctdb import models, training
from ctdb.datasets import MultiSession, SpikeDataset, Split
from ctdb.errors import DatasetError
from ctdb.models.readin import condition_means

pytestmark = pytest.mark.usefixtures("one_thread")

CONDITIONS, BINS, LATENTS = 5, 8, 3
BIN_S = 0.02


def make_latents(seed=0, bins=BINS):
    """Smooth latents (conditions, bins, latents) of unequal size."""
    rng = np.random.default_rng(seed)
    time, shape = np.arange(bins)[:, None], (CONDITIONS, 1, LATENTS)
    waves = rng.normal(size=shape) * np.sin(time / 3 + rng.uniform(0, 6, shape)) + rng.normal(size=shape)
    return waves * [1.0, 0.6, 0.3]


def make_session(seed, n_heldin, n_heldout=2, per_condition=40, bins=BINS, conditions=range(CONDITIONS), rate=4.0):
    """Poisson spikes of neurons that are views of their own on the same latents."""
    rng = np.random.default_rng(seed)
    latents, loading = make_latents()[:, :bins], rng.normal(size=(LATENTS, n_heldin + n_heldout)) * 0.3
    base = rng.uniform(0.5, 1.5, n_heldin + n_heldout) * rate

    def split(n):
        condition = rng.permutation(np.repeat(list(conditions), n))
        counts = rng.poisson(base * np.maximum(1 + latents[condition] @ loading, 0.05)).astype(np.float32)
        return Split(encod_data=counts[:, :, :n_heldin].copy(), recon_data=counts, condition=condition)

    return SpikeDataset({"train": split(per_condition), "valid": split(2), "test": split(2)}, BIN_S)


def build(sessions, readin, **changed):
    data = sessions if isinstance(sessions, SpikeDataset) else MultiSession(sessions)
    return models.build({"kind": "lfads"} | SIZES | {"readin": {"kind": "pcr"} | readin} | changed, data)


def means_by_hand(split, smoothing_s=0.0):
    """Condition means (conditions, bins, neurons) over the values that were recorded."""
    counts = split.recon_data.astype(float)
    if split.n_bins is not None:
        counts[np.arange(counts.shape[1]) >= split.n_bins[:, None]] = np.nan
    found = np.stack([np.nanmean(counts[split.condition == one], 0) for one in np.unique(split.condition)])
    return found if smoothing_s == 0 else smoothed_by_hand(found, smoothing_s / BIN_S)


def smoothed_by_hand(values, deviation):
    """Normal kernel, its weights made to sum to 1 where it reaches over an edge."""
    result = np.zeros_like(values)
    for t in range(values.shape[1]):
        weights = [np.exp(-((t - other) ** 2) / (2 * deviation**2)) for other in range(values.shape[1])]
        result[:, t] = sum(w * values[:, other] for other, w in enumerate(weights)) / sum(weights)
    return result


def channels(model, index, values):
    """What the encoders see of signals (..., neurons), in float64."""
    layer = model.readin[index]
    with torch.no_grad():
        return values @ layer.weight.double().numpy().T + layer.bias.double().numpy()


@pytest.mark.parametrize("smoothing_s", [0.0, 0.03])
def test_condition_means_are_those_of_what_was_recorded_smoothed_in_time(smoothing_s):
    split = make_session(0, 4)["train"]
    rng = np.random.default_rng(1)
    recon = split.recon_data.copy()
    recon[rng.random(recon.shape) < 0.1] = np.nan
    split = replace(split, recon_data=recon, n_bins=np.r_[[BINS] * 100, rng.integers(2, BINS, split.n_trials - 100)])
    found = condition_means(split, BIN_S, smoothing_s)
    assert list(found) == list(range(CONDITIONS))
    np.testing.assert_allclose(np.stack(list(found.values())), means_by_hand(split, smoothing_s), rtol=1e-10)
    assert np.array_equal(condition_means(split, None, 0.03)[2], condition_means(split, BIN_S, 0.0)[2])


def test_smoothing_is_the_usual_normal_filter_away_from_the_edges():
    split = make_session(0, 4)["train"]
    long = replace(split, **{name: np.tile(getattr(split, name), (1, 6, 1)) for name in ("encod_data", "recon_data")})
    found = condition_means(long, BIN_S, 2 * BIN_S)[0]
    expected = gaussian_filter1d(means_by_hand(long)[0], 2.0, axis=0, truncate=8)
    np.testing.assert_allclose(found[18:-18], expected[18:-18], rtol=1e-6)


def test_sessions_that_view_the_same_latents_are_read_alike():
    sessions = {"a": make_session(1, 20), "b": make_session(2, 30)}
    model = build(sessions, {"dim": 2, "ridge": 1.0, "smoothing_s": BIN_S})
    seen = [
        channels(model, index, means_by_hand(session["test"], BIN_S)[..., : session.n_heldin]).reshape(-1, 2)
        for index, session in enumerate(sessions.values())
    ]
    for channel in range(2):
        assert np.corrcoef(seen[0][:, channel], seen[1][:, channel])[0, 1] > 0.8
    random = build(sessions, {"kind": "linear", "dim": 2})
    seen = [
        channels(random, index, means_by_hand(session["test"], BIN_S)[..., : session.n_heldin]).reshape(-1, 2)
        for index, session in enumerate(sessions.values())
    ]
    assert not all(np.corrcoef(seen[0][:, channel], seen[1][:, channel])[0, 1] > 0.8 for channel in range(2))


@pytest.mark.parametrize("ridge", [1e-3, 5.0, 200.0])
def test_read_ins_are_ridge_regressions_of_the_joint_principal_components(ridge):
    sessions = {"a": make_session(1, 6), "b": make_session(2, 4, 3)}
    model = build(sessions, {"dim": 4, "ridge": ridge, "smoothing_s": 0.03})
    means = [means_by_hand(session["train"], 0.03).reshape(CONDITIONS * BINS, -1) for session in sessions.values()]
    components = PCA(4, svd_solver="full").fit_transform(np.concatenate(means, 1))
    for index, (own, session) in enumerate(zip(means, sessions.values(), strict=True)):
        heldin = own[:, : session.n_heldin]
        expected = Ridge(alpha=ridge).fit(heldin, components).predict(heldin)
        found = channels(model, index, heldin)
        signs = np.sign((found * expected).sum(0))  # of a component, which is arbitrary
        np.testing.assert_allclose(found * signs, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        if index == 0:
            first = signs
        assert (signs == first).all()  # but the same in all sessions


def test_readouts_start_at_the_least_squares_share_of_each_neuron_in_the_components():
    sessions = {"a": make_session(1, 6), "b": make_session(2, 4, 3)}
    model = build(sessions, {"dim": 2, "smoothing_s": 0.03}, fac_dim=3)
    means = [means_by_hand(session["train"], 0.03).reshape(CONDITIONS * BINS, -1) for session in sessions.values()]
    components = PCA(3, svd_solver="full", whiten=True).fit_transform(np.concatenate(means, 1))
    signs = None
    for index, (own, session) in enumerate(zip(means, sessions.values(), strict=True)):
        relative = own / own.mean(0) - 1
        expected = np.linalg.lstsq(components / components.std(0), relative, rcond=None)[0].T
        found = model.readout[index].weight.detach().numpy()
        signs = np.sign((found * expected).sum(0)) if signs is None else signs
        np.testing.assert_allclose(found * signs, expected, rtol=1e-4, atol=1e-6)
        bias = model.readout[index].bias.detach().numpy()
        np.testing.assert_allclose(np.exp(bias), session["train"].recon_data.mean((0, 1)), rtol=1e-5)


def test_conditions_and_bins_that_all_sessions_share_are_used():
    a, b = make_session(1, 6), make_session(2, 5, bins=6, conditions=[0, 2, 4])
    model = build({"a": a, "b": b}, {"dim": 2, "smoothing_s": 0.0})
    means = [means_by_hand(a["train"])[[0, 2, 4], :6].reshape(18, -1), means_by_hand(b["train"]).reshape(18, -1)]
    components = PCA(2, svd_solver="full").fit_transform(np.concatenate(means, 1))
    for index, heldin in enumerate((means[0][:, :6], means[1][:, :5])):
        expected = Ridge(alpha=1.0).fit(heldin, components).predict(heldin)
        found = channels(model, index, heldin)
        np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_only_bins_that_are_seen_are_used():
    a, b = make_session(1, 6), make_session(2, 5)
    short = {name: replace(split, encod_data=split.encod_data[:, :5]) for name, split in a.splits.items()}
    found = build({"a": SpikeDataset(short, BIN_S), "b": b}, {"dim": 2, "smoothing_s": 0.0})
    cut = {
        name: replace(split, encod_data=split.encod_data[:, :5], recon_data=split.recon_data[:, :5])
        for name, split in a.splits.items()
    }
    expected = build({"a": SpikeDataset(cut, BIN_S), "b": b}, {"dim": 2, "smoothing_s": 0.0})
    for ours, theirs in zip(found.readin.parameters(), expected.readin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_session_can_be_read_through_its_components():
    model = build(make_session(1, 6), {"dim": 2})
    assert model.readin[0].out_features == 2
    assert build(make_session(1, 6), {}).readin[0].out_features == SIZES["fac_dim"]


def test_what_regression_needs_is_asked_for():
    a, b = make_session(1, 6), make_session(2, 6)
    blind = SpikeDataset({name: replace(split, condition=None) for name, split in b.splits.items()}, BIN_S)
    with pytest.raises(DatasetError, match="needs the `condition` of every trial; choose 'linear'"):
        build({"a": a, "b": blind}, {"dim": 2})
    apart = SpikeDataset(
        {name: replace(split, condition=split.condition + 10) for name, split in b.splits.items()}, BIN_S
    )
    with pytest.raises(DatasetError, match="needs a `condition` that occurs in every session"):
        build({"a": a, "b": apart}, {"dim": 2})
    few = {name: make_session(seed, 3, 0) for seed, name in enumerate("ab")}
    with pytest.raises(
        DatasetError, match=r"readin\.dim is 7, but the condition means have only 6 components; lower it"
    ):
        build(few, {"dim": 7})


@pytest.mark.parametrize("kind", ["pcr", "linear"])
def test_a_frozen_read_in_stays_as_it_started(kind, tmp_path):
    data = MultiSession({"a": make_session(1, 6, per_condition=2), "b": make_session(2, 4, per_condition=2)})
    readin = {"kind": kind, "dim": 2}
    for freeze in (True, False):
        spec = {"kind": "lfads"} | SIZES | {"readin": readin | {"freeze": freeze}}
        spec |= {"n_samples": 1, "training": {"max_epochs": 1, "batch_size": 10, "learning_rate": 0.01}}
        model = models.build(spec, data)
        before = [value.detach().clone() for value in model.readin.parameters()]
        batch = {name: make_batch(model, session["train"], name) for name, session in data.sessions.items()}
        model.double().train().loss(batch, generator()).backward()
        assert all((value.grad is None) == freeze for value in model.readin.parameters())
        model.zero_grad()
        training.fit(model.float(), data, spec, tmp_path / str(freeze))
        for ours, theirs in zip(before, model.readin.parameters(), strict=True):
            assert torch.equal(ours, theirs) == freeze


def test_condition_means_are_those_of_the_bins_that_trials_have():
    ones = np.ones((2, 6, 1), np.float32)
    split = Split(encod_data=ones, recon_data=ones, n_bins=np.array([3, 3]), condition=np.array([0, 0]))
    np.testing.assert_allclose(condition_means(split, 0.01, 0.02)[0], 1)
