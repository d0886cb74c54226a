"""What was run, what it took, and what went wrong, by the plan and the files that jobs left."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import pandas as pd
import yaml

import ctdb
from ctdb import costs
from ctdb.datasets import SPLITS
from ctdb.files import read_yaml
from ctdb.report.leaderboard import task_of


class Training(NamedTuple):
    """A network or a fit, as its spec tells; `status` is `missing` where that is not there.

    `subject` is the task of a network, or the dataset of a fit.
    """

    what: str
    subject: str
    name: str
    kind: str
    seed: int
    status: str
    reason: str
    warnings: list[str]
    n_epochs: int | None
    best_epoch: int | None
    best_valid_loss: float | None
    log: str


def fits(plan: Mapping[str, Any]) -> list[Training]:
    """All planned fits, in the order of the plan."""
    found = []
    for fit in plan["fits"]:
        folder = f"fits/{fit['dataset']}/{fit['model']}/seed{fit['seed']}"
        known = ("fit", fit["dataset"], fit["model"], fit["kind"], fit["seed"])
        found.append(Training(*known, *_outcome(plan, folder, folder), f"logs/{folder}.log"))
    return found


def networks(plan: Mapping[str, Any]) -> list[Training]:
    """All networks that a dataset or a figure is made from."""
    sources = [source for dataset in plan["datasets"].values() for source in dataset["sources"]]
    sources += [need for figure in plan["figures"].values() for need in figure["needs"]]
    found = []
    for name, seed in dict.fromkeys((names[0], names[1]) for what, *names in sources if what == "activity"):
        folder, settings = f"networks/{name}/seed{seed}", plan["networks"][name]
        known = ("network", settings["task"], name, settings["kind"], seed)
        found.append(Training(*known, *_outcome(plan, folder, f"{folder}/train"), f"logs/{folder}/train.log"))
    return found


def _outcome(plan: Mapping[str, Any], folder: str, log: str) -> tuple[Any, ...]:
    """From `status` to `best_valid_loss`, by the spec in a folder of the results; without one, by the log."""
    results = Path(plan["results"])
    spec = results / folder / "spec.yaml"
    if not spec.is_file():
        absent = f"{folder}/spec.yaml is not there: its job has not run, or has not ended"
        return "missing", _last_error(results / f"logs/{log}.log") or absent, [], None, None, None
    facts = read_yaml(spec)
    numbers = [facts.get(name) for name in ("n_epochs", "best_epoch", "best_valid_loss")]
    return facts["status"], facts["reason"], list(facts.get("warnings", [])), *numbers


def _last_error(log: Path) -> str:
    """Last error that a log tells; "" where it tells none."""
    if not log.is_file():
        return ""
    found = [line for line in log.read_text(errors="replace").splitlines() if re.match(r"\w*[Ee]rror\b", line)]
    return found[-1] if found else ""


class Undefined(NamedTuple):
    """Scores that a model of a dataset has not, for one reason."""

    dataset: str
    model: str
    reason: str
    metrics: list[str]
    n: int


def undefined(scores: pd.DataFrame) -> list[Undefined]:
    """Scores without a value although their fit went well, by dataset, model and reason."""
    groups = scores[scores["status"] == "undefined"].groupby(["dataset", "model", "reason"], sort=True)
    return [Undefined(*key, sorted(set(group["metric"])), len(group)) for key, group in groups]


class DatasetFacts(NamedTuple):
    """A dataset; sizes are None where its file is not there."""

    name: str
    kind: str
    task: str
    sources: str
    trials: Mapping[str, int] | None
    n_heldin: int | None
    n_heldout: int | None
    bins: int | None
    bin_ms: float | None
    n_sessions: int | None


def datasets(plan: Mapping[str, Any]) -> list[DatasetFacts]:
    """All datasets, with the sizes that their files tell."""
    found = []
    for name, dataset in plan["datasets"].items():
        sources = ", ".join(" ".join(str(part) for part in source if part != "") for source in dataset["sources"])
        known = (name, dataset["settings"]["kind"], task_of(plan, name), sources)
        file = Path(plan["results"]) / f"datasets/{name}.h5"
        found.append(DatasetFacts(*known, *(_sizes(file) if file.is_file() else [None] * 6)))
    return found


def _sizes(file: Path) -> tuple[dict[str, int], int, int, int, float | None, int]:
    with h5py.File(file, "r") as data:
        sessions = [data] if any(key.endswith("_encod_data") for key in data) else [data[key] for key in data]
        trials = {
            split: sum(one[f"{split}_encod_data"].shape[0] for one in sessions if f"{split}_encod_data" in one)
            for split in SPLITS
        }
        heldin = sum(one["train_encod_data"].shape[2] for one in sessions)
        neurons = sum(one["train_recon_data"].shape[2] for one in sessions)
        bins = max(one["train_encod_data"].shape[1] for one in sessions)
        bin_s = data.attrs.get("bin_s", sessions[0].attrs.get("bin_s"))
    return trials, heldin, neurons - heldin, bins, None if bin_s is None else 1000 * float(bin_s), len(sessions)


def left_out(plan: Mapping[str, Any], config: str) -> list[str]:
    """Datasets of the configuration that are not in the plan: their file was not there, and they are optional."""
    return [name for name in yaml.safe_load(config)["datasets"] if name not in plan["datasets"]]


def cost(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cost sheet so far, the dearest first, without the report itself."""
    rows = [row for row in costs.of_run(plan["results"], plan) if row["stage"] != "report"]
    return sorted(rows, key=lambda row: -row["wall_h"])


def ended(plan: Mapping[str, Any]) -> tuple[float, float] | None:
    """When the first and the last job ended, in seconds since 1970, by their benchmark files; None where none did."""
    files = Path(plan["results"]).joinpath("benchmarks").rglob("*.tsv")
    times = [file.stat().st_mtime for file in files if file.name != "report.tsv"]
    return (min(times), max(times)) if times else None


def versions() -> dict[str, str]:
    """Versions of ctdb and of the packages that it requires."""
    required = [line for line in metadata.requires("ctdb") or [] if "extra ==" not in line]
    names = ["ctdb", *sorted((re.match(r"[\w.-]+", line)[0] for line in required), key=str.lower)]
    return {name: metadata.version(name) for name in names}


def versions_of_jobs(plan: Mapping[str, Any]) -> list[str]:
    """What the logs of the jobs say of versions, each once."""
    return sorted({line for file in (Path(plan["results"]) / "logs").rglob("*.log") for line in _first_versions(file)})


def _first_versions(file: Path) -> Iterator[str]:
    with open(file, errors="replace") as log:
        for _, line in zip(range(5), log, strict=False):
            if line.startswith("versions: "):
                yield line.removeprefix("versions: ").strip()


def commit() -> str:
    """Commit of the code, and whether files of it have changed since; "" where it is not under version control."""
    folder = Path(ctdb.__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return ""
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{git('rev-parse', '--short=12', 'HEAD')}{' with changes' if changed else ''}"
