"""Scores of dynamics: between a system that never moves and the true one, whatever the coordinates of the fit."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from ctdb.datasets import SpikeDataset, Split
from ctdb.dsa_scores import dsa_of
from ctdb.dynamics import FixedPoints
from ctdb.dynamics_scores import (
    POINT_SCORES,
    Comparison,
    System,
    closed_loop_points,
    constant_input,
    fit_dynamics,
    fit_system,
    fixed_points_of,
    no_points,
    true_dynamics,
)
from ctdb.errors import ConfigError
from ctdb.files import read_hdf5, write_hdf5, write_yaml
from ctdb.models import base as models
from ctdb.networks import base as networks
from ctdb.scores import COLUMNS
from ctdb.settings import DYNAMICS_SCORES, DsaSettings, DynamicsSettings
from ctdb.tasks.base import build as build_task
from ctdb.tasks.base import simulation_trials

BINS, STATES, INPUTS = 60, 4, 2
SETTINGS = DynamicsSettings(
    fixed_points={"n_starts": 20},
    forecast={"horizon": 10, "every": 10},
    lyapunov={"n_trajectories": 3, "transient": 20, "n_bins": 50, "n_exponents": 4},
    dsa={"components": 3, "n_null": 4},
)
RNG = np.random.default_rng(0)
MIX, SHIFT = RNG.normal(size=(STATES, 6)), RNG.normal(size=6)
BACK = np.linalg.pinv(MIX)
LABELS = {"dataset": "some", "model": "gru", "kind": "sae_gru", "sweep": "{}", "seed": 0}


def bistable(state, input):
    """Two coordinates with two stable points each, pushed by two inputs, and two that follow them."""
    x, y = state[:, :2], state[:, 2:]
    return torch.cat([torch.tanh(2 * x + input), 0.5 * y + 0.3 * x], 1)


def mixed(step):
    mix, shift, back = (torch.from_numpy(array) for array in (MIX, SHIFT, BACK))
    return lambda state, input: step((state - shift) @ back, input) @ mix + shift


def make_dataset(lengths=False, noise=0.02):
    rng, splits = np.random.default_rng(1), {}
    for name, n_trials in (("train", 40), ("valid", 6), ("test", 12)):
        pulses = 3.0 * rng.choice([-1, 0, 1], p=[0.04, 0.92, 0.04], size=(n_trials, BINS, INPUTS))
        state, rows = torch.from_numpy(rng.normal(size=(n_trials, STATES))), []
        for t in range(BINS):
            state = bistable(state, torch.from_numpy(pulses[:, t])) + noise * torch.from_numpy(
                rng.normal(size=(n_trials, STATES))
            )
            rows.append(state.numpy())
        latents = np.stack(rows, 1)
        n_bins = rng.integers(30, BINS + 1, n_trials) if lengths else None
        splits[name] = Split(
            encod_data=np.ones((n_trials, BINS, 3), np.float32),
            recon_data=np.ones((n_trials, BINS, 3), np.float32),
            ext_input=pulses,
            latents=latents,
            n_bins=n_bins,
        )
    return SpikeDataset(splits, 0.01, names={"inputs": ["left", "right"]})


def system_of(dataset, step=bistable, change=lambda states: states):
    states = {name: change(split.latents) for name, split in dataset.splits.items()}
    inputs = {name: split.ext_input for name, split in dataset.splits.items()}
    return System(step, states, inputs, np.zeros(INPUTS))


@pytest.fixture(scope="module")
def dataset():
    return make_dataset()


@pytest.fixture(scope="module")
def comparison(dataset):
    truth = system_of(dataset)
    return Comparison(dataset, truth, fixed_points_of(truth, dataset, SETTINGS), SETTINGS)


def scored(comparison, system):
    scores, _ = comparison.of(system, fixed_points_of(system, comparison.dataset, comparison.settings))
    return {name: float(score) for name, score in scores.items()}


def test_the_true_system_has_9_points_and_scores_1(comparison):
    assert comparison.points.index.bincount().tolist() == [4, 4, 1]
    scores = scored(comparison, comparison.truth)
    assert set(scores) == set(DYNAMICS_SCORES) - {"dsa_similarity"}
    for name in {*POINT_SCORES, "flow_field_r2"} - {"fixed_point_distance"}:
        assert scores[name] == pytest.approx(1, abs=1e-9), name
    assert scores["fixed_point_distance"] == pytest.approx(0, abs=1e-9)
    assert 0.9 < scores["forecast_skill"] < 1  # all but the noise


def test_the_same_system_in_other_coordinates_scores_the_same(comparison, dataset):
    own = scored(comparison, comparison.truth)
    other = scored(comparison, system_of(dataset, mixed(bistable), lambda states: states @ MIX + SHIFT))
    for name in own:
        assert other[name] == pytest.approx(own[name], abs=1e-6), name


def test_a_system_that_never_moves_scores_0(comparison):
    scores, _ = comparison.of(comparison.still, no_points(1))
    of_pairs = {"fixed_point_precision", "fixed_point_distance"}
    for name in set(POINT_SCORES) - of_pairs | {"forecast_skill", "flow_field_r2"}:
        assert float(scores[name]) == pytest.approx(0, abs=1e-12), name
    assert "no fixed point was found" in str(scores["fixed_point_precision"])
    assert "no fixed point matches" in str(scores["fixed_point_distance"])


def contracting(state, input):
    """Input and states like the true ones, but one stable point for all."""
    return 0.8 * state + torch.nn.functional.pad(input, (0, 2))


def mirrored(state, input):
    """The true points, with what is stable and what is not changed round, as time backwards does."""
    x, y = state[:, :2], state[:, 2:]
    return torch.cat([x - 0.2 * (torch.tanh(2 * x + input) - x), 0.5 * y + 0.3 * x], 1)


def sluggish(state, input):
    """The true points, of a tenth of the speed."""
    return state + 0.1 * (bistable(state, input) - state)


def test_wrong_dynamics_score_low_where_they_are_wrong(comparison, dataset):
    own = scored(comparison, comparison.truth)
    one = scored(comparison, system_of(dataset, contracting))
    assert one["fixed_point_recall"] == pytest.approx(1 / 9)
    assert one["fixed_point_precision"] == 1
    assert one["fixed_point_index"] == one["fixed_point_stability"] == 0  # the middle is no saddle
    assert one["flow_field_r2"] < 0.9
    assert one["forecast_skill"] < own["forecast_skill"] - 0.2
    back = scored(comparison, system_of(dataset, mirrored))
    assert back["fixed_point_recall"] == 1
    assert back["fixed_point_stability"] == pytest.approx(4 / 9)  # the other saddles stay saddles
    assert back["fixed_point_index"] == pytest.approx(4 / 9)
    slow = scored(comparison, system_of(dataset, sluggish))
    assert slow["fixed_point_index"] == 1
    assert slow["fixed_point_edges"] == 1
    assert slow["fixed_point_time_constants"] == 0
    assert slow["lyapunov_max"] > own["lyapunov_max"] / 10
    assert own["lyapunov_max"] == pytest.approx(np.log(0.5) / 0.01, rel=1e-6)


def test_a_fit_that_runs_away_is_no_forecast(comparison, dataset):
    """Runs that end in no number must not drop out of the error, which would flatter the fit."""
    late = lambda state, input: torch.where(state.abs() > 0.9, torch.nan, bistable(state, input))  # noqa: E731
    never = lambda state, input: torch.nan * state  # noqa: E731
    burst = lambda state, input: torch.sinh(50 * state)  # noqa: E731
    own = replace(comparison, settings=SETTINGS.model_copy(update={"lyapunov": None}), points=None)
    for step in (late, never, burst):
        scores, facts = own.of(system_of(dataset, step), no_points(STATES))
        assert "leave the finite numbers" in str(scores["forecast_skill"])
        assert not np.isfinite(facts["forecast_error"]).all()
    rows = own.rows(scores, LABELS).set_index("metric")
    assert rows.loc["forecast_skill", "status"] == "undefined"
    assert np.isnan(rows.loc["forecast_skill", "value"])
    found = fixed_points_of(system_of(dataset, never), dataset, SETTINGS)
    assert not len(found)
    scores, _ = replace(comparison, settings=SETTINGS).of(system_of(dataset, never), found)
    assert "not finite" in str(scores["lyapunov_max"])
    assert scores["fixed_point_recall"] == 0


def test_what_cannot_be_scored_says_why(comparison, dataset):
    """No true fixed point, no bin to forecast from, too few exponents for a dimension: no 0, and no score of 1."""
    wanted = SETTINGS.model_copy(
        update={
            "forecast": SETTINGS.forecast.model_copy(update={"every": 59}),
            "lyapunov": SETTINGS.lyapunov.model_copy(update={"n_exponents": 1}),
        }
    )
    grows = lambda state, input: state * state.new_tensor([1.1, 0.5, 0.5, 0.5])  # noqa: E731
    none = replace(comparison, points=no_points(STATES), settings=wanted)
    for found, precise in ((comparison.points, "0.0"), (no_points(STATES), "no fixed point was found")):
        scores, _ = none.of(system_of(dataset, grows), found)
        assert str(scores["fixed_point_precision"]) == precise
        for name in set(POINT_SCORES) - {"fixed_point_precision", "fixed_point_distance"}:
            assert "the true system has no fixed point" in str(scores[name]), name
    assert "forecast.every" in str(scores["forecast_skill"])
    assert "60 bins" in str(scores["forecast_skill"])
    assert scores["lyapunov_max"] == pytest.approx(np.log(1.1) / 0.01)
    assert "lyapunov.n_exponents" in str(scores["kaplan_yorke_dimension"])
    rows = none.rows(scores, LABELS).set_index("metric")
    assert rows.loc[["fixed_point_recall", "forecast_skill", "kaplan_yorke_dimension"], "value"].isna().all()


def test_the_order_of_trials_does_not_matter_and_their_pairing_does(comparison, dataset):
    order = np.random.default_rng(3).permutation(12)
    test = dataset["test"]
    moved = replace(test, latents=test.latents[order], ext_input=test.ext_input[order])
    shuffled = replace(dataset, splits={**dataset.splits, "test": moved})
    own = scored(comparison, system_of(dataset, contracting))
    again = Comparison(shuffled, system_of(shuffled), comparison.points, SETTINGS)
    for name, value in scored(again, system_of(shuffled, contracting)).items():
        if name not in ("lyapunov_max", "kaplan_yorke_dimension"):  # from the first trials
            assert value == pytest.approx(own[name], abs=1e-9), name
    torn = replace(system_of(dataset), inputs={"test": test.ext_input[order]})
    assert scored(comparison, torn)["forecast_skill"] < scored(comparison, comparison.truth)["forecast_skill"] - 0.1


def test_padding_does_not_enter():
    def poisoned(value):
        data = make_dataset(lengths=True)
        splits = {}
        for name, split in data.splits.items():
            beyond = (np.arange(BINS) >= split.n_bins[:, None])[..., None]
            splits[name] = replace(
                split,
                latents=np.where(beyond, value, split.latents),
                ext_input=np.where(beyond, value, split.ext_input),
            )
        data = replace(data, splits=splits)
        truth = system_of(data)
        whole = Comparison(data, truth, fixed_points_of(truth, data, SETTINGS), SETTINGS)
        return scored(whole, system_of(data, contracting, lambda states: states @ np.diag([1, 2, 3, 4])))

    clean = poisoned(0.0)
    for value in (np.nan, 1e6):
        assert poisoned(value) == pytest.approx(clean, abs=1e-9, nan_ok=True)


def test_forecast_and_flow_are_those_of_every_run_one_by_one():
    """Trials of several lengths, so that far horizons have fewer runs than near ones."""
    data = make_dataset(lengths=True)
    own = Comparison(data, system_of(data), None, SETTINGS.model_copy(update={"lyapunov": None}))
    scores, _ = own.of(system_of(data, contracting), no_points(STATES))
    train, test = data["train"], data["test"]
    mean = np.concatenate([trial[:length] for trial, length in zip(train.latents, train.n_bins, strict=True)]).mean(0)
    errors, of_mean, missed, moved = 0.0, 0.0, 0.0, 0.0
    for trial, input, length in zip(test.latents, test.ext_input, test.n_bins, strict=True):
        trial, input = torch.from_numpy(trial[:length]), torch.from_numpy(input[:length])
        for start in range(10, length - 1, 10):
            state = trial[start : start + 1]
            for t in range(start + 1, min(start + 11, length)):
                state = contracting(state, input[t : t + 1])
                errors += float(((state[0] - trial[t]) ** 2).sum())
                of_mean += float(((mean - trial[t].numpy()) ** 2).sum())
        velocity = bistable(trial[:-1], input[1:]) - trial[:-1]
        missed += float((contracting(trial[:-1], input[1:]) - trial[:-1] - velocity).square().sum())
        moved += float(velocity.square().sum())
    assert float(scores["forecast_skill"]) == pytest.approx(1 - errors / of_mean, rel=1e-9)
    assert float(scores["flow_field_r2"]) == pytest.approx(1 - missed / moved, rel=1e-9)


def test_points_match_within_the_distance_of_the_settings_and_shares_are_of_all_true_points(comparison, dataset):
    where = comparison.points.x[0] + 0.1
    toward = lambda state, input: where + 0.5 * (state - where)  # noqa: E731
    system = system_of(dataset, toward)
    found = fixed_points_of(system, dataset, SETTINGS)
    for within, recall in ((0.3, 1 / 9), (0.01, 0)):
        nearer = SETTINGS.model_copy(
            update={"fixed_points": SETTINGS.fixed_points.model_copy(update={"within": within}), "lyapunov": None}
        )
        scores, _ = replace(comparison, settings=nearer).of(system, found)
        for name in ("fixed_point_recall", "fixed_point_stability", "fixed_point_index"):
            assert scores[name] == pytest.approx(recall), name
        assert scores["fixed_point_precision"] == bool(recall)
        if recall:
            variance = dataset["train"].latents.reshape(-1, STATES).var(0).sum()
            between = float((comparison.points.x[:, None] - found.x[None]).norm(dim=2).min())
            assert 0.5 * between / variance**0.5 < scores["fixed_point_distance"] <= between / variance**0.5 + 1e-9


def test_exponents_are_those_under_the_constant_input_from_the_first_trials(dataset):
    wanted = SETTINGS.model_copy(update={"forecast": None})
    own = Comparison(dataset, system_of(dataset), None, wanted)
    scores, facts = own.of(replace(system_of(dataset), constant=np.full(INPUTS, 3.0)), no_points(STATES))
    at = 1.0
    for _ in range(50):
        at = np.tanh(2 * at + 3)
    per_bin = np.log([0.5, 0.5, 2 * (1 - at**2), 2 * (1 - at**2)])
    np.testing.assert_allclose(facts["lyapunov"], per_bin / 0.01, rtol=1e-6)
    assert scores["lyapunov_max"] == facts["lyapunov"][0]
    first = dataset["test"].latents[:, 0, 0] > 0
    n = int(np.flatnonzero(first != first[0])[0])  # trials until one begins on the other side
    one_side = lambda state, input: state * torch.where(state[:, :1] > 0, 0.5, 0.25)  # noqa: E731
    for more, share in ((0, first[:n].mean()), (1, first[: n + 1].mean())):
        few = wanted.model_copy(update={"lyapunov": wanted.lyapunov.model_copy(update={"n_trajectories": n + more})})
        scores, _ = replace(own, settings=few).of(system_of(dataset, one_side), no_points(STATES))
        expected = share * np.log(0.5) + (1 - share) * np.log(0.25)
        assert scores["lyapunov_max"] == pytest.approx(expected / 0.01, rel=1e-6)


def test_points_are_sought_near_train_states_alone(dataset):
    system = system_of(dataset, contracting)
    nowhere = replace(system, states={"train": system.states["train"]})
    one, other = (fixed_points_of(each, dataset, SETTINGS) for each in (system, nowhere))
    assert torch.equal(one.x, other.x)
    assert one.bin_s == dataset.bin_s


def test_the_search_is_that_of_the_settings(dataset):
    def ends(step, **wanted):
        settings = DynamicsSettings(fixed_points={"n_starts": 8, **wanted})
        return fixed_points_of(system_of(dataset, step), dataset, settings).start_point

    assert len(ends(contracting)) == 8
    assert len(ends(contracting, thorough=True)) == 24
    assert not torch.equal(ends(bistable)[:8], ends(bistable, seed=1)[:8])


def test_a_fit_gets_the_inputs_that_it_takes_or_infers():
    data = make_dataset(lengths=True)
    small = {"gen_dim": 3, "fac_dim": 2, "ic_enc_dim": 2, "ic_dim": 2, "ci_enc_dim": 2, "con_dim": 2, "n_samples": 1}
    mean = SETTINGS.model_copy(update={"fixed_points": SETTINGS.fixed_points.model_copy(update={"input": "mean"})})
    outputs = {f"{name}_latents": split.latents for name, split in data.splits.items()}
    inferred = {f"{name}_gen_inputs": split.latents[..., :3] for name, split in data.splits.items()}
    taking = models.build({"kind": "sae_gru", "latent_size": 3, "encoder_size": 3}, data)
    closed = models.build({"kind": "lfads", "co_dim": 1, "use_ext_input": False, **small}, data)
    system = fit_system(data, taking, outputs, mean)
    assert system.inputs["test"] is data["test"].ext_input
    train = data["train"]
    valid = [trial[:length] for trial, length in zip(train.ext_input, train.n_bins, strict=True)]
    np.testing.assert_allclose(system.constant, np.concatenate(valid).mean(0))
    system = fit_system(data, closed, outputs, mean)
    assert system.inputs["test"] is None
    assert system.constant.shape == (0,)
    assert fit_system(data, closed, outputs | inferred, mean).inputs["test"] is inferred["test_gen_inputs"]
    beyond = (np.arange(BINS) >= data["test"].n_bins[:, None])[..., None]
    padded = outputs | {"test_latents": np.where(beyond, np.nan, data["test"].latents)}
    assert fit_system(data, closed, padded, mean).states["test"] is padded["test_latents"]


def test_constant_inputs():
    given = np.array([[0.0, 1.0], [2.0, 3.0]])
    names = ["left", "right"]
    np.testing.assert_array_equal(constant_input("zero", names, given), [0, 0])
    np.testing.assert_array_equal(constant_input("mean", names, given), [1, 2])
    np.testing.assert_array_equal(constant_input([4.0, 5.0], names, given), [4, 5])
    np.testing.assert_array_equal(constant_input({"right": 7.0}, names, given), [0, 7])
    with pytest.raises(ConfigError, match=r"fixed_points\.input.*'rigth'.*right"):
        constant_input({"rigth": 7.0}, names, given)
    with pytest.raises(ConfigError, match=r"fixed_points\.input.*1 values; expected 2.*left"):
        constant_input([4.0], names, given)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A network of random weights, its dataset, and untrained fits: one that went well and one that diverged."""
    folder = tmp_path_factory.mktemp("fitted")
    spec = {"kind": "vanilla", "hidden_size": 5}
    network = networks.build(spec, INPUTS, 1, seed=0).double()
    network.save(folder / "network", status="ok", reason="")
    data = make_dataset()
    splits = {}
    for name, split in data.splits.items():
        with torch.no_grad():
            states, _ = network.run(torch.from_numpy(split.ext_input))
        splits[name] = replace(split, latents=states.numpy())
    data = replace(data, splits=splits)
    fits = []
    for label, status in (("gru", "ok"), ("broken", "diverged")):
        model = models.build({"kind": "sae_gru", "latent_size": 3, "encoder_size": 3}, data)
        model.save(folder / label, status=status, reason="" if status == "ok" else "the loss became NaN")
        arrays = {
            f"{name}_{key}": value.numpy()
            for name, split in data.splits.items()
            for key, value in model.infer(split).items()
        }
        write_hdf5(folder / label / "output.h5", arrays, {"status": status})
        fits.append(({**LABELS, "model": label}, folder / label))
    return folder, data, fits


