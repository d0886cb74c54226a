"""LFADS against its equations in numpy, scipy's densities, finite differences and Monte Carlo."""

from collections import defaultdict
from dataclasses import replace
from itertools import product

import h5py
import numpy as np
import pytest
import torch
from lfads_by_hand import (
    NO_CONTROLLER,
    NO_POSTERIOR,
    forward,
    generator,
    make_batch,
    make_model,
    next_state,
    normal_kl,
    weights_of,
)
from scipy.stats import gamma, kstest, norm, poisson

from ctdb import models, training
from ctdb.datasets import MultiSession, SpikeDataset
from ctdb.errors import ConfigError, DatasetError
from ctdb.recurrent import Linear, use_backend

pytestmark = pytest.mark.usefixtures("one_thread")

FORWARD = {
    "defaults": {},
    "gru": {"cell": "gru"},
    "clipped": {"cell_clip": 0.4},
    "no lag": {"ci_lag": 0},
    "lag 2": {"ci_lag": 2},
    "lag as long as the trial": {"ci_lag": 6},
    "causal": {"causal_con": True},
    "causal, no lag, gru": {"causal_con": True, "ci_lag": 0, "cell": "gru"},
    "initial condition from the first bins": {"ic_enc_seq_len": 3},
    "initial condition from the first bins, lag 2, causal": {"ic_enc_seq_len": 2, "ci_lag": 2, "causal_con": True},
    "no controller": NO_CONTROLLER,
    "no controller, gru": NO_CONTROLLER | {"cell": "gru"},
    "external input not used": {"use_ext_input": False},
    "no controller, external input not used": NO_CONTROLLER | {"use_ext_input": False},
    "linear read-in": {"readin": {"kind": "linear", "dim": 5}},
    "large least variance": {"ic_post_var_min": 0.5},
}
SHAPES = {"plain": {"ext_input": 2}, "no input, forward": {"n_recon_bins": 9}}


def external(split):
    return np.zeros((*split.recon_data.shape[:2], 0)) if split.ext_input is None else split.ext_input


def with_lengths(data, shortest=2, seed=3):
    """Same trials with valid lengths of their own, the first one whole."""
    rng = np.random.default_rng(seed)
    splits = {
        name: replace(split, n_bins=np.r_[data.n_bins, rng.integers(shortest, data.n_bins, split.n_trials - 1)])
        for name, split in data.splits.items()
    }
    return SpikeDataset(splits, data.bin_s)


def with_missing(data, fraction=0.3, seed=4):
    """Same trials with NaN where nothing was recorded: single values and whole bins."""
    splits = {}
    for index, (name, split) in enumerate(data.splits.items()):
        rng = np.random.default_rng([seed, index])
        recon = split.recon_data.copy()
        recon[rng.random(recon.shape) < fraction] = np.nan
        recon[rng.random(recon.shape[:2]) < fraction] = np.nan
        encod = recon[:, : split.encod_data.shape[1], : split.encod_data.shape[2]].copy()
        splits[name] = replace(split, recon_data=recon, encod_data=encod)
    return SpikeDataset(splits, data.bin_s, missing_spikes=True)


