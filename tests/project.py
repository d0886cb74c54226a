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
figures:
  task: {kind: task_performance, network: gru}
  rates: {kind: raster, dataset: flip, models: [sae_gru, lds]}
  states: {kind: latents, dataset: flip, models: [sae_gru, lds]}
  table: {kind: score_table, dataset: flip}
"""


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

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600
        )

    def start(self) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(), cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def planned(self) -> dict[str, int]:
        """Jobs that a run would do, by rule."""
        done = self.run("--dry-run")
        assert done.returncode == 0, done.stderr
        table = re.search(r"^job +count\n[- ]+\n(.*?)\ntotal", done.stdout + done.stderr, re.DOTALL | re.MULTILINE)
        if table is None:
            assert "Nothing to be done" in done.stdout + done.stderr
            return {}
        return {rule: int(count) for rule, count in (line.split() for line in table[1].splitlines()) if rule != "all"}

    def planned_outputs(self, rule: str) -> str:
        """What a run would make with one rule."""
        text = self.run("--dry-run").stdout
        return "\n".join(re.findall(rf"^(?:local)?rule {rule}:\n.*?output: (.*?)\n", text, re.DOTALL | re.MULTILINE))

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text()
        assert old in text, f"{file} no longer holds {old!r}: adapt the test"
        path.write_text(text.replace(old, new, 1))

    def digests(self) -> dict[str, str]:
        """Hash of every result that must not depend on when or how often the run was interrupted."""
        results = self.folder / "results"
        kept = (
            path
            for path in sorted(results.rglob("*"))
            if path.is_file() and path.relative_to(results).parts[0] not in {"logs", "benchmarks"}
        )
        return {str(path.relative_to(results)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def lay_out(folder: Path) -> Project:
    """Copy the code into `folder` and add the small configuration and a user's file."""
    folder.mkdir(parents=True)
    for name in ("src/ctdb", "workflow"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", folder)
    (folder / "profiles").symlink_to("workflow/profiles")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    with h5py.File(folder / "data/mine.h5", "w") as file:
        file["train_spikes"] = rng.poisson(0.5, (20, 12, 6))
        file["valid_spikes"] = rng.poisson(0.5, (8, 12, 6))
    return Project(folder)