def test_files_and_rows_of_truth_and_fits(fitted, tmp_path):
    folder, data, fits = fitted
    truth = true_dynamics(data, folder / "network", SETTINGS, "some", tmp_path)
    assert list(truth.columns) == list(COLUMNS)
    assert set(truth["role"]) == {"ceiling", "floor"}
    assert set(truth["split"]) == {"test"}
    assert set(truth.loc[truth["role"] == "ceiling", "metric"]) == set(DYNAMICS_SCORES) - {"dsa_similarity"}
    points = FixedPoints.load(tmp_path / "fixed_points.h5")
    network = networks.load(folder / "network")
    assert len(points)
    torch.testing.assert_close(network.step(points.x, points.input), points.x, rtol=0, atol=1e-11)
    tables = [
        fit_dynamics(data, fit, folder / "network", tmp_path, SETTINGS, labels, tmp_path / labels["model"])
        for labels, fit in fits
    ]
    good, broken = tables
    assert set(good["metric"]) == set(broken["metric"]) == set(truth["metric"])
    assert set(good["model"]) == {"gru"}
    assert set(good["role"]) == {"fit"}
    assert set(good["n_trials"]) == {12}
    assert np.isfinite(good.set_index("metric").loc["flow_field_r2", ["value", "low", "high"]].astype(float)).all()
    assert (broken["status"] == "diverged").all()
    assert (broken["reason"] == "the loss became NaN").all()
    assert broken["value"].isna().all()
    model = models.load(folder / "gru")
    own = FixedPoints.load(tmp_path / "gru/fixed_points.h5")
    torch.testing.assert_close(model.step(own.x, own.input), own.x, rtol=0, atol=1e-11)
    assert len(FixedPoints.load(tmp_path / "broken/fixed_points.h5")) == 0
    facts, about = read_hdf5(tmp_path / "gru/dynamics.h5")
    assert about["status"] == "ok"
    assert facts["to_true_weights"].shape == (3, 5)
    assert facts["forecast_error"].shape == facts["forecast_persistence"].shape == (10,)
    assert read_hdf5(tmp_path / "broken/dynamics.h5")[1]["status"] == "diverged"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda arrays: arrays | {"train_latents": arrays["train_latents"] * np.nan}, "train trials are not finite"),
        (lambda arrays: arrays | {"test_latents": arrays["test_latents"] * np.inf}, "test trials are not finite"),
        (lambda arrays: {name: value for name, value in arrays.items() if "latents" not in name}, "no latents"),
    ],
)
def test_a_fit_without_states_has_rows_that_say_so(fitted, tmp_path, spoil, reason):
    folder, data, fits = fitted
    shutil.copytree(fits[0][1], tmp_path / "fit")
    write_hdf5(tmp_path / "fit/output.h5", spoil(read_hdf5(tmp_path / "fit/output.h5")[0]), {})
    truth = true_dynamics(data, folder / "network", SETTINGS, "some", tmp_path)
    table = fit_dynamics(data, tmp_path / "fit", folder / "network", tmp_path, SETTINGS, LABELS, tmp_path / "gru")
    assert set(table["metric"]) == set(truth["metric"])
    assert set(table["status"]) == {"undefined"}
    assert table["reason"].str.contains(reason).all()
    assert read_hdf5(tmp_path / "gru/dynamics.h5")[1]["status"] == "undefined"
    assert not len(FixedPoints.load(tmp_path / "gru/fixed_points.h5"))


