"""A project in a folder of its own: a copy of the code and a configuration of seconds."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np

REPOSITORY = Path(__file__).parents[1]

CONFIG = """
results: results
tasks:
  flip:
    {kind: nbff, n_bits: 2, n_bins: 16, switch_prob: 0.1,
     train: {n_trials: 30, seed: 0}, simulate: {n_trials: 40, seed: 1}}
networks:
  gru: {kind: noisy_gru, task: flip, hidden_size: 5, training: {max_epochs: 3, batch_size: 10}}
datasets:
  flip: {kind: simulated, network: gru, n_heldin: 5, n_heldout: 2, valid_fraction: 0.2, test_fraction: 0.2}
  mine: {kind: file, path: data/mine.h5, bin_s: 0.02, keys: {recon_data: "{split}_spikes"}, n_heldout: 2}
models:
  sae_gru: &small
    kind: sae_gru
    latent_size: 4
    encoder_size: 3
    training: {max_epochs: 4, batch_size: 8}
  lds: {<<: *small, kind: lds}
fits:
  - {datasets: [flip], models: [sae_gru, lds], seeds: [0]}
  - {datasets: [mine], models: [sae_gru], seeds: [0]}
dynamics:
  flip:
    fixed_points: {n_starts: 10}
    forecast: {horizon: 4, every: 4}
    lyapunov: {n_bins: 20, transient: 5}
    dsa: {components: 2, n_null: 3}
figures:
  task: {kind: task_performance, network: gru}
  rates: {kind: raster, dataset: flip, models: [sae_gru, lds]}
  states: {kind: latents, dataset: flip, models: [sae_gru, lds]}
  table: {kind: score_table, dataset: flip}
"""

RECORDINGS = """
results: results
datasets:
  flow: {kind: lorenz, n_conditions: 2, n_trials_per_condition: 5, n_bins: 8, n_heldin: 5, n_heldout: 1}
  wave:
    {kind: continuous, path: data/wave.h5, keys: {behavior: hand}, bin_s: 0.02, window_bins: 8, overlap_bins: 5,
     block_bins: 20, n_heldout: 1}
  calcium: {kind: file, path: data/calcium.h5, bin_s: 0.05, keys: {recon_data: "{split}_dff"}, signal: continuous}
models:
  lfads: &tiny
    {kind: lfads, gen_dim: 4, fac_dim: 3, ic_enc_dim: 3, ic_dim: 2, ci_enc_dim: 3, con_dim: 3, co_dim: 1, n_samples: 2,
     training: &once {max_epochs: 1, batch_size: 8}}
  first: {<<: *tiny, kl_ic_scale: 0.5}
  tuned: {<<: *tiny, initial_fit: {dataset: flow, model: first}, freeze: [generator]}
  gamma: {<<: *tiny, observation: {kind: gamma}}
  band: {<<: *tiny, kind: band}
  sae: {kind: sae_gru, latent_size: 3, encoder_size: 3, training: *once}
fits:
  - {datasets: [flow], models: [lfads, first, tuned, sae]}
  - {datasets: [wave], models: [band]}
  - {datasets: [calcium], models: [gamma]}
figures:
  inputs: {kind: controls, dataset: wave, models: [band]}
"""
"""Of models and recordings that `CONFIG` does not have."""


class Project:
    """A folder in which snakemake runs on its own copy of the code."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "PYTHONPATH": str(folder / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CTDB_CHECKPOINT_SECONDS": "0",
        }

    def command(self, *arguments: str) -> list[str]:
        own = ["--configfile", "config.yaml"] if "--configfile" not in arguments else []
        return [sys.executable, "-m", "snakemake", "--cores", "2", "--keep-going", *arguments, *own]

    def run(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(), cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def planned(self, *targets: str) -> dict[str, int]:
        """Jobs that a run would do, by rule."""
        done = self.run("--dry-run", *targets)
        assert done.returncode == 0, done.stderr
        table = re.search(r"^job +count\n[- ]+\n(.*?)\ntotal", done.stdout + done.stderr, re.DOTALL | re.MULTILINE)
        if table is None:
            assert "Nothing to be done" in done.stdout + done.stderr
            return {}
        return {rule: int(count) for rule, count in (line.split() for line in table[1].splitlines()) if rule != "all"}

    def planned_outputs(self, rule: str) -> str:
        """What a run would make with one rule."""
        return "\n".join(self.outputs_by_rule().get(rule, []))

    def outputs_by_rule(self, *targets: str) -> dict[str, list[str]]:
        """What a run would make, one text for each job, by rule."""
        done = self.run("--dry-run", *targets)
        assert done.returncode == 0, done.stderr
        _, *blocks = re.split(r"^(?:local)?rule (\w+):\n", done.stdout, flags=re.MULTILINE)
        outputs: dict[str, list[str]] = {}
        for rule, block in zip(blocks[::2], blocks[1::2], strict=True):
            outputs.setdefault(rule, []).extend(re.findall(r"^ +output: (.*)$", block, re.MULTILINE))
        return outputs

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text, f"{file} no longer holds {old!r}: adapt the test"
        path.write_text(text.replace(old, new, 1))

    def digests(self) -> dict[str, str]:
        """Hash of every result that must not depend on when or how often the run was interrupted, nor on its cost."""
        results, volatile = (
            self.folder / "results",
            {"logs", "benchmarks", "cost.csv", "cost.pdf", "cost.png", "report.html"},
        )
        kept = (
            path
            for path in sorted(results.rglob("*"))
            if path.is_file() and path.relative_to(results).parts[0] not in volatile
        )
        return {str(path.relative_to(results)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def lay_out(folder: Path, config: str = CONFIG) -> Project:
    """Copy the code into `folder` and add a small configuration and users' files."""
    folder.mkdir(parents=True)
    for name in ("src/ctdb", "workflow"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", folder)
    (folder / "profiles").symlink_to("workflow/profiles")
    (folder / "slurm").symlink_to("workflow/profiles/slurm")
    (folder / "config.yaml").write_text(config)
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    with h5py.File(folder / "data/mine.h5", "w") as file:
        file["train_spikes"] = rng.poisson(0.5, (20, 12, 6))
        file["valid_spikes"] = rng.poisson(0.5, (8, 12, 6))
    with h5py.File(folder / "data/wave.h5", "w") as file:
        file["spikes"], file["hand"] = rng.poisson(0.5, (212, 6)), rng.normal(size=(212, 2))
    with h5py.File(folder / "data/calcium.h5", "w") as file:
        file["train_dff"], file["valid_dff"] = rng.gamma(2, 0.3, (20, 8, 4)), rng.gamma(2, 0.3, (6, 8, 4))
    return Project(folder)
