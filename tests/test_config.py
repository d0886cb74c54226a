"""The configuration: what is right becomes a plan of plain values, what is wrong is told by YAML path and nearest name."""

import json
import re
from pathlib import Path

import pytest
import yaml

from ctdb import config
from ctdb.config import DATASET_KINDS, FitsEntry, data_path, load
from ctdb.errors import ConfigError
from ctdb.figures import FIGURES
from ctdb.models import MODELS
from ctdb.networks import NETWORKS
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


@pytest.fixture
def written(tmp_path):
    """Write a configuration, changed by (old, new) pairs of text, and return its path."""

    def write(*changes: tuple[str, str]) -> Path:
        text = GOOD
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
    assert data_path("${CTDB_DATA}/a.h5") == Path(config.DEFAULT_DATA) / "a.h5"
    assert data_path("~/a.h5") == Path.home() / "a.h5"


@pytest.mark.parametrize("name", ["quick", "config"])
def test_the_shipped_configurations_are_right(name):
    plan = load(REPOSITORY / f"config/{name}.yaml")
    assert {"sae_gru", "sae_rnn", "sae_node", "lds"} <= {
        fit["kind"] for fit in plan["fits"] if fit["dataset"] == "nbff"
    }
    assert {"nbff", "lorenz"} == set(plan["datasets"])


def keys_of(settings) -> set[str]:
    """Keys of a settings class as config/README.md writes them: nested ones behind a dot, except under `training`."""
    found = set()
    for name, field in settings.model_fields.items():
        nested = [option for option in config._options(field.annotation) if hasattr(option, "model_fields")]
        if name == "training":
            found |= keys_of(nested[0])
        elif nested and name != "keys":
            found |= {f"{name}.{key}" for key in keys_of(nested[0])}
        else:
            found |= {name} | (keys_of(nested[0]) if nested else set())
    return found


def test_every_key_is_documented():
    documented = set(re.findall(r"`([a-z_.]+)`", (REPOSITORY / "config/README.md").read_text()))
    classes = [registry[kind].Settings for registry in (TASKS, NETWORKS, MODELS, FIGURES) for kind in registry.modules]
    for settings in [*classes, *DATASET_KINDS.values(), FitsEntry]:
        assert keys_of(settings) - documented - {"seed"} == set(), settings.__name__


def test_the_documented_defaults_are_the_defaults():
    """Numbers in the second column of config/README.md, for the keys that stand alone in a row."""
    rows = re.findall(r"^\| `(\w+)` \| ([\d.e-]+) \|", (REPOSITORY / "config/README.md").read_text(), re.MULTILINE)
    assert len(rows) > 15
    classes = [registry[kind].Settings for registry in (TASKS, NETWORKS, MODELS) for kind in registry.modules]
    defaults: dict[str, set] = {}
    for settings in [
        *classes,
        *DATASET_KINDS.values(),
        *(s.model_fields["training"].annotation for s in classes if "training" in s.model_fields),
    ]:
        for name, field in settings.model_fields.items():
            defaults.setdefault(name, set()).add(field.default)
    for name, value in rows:
        assert yaml.safe_load(value.replace("1e-", "1.0e-")) in defaults[name], name


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