def test_the_constant_input_is_that_of_the_settings(fitted, tmp_path):
    folder, data, fits = fitted
    wanted = SETTINGS.model_copy(
        update={"fixed_points": SETTINGS.fixed_points.model_copy(update={"input": {"right": 0.5}})}
    )
    true_dynamics(data, folder / "network", wanted, "some", tmp_path)
    fit_dynamics(data, fits[0][1], folder / "network", tmp_path, wanted, LABELS, tmp_path / "gru")
    for file in ("fixed_points.h5", "gru/fixed_points.h5"):
        points = FixedPoints.load(tmp_path / file)
        assert len(points)
        assert (points.input == torch.tensor([0.0, 0.5], dtype=torch.float64)).all()


def test_a_dataset_without_a_network_has_no_true_points_and_one_without_states_no_comparison(fitted, tmp_path):
    _, data, fits = fitted
    table = true_dynamics(data, None, SETTINGS, "some", tmp_path)
    assert set(table["metric"]) == {"flow_field_r2", "forecast_skill"}
    assert set(table["role"]) == {"floor"}
    of_fit = fit_dynamics(data, fits[0][1], None, tmp_path, SETTINGS, LABELS, tmp_path / "gru")
    exponents = {"lyapunov_max", "kaplan_yorke_dimension"}
    assert set(of_fit["metric"]) == {"flow_field_r2", "forecast_skill"} | exponents
    blind = replace(data, splits={name: replace(split, latents=None) for name, split in data.splits.items()})
    assert not len(true_dynamics(blind, None, SETTINGS, "some", tmp_path / "blind"))
    of_fit = fit_dynamics(blind, fits[0][1], None, tmp_path / "blind", SETTINGS, LABELS, tmp_path / "blind/gru")
    assert set(of_fit["metric"]) == exponents
    assert len(FixedPoints.load(tmp_path / "blind/gru/fixed_points.h5"))


