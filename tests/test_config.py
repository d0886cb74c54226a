"""The configuration: what is right becomes a plan of plain values, what is wrong is told by YAML path and nearest name."""

import json
import re
from pathlib import Path

import pytest
import yaml

from ctdb import config
from ctdb.config import FitsEntry, data_path, load
from ctdb.datasets.ibl.recording import RECORDINGS
from ctdb.datasets.kind import DATASETS
from ctdb.errors import ConfigError
from ctdb.figures import FIGURES
from ctdb.models import MODELS
from ctdb.models.observations import OBSERVATIONS
from ctdb.networks import NETWORKS
from ctdb.settings import DynamicsSettings
from ctdb.tasks import TASKS

REPOSITORY = Path(__file__).parents[1]

GOOD = """
tasks:
  flip: {kind: nbff, n_bits: 2}
networks:
  gru: {kind: noisy_gru, task: flip}
datasets:
  spikes: {kind: simulated, network: gru}
  mine: {kind: file, path: mine.h5, keys: {recon_data: "{split}_data"}}
models:
  sae: {kind: sae_gru, latent_size: 8, training: {learning_rate: 1e-3}}
  linear: {kind: lds}
fits:
  - {datasets: [spikes], models: [sae, linear], seeds: [0, 1]}
  - {datasets: [spikes], models: [sae], sweep: {latent_size: [2, 3], training.learning_rate: [1e-3, 0.01]}}
  - {datasets: [mine], models: [linear]}
figures:
  task: {kind: task_performance, network: gru}
  states: {kind: latents, dataset: spikes, models: [sae, "sae@latent_size=2,training.learning_rate=0.001"]}
  table: {kind: score_table, dataset: spikes}
"""


SESSIONS = """
datasets:
  first: {kind: lorenz, n_conditions: 2}
  second: {kind: lorenz, seed: 1}
  both: {kind: sessions, datasets: [first, second]}
  hand: {kind: reaching, path: hand.h5, n_bins: 5}
  wave: {kind: continuous, path: wave.h5, window_bins: 5, block_bins: 10}
  control: {kind: shuffled, dataset: hand, shuffle: behavior}
models:
  lfads: {kind: lfads}
  joint: {kind: lfads, readin: {kind: linear}}
  band: {kind: band, observation: {kind: gamma}}
  tuned: {kind: lfads, initial_fit: {dataset: first, model: lfads}, freeze: [generator]}
  sae: {kind: sae_gru}
fits:
  - {datasets: [first], models: [lfads, sae]}
  - {datasets: [both], models: [joint]}
  - {datasets: [second], models: [tuned]}
  - {datasets: [hand, control], models: [band]}
figures:
  inputs: {kind: controls, dataset: both, models: [joint], session: first}
"""


