"""What a kill must not lose: history, best weights, and a checkpoint to go on from."""

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ctdb import interruption
from ctdb.files import leave_if_orphaned, write_error, write_text
from ctdb.settings import TrainingSettings

CHECKPOINT_SECONDS = 20
"""Time between checkpoints, unless ``CTDB_CHECKPOINT_SECONDS`` in the environment says otherwise."""
COLUMNS = ("epoch", "train_loss", "valid_loss", "learning_rate", "gradient_norm")
"""First columns of the history; the terms of the loss follow."""
EXPLOSION = 1000.0
"""Gradient norm, relative to the median over epochs, that is told as an explosion."""


def checkpoint_seconds() -> float:
    """Time between checkpoints."""
    return float(os.environ.get("CTDB_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS))


class Epoch(NamedTuple):
    """What an epoch has shown of a model; steps count from the start of the run and are infinite where there is none.

    Attributes
    ----------
    number
        Of the epoch, from 0.
    means
        ``train_loss``, ``valid_loss``, then ``train_{term}`` and ``valid_{term}`` of the loss's terms.
    learning_rate
        That of its steps.
    gradient_norm
        The largest, before it was clipped.
    last_step
        Its last training step.
    first_bad_step, first_bad_gradient
        First steps whose loss, whose gradient was not finite.
    first_bad_term
        The same of each ``train_{term}``.
    """

    number: int
    means: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    last_step: int
    first_bad_step: float
    first_bad_gradient: float
    first_bad_term: Mapping[str, float]


class Progress:
    """History of one model, its best weights, its learning-rate plateau, and whether it goes on.

    Parameters
    ----------
    settings
        Training settings.
    """

    def __init__(self, settings: TrainingSettings):
        self.settings, self.finished = settings, False
        self.columns = list(COLUMNS)
        self.rows: list[list[float]] = []
        self.best_weights: dict[str, Tensor] | None = None
        self.best_epoch, self.best_loss, self.smoothed = -1, math.inf, math.nan
        self.diverged: str | None = None
        self.plateau: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] | None = None

    def start(self, optimizer: torch.optim.Optimizer, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Keep the initial weights until an epoch beats them; set up the plateau schedule, with its saved state.

        `weights` gives copies of the current weights; `optimizer` has the learning rate that the plateau lowers.
        """
        if self.best_weights is None:
            self.best_weights = weights()
        if (plateau := self.settings.plateau) is not None:
            self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=plateau.factor, patience=plateau.patience, min_lr=plateau.minimum, threshold=0
            )
            if self._plateau_state is not None:
                self.plateau.load_state_dict(self._plateau_state)

    def add(self, epoch: Epoch, weights: Callable[[], dict[str, Tensor]]) -> bool:
        """Record an epoch, keep the weights if they are the best; whether the training goes on.

        It ends where the loss or a gradient was not finite (`diverged` says so), or patience (`finished`).
        """
        means = dict(epoch.means)
        train_loss, valid_loss = means.pop("train_loss"), means.pop("valid_loss")
        self.columns = [*COLUMNS, *means]
        first = [epoch.number, train_loss, valid_loss, epoch.learning_rate, epoch.gradient_norm]
        self.rows.append([*first, *means.values()])
        spoilt = math.isfinite(epoch.first_bad_gradient)  # and with it the weights
        if spoilt or not (math.isfinite(train_loss) and math.isfinite(valid_loss)):
            self.diverged = self._divergence(epoch)
            return False
        before = valid_loss if math.isnan(self.smoothed) else self.smoothed
        self.smoothed = self.settings.smoothing * before + (1 - self.settings.smoothing) * valid_loss
        if self.smoothed < self.best_loss and epoch.number >= self.settings.burn_in:
            self.best_epoch, self.best_loss = epoch.number, self.smoothed
            self.best_weights = weights()
        if self.plateau is not None:
            self.plateau.step(self.smoothed)
        since = epoch.number - max(self.best_epoch, self.settings.burn_in)
        self.finished = self.settings.patience is not None and since >= self.settings.patience
        return not self.finished

    def _divergence(self, epoch: Epoch) -> str:
        """What became NaN or infinite, where, and what is left."""
        step, of_gradient = epoch.first_bad_step, epoch.first_bad_gradient
        bad_terms = [name for name, value in epoch.first_bad_term.items() if value == step < math.inf]
        if not math.isfinite(step):
            names = (name for name in epoch.means if name not in COLUMNS)
            bad_terms = [name for name in names if not math.isfinite(epoch.means[name])]
        if of_gradient < step:
            what, where = "gradient", f"training step {of_gradient:.0f} (epoch {epoch.number})"
            value = "NaN or infinite"
        else:
            what, where = "loss", f"training step {step:.0f} (epoch {epoch.number})"
            if not math.isfinite(step):
                where = f"the validation of epoch {epoch.number}, after training step {epoch.last_step}"
            is_nan = math.isnan(epoch.means["train_loss"]) or math.isnan(epoch.means["valid_loss"])
            value = "NaN" if is_nan else "infinite"
            if bad_terms:
                value += f" (in {', '.join(bad_terms)})"
        kept = f"the weights of epoch {self.best_epoch}" if self.best_epoch >= 0 else "the initial weights"
        return (
            f"the {what} became {value} in {where}; {kept} are kept. "
            "A lower learning_rate or a lower gradient_clip usually cures it"
        )

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: plain values and tensors only."""
        return {
            "finished": self.finished,
            "columns": self.columns,
            "rows": torch.tensor(self.rows, dtype=torch.float64),
            "best_weights": self.best_weights,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "smoothed": self.smoothed,
            "plateau": None if self.plateau is None else self.plateau.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """State from a checkpoint; that of the plateau once :meth:`start` is called."""
        self.columns, self.rows = state_dict["columns"], state_dict["rows"].tolist()
        self.best_weights = state_dict["best_weights"]
        self.best_epoch, self.best_loss = state_dict["best_epoch"], state_dict["best_loss"]
        self.smoothed = state_dict["smoothed"]
        self._plateau_state = state_dict["plateau"]

    def history(self) -> pd.DataFrame:
        """One row per epoch."""
        return pd.DataFrame(self.rows, columns=self.columns).astype({"epoch": int})

    def warnings(self) -> list[str]:
        """Gradients that exploded and were caught by clipping."""
        norms = self.history()["gradient_norm"]
        if self.diverged is not None or not norms.max() > EXPLOSION * norms.median() > 0:
            return []
        return [
            f"the gradient exploded in epoch {norms.argmax()}: its norm was {norms.max():.3g}, the median of all "
            f"epochs is {norms.median():.3g}. A lower learning_rate or a lower gradient_clip usually cures it"
        ]


class Keeper(pl.Callback):
    """Keeps the progress of a run, and writes a checkpoint to go on from.

    One file holds all of it together with Lightning's own state, so that a kill between two writes cannot leave parts
    of different epochs.

    Parameters
    ----------
    out
        Output folder.
    settings
        Training settings.
    run
        Identity of the run, so that a checkpoint of another one is not continued.
    """

    def __init__(self, out: Path, settings: TrainingSettings, run: str):
        self.checkpoint = out / "checkpoint" / "last.ckpt"
        self.settings, self.run, self.progress = settings, run, Progress(settings)
        self._last_write = self._last_line = time.monotonic()
        self._checkpoint_seconds = checkpoint_seconds()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the initial weights, and follow the learning rate."""
        interruption.listen_again()  # Lightning has taken the signal, and would stop in the middle of an epoch
        self.progress.start(trainer.optimizers[0], lambda: weights_of(pl_module.module))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch; keep the best weights; stop where the loss is not finite."""
        epoch = Epoch(
            number=trainer.current_epoch,
            means={name: float(value) for name, value in pl_module.means.items()},
            learning_rate=trainer.optimizers[0].param_groups[0]["lr"],
            gradient_norm=float(pl_module.gradient_norm),
            last_step=trainer.global_step - 1,
            first_bad_step=float(pl_module.first_bad_step),
            first_bad_gradient=float(pl_module.first_bad_gradient),
            first_bad_term={name: float(value) for name, value in pl_module.first_bad_term.items()},
        )
        # Lightning's EarlyStopping would count this epoch only after the checkpoint below is written.
        if not self.progress.add(epoch, lambda: weights_of(pl_module.module)):
            trainer.should_stop = True
        if self.progress.diverged is not None:
            return
        self._report(trainer)
        if interruption.is_asked() or time.monotonic() - self._last_write >= self._checkpoint_seconds:
            self.write_checkpoint(trainer)
        if interruption.is_asked():
            interruption.stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave a checkpoint of the finished run, from which its outputs can be written again without training."""
        if self.progress.diverged is None:
            self.progress.finished = True
            self.write_checkpoint(trainer)

    def write_checkpoint(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint, whole or not at all; raise WriteError where it cannot be."""
        # Lightning moves the file here from /tmp, which across file systems is a copy that a kill can cut short.
        partial = self.checkpoint.with_suffix(".partial")
        try:
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(partial)
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            leave_if_orphaned()
            os.replace(partial, self.checkpoint)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise write_error(self.checkpoint, error) from error
        self._last_write = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint: plain values and tensors only."""
        return {"run": self.run, **self.progress.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """State from the checkpoint."""
        self.progress.load_state_dict(state_dict)

    def _report(self, trainer: pl.Trainer) -> None:
        """Print a line now and then, so that a log file shows progress without a terminal."""
        epoch, train_loss, valid_loss, rate = self.progress.rows[-1][:4]
        last = epoch + 1 == self.settings.max_epochs or trainer.should_stop
        if last or epoch == 0 or time.monotonic() - self._last_line >= 5:
            self._last_line = time.monotonic()
            print(
                f"epoch {epoch + 1:.0f}/{self.settings.max_epochs}: train {train_loss:.6g}, valid {valid_loss:.6g} "
                f"(best {self.progress.best_loss:.6g} at {self.progress.best_epoch + 1}), learning rate {rate:.3g}"
            )


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's weights."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def write_history(out: Path, progress: Progress) -> None:
    """Write `history.csv`."""
    write_text(out / "history.csv", progress.history().to_csv(index=False))