def test_observed_motion_stands_for_the_flow_of_an_unknown_network(dataset):
    """Without noise it is the same."""
    quiet = make_dataset(noise=0.0)
    known, unknown = (
        Comparison(quiet, replace(system_of(quiet), step=step), None, SETTINGS) for step in (bistable, None)
    )
    fit = system_of(quiet, contracting)
    values = [float(one.of(fit, no_points(STATES))[0]["flow_field_r2"]) for one in (known, unknown)]
    assert values[0] == pytest.approx(values[1], abs=1e-9)


def write_fit(folder, latents, status="ok"):
    write_hdf5(folder / "output.h5", {f"test_{name}": value for name, value in {"latents": latents}.items()}, {})
    write_yaml(folder / "spec.yaml", {"status": status, "reason": "" if status == "ok" else "NaN"})


def oscillation(n_trials, period, rng, n_bins=BINS):
    phase = 2 * np.pi * (np.arange(n_bins) / period + rng.random(n_trials)[:, None])
    return np.stack([np.cos(phase), np.sin(phase), np.cos(2 * phase)], 2) + 0.01 * rng.normal(
        size=(n_trials, n_bins, 3)
    )


def test_dsa_ranks_systems_between_shuffled_bins_and_halves_of_the_truth(dataset, tmp_path):
    rng = np.random.default_rng(4)
    true = oscillation(12, 20.0, rng)
    data = replace(dataset, splits={**dataset.splits, "test": replace(dataset["test"], latents=true)})
    fits = []
    for name, latents in {
        "same": 3 * true @ np.linalg.qr(rng.normal(size=(3, 3)))[0] + 1,
        "near": oscillation(12, 17.0, rng),
        "far": oscillation(12, 5.0, rng),
    }.items():
        write_fit(tmp_path / name, latents)
        fits.append(({**LABELS, "model": name}, tmp_path / name))
    write_fit(tmp_path / "broken", true, "diverged")
    fits.append(({**LABELS, "model": "broken"}, tmp_path / "broken"))
    arrays, facts, table = dsa_of(data, fits, SETTINGS.dsa)
    value = table.set_index("model")["value"]
    assert value["same"] == pytest.approx(1, abs=1e-6)
    assert value["same"] >= value["ceiling_true_rates"] > value["near"] > value["far"]
    assert value["ceiling_true_rates"] > 0.99
    assert value["floor_mean_rate"] == 0
    assert table.set_index("model").loc["broken", ["status", "reason"]].tolist() == ["diverged", "NaN"]
    assert facts["names"] == ["truth", "same seed 0", "near seed 0", "far seed 0"]
    assert arrays["distances"].shape == (4, 4)
    assert value["near"] == pytest.approx(1 - arrays["distances"][0, 2] / arrays["floor"][0])
    again, _, _ = dsa_of(data, fits, SETTINGS.dsa, n_jobs=2)
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
    assert 1 - value["ceiling_true_rates"] == pytest.approx(np.median(arrays["null"][0]) / arrays["floor"][0], rel=1e-6)
    assert set(table["n_trials"]) == {12}
    other, _, _ = dsa_of(data, fits, SETTINGS.dsa.model_copy(update={"components": 2}))
    assert set(arrays["n_channels"]) == {3}
    assert set(other["n_channels"]) == {2}
    blind = replace(data, splits={**data.splits, "test": replace(data["test"], latents=None)})
    arrays, facts, table = dsa_of(blind, fits, SETTINGS.dsa)
    assert facts["names"] == ["same seed 0", "near seed 0", "far seed 0"]
    assert not len(table)


