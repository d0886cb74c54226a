# The checked plan of the configuration file, and the names that the rules share.

import os
import functools
import inspect
import sys
from pathlib import Path

from snakemake.scheduling.job_scheduler import JobScheduler

from ctdb import interruption
from ctdb import slurm as ctdb_slurm
from ctdb import workflow as ctdb_workflow
from ctdb.config import data_path
from ctdb.costs import write_sheet
from ctdb.datasets.ibl.recording import HOW, SYNTHETIC
from ctdb.errors import CtdbError
from ctdb.metrics.case import COSTLY
from ctdb.resources import NAMES, Needs, threads

PAPER = f"{workflow.basedir}/config/config.yaml"

try:
    PLAN = ctdb_workflow.plan(workflow.overwrite_configfiles, workflow.config_settings.config or {}, PAPER)
except CtdbError as error:
    sys.exit(f"error: {error}")

if "CTDB_RUN" in os.environ:  # this is the Snakemake of one job
    JobScheduler.exit_gracefully = interruption.passed_on(JobScheduler.exit_gracefully)


onstart:
    if site() is not None:
        check_cluster()
    ctdb_workflow.hold_results(RESULTS, slurm_run() if site() else None)


onsuccess:
    print(ctdb_workflow.summary(PLAN), file=sys.stderr)
    tell_cost()


onerror:
    tell_cost()


RESULTS = PLAN["results"]
CONFIG = next(iter(workflow.overwrite_configfiles), PAPER)
FITS = {(fit["dataset"], fit["model"], fit["seed"]): fit for fit in PLAN["fits"]}
MODULES = PLAN["modules"]
NEEDS = Needs(PLAN)
WHERE = {"path", "optional"}
SITE = f"{workflow.basedir}/workflow/profiles/slurm/site.yaml"


def tell_cost():
    """Write what the jobs have cost so far, whether the run has gone well or not."""
    try:
        print(f"Cost: {write_sheet(PLAN)}", file=sys.stderr)
    except CtdbError as error:
        print(f"No cost sheet: {error}", file=sys.stderr)


wildcard_constraints:
    task="[^/]+",
    network="[^/]+",
    recording="[^/]+",
    dataset="[^/]+",
    model="[^/]+",
    figure="[^/]+",
    seed=r"\d+",
    variant="(@[^/]+)?",


def needs(rule):
    """Resources of a rule, as functions of the job and the attempt."""

    @functools.cache  # asked for each resource of thousands of jobs
    def of_job(attempt, *wildcards):
        return NEEDS.of(rule, dict(wildcards), attempt, site())

    def resource(name):
        def of(wildcards, attempt):
            return of_job(attempt, *wildcards.items())[name]

        of.__signature__ = inspect.signature(of)  # Snakemake asks for it several times a job
        return of

    return {name: resource(name) for name in NAMES}


@functools.cache
def site():
    """What the user says of the cluster that jobs go to; None where they run on this machine."""
    if workflow.executor_plugin is None or workflow.executor_plugin.name not in ("slurm", "slurm-jobstep"):
        return None
    try:
        return ctdb_slurm.read_site(SITE)
    except CtdbError as error:
        sys.exit(f"error: {error}")


def check_cluster():
    """Ask the cluster whether it would take the jobs of this run."""
    jobs = [job for job in workflow.dag.needrun_jobs() if not job.is_local]
    requests = {" ".join([job.rule.name, *job.wildcards]): dict(job.resources, threads=job.threads) for job in jobs}
    try:
        ctdb_slurm.check(requests, workflow.executor_settings.status_command, SITE)
    except CtdbError as error:
        sys.exit(f"error: {error}")


def slurm_run():
    """Name of all Slurm jobs of this run."""
    return workflow.scheduler._executor.run_uuid


def code(script, *modules):
    """Fingerprint of the code that a rule runs; every rule with a script has it among its params."""
    return ctdb_workflow.code(workflow.basedir, script, *modules)


def task_settings(task, part, variant=""):
    """Settings of a task without those that draw other trials of it than `train`, `simulate` or a variant of that."""
    settings = dict(PLAN["tasks"][task])
    variants = settings.pop("variants")
    if part == "train":
        del settings["simulate"]
        return settings
    del settings["train"], settings["valid_fraction"]
    return settings | ({"simulate": variants[variant]} if variant else {})


def task_of(network):
    return PLAN["networks"][network]["task"]


def task_code(script):
    """Params function: code of a rule of one task, and of the packages that the task alone needs."""

    def of(wildcards):
        kind = PLAN["tasks"][wildcards.task]["kind"]
        return f"{code(script, MODULES['tasks'][kind])} {ctdb_workflow.versions(PLAN, wildcards.task)}".strip()

    return of