@pytest.fixture
def written(tmp_path):
    """Write a configuration, changed by (old, new) pairs of text, and return its path."""

    def write(*changes: tuple[str, str], base: str = GOOD) -> Path:
        text = base
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def problem(path: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_a_plan_is_plain_and_complete(written):
    plan = load(written())
    assert json.loads(json.dumps(plan)) == plan
    assert plan["results"] == "results"
    assert plan["tasks"]["flip"]["switch_prob"] == 0.01
    assert plan["networks"]["gru"]["task"] == "flip"
    assert plan["networks"]["gru"]["state_noise"] == 0.01
    assert plan["metrics"] is None
    assert plan["modules"]["models"]["lds"] == "ctdb.models.lds"
    assert plan["figures"]["states"]["needs"][:2] == [["dataset", "spikes"], ["fit", "spikes", "sae", 0]]


def test_fits_are_datasets_by_models_by_sweep_by_seeds(written):
    fits = load(written())["fits"]
    named = [(fit["dataset"], fit["model"], fit["seed"]) for fit in fits]
    assert len(named) == len(set(named)) == 4 + 4 + 1
    assert named[:4] == [("spikes", "sae", 0), ("spikes", "sae", 1), ("spikes", "linear", 0), ("spikes", "linear", 1)]
    swept = next(fit for fit in fits if fit["model"] == "sae@latent_size=3,training.learning_rate=0.01")
    assert swept["spec"]["latent_size"] == 3
    assert swept["spec"]["training"]["learning_rate"] == 0.01
    assert json.loads(swept["sweep"]) == {"latent_size": 3, "training.learning_rate": 0.01}
    assert fits[1]["spec"]["seed"] == 1


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("figures:", "figure:", "figure: unknown key; did you mean 'figures'?"),
        ("n_bits: 2", "n_bit: 2", "tasks.flip.n_bit: unknown key; did you mean 'n_bits'?"),
        ("n_bits: 2", "n_bits: two", "tasks.flip.n_bits: Input should be a valid integer; found 'two'"),
        ("n_bits: 2", "n_bits: 0", "tasks.flip.n_bits: Input should be greater than or equal to 1; found 0"),
        ("n_bits: 2", "train: {n_trial: 3, seed: 0}", "tasks.flip.train.n_trial: unknown key; did you mean 'n_trials'?"),
        ("learning_rate: 1e-3", "learning_rates: 1", "models.sae.training.learning_rates: unknown key; did you mean"),
        ("learning_rate: 1e-3", "learning_rate: -1", "models.sae.training.learning_rate: Input should be greater than 0"),
        ("learning_rate: 1e-3", "learning_rate: .nan", "models.sae.training.learning_rate"),
        ("latent_size: 8", "latent_size: 8.5", "models.sae.latent_size: Input should be a valid integer; found 8.5"),
        ("kind: noisy_gru", "kind: noisy_gruu", "networks.gru.kind: no kind is called 'noisy_gruu'; did you mean 'noisy_gru'?"),
        ("kind: noisy_gru, ", "", "networks.gru.kind: missing"),
        ("task: flip}", "task: flop}", "networks.gru.task: no task is called 'flop'; did you mean 'flip'?"),
        (", task: flip", "", "networks.gru.task: missing"),
        ("network: gru}\n  mine", "network: grU}\n  mine", "datasets.spikes.network: no network is called 'grU'; did you mean 'gru'?"),
        ("kind: file", "kind: files", "datasets.mine.kind: no kind is called 'files'; did you mean 'file'?"),
        ("recon_data:", "recon:", "datasets.mine.keys.recon: unknown key; did you mean 'recon_data'?"),
        ("path: mine.h5, ", "", "datasets.mine.path: missing; it has no default"),
        ("[spikes], models: [sae, linear]", "[spike], models: [sae, linear]", "fits[0].datasets[0]: no dataset is called 'spike'; did you mean 'spikes'?"),
        ("models: [sae, linear]", "models: [sae, liner]", "fits[0].models[1]: no model is called 'liner'; did you mean 'linear'?"),
        ("seeds: [0, 1]", "seeds: [0, -1]", "fits[0].seeds[1]: Input should be greater than or equal to 0; found -1"),
        ("seeds: [0, 1]", "seeds: []", "fits[0].seeds: List should have at least 1 item"),
        ("seeds: [0, 1]", "seeds: 0", "fits[0].seeds: Input should be a valid list; found 0"),
        ("sweep: {latent_size", "sweep: {latent_sise", "fits[1].sweep.latent_sise: unknown key; did you mean 'latent_size'?"),
        ("training.learning_rate: [", "trainin.learning_rate: [", "fits[1].sweep.trainin.learning_rate: leads nowhere; did you mean 'training'?"),
        ("latent_size: [2, 3]", "latent_size: [2, none]", "fits[1].sweep.latent_size"),
        ("latent_size: [2, 3]", "latent_size: [[2], 3]", "fits[1].sweep.latent_size[0]: [2] cannot name a folder"),
        ("latent_size: [2, 3]", "kind: [lds, sae_node]", "fits[1].sweep.kind: kinds are not swept; define a model for each"),
        ("latent_size: [2, 3]", "seed: [2, 3]", "fits[1].sweep.seed: seeds are not swept; list them in `seeds`"),
        ("network: gru}\n  states", "network: gru2}\n  states", "figures.task.network: no network is called 'gru2'; did you mean 'gru'?"),
        ("dataset: spikes, models: [sae,", "dataset: spikes, models: [sea,", "figures.states.models: no model fitted to 'spikes' is called 'sea'; did you mean 'sae'?"),
        ("kind: latents, ", "kind: latents, seed: 7, ", "figures.states.seed: 'sae' is fitted to 'spikes' with seeds [0, 1] only"),
        ("  flip:", "  2flip:", "tasks.2flip: names are made of letters"),
        ("  linear: {kind: lds}", "  sae: {kind: lds}", "key 'sae' is given twice"),
        ("tasks:", "tasks: [", "not valid YAML"),
        ("tasks:", "? [a, b]\n: 1\ntasks:", "a key must be a name"),
        ("tasks:", "results: ''\ntasks:", "results: '' is no folder"),
        ("tasks:", "results: out{x}\ntasks:", "results: 'out{x}' is no folder"),
        ("  linear: {kind: lds}", "  linear: {kind: lds}\n  Linear: {kind: lds}", "models.Linear: differs from 'linear' in case only"),
        ("n_bits: 2", "train: {n_trials: 1, seed: 0}", "tasks.flip: valid_fraction 0.2 of train.n_trials 1 leaves none"),
        ("n_bits: 2", "blind_start: 500", "tasks.flip: blind_start 500 leaves none of the 500 bins"),
        ("n_bits: 2", "valid_fraction: 0", "tasks.flip.valid_fraction: Input should be greater than 0"),
        ("network: gru}\n  mine", "network: gru, test_fraction: 0}\n  mine", "datasets.spikes.test_fraction: Input should be greater than 0"),
        ('"{split}_data"', "spikes", "datasets.mine.keys: recon_data: 'spikes' is the same in every split; put {split} where they differ"),
        ("path: mine.h5", "path: mine.h5, splits: {test: valid}", "datasets.mine.splits: train, valid and test must be different trials"),
        ("{kind: score_table, dataset: spikes}", "{kind: score_table, dataset: spike}", "figures.table.dataset: no dataset is called 'spike'; did you mean 'spikes'?"),
        ("{kind: score_table, dataset: spikes}", "{kind: score_table, dataset: spikes, split: tset}", "figures.table.split: Input should be 'valid' or 'test'; found 'tset'"),
        ("{kind: score_table, dataset: spikes}", "{kind: score_table, dataset: spikes, metrics: [rate_r]}", "figures.table.metrics[0]: no metric is called 'rate_r'; did you mean 'rate_r2'?"),
        ("{kind: score_table, dataset: spikes}", "{kind: score_table, dataset: spikes, metrics: []}", "figures.table.metrics: List should have at least 1 item"),
        ("models: [sae, \"sae@latent_size=2,training.learning_rate=0.001\"]", "models: []", "figures.states.models: List should have at least 1 item"),
        ("{kind: latents, dataset: spikes, models: [sae, \"sae@latent_size=2,training.learning_rate=0.001\"]}", "{kind: latents, dataset: mine, models: [linear]}", "figures.states.dataset: figure 'latents' needs latents, for which datasets.mine.keys has no key"),
        ("figures:", "scores: {metrics: [rate_r2, rate_r2]}\nfigures:", "scores.metrics[1]: 'rate_r2' is listed twice"),
        ("figures:", "scores: {metrics: []}\nfigures:", "scores.metrics"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_with_its_path_and_the_nearest_name(written, old, new, expected):
    assert expected in problem(written((old, new)))


DYNAMICS = (
    GOOD.replace("figures:", "dynamics: {spikes: {}}\nfigures:")
    + """  points: {kind: fixed_points, dataset: spikes, models: [sae, linear], seed: 1}
  similar: {kind: dsa, dataset: spikes, models: [sae]}
  ahead: {kind: forecasts, dataset: spikes, models: [linear]}
  size: {kind: score_against, dataset: spikes, model: sae, key: latent_size}
  moves: {kind: score_table, dataset: spikes, metrics: [rate_r2, dsa_similarity]}
"""
)


def test_figures_of_dynamics_need_them_and_those_of_states_and_fixed_points_can_be_turned(written):
    figures = load(written(base=DYNAMICS))["figures"]
    fits = [["spikes", "sae", 1], ["spikes", "linear", 1]]
    assert sorted(figures["points"]["needs"]) == sorted(
        [
            ["dataset", "spikes"],
            ["dynamics", "spikes"],
            *(["fit", *fit] for fit in fits),
            *(["dynamics", *fit] for fit in fits),
        ]
    )
    assert figures["similar"]["needs"] == [["dsa", "spikes"]]
    assert ["dynamics", "spikes", "linear", 0] in figures["ahead"]["needs"]
    assert {name for name, figure in figures.items() if figure["interactive"]} == {"points", "states"}
    assert all(figure["interactive"] in (True, False) for figure in figures.values())
    plain = ("{kind: score_table, dataset: spikes}", "{kind: score_table, dataset: spikes, metrics: [rate_r2]}")
    assert load(written(plain))["figures"]["table"]["settings"]["metrics"] == ["rate_r2"]  # without dynamics


def test_a_figure_of_a_sweep_that_is_not_made_is_drawn_without_it(written):
    figure = "  many: {kind: ctd_sweep, sweeps: [{dataset: spikes, model: MODEL}], metrics: [rate_r2, lyapunov_max]}\n"
    made = load(written(base=GOOD + figure.replace("MODEL", "sae")))["figures"]["many"]
    labels = {need[2] for need in made["needs"] if len(need) == 4}
    points = [(size, rate) for size in (2, 3) for rate in (0.001, 0.01)]
    assert labels == {f"sae@latent_size={size},training.learning_rate={rate}" for size, rate in points}
    assert {tuple(need[:2]) for need, _ in made["missing"]} == {("dynamics_scores", "spikes")}
    absent = load(written(base=GOOD + figure.replace("MODEL", "linear")))["figures"]["many"]["missing"]
    assert [["scores", "spikes", "linear@latent_size", 0], "no fit of 'linear' to 'spikes' sweeps 'latent_size'; add such a `sweep` to `fits`"] in absent  # fmt: skip
    found = problem(written(base=GOOD + figure.replace("MODEL", "liner")))
    assert "figures.many.models: no model fitted to 'spikes' is called 'liner@latent_size'" in found


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("fixed_points, dataset: spikes", "fixed_points, dataset: mine", "figures.points.dataset: needs `dynamics.mine`, which is not there; add it"),
        ("models: [sae, linear], seed: 1", "models: [sae, liner]", "figures.points.models: no model fitted to 'spikes' is called 'liner'; did you mean 'linear'?"),
        ("seed: 1}", "seed: 2}", "figures.points.seed: 'sae' is fitted to 'spikes' with seeds [0, 1] only"),
        ("dynamics: {spikes: {}}", "dynamics: {spikes: {dsa: null}}", "figures.similar.dataset: needs `dynamics.spikes.dsa`, which is null; give it"),
        ("dsa, dataset: spikes, models: [sae]", "dsa, dataset: spikes, models: [sea]", "figures.similar.models[0]: no model fitted to 'spikes' is called 'sea'; did you mean 'sae'?"),
        ("model: sae, key", "model: linear, key", "figures.size.model: no model swept on 'spikes' is called 'linear'; valid: sae"),
        ("score_against, dataset: spikes", "score_against, dataset: mine", "figures.size.model: no model swept on 'mine' is called 'sae'; there is none to choose from"),
        ("key: latent_size}", "key: latent}", "figures.size.key: no setting swept in 'sae' is called 'latent'; did you mean 'latent_size'?"),
        ("latent_size: [2, 3],", "dropout: [0, 0.3],", "figures.size.key: no setting swept in 'sae' is called 'latent_size'"),
        ("dynamics: {spikes: {}}", "dynamics: {mine: {}}", "figures.moves.metrics[1]: 'dsa_similarity' needs `dynamics.spikes`, which is not there; add it"),
        ("rate_r2, dsa_similarity", "rate_r2, dsa_similaritty", "figures.moves.metrics[1]: no metric is called 'dsa_similaritty'; did you mean 'dsa_similarity'?"),
    ],
)  # fmt: skip
def test_mistakes_in_figures_of_dynamics_and_sweeps_are_told(written, old, new, expected):
    assert expected in problem(written((old, new), base=DYNAMICS))


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("training.backend", "[eager, torch]", "figures.size.key: 'training.backend' takes 'eager', which is no number; sweep over numbers"),
        ("initial_state_dropout", "[0, 0.5]", "figures.size.log_x: 'initial_state_dropout' takes 0, which has no logarithm; set it to false"),
    ],
)  # fmt: skip
def test_a_figure_against_what_its_axis_cannot_show_is_refused(written, key, values, expected):
    swept = (
        ("latent_size: [2, 3], training.learning_rate: [1e-3, 0.01]", f"{key}: {values}"),
        ('models: [sae, "sae@latent_size=2,training.learning_rate=0.001"]', "models: [sae]"),
    )
    assert expected in problem(written(*swept, ("key: latent_size}", f"key: {key}}}"), base=DYNAMICS))
    if "log_x" in expected:
        plain = load(written(*swept, ("key: latent_size}", f"key: {key}, log_x: false}}"), base=DYNAMICS))
        assert plain["figures"]["size"]["settings"]["log_x"] is False


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("kind: lorenz, n", "kind: lorentz, n", "datasets.first.kind: no kind is called 'lorentz'; did you mean 'lorenz'?"),
        ("n_conditions", "n_condition", "datasets.first.n_condition: unknown key; did you mean 'n_conditions'?"),
        ("[first, second]", "[first, control, both]", "datasets.both: is made from itself; break the circle"),
        ("[first, second]", "[first, first]", "datasets.both: each session is listed once"),
        ("[first, second]", "[]", "datasets.both.datasets: List should have at least 1 item"),
        ("[first, second]", "first", "datasets.both.datasets: Input should be a valid list; found 'first'"),
        ("[first, second]", "[first, secnd]", "no dataset is called 'secnd'; did you mean 'second'?"),
        ("dataset: hand", "dataset: hnd", "datasets.control.dataset: no dataset is called 'hnd'; did you mean 'hand'?"),
        ("dataset: hand", "dataset: control", "datasets.control: is made from itself; break the circle"),
        ("shuffle: behavior", "shuffle: trials", "datasets.control.shuffle: Input should be 'behavior' or 'neurons'; found 'trials'"),
        ("n_bins: 5}", "n_bins: 5, fold: 5}", "datasets.hand: fold 5 of 5: folds are counted from 0"),
        ("n_bins: 5}", "n_bins: 5, keys: {spike: s}}", "datasets.hand.keys.spike: unknown key; did you mean 'spikes'?"),
        ("window_bins: 5", "window_bins: 11", "datasets.wave: block_bins must be at least window_bins"),
        ("models: [joint]}", "models: [sae]}", "fits[1]: 'both' holds several sessions, but a model of kind 'sae_gru' takes one; fit its sessions one by one, or choose `lfads` or `band`"),
        ("models: [joint]}", "models: [lfads]}", "fits[1]: 'both' holds several sessions, each with its own neurons; set `readin: {kind: linear}"),
        ("model: lfads}", "model: lfad}", "models.tuned.initial_fit: no fit first/lfad/seed0 is made; there are: first/lfads/seed0, first/sae/seed0,"),
        ("model: lfads}", "model: lfads, seed: 2}", "models.tuned.initial_fit: no fit first/lfads/seed2 is made"),
        ("{dataset: first, model: lfads}", "{dataset: hand, model: lfads}", "models.tuned.initial_fit: no fit hand/lfads/seed0 is made"),
        ("{dataset: first, model: lfads}", "{dataset: second, model: tuned}", "models.tuned.initial_fit: begins with itself; break the circle"),
        ("{dataset: first, model: lfads}", "{model: lfads}", "models.tuned.initial_fit.dataset: missing; it has no default"),
        ("freeze: [generator]", "freeze: generator", "models.tuned.freeze: Input should be a valid list; found 'generator'"),
        ("{kind: gamma}", "{kind: gama}", "models.band.observation.kind: no kind is called 'gama'; did you mean 'gamma'?"),
        ("{kind: gamma}", "{kind: zero_inflated_gamma, smallest_event: -1.0}", "models.band.observation.smallest_event: Input should be greater than or equal to 0; found -1.0"),
        ("{kind: linear}", "{kind: linar}", "models.joint.readin.kind: Input should be 'identity', 'linear' or 'pcr'; found 'linar'"),
        ("{kind: linear}", "{knd: linear}", "models.joint.readin.knd: unknown key; did you mean 'kind'?"),
        ("kind: lfads}\n  j", "kind: lfads, co_dim: 0}\n  j", "models.lfads: ci_enc_dim, con_dim and co_dim must all be above 0, or all 0"),
        ("kind: lfads}\n  j", "kind: lfads, ic_prior: {kind: laplace}}\n  j", "models.lfads.ic_prior: Input tag 'laplace' found using 'kind' does not match any of the expected tags: 'normal', 'student_t', 'none'"),
        ("kind: lfads}\n  j", "kind: lfads, behavior: {decoder: quadratic}}\n  j", "models.lfads.behavior.decoder: Input should be 'linear' or 'sequence'; found 'quadratic'"),
        ("session: first", "sesion: first", "figures.inputs.sesion: unknown key; did you mean 'session'?"),
        ("models: [joint], session", "models: [band], session", "figures.inputs.models: no model fitted to 'both' is called 'band'"),
        pytest.param("[first, second]", "[first, secnd]", "datasets.both.datasets[1]: no dataset"),
        pytest.param("models: [joint]}", "models: [lfads]}", "set `readin: {kind: linear}` (or"),
        pytest.param("{kind: gamma}", "{kind: zero_inflated_gamma, smallest: 1.0}", "models.band.observation.smallest: unknown key; did you mean 'smallest_event'?"),
        pytest.param("{kind: lfads}\n  j", "{kind: lfads, co_prior: {kind: normal, varance: 1.0}}\n  j", "models.lfads.co_prior.varance: unknown key; did you mean 'variance'?"),
        pytest.param("session: first", "session: third", "figures.inputs.session"),
    ],
)  # fmt: skip
def test_mistakes_in_sessions_and_in_fits_that_begin_with_others_are_told_with_their_path(written, old, new, expected):
    assert expected in problem(written((old, new), base=SESSIONS))