def test_dsa_leaves_out_what_has_no_dynamics_and_keeps_the_rest(dataset, tmp_path):
    rng = np.random.default_rng(4)
    data = replace(
        dataset, splits={**dataset.splits, "test": replace(dataset["test"], latents=oscillation(12, 20, rng))}
    )
    good = oscillation(12, 17, rng)
    systems = {"good": good, "still": np.ones_like(good), "nan": good * np.nan, "flat": good[..., :1] * np.ones(3)}
    fits = [({**LABELS, "model": name}, tmp_path / name) for name in [*systems, "blind"]]
    for name, latents in systems.items():
        write_fit(tmp_path / name, latents)
    write_hdf5(tmp_path / "blind/output.h5", {"test_rates": good}, {})
    write_yaml(tmp_path / "blind/spec.yaml", {"status": "ok", "reason": ""})
    wanted = SETTINGS.dsa.model_copy(update={"n_delays": 1, "rank": 3})
    arrays, facts, table = dsa_of(data, fits, wanted)
    table = table.set_index("model")
    assert facts["names"] == ["truth", "good seed 0"]
    assert arrays["distances"].shape == (2, 2)
    assert (facts["n_delays"], facts["rank"]) == (1, 3)
    assert table["status"].to_dict() == dict.fromkeys(table.index, "undefined") | dict.fromkeys(
        ["floor_mean_rate", "ceiling_true_rates", "good"], "ok"
    )
    for name, reason in {
        "still": "never changes",
        "nan": "not finite",
        "flat": "rank 3",
        "blind": "no latents",
    }.items():
        assert reason in table.loc[name, "reason"]
    # The flat one lowers the rank of all, and the floor is at that rank too.
    flat = fits[3:4]
    arrays, facts, table = dsa_of(data, flat, SETTINGS.dsa)
    assert np.isfinite(table["value"]).all()
    wanted = wanted.model_copy(update={"n_delays": facts["n_delays"], "rank": facts["rank"]})
    for seed, same in ((0, True), (1, False)):
        again, _, _ = dsa_of(data, flat, wanted.model_copy(update={"seed": seed}))
        assert (again["floor"] == arrays["floor"]) == same
        np.testing.assert_array_equal(again["distances"], arrays["distances"])
    constant = replace(data, splits={**data.splits, "test": replace(data["test"], latents=np.ones_like(good))})
    _, facts, table = dsa_of(constant, fits[:1], wanted)
    assert facts["names"] == ["good seed 0"]
    assert table["reason"].str.contains("truth.*never changes").all()
    assert len(table) == 3


