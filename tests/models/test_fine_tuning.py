"""Fits that begin with another: what is taken over, by which names, and what stays frozen."""

import numpy as np
import pytest
import torch

from ctdb import models, training
from ctdb.datasets import MultiSession, SpikeDataset, Split
from ctdb.errors import ConfigError
from ctdb.files import read_yaml
from ctdb.models.base import load

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "sae_gru": {"latent_size": 4, "encoder_size": 5},
    "lfads": {"gen_dim": 5, "fac_dim": 4, "ic_enc_dim": 5, "ic_dim": 3, "ci_enc_dim": 4, "con_dim": 4, "co_dim": 2, "n_samples": 2},
}  # fmt: skip
SMALL["band"] = SMALL["lfads"]
LINEAR = {"readin": {"kind": "linear", "dim": 3}}


def make_split(n_trials, seed, heldin, neurons):
    rng = np.random.default_rng([seed, n_trials])
    recon = rng.poisson(rng.uniform(0.3, 2, neurons), (n_trials, 7, neurons)).astype(np.float32)
    behavior = (rng.normal(size=(n_trials, 7, 2)) * [3, 0.1] + 5).astype(np.float32)
    return Split(encod_data=recon[:, :, :heldin].copy(), recon_data=recon, behavior=behavior)


def make_data(seed=0, heldin=4, neurons=6):
    sizes = {"train": 12, "valid": 5, "test": 3}
    return SpikeDataset({name: make_split(n, seed, heldin, neurons) for name, n in sizes.items()}, 0.01)


def make_spec(kind, max_epochs=2, **changed):
    optimiser = {"max_epochs": max_epochs, "batch_size": 6, "learning_rate": 0.02}
    return {"kind": kind, "training": optimiser} | SMALL[kind] | changed


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Fit a model, once for each spec and dataset; return its folder and its weights."""
    folders = {}

    def run(spec, data):
        key = repr(spec), *((name, session["train"].recon_data.tobytes()) for name, session in data.sessions.items())
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("initial")
            training.fit(models.build(spec, data), data, spec, folders[key])
        return folders[key], load(folders[key], torch.float32).state_dict()

    return run


def compare(model, old, fresh):
    """Names of weights that equal those of the fit, and of those that equal a fresh model's."""
    taken = {name for name, value in model.state_dict().items() if name in old and torch.equal(value, old[name])}
    started = {name for name, value in model.state_dict().items() if torch.equal(value, fresh.state_dict()[name])}
    return taken, started


def same(*pairs):
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", SMALL)
def test_every_weight_is_taken_over_where_the_shapes_are_the_same(fitted, kind):
    folder, old = fitted(make_spec(kind), make_data())
    model = models.build(make_spec(kind, seed=3), make_data(seed=1), folder)
    taken, _ = compare(model, old, models.build(make_spec(kind, seed=3), make_data(seed=1)))
    assert taken == set(old) == set(model.state_dict())


@pytest.mark.parametrize("kind", SMALL)
def test_what_sees_or_predicts_other_neurons_starts_afresh(fitted, kind):
    folder, old = fitted(make_spec(kind), make_data())
    spec, data = make_spec(kind, seed=3), make_data(seed=1, heldin=5, neurons=8)
    model = models.build(spec, data, folder)
    taken, started = compare(model, old, models.build(spec, data))
    assert taken | started == set(old)
    of_neurons = {name for name, value in model.state_dict().items() if value.shape != old[name].shape}
    assert of_neurons == set(old) - taken
    expected = {"readout.0.weight", "readout.0.bias", "ic_encoder.ahead.weight_ih", "ic_encoder.back.weight_ih"}
    expected |= {"ci_encoder.ahead.weight_ih", "ci_encoder.back.weight_ih"}
    if kind == "sae_gru":
        expected = {"encoder.weight_ih_l0", "encoder.weight_ih_l0_reverse", "to_log_rates.weight", "to_log_rates.bias"}
    assert of_neurons == expected
    means = torch.from_numpy(data["train"].recon_data.mean((0, 1)))
    bias = model.readout[0].bias if kind != "sae_gru" else model.to_log_rates.bias
    torch.testing.assert_close(bias, means.log(), rtol=1e-4, atol=1e-4)  # the new readout knows its new neurons


