"""What jobs ask for: from the plan and the attempt, within what the site allows."""

import re

import pytest

from ctdb import config
from ctdb.errors import ClusterError
from ctdb.resources import COSTS, NAMES, ON_GPU, PATHS, Needs, main, measured, proposed, threads
from ctdb.slurm import Site, read_site
from project import CONFIG, REPOSITORY

FIT = {"dataset": "flip", "model": "sae_gru", "seed": "0"}
JOBS = {
    "training_trials": {"task": "flip"},
    "simulation_trials": {"task": "flip", "variant": ""},
    "train_network": {"network": "gru", "seed": "0"},
    "network_activity": {"network": "gru", "seed": "0", "variant": ""},
    "dataset": {"dataset": "flip"},
    "fit": FIT,
    "merge": FIT,
    "true_dynamics": {"dataset": "flip"},
    "fit_dynamics": FIT,
    "dsa": {"dataset": "flip"},
    "score_fit": FIT,
    "score_anchors": {"dataset": "flip"},
    "gather_scores": {},
    "figure": {"figure": "rates"},
    "interactive": {"figure": "rates"},
    "reproduction": {},
    "report": {},
}
CLUSTER = Site.model_validate(
    {"account": "lab", "qos": "long", "cpu": {"partition": "cpu"}, "gpu": {"partition": "gpu"}}
)


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Plan of the small configuration with some texts of it replaced."""

    def load(*changes: tuple[str, str]) -> dict:
        text = CONFIG
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / "config.yaml").write_text(text)
        monkeypatch.chdir(tmp_path)
        return config.load("config.yaml")

    return load


LONG = ("max_epochs: 4, batch_size: 8", "max_epochs: 40000000, batch_size: 8")


def test_every_rule_with_a_script_has_its_needs(plan):
    needs = Needs(plan())
    assert set(JOBS) == set(PATHS) == {name.split(":")[0] for name in COSTS}
    text = "".join(path.read_text() for path in (REPOSITORY / "workflow/rules").glob("*.smk"))
    snakefile = (REPOSITORY / "Snakefile").read_text()
    done_here = re.findall(r"^    (\w+),$", snakefile.partition("localrules:")[2].partition("\nrule ")[0], re.MULTILINE)
    for name, block in re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", text, re.MULTILINE | re.DOTALL):
        assert name in JOBS or name in done_here or "localrule: True" in block, name
    for rule, wildcards in JOBS.items():
        assert f'threads: threads("{rule}")' in text
        assert f'**needs("{rule}"),' in text
        asked = needs.of(rule, wildcards, 1)
        assert set(asked) == set(NAMES)
        assert 500 <= asked["mem_mb"] <= 2000
        assert 10 <= asked["runtime"] <= 30
        assert {asked[name] for name in NAMES[2:]} == {None}  # nothing of a cluster on one machine
        assert threads(rule) == (2 if rule == "dsa" else 1)


@pytest.mark.parametrize("rule", JOBS)
def test_each_attempt_asks_for_twice_as_much(plan, rule):
    needs = Needs(plan())
    first, second, third = (needs.of(rule, JOBS[rule], attempt) for attempt in (1, 2, 3))
    assert second["runtime"] == 2 * first["runtime"]
    assert third["runtime"] == 4 * first["runtime"]
    assert 2 * first["mem_mb"] - 100 <= second["mem_mb"] <= 2 * first["mem_mb"]
    assert 4 * first["mem_mb"] - 300 <= third["mem_mb"] <= 4 * first["mem_mb"]


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (LONG, {"fit"}),
        (("hidden_size: 5", "hidden_size: 50000"), {"train_network", "network_activity"}),
        (("train: {n_trials: 30,", "train: {n_trials: 3000000,"), {"training_trials", "train_network"}),
        (
            ("simulate: {n_trials: 40,", "simulate: {n_trials: 4000000,"),
            set(JOBS) - {"training_trials", "train_network", "gather_scores", "reproduction", "report"},
        ),
    ],
)
def test_larger_jobs_ask_for_more(plan, change, rules):
    before, after = Needs(plan()), Needs(plan(change))
    grown = {rule for rule, job in JOBS.items() if after.of(rule, job, 1) != before.of(rule, job, 1)}
    assert grown == rules
    for rule in grown:
        assert sum(after.expected(rule, JOBS[rule])) > sum(before.expected(rule, JOBS[rule]))


@pytest.mark.parametrize(
    ("old", "new", "memory", "time"),
    [
        ("latent_size: 4", "latent_size: 640", 2, 10),
        ("max_epochs: 4, batch_size: 8", "max_epochs: 40, batch_size: 8", 1, 10),
        ("n_bins: 16", "n_bins: 160", 10, 10),
    ],
)
def test_the_work_of_a_training_grows_with_its_size(plan, old, new, memory, time):
    large = ("simulate: {n_trials: 40,", "simulate: {n_trials: 40000,")
    before, after = Needs(plan(large)).work("fit", FIT), Needs(plan(large, (old, new))).work("fit", FIT)
    assert after.steps == pytest.approx(time * before.steps)
    assert after.values > 0.99 * memory * before.values
    assert (after.values == before.values) == (memory == 1)


def test_a_batch_holds_no_more_trials_than_there_are(plan):
    sizes = {
        batch: Needs(plan(("epochs: 4, batch_size: 8", f"epochs: 4, batch_size: {batch}"))).work("fit", FIT).values
        for batch in (8, 16, 40, 8000)
    }
    assert sizes[8] < sizes[16] < sizes[40] == sizes[8000]


def test_variants_and_datasets_of_others_have_their_own_size(plan):
    variant = (
        "simulate: {n_trials: 40, seed: 1}}",
        "simulate: {n_trials: 40, seed: 1}, variants: {more: {n_trials: 400, seed: 2}}}",
    )
    task = {"task": "flip", "variant": "@more"}
    needs = Needs(plan(variant))
    assert needs.work("simulation_trials", task).steps == pytest.approx(
        10 * needs.work("simulation_trials", JOBS["simulation_trials"]).steps
    )
    others = (
        "models:\n",
        "  a: {kind: lorenz}\n  b: {kind: shuffled, dataset: a, shuffle: neurons}\n"
        "  c: {kind: sessions, datasets: [a, b]}\nmodels:\n",
    )
    needs = Needs(plan(others))
    assert needs.size("a") == needs.size("b")
    assert needs.size("c").bins == 2 * needs.size("a").bins == 2 * 20 * 50 * 100 / 1e6
    parts = ("kind: nbff, n_bits: 2, n_bins: 16, switch_prob: 0.1", "kind: chaotic_delayed_matching")
    assert Needs(plan(parts)).work("training_trials", {"task": "flip"}).steps == 30 * 1050 / 1e6


def test_a_long_training_goes_to_a_gpu_where_there_is_one(plan):
    long = Needs(plan(LONG))
    asked = long.of("fit", FIT, 1, CLUSTER)
    assert (asked["gpu"], asked["slurm_partition"]) == (1, "gpu")
    assert (asked["slurm_account"], asked["qos"]) == ("lab", "long")
    assert asked["slurm_extra"].startswith("--signal=TERM@")
    for needs, rule, site in [
        (Needs(plan()), "fit", CLUSTER),  # a short one
        (long, "score_fit", CLUSTER),
        (long, "fit", CLUSTER.model_copy(update={"gpu": None})),
        (Needs(plan((LONG[0], f"{LONG[1]}, backend: cpu"))), "fit", CLUSTER),
    ]:
        asked = needs.of(rule, FIT, 1, site)
        assert (asked["gpu"], asked["gpu_model"], asked["slurm_partition"]) == (None, None, "cpu")
    assert long.of("fit", FIT, 1)["gpu"] is None
    told = plan(("batch_size: 8}\n  lds", "batch_size: 8, backend: cuda}\n  lds"))
    assert Needs(told).of("fit", FIT, 1, CLUSTER)["gpu"] == 1
    model = Site.model_validate({"gpu": {"partition": "gpu", "model": "a100"}})
    assert long.of("fit", FIT, 1, model)["gpu_model"] == "a100"


def test_nothing_asks_for_more_than_the_site_allows(plan):
    limits = {"max_minutes": 60, "max_memory_mb": 900}
    site = Site.model_validate({"cpu": limits, "gpu": {"partition": "gpu", "max_minutes": 90, "max_memory_mb": 5000}})
    needs = Needs(plan(LONG))
    assert (needs.of("fit", FIT, 1, site)["runtime"], needs.of("fit", FIT, 3, site)["mem_mb"]) == (90, 5000)
    asked = needs.of("score_fit", FIT, 3, site)
    assert (asked["runtime"], asked["mem_mb"]) == (40, 900)


def test_a_file_tells_the_size_of_its_dataset(plan, tmp_path):
    needs, mine = Needs(plan()), {"dataset": "mine"}
    absent = needs.of("dataset", mine, 1)["mem_mb"]
    (tmp_path / "data").mkdir()
    with open(tmp_path / "data/mine.h5", "wb") as file:
        file.truncate(4_000_000_000)
    assert Needs(plan()).of("dataset", mine, 1)["mem_mb"] > absent + 4000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("acount: lab", "acount: unknown key; did you mean 'account'?"),
        ("cpu: {partitoin: a}", "cpu.partitoin: unknown key; did you mean 'partition'?"),
        ("gpu: {modell: a}", "gpu.modell: unknown key; did you mean 'model'?"),
        ("cpu: {max_minutes: 0}", "cpu.max_minutes: "),
        ("cpu: {max_threads: 2}", "cpu.max_threads: unknown key"),  # the number of threads is part of a result
        ("gpu: {model: a100-sxm4}", "gpu.model: Snakemake takes letters, digits, _ and . only; leave it out"),
        ("account: 12", "account: Input should be a valid string; found 12"),
        ("a: [", "not valid YAML"),
        ("- a", "found ['a']"),
    ],
)
def test_a_wrong_site_is_told_by_key(tmp_path, text, expected):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(ClusterError) as caught:
        read_site(path)
    assert str(caught.value).startswith(f"{path}: {expected}") or expected in str(caught.value)
    with pytest.raises(ClusterError, match="No such file"):
        read_site(tmp_path / "absent.yaml")


def test_the_tracked_site_is_right():
    assert read_site(REPOSITORY / "workflow/profiles/slurm/site.yaml").gpu is None


def benchmark(tmp_path, name: str, seconds: float, memory: str) -> None:
    path = tmp_path / "results/benchmarks" / f"{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"s\th:m:s\tmax_rss\tcpu_time\n{seconds}\t0:00:01\t{memory}\t9\n")


def test_numbers_are_proposed_that_cover_what_was_used(plan, tmp_path):
    needs = Needs(plan())
    memory, seconds = needs.expected("fit", FIT)
    benchmark(tmp_path, "fits/flip/sae_gru/seed0", 3 * seconds, str(memory / 2))
    benchmark(tmp_path, "fits/flip/lds/seed0", seconds / 2, str(memory / 4))
    benchmark(tmp_path, "fits/flip/gone/seed0", 1e6, "1e6")  # of another configuration
    benchmark(tmp_path, "something/else", 1e6, "1e6")
    benchmark(tmp_path, "datasets/mine", 5, "NA")
    used = measured(tmp_path / "results", needs.plan)
    assert len(used) == 3
    now, new, number = proposed(used, needs)["fit"]
    assert (now, number) == (COSTS["fit"], 2)
    assert new.memory_mb == pytest.approx(now.memory_mb / 2, abs=1)
    assert new.seconds_per_million == pytest.approx(3 * now.seconds_per_million, abs=1)
    text = main(["config.yaml"])
    assert '"fit": Cost(' in text
    assert f'"dataset": Cost({COSTS["dataset"].memory_mb}, {COSTS["dataset"].memory_per_million}, ' in text


def test_times_on_a_gpu_tell_nothing_of_a_core(plan, tmp_path):
    needs = Needs(plan())
    memory, seconds = needs.expected("fit", FIT)
    benchmark(tmp_path, "fits/flip/sae_gru/seed0", seconds / 100, str(memory / 2))
    log = tmp_path / "results/logs/fits/flip/sae_gru/seed0.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"{ON_GPU}: some\n")
    now, new, _ = proposed(measured(tmp_path / "results", needs.plan), needs)["fit"]
    assert new.seconds_per_million == now.seconds_per_million
    assert new.memory_mb == pytest.approx(now.memory_mb / 2, abs=1)


def test_without_benchmarks_there_is_nothing_to_propose(plan):
    plan()
    with pytest.raises(Exception, match="holds no benchmark of a job"):
        main(["config.yaml"])
