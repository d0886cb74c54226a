"""BAND: LFADS plus a weighted error of behaviour, by hand; without weight LFADS itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lfads_by_hand import NO_POSTERIOR, forward, generator, make_batch, make_model, weights_of

from ctdb import models, training
from ctdb.datasets import MultiSession, SpikeDataset, Split
from ctdb.errors import DatasetError
from ctdb.files import read_hdf5

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = {"behavior": ["x", "y", "force"]}
GROUPS = {"hand": {"channels": ["x", "y"], "weight": 2.0}, "force": {"channels": [2], "weight": 0.5}}


def make_data(make_dataset, missing=True, lengths=True, **shape):
    """Behaviour in three units, with samples of its own missing and nonsense in the padding."""
    data = make_dataset(behavior=3, names=NAMES, **shape)
    rng, splits = np.random.default_rng(0), {}
    for name, split in data.splits.items():
        behavior = split.behavior * [3.0, 0.01, 100.0] + [5.0, 0.0, -300.0]
        behavior = behavior.astype(np.float32)
        if missing:
            behavior[rng.random(behavior.shape) < 0.3] = np.nan
        n_bins = np.r_[data.n_bins, rng.integers(2, data.n_bins, split.n_trials - 1)] if lengths else None
        if lengths:
            behavior[np.arange(behavior.shape[1]) >= n_bins[:, None]] = 1e6
        splits[name] = replace(split, behavior=behavior, n_bins=n_bins)
    return SpikeDataset(splits, 0.01, NAMES)


def known(split):
    """Behaviour, NaN where it is padding or missing."""
    behavior = split.behavior.astype(float)
    if split.n_bins is not None:
        behavior[np.arange(behavior.shape[1]) >= split.n_bins[:, None]] = np.nan
    return behavior


def error_by_hand(model, data, split, factors, channel_weights):
    """Weighted sum over channels of the mean squared error in standard deviations of the train trials."""
    w, train, target = weights_of(model), known(data["train"]), known(split)
    mean, std = np.nanmean(train, (0, 1)), np.nanstd(train, (0, 1))
    n_trials, length, _ = factors.shape
    if model.settings.behavior.decoder == "linear":
        decoded = factors @ w["behavior.map.weight"].T + w["behavior.map.bias"]
    else:
        decoded = factors.reshape(n_trials, -1) @ w["behavior.map.weight"].T + w["behavior.map.bias"]
        decoded = decoded.reshape(n_trials, length, -1)
    squares = (decoded[:, : target.shape[1]] - (target - mean) / std) ** 2
    return (channel_weights * np.nanmean(squares, (0, 1))).sum(), decoded * std + mean


@pytest.mark.parametrize("decoder", ["linear", "sequence"])
@pytest.mark.parametrize(
    ("groups", "channel_weights"),
    [({}, np.full(3, 1 / 3)), (GROUPS, np.array([1.0, 1.0, 0.5]))],
    ids=["plain", "groups"],
)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("lengths", [False, True])
def test_loss_adds_the_weighted_error_in_standard_deviations(
    lengths, missing, groups, channel_weights, decoder, make_dataset
):
    data = make_data(make_dataset, missing, lengths)
    changed = NO_POSTERIOR | {"behavior": {"decoder": decoder, "groups": groups}}
    band, lfads = make_model(data, "band", behavior_weight=0.7, **changed), make_model(data, **changed)
    lfads.load_state_dict(band.state_dict())
    for name in ("train", "valid"):
        split = data[name]
        batch = make_batch(band, split)
        factors = band.infer(split)["factors"].numpy()
        error, decoded = error_by_hand(band, data, split, factors, channel_weights)
        np.testing.assert_allclose(band.infer(split)["behavior"].numpy(), decoded, rtol=1e-6, atol=1e-6)
        for mode in (True, False):
            loss, terms = band.train(mode).loss_and_terms(batch, generator())
            without = lfads.train(mode).loss(batch, generator()).item()
            assert terms["behavior"].item() == pytest.approx(error, rel=1e-6)
            assert loss.item() == pytest.approx(without + 0.7 * error, rel=1e-6)


def test_behavior_may_end_with_the_bins_that_are_seen(make_dataset):
    data = make_dataset(n_recon_bins=9, behavior=3, truth=False)
    data = SpikeDataset(
        {name: replace(split, behavior=split.behavior[:, :6]) for name, split in data.splits.items()}, 0.01, NAMES
    )
    model = make_model(data, "band", **NO_POSTERIOR).eval()
    split = data["valid"]
    expected, decoded = error_by_hand(model, data, split, model.infer(split)["factors"].numpy(), np.full(3, 1 / 3))
    _, terms = model.loss_and_terms(make_batch(model, split), generator())
    assert terms["behavior"].item() == pytest.approx(expected, rel=1e-6)
    assert decoded.shape[1] == 9
    np.testing.assert_allclose(model.infer(split)["behavior"].numpy(), decoded, rtol=1e-6, atol=1e-6)


def test_where_no_behavior_is_known_nothing_is_learned_from_it(make_dataset):
    data = make_data(make_dataset, lengths=False)
    model = make_model(data, "band", behavior_weight=1.0).train()
    split = data["train"]
    batch = make_batch(model, replace(split, behavior=np.full_like(split.behavior, np.nan)))
    loss, terms = model.loss_and_terms(batch, generator())
    assert terms["behavior"].item() == 0
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    assert not model.behavior.map.weight.grad.any()


def test_behavior_shapes_the_factors_as_finite_differences_say(make_dataset):
    data = make_data(make_dataset, n_trials=4)
    model = make_model(data, "band", behavior_weight=1.0, behavior={"dropout": 0.3, "decoder": "sequence"}).train()
    batch = make_batch(model, data["train"])
    model.loss(batch, generator(3)).backward()
    with torch.no_grad():
        for name in ("behavior.map.weight", "behavior.map.bias", "generator.weight_hh", "ic_encoder.ahead.weight_ih"):
            weight = model.get_parameter(name)
            direction, values = torch.randn(weight.shape, generator=generator(1)).double(), []
            for step in (1e-6, -1e-6):
                weight.add_(step * direction)
                values.append(model.loss(batch, generator(3)).item())
                weight.sub_(step * direction)
            slope = (values[0] - values[1]) / 2e-6
            assert (weight.grad * direction).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-8), name


@pytest.mark.parametrize("decoder", ["linear", "sequence"])
def test_the_decoders_dropout_is_drawn_in_training_from_the_generator(decoder, make_dataset):
    data = make_data(make_dataset)
    behavior = {"decoder": decoder, "dropout": 0.5}
    model = make_model(data, "band", behavior_weight=1.0, behavior=behavior, **NO_POSTERIOR)
    batch = make_batch(model, data["train"])
    losses = [model.train().loss_and_terms(batch, generator(seed)) for seed in (0, 0, 1)]
    assert losses[0][0] == losses[1][0] != losses[2][0]
    assert losses[0][1]["nll"] == losses[2][1]["nll"]
    assert model.eval().loss(batch, generator(0)) == model.loss(batch, generator(1))


def test_kl_targets_hold_the_penalty_at_its_distance(make_dataset):
    data = make_data(make_dataset)
    split = data["train"]
    losses = {}
    for targets in ((0.0, 0.0), (2.0, 0.0), (0.0, 300.0)):
        model = make_model(
            data, "band", kl_ic_target=targets[0], kl_co_target=targets[1], kl_increase_epoch=0, kl_co_scale=0.5
        ).train()
        losses[targets] = model.loss_and_terms(make_batch(model, split), generator())
    (plain, terms), (ic, _), (co, _) = losses.values()
    values_per_trial = split.n_bins.sum() * data.n_neurons / split.n_trials
    kl_ic, kl_co = terms["kl_ic"].item(), terms["kl_co"].item()
    assert kl_co < 300
    assert (ic - plain).item() == pytest.approx((abs(kl_ic - 2) - kl_ic) / values_per_trial, rel=1e-9)
    assert (co - plain).item() == pytest.approx(0.5 * (300 - 2 * kl_co) / values_per_trial, rel=1e-9)


@pytest.mark.parametrize("decoder", ["linear", "sequence"])
def test_without_weight_it_is_lfads_bit_for_bit(decoder, make_dataset, tmp_path):
    data = make_data(make_dataset, n_trials=16)
    common = {
        **{"ic_enc_dim": 3, "ic_dim": 2, "ci_enc_dim": 2, "con_dim": 3, "co_dim": 1, "gen_dim": 4, "fac_dim": 2},
        **{"n_samples": 4, "behavior": {"decoder": decoder, "dropout": 0.2}, "l2_gen_scale": 0.1},
        "training": {"max_epochs": 3, "batch_size": 6, "learning_rate": 0.01},
    }
    fits = {}
    for kind, own in {"lfads": {}, "band": {"behavior_weight": 0.0}}.items():
        spec = {"kind": kind} | common | own
        training.fit(models.build(spec, data), data, spec, tmp_path / kind)
        fits[kind] = read_hdf5(tmp_path / kind / "output.h5")[0]
    assert (tmp_path / "lfads/weights.safetensors").read_bytes() == (tmp_path / "band/weights.safetensors").read_bytes()
    assert (tmp_path / "lfads/history.csv").read_text() == (tmp_path / "band/history.csv").read_text()
    assert fits["lfads"].keys() == fits["band"].keys()
    assert "test_behavior" in fits["band"]
    for name, value in fits["lfads"].items():
        np.testing.assert_array_equal(value, fits["band"][name], err_msg=name)


def test_a_decoder_that_was_trained_is_not_fitted_again(make_dataset):
    data = make_data(make_dataset)
    for weight, refitted in ((0.1, False), (0.0, True)):
        model = make_model(data, "band", behavior_weight=weight)
        before = model.behavior.map.weight.detach().clone()
        model.finish(data)
        assert torch.equal(model.behavior.map.weight, before) != refitted


def test_training_brings_behavior_back_in_its_own_units(tmp_path):
    rng, splits = np.random.default_rng(0), {}
    loading = rng.normal(scale=0.5, size=(2, 12))
    for name, n_trials in {"train": 60, "valid": 20}.items():
        latent = np.repeat(rng.normal(size=(n_trials, 1, 2)), 6, 1)
        counts = rng.poisson(np.exp(latent @ loading + 1.5)).astype(np.float32)
        behavior = (latent @ [[40.0, 0.0], [0.0, 0.001]] + [100.0, 5.0]).astype(np.float32)
        splits[name] = Split(encod_data=counts, recon_data=counts, behavior=behavior)
    data = SpikeDataset(splits, 0.01)
    spec = {
        **{"kind": "band", "ic_enc_dim": 12, "ic_dim": 6, "ci_enc_dim": 0, "con_dim": 0, "co_dim": 0, "gen_dim": 12},
        **{"fac_dim": 4, "n_samples": 1, "behavior_weight": 1.0, "dropout_rate": 0.0, "cd_rate": 0.0},
        "training": {"max_epochs": 40, "batch_size": 20, "learning_rate": 0.01},
    }
    model = models.build(spec, data)
    training.fit(model, data, spec, tmp_path)
    decoded = model.infer(data["valid"])["behavior"].numpy()
    truth = data["valid"].behavior
    assert (((decoded - truth) ** 2).mean((0, 1)) < 0.3 * truth.var((0, 1))).all()


def test_sessions_without_behavior_are_fitted_with_those_that_have_it(make_dataset):
    with_it = make_data(make_dataset, lengths=False)
    without = make_dataset(n_heldin=3, n_heldout=1, seed=5)
    data = MultiSession({"blind": without, "seen": with_it})
    model = make_model(data, "band", behavior_weight=0.7, readin={"kind": "linear", "dim": 3}, **NO_POSTERIOR).eval()
    batch = {name: make_batch(model, session["train"], name) for name, session in data.sessions.items()}
    alone = {name: model.loss({name: one}, generator()).item() for name, one in batch.items()}
    assert model.loss(batch, generator()).item() == pytest.approx(sum(alone.values()) / 2, rel=1e-12)
    factors = model.infer(with_it["train"], "seen")["factors"].numpy()
    error, _ = error_by_hand(model, with_it, with_it["train"], factors, np.full(3, 1 / 3))
    _, terms = model.loss_and_terms({"seen": batch["seen"]}, generator())
    assert terms["behavior"].item() == pytest.approx(error, rel=1e-6)
    assert model.infer(without["test"], "blind")["behavior"].shape == (4, 6, 3)


def test_a_channel_that_says_nothing_is_refused_by_name(make_dataset):
    data = make_data(make_dataset)
    data["train"].behavior[:, :, 1] = 7
    with pytest.raises(DatasetError, match=r"train_behavior: channel 'y' is always 7 in the train trials"):
        models.build({"kind": "band"}, data)
    data["train"].behavior[:, :, 1] = np.nan
    with pytest.raises(DatasetError, match=r"train_behavior: channel 'y' is never known in the train trials"):
        models.build({"kind": "lfads"}, data)


@pytest.mark.parametrize(("channel", "message"), [("z", "'z'"), (3, "3"), (-1, "-1")])
def test_an_unknown_channel_of_a_group_is_refused(channel, message, make_dataset):
    spec = {"kind": "band", "behavior": {"groups": {"hand": {"channels": ["x", channel]}}}}
    with pytest.raises(
        DatasetError, match=rf"behavior\.groups\.hand: there is no channel {message}; the dataset has \["
    ):
        models.build(spec, make_data(make_dataset))


def test_a_dataset_without_behavior_is_refused(make_dataset):
    with pytest.raises(DatasetError, match="no `behavior`; give it one, or fit `lfads`"):
        models.build({"kind": "band"}, make_dataset())


def test_its_dynamics_are_those_of_lfads(make_dataset):
    data = make_data(make_dataset, lengths=False)
    model, split = make_model(data, "band"), data["test"]
    expected = forward(model, split.encod_data, np.zeros((split.n_trials, 6, 0)), 6)
    inferred = model.infer(split)
    for name in ("rates", "factors", "latents", "ic_mean", "ic_std", "co_means", "co_stds"):
        np.testing.assert_allclose(inferred[name].numpy(), getattr(expected, name), rtol=1e-8, atol=1e-10)