@pytest.mark.parametrize(
    ("n_trials", "n_bins", "options", "reason"),
    [
        (3, 60, {}, "too few to choose"),
        (12, 2, {}, "too few for 1 delays"),
        (3, 2, {"components": 12}, "too few for 1 delays"),
        (12, 60, {"metric": "angular", "components": 1, "n_delays": 1, "rank": 1}, "no further from its own bins"),
    ],
)
def test_dsa_of_too_little_is_undefined(dataset, tmp_path, n_trials, n_bins, options, reason):
    rng = np.random.default_rng(0)
    test = Split(
        encod_data=np.ones((n_trials, n_bins, 3), np.float32),
        recon_data=np.ones((n_trials, n_bins, 3), np.float32),
        latents=rng.normal(size=(n_trials, n_bins, 12)).cumsum(1),
    )
    data = replace(dataset, splits={**dataset.splits, "test": test})
    write_fit(tmp_path / "own", rng.normal(size=(n_trials, n_bins, 8)).cumsum(1))
    arrays, facts, table = dsa_of(data, [({**LABELS, "model": "own"}, tmp_path / "own")], DsaSettings(**options))
    assert table["role"].tolist() == ["floor", "ceiling", "fit"]
    assert set(table["status"]) == {"undefined"}
    assert table["reason"].str.contains(reason).all()
    assert "floor" not in arrays
    assert len(facts["names"]) == len(arrays["distances"]) == len(arrays["points"]) == len(arrays["order"])
    write_hdf5(tmp_path / "dsa.h5", arrays, facts)