def test_other_sizes_take_what_fits_and_another_kind_nothing(fitted):
    folder, old = fitted(make_spec("lfads"), make_data())
    spec = make_spec("lfads", gen_dim=7)
    model = models.build(spec, make_data(), folder)
    taken, started = compare(model, old, models.build(spec, make_data()))
    assert "controller.weight_ih" in taken
    assert {"generator.weight_hh", "to_factors.weight", "ic_to_g0.weight"} <= started - taken
    with pytest.raises(
        ConfigError, match=r"nothing of the fit in .*initial\d+ has a place in this model; begin with one"
    ):
        models.build(make_spec("sae_gru"), make_data(), folder)


def test_band_begins_with_lfads(fitted):
    folder, old = fitted(make_spec("lfads"), make_data())
    model = models.build(make_spec("band"), make_data(), folder)
    assert compare(model, old, model)[0] == set(old)


# ------------------------------------------------------------------------------------------------------- sessions


def sessions(**chosen):
    """Sessions of equal shape and different counts."""
    seeds = {"monday": 1, "friday": 2, "tuesday": 3}
    return MultiSession({name: make_data(seed=seeds[name], **shape) for name, shape in chosen.items()})


def of_session(weights, index):
    return {name: value for name, value in weights.items() if name.split(".")[1:2] == [str(index)]}


def moved(weights, old, new):
    """Weights of session number `old` under the names of number `new`."""
    return {name.replace(f".{old}.", f".{new}."): value for name, value in of_session(weights, old).items()}


def equal(weights, expected):
    assert expected
    return all(torch.equal(weights[name], value) for name, value in expected.items())


def test_sessions_are_found_by_name_and_not_by_number(fitted):
    folder, old = fitted(make_spec("lfads", **LINEAR), sessions(monday={}, friday={}))
    data = sessions(friday={}, tuesday={}, monday={})
    spec = make_spec("lfads", seed=1, **LINEAR)
    weights, fresh = (models.build(spec, data, initial).state_dict() for initial in (folder, None))
    assert len(of_session(old, 0)) == 4  # weight and bias of read-in and readout
    assert equal(weights, moved(old, 1, 0))
    assert equal(weights, of_session(fresh, 1))  # tuesday was not there
    assert equal(weights, moved(old, 0, 2))
    shared = {name: value for name, value in old.items() if not name.startswith(("readin.", "readout."))}
    assert equal(weights, shared)


@pytest.mark.parametrize("name", ["monday", "friday"])
def test_one_of_two_sessions_is_tuned(fitted, name):
    folder, old = fitted(make_spec("lfads", **LINEAR), sessions(monday={}, friday={}))
    spec = make_spec("lfads", seed=1, **LINEAR)
    model = models.build(spec, sessions(**{name: {}}), folder)
    assert equal(model.state_dict(), moved(old, ["monday", "friday"].index(name), 0))
    assert same((model.generator.weight_hh, old["generator.weight_hh"]))


def test_a_fit_of_one_session_is_widened_to_two(fitted):
    folder, old = fitted(make_spec("lfads", **LINEAR), sessions(friday={}))
    spec, data = make_spec("lfads", seed=1, **LINEAR), sessions(monday={}, friday={})
    weights, fresh = (models.build(spec, data, initial).state_dict() for initial in (folder, None))
    assert equal(weights, of_session(fresh, 0))
    assert equal(weights, moved(old, 0, 1))


