"""Train a network on a task, and run it once over the simulation trials: the ground truth from then on."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ctdb.errors import TaskError, TrainingDivergedError
from ctdb.files import lock, write_hdf5
from ctdb.networks.base import Network, build, load
from ctdb.networks.rollout import rollout
from ctdb.recurrent import Noise, use_backend, without_gpu
from ctdb.seeds import derive
from ctdb.tasks.base import Rollout, Task, TaskTrials
from ctdb.training import Batches, discard_checkpoint, train

TRIALS_PER_PASS = 250


class _OnTask(nn.Module):
    """A network with the loss of its task, as the training loop wants it."""

    def __init__(self, network: Network, task: Task):
        super().__init__()
        self.network, self.task, self.body, self.epoch = network, task, task.body(), 0

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def loss_and_terms(
        self, batch: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        noise = Noise.of(batch, generator) if self.training else None
        weight = self.network.settings.latent_l2
        run = rollout(self.network, batch, self.body, noise, states=weight > 0)
        loss = self.task.loss(run, batch, self.epoch if self.training else None)
        if weight:
            states = run.states * valid_bins(batch, run.states.shape[1])[..., None]
            loss = loss + weight * states.flatten(1).norm(dim=1).mean()
        terms = {} if self.training else {"success": self.task.success(run, batch).mean()}
        return loss, terms


def valid_bins(trials: Mapping[str, Tensor], n_bins: int) -> Bool[Tensor, "trials bins"]:
    """Which bins are no padding."""
    last = trials.get("n_bins", torch.full((len(trials["inputs"]),), n_bins, device=trials["inputs"].device))
    return torch.arange(n_bins, device=last.device) < last[:, None]


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
    TaskError
        If the task's body does not survive the trials, whatever the network does.
    """
    out = Path(out)
    network = build(spec, len(task.input_names), len(task.output_names), seed)
    _check_body(network, task, trials)
    training = network.settings.training
    batches = {
        name: Batches(
            split.tensors(),
            training.batch_size,
            shuffle_seed=derive("network batches", seed) if name == "train" else None,
        )
        for name, split in trials.items()
    }
    code = (type(network).__module__, type(task).__module__, __name__)
    own = {
        "network": network.settings.model_dump(exclude={"training"}),
        "task": task.settings.model_dump(),
        "versions": task.versions(),
    }
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


def _check_body(network: Network, task: Task, trials: Mapping[str, TaskTrials]) -> None:
    """Raise TaskError where forces tear the body, which a training would take for a diverged network."""
    if (body := task.body()) is None:
        return
    with torch.no_grad(), use_backend("eager"):
        for name, split in trials.items():
            _check_finite(rollout(network, split.tensors(), body, states=False), split, name)


def _check_finite(run: Rollout, trials: TaskTrials, name: str) -> None:
    bad = (~run.behavior.isfinite()).any(2).nonzero()
    if len(bad):
        trial, at = bad[0].tolist()
        force = trials.extra.get("force")
        pushed = "" if force is None else f" under a force of up to {np.abs(force[trial]).max():.3g} N"
        raise TaskError(
            f"the body's state became NaN or infinite in bin {at} of {name} trial {trial}{pushed}; "
            "lower bump_newtons, or take a smaller bin_s"
        )


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
        HDF5 file: `states`, `outputs`, `success` of each trial and the trials' own arrays, (trials, bins, channels), 0
        in padding, or (trials,); the `inputs` are what the network saw in that very bin, and `behavior` what its body
        did. Attributes: names of channels and conditions, `loss`, mean `success`, and, where the outputs are the
        answer, `baseline_loss` and `baseline_success` of always answering each output's mean.

    Raises
    ------
    TaskError
        If the network's body broke.
    """
    network, body = load(directory, torch.float32), task.body()
    generator = torch.Generator().manual_seed(derive("network activity", seed))
    tensors, parts = trials.tensors(), []
    with torch.no_grad(), use_backend(without_gpu(network.settings.training.backend)):
        for part in torch.arange(len(trials.inputs)).split(TRIALS_PER_PASS):
            chosen = {name: value[part] for name, value in tensors.items()}
            parts.append(rollout(network, chosen, body, Noise(generator, part), compiled=False))
    run = Rollout(*[None if one[0] is None else torch.cat(one) for one in zip(*parts, strict=True)])
    if body is not None:
        _check_finite(run, trials, "simulation")
    inside = valid_bins(tensors, run.outputs.shape[1])[..., None]
    run = Rollout(*[None if value is None else torch.where(inside, value, 0) for value in run])
    tensors |= {name: torch.where(inside, tensors[name], 0) for name in ("inputs_true", "targets", "loss_weight")}
    arrays = {name: value for name, value in {**tensors, **run._asdict()}.items() if value is not None}
    exact = {name: value.double() if value.is_floating_point() else value for name, value in tensors.items()}
    precise = Rollout(*[None if value is None else value.double() for value in run])
    success = task.success(precise, exact)
    facts = {
        "bin_s": task.settings.bin_s,
        "input_names": task.input_names,
        "output_names": task.output_names,
        "true_input_names": task.true_input_names,
        "target_names": task.target_names,
        "behavior_names": task.behavior_names,
        "condition_names": task.conditions,
        "loss": float(task.loss(precise, exact)),
        "success": float(success.mean()),
    }
    print(f"task loss {facts['loss']:.3g}, success {facts['success']:.1%}")
    if (chance := task.chance(exact)) is not None:
        facts["baseline_loss"] = float(task.loss(chance, exact))
        facts["baseline_success"] = float(task.success(chance, exact).mean())
        print(f"always answering the mean: loss {facts['baseline_loss']:.3g}, success {facts['baseline_success']:.1%}")
    arrays["success"] = success.float()
    write_hdf5(out, {name: value.numpy() for name, value in arrays.items()}, facts)