def watch(model, session=0):
    """What passes through a model, under whichever backend: lists with one entry per call.

    What the encoders see (`ic_encoder`, `ci_encoder`), initial conditions (`ic`), the generator's inputs and their
    posterior, log-rates, and what these are to predict (`targets`, 0 where it has no weight). The likelihood is given
    the log-rates as if they were factors, with a readout that is the identity, so that they can be differentiated.
    """
    seen = defaultdict(list)

    def instead(owner, method, make):
        setattr(owner, method, make(getattr(owner, method)))

    def noting_input(name):
        return lambda method: lambda inputs, *more: seen[name].append(inputs) or method(inputs, *more)

    def decode(method):
        def noted(*given, **options):
            made = method(*given, **options | {"states": True})
            for name in ("gen_inputs", "co_means", "co_stds"):
                seen[name].append(getattr(made, name))
            return made

        return noted

    def nll_sum(method):
        def noted(readout, factors, data, weight, learned=None):
            log_rates = readout(factors)
            seen["log_rates"].append(log_rates)
            seen["targets"].append(torch.where(weight > 0, data.to(log_rates), 0))
            size = log_rates.shape[-1]
            identity = Linear(torch.eye(size, dtype=log_rates.dtype), log_rates.new_zeros(size))
            return method(identity, log_rates, data, weight, learned)

        return noted

    instead(model.ic_encoder, "summary", noting_input("ic_encoder"))
    if model.settings.co_dim:
        instead(model.ci_encoder, "forward", noting_input("ci_encoder"))
    instead(model, "decode", decode)
    instead(model.observation[session], "nll_sum", nll_sum)
    model.ic_to_g0.register_forward_pre_hook(lambda _, given: seen["ic"].append(given[0]))
    return seen


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("changed", FORWARD.values(), ids=FORWARD)
def test_posterior_means_follow_the_equations(changed, shape, make_dataset):
    data = make_dataset(**shape)
    model, split = make_model(data, **changed), data["train"]
    inferred = model.infer(split)
    expected = vars(forward(model, split.encod_data, external(split), data.n_recon_bins))
    del expected["log_rates"]
    if expected["gen_inputs"].shape[2] == 0:
        del expected["gen_inputs"]
    assert inferred.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(inferred[name].numpy(), value, rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("changed", [{"ci_lag": 7}, {"ci_lag": 4, "ic_enc_seq_len": 3}])
def test_a_lag_longer_than_the_trial_leaves_the_controller_blind_or_is_refused(changed, make_dataset):
    data = make_dataset()
    try:
        model = make_model(data, **changed)
    except ConfigError:
        return
    split = data["train"]
    expected = forward(model, split.encod_data, external(split), 6).rates
    np.testing.assert_allclose(model.infer(split)["rates"].numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize("changed", FORWARD.values(), ids=FORWARD)
def test_a_padded_trial_is_inferred_as_if_its_padding_were_not_there(changed, make_dataset):
    data = with_lengths(make_dataset(ext_input=2))
    model, split = make_model(data, **changed), data["train"]
    inferred = model.infer(split)
    for trial, n_bins in enumerate(split.n_bins):
        alone = split.take(np.array([trial]))
        expected = forward(model, alone.encod_data[:, :n_bins], alone.ext_input, n_bins)
        for name, value in vars(expected).items():
            if name in inferred:
                found = inferred[name][trial].numpy()
                found = found if value.ndim == 2 else found[:n_bins]
                np.testing.assert_allclose(found, value[0], rtol=1e-8, atol=1e-10, err_msg=f"{name} {n_bins}")


def test_a_padded_trial_is_inferred_as_in_a_dataset_of_its_own_length(make_dataset):
    data = make_dataset(ext_input=2)
    split, n_bins = data["train"], 4
    short = SpikeDataset(
        {
            name: replace(
                one,
                **{key: value[:, :n_bins] for key, value in one.arrays().items()},
            )
            for name, one in data.splits.items()
        },
        data.bin_s,
    )
    model, other = make_model(data), make_model(short)
    other.load_state_dict(model.state_dict())
    padded = model.infer(replace(split, n_bins=np.full(split.n_trials, n_bins)))
    for name, value in other.infer(short["train"]).items():
        found = padded[name] if value.ndim == 2 else padded[name][:, :n_bins]
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-12)


def test_missing_spikes_are_seen_as_none(make_dataset):
    data = with_missing(make_dataset(ext_input=2))
    model, split = make_model(data), data["train"]
    assert np.isnan(split.encod_data).any()
    filled = np.nan_to_num(split.encod_data)
    expected = model.infer({"encod_data": filled, "ext_input": split.ext_input})
    for name, value in model.infer(split).items():
        assert torch.equal(value, expected[name])


LOSSES = {
    "defaults": {},
    "gru": {"cell": "gru"},
    "normal prior of inputs": {"co_prior": {"kind": "normal", "variance": 0.3}},
    "scales": {"kl_ic_scale": 0.3, "kl_co_scale": 2.0},
    "targets above and below": {"kl_ic_target": 1e3, "kl_co_target": 0.5},
    "no priors": NO_POSTERIOR,
    "no controller": NO_CONTROLLER,
    "weights": {"l2_ic_enc_scale": 0.2, "l2_ci_enc_scale": 0.3, "l2_gen_scale": 0.5, "l2_con_scale": 1.5},
    "weights of the generator": NO_CONTROLLER | {"l2_gen_scale": 0.5, "l2_con_scale": 1.5, "l2_ci_enc_scale": 1.0},
    "lfads-torch": {"kl_normalisation": "lfads_torch", "kl_ic_scale": 0.3, "kl_co_scale": 2.0},
    "lfads-torch, normal prior of inputs": {
        "kl_normalisation": "lfads_torch",
        "co_prior": {"kind": "normal", "variance": 0.3},
        "kl_ic_scale": 0.3,
        "kl_co_scale": 2.0,
    },
}
RAMPS = {"kl_start_epoch": 2, "kl_increase_epoch": 3, "l2_start_epoch": 1, "l2_increase_epoch": 1}
KL_RAMP = {0: 0, 1: 0, 2: 0.25, 3: 0.5, 4: 0.75, 5: 1, 50: 1}
L2_RAMP = {0: 0, 1: 0.5, 2: 1, 3: 1, 4: 1, 5: 1, 50: 1}
TRIALS = {
    "plain": lambda make: make(ext_input=2),
    "forward": lambda make: make(n_recon_bins=8),
    "lengths": lambda make: with_lengths(make()),
    "missing": lambda make: with_missing(make()),
    "lengths and missing": lambda make: with_missing(with_lengths(make(n_trials=6))),
}


def terms_by_hand(model, split, seen):
    """Negative log-likelihood per value and KL in nats per trial, of the very noise that was drawn."""
    s, w = model.settings, weights_of(model)
    n_trials, length, _ = split.recon_data.shape
    lengths = np.full(n_trials, length) if split.n_bins is None else split.n_bins
    ic, inputs = (seen[name][-1].detach().numpy() for name in ("ic", "gen_inputs"))
    nll, n_values, kl = 0.0, 0, defaultdict(float)
    for trial, n_bins in enumerate(lengths):
        alone = split.take(np.array([trial]))
        encod = np.nan_to_num(alone.encod_data[:, : min(n_bins, split.encod_data.shape[1])])
        mean = forward(model, encod, external(alone)[:, :n_bins], n_bins)
        ic_noise = (ic[trial : trial + 1] - mean.ic_mean) / mean.ic_std
        co_noise = None
        if s.co_dim:
            co_means, co_stds = (
                seen[name][-1].detach().numpy()[trial : trial + 1, :n_bins] for name in ("co_means", "co_stds")
            )
            co_noise = (inputs[trial : trial + 1, :n_bins, : s.co_dim] - co_means) / co_stds
        drawn = forward(model, encod, external(alone)[:, :n_bins], n_bins, ic_noise=ic_noise, co_noise=co_noise)
        np.testing.assert_allclose(drawn.gen_inputs, inputs[trial : trial + 1, :n_bins], rtol=1e-6, atol=1e-8)
        counts = alone.recon_data[0, :n_bins]
        observed = ~np.isnan(counts)
        nll -= poisson.logpmf(counts[observed], drawn.rates[0][observed]).sum()
        n_values += observed.sum()
        if s.ic_prior.kind == "normal":
            kl["ic"] += normal_kl(mean.ic_mean, mean.ic_std, w["ic_prior.mean"], s.ic_prior.variance).sum() / n_trials
        if s.co_dim and s.co_prior.kind == "normal":
            per_bin = normal_kl(drawn.co_means, drawn.co_stds, w["co_prior.mean"], s.co_prior.variance)
            kl["co"] += per_bin.sum() / n_trials
        if s.co_dim and s.co_prior.kind == "autoregressive":
            alpha, variance = np.exp(-1 / np.exp(w["co_prior.log_tau"])), np.exp(w["co_prior.log_variance"])
            u, m, v = drawn.gen_inputs[0, :, : s.co_dim], drawn.co_means[0], drawn.co_stds[0]
            kl["co"] += normal_kl(m[0], v[0], 0, variance / (1 - alpha**2)).sum() / n_trials
            kl["co"] += normal_kl(m[1:], v[1:], alpha * u[:-1], variance).sum() / n_trials
    return nll / n_values, kl, n_values / n_trials


def l2_by_hand(model):
    s, w = model.settings, weights_of(model)
    cells = [
        (s.l2_ic_enc_scale, "ic_encoder.ahead"),
        (s.l2_ic_enc_scale, "ic_encoder.back"),
        (s.l2_gen_scale, "generator"),
    ]
    if s.co_dim:
        cells += [(s.l2_ci_enc_scale, "ci_encoder.ahead"), (s.l2_ci_enc_scale, "ci_encoder.back")]
        cells += [(s.l2_con_scale, "controller")]
    kernels = [(scale, w[f"{cell}.weight_hh"]) for scale, cell in cells if scale > 0]
    size = sum(kernel.size for _, kernel in kernels)
    return sum(scale * 0.5 * (kernel**2).sum() for scale, kernel in kernels) / max(size, 1)


@pytest.mark.parametrize(
    ("settings", "trials"),
    [*product(LOSSES, ["forward", "lengths and missing"]), *product(["defaults"], ["plain", "lengths", "missing"])],
)
def test_loss_is_the_evidence_bound_per_value_of_the_noise_that_was_drawn(settings, trials, make_dataset):
    data = TRIALS[trials](make_dataset)
    model, split = make_model(data, **LOSSES[settings], **RAMPS).train(), data["train"]
    s, batch = model.settings, make_batch(model, split)
    assert model.loss_and_terms(batch, generator(1))[0].item() == pytest.approx(model.loss(batch, generator(1)).item())
    _, unwatched = model.loss_and_terms(batch, generator(5))
    seen = watch(model)
    _, terms = model.loss_and_terms(batch, generator(5))
    for name, value in terms.items():
        assert value.item() == pytest.approx(unwatched[name].item(), rel=1e-12)
    nll, kl, values_per_trial = terms_by_hand(model, split, seen)
    assert terms["nll"].item() == pytest.approx(nll, rel=1e-9)
    assert terms["kl_ic"].item() == pytest.approx(kl["ic"], rel=1e-9)
    if s.co_dim:
        assert terms["kl_co"].item() == pytest.approx(kl["co"], rel=1e-7)
    else:
        assert "kl_co" not in terms
    assert terms["l2"].item() == pytest.approx(l2_by_hand(model), rel=1e-6)
    if s.kl_normalisation == "lfads_torch":
        values_per_trial = 1
        if s.co_prior.kind == "normal":
            kl["co"] /= data.n_recon_bins
    penalty = s.kl_ic_scale * abs(kl["ic"] - s.kl_ic_target)
    if s.co_dim:
        penalty += s.kl_co_scale * abs(kl["co"] - s.kl_co_target)
    for epoch, ramp in KL_RAMP.items():
        model.start_epoch(epoch)
        expected = nll + ramp * penalty / values_per_trial + L2_RAMP[epoch] * l2_by_hand(model)
        assert model.loss(batch, generator(5)).item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("trials", TRIALS.values(), ids=TRIALS)
def test_loss_of_selection_is_the_likelihood_of_the_posterior_means_alone(trials, make_dataset):
    data = trials(make_dataset)
    model = make_model(data, l2_gen_scale=3.0, cd_rate=0.5, dropout_rate=0.5, **RAMPS).eval()
    split = data["valid"]
    batch = make_batch(model, split, fitted=True)
    rates = model.infer(split)["rates"].numpy()
    observed = split.observed()
    expected = -poisson.logpmf(split.recon_data[observed], rates[observed]).mean()
    for epoch in (0, 50):
        model.start_epoch(epoch)
        loss, terms = model.loss_and_terms(batch, generator())
        assert loss.item() == pytest.approx(expected, rel=1e-9)
        assert terms["nll"].item() == pytest.approx(expected, rel=1e-9)


def test_loss_of_selection_is_the_likelihood_alone_whatever_the_observation_model(make_dataset):
    data = make_dataset()
    observation = {"kind": "zero_inflated_gamma", "scale_penalty": 1.0, "scale_prior": 3.0}
    model = make_model(data, observation=observation).eval()
    loss, terms = model.loss_and_terms(make_batch(model, data["valid"]), generator())
    assert loss.item() == pytest.approx(terms["nll"].item(), rel=1e-12)
    batch = make_batch(model, data["train"])
    plain = make_model(data, observation=observation | {"scale_penalty": 0.0})
    plain.load_state_dict(model.state_dict())
    added = model.train().loss(batch, generator()) - plain.train().loss(batch, generator())
    scale = np.exp(weights_of(model)["observation.0.log_scale"])
    assert added.item() == pytest.approx(((scale - 3) ** 2).sum(), rel=1e-6)  # in training it counts


def test_a_scale_means_the_same_for_trials_of_any_length(make_dataset):
    penalties = []
    for n_bins in (5, 20):
        data = make_dataset(n_bins=n_bins)
        model = make_model(data, kl_ic_scale=0.7, kl_co_scale=0.7, kl_increase_epoch=0).train()
        loss, terms = model.loss_and_terms(make_batch(model, data["train"]), generator())
        kl_in_nats = (terms["kl_ic"] + terms["kl_co"]).item()
        penalties.append((loss - terms["nll"]).item() * n_bins * data.n_neurons / kl_in_nats)
    assert penalties == pytest.approx([0.7, 0.7], rel=1e-9)


def test_training_draws_standard_normal_noise_anew_for_every_trial_bin_and_dimension(make_dataset):
    data = make_dataset(n_trials=400, n_bins=5)
    model, split = make_model(data).train(), data["train"]
    seen = watch(model)
    model.loss(make_batch(model, split), generator())
    posterior = forward(model, split.encod_data, external(split), 5)
    ic_noise = (seen["ic"][0].detach().numpy() - posterior.ic_mean) / posterior.ic_std
    u, mean, std = (seen[name][0].detach().numpy() for name in ("gen_inputs", "co_means", "co_stds"))
    co_noise = (u - mean) / std
    for noise in (ic_noise, co_noise):
        assert kstest(noise.ravel(), norm.cdf).pvalue > 1e-3
        assert len(np.unique(noise)) == noise.size
    flat = np.concatenate([ic_noise, co_noise.reshape(400, -1)], 1)
    correlations = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(correlations).max() < 5 / np.sqrt(400)


def test_without_a_prior_nothing_is_drawn(make_dataset):
    data = make_dataset()
    model = make_model(data, **NO_POSTERIOR).train()
    batch = make_batch(model, data["train"])
    assert model.loss(batch, generator(1)).item() == model.loss(batch, generator(2)).item()
    for prior in NO_POSTERIOR:
        half = make_model(data, **{prior: {"kind": "none"}}).train()
        assert half.loss(batch, generator(1)).item() != half.loss(batch, generator(2)).item()


GRADIENTS = {
    "controller": {},
    "controller, gru": {"cell": "gru"},
    "normal prior of inputs": {"co_prior": {"kind": "normal"}, "readin": {"kind": "linear"}},
    "Student-t priors": {"co_prior": {"kind": "student_t"}, "ic_prior": {"kind": "student_t"}},
    "no controller": NO_CONTROLLER,
    "causal": {"causal_con": True, "ic_enc_seq_len": 2, "ci_lag": 2},
}


@pytest.mark.parametrize("changed", GRADIENTS.values(), ids=GRADIENTS)
def test_gradient_of_every_weight_equals_finite_differences(changed, make_dataset):
    data = with_missing(with_lengths(make_dataset(n_trials=4, ext_input=1)))
    penalised = {"l2_gen_scale": 0.3, "l2_ic_enc_scale": 0.3, "kl_increase_epoch": 0, "dropout_rate": 0.2}
    model = make_model(data, **changed, **penalised).train()
    batch = make_batch(model, data["train"])
    model.loss(batch, generator(3)).backward()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            direction = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            values = []
            for step in (1e-6, -1e-6):
                parameter.add_(step * direction)
                values.append(model.loss(batch, generator(3)).item())
                parameter.sub_(step * direction)
            slope = (values[0] - values[1]) / 2e-6
            if model.settings.causal_con and "ci_encoder.back" in name:  # read by nothing
                assert parameter.grad is None
                assert slope == 0
                continue
            assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-8), name
            assert slope != 0, name


