"""What each job asks for: memory, time, threads and a GPU, from the plan alone.

    python -m ctdb.resources config/quick.yaml

compares what was asked for with what the jobs of finished runs used (the benchmark files among the results), and
proposes new numbers for :data:`COSTS`.
"""

import csv
import math
import os
import re
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ctdb import config
from ctdb.errors import CtdbError
from ctdb.slurm import NOTICE_S, Site


class Cost(NamedTuple):
    """What jobs of a rule used at most, on a busy core of 2020 or later.

    Attributes
    ----------
    memory_mb, memory_per_million
        Of the smallest job, and of each million of :attr:`Work.values`.
    seconds, seconds_per_million
        Likewise, of :attr:`Work.steps`.
    """

    memory_mb: float
    memory_per_million: float
    seconds: float
    seconds_per_million: float


class Work(NamedTuple):
    """Size of a job.

    Attributes
    ----------
    values
        Millions of numbers that it holds at once.
    steps
        Millions of bins that it goes through, wider states counting more.
    """

    values: float
    steps: float


COSTS = {
    "training_trials": Cost(300, 10, 5, 4),
    "simulation_trials": Cost(300, 10, 5, 25),
    "train_network": Cost(600, 5, 10, 45),
    "network_activity": Cost(600, 6, 10, 60),
    "dataset": Cost(210, 9, 5, 10),
    "fit": Cost(670, 7, 15, 50),
    "fit:lfads": Cost(860, 8, 15, 50),
    "fit:band": Cost(840, 8, 15, 80),
    "merge": Cost(300, 8, 5, 10),
    "true_dynamics": Cost(600, 6, 60, 100),
    "fit_dynamics": Cost(600, 6, 60, 100),
    "dsa": Cost(600, 8, 60, 100),
    "score_fit": Cost(460, 11, 12, 170),
    "score_anchors": Cost(500, 12, 20, 400),
    "gather_scores": Cost(200, 0, 10, 0),
    "figure": Cost(300, 6, 15, 0),
    "interactive": Cost(400, 6, 15, 0),
    "reproduction": Cost(200, 0, 10, 0),
    "report": Cost(400, 0, 60, 0),
}
"""By rule, or by rule and kind of model."""
SNAKEMAKE_MB = 400
"""Two Snakemake processes share the memory of a job on a cluster."""
MEMORY_MARGIN, TIME_MARGIN = 1.4, 3.0
LEAST_MINUTES = 10
GPU_FROM_MINUTES = 30
"""A training that would take longer on one CPU is worth a GPU."""
TRAININGS = ("train_network", "fit")
THREADS = {"dsa": 2}
NAMES = ("mem_mb", "runtime", "gpu", "gpu_model", "slurm_partition", "slurm_account", "qos", "slurm_extra")
BINS_OF_TRIAL, NEURONS = 100, 100
"""Where the plan does not tell them."""
IBL_TRIALS, IBL_UNITS, IBL_SECONDS = 600, 300, 5000
"""Of a session with two probes, at most of the common ones."""
ON_GPU = "the training runs on a GPU"
"""Part of a line in the log of a training that did."""
SIZES = ("hidden_size", "latent_size", "encoder_size", "field_width", "gen_dim", "ic_enc_dim", "ci_enc_dim")
"""Settings that say how wide the layers of a network or model are."""


class Size(NamedTuple):
    """Of trials: millions of bins in all, how many trials, and channels of each bin."""

    bins: float
    n_trials: int
    channels: int