def test_a_circle_of_datasets_or_of_fits_is_found_at_any_length(written):
    ring = ("dataset: hand, shuffle: behavior}", "dataset: both, shuffle: neurons}\n  third: {kind: shuffled, dataset: control, shuffle: neurons}")  # fmt: skip
    assert load(written(ring, ("[hand, control]", "[hand]"), base=SESSIONS))["datasets"]["third"]["sources"] == [
        ["dataset", "control"]
    ]
    found = problem(written(ring, ("[first, second]", "[first, third]"), base=SESSIONS))
    for name in ("both", "control", "third"):
        assert f"datasets.{name}: is made from itself" in found
    assert "3 problem(s)" in found
    chain = "  tuned: {kind: lfads, initial_fit: {dataset: first, model: two}}\n  two: {kind: lfads, initial_fit: {dataset: first, model: one}}\n  one: {kind: lfads, initial_fit: {dataset: second, model: tuned}}\n"  # fmt: skip
    start = SESSIONS.index("  tuned:")
    looped = SESSIONS[:start] + chain + SESSIONS[SESSIONS.index("  sae:") :]
    looped = looped.replace("[lfads, sae]", "[lfads, sae, one, two]")
    found = problem(written(base=looped))
    for name in ("tuned", "two", "one"):
        assert f"models.{name}.initial_fit: begins with itself; break the circle" in found
    opened = looped.replace("{dataset: second, model: tuned}", "{dataset: first, model: lfads}")
    assert len(load(written(base=opened))["fits"]) == 8


