"""What every registered model must keep to, and its loss on spikes and behaviour against scipy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import poisson

from ctdb import models, training
from ctdb.datasets import MultiSession, SpikeDataset, Split
from ctdb.errors import ConfigError, DatasetError
from ctdb.files import read_hdf5
from ctdb.models.base import load

KINDS = list(models.MODELS.modules)
HELDIN, NEURONS, BINS = 6, 9, 14
SMALL = {"latent_size": 5, "encoder_size": 7, "field_layers": 2, "field_width": 8} | {
    **{"gen_dim": 5, "fac_dim": 4, "ic_enc_dim": 5, "ic_dim": 3, "n_samples": 3},
    **{"ci_enc_dim": 4, "con_dim": 4, "co_dim": 3},
}
WITHOUT_NOISE = {"dropout": 0.0, "initial_state_dropout": 0.0, "dropout_rate": 0.0, "cd_rate": 0.0}
WITHOUT_POSTERIOR = {"ic_prior": {"kind": "none"}, "co_prior": {"kind": "none"}}

pytestmark = [pytest.mark.parametrize("kind", KINDS), pytest.mark.usefixtures("one_thread")]


def make_split(n_trials, seed, n_bins=BINS, n_recon_bins=BINS, n_inputs=2, lengths=False):
    rng = np.random.default_rng(seed)
    recon = rng.poisson(rng.uniform(0.2, 2, NEURONS), size=(n_trials, n_recon_bins, NEURONS)).astype(np.float32)
    return Split(
        encod_data=recon[:, :n_bins, :HELDIN].copy(),
        recon_data=recon,
        ext_input=rng.normal(size=(n_trials, n_recon_bins, n_inputs)).astype(np.float32) if n_inputs else None,
        n_bins=rng.integers(4, n_recon_bins, size=n_trials) if lengths else None,
        behavior=rng.normal([5, -2], [3, 0.1], size=(n_trials, n_recon_bins, 2)).astype(np.float32),
    )


def make_data(**shape):
    sizes = {"train": 20, "valid": 7, "test": 6}
    return SpikeDataset({name: make_split(n, i, **shape) for i, (name, n) in enumerate(sizes.items())}, bin_s=0.01)


def make_spec(kind, seed=0, **changed):
    training = {"max_epochs": 3, "batch_size": 8, "learning_rate": 0.01}
    return {"kind": kind, "seed": seed, "training": training} | known(kind, SMALL) | changed


def known(kind, settings):
    return {name: value for name, value in settings.items() if name in models.MODELS[kind].Settings.model_fields}


def make_model(kind, data, seed=0, **changed):
    return models.build(make_spec(kind, seed, **changed), data)


def behavior_error(inferred, trials):
    """Mean squared error in standard deviations of the trials that the model was built for, over valid bins."""
    valid = np.arange(trials.behavior.shape[1]) < trials.n_bins[:, None]
    behavior = trials.behavior.astype(float)
    return (((inferred - behavior)[valid] / behavior[valid].std(0)) ** 2).mean()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


SHAPES = {
    "plain": {},
    "forward prediction": {"n_recon_bins": BINS + 6},
    "no external input": {"n_inputs": 0},
    "trials of different lengths": {"lengths": True},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_inference_gives_positive_rates_of_all_neurons_in_all_bins(kind, shape):
    data = make_data(**shape)
    inferred = make_model(kind, data).infer(data["test"])
    assert inferred["rates"].shape == data["test"].recon_data.shape
    assert inferred["latents"].shape[:2] == data["test"].recon_data.shape[:2]
    assert (inferred["rates"] > 0).all()
    assert all(torch.isfinite(value).all() for value in inferred.values())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_stepping_from_an_inferred_state_reproduces_the_latents_and_their_rates(kind, shape):
    data = make_data(**shape)
    model = make_model(kind, data, **known(kind, WITHOUT_POSTERIOR))
    inferred = model.infer(data["test"])
    n_bins, inputs = data.n_recon_bins, inferred.get("gen_inputs", model.tensors(data["test"])["ext_input"])
    state = inferred["latents"][:, 0]
    with torch.no_grad():
        for t in range(1, n_bins):
            state = model.step(state, inputs[:, t])
            torch.testing.assert_close(state, inferred["latents"][:, t], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.rates(inferred["latents"]), inferred["rates"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.rates(state), inferred["rates"][:, -1], rtol=1e-5, atol=1e-6)


def test_heldout_neurons_and_later_bins_never_influence_inference(kind):
    data = make_data(n_recon_bins=BINS + 6)
    model, test = make_model(kind, data), data["test"]
    changed = test.recon_data.copy()
    changed[:, :, HELDIN:] += 5
    changed[:, BINS:] += 3
    before, after = model.infer(test), model.infer(replace(test, recon_data=changed))
    unseen = model.infer({"encod_data": test.encod_data, "ext_input": test.ext_input})
    assert before.keys() == after.keys() == unseen.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name])
        assert torch.equal(value, unseen[name])


def test_heldin_neurons_and_inputs_do_influence_inference(kind):
    data = make_data()
    model, test = make_model(kind, data), data["test"]
    rates = model.infer(test)["rates"]
    assert not torch.equal(rates, model.infer(replace(test, encod_data=test.encod_data + 1))["rates"])
    assert not torch.equal(rates, model.infer(replace(test, ext_input=test.ext_input + 1))["rates"])


def test_an_input_never_acts_on_earlier_bins(kind):
    data = make_data()
    model, test = make_model(kind, data), data["test"]
    later = test.ext_input.copy()
    later[:, 8:] += 1
    before, after = model.infer(test)["latents"], model.infer(replace(test, ext_input=later))["latents"]
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.equal(before[:, 8], after[:, 8])


def test_inference_is_in_eval_mode_the_same_every_time_and_keeps_the_mode(kind, monkeypatch):
    data = make_data()
    model = make_model(kind, data)
    infer_batch, modes = model.infer_batch, []

    def spy(batch, **options):
        modes.append(model.training)
        return infer_batch(batch, **options)

    monkeypatch.setattr(model, "infer_batch", spy)
    for mode in (True, False):
        model.train(mode)
        first, second = model.infer(data["test"]), model.infer(data["test"])
        assert model.training == mode
        for name, value in first.items():
            assert torch.equal(value, second[name])
    assert modes == [False] * 4


def test_trials_are_inferred_alone(kind):
    data = make_data()
    model, test = make_model(kind, data), data["test"]
    together, one = model.infer(test), model.infer(test.take(np.array([3])))
    for name, value in together.items():
        torch.testing.assert_close(value[3:4], one[name], rtol=1e-5, atol=1e-6)


def test_many_trials_are_inferred_in_passes(kind, monkeypatch):
    data = make_data()
    model = make_model(kind, data)
    whole = model.infer(data["train"])
    monkeypatch.setattr("ctdb.models.base.TRIALS_PER_PASS", 8)
    for name, value in model.infer(data["train"]).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-6)


def test_randomness_comes_from_the_generator_and_only_in_training(kind):
    data = make_data()
    model = make_model(kind, data)
    batch = model.tensors(data["train"])
    model.train()
    torch.manual_seed(1)
    first = model.loss(batch, generator(7)).item()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert model.loss(batch, generator(7)).item() == first
    assert model.loss(batch, generator(8)).item() != first
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()
    assert model.loss(batch, generator(7)).item() == model.loss(batch, generator(8)).item()


def test_loss_is_the_mean_poisson_likelihood_over_valid_bins_and_all_neurons(kind):
    data, weight = make_data(lengths=True, n_recon_bins=BINS + 2), {"behavior_weight": 0.3}
    model = make_model(kind, data, **known(kind, WITHOUT_NOISE | WITHOUT_POSTERIOR | weight))
    train = data["train"]
    inferred = model.infer(train)
    rates = inferred["rates"].double().numpy()
    terms = [
        -poisson.logpmf(train.recon_data[trial, :length], rates[trial, :length]).ravel()
        for trial, length in enumerate(train.n_bins)
    ]
    expected = np.concatenate(terms).mean()
    if known(kind, weight):
        expected += 0.3 * behavior_error(inferred["behavior"].numpy(), train)
    batch = model.tensors(train)
    for mode in (True, False):  # without dropout, training and evaluation agree
        assert model.train(mode).loss(batch, generator()).item() == pytest.approx(expected, rel=1e-5)


def test_padding_changes_neither_loss_nor_gradient_nor_valid_rates(kind):
    data = make_data(lengths=True)
    train = data["train"]
    padding = np.arange(BINS) >= train.n_bins[:, None]
    assert padding.any()
    changed = {name: getattr(train, name).copy() for name in ("encod_data", "recon_data", "ext_input", "behavior")}
    for value in changed.values():
        value[padding] = 1e6
    other = replace(train, **changed)
    results = []
    for split in (train, other):
        model = models.build(make_spec(kind), SpikeDataset({**data.splits, "train": split}, 0.01))
        loss = model.train().loss(model.tensors(split), generator())
        loss.backward()
        learned = [part for name, part in model.named_parameters() if kind != "lfads" or "behavior." not in name]
        gradients = [parameter.grad for parameter in learned]
        results.append((loss, model.infer(split)["rates"][~torch.from_numpy(padding)], *gradients))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_padding_and_missing_spikes_are_none_to_see_and_do_not_weigh(kind):
    data = make_data(lengths=True, n_recon_bins=BINS + 2)
    train = data["train"]
    for counts in (train.encod_data, train.recon_data):
        counts += 1
        counts[:, 2, 1] = np.nan
    padding = np.arange(BINS + 2) >= train.n_bins[:, None]
    for value in (train.encod_data, train.recon_data, train.ext_input):
        value[padding[:, : value.shape[1]]] = np.inf
    batch = make_model(kind, make_data(n_recon_bins=BINS + 2)).tensors(train)
    for name in ("encod_data", "recon_data", "ext_input"):
        assert not batch[name][torch.from_numpy(padding[:, : batch[name].shape[1]])].any()
    observed = train.observed()
    assert torch.equal(batch["weight"] > 0, torch.from_numpy(observed))
    assert torch.equal(batch["encod_data"] > 0, torch.from_numpy(observed[:, :BINS, :HELDIN]))
    assert torch.equal(batch["n_bins"], torch.from_numpy(train.n_bins).clamp(max=BINS))
    assert not batch["recon_data"].isnan().any()


def test_start_is_at_the_mean_rates_of_the_train_trials(kind):
    data = make_data(lengths=True)
    model, train = make_model(kind, data), data["train"]
    valid = np.arange(BINS) < train.n_bins[:, None]
    mean = train.recon_data[valid].mean(0)
    with torch.no_grad():
        np.testing.assert_allclose(model.rates(torch.zeros(1, 5))[0].numpy(), mean, rtol=1e-5)


def test_a_silent_neuron_starts_at_a_small_finite_rate(kind):
    data = make_data()
    train = data["train"]
    train.recon_data[:, :, 8] = 0
    rates = make_model(kind, data).infer(train)["rates"][:, :, 8]
    assert (rates > 0).all()
    assert rates.mean() < 0.05


def test_building_depends_on_the_seed_alone_and_leaves_the_global_random_state_alone(kind):
    data = make_data()
    torch.manual_seed(1)
    first = make_model(kind, data).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, other = make_model(kind, data).state_dict(), make_model(kind, data, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_fit_comes_back_as_it_was_written(kind, shape, tmp_path):
    data, spec = make_data(**shape), make_spec(kind)
    model = models.build(spec, data)
    training.fit(model, data, spec, tmp_path)
    written, _ = read_hdf5(tmp_path / "output.h5")
    single, double = load(tmp_path, torch.float32), models.load(tmp_path)
    assert not double.training
    assert {value.dtype for value in double.state_dict().values()} == {torch.float64}
    assert double.settings == model.settings
    for split in ("train", "valid", "test"):
        for name, value in single.infer(data[split]).items():
            assert np.array_equal(value.numpy(), written[f"{split}_{name}"])
        for name, value in double.infer(data[split]).items():
            assert value.dtype == torch.float64
            np.testing.assert_allclose(value.numpy(), written[f"{split}_{name}"], rtol=1e-3, atol=1e-4)
    state = torch.from_numpy(written["test_latents"][:, 0])  # single precision, as an outside tool may give it
    inputs = torch.zeros(len(state), data.n_inputs)
    assert double.step(state, inputs).dtype == torch.float64
    assert double.rates(state).dtype == torch.float64


def test_jacobian_of_the_step_equals_finite_differences(kind):
    data = make_data()
    model = make_model(kind, data).double()
    state, u = torch.randn(1, 5, generator=generator()).double(), torch.randn(1, 2, generator=generator()).double()
    jacobian = torch.autograd.functional.jacobian(lambda h: model.step(h, u), state)[0, :, 0]
    for i in range(5):
        bump = torch.zeros(1, 5, dtype=torch.float64)
        bump[0, i] = 1e-6
        slope = (model.step(state + bump, u) - model.step(state - bump, u))[0] / 2e-6
        torch.testing.assert_close(jacobian[:, i], slope, rtol=1e-6, atol=1e-8)


def test_unknown_kind_and_unknown_key_are_errors(kind):
    data = make_data()
    with pytest.raises(ConfigError, match=f"did you mean '{kind}'"):
        models.build({"kind": f"{kind}x"}, data)
    with pytest.raises(ValueError, match="laten_size"):
        models.build(make_spec(kind) | {"laten_size": 3}, data)


def test_how_far_trials_are_padded_does_not_change_what_is_inferred(kind):
    rng = np.random.default_rng(3)
    lengths = rng.integers(4, BINS, size=6)
    long, rates = make_split(6, seed=3), []
    for n_bins in (BINS, BINS + 7):
        padded = {
            name: np.pad(value, ((0, 0), (0, n_bins - value.shape[1]), (0, 0))) for name, value in long.arrays().items()
        }
        data = make_data(n_bins=n_bins, n_recon_bins=n_bins)
        model = make_model(kind, data, **known(kind, WITHOUT_POSTERIOR))
        model.load_state_dict(make_model(kind, make_data(), **known(kind, WITHOUT_POSTERIOR)).state_dict())
        rates.append(model.infer(padded | {"n_bins": lengths})["rates"])
    for trial, length in enumerate(lengths):
        torch.testing.assert_close(rates[0][trial, :length], rates[1][trial, :length], rtol=1e-5, atol=1e-6)


def test_trials_of_another_shape_are_refused_clearly(kind):
    data = make_data()
    model = make_model(kind, data)
    arrays = data["test"].arrays()
    with pytest.raises(DatasetError, match=r"ext_input of \(bins, channels\) .* but was given nothing"):
        model.infer({"encod_data": arrays["encod_data"]})
    with pytest.raises(DatasetError, match=r"encod_data of \(bins, channels\)"):
        model.infer(arrays | {"encod_data": arrays["encod_data"][:, :, 1:]})


def test_several_sessions_are_refused_by_a_model_of_one(kind):
    two = MultiSession({"a": make_data(), "b": make_data()})
    spec = make_spec(kind, **known(kind, {"readin": {"kind": "linear"}}))
    if models.MODELS[kind].takes_sessions:
        assert models.build(spec, two).infer(two.sessions["b"]["test"], "b")["rates"].shape[2] == NEURONS
    else:
        with pytest.raises(DatasetError, match=f"'{kind}' takes one session, but was given 2"):
            models.build(spec, two)
