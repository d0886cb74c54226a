"""What a run has cost, and what one will cost.

    python -m ctdb.costs config/config.yaml

tells how many jobs a configuration comes to, and about how many hours and gigabytes; of jobs whose results are there,
it counts what they took. A finished run leaves ``cost.csv`` and a figure of it among its results.
"""

import csv
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ctdb import config
from ctdb.errors import CtdbError
from ctdb.files import write_bytes, write_text
from ctdb.resources import TRAININGS, Needs, Used, measured

COLUMNS = ("stage", "task", "model", "jobs", "wall_h", "cpu_h", "gpu_h", "peak_mb")
BYTES = 4
COMPRESSED = 0.6
"""Share of the bytes of results that compression leaves, on average."""


class Estimate(NamedTuple):
    """What the jobs of a plan come to.

    Attributes
    ----------
    jobs, done
        All jobs, and those whose cost is known from a finished run.
    core_hours
        On one core, all but the following. Upper bounds until they are measured.
    training_hours
        Likewise, of trainings so long that they are worth a GPU, where they take a fraction of that.
    gpu_hours
        Of trainings that ran on a GPU.
    disk_gb
        Of data sets, fits and activities.
    """

    jobs: int
    done: int
    core_hours: float
    training_hours: float
    gpu_hours: float
    disk_gb: float


def jobs_of(plan: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rule and wildcards of every job of a plan, but for recordings, pages and the list of published numbers."""
    sources = [source for dataset in plan["datasets"].values() for source in dataset["sources"]]
    sources += [need for figure in plan["figures"].values() for need in figure["needs"]]
    behind = [names for what, *names in sources if what == "activity"]
    tasks = {plan["networks"][network]["task"] for network, *_ in behind}
    for task in sorted(tasks):
        yield "training_trials", {"task": task}
    for task, variant in sorted({(plan["networks"][network]["task"], variant) for network, _, variant in behind}):
        yield "simulation_trials", {"task": task, "variant": f"@{variant}" if variant else ""}
    for network, seed in sorted({(network, str(seed)) for network, seed, _ in behind}):
        yield "train_network", {"network": network, "seed": seed}
    for network, seed, variant in sorted({(network, str(seed), variant) for network, seed, variant in behind}):
        at = f"@{variant}" if variant else ""
        yield "network_activity", {"network": network, "seed": seed, "variant": at}
    for dataset in plan["datasets"]:
        yield "dataset", {"dataset": dataset}
    fits = [{"dataset": fit["dataset"], "model": fit["model"], "seed": str(fit["seed"])} for fit in plan["fits"]]
    for fit in fits:
        yield "fit", fit
        yield "score_fit", fit
        if plan["datasets"][fit["dataset"]]["settings"]["kind"] == "continuous":
            yield "merge", fit
        if fit["dataset"] in plan["dynamics"]:
            yield "fit_dynamics", fit
    for dataset in dict.fromkeys(fit["dataset"] for fit in fits):
        yield "score_anchors", {"dataset": dataset}
    for dataset, wanted in plan["dynamics"].items():
        yield "true_dynamics", {"dataset": dataset}
        if wanted["dsa"]:
            yield "dsa", {"dataset": dataset}
    yield "gather_scores", {}
    for figure in plan["figures"]:
        yield "figure", {"figure": figure}


def estimate(plan: Mapping[str, Any]) -> Estimate:
    """What a plan comes to, by what finished jobs took and by the upper bounds of others."""
    needs, took = Needs(plan), {_key(one.rule, one.wildcards): one for one in measured(plan["results"], plan)}
    jobs, done, on_cpu, long, on_gpu, disk = 0, 0, 0.0, 0.0, 0.0, 0.0
    for rule, wildcards in jobs_of(plan):
        jobs += 1
        known = took.get(_key(rule, wildcards))
        done += known is not None
        if known is not None and known.gpu_seconds:
            on_gpu += known.gpu_seconds
        elif known is None and needs.is_worth_a_gpu(rule, wildcards):
            long += needs.expected(rule, wildcards)[1]
        else:
            on_cpu += needs.expected(rule, wildcards)[1] if known is None else known.seconds
        disk += _bytes(needs, rule, wildcards)
    return Estimate(jobs, done, on_cpu / 3600, long / 3600, on_gpu / 3600, disk / 1e9)


def of_run(results: Path | str, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the cost sheet: for each stage, task or data set, and model, what its jobs took together.

    Hours of GPUs are those of trainings whose log says that they ran on one; memory is the peak of any one job.
    """
    groups: dict[tuple[str, str, str], list[Used]] = {}
    for one in measured(results, plan):
        known = one.wildcards
        subject = known.get("dataset") or known.get("task") or ""
        if "network" in known:
            subject = plan["networks"][known["network"]]["task"]
        groups.setdefault((one.rule, subject, known.get("model") or known.get("network") or ""), []).append(one)
    return [
        {
            "stage": stage,
            "task": subject,
            "model": model,
            "jobs": len(used),
            "wall_h": sum(one.seconds for one in used) / 3600,
            "cpu_h": sum(one.cpu_seconds for one in used) / 3600,
            "gpu_h": sum(one.gpu_seconds for one in used) / 3600,
            "peak_mb": max(one.memory_mb for one in used),
        }
        for (stage, subject, model), used in groups.items()
    ]


def write_sheet(plan: Mapping[str, Any]) -> Path:
    """Write `cost.csv`, and the figure `cost.pdf` and `cost.png`, among the results; where the sheet is."""
    out = Path(plan["results"]) / "cost.csv"
    rows = of_run(plan["results"], plan)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()})
    write_text(out, text.getvalue())
    if rows:
        for suffix, picture in _drawn(rows).items():
            write_bytes(out.with_suffix(suffix), picture)
    return out