def test_shuffled_sessions_are_several_sessions_too(written):
    shuffled = ("dataset: hand, shuffle: behavior", "dataset: both, shuffle: neurons")
    assert "'control' holds several sessions" in problem(
        written(shuffled, ("[hand, control], models: [band]", "[control], models: [sae]"), base=SESSIONS)
    )


@pytest.mark.parametrize("dataset", ["first", "hand", "wave"])
def test_a_held_out_score_is_refused_for_every_kind_that_holds_nothing_out(written, dataset):
    asked = ("figures:", "scores: {metrics: [bits_per_spike_heldout]}\nfigures:")
    fit = ("[hand, control], models: [band]", f"[{dataset}], models: [band]")
    assert f"datasets.{dataset}.n_heldout: is 0" in problem(written(asked, fit, base=SESSIONS))


def test_a_plan_of_sessions_says_what_each_dataset_is_made_from_and_what_each_fit_runs(written):
    plan = load(written(base=SESSIONS))
    assert json.loads(json.dumps(plan)) == plan
    sources = {name: value["sources"] for name, value in plan["datasets"].items()}
    assert sources == {
        "first": [],
        "second": [],
        "both": [["dataset", "first"], ["dataset", "second"]],
        "hand": [["file", "hand.h5"]],
        "wave": [["file", "wave.h5"]],
        "control": [["dataset", "hand"]],
    }
    assert load(written())["datasets"]["spikes"]["sources"] == [["activity", "gru", 0, ""]]
    assert set(plan["datasets"]["first"]) == {"settings", "sources"}
    assert plan["datasets"]["first"]["settings"]["n_trials_per_condition"] == 50
    fits = {(fit["dataset"], fit["model"]): fit for fit in plan["fits"]}
    assert fits["hand", "band"]["modules"] == ["ctdb.models.band", "ctdb.models.observations.gamma"]
    assert fits["first", "lfads"]["modules"] == ["ctdb.models.lfads", "ctdb.models.observations.poisson"]
    assert fits["first", "sae"]["modules"] == ["ctdb.models.sae_gru"]
    assert fits["second", "tuned"]["spec"]["initial_fit"] == {"dataset": "first", "model": "lfads", "seed": 0}
    assert fits["second", "tuned"]["spec"]["freeze"] == ["generator"]
    assert fits["first", "lfads"]["spec"]["initial_fit"] is None
    assert plan["figures"]["inputs"]["needs"] == [["dataset", "both"], ["fit", "both", "joint", 0]]
    assert plan["modules"]["datasets"]["sessions"] == "ctdb.datasets.sessions"
    assert plan["modules"]["datasets"]["simulated"] == "ctdb.simulation"


