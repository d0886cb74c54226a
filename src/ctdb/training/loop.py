"""The training loop: Lightning runs the epochs, this file says what an epoch does and what a kill must not lose.

Every random draw of an epoch comes from a generator seeded by (seed, epoch), so a run that goes on from a checkpoint
draws what the undisturbed run would have drawn, and ends in the same bytes.
"""

import contextlib
import gc
import hashlib
import json
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from ctdb import interruption
from ctdb.errors import TrainingDivergedError
from ctdb.provenance import fingerprint
from ctdb.recurrent import Cell, choose, use_backend, without_gpu
from ctdb.recurrent.backends import weights_of
from ctdb.seeds import derive
from ctdb.settings import TrainingSettings
from ctdb.training.batches import Batches, SessionBatches
from ctdb.training.keeper import Keeper, Progress, write_history


class Trainable(Protocol):
    """A module with a loss; in train mode it may draw from the generator, in eval mode it must not."""

    def loss(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Mean loss over the trials of a batch."""


@dataclass(frozen=True)
class TrainingResult:
    """How a training run ended; the module itself holds its best weights.

    Attributes
    ----------
    history
        One row per epoch: epoch, train_loss, valid_loss, learning_rate, gradient_norm (the largest, before it was
        clipped), and ``train_{term}``, ``valid_{term}`` of the loss's terms.
    best_epoch
        Epoch with the lowest valid loss, whose weights the module has; -1 if no epoch had a finite one.
    diverged
        Where the loss became NaN or infinite, in words, or None.
    warnings
        What went wrong without ending the run, and what usually cures it.
    """

    history: pd.DataFrame
    best_epoch: int
    diverged: str | None
    warnings: list[str]

    def facts(self) -> dict[str, Any]:
        """What a spec records of the training."""
        best = self.history.loc[self.history["epoch"] == self.best_epoch, "valid_loss"]
        return {
            "status": "ok" if self.diverged is None else "diverged",
            "reason": self.diverged or "",
            "warnings": self.warnings,
            "n_epochs": len(self.history),
            "best_epoch": self.best_epoch,
            "best_valid_loss": float(best.iloc[0]) if len(best) else None,
        }

    def raise_if_diverged(self) -> None:
        """Raise TrainingDivergedError if the loss became NaN or infinite."""
        if self.diverged is not None:
            raise TrainingDivergedError(self.diverged)


def train(
    module: nn.Module,
    train_data: Batches | SessionBatches,
    valid_data: Batches | SessionBatches,
    settings: TrainingSettings,
    seed: int,
    out: Path,
    code: Sequence[str] = (),
    spec: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Train `module` in place and leave it with the weights of its best epoch.

    Parameters
    ----------
    module
        A :class:`Trainable`.
    train_data, valid_data
        Batches; the valid loss, in eval mode, selects the best epoch and stops early.
    settings
        How to train.
    seed
        Seed of all draws in training.
    out
        Folder for `history.csv` and the checkpoint. A checkpoint found there is continued if it belongs to this very
        run: same data, settings, seed, initial weights, code and spec. :func:`discard_checkpoint` removes it.
    code
        Dotted names of the modules that define what is trained, beyond this one: their code is part of the run.
    spec
        Settings of what is trained. They are part of the run too: a dropout rate shows in no initial weight.

    Returns
    -------
    History, best epoch, and where the loss diverged if it did (nothing is raised, so that the caller can write the
    best weights first).
    """
    run = identity(module, train_data, valid_data, settings, seed, fingerprint(__file__, *code), spec or {})
    keeper = Keeper(out, settings, run)
    saved = matching_checkpoint(keeper.checkpoint, run, lambda saved: saved["callbacks"][Keeper.__qualname__])
    if saved is not None and saved["finished"]:
        keeper.load_state_dict(saved)
    else:
        with use_backend(settings.backend), old_objects_left_alone(), interruption.deferred():
            _run_epochs(module, train_data, valid_data, settings, seed, keeper, resume=saved is not None)
    return conclude(module, keeper.progress, out)


def conclude(module: nn.Module, progress: Progress, out: Path) -> TrainingResult:
    """Leave a module with the weights of its best epoch, on the CPU and in eval mode; write its history."""
    module.load_state_dict(progress.best_weights)
    module.cpu().eval()
    write_history(out, progress)
    warnings_found = progress.warnings() + _warnings_of(module, progress)
    for line in warnings_found:
        print(f"warning: {line}")
    return TrainingResult(progress.history(), progress.best_epoch, progress.diverged, warnings_found)


def _warnings_of(module: nn.Module, progress: Progress) -> list[str]:
    """What the module says of the terms of its best epoch."""
    if progress.best_epoch < 0 or not hasattr(module, "warnings"):
        return []
    row = progress.history().set_index("epoch").loc[progress.best_epoch]
    return module.warnings(row.to_dict())


def discard_checkpoint(out: Path | str) -> None:
    """Remove the checkpoint of a run whose outputs are written."""
    shutil.rmtree(Path(out) / "checkpoint", ignore_errors=True)


def _run_epochs(
    module: nn.Module,
    train_data: Batches | SessionBatches,
    valid_data: Batches | SessionBatches,
    settings: TrainingSettings,
    seed: int,
    keeper: Keeper,
    resume: bool,
) -> None:
    callbacks: list[pl.Callback] = [keeper]
    if show_bar := sys.stderr.isatty():
        callbacks.append(TQDMProgressBar())
    with _lightning_kept_to_itself():
        trainer = pl.Trainer(
            accelerator={"cpu": "cpu", "cuda": "gpu"}.get(settings.backend, "auto"),
            devices=1,
            max_epochs=settings.max_epochs,
            callbacks=callbacks,
            plugins=[LightningEnvironment()],  # one process; not the Slurm job that it may be part of
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=show_bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            deterministic=True,
            default_root_dir=keeper.checkpoint.parent,
        )
        device = trainer.strategy.root_device
        choice = choose(device)
        if device.type == "cuda":
            print(f"the training runs on a GPU: {torch.cuda.get_device_name(device)}")  # ctdb.resources looks for it
        print(f"recurrent loops run on backend {choice.name!r}: {choice.reason}")
        without = [type(cell).__name__ for cell in module.modules() if isinstance(cell, Cell) and not weights_of(cell)]
        if without and choice.name != "eager":
            print(f"there is no kernel for {', '.join(dict.fromkeys(without))}, whose loops run eagerly")
        trainer.fit(
            _LightningModule(module, settings, seed),
            train_data.to(device),
            valid_data.to(device),
            ckpt_path=keeper.checkpoint if resume else None,
            weights_only=True,
        )


def identity(
    module: nn.Module,
    train_data: Batches | SessionBatches,
    valid_data: Batches | SessionBatches,
    settings: TrainingSettings,
    seed: int,
    code: str,
    spec: Mapping[str, Any],
) -> str:
    """Hash of everything that decides the outcome of a run; `code` is the fingerprint of what it runs."""
    digest = hashlib.sha256()
    with use_backend(without_gpu(settings.backend)):
        gpu = torch.cuda.is_available() and settings.backend != "cpu"
        backend = choose(torch.device("cuda" if gpu else "cpu")).name  # what `auto` takes differs between machines
    choices = [settings.model_dump(), backend, json.dumps(spec, sort_keys=True)]
    digest.update(repr([*choices, seed, train_data.shuffle_seed, code]).encode())
    for tensors in (module.state_dict(), train_data.tensors, valid_data.tensors):
        for name, value in tensors.items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def matching_checkpoint(
    path: Path, run: str, part: Callable[[dict[str, Any]], dict[str, Any]] = lambda saved: saved
) -> dict[str, Any] | None:
    """The `part` of a checkpoint that names its `run`, if that is this very run; None where there is none."""
    if not path.exists():
        return None
    try:
        saved = part(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever a damaged file makes torch raise
        print(f"{path} cannot be read ({error}): starting afresh")
        return None
    if saved["run"] == run:
        print(f"continuing from {path}")
        return saved
    print(f"{path} belongs to a run with other data, settings or code: starting afresh")
    return None


class _LightningModule(pl.LightningModule):
    """A trainable module as Lightning drives it."""

    def __init__(self, module: nn.Module, settings: TrainingSettings, seed: int):
        super().__init__()
        self.module, self.settings, self.seed = module, settings, seed
        self.means: dict[str, Tensor] = {}
        self.gradient_norm, self.first_bad_step, self.first_bad_gradient = torch.zeros(3)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.settings.optimizer]
        return kind(
            [parameter for parameter in self.parameters() if parameter.requires_grad],
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            eps=self.settings.epsilon,
            fused=True,
        )

    def on_train_epoch_start(self) -> None:
        self.trainer.train_dataloader.set_epoch(self.current_epoch)
        seed = derive("training noise", self.seed, self.current_epoch)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        if hasattr(self.module, "start_epoch"):
            self.module.start_epoch(self.current_epoch)
        self.means = {}
        self.first_bad_term: dict[str, Tensor] = {}
        self.gradient_norm = torch.zeros((), device=self.device)
        self.first_bad_step, self.first_bad_gradient = torch.full((2,), math.inf, device=self.device)

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        loss = self._measured("train", batch, self.trainer.train_dataloader)
        self.first_bad_step = self._first_bad(self.first_bad_step, loss.detach())
        return loss

    def _first_bad(self, before: Tensor, value: Tensor) -> Tensor:
        """First step at which a value was not finite, given that of the steps before; infinite for none.

        Kept on the device and read once per epoch: asking in every step would make a GPU wait.
        """
        return torch.where(value.isfinite(), before, before.clamp(max=self.global_step))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.gradient_norm = torch.maximum(self.gradient_norm, norm)
        self.first_bad_gradient = self._first_bad(self.first_bad_gradient, norm)
        if self.settings.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters(), self.settings.gradient_clip, norm)

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        self._measured("valid", batch, self.trainer.val_dataloaders)

    def _measured(self, phase: str, batch: dict[str, Any], data: Batches | SessionBatches) -> Tensor:
        """Loss of a batch, which is added to the epoch's means together with its terms."""
        if hasattr(self.module, "loss_and_terms"):
            loss, terms = self.module.loss_and_terms(batch, self.generator)
        else:
            loss, terms = self.module.loss(batch, self.generator), {}
        share = data.share(batch)
        for name, value in {**terms, "loss": loss}.items():
            key = f"{phase}_{name}"
            self.means[key] = self.means.get(key, 0.0) + value.detach() * share
            if phase == "train" and name != "loss":
                never = torch.full_like(self.first_bad_step, math.inf)
                self.first_bad_term[key] = self._first_bad(self.first_bad_term.get(key, never), value.detach())
        return loss


@contextlib.contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Spare Python's garbage collector the objects of all that is imported, which it would search every few steps."""
    if gc.get_freeze_count():  # somebody else has done so
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _lightning_kept_to_itself() -> Iterator[None]:
    """Hide Lightning's advice on things that are decided here, and undo the global settings it changes."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    deterministic = torch.are_deterministic_algorithms_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # deterministic=True would clear every new tensor
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torch\.utils\._pytree)")
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filling
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