def test_missing_values_change_neither_loss_nor_gradients_but_by_being_left_out(make_dataset):
    whole = make_dataset(ext_input=2)
    data = with_missing(whole)
    model, split = make_model(data, **NO_POSTERIOR).train(), data["train"]
    model.loss(make_batch(model, split), generator()).backward()
    weights = {name: weight for name, weight in model.named_parameters() if "logvar" not in name}
    found = {name: weight.grad.clone() for name, weight in weights.items()}
    model.zero_grad()
    seen = watch(model)
    blank = replace(split, **{name: np.nan_to_num(getattr(split, name)) for name in ("encod_data", "recon_data")})
    model.loss(make_batch(model, blank), generator())
    observed = torch.from_numpy(split.observed())
    log_rates, counts = seen["log_rates"][0][observed], torch.from_numpy(split.recon_data).double()[observed]
    by_hand = (log_rates.exp() - counts * log_rates + torch.lgamma(counts + 1)).mean()
    by_hand.backward()
    assert model.loss(make_batch(model, split), generator()).item() == pytest.approx(by_hand.item(), rel=1e-12)
    for name, weight in weights.items():
        torch.testing.assert_close(weight.grad, found[name], rtol=1e-9, atol=1e-12)


# Coordinated dropout. Counts are above 0 here, so that an input of 0 is one that was hidden.


def make_busy(make_dataset, **shape):
    data = make_dataset(**shape)
    for split in data.splits.values():
        for counts in (split.encod_data, split.recon_data):
            counts += 1
    return data


def gradient_by_entry(model, batch, seed=0):
    """Gradient of the loss at each log-rate, what the encoders saw, and the loss."""
    seen = watch(model)
    loss = model.loss(batch, generator(seed))
    (gradient,) = torch.autograd.grad(loss, seen["log_rates"][0])
    parts = seen["ic_encoder"] + (seen["ci_encoder"] if model.settings.ic_enc_seq_len else [])
    return gradient, torch.cat(parts, 1), loss.item(), seen["log_rates"][0]


def test_coordinated_dropout_learns_only_from_what_the_encoder_did_not_see(make_dataset):
    data = make_busy(make_dataset, n_trials=40, n_recon_bins=9)
    model = make_model(data, cd_rate=0.3, kl_ic_scale=0.0, kl_co_scale=0.0).train()
    batch = make_batch(model, data["train"])
    gradient, given, loss, log_rates = gradient_by_entry(model, batch)
    hidden = given == 0
    n_bins, n_heldin = data.n_bins, data.n_heldin
    assert hidden.double().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / hidden.numel()) ** 0.5)
    torch.testing.assert_close(given[~hidden], batch["encod_data"][~hidden] / 0.7, rtol=1e-12, atol=0)
    assert torch.equal(gradient[:, :n_bins, :n_heldin] != 0, hidden)
    assert (gradient[:, :, n_heldin:] != 0).all()  # held-out neurons and later bins are never seen
    assert (gradient[:, n_bins:] != 0).all()
    # The gradient that is left is that of the whole loss, not rescaled; the value is that of the whole loss.
    expected = (log_rates.exp() - batch["recon_data"]) / log_rates.numel()
    torch.testing.assert_close(gradient[gradient != 0], expected[gradient != 0], rtol=1e-9, atol=1e-15)
    nll = -poisson.logpmf(batch["recon_data"].numpy(), log_rates.detach().exp().numpy()).mean()
    assert loss == pytest.approx(nll, rel=1e-12)


def test_coordinated_dropout_hides_other_entries_in_each_batch_and_none_in_eval_mode(make_dataset):
    data = make_busy(make_dataset)
    model = make_model(data, cd_rate=0.5).train()
    batch, seen = make_batch(model, data["train"]), watch(model)
    for seed in (0, 1, 0):
        model.loss(batch, generator(seed))
    first, second, again = seen["ic_encoder"]
    assert torch.equal(first, again)
    assert not torch.equal(first == 0, second == 0)
    model.eval().loss(batch, generator())
    model.infer(data["train"])
    assert all(torch.equal(given, batch["encod_data"]) for given in seen["ic_encoder"][3:])