def test_a_sweep_reaches_nested_settings_and_their_modules(written):
    sweep = "{datasets: [second], models: [tuned], sweep: {observation.kind: [poisson, gamma], readin.dim: [3], readin.kind: [linear]}}"  # fmt: skip
    plan = load(written(("{datasets: [second], models: [tuned]}", sweep), base=SESSIONS))
    fits = {fit["model"]: fit for fit in plan["fits"] if fit["dataset"] == "second"}
    assert {json.loads(fit["sweep"])["observation.kind"]: fit["modules"][1] for fit in fits.values()} == {
        "poisson": "ctdb.models.observations.poisson",
        "gamma": "ctdb.models.observations.gamma",
    }
    assert {fit["spec"]["readin"]["dim"] for fit in fits.values()} == {3}
    begun = "{dataset: first, model: lfads}", '{dataset: first, model: "lfads@gen_dim=3"}'
    swept = (
        "{datasets: [first], models: [lfads, sae]}",
        "{datasets: [first], models: [lfads], sweep: {gen_dim: [3, 4]}}",
    )
    assert len(load(written(begun, swept, base=SESSIONS))["fits"]) == 6
    assert "no fit first/lfads/seed0 is made; there are: first/lfads@gen_dim=3/seed0" in problem(
        written(swept, base=SESSIONS)
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[2, 3]", "[2, 2]", "is already made by fits[1]"),
        ("[1e-3, 0.01]", "[1, 1.0]", "is already made by fits[1]"),
        ("latent_size: [2, 3]", "latent_size: [8, 3]", "is already made by fits[0]"),
        (
            "  - {datasets: [mine]",
            "  - {datasets: [spikes], models: [sae], sweep: {training.learning_rate: [1e-3], latent_size: [3]}}\n"
            "  - {datasets: [mine]",
            "is already made by fits[1]",
        ),
        ("seeds: [0, 1]", "seeds: [0, 0]", "is already made by fits[0]"),
        ("{datasets: [mine], models: [linear]}", "{datasets: [spikes], models: [linear], seeds: [1]}", "by fits[0]"),
    ],
)
def test_sweeps_that_collide_are_refused(written, old, new, expected):
    found = problem(written((old, new)))
    assert expected in found
    assert "drop one of the two" in found