def test_dsa_sees_no_padding(tmp_path):
    def similarity(latents, n_bins):
        counts = np.ones((*latents.shape[:2], 3), np.float32)
        test = Split(encod_data=counts, recon_data=counts, latents=latents, n_bins=n_bins)
        data = make_dataset()
        write_fit(tmp_path / "own", np.tanh(latents[..., :2]))
        fits = [({**LABELS, "model": "own"}, tmp_path / "own")]
        found = dsa_of(replace(data, splits={**data.splits, "test": test}), fits, SETTINGS.dsa)[2]["value"]
        assert found.notna().all()
        return found.to_numpy(float)

    latents, lengths = make_dataset()["test"].latents, np.random.default_rng(2).integers(30, BINS + 1, 12)
    for n_bins, cut in ((lengths, BINS), (np.full(12, 40), 40)):
        own = similarity(latents[:, :cut], n_bins)
        for n_more, value in ((0, np.nan), (BINS - cut + 10, 1e6)):
            longer = np.pad(latents[:, :cut], ((0, 0), (0, n_more), (0, 0)))
            beyond = (np.arange(cut + n_more) >= n_bins[:, None])[..., None]
            np.testing.assert_allclose(similarity(np.where(beyond, value, longer), n_bins), own, rtol=1e-9)