def test_coordinated_dropout_never_hides_the_bins_of_the_initial_condition(make_dataset):
    data = make_busy(make_dataset, n_trials=20, n_bins=10)
    model = make_model(data, cd_rate=0.5, ic_enc_seq_len=4).train()
    batch = make_batch(model, data["train"])
    gradient, given, _, _ = gradient_by_entry(model, batch)
    assert torch.equal(given[:, :4], batch["encod_data"][:, :4])
    assert (gradient[:, :4] != 0).all()
    hidden = given[:, 4:] == 0
    assert hidden.double().mean().item() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(gradient[:, 4:, : data.n_heldin] != 0, hidden)


def test_coordinated_dropout_lets_some_seen_entries_teach(make_dataset):
    data = make_busy(make_dataset, n_trials=100)
    model = make_model(data, cd_rate=0.4, cd_pass_rate=0.2).train()
    batch = make_batch(model, data["train"])
    gradient, given, _, log_rates = gradient_by_entry(model, batch)
    whole = (log_rates.exp() - batch["recon_data"]) / log_rates.numel()
    torch.testing.assert_close(gradient[gradient != 0], whole[gradient != 0], rtol=1e-9, atol=1e-15)
    hidden, teaches = given == 0, gradient[:, :, : data.n_heldin] != 0
    assert teaches[hidden].all()
    passed = teaches[~hidden].double()
    assert passed.mean().item() == pytest.approx(0.2, abs=4 * (0.16 / len(passed)) ** 0.5)
    assert (gradient[:, :, data.n_heldin :] != 0).all()


def test_coordinated_dropout_can_hold_back_heldout_neurons_too(make_dataset):
    data = make_busy(make_dataset, n_trials=100, n_recon_bins=8)
    model = make_model(data, cd_rate=0.4, cd_heldout=True).train()
    gradient, given, _, _ = gradient_by_entry(model, make_batch(model, data["train"]))
    teaches = gradient != 0
    assert torch.equal(teaches[:, : data.n_bins, : data.n_heldin], given == 0)
    for unseen in (teaches[:, :, data.n_heldin :], teaches[:, data.n_bins :]):
        assert unseen.double().mean().item() == pytest.approx(0.4, abs=4 * (0.24 / unseen.numel()) ** 0.5)


def test_coordinated_dropout_comes_before_the_read_in(make_dataset):
    data = make_busy(make_dataset)
    model = make_model(data, cd_rate=0.5, readin={"kind": "linear", "dim": 3}).train()
    batch, seen, given = make_batch(model, data["train"]), watch(model), []
    model.readin[0].register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    model.loss(batch, generator())
    scaled = batch["encod_data"] * 2
    assert ((given[0] == 0) | (given[0] == scaled)).all()
    assert (given[0] == 0).any()
    w = weights_of(model)
    expected = given[0].numpy() @ w["readin.0.weight"].T + w["readin.0.bias"]
    np.testing.assert_allclose(seen["ic_encoder"][0].detach().numpy(), expected, rtol=1e-12)


# Sample validation


def test_hidden_samples_influence_neither_the_encoders_nor_what_is_learned(make_dataset):
    data = make_busy(make_dataset, n_trials=20)
    model = make_model(data, sv_rate=0.3, cd_rate=0.2).train()
    split = data["train"]
    batch = make_batch(model, split, fitted=True)
    hidden = batch["sv_mask"].numpy()
    recon, encod = split.recon_data.copy(), split.encod_data.copy()
    recon[:, :, : data.n_heldin][hidden] += 3
    encod[hidden] += 3
    assert (encod != split.encod_data).any()
    other = make_batch(model, replace(split, encod_data=encod, recon_data=recon), fitted=True)
    gradients = []
    for one in (batch, other):
        loss = model.loss(one, generator(2))
        gradients.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("trials", [TRIALS["plain"], TRIALS["lengths and missing"]])
def test_hidden_samples_validate(trials, make_dataset):
    data = trials(make_dataset)
    model, split = make_model(data, sv_rate=0.3, kl_ic_scale=9.0).eval(), data["valid"]
    batch, seen = make_batch(model, split, fitted=True), watch(model)
    loss, terms = model.loss_and_terms(batch, generator())
    hidden = batch["sv_mask"].numpy()
    given = np.where(hidden, 0, np.nan_to_num(split.encod_data) / 0.7)
    if split.n_bins is not None:
        given[np.arange(data.n_bins) >= split.n_bins[:, None]] = 0
    np.testing.assert_allclose(seen["ic_encoder"][0].numpy(), given, rtol=1e-6)
    whole = np.zeros(split.recon_data.shape, bool)
    whole[:, :, : data.n_heldin] = hidden
    nll = -poisson.logpmf(np.nan_to_num(split.recon_data), seen["log_rates"][0].detach().exp().numpy())
    assert loss.item() == pytest.approx(nll[whole & split.observed()].mean(), rel=1e-12)
    assert terms["nll"].item() == pytest.approx(nll[~whole & split.observed()].mean(), rel=1e-12)
    assert loss.item() == terms["sv_nll"].item()


def test_a_batch_without_a_hidden_sample_has_a_loss(make_dataset):
    data = make_dataset(n_bins=2, n_heldin=1)
    model = make_model(data, sv_rate=0.01).eval()
    batch = make_batch(model, data["valid"], fitted=True)
    assert not batch["sv_mask"].any()
    assert model.loss(batch, generator()).isfinite()


def test_jitter_does_not_bring_hidden_spikes_into_sight(make_dataset):
    data = make_busy(make_dataset, n_trials=20)
    model, split = make_model(data, sv_rate=0.3, spike_jitter=1).train(), data["train"]
    batch, seen = make_batch(model, split, fitted=True), watch(model)
    visible = (batch["encod_data"] * ~batch["sv_mask"]).sum()
    more = {name: value.clone() for name, value in batch.items()}
    for name in ("encod_data", "recon_data"):
        more[name][:, :, : data.n_heldin][batch["sv_mask"]] += 20
    for one in (batch, more):
        model.loss(one, generator())
        assert seen["ic_encoder"].pop().sum().item() * 0.7 <= visible.item() * 1.001


def test_which_samples_are_hidden_depends_on_the_seed_alone(make_dataset):
    data = make_dataset(n_trials=200, n_bins=10)

    def mask(split="train", **changed):
        model = make_model(data, sv_rate=0.25, **changed)
        torch.manual_seed(len(changed))
        return model.fit_tensors(data[split])["sv_mask"]

    assert torch.equal(mask(), mask(cell="gru"))
    assert not torch.equal(mask(), mask(seed=1))
    assert mask().double().mean().item() == pytest.approx(0.25, abs=4 * (0.1875 / mask().numel()) ** 0.5)
    first_bins_seen = make_model(data, sv_rate=0.25, ic_enc_seq_len=3)
    batch, seen = make_batch(first_bins_seen, data["train"], fitted=True), watch(first_bins_seen)
    first_bins_seen.loss(batch, generator())
    assert torch.equal(seen["ic_encoder"][0], batch["encod_data"][:, :3])
    early = mask(ic_enc_seq_len=3)
    assert not early[:, :3].any()
    assert torch.equal(early[:, 3:], mask()[:, 3:])
    assert "sv_mask" not in make_model(data).fit_tensors(data["train"])
    assert "sv_mask" not in make_model(data, sv_rate=0.25).tensors(data["train"])


# Augmentations


def test_jitter_moves_what_is_seen_and_what_is_predicted_independently_and_only_in_training(make_dataset):
    data = with_lengths(make_dataset(n_bins=12), shortest=6)
    for split in data.splits.values():
        split.recon_data[np.arange(12) >= split.n_bins[:, None]] = 0
    model, split = make_model(data, spike_jitter=2).train(), data["train"]
    batch, seen = make_batch(model, split), watch(model)
    model.loss(batch, generator())
    given, target = seen["ic_encoder"][0], seen["targets"][0]
    for moved, original in ((given, batch["encod_data"]), (target, batch["recon_data"])):
        assert not torch.equal(moved, original)
        assert torch.equal(moved.sum(1), original.sum(1))
        assert (moved.cumsum(1)[:, :-3] <= original.cumsum(1)[:, 2:-1]).all()  # no spike is 3 bins early
    assert not torch.equal(given, target[:, :, : data.n_heldin])
    model.eval().loss(batch, generator())
    assert torch.equal(seen["ic_encoder"][1], batch["encod_data"])
    assert torch.equal(seen["targets"][1], batch["recon_data"])