def test_all_mistakes_are_told_at_once(written):
    found = problem(
        written(("n_bits: 2", "n_bit: 2"), ("latent_size: 8", "latent_size: -8"), ("task: flip}", "task: x}"))
    )
    assert "3 problem(s)" in found
    assert len(found.splitlines()) == 4


def test_metrics_are_names_or_applicable(written):
    assert load(written(("figures:", "scores: {metrics: [rate_r2]}\nfigures:")))["metrics"] == ["rate_r2"]
    found = problem(written(("figures:", "scores: {metrics: [rate_r]}\nfigures:")))
    assert "scores.metrics[0]: no metric is called 'rate_r'; did you mean 'rate_r2'?" in found


def test_a_held_out_score_of_a_dataset_that_holds_nothing_out_is_refused(written):
    asked = ("figures:", "scores: {metrics: [bits_per_spike_heldout]}\nfigures:")
    assert "datasets.mine.n_heldout: is 0" in problem(written(asked))
    assert load(written(asked, ("path: mine.h5", "path: mine.h5, n_heldout: 2")))


def test_numbers_in_exponent_form_are_numbers(written):
    assert load(written(("1e-3", "2e-4")))["models"]["sae"]["training"]["learning_rate"] == 2e-4


def test_an_id_that_begins_like_a_number_is_text(written):
    recording = "recordings:\n  site: {kind: ibl, sessions: [{pid: 94e948c1-f7be-4868-893a-f7cd2df3313e}]}\ndatasets:"
    plan = load(written(("datasets:", recording)))
    assert plan["recordings"]["site"]["sessions"][0]["pid"] == "94e948c1-f7be-4868-893a-f7cd2df3313e"


def test_an_absent_file_is_told(tmp_path):
    assert "No such file" in problem(tmp_path / "nowhere.yaml")


def test_a_remembered_plan_is_the_plan_and_is_forgotten_when_the_file_changes(written, tmp_path):
    path, cache = written(), tmp_path / "cache"
    assert load(path, cache) == load(path, cache) == load(path)
    assert len(list(cache.iterdir())) == 1
    path = written(("latent_size: 8", "latent_size: 9"))
    assert load(path, cache)["models"]["sae"]["latent_size"] == 9


def test_data_paths_expand_the_environment(monkeypatch):
    monkeypatch.setenv("CTDB_DATA", "/data")
    assert data_path("$CTDB_DATA/a.h5") == Path("/data/a.h5")
    monkeypatch.delenv("CTDB_DATA")
    assert data_path("${CTDB_DATA}/a.h5") == Path(config.DEFAULT_FOLDERS["CTDB_DATA"]) / "a.h5"
    assert data_path("~/a.h5") == Path.home() / "a.h5"


@pytest.mark.parametrize("name", ["quick", "config"])
def test_the_shipped_configurations_are_right(name):
    plan = load(REPOSITORY / f"config/{name}.yaml")
    assert {"sae_gru", "sae_rnn", "sae_node", "lds"} <= {
        fit["kind"] for fit in plan["fits"] if fit["dataset"] == "nbff"
    }
    assert {"lfads", "band"} <= {fit["kind"] for fit in plan["fits"]}
    kinds = {value["settings"]["kind"] for value in plan["datasets"].values()}
    assert {"simulated", "file", "lorenz", "reaching", "shuffled"} <= kinds
    for dataset, value in plan["datasets"].items():
        assert value["settings"].get("optional", True), f"{dataset}: who has not the file cannot run the rest"
        used = {fit["dataset"] for fit in plan["fits"]} | {
            source[1] for other in plan["datasets"].values() for source in other["sources"] if source[0] == "dataset"
        }
        assert dataset in used


LEAVES = ("keys", "behavior.groups", "observation", "train", "simulate", "variants")
"""Where config/README.md may list what is nested by its own name."""