class Needs:
    """What the jobs of a plan ask for.

    Parameters
    ----------
    plan
        Of :func:`ctdb.config.load`.
    """

    def __init__(self, plan: Mapping[str, Any]):
        self.plan = plan
        self._fits = {(fit["dataset"], fit["model"], fit["seed"]): fit["spec"] for fit in plan["fits"]}
        self._sizes: dict[str, Size] = {}

    def of(self, rule: str, wildcards: Mapping[str, str], attempt: int, site: Site | None = None) -> dict[str, Any]:
        """What a job asks for.

        Parameters
        ----------
        rule, wildcards
            The job.
        attempt
            1, 2, ...; each asks for twice as much memory and time as the one before.
        site
            The cluster that it goes to, None for this machine.

        Returns
        -------
        Values for :data:`NAMES`, in Snakemake's units; None where nothing is to be said.
        """
        memory_mb, seconds = self.expected(rule, wildcards)
        more = 2 ** (attempt - 1)
        memory = 100 * math.ceil((MEMORY_MARGIN * memory_mb + SNAKEMAKE_MB) * more / 100)
        minutes = max(LEAST_MINUTES, math.ceil(TIME_MARGIN * seconds / 60)) * more
        if site is None:
            return dict.fromkeys(NAMES) | {"mem_mb": memory, "runtime": minutes}
        on_gpu = site.gpu is not None and self.is_worth_a_gpu(rule, wildcards)
        place = site.gpu if on_gpu else site.cpu
        return {
            "mem_mb": min(memory, place.max_memory_mb or memory),
            "runtime": min(minutes, place.max_minutes or minutes),
            "gpu": 1 if on_gpu else None,
            "gpu_model": place.model if on_gpu else None,
            "slurm_partition": place.partition,
            "slurm_account": site.account,
            "qos": site.qos,
            "slurm_extra": f"--signal=TERM@{NOTICE_S}",
        }

    def is_worth_a_gpu(self, rule: str, wildcards: Mapping[str, str]) -> bool:
        """Whether a job is a training that is told to run on a GPU, or takes long on a CPU and is not told to."""
        if rule not in TRAININGS:
            return False
        backend = self._spec(rule, wildcards)["training"]["backend"]
        is_long = self.expected(rule, wildcards)[1] >= 60 * GPU_FROM_MINUTES
        return backend == "cuda" or (backend != "cpu" and is_long)

    def expected(self, rule: str, wildcards: Mapping[str, str]) -> tuple[float, float]:
        """Memory (MB) and time (s) that a job will take at most, by what others took."""
        cost, work = COSTS[self.cost_name(rule, wildcards)], self.work(rule, wildcards)
        return (
            float(cost.memory_mb + cost.memory_per_million * work.values),
            float(cost.seconds + cost.seconds_per_million * work.steps),
        )

    def cost_name(self, rule: str, wildcards: Mapping[str, str]) -> str:
        """Key of a job in :data:`COSTS`."""
        name = f"{rule}:{self._spec(rule, wildcards)['kind']}" if rule == "fit" else rule
        return name if name in COSTS else rule

    def width(self, rule: str, wildcards: Mapping[str, str]) -> int:
        """Size of the largest layer of what a job trains."""
        return _width(self._spec(rule, wildcards))

    def true_states(self, dataset: str) -> int:
        """Number of true states that a dataset holds."""
        sources = self.plan["datasets"][dataset]["sources"]
        activity = next((names for what, *names in sources if what == "activity"), None)
        return 0 if activity is None else _width(self.plan["networks"][activity[0]])

    def work(self, rule: str, wildcards: Mapping[str, str]) -> Work:
        """Size of a job."""
        variant = wildcards.get("variant", "").removeprefix("@")
        if rule in ("training_trials", "simulation_trials"):
            trials = self._trials(wildcards["task"], rule == "training_trials", variant)
            return Work(trials.bins * trials.channels, trials.bins)
        if rule in ("train_network", "network_activity"):
            network = self.plan["networks"][wildcards["network"]]
            trials = self._trials(network["task"], rule == "train_network", variant)
            if rule == "train_network":
                return _training(network, trials)
            width = _width(network)
            return Work(trials.bins * (trials.channels + 3 * width), trials.bins * width / 64)
        if rule in ("gather_scores", "reproduction", "report"):
            return Work(0, 0)
        if rule in ("figure", "interactive"):
            return Work(self._most_values, 0)
        size = self.size(wildcards["dataset"])
        if rule == "fit":
            return _training(self._spec(rule, wildcards), size)
        values = size.bins * 4 * (size.channels + self._widest.get(wildcards["dataset"], 0))
        return Work(values, size.bins * size.channels / 50)

    def size(self, dataset: str) -> Size:
        """Of a dataset; of one whose file tells it, a guess from the length of the file."""
        if dataset not in self._sizes:
            self._sizes[dataset] = self._size(dataset)
        return self._sizes[dataset]

    def _size(self, dataset: str) -> Size:
        settings, sources = self.plan["datasets"][dataset]["settings"], self.plan["datasets"][dataset]["sources"]
        channels = (settings.get("n_heldin") or NEURONS) + (settings.get("n_heldout") or 0)
        activity = next((names for what, *names in sources if what == "activity"), None)
        if activity is not None:
            trials = self._trials(self.plan["networks"][activity[0]]["task"], False, activity[2])
            return trials._replace(channels=channels)
        if settings["kind"] == "lorenz":
            n_trials = settings["n_conditions"] * settings["n_trials_per_condition"]
            return Size(n_trials * settings["n_bins"] / 1e6, n_trials, channels)
        if any(what == "recording" for what, *_ in sources):
            n_trials, of_trial = IBL_TRIALS, settings.get("window_bins", BINS_OF_TRIAL)
            if "window_s" in settings:
                first, last = settings["window_s"]
                of_trial = (last - first) / settings["bin_s"]
            elif "window_bins" in settings:  # the whole of it, without trials
                n_trials = int(IBL_SECONDS / settings["bin_s"] / of_trial)
            return Size(n_trials * of_trial / 1e6, n_trials, IBL_UNITS)
        others = [self.size(names[0]) for what, *names in sources if what == "dataset"]
        if others:
            return Size(
                sum(one.bins for one in others),
                sum(one.n_trials for one in others),
                max(one.channels for one in others),
            )
        files = [config.data_path(names[0]) for what, *names in sources if what == "file"]
        n_bytes = sum(os.path.getsize(file) for file in files if file.is_file())
        bins = n_bytes / NEURONS  # compressed counts take a byte or less
        return Size(bins / 1e6, max(1, int(bins / BINS_OF_TRIAL)), NEURONS)

    def _trials(self, task: str, train: bool, variant: str = "") -> Size:
        """Size of the trials of a task that train a network, or that it is run on."""
        settings = self.plan["tasks"][task]
        trials = settings["train"] if train else settings["variants"][variant] if variant else settings["simulate"]
        of_trial = trials.get("n_bins") or settings.get("n_bins")
        # Some tasks give the parts of a trial instead.
        of_trial = of_trial or sum(v for k, v in settings.items() if k.endswith("_bins") and isinstance(v, int))
        return Size(trials["n_trials"] * (of_trial or BINS_OF_TRIAL) / 1e6, trials["n_trials"], 20)

    def _spec(self, rule: str, wildcards: Mapping[str, str]) -> Mapping[str, Any]:
        """Settings of the network or model that a job trains."""
        if rule == "train_network":
            return self.plan["networks"][wildcards["network"]]
        return self._fits[wildcards["dataset"], wildcards["model"], int(wildcards["seed"])]

    @cached_property
    def _widest(self) -> dict[str, int]:
        """Of each dataset, the size of the largest layer of what is fitted to it."""
        widest: dict[str, int] = {}
        for (dataset, _, _), spec in self._fits.items():
            widest[dataset] = max(widest.get(dataset, 0), _width(spec))
        return widest

    @cached_property
    def _most_values(self) -> float:
        return max(self.work("score_anchors", {"dataset": dataset}).values for dataset in self.plan["datasets"])