def network_code(script):
    """Params function: code of a rule of one network on its task, and of the packages that the task alone needs."""

    def of(wildcards):
        task = task_of(wildcards.network)
        network = MODULES["networks"][PLAN["networks"][wildcards.network]["kind"]]
        own = code(script, network, MODULES["tasks"][PLAN["tasks"][task]["kind"]])
        return f"{own} {ctdb_workflow.versions(PLAN, task)}".strip()

    return of


def task_file(network, part):
    return f"{RESULTS}/task_data/{task_of(network)}/{part}.h5"


def variant_of(wildcards):
    """Variant of a task that a path names after an `@`; an empty name for its plain simulation trials."""
    return wildcards.variant.removeprefix("@")


def network_settings(wildcards):
    settings = PLAN["networks"][wildcards.network]
    return {key: value for key, value in settings.items() if key != "task"}


def dataset_settings(wildcards):
    """Settings of a dataset; where a file lies is an input and not a setting."""
    settings = PLAN["datasets"][wildcards.dataset]["settings"]
    return {key: value for key, value in settings.items() if key not in WHERE}


def recording_file(recording):
    """Manifest of a recording."""
    return f"{RESULTS}/recordings/{recording}.json"


def recording_folder(recording):
    """Folder that the paths in a recording's manifest are relative to."""
    settings = PLAN["recordings"][recording]
    if settings["kind"] == "ibl_synthetic":
        return f"{RESULTS}/recordings/{recording}/cache"
    return str(data_path(settings["cache_dir"]))


def recording_settings(recording, *keys):
    """Settings of a recording: those named, or all but those of how and where."""
    settings = PLAN["recordings"][recording]
    chosen = keys or [key for key in settings if key not in HOW]
    return {key: settings[key] for key in chosen if key in settings}


def recording_folders(wildcards, resources):
    """Folders of a dataset's recordings. That it asks for `resources` keeps them from being triggers: where files lie
    changes no result, and the manifest says which they are."""
    sources = PLAN["datasets"][wildcards.dataset]["sources"]
    return [recording_folder(name) for what, name, *_ in sources if what == "recording"]


def fit_of(wildcards):
    """The fit that an output path belongs to."""
    return FITS[wildcards.dataset, wildcards.model, int(wildcards.seed)]


def labels_of(fit):
    """What the scores table says of a fit."""
    return {key: fit[key] for key in ("dataset", "model", "kind", "sweep", "seed")}


def network_file(network, seed, name):
    return f"{RESULTS}/networks/{network}/seed{seed}/{name}"


def fit_file(dataset, model, seed, name):
    return f"{RESULTS}/fits/{dataset}/{model}/seed{seed}/{name}"


def dynamics_file(dataset, model=None, seed=None, *, name):
    """File of the dynamics behind a dataset, or of a fit to it."""
    folder = f"{RESULTS}/dynamics/{dataset}"
    return f"{folder}/{name}" if model is None else f"{folder}/{model}/seed{seed}/{name}"


def score_file(dataset, model=None, seed=None):
    """Scores of a fit, or of the floor and ceiling of a dataset."""
    return f"{RESULTS}/scores/{dataset}/{'anchors' if model is None else f'{model}/seed{seed}'}.csv"


def needed_file(what, *names):
    """File that stands for something a figure or a dataset is made from."""
    if what == "file":
        return str(data_path(names[0]))
    if what == "activity":
        network, seed, variant = names
        return network_file(network, seed, f"activity@{variant}.h5" if variant else "activity.h5")
    if what == "network_history":
        return network_file(*names, "history.csv")
    if what == "recording":
        return recording_file(names[0])
    if what == "dataset":
        return f"{RESULTS}/datasets/{names[0]}.h5"
    if what in ("fit", "history"):
        return fit_file(*names, "output.h5" if what == "fit" else "history.csv")
    if what == "dynamics":
        return dynamics_file(*names, name="dynamics.h5")
    if what in ("dsa", "dsa_scores"):
        return dynamics_file(*names, name="dsa.h5" if what == "dsa" else "dsa.csv")
    return score_file(*names) if what == "scores" else dynamics_file(*names, name="scores.csv")


def plan_of_report(wildcards, resources):
    """What was run, and how it was said. That it asks for `resources` keeps it from being a trigger: what changes a
    result changes an input of the report too."""
    return {"plan": PLAN, "config": Path(CONFIG).read_text(encoding="utf-8"), "name": Path(CONFIG).name}


def initial_fit(wildcards):
    """Files of the fit that another one begins with; none for most."""
    initial = fit_of(wildcards)["spec"]["initial_fit"]
    names = ("weights.safetensors", "spec.yaml") if initial else ()
    return [fit_file(initial["dataset"], initial["model"], initial["seed"], name) for name in names]


def activity_of(dataset):
    """Network, seed and variant behind a dataset; None where there is no network."""
    sources = PLAN["datasets"][dataset]["sources"]
    return next((names for what, *names in sources if what == "activity"), None)