def test_a_dataset_without_sessions_has_no_name_and_only_shares_the_middle(fitted):
    folder, old = fitted(make_spec("lfads", **LINEAR), sessions(monday={}, friday={}))
    spec, alone = make_spec("lfads", seed=1, **LINEAR), make_data(seed=1)
    weights, fresh = (models.build(spec, alone, initial).state_dict() for initial in (folder, None))
    assert equal(weights, of_session(fresh, 0))
    assert equal(weights, {name: old[name] for name in ("generator.weight_hh", "to_factors.weight", "co_mean.bias")})
    folder, old = fitted(make_spec("lfads", **LINEAR), alone)
    spec, data = make_spec("lfads", seed=1, **LINEAR), sessions(monday={}, friday={})
    weights, fresh = (models.build(spec, data, initial).state_dict() for initial in (folder, None))
    for index in (0, 1):
        assert equal(weights, of_session(fresh, index))
    assert same((weights["generator.weight_hh"], old["generator.weight_hh"]))


def test_a_session_with_more_neurons_than_it_had_starts_afresh_beside_one_that_did_not(fitted):
    folder, old = fitted(make_spec("lfads", **LINEAR), sessions(monday={}, friday={}))
    spec, data = make_spec("lfads", seed=1, **LINEAR), sessions(monday={"heldin": 5, "neurons": 7}, friday={})
    weights, fresh = (models.build(spec, data, initial).state_dict() for initial in (folder, None))
    assert equal(weights, moved(old, 1, 1))
    changed = {name: value for name, value in of_session(fresh, 0).items() if name != "readin.0.bias"}
    assert equal(weights, changed)  # the read-in's bias has the size of the channels, which stay as they were
    assert same((weights["readin.0.bias"], old["readin.0.bias"]))


def test_parameters_of_the_observation_model_go_with_their_session(fitted):
    spec = make_spec("lfads", **LINEAR, observation={"kind": "zero_inflated_gamma", "smallest_event": 0.5})
    folder, old = fitted(spec, sessions(monday={}, friday={}))
    assert not torch.equal(old["observation.0.log_scale"], old["observation.1.log_scale"])
    weights = models.build(spec, sessions(friday={}, monday={}), folder).state_dict()
    assert same((weights["observation.0.log_scale"], old["observation.1.log_scale"]))
    assert same((weights["observation.1.log_scale"], old["observation.0.log_scale"]))


# --------------------------------------------------------------------------------------------------------- training


def test_a_tuned_fit_begins_where_the_other_ended_and_writes_whom_it_began_with(fitted, tmp_path):
    data = make_data()
    folder, _ = fitted(make_spec("sae_gru", max_epochs=15), data)
    first = {"dataset": "some", "model": "first", "seed": 0}
    spec = make_spec("sae_gru", initial_fit=first)
    tuned = training.fit(models.build(spec, data, folder), data, spec, tmp_path / "tuned")
    scratch = training.fit(models.build(spec, data), data, spec, tmp_path / "scratch")
    assert tuned.history["train_loss"].iloc[0] < scratch.history["train_loss"].iloc[0] - 0.01
    assert read_yaml(tmp_path / "tuned/spec.yaml")["model"]["initial_fit"] == first
    assert load(tmp_path / "tuned").settings.initial_fit.model == "first"


