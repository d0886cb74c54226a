"""The behaviour decoder that is fitted to the factors of a finished model, against known maps and scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lfads_by_hand import make_model
from sklearn.linear_model import LinearRegression

from ctdb import models
from ctdb.datasets import MultiSession, SpikeDataset
from ctdb.models.behavior import BehaviorDecoder, BehaviorSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def with_behavior(data, behave, **changed):
    """The same spikes with behaviour made from the very factors that the untrained model infers; model and data."""
    model = make_model(data, **changed)
    splits = {}
    for name, split in data.splits.items():
        behavior = behave(model.infer(split)["factors"].numpy())
        splits[name] = replace(split, behavior=behavior.astype(np.float32))
    data = SpikeDataset(splits, data.bin_s)
    return make_model(data, **changed), data


def linear_map(factors):
    return factors @ [[300.0, 0.0], [-10.0, 0.02], [50.0, 0.01]] + [1000.0, -3.0]


def delayed_map(factors):
    """Bin t from the factors two bins before and one after: only a decoder that sees all bins can know it."""
    return linear_map(np.roll(factors, 2, 1)) + linear_map(np.roll(factors, -1, 1))


@pytest.mark.parametrize("decoder", ["linear", "sequence"])
def test_a_linear_map_of_the_factors_is_recovered_in_its_own_units(decoder, make_dataset):
    model, data = with_behavior(make_dataset(n_trials=60), linear_map, behavior={"decoder": decoder})
    before = model.infer(data["test"])
    model.finish(data)
    after = model.infer(data["test"])
    truth = data["test"].behavior
    assert (np.abs(before["behavior"].numpy() - truth) / truth.std((0, 1))).max() > 0.5
    np.testing.assert_allclose(
        (after["behavior"].numpy() - truth) / truth.std((0, 1)), 0, atol=0.05 if decoder == "sequence" else 1e-3
    )
    for name, value in before.items():
        assert name == "behavior" or torch.equal(value, after[name])


def test_only_a_sequence_decoder_sees_other_bins(make_dataset):
    errors = {}
    for decoder in ("linear", "sequence"):
        model, data = with_behavior(make_dataset(n_trials=60), delayed_map, behavior={"decoder": decoder})
        model.finish(data)
        truth = data["test"].behavior
        error = model.infer(data["test"])["behavior"].numpy() - truth
        errors[decoder] = (error**2).mean((0, 1)) / truth.var((0, 1))
    assert (errors["sequence"] < 1e-4).all()
    assert (errors["linear"] > 0.05).all()


@pytest.mark.parametrize("decoder", ["linear", "sequence"])
def test_missing_behavior_and_padding_are_left_out(decoder, make_dataset):
    model, data = with_behavior(make_dataset(n_trials=120), linear_map, behavior={"decoder": decoder})
    rng = np.random.default_rng(0)
    splits = {}
    for name, split in data.splits.items():
        behavior = split.behavior.copy()
        n_bins = rng.integers(4, 7, split.n_trials)
        behavior[rng.random(behavior.shape) < 0.2] = np.nan
        splits[name] = replace(split, behavior=behavior, n_bins=n_bins)
        padding = np.arange(6) >= n_bins[:, None]
        for array in (split.encod_data, split.recon_data):
            array[padding] = 0
    # factors of a padded trial differ, so behaviour is made from those of the padded one
    padded = SpikeDataset({name: replace(split, behavior=None) for name, split in splits.items()}, 0.01)
    model = make_model(padded)
    for name, split in splits.items():
        whole = linear_map(model.infer(split)["factors"].numpy()).astype(np.float32)
        known = ~np.isnan(split.behavior)
        known &= (np.arange(6) < split.n_bins[:, None])[..., None]
        splits[name] = replace(split, behavior=np.where(known, whole, np.nan))
        splits[name].behavior[np.arange(6) >= split.n_bins[:, None]] = 1e9
    data = SpikeDataset(splits, 0.01)
    model = make_model(data, behavior={"decoder": decoder})
    model.finish(data)
    test = data["test"]
    inferred = model.infer(test)
    truth, valid = linear_map(inferred["factors"].numpy()), np.arange(6) < test.n_bins[:, None]
    error = (inferred["behavior"].numpy() - truth)[valid] / truth[valid].std(0)
    np.testing.assert_allclose(error, 0, atol=1e-3 if decoder == "linear" else 0.1)


def test_the_decoder_is_fitted_to_all_sessions_together(make_dataset):
    readin = {"readin": {"kind": "linear", "dim": 3}}
    sessions = {"a": make_dataset(n_trials=20, seed=1), "b": make_dataset(n_trials=30, n_heldin=3, seed=2)}
    model = make_model(MultiSession(sessions), **readin)
    noisy, rng = {}, np.random.default_rng(0)
    for name, session in sessions.items():
        splits = {}
        for split, trials in session.splits.items():
            behavior = linear_map(model.infer(trials, name)["factors"].numpy())
            behavior = behavior + (0.1 * rng.normal(size=behavior.shape) + (name == "b")) * behavior.std((0, 1))
            splits[split] = replace(trials, behavior=behavior.astype(np.float32))
        noisy[name] = SpikeDataset(splits, 0.01)
    data = MultiSession(noisy)
    model = make_model(data, **readin)
    model.finish(data)
    pairs = [
        (
            model.infer(session["train"], name)["factors"].numpy().reshape(-1, 3),
            session["train"].behavior.reshape(-1, 2),
        )
        for name, session in noisy.items()
    ]
    factors, behavior = (np.concatenate(column) for column in zip(*pairs, strict=True))
    together = LinearRegression().fit(factors, behavior)  # what ridge comes near to with so little noise
    for name, session in noisy.items():
        inferred = model.infer(session["test"], name)
        expected = together.predict(inferred["factors"].numpy().reshape(-1, 3)).reshape(inferred["behavior"].shape)
        error = (inferred["behavior"].numpy() - expected) / behavior.std(0)
        assert np.abs(error).max() < 0.05


def test_a_model_without_behavior_has_no_decoder(make_dataset):
    data = make_dataset()
    model = make_model(data)
    model.finish(data)
    assert "behavior" not in model.infer(data["test"])
    assert not any("behavior" in name for name in model.state_dict())


def test_a_sequence_decoder_sees_zeros_beyond_a_shorter_session():
    decoder = BehaviorDecoder(BehaviorSettings(decoder="sequence"), 3, 5, 2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in [*decoder.parameters(), decoder.mean, decoder.std]:
            value.copy_(torch.randn(value.shape, generator=generator))
    factors = torch.randn(4, 3, 3, generator=generator)
    padded = np.zeros((4, 5, 3), np.float32)
    padded[:, :3] = factors
    flat = padded.reshape(4, 15) @ decoder.map.weight.detach().numpy().T + decoder.map.bias.detach().numpy()
    expected = flat.reshape(4, 5, 2)[:, :3] * decoder.std.numpy() + decoder.mean.numpy()
    with torch.no_grad():
        np.testing.assert_allclose(decoder(factors).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_finished_model_comes_back_with_its_decoder(make_dataset, tmp_path):
    model, data = with_behavior(make_dataset(n_trials=60), linear_map)
    model.finish(data)
    model.save(tmp_path)
    found = models.load(tmp_path).infer(data["test"])["behavior"].numpy()
    truth = data["test"].behavior
    np.testing.assert_allclose((found - truth) / truth.std((0, 1)), 0, atol=1e-3)