def test_jitter_never_brings_padding_into_a_trial(make_dataset):
    data = with_lengths(make_busy(make_dataset, n_bins=12), shortest=6)
    model, split = make_model(data, spike_jitter=3).train(), data["train"]
    batch, seen = make_batch(model, split), watch(model)
    model.loss(batch, generator())
    assert torch.equal(seen["targets"][0].sum(1), (batch["recon_data"] * batch["weight"]).sum(1))


def test_shifts_never_make_a_missing_value_count(make_dataset):
    """The loss is the mean over the values that were recorded where they moved to; all of these are above 0."""
    data = with_missing(make_busy(make_dataset, n_bins=12))
    model, split = make_model(data, temporal_shift=2.0).train(), data["train"]
    batch, seen = make_batch(model, split), watch(model)
    _, terms = model.loss_and_terms(batch, generator())
    (target,), (log_rates,) = (seen[name] for name in ("targets", "log_rates"))
    assert 0 < (target > 0).sum() < (batch["weight"] > 0).sum()
    recorded = target > 0
    nll = -poisson.logpmf(target[recorded].numpy(), log_rates[recorded].detach().exp().numpy()).mean()
    assert terms["nll"].item() == pytest.approx(nll, rel=1e-9)


def test_shifts_are_applied_in_training(make_dataset):
    data = make_dataset(n_bins=12)
    model, split = make_model(data, temporal_shift=2.0, temporal_shift_max=3).train(), data["train"]
    batch, seen = make_batch(model, split), watch(model)
    model.loss(batch, generator())
    for moved, original in ((seen["ic_encoder"][0], batch["encod_data"]), (seen["targets"][0], batch["recon_data"])):
        shifts = [
            [
                [lag for lag in range(-3, 4) if torch.equal(moved[i, 3:-3, j], original[i, 3 - lag : 9 - lag, j])]
                for j in range(original.shape[2])
            ]
            for i in range(len(original))
        ]
        assert all(found for trial in shifts for found in trial)
        assert any(0 not in found for trial in shifts for found in trial)
    model.eval().loss(batch, generator())
    assert torch.equal(seen["ic_encoder"][1], batch["encod_data"])


def zeros_and_rest(found, whole, rate, what):
    """Check that `found` is `whole` after dropout: zero at the rate, else scaled up so that the mean stays."""
    kept = np.abs(found) > 1e-9
    error = np.sqrt(rate * (1 - rate) / kept.size)
    assert kept.mean() == pytest.approx(1 - rate, abs=5 * error), what
    np.testing.assert_allclose(found[kept], whole[kept] / (1 - rate), rtol=1e-6, atol=1e-9, err_msg=what)


@pytest.mark.parametrize("sizes", [{}, NO_CONTROLLER], ids=["controller", "no controller"])
def test_dropout_hides_all_that_is_handed_on_but_the_states_themselves(sizes, make_dataset):
    data = make_busy(make_dataset, n_trials=100, ext_input=2)
    model = make_model(data, dropout_rate=0.4, fac_dim=40, ci_lag=0, **sizes, **NO_POSTERIOR).train()
    batch, calls = make_batch(model, data["train"]), defaultdict(list)
    expected = model.loss(batch, generator()).item()
    watched = watch(model)
    parts = ["ic_mean", "ic_to_g0", "generator"]
    parts += ["ci_encoder", "controller"] if model.settings.co_dim else []
    for name in parts:
        getattr(model, name).register_forward_hook(
            lambda _, given, result, name=name: calls[name].append((given, result))
        )
    nll_sum = model.observation[0].nll_sum
    model.observation[0].nll_sum = lambda readout, factors, *more: (
        calls["readout"].append(factors) or nll_sum(readout, factors, *more)
    )
    with use_backend("eager"):  # which calls the cells in every bin
        assert model.loss(batch, generator()).item() == pytest.approx(expected, rel=1e-10)

    def numbers(value):
        return value.detach().numpy()

    w, n_co = weights_of(model), model.settings.co_dim
    to_factors = w["to_factors.weight"] / np.linalg.norm(w["to_factors.weight"], axis=1, keepdims=True)
    seen = numbers(watched["ic_encoder"][0])
    zeros_and_rest(seen, batch["encod_data"].numpy(), 0.4, "encoder input")
    ahead, back = (numbers(value) for value in model.ic_encoder(watched["ic_encoder"][0]))
    zeros_and_rest(numbers(calls["ic_mean"][0][0][0]), np.hstack([ahead[:, -1], back[:, 0]]), 0.4, "summary")
    inputs, before = (np.stack([numbers(call[0][i]) for call in calls["generator"]], 1) for i in (0, 1))
    states = np.stack([numbers(call[1]) for call in calls["generator"]], 1)
    zeros_and_rest(inputs[:, :, n_co:], batch["ext_input"].numpy(), 0.4, "external input")
    np.testing.assert_array_equal(before[:, 1:], states[:, :-1])  # a state goes on whole
    np.testing.assert_array_equal(before[:, 0], numbers(calls["ic_to_g0"][0][1]))
    factors = numbers(calls["readout"][0])
    zeros_and_rest(factors @ np.linalg.pinv(to_factors).T, states, 0.4, "states on their way to the factors")
    if not n_co:
        return
    np.testing.assert_array_equal(numbers(calls["ci_encoder"][0][0][0]), seen)
    ci = np.concatenate([numbers(value) for value in calls["ci_encoder"][0][1]], 2)
    given = np.stack([numbers(call[0][0]) for call in calls["controller"]], 1)
    zeros_and_rest(given[:, :, : ci.shape[2]], ci, 0.4, "controller input from the encoder")
    first, later = given[:, 0, ci.shape[2] :], given[:, 1:, ci.shape[2] :]
    zeros_and_rest(later, factors[:, :-1], 0.4, "controller input from the factors")
    initial = [np.linalg.lstsq(to_factors[f != 0], 0.6 * f[f != 0], rcond=None)[0] for f in first]
    zeros_and_rest(np.stack(initial), before[:, 0], 0.4, "initial state on its way to the first factors")


# Noise belongs to trials, whatever batch they are in

RANDOM = {
    "controller": {},
    "controller, gru": {"cell": "gru", "readin": {"kind": "linear", "dim": 5}},
    "no controller": NO_CONTROLLER,
    "Student-t priors": {"ic_prior": {"kind": "student_t"}, "co_prior": {"kind": "student_t"}, "ic_enc_seq_len": 2},
    "hidden samples": {"sv_rate": 0.2, "cd_heldout": True},
    "band": {"kind": "band", "behavior_weight": 0.5, "behavior": {"dropout": 0.3}},
    "band, sequence": {"kind": "band", "behavior_weight": 0.5, "behavior": {"decoder": "sequence", "dropout": 0.3}},
}
SHAKEN = {"dropout_rate": 0.3, "cd_rate": 0.4, "cd_pass_rate": 0.2, "kl_increase_epoch": 0}
MOVED = {"spike_jitter": 2, "temporal_shift": 1.0}


def taken(batch, trials):
    """Some trials of a batch, which keep the numbers that they have there."""
    return {name: value[trials] for name, value in batch.items()} | {"trial_index": trials}