def test_a_fit_tuned_from_other_weights_does_not_continue_a_checkpoint(fitted, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CTDB_CHECKPOINT_SECONDS", "0")
    data, spec = make_data(), make_spec("sae_gru")
    folders = [fitted(make_spec("sae_gru", seed=seed), data)[0] for seed in (0, 1)]
    out = tmp_path / "tuned"
    training.fit(models.build(spec, data, folders[0]), data, spec, out)
    first = (out / "weights.safetensors").read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ctdb.training.fitting.discard_checkpoint", interrupted)  # the last step of a fit
    with pytest.raises(KeyboardInterrupt):
        training.fit(models.build(spec, data, folders[1]), data, spec, out)
    capsys.readouterr()
    monkeypatch.undo()
    training.fit(models.build(spec, data, folders[0]), data, spec, out)
    assert "continuing" not in capsys.readouterr().out
    assert (out / "weights.safetensors").read_bytes() == first


FROZEN = {
    "sae_gru": ["cell", "to_log_rates"],
    "lfads": ["generator", "ic_encoder.ahead", "con_initial"],
    "band": ["generator", "behavior", "to_factors"],
}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("from_a_fit", [False, True])
def test_frozen_parts_stay_as_they_are_to_the_last_bit_and_the_others_do_not(fitted, tmp_path, kind, from_a_fit):
    data = make_data()
    folder = fitted(make_spec(kind), data)[0] if from_a_fit else None
    spec = make_spec(kind, freeze=FROZEN[kind], seed=5)
    spec["training"] |= {"optimizer": "adamw", "weight_decay": 0.1}
    if kind != "sae_gru":
        spec["l2_gen_scale"] = 10.0
    model = models.build(spec, data, folder)
    before = {name: value.clone() for name, value in model.named_parameters()}
    training.fit(model, data, spec, tmp_path / "tuned")
    after = load(tmp_path / "tuned", torch.float32).state_dict()
    frozen = {name for name in before if any(f"{name}.".startswith(f"{part}.") for part in FROZEN[kind])}
    assert {name for name in before if torch.equal(before[name], after[name])} == frozen
    assert len(frozen) >= 4


def test_a_part_is_frozen_by_its_whole_name():
    spec = make_spec("lfads", freeze=["ic_encoder.ahead"])
    frozen = {name for name, value in models.build(spec, make_data()).named_parameters() if not value.requires_grad}
    assert frozen == {"ic_encoder.ahead.weight_ih", "ic_encoder.ahead.weight_hh", "ic_encoder.ahead.bias"}
    single = models.build(make_spec("lfads", freeze=["ic_encoder.ahead.bias"]), make_data())
    assert {name for name, value in single.named_parameters() if not value.requires_grad} == {"ic_encoder.ahead.bias"}
    assert all(value.requires_grad for value in models.build(make_spec("lfads"), make_data()).parameters())


@pytest.mark.parametrize(
    ("part", "hint"),
    [("generatr", "did you mean 'generator'"), ("ic_enc", "did you mean 'ic_"), ("generator.weight", "did you mean 'generator'"), ("", "valid: ")],
)  # fmt: skip
def test_freezing_what_is_not_there_is_refused_with_the_nearest_part(part, hint):
    with pytest.raises(ConfigError, match=rf"freeze: '{part}' is no part of model 'lfads'; {hint}"):
        models.build(make_spec("lfads", freeze=["generator", part]), make_data())


def test_a_frozen_decoder_of_lfads_is_not_fitted_at_the_end(fitted, tmp_path):
    data = make_data()
    folder, old = fitted(make_spec("lfads"), data)
    spec = make_spec("lfads", seed=4, freeze=["behavior"])
    training.fit(models.build(spec, data, folder), data, spec, tmp_path / "tuned")
    assert same((load(tmp_path / "tuned", torch.float32).behavior.map.weight, old["behavior.map.weight"]))


def test_weights_of_behaviour_groups_are_those_of_the_settings_and_not_of_the_fit(fitted):
    folder, _ = fitted(make_spec("band"), make_data())
    spec = make_spec("band", behavior={"groups": {"first": {"channels": [0], "weight": 3.0}}})
    assert models.build(spec, make_data(), folder).behavior.channel_weight.tolist() == [3.0, 0.0]


def test_weights_of_another_cell_are_refused(fitted):
    folder, _ = fitted(make_spec("lfads", cell="gru"), make_data())
    with pytest.raises(ConfigError, match=r"has cell 'gru', this model 'clipped_gru', .* give both the same cell"):
        models.build(make_spec("lfads", cell="clipped_gru"), make_data(), folder)


def test_what_starts_afresh_cannot_be_frozen(fitted):
    folder, _ = fitted(make_spec("lfads"), make_data())
    with pytest.raises(ConfigError, match=r"freeze: 'generator' cannot be frozen, because generator\.weight_ih"):
        models.build(make_spec("lfads", gen_dim=9, freeze=["generator"]), make_data(), folder)
    models.build(make_spec("lfads", freeze=["generator"]), make_data(), folder)