def _drawn(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """Bars of hours and memory by stage and model, the dearest first."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    from ctdb.figures.base import STYLE, WIDTH

    whole: dict[str, dict[str, float]] = {}
    for row in rows:
        name = f"{row['stage']} {row['model'].partition('@')[0]}".strip()
        kept = whole.setdefault(name, {"wall_h": 0.0, "cpu_h": 0.0, "gpu_h": 0.0, "peak_mb": 0.0, "jobs": 0})
        for key in ("wall_h", "cpu_h", "gpu_h", "jobs"):
            kept[key] += row[key]
        kept["peak_mb"] = max(kept["peak_mb"], row["peak_mb"])
    names = sorted(whole, key=lambda name: -whole[name]["wall_h"])[:30]
    mpl.use("agg")
    with mpl.style.context(STYLE):
        canvas, (hours, memory) = plt.subplots(
            1, 2, figsize=(WIDTH, 0.8 + 0.16 * len(names)), sharey=True, layout="constrained", width_ratios=(2, 1)
        )
        places = range(len(names))
        for key, label, height in (("wall_h", "elapsed", 0.8), ("cpu_h", "processor", 0.5), ("gpu_h", "GPU", 0.2)):
            hours.barh(places, [whole[name][key] for name in names], height, label=label)
        hours.set_yticks(places, [f"{name} ({whole[name]['jobs']:.0f})" for name in names])
        hours.invert_yaxis()
        hours.set_xlabel("hours of all jobs together")
        hours.legend(loc="lower right")
        memory.barh(places, [whole[name]["peak_mb"] / 1000 for name in names], 0.8, color="0.6")
        memory.set_xlabel("peak memory of a job (GB)")
        canvas.suptitle("Cost by stage and model (number of jobs)", x=0.02, ha="left")
        plt.close(canvas)
        made = {}
        for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", {})):
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=suffix[1:], metadata=metadata)
            made[suffix] = buffer.getvalue()
    return made


def _key(rule: str, wildcards: Mapping[str, str]) -> tuple[str, ...]:
    return rule, *(wildcards[name] for name in sorted(wildcards) if wildcards[name])


def _bytes(needs: Needs, rule: str, wildcards: Mapping[str, str]) -> float:
    """About how much a job leaves on the disk: the arrays of what has bins."""
    if rule == "dataset":
        size = needs.size(wildcards["dataset"])
        return COMPRESSED * BYTES * 1e6 * size.bins * (3 * size.channels + needs.true_states(wildcards["dataset"]))
    if rule == "fit":
        size = needs.size(wildcards["dataset"])
        return COMPRESSED * BYTES * 1e6 * size.bins * (2 * size.channels + 2 * needs.width(rule, wildcards))
    if rule == "network_activity":
        return COMPRESSED * BYTES * 4e6 * needs.work(rule, wildcards).values / 4
    return 0.0


def main(arguments: list[str]) -> str:
    """What a configuration comes to, as text."""
    path = Path(arguments[0]) if arguments else Path("config/config.yaml")
    plan = config.load(path)
    whole = estimate(plan)
    trainings = sum(rule in TRAININGS for rule, _ in jobs_of(plan))
    return (
        f"{path}: {whole.jobs} jobs, {trainings} of them trainings; {whole.done} were run before and count what they "
        f"took.\nAt most {whole.core_hours:.1f} core hours; {whole.training_hours:.1f} more in trainings that are "
        f"worth a GPU and take a fraction of that there; {whole.gpu_hours:.1f} hours on a GPU so far.\n"
        f"About {whole.disk_gb:.1f} GB of results."
    )


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except CtdbError as error:
        sys.exit(f"error: {error}")
