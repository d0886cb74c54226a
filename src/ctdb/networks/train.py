"""Train a network on a task, and run it once over the simulation trials: the ground truth from then on."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctdb.errors import TrainingDivergedError
from ctdb.files import lock, write_hdf5
from ctdb.networks.base import Network, build, load
from ctdb.recurrent import Noise, use_backend, without_gpu
from ctdb.seeds import derive
from ctdb.tasks.base import Task, TaskTrials
from ctdb.training import Batches, discard_checkpoint, train

TRIALS_PER_PASS = 250


class _OnTask(nn.Module):
    """A network with the loss of its task, as the training loop wants it."""

    def __init__(self, network: Network, task: Task):
        super().__init__()
        self.network, self.task = network, task

    def loss(self, batch: Mapping[str, Tensor], generator: torch.Generator | None) -> Tensor:
        noise = Noise.of(batch, generator) if self.training else None
        _, outputs = self.network.run(batch["inputs"], noise, states=False)
        return self.task.loss(outputs, batch["targets"], batch["loss_weight"])


def train_network(
    spec: Mapping[str, Any], task: Task, trials: Mapping[str, TaskTrials], seed: int, out: Path | str
) -> Network:
    """Train a network on a task and write its best weights, spec and history to `out`.

    Parameters
    ----------
    spec
        Settings of the network, with its kind and training.
    task
        The task, for its channels and loss.
    trials
        `train` and `valid` trials; the best epoch is the one with the lowest valid loss, noise off.
    seed
        Seed of weights, batches and noise.
    out
        Output folder. A run that was killed goes on from its last checkpoint there, to the same final bytes.

    Raises
    ------
    TrainingDivergedError
        If the loss becomes NaN or infinite. The weights of the best epoch before that are in ``out/diverged``.
    """
    out = Path(out)
    network = build(spec, len(task.input_names), len(task.output_names), seed)
    training = network.settings.training
    batches = {
        name: Batches(
            {key: torch.from_numpy(split.arrays()[key]) for key in ("inputs", "targets", "loss_weight")},
            training.batch_size,
            shuffle_seed=derive("network batches", seed) if name == "train" else None,
        )
        for name, split in trials.items()
    }
    code = (type(network).__module__, type(task).__module__, __name__)
    own = {"network": network.settings.model_dump(exclude={"training"}), "task": task.settings.model_dump()}
    with lock(out):
        result = train(_OnTask(network, task), batches["train"], batches["valid"], training, seed, out, code, own)
        # Snakemake removes the outputs of a job that fails, but not a folder that it does not know.
        kept = out if result.diverged is None else out / "diverged"
        network.save(kept, seed=seed, **result.facts())
        if result.diverged is None:
            shutil.rmtree(out / "diverged", ignore_errors=True)  # of an earlier run with other settings
        discard_checkpoint(out)
    if result.diverged is not None:
        raise TrainingDivergedError(f"{result.diverged}. They are in {kept}")
    return network


def record_activity(directory: Path | str, task: Task, trials: TaskTrials, seed: int, out: Path | str) -> None:
    """Run a trained network, with its noise, over the simulation trials and write what happened.

    Parameters
    ----------
    directory
        Folder of the trained network.
    task
        Its task.
    trials
        Simulation trials.
    seed
        Seed of the network's noise.
    out
        HDF5 file: `states`, `outputs` and the trials' own arrays, all (trials, bins, channels), and the attributes
        `loss` and `baseline_loss` (of always answering each output's mean) on these trials.
    """
    network = load(directory, torch.float32)
    generator = torch.Generator().manual_seed(derive("network activity", seed))
    states, outputs = [], []
    inputs = torch.from_numpy(trials.inputs)
    with torch.no_grad(), use_backend(without_gpu(network.settings.training.backend)):
        for part in torch.arange(len(inputs)).split(TRIALS_PER_PASS):
            state, output = network.run(inputs[part], Noise(generator, part))
            states.append(state.numpy())
            outputs.append(output.numpy())
    outputs = np.concatenate(outputs)
    mean = trials.targets.mean((0, 1), keepdims=True)
    facts = {
        "bin_s": task.settings.bin_s,
        "input_names": task.input_names,
        "output_names": task.output_names,
        "loss": float(task.loss(outputs.astype(np.float64), trials.targets, trials.loss_weight)),
        "baseline_loss": float(task.loss(mean.astype(np.float64), trials.targets, trials.loss_weight)),
    }
    write_hdf5(out, {"states": np.concatenate(states), "outputs": outputs, **trials.arrays()}, facts)
    print(f"task loss {facts['loss']:.3g}, {facts['loss'] / facts['baseline_loss']:.1%} of always answering the mean")