def keys_of(settings) -> dict[str, object]:
    """Keys of a settings class as config/README.md writes them, nested ones behind a dot, and their defaults."""
    found = {}
    for name, field in settings.model_fields.items():
        nested = [option for option in config._options(field.annotation) if hasattr(option, "model_fields")]
        if name == "observation":
            nested = [OBSERVATIONS[kind].Settings for kind in OBSERVATIONS.modules]
        if not nested or name in ("keys", "groups"):
            found[name] = field.default
        for key, default in [pair for option in nested for pair in keys_of(option).items()]:
            place = f"{name}.{key}"
            if name == "training":
                place = key
            elif hasattr(field.default, key) or isinstance(field.default, dict):
                default = (
                    field.default.get(key, default) if isinstance(field.default, dict) else getattr(field.default, key)
                )
            found.setdefault(place, default)
    return found


def all_settings() -> list:
    registries = (TASKS, NETWORKS, DATASETS, MODELS, FIGURES)
    of_kinds = [registry[kind].Settings for registry in registries for kind in registry.modules]
    return [*of_kinds, *RECORDINGS.values(), DynamicsSettings, FitsEntry]


def test_nested_keys_are_found_at_every_depth():
    """Of the two tests below, which could not fail for a key that they do not see."""
    seen = keys_of(MODELS["band"].Settings)
    for key in (
        "readin.kind",
        "co_prior.tau",
        "ic_prior.degrees_of_freedom",
        "observation.smallest_event",
        "l2_gen_scale",
    ):
        assert key in seen
    assert {"behavior.groups", "behavior.groups.weight", "initial_fit.seed", "plateau.factor", "kl_ic_scale"} <= set(
        seen
    )
    assert {"keys", "keys.recon_data", "splits.test"} <= set(keys_of(DATASETS["file"].Settings))
    assert (seen["co_prior.tau"], seen["observation.kind"], seen["gen_dim"]) == (10.0, "poisson", 100)


def test_every_key_is_documented():
    text = (REPOSITORY / "config/README.md").read_text()
    documented = set(re.findall(r"`([a-z0-9_.]+)`", text)) | {"seed"}
    if "(likewise in `co_prior`)" in text:
        documented |= {key.replace("ic_prior.", "co_prior.") for key in documented}
    missing = set()
    for settings in all_settings():
        for key in keys_of(settings):
            parent, _, leaf = key.rpartition(".")
            places = {key, leaf, f"train.{leaf}"} if parent in LEAVES else {key}
            if not places & documented:
                missing.add(f"{settings.__name__}: {key}")
    assert missing == set()


def test_the_documented_defaults_are_the_defaults():
    """Numbers and truth values in the second column of config/README.md, one for each key of the first."""
    rows = re.findall(r"^\| (`[^|]*`) \| ([^|]*) \|", (REPOSITORY / "config/README.md").read_text(), re.MULTILINE)
    defaults: dict[str, list] = {}
    for settings in all_settings():
        for key, default in keys_of(settings).items():
            defaults.setdefault(key, []).append(default)
    n_checked = 0
    for keys, values in rows:
        names, shown = re.findall(r"`([a-z0-9_.]+)`", keys), values.split(", ")
        for name, value in zip(names, shown * (len(names) if len(shown) == 1 else 1), strict=False):
            if re.fullmatch(r"[\d.]+(e-\d+)?|true|false", value):
                n_checked += 1
                assert yaml.safe_load(value.replace("1e-", "1.0e-")) in (
                    defaults.get(name) or defaults[f"train.{name}"]
                ), name
    assert n_checked > 100


def test_results_have_one_spelling(written):
    for spelling in ("out", "./out", "out/", "x/../out"):
        assert load(written(("tasks:", f"results: {spelling}\ntasks:")))["results"] == "out"
    assert load(written(("tasks:", "results: ~/out\ntasks:")))["results"] == str(Path.home() / "out")


def test_anchors_and_merges_may_be_nested(written):
    path = written(("models:", "models:\n  base: &base {kind: lds, training: &t {max_epochs: 3, patience: 2}}"))
    text = path.read_text() + "\n"
    text = text.replace(
        "linear: {kind: lds}",
        "linear: &l {<<: *base, latent_size: 3, training: {<<: *t, patience: 9}}\n  third: {<<: *l, latent_size: 4}",
    )
    path.write_text(text)
    models = load(path)["models"]
    assert models["third"]["training"]["patience"] == 9
    assert models["third"]["training"]["max_epochs"] == 3
    assert models["third"]["latent_size"] == 4