def threads(rule: str) -> int:
    """Threads of a rule: one, where more would not pay. The number of threads is part of what a job computes."""
    return THREADS.get(rule, 1)


def _training(spec: Mapping[str, Any], size: Size) -> Work:
    """Size of a training: all trials, what is inferred of them, and what the gradient of a batch needs."""
    training, width = spec["training"], _width(spec)
    batch = min(training["batch_size"] / size.n_trials, 1) * size.bins
    values = size.bins * (2 * size.channels + 4 * width) + 20 * batch * width
    return Work(values, training["max_epochs"] * size.bins * max(1, width / 64))


def _width(spec: Mapping[str, Any]) -> int:
    """Size of the largest layer of a network or model."""
    return max((spec[name] for name in SIZES if isinstance(spec.get(name), int)), default=64)


# New numbers from past runs


class Used(NamedTuple):
    """What a finished job took, in MB and s; `gpu_seconds` is 0 for one that ran on the processor alone."""

    rule: str
    wildcards: Mapping[str, str]
    memory_mb: float
    seconds: float
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0


PATHS = {
    "training_trials": "task_data/(?P<task>[^/]+)/train",
    "simulation_trials": "task_data/(?P<task>[^/]+)/simulate(?P<variant>(@[^/]+)?)",
    "train_network": r"networks/(?P<network>[^/]+)/seed(?P<seed>\d+)/train",
    "network_activity": r"networks/(?P<network>[^/]+)/seed(?P<seed>\d+)/activity(?P<variant>(@[^/]+)?)",
    "dataset": "datasets/(?P<dataset>[^/]+)",
    "merge": r"fits/(?P<dataset>[^/]+)/(?P<model>[^/]+)/seed(?P<seed>\d+)\.merge",
    "fit": r"fits/(?P<dataset>[^/]+)/(?P<model>[^/]+)/seed(?P<seed>\d+)",
    "dsa": r"dynamics/(?P<dataset>[^/]+)\.dsa",
    "true_dynamics": "dynamics/(?P<dataset>[^/]+)",
    "fit_dynamics": r"dynamics/(?P<dataset>[^/]+)/(?P<model>[^/]+)/seed(?P<seed>\d+)",
    "score_fit": r"scores/(?P<dataset>[^/]+)/(?P<model>[^/]+)/seed(?P<seed>\d+)",
    "score_anchors": "scores/(?P<dataset>[^/]+)/anchors",
    "gather_scores": "gather_scores",
    "reproduction": "reproduction",
    "interactive": r"figures/(?P<figure>[^/]+)\.interactive",
    "figure": "figures/(?P<figure>[^/]+)",
    "report": "report",
}
"""Benchmark files of the rules, without their suffix."""