def measured(model, batch, seed=2):
    """Loss, terms and gradients."""
    loss, terms = model.loss_and_terms(batch, generator(seed))
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return loss.detach(), terms, torch.autograd.grad(loss, chosen, allow_unused=True)


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize(
    ("settings", "moved"),
    # Where hidden samples move, how many values count is drawn too, and the batches' shares are not known beforehand.
    [pair for pair in product(RANDOM, ["still", "moved"]) if pair != ("hidden samples", "moved")],
)
def test_a_loss_is_the_mean_of_its_trials_however_they_are_cut_into_batches(settings, moved, backend, make_dataset):
    changed, moved = RANDOM[settings], MOVED if moved == "moved" else {}
    data = make_dataset(n_trials=9, ext_input=2, behavior=2)
    if "kind" not in changed:  # the means of BAND's errors are over other values than those of the spikes
        data = with_lengths(data, shortest=4)
        data = data if moved else with_missing(data)
    model = make_model(data, **SHAKEN, **moved, **changed).train()
    batch = make_batch(model, data["train"], fitted=True)
    order = torch.tensor([7, 2, 4, 0, 1, 8, 3, 6, 5])
    parts = [taken(batch, order[:3]), taken(batch, order[3:])]
    with use_backend(backend):
        whole, *pieces = (measured(model, one) for one in (batch, *parts))
        renumbered = measured(model, taken(batch, order[:3]) | {"trial_index": torch.arange(3)})
    counted, hidden = [], []
    for part in parts:
        weight = part["weight"].expand_as(part["recon_data"])
        seen = weight[:, :, : data.n_heldin]
        hidden.append((seen * part["sv_mask"]).sum() if "sv_mask" in part else torch.zeros(()))
        counted.append(weight.sum() - hidden[-1])
    by_value, by_hidden = ([amount / sum(amounts) for amount in amounts] for amounts in (counted, hidden))
    shares = {"nll": by_value, "loss": by_value, "sv_nll": by_hidden}  # those of a KL are by trials
    named = [{"loss": loss, **terms} for loss, terms, _ in (whole, *pieces)]
    for name, value in named[0].items():
        weights = shares.get(name, [3 / 9, 6 / 9])
        mean = sum(share * one[name] for share, one in zip(weights, named[1:], strict=True))
        torch.testing.assert_close(mean, value, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    for value, *ones in zip(whole[2], *(piece[2] for piece in pieces), strict=True):
        if value is None:  # LFADS learns nothing from behaviour
            assert ones == [None, None]
            continue
        mean = sum(share * one for share, one in zip(by_value, ones, strict=True))
        torch.testing.assert_close(mean, value, rtol=1e-8, atol=1e-11)
    assert renumbered[0] != pieces[0][0]


def test_trials_are_numbered_from_zero_where_they_have_no_numbers(make_dataset):
    data = make_dataset(ext_input=2)
    model = make_model(data, **SHAKEN).train()
    batch = make_batch(model, data["train"])
    expected = model.loss(batch, generator())
    assert model.loss(batch | {"trial_index": torch.arange(8)}, generator()) == expected
    assert model.loss(batch | {"trial_index": torch.arange(8) + 1}, generator()) != expected


def test_a_fit_gives_counts_as_bytes_where_they_are_counts_that_fit(make_dataset):
    data = with_lengths(make_dataset(ext_input=2))
    model = make_model(data, spike_jitter=1, temporal_shift=1.0, **SHAKEN)
    plain, fitted = (make_batch(model, data["train"], fitted=fitted) for fitted in (False, True))
    for name in ("encod_data", "recon_data"):
        assert fitted[name].dtype == torch.uint8
        assert torch.equal(fitted[name].double(), plain[name])
    assert {name for name in plain if fitted[name].dtype != plain[name].dtype} == {"encod_data", "recon_data"}
    for mode in (True, False):
        ours, theirs = (measured(model.train(mode), one) for one in (fitted, plain))
        assert ours[0].item() == pytest.approx(theirs[0].item(), rel=1e-12)
        for one, other in zip(ours[2], theirs[2], strict=True):
            if one is not None or other is not None:
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
    for odd in (256.0, 0.5, -1.0):
        split = replace(data["train"], encod_data=np.full_like(data["train"].encod_data, odd))
        found = model.fit_tensors(split)["encod_data"]
        assert found.dtype == torch.float32
        assert found.max() in (odd, 0)
        assert (found[0] == odd).all()


def test_two_sessions_with_equal_trial_numbers_have_masks_and_noise_of_their_own(make_dataset):
    days = {name: make_busy(make_dataset, n_trials=60, ext_input=1) for name in ("monday", "tuesday")}
    model = make_model(MultiSession(days), readin={"kind": "linear", "dim": 3}, cd_rate=0.5).train()
    with torch.no_grad():  # so that nothing but what is drawn differs
        for layers in (model.readin, model.readout):
            layers[1].load_state_dict(layers[0].state_dict())
    batch = {name: make_batch(model, day["train"], name) for name, day in days.items()}
    given, seen = defaultdict(list), watch(model)
    for index in (0, 1):
        model.readin[index].register_forward_pre_hook(lambda _, inputs, index=index: given[index].append(inputs[0]))
    model.loss(batch, generator())
    hidden = [given[index][0] == 0 for index in (0, 1)]
    for one in hidden:
        assert one.double().mean().item() == pytest.approx(0.5, abs=4 * (0.25 / one.numel()) ** 0.5)
    alike = (hidden[0] == hidden[1]).double().mean().item()
    assert alike == pytest.approx(0.5, abs=4 * (0.25 / hidden[0].numel()) ** 0.5)
    ic, inputs = seen["ic"], seen["gen_inputs"]
    assert (ic[0] - ic[1]).abs().min() > 0
    assert (inputs[0] - inputs[1])[:, :, : model.settings.co_dim].abs().min() > 0
    model.loss({"tuesday": batch["tuesday"]}, generator())  # its noise is the same without the other session
    assert torch.equal(given[1][0], given[1][1])
    assert torch.equal(ic[1], ic[2])
    losses = [model.eval().loss({name: batch[name]}, generator()) for name in days]
    assert losses[0] == losses[1]


# Inference


def test_ablated_inputs_are_zero_and_act_on_nothing(make_dataset):
    data = make_dataset(ext_input=2, behavior=2)
    model, split = make_model(data), data["train"]
    inferred = model.infer(split, control_bins=())
    expected = forward(model, split.encod_data, split.ext_input, 6, control=np.zeros(6))
    for name in ("rates", "factors", "latents", "gen_inputs", "co_means", "co_stds"):
        np.testing.assert_allclose(inferred[name].numpy(), getattr(expected, name), rtol=1e-8, atol=1e-10)
    assert (inferred["gen_inputs"][:, :, :2] == 0).all()
    assert inferred["co_means"].any()
    ablated = model.ablated(split)
    assert set(ablated) == {"ablated_rates", "ablated_factors", "ablated_behavior"}
    for name, value in ablated.items():
        assert torch.equal(value, inferred[name.removeprefix("ablated_")])
    assert make_model(data, **NO_CONTROLLER).ablated(split) == {}


@pytest.mark.parametrize("bins", [[2], [0, 5], range(3)])
def test_inferred_inputs_can_act_in_chosen_bins(bins, make_dataset):
    data = make_dataset()
    model, split = make_model(data), data["train"]
    control = np.isin(np.arange(6), list(bins)).astype(float)
    expected = forward(model, split.encod_data, external(split), 6, control=control)
    inferred = model.infer(split, control_bins=bins)
    np.testing.assert_allclose(inferred["rates"].numpy(), expected.rates, rtol=1e-8)
    np.testing.assert_allclose(inferred["gen_inputs"].numpy(), expected.gen_inputs, rtol=1e-8, atol=1e-12)
    everywhere = model.infer(split, control_bins=range(6))["rates"]
    assert torch.equal(everywhere, model.infer(split)["rates"])
    assert not torch.equal(everywhere, inferred["rates"])


@pytest.mark.parametrize("changed", [{}, {"ic_prior": {"kind": "none"}}, {"co_prior": {"kind": "none"}}, NO_CONTROLLER])
def test_posterior_means_over_samples_approach_those_of_many_independent_ones(changed, make_dataset):
    data = make_dataset(n_trials=2)
    split, n_samples = data["train"].take(np.array([0])), 10_000
    model = make_model(data, n_samples=2000, **changed)
    inferred = model.infer(split)
    s, rng = model.settings, np.random.default_rng(0)
    encod = np.repeat(split.encod_data, n_samples, 0)
    noise = {"ic_noise": rng.normal(size=(n_samples, s.ic_dim)) if s.ic_prior.kind == "normal" else 0.0}
    if s.co_dim and s.co_prior.kind != "none":
        noise["co_noise"] = rng.normal(size=(n_samples, 6, s.co_dim))
    drawn = forward(model, encod, np.zeros((n_samples, 6, 0)), 6, **noise)
    for name in ("rates", "factors", "latents", "gen_inputs", "gen_init", "co_means", "con_states"):
        if name in inferred:
            value = getattr(drawn, name)
            error = value.std(0) * np.sqrt(1 / 2000 + 1 / n_samples)
            assert (np.abs(inferred[name][0].numpy() - value.mean(0)) < 5 * error + 1e-9).all(), name
    means = model.infer(split)["rates"][0].numpy() - forward(model, split.encod_data, np.zeros((1, 6, 0)), 6).rates[0]
    assert np.abs(means).max() > 1e-3  # the mean of rates is not the rate of means


def test_samples_are_antithetic_and_the_same_for_every_trial(make_dataset):
    data = make_dataset()
    model, split = make_model(data, n_samples=6), data["train"]
    with torch.no_grad():
        model.co_logvar.weight.zero_()  # the same width in every bin and sample
    twice = split.take(np.array([0, 1, 0]))
    inferred = model.infer(twice)
    assert not torch.allclose(inferred["rates"][0], inferred["rates"][1])
    for value in inferred.values():
        torch.testing.assert_close(value[0], value[2], rtol=1e-12, atol=0)
    w = weights_of(model)
    expected = inferred["ic_mean"].numpy() @ w["ic_to_g0.weight"].T + w["ic_to_g0.bias"]
    np.testing.assert_allclose(inferred["gen_init"].numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(inferred["gen_inputs"], inferred["co_means"], rtol=1e-10, atol=1e-12)
    other = make_model(data, n_samples=6, seed=1)
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(other.infer(twice)["rates"], inferred["rates"])
    odd = make_model(data, n_samples=5).infer(twice)
    assert not np.allclose(odd["gen_init"].numpy(), expected)


def test_memory_of_a_pass_changes_nothing(make_dataset, monkeypatch):
    data = make_dataset(ext_input=2)
    model, split = make_model(data, n_samples=7), data["train"]
    expected = model.infer(split)
    for limit in (1, 100, 150):
        monkeypatch.setattr("ctdb.models.lfads.BINS_PER_PASS", limit)
        for name, value in model.infer(split).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cell", ["clipped_gru", "gru"])
def test_a_step_takes_external_input_alone_or_the_generators_whole_input(cell, make_dataset):
    data = make_dataset(ext_input=1)
    model = make_model(data, cell=cell)
    rng = np.random.default_rng(0)
    state, ext, u = rng.normal(size=(5, 6)), rng.normal(size=(5, 1)), rng.normal(size=(5, 2))
    w = weights_of(model)
    for given, whole in ((ext, np.hstack([np.zeros((5, 2)), ext])), (np.hstack([u, ext]),) * 2):
        with torch.no_grad():
            found = model.step(torch.from_numpy(state), torch.from_numpy(given)).numpy()
        np.testing.assert_allclose(found, next_state(w, "generator", model.settings, whole, state), rtol=1e-12)


def test_a_step_refuses_an_input_of_any_other_width(make_dataset):
    model = make_model(make_dataset(ext_input=5), use_ext_input=False)
    state = torch.randn(3, 6, generator=generator()).double()
    with pytest.raises(DatasetError, match="5 channels was given; expected 2"):
        model.step(state, torch.zeros(3, 5))
    with torch.no_grad():
        assert torch.equal(model.step(state, torch.zeros(3, 0)), model.step(state, torch.zeros(3, 2)))


# Several sessions


def make_sessions(make_dataset, **shape):
    return MultiSession(
        {
            "monday": make_dataset(n_trials=10, n_heldin=4, n_heldout=1, seed=1, **shape),
            "tuesday": with_lengths(make_dataset(n_trials=6, n_bins=8, n_heldin=3, n_heldout=4, seed=2, **shape)),
        }
    )


def make_shared(data, kind="lfads", **changed):
    return make_model(data, kind, readin={"kind": "linear", "dim": 3}, **changed)


def test_each_session_has_its_own_neurons_and_shares_the_rest(make_dataset):
    data = make_sessions(make_dataset)
    model = make_shared(data)
    for index, (name, session) in enumerate(data.sessions.items()):
        split = replace(session["test"], n_bins=None)
        inferred = model.infer(split, name)
        expected = forward(model, split.encod_data, external(split), session.n_recon_bins, session=index)
        np.testing.assert_allclose(inferred["rates"].numpy(), expected.rates, rtol=1e-8)
        with torch.no_grad():
            torch.testing.assert_close(model.rates(inferred["latents"], name), inferred["rates"])


def test_loss_of_several_sessions_is_their_mean_by_valid_bins(make_dataset):
    data = make_sessions(make_dataset)
    model = make_shared(data, l2_gen_scale=0.5, **NO_POSTERIOR)
    batch = {name: make_batch(model, session["train"], name) for name, session in data.sessions.items()}
    n_bins = {"monday": 10 * 6, "tuesday": data.sessions["tuesday"]["train"].n_bins.sum()}
    expected = 0
    for name, session in data.sessions.items():
        split = session["train"]
        rates, observed = model.infer(split, name)["rates"].numpy(), split.observed()
        nll = -poisson.logpmf(split.recon_data[observed], rates[observed]).mean()
        expected += nll * n_bins[name] / sum(n_bins.values())
    assert model.eval().loss(batch, generator()).item() == pytest.approx(expected, rel=1e-9)
    loss, terms = model.train().loss_and_terms(batch, generator())
    assert terms["nll"].item() == pytest.approx(expected, rel=1e-9)
    assert loss.item() == pytest.approx(expected + l2_by_hand(model) / 81, rel=1e-9)  # once, not per session


def test_lfads_torchs_weighting_averages_over_a_sessions_own_bins(make_dataset):
    data = make_sessions(make_dataset)  # of 6 and 8 bins
    changed = {"kl_normalisation": "lfads_torch", "co_prior": {"kind": "normal"}, "kl_increase_epoch": 0}
    model = make_shared(data, kl_ic_scale=0.0, **changed).train()
    batch = {"monday": make_batch(model, data.sessions["monday"]["train"], "monday")}
    loss, terms = model.loss_and_terms(batch, generator())
    assert (loss - terms["nll"]).item() == pytest.approx(terms["kl_co"].item() / 6, rel=1e-9)


def test_gradients_reach_every_session_that_is_in_the_batch(make_dataset):
    data = make_sessions(make_dataset)
    model = make_shared(data).train()
    batch = {name: make_batch(model, session["train"], name) for name, session in data.sessions.items()}
    model.loss(batch, generator()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.any(), name
    model.zero_grad()
    model.loss({"tuesday": batch["tuesday"]}, generator()).backward()
    assert model.readin[0].weight.grad is None
    assert model.readout[0].weight.grad is None
    assert model.readin[1].weight.grad.any()


def test_a_session_must_be_named_and_known(make_dataset):
    data = make_sessions(make_dataset)
    model, split = make_shared(data), data.sessions["monday"]["test"]
    for name in (None, "wednesday"):
        with pytest.raises(DatasetError, match=rf"no session {name!r}; name one of \['monday', 'tuesday'\]"):
            model.infer(split, name)
    with pytest.raises(DatasetError, match="was built for encod_data"):
        model.infer(split, "tuesday")


def test_each_session_starts_at_its_own_mean_rates(make_dataset):
    data = make_sessions(make_dataset)
    model = models.build({"kind": "lfads", "gen_dim": 5, "readin": {"kind": "linear"}}, data)
    for name, session in data.sessions.items():
        train = session["train"]
        mean = np.nanmean(np.where(train.observed(), train.recon_data, np.nan), (0, 1))
        with torch.no_grad():
            np.testing.assert_allclose(model.rates(torch.zeros(1, 5), name)[0].numpy(), mean, rtol=1e-5)


# Observation models, settings, warnings, files


def test_a_gamma_signal_is_scored_by_its_density_where_it_was_recorded(make_dataset):
    counts = make_dataset()
    rng = np.random.default_rng(0)
    splits = {}
    for name, split in counts.splits.items():
        signal = rng.gamma(2.0, 0.7, split.recon_data.shape).astype(np.float32)
        splits[name] = replace(split, recon_data=signal, encod_data=signal[:, :, : counts.n_heldin].copy())
    data = with_missing(SpikeDataset(splits, 0.01, signal="continuous"))
    model, split = make_model(data, observation={"kind": "gamma"}), data["train"]
    seen = watch(model)
    batch, observed = make_batch(model, split), split.observed()
    loss = model.eval().loss(batch, generator()).item()
    log_shape, log_rate = np.split(seen["log_rates"][0].detach().numpy(), 2, -1)
    expected = gamma(np.exp(log_shape), scale=np.exp(-log_rate)).logpdf(np.where(observed, split.recon_data, 1))
    assert loss == pytest.approx(-expected[observed].mean(), rel=1e-9)
    np.testing.assert_allclose(model.infer(split)["rates"].numpy(), np.exp(log_shape - log_rate), rtol=1e-9)
    new = models.build({"kind": "lfads", "gen_dim": 5, "observation": {"kind": "gamma"}}, data)
    with torch.no_grad():
        mean = new.rates(torch.zeros(1, 5))[0].numpy()
    np.testing.assert_allclose(mean, np.nanmean(split.recon_data, (0, 1)), rtol=1e-4)


def test_data_that_the_observation_model_cannot_explain_are_refused_by_split(make_dataset):
    data = make_dataset()
    data["valid"].recon_data[1, 2, 3] = 0.5
    with pytest.raises(DatasetError, match=r"^valid_recon_data: no spike count, 0.5, of neuron 3"):
        models.build({"kind": "lfads"}, data)
    sessions = MultiSession({"monday": make_dataset(), "tuesday": data})
    with pytest.raises(DatasetError, match=r"^tuesday: valid_recon_data: no spike count, 0.5, of neuron 3"):
        models.build({"kind": "lfads", "readin": {"kind": "linear"}}, sessions)


@pytest.mark.parametrize("missing", ["ci_enc_dim", "con_dim", "co_dim"])
def test_a_controller_is_whole_or_absent(missing, make_dataset):
    data = make_dataset()
    with pytest.raises(ValueError, match="must all be above 0, or all 0"):
        models.build({"kind": "lfads", missing: 0}, data)
    with pytest.raises(ValueError, match="must all be above 0, or all 0"):
        models.build({"kind": "lfads"} | NO_CONTROLLER | {missing: 3}, data)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"observation": {"kind": "poison"}}, "did you mean 'poisson'"),
        ({"observation": {"kind": "poisson", "smallest_event": 0.1}}, "smallest_event"),
        ({"ic_prior": {"kind": "autoregressive"}}, "ic_prior"),
        ({"co_prior": {"kind": "normal", "tau": 3.0}}, "tau"),
        ({"cell": "lstm"}, "cell"),
        ({"cd_rate": 1.0}, "cd_rate"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed, message, make_dataset):
    with pytest.raises(ValueError, match=message):
        models.build({"kind": "lfads"} | changed, make_dataset())


def test_settings_that_do_not_fit_the_data_are_refused(make_dataset):
    data = make_dataset(n_bins=6)
    with pytest.raises(ConfigError, match="ic_enc_seq_len is 6, which leaves the controller no bins"):
        models.build({"kind": "lfads", "ic_enc_seq_len": 6}, data)
    assert make_model(data, ic_enc_seq_len=5, ci_lag=1).infer(data["train"])["rates"].isfinite().all()
    sessions = make_sessions(make_dataset)
    with pytest.raises(ConfigError, match="ic_enc_seq_len is 7"):  # the shortest session has 6 bins
        models.build({"kind": "lfads", "ic_enc_seq_len": 7, "readin": {"kind": "linear"}}, sessions)
    with pytest.raises(ConfigError, match=r"readin\.kind: is 'identity', .* choose 'linear' or 'pcr'"):
        models.build({"kind": "lfads"}, sessions)


def test_a_dead_posterior_is_told(make_dataset):
    data = make_dataset()
    alive, dead = {"train_kl_ic": 0.5, "train_kl_co": 0.4}, {"train_kl_ic": 1e-4, "train_kl_co": 2e-5}
    model = make_model(data)
    assert model.warnings(alive) == []
    first, second = model.warnings(dead)
    assert "kl_ic is dead (0.0001 nats per trial)" in first
    assert "kl_ic_scale" in first
    assert "kl_co is dead (2e-05 nats per trial)" in second
    assert "kl_co_scale" in second
    assert len(model.warnings(alive | {"train_kl_co": 0.0})) == 1
    assert make_model(data, **NO_POSTERIOR).warnings(dead) == []
    assert len(make_model(data, **NO_CONTROLLER).warnings(dead)) == 1
    assert make_model(data, kl_ic_target=1.0, kl_co_target=1.0).warnings(dead) == []


def test_a_fit_has_what_was_inferred_under_our_names_and_those_of_lfads_torch(make_dataset, tmp_path):
    data = make_sessions(make_dataset, behavior=2)
    spec = {
        **{"kind": "lfads", "ic_enc_dim": 3, "ic_dim": 2, "ci_enc_dim": 2, "con_dim": 3, "co_dim": 1, "gen_dim": 4},
        **{"fac_dim": 2, "n_samples": 4, "readin": {"kind": "linear"}, "sv_rate": 0.1},
        "training": {"max_epochs": 2, "batch_size": 8},
    }
    model = models.build(spec, data)
    result = training.fit(model, data, spec, tmp_path)
    assert np.isfinite(result.history.to_numpy()).all()
    assert {"train_nll", "train_kl_ic", "train_kl_co", "train_l2", "valid_sv_nll"} <= set(result.history)
    with h5py.File(tmp_path / "output.h5") as file:
        written = {f"{name}/{key}": file[name][key][()] for name in data.sessions for key in file[name]}
    again = models.load(tmp_path)
    for name, session in data.sessions.items():
        inferred, ablated = again.infer(session["test"], name), again.ablated(session["test"], name)
        for key, value in {**inferred, **ablated}.items():
            np.testing.assert_allclose(written[f"{name}/test_{key}"], value.numpy(), rtol=1e-3, atol=1e-4)
        aliases = {"output_params": "rates", "gen_states": "latents", "output_behavior_params": "behavior"}
        for alias, key in aliases.items():
            np.testing.assert_array_equal(written[f"{name}/valid_{alias}"], written[f"{name}/valid_{key}"])
        assert inferred["behavior"].shape == session["test"].behavior.shape


def test_whole_numbers_are_counts_too_and_unused_inputs_need_not_be_given(make_dataset):
    data = make_dataset(ext_input=3)
    model, counts = make_model(data, use_ext_input=False), data["test"].encod_data
    expected = model.infer(data["test"])["rates"]
    for given in (counts, counts.astype(np.int64), counts.astype(np.uint8)):
        assert torch.equal(model.infer({"encod_data": given})["rates"], expected)


def test_no_trials_give_no_rates(make_dataset):
    data = make_dataset()
    assert make_model(data).infer({"encod_data": data["test"].encod_data[:0]})["rates"].shape == (0, 6, 6)


def test_jitter_of_a_continuous_signal_is_refused(make_dataset):
    data = replace(make_dataset(), signal="continuous")
    with pytest.raises(DatasetError, match="spike_jitter moves spikes"):
        make_model(data, spike_jitter=1, observation={"kind": "gaussian"})


def test_samples_of_a_trial_do_not_depend_on_how_many_bins_pad_it(make_dataset):
    short = make_dataset(n_bins=6)
    lengths = {name: np.full(split.n_trials, 6) for name, split in short.splits.items()}

    def padded(split, name):
        longer = {
            key: np.pad(value, ((0, 0), (0, 3), (0, 0))) for key, value in split.arrays().items() if value.ndim == 3
        }
        return replace(split, **longer, n_bins=lengths[name])

    long = replace(short, splits={name: padded(split, name) for name, split in short.splits.items()})
    rates = [make_model(data, n_samples=4).infer(data["test"])["rates"][:, :6] for data in (short, long)]
    torch.testing.assert_close(*rates, rtol=1e-8, atol=1e-10)