def test_dsa_of_failed_fits_alone(dataset, tmp_path):
    write_fit(tmp_path / "broken", dataset["test"].latents, "diverged")
    fits = [({**LABELS, "model": "broken"}, tmp_path / "broken")]
    _, facts, table = dsa_of(dataset, fits, SETTINGS.dsa)
    assert facts["names"] == ["truth"]
    assert table["status"].tolist() == ["ok", "ok", "diverged"]
    blind = replace(dataset, splits={**dataset.splits, "test": replace(dataset["test"], latents=None)})
    arrays, facts, table = dsa_of(blind, fits, SETTINGS.dsa)
    assert facts["names"] == []
    assert arrays["distances"].shape == (0, 0)
    assert not len(table)


def test_input_dsa_needs_inputs(dataset, tmp_path):
    write_fit(tmp_path / "own", dataset["test"].latents)
    fits = [({**LABELS, "model": "own"}, tmp_path / "own")]
    wanted = DsaSettings(metric="input", components=2, n_null=2)
    _, _, table = dsa_of(dataset, fits, wanted)
    assert table.set_index("model").loc["own", "value"] == pytest.approx(1, abs=1e-6)
    blind = replace(dataset, splits={name: replace(one, ext_input=None) for name, one in dataset.splits.items()})
    with pytest.raises(ConfigError, match="no external input"):
        dsa_of(blind, fits, wanted)


def test_a_body_joins_the_true_points_and_leaves_fits_none_to_compare(tmp_path):
    pytest.importorskip("motornet")
    task = build_task(
        {
            "kind": "random_target",
            "train": {"seed": 0, "n_bins": 30, "target_on": [2, 5], "go": [8, 10], "bump_fraction": 0.0},
            "simulate": {
                "seed": 1,
                "n_trials": 12,
                "n_bins": 30,
                "target_on": [2, 5],
                "go": [8, 10],
                "bump_fraction": 0.0,
            },
        }
    )
    trials = simulation_trials(task)
    network = networks.build({"kind": "vanilla", "hidden_size": 5}, len(task.input_names), len(task.output_names), 0)
    network.double().save(tmp_path / "network", status="ok", reason="")
    loaded = networks.load(tmp_path / "network")
    own = {"target x": 0.1, "target y": 0.4}
    settings = SETTINGS.model_copy(
        update={"fixed_points": SETTINGS.fixed_points.model_copy(update={"input": own, "n_starts": 5})}
    )
    points = closed_loop_points(loaded, task, trials, settings)
    assert points.x.shape[1] > 5
    n_inputs = len(task.input_names)
    rng = np.random.default_rng(0)
    splits = {
        name: Split(
            encod_data=np.ones((12, 30, 3), np.float32),
            recon_data=np.ones((12, 30, 3), np.float32),
            ext_input=rng.normal(size=(12, 30, n_inputs)),
            latents=rng.normal(size=(12, 30, 5)),
        )
        for name in ("train", "valid", "test")
    }
    data = SpikeDataset(splits, 0.01)
    table = true_dynamics(data, tmp_path / "network", settings, "some", tmp_path, task, trials)
    assert set(table["metric"]) == {"flow_field_r2", "forecast_skill"}
    assert FixedPoints.load(tmp_path / "fixed_points.h5").x.shape[1] == points.x.shape[1]
    assert not read_hdf5(tmp_path / "dynamics.h5")[1]["compares_points"]
    listed = settings.model_copy(update={"fixed_points": settings.fixed_points.model_copy(update={"input": [0.0] * 3})})
    with pytest.raises(ConfigError, match=r"dynamics\.some\.fixed_points\.input: .*by name"):
        true_dynamics(data, tmp_path / "network", listed, "some", tmp_path, task, trials)