def measured(results: Path | str, plan: Mapping[str, Any]) -> list[Used]:
    """What the jobs of a plan took, by the benchmark files among its results; those of other plans are passed over."""
    folder = Path(results) / "benchmarks"
    found = []
    for path in sorted(folder.rglob("*.tsv")):
        name = path.relative_to(folder).as_posix().removesuffix(".tsv")
        matches = ((rule, re.fullmatch(pattern, name)) for rule, pattern in PATHS.items())
        rule, match = next(((rule, match) for rule, match in matches if match), (None, None))
        if rule is None or not _is_planned(match.groupdict(), plan):
            continue
        with open(path, newline="") as file:
            row = list(csv.DictReader(file, delimiter="\t"))[-1]
        seconds, log = float(row["s"]), Path(results) / "logs" / f"{name}.log"
        on_gpu = rule in TRAININGS and log.is_file() and ON_GPU in log.read_text(errors="replace")
        used = (_number(row["max_rss"]), seconds, _number(row["cpu_time"]), seconds if on_gpu else 0.0)
        found.append(Used(rule, match.groupdict(), *used))
    return found


def _number(text: str) -> float:
    """0 for what is none, because the job ended before it was looked at."""
    return 0.0 if text in ("-", "NA") else float(text)


def _is_planned(wildcards: Mapping[str, str], plan: Mapping[str, Any]) -> bool:
    names = {"task": "tasks", "network": "networks", "dataset": "datasets", "figure": "figures"}
    if not all(wildcards[name] in plan[section] for name, section in names.items() if name in wildcards):
        return False
    fits = {(fit["dataset"], fit["model"], str(fit["seed"])) for fit in plan["fits"]}
    return "model" not in wildcards or tuple(wildcards[name] for name in ("dataset", "model", "seed")) in fits


def proposed(used: list[Used], needs: Needs) -> dict[str, tuple[Cost, Cost, int]]:
    """For each key of :data:`COSTS`: its numbers, those that just cover what was used, and how many jobs that were.

    Both numbers of memory, and both of time, are scaled alike, so that the job that came nearest to them fills them.
    Times on a GPU are left out: the numbers are those of a core.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for one in used:
        memory_mb, seconds = needs.expected(one.rule, one.wildcards)
        shares = (one.memory_mb / memory_mb, 0.0 if one.gpu_seconds else one.seconds / seconds)
        found.setdefault(needs.cost_name(one.rule, one.wildcards), []).append(shares)
    result = {}
    for name in (name for name in COSTS if name in found):
        memory, time = (max(shares) or 1.0 for shares in zip(*found[name], strict=True))  # 0: not measured
        scaled = [
            math.ceil(value * share) for value, share in zip(COSTS[name], (memory, memory, time, time), strict=True)
        ]
        result[name] = (COSTS[name], Cost(*scaled), len(found[name]))
    return result


def main(arguments: list[str]) -> str:
    """What is proposed from the runs of a configuration, as text."""
    path = Path(arguments[0]) if arguments else Path("config/config.yaml")
    plan = config.load(path)
    used = measured(plan["results"], plan)
    if not used:
        raise CtdbError(f"{plan['results']}/benchmarks: holds no benchmark of a job of {path}; run it first")
    lines = ["# rule (jobs): now -> what covers the jobs of this run; paste into COSTS of ctdb/resources.py"]
    for name, (now, new, number) in proposed(used, Needs(plan)).items():
        lines.append(f'    "{name}": Cost({", ".join(map(str, new))}),  # {number} jobs; now {tuple(now)}')
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except CtdbError as error:
        sys.exit(f"error: {error}")