def true_network(wildcards):
    """Files of the network behind a dataset; none where there is no network."""
    activity = activity_of(wildcards.dataset)
    names = ("weights.safetensors", "spec.yaml") if activity else ()
    return [network_file(*activity[:2], name) for name in names]


def true_trials(wildcards):
    """Simulation trials of the network behind a dataset, which say how its body begins; none without a network."""
    activity = activity_of(wildcards.dataset)
    variant = f"@{activity[2]}" if activity and activity[2] else ""
    return [task_file(activity[0], f"simulate{variant}")] if activity else []


def true_task(wildcards):
    activity = activity_of(wildcards.dataset)
    return task_settings(task_of(activity[0]), "simulate", activity[2]) if activity else None


def true_code(script):
    """Params function: code of a rule that runs the network behind a dataset, with its task."""

    def of(wildcards):
        activity = activity_of(wildcards.dataset)
        if activity is None:
            return code(script)
        task = PLAN["tasks"][task_of(activity[0])]["kind"]
        network = PLAN["networks"][activity[0]]["kind"]
        own = code(script, MODULES["networks"][network], MODULES["tasks"][task])
        return f"{own} {ctdb_workflow.versions(PLAN, task_of(activity[0]))}".strip()

    return of


def own_dynamics(wildcards):
    """What is done with the dynamics of each system by itself, which settings of their DSA do not change."""
    return {key: value for key, value in PLAN["dynamics"][wildcards.dataset].items() if key != "dsa"}


def fit_code(wildcards):
    """Code of a rule that runs a fit and the network behind its dataset."""
    activity = activity_of(wildcards.dataset)
    network = [MODULES["networks"][PLAN["networks"][activity[0]]["kind"]]] if activity else []
    return code("fit_dynamics.py", *network, *fit_of(wildcards)["modules"])


def figure_words(figure):
    """Hash of a figure's caption and published numbers, which the fingerprint of its code leaves out."""
    kind = PLAN["figures"][figure]["settings"]["kind"]
    return ctdb_workflow.figure_words(kind, MODULES["figures"][kind])


def settings_behind(figures):
    """Settings behind each data set and model in figures: of the task, where there is one, the data set and the model.
    After an empty model, those behind the data set alone."""
    needs = [tuple(need[1:]) for figure in figures for need in PLAN["figures"][figure]["needs"]]
    behind = {}
    for dataset in sorted({need[0] for need in needs if need and need[0] in PLAN["datasets"]}):
        activity = activity_of(dataset)
        task = {"task": PLAN["tasks"][task_of(activity[0])]} if activity else {}
        of_dataset = PLAN["datasets"][dataset]["settings"].items()
        own = {"dataset": {key: value for key, value in of_dataset if key not in WHERE}}
        behind[f"{dataset} "] = task | own
        for _, model, seed in sorted(fit for fit in FITS.keys() & set(needs) if fit[0] == dataset):
            behind.setdefault(f"{dataset} {model}", task | own | {"model": FITS[dataset, model, seed]["spec"]})
    return behind


DYNAMICS_FITS = [fit for fit in FITS if fit[0] in PLAN["dynamics"]]
DYNAMICS_SCORES = (
    [dynamics_file(dataset, name="scores.csv") for dataset in PLAN["dynamics"]]
    + [dynamics_file(*fit, name="scores.csv") for fit in DYNAMICS_FITS]
    + [dynamics_file(dataset, name="dsa.csv") for dataset, wanted in PLAN["dynamics"].items() if wanted["dsa"]]
)
RECORDING_FILES = [recording_file(name) for name in ctdb_workflow.recordings_in_use(PLAN)]
DATASET_FILES = expand(f"{RESULTS}/datasets/{{dataset}}.h5", dataset=PLAN["datasets"])
NETWORK_FILES = sorted(
    {
        needed_file(*source)
        for dataset in PLAN["datasets"].values()
        for source in dataset["sources"]
        if source[0] == "activity"
    }
)
FIT_FILES = [
    fit_file(*fit, name) for fit in FITS for name in ("weights.safetensors", "spec.yaml", "history.csv", "output.h5")
] + [fit_file(*fit, "continuous.h5") for fit in FITS if PLAN["datasets"][fit[0]]["settings"]["kind"] == "continuous"]
FIGURE_FILES = expand(
    f"{RESULTS}/figures/{{figure}}.{{suffix}}", figure=PLAN["figures"], suffix=["pdf", "png", "csv", "txt"]
)
REPRODUCING = [figure for figure, settings in PLAN["figures"].items() if settings["reproduces"]]
INTERACTIVE = [figure for figure, settings in PLAN["figures"].items() if settings["interactive"]]
FIGURE_FILES += expand(f"{RESULTS}/figures/{{figure}}.json", figure=INTERACTIVE)
