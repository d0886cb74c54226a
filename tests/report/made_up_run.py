"""Results of a run that never was: two datasets, five fits of which one diverged and one is missing, six figures."""

import io
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image
from plotly import graph_objects as go

from ctdb import config
from ctdb.files import write_yaml
from ctdb.scores import table_of
from project import CONFIG

FIGURES = """  near: {kind: score_table, dataset: mine, metrics: [bits_per_spike_heldin]}
  points: {kind: fixed_points, dataset: flip, models: [sae_gru]}
"""
VALUES = {
    ("flip", "sae_gru", 0): {"rate_r2": 0.8, "bits_per_spike_heldin": 0.30, "poisson_nll": 0.1},
    ("flip", "sae_gru", 1): {"rate_r2": 0.6, "bits_per_spike_heldin": 0.20, "poisson_nll": 0.2},
    ("flip", "sae_gru", 2): {},
    ("flip", "lds", 0): {"rate_r2": -0.25, "bits_per_spike_heldin": 0.10, "poisson_nll": 0.4},
}
ANCHORS = {
    ("flip", "floor_mean_rate", "floor"): {"rate_r2": 0.0, "bits_per_spike_heldin": 0.0, "poisson_nll": 0.5},
    ("flip", "ceiling_true_rates", "ceiling"): {"rate_r2": 1.0, "bits_per_spike_heldin": 0.5, "poisson_nll": 0.05},
}
METRICS = ["rate_r2", "bits_per_spike_heldin", "poisson_nll", "forecast_skill"]
EVIL = "</script><img src=x onerror=alert(1)> & 'more' \"still\""
HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def make(folder: Path) -> tuple[dict, str]:
    """Write the results into `folder`; their plan, and the text of its configuration."""
    text = CONFIG.replace("models: [sae_gru, lds], seeds: [0]", "models: [lds], seeds: [0]") + FIGURES
    text = text.replace("fits:\n", "fits:\n  - {datasets: [flip], models: [sae_gru], seeds: [0, 1, 2]}\n")
    text = text.replace("results: results", "results: out  # <made> & up")
    (folder / "config.yaml").write_text(text)
    plan = config.load(folder / "config.yaml") | {"results": str(folder / "out")}
    out = folder / "out"
    scores(plan).to_parquet(_made(out / "scores.parquet"))
    for fit in plan["fits"]:
        if fit["dataset"] == "mine":
            continue
        diverged = fit["seed"] == 2
        facts = {
            "status": "diverged" if diverged else "ok",
            "reason": "the loss became nan <at once>" if diverged else "",
        }
        facts |= {
            "warnings": [EVIL] if fit["model"] == "lds" else [],
            "n_epochs": 4,
            "best_epoch": 3,
            "best_valid_loss": 0.5,
        }
        write_yaml(_made(out / f"fits/flip/{fit['model']}/seed{fit['seed']}/spec.yaml"), facts)
    log = _made(out / "logs/fits/mine/sae_gru/seed0.log")
    log.write_text("versions: ctdb 9, numpy 8, torch 7\nerror: the disk is full & <small>\n")
    benchmark(out, "fits/flip/sae_gru/seed0", 7200, 500, 3600)
    benchmark(out, "fits/flip/sae_gru/seed1", 3600, 700, 1800)
    benchmark(out, "networks/gru/seed0/train", 36, 100, 18)
    benchmark(out, "report", 1e9, 1e9, 1e9)  # of an earlier report
    with h5py.File(_made(out / "datasets/flip.h5"), "w") as file:
        file.attrs["bin_s"] = 0.02
        for split, trials in (("train", 24), ("valid", 8), ("test", 7)):
            file[f"{split}_encod_data"], file[f"{split}_recon_data"] = (
                np.zeros((trials, 16, 5)),
                np.zeros((trials, 16, 7)),
            )
    for name in ("task", "rates", "states", "near", "points"):
        figure(out, name)
    for name, label in (("states", "true states"), ("points", "truth")):
        space(label).write_json(out / f"figures/{name}.json")
    plain = go.Figure(go.Scatter3d(x=[0, 1], y=[0, 1], z=[0, 1], mode="markers"))  # of a figure that offers no choice
    plain.write_json(out / "figures/near.json")
    return plan, text


def scores(plan: dict) -> pd.DataFrame:
    """Scores table: three metrics, and one that is undefined for the linear model."""
    rows = []
    for split, shift in (("test", 0.0), ("valid", 0.5)):
        for (dataset, model, seed), values in VALUES.items():
            labels = {
                "dataset": dataset,
                "session": "",
                "model": model,
                "kind": model,
                "sweep": "{}",
                "role": "fit",
                "seed": seed,
            }
            rows += _rows(labels, values, split, shift, "ok" if values else "diverged")
        for (dataset, model, role), values in ANCHORS.items():
            labels = {
                "dataset": dataset,
                "session": "",
                "model": model,
                "kind": "anchor",
                "sweep": "{}",
                "role": role,
                "seed": pd.NA,
            }
            rows += _rows(labels, values, split, shift, "ok")
    return table_of(rows)


def _rows(labels, values, split, shift, status):
    shared = labels | {"split": split, "n_trials": 7, "low": np.nan, "high": np.nan}
    rows = [
        shared | {"metric": metric, "value": values[metric] + shift, "low": values[metric] + shift - 0.01, "high": values[metric] + shift + 0.02, "status": "ok", "reason": ""}
        if metric in values
        else shared | {"metric": metric, "value": np.nan, "status": status, "reason": "nan"}
        for metric in METRICS[:3]
    ]  # fmt: skip
    if labels["model"] == "lds":
        rows.append(shared | {"metric": METRICS[3], "value": np.nan, "status": "undefined", "reason": "no <dynamics>"})
    return rows


def benchmark(out: Path, name: str, seconds: float, memory: float, cpu: float) -> None:
    """What a job took, as Snakemake writes it."""
    _made(out / f"benchmarks/{name}.tsv").write_text(
        HEADER + f"{seconds}\t0:00:01\t{memory}\t1\t1\t1\t0\t0\t99\t{cpu}\n"
    )


def figure(out: Path, name: str) -> None:
    """Image, table and caption of a figure."""
    rng = np.random.default_rng(len(name))
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (40, 60, 4), np.uint8), "RGBA").save(buffer, "png")
    _made(out / f"figures/{name}.png").write_bytes(buffer.getvalue())
    rows = pd.DataFrame({"source": [f'a, "b" <i>{index}</i>' for index in range(40)], "value": rng.normal(size=40)})
    (out / f"figures/{name}.csv").write_text(rows.to_csv(index=False))
    (out / f"figures/{name}.txt").write_text(f"Caption of {name}. {EVIL if name == 'rates' else ''}\n")


def space(label: str) -> go.Figure:
    """Two systems in three dimensions."""
    turn = np.linspace(0, 6, 30)
    canvas = go.Figure(
        [
            go.Scatter3d(x=np.cos(turn), y=np.sin(turn), z=turn * scale, name=f"{label} {scale}", mode="lines")
            for scale in (1, 2)
        ]
    )
    choices = [{"label": "both", "visible": [True, True]}, {"label": "second", "visible": [False, True]}]
    return canvas.update_layout(meta={"title": f"{label} in space {EVIL}", "choices": choices})


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