def test_a_file_that_is_not_utf_8_is_told(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("models: {gr\xfcn: 1}".encode("latin-1"))
    assert "UTF-8" in problem(tmp_path / "latin.yaml")


VARIANTS = (
    ("n_bits: 2}", "n_bits: 2, variants: {step: {n_trials: 20, seed: 3}, slow: {seed: 4}}}"),
    ("network: gru}\n  mine", "network: gru, variant: step}\n  mine"),
    ("{kind: task_performance, network: gru}", "{kind: task_performance, network: gru, variant: slow}"),
)


def test_datasets_and_figures_may_name_a_variant_of_the_task(written):
    plan = load(written(*VARIANTS))
    assert plan["datasets"]["spikes"]["sources"] == [["activity", "gru", 0, "step"]]
    assert plan["figures"]["task"]["needs"] == [["activity", "gru", 0, "slow"]]
    variants = plan["tasks"]["flip"]["variants"]
    assert (variants["step"]["n_trials"], variants["slow"]["n_trials"]) == (20, 1000)


LEARNING = "{kind: ctd_fig4, nbff: {dataset: spikes, models: {gru: linear}, network: gru, network_seed: 3}}"


def test_a_figure_may_need_how_a_network_learned(written):
    plan = load(written(("{kind: task_performance, network: gru}", LEARNING)))
    assert ["network_history", "gru", 3] in plan["figures"]["task"]["needs"]
    wrong = LEARNING.replace("network: gru", "network: gro")
    told = problem(written(("{kind: task_performance, network: gru}", wrong)))
    assert "figures.task.network: no network is called 'gro'; did you mean 'gru'?" in told


def test_a_figure_of_the_paper_without_some_fits_is_planned_and_says_which(written):
    absent = LEARNING.replace("gru: linear", "gru: linear, lds: sae").replace("dataset: spikes", "dataset: mine")
    figure = load(written(("{kind: task_performance, network: gru}", absent)))["figures"]["task"]
    lacks = {tuple(need): reason for need, reason in figure["missing"]}
    assert set(lacks) == {("fit", "mine", "sae", 0), ("scores", "mine", "sae", 0)}
    assert all("no model fitted to 'mine' is called 'sae'" in reason for reason in lacks.values())
    told = problem(written(("{kind: task_performance, network: gru}", LEARNING.replace("gru: linear", "gru: linaer"))))
    assert "no model fitted to 'spikes' is called 'linaer'; did you mean 'linear'?" in told


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "variant: step",
            "variant: stepp",
            "datasets.spikes.variant: no variant of task 'flip' is called 'stepp'; did you mean 'step'?",
        ),
        (
            "variant: slow",
            "variant: lsow",
            "figures.task.variant: no variant of task 'flip' is called 'lsow'; did you mean 'slow'?",
        ),
        (
            "{step: {",
            "{step: {n_trails: 3, ",
            "tasks.flip.variants.step.n_trails: unknown key; did you mean 'n_trials'?",
        ),
        ("slow: {", "sl/ow: {", "tasks.flip.variants.sl/ow: names are made of letters, digits, _ and -"),
        ("slow: {", '"": {', "tasks.flip.variants.: names are made of letters"),
        ("slow: {", "Step: {", "tasks.flip.variants.Step: differs from 'step' in case only; rename one"),
    ],
)
def test_mistakes_in_variants_are_told_with_their_path_and_the_nearest_name(written, old, new, expected):
    path = written(*VARIANTS)
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    assert expected in problem(path)


def test_a_task_that_needs_what_is_not_installed_is_refused_with_the_install_command(written, monkeypatch):
    load(written())
    monkeypatch.setattr(TASKS["nbff"], "missing", lambda: "task `nbff` needs bits; pip install 'ctdb[bits]'")
    found = problem(written(("latent_size: 8", "latent_size: -8")))
    assert "tasks.flip: task `nbff` needs bits; pip install 'ctdb[bits]'" in found
    assert "models.sae.latent_size" in found  # told with all other mistakes


def test_without_motornet_a_random_target_task_is_refused_with_the_install_command(written, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    found = problem(written(("{kind: nbff, n_bits: 2}", "{kind: random_target}")))
    assert "tasks.flip: " in found
    assert "pip install 'ctdb[motor]'" in found


@pytest.mark.skipif(TASKS["random_target"].missing() is not None, reason="MotorNet is not installed")
def test_a_channel_that_the_body_has_not_is_refused(written):
    changes = (
        ("{kind: nbff, n_bits: 2}", "{kind: random_target}"),
        ("simulated, network: gru", "simulated, network: gru, behavior: [x velocty]"),
    )
    found = problem(written(*changes))
    assert "datasets.spikes.behavior[0]: no channel of the body of task 'random_target' is called 'x velocty'" in found
    assert "did you mean 'x velocity'?" in found
    load(written(changes[0], ("simulated, network: gru", "simulated, network: gru, behavior: [x velocity, y]")))
    assert "there is none to choose from" in problem(
        written(("simulated, network: gru", "simulated, network: gru, behavior: [x]"))
    )


def test_a_part_of_a_simulation_s_settings_leaves_the_defaults_of_the_simulation(written, monkeypatch):
    monkeypatch.setattr(TASKS["random_target"], "missing", lambda: None)
    parts = "{kind: random_target, simulate: {n_trials: 7, seed: 3}, train: {n_trials: 9, seed: 2}, variants: {far: {seed: 5}}}"
    task = load(written(("{kind: nbff, n_bits: 2}", parts)))["tasks"]["flip"]
    whole = TASKS["random_target"].Settings(kind="random_target").model_dump()
    assert task["simulate"] == whole["simulate"] | {"n_trials": 7, "seed": 3}
    assert task["variants"]["far"] == whole["simulate"] | {"seed": 5}
    assert task["train"] == whole["train"] | {"n_trials": 9, "seed": 2}
    assert (task["simulate"]["n_bins"], task["train"]["n_bins"]) == (155, 300)
    multitask = "{kind: multitask, simulate: {n_trials: 30, seed: 1}, variants: {fine: {n_angles: 64, seed: 1}}}"
    task = load(written(("{kind: nbff, n_bits: 2}", multitask)))["tasks"]["flip"]
    assert task["simulate"]["n_angles"] == 32
    assert task["variants"]["fine"] == {"n_trials": 1000, "seed": 1, "n_angles": 64}
    few = multitask.replace("n_angles: 64", "n_trials: 14")
    expected = "tasks.flip: variants.fine.n_trials 14 is less than one trial for each of the 15 sub-tasks"
    assert expected in problem(written(("{kind: nbff, n_bits: 2}", few)))
