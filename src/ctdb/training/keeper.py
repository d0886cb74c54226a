"""The callback that keeps what a kill must not lose: history, best weights, and a checkpoint to go on from."""

import math
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ctdb.files import write_error, write_text
from ctdb.settings import TrainingSettings

CHECKPOINT_SECONDS = 20
"""Time between checkpoints, unless ``CTDB_CHECKPOINT_SECONDS`` in the environment says otherwise."""
COLUMNS = ("epoch", "train_loss", "valid_loss", "learning_rate", "gradient_norm")
"""First columns of the history; the terms of the loss follow."""
EXPLOSION = 1000.0
"""Gradient norm, relative to the median over epochs, that is told as an explosion."""


class Keeper(pl.Callback):
    """Keeps what must survive: history, best weights, learning-rate plateau, and a checkpoint to go on from.

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
        self.history_file = out / "history.csv"
        self.settings, self.run, self.finished = settings, run, False
        self.columns = list(COLUMNS)
        self.rows: list[list[float]] = []
        self.best_weights: dict[str, Tensor] | None = None
        self.best_epoch, self.best_loss, self.smoothed = -1, math.inf, math.nan
        self.diverged: str | None = None
        self.plateau: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] | None = None
        self._checkpoint_seconds = float(os.environ.get("CTDB_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS))
        self._last_write = self._last_line = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the initial weights until an epoch beats them; set up the plateau schedule, with its saved state."""
        if self.best_weights is None:
            self._keep_weights(pl_module.module)
        if (plateau := self.settings.plateau) is not None:
            self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                trainer.optimizers[0],
                factor=plateau.factor,
                patience=plateau.patience,
                min_lr=plateau.minimum,
                threshold=0,
            )
            if self._plateau_state is not None:
                self.plateau.load_state_dict(self._plateau_state)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the epoch; keep the best weights; stop where the loss is not finite."""
        epoch = trainer.current_epoch
        means = {name: float(value) for name, value in pl_module.means.items()}
        train_loss, valid_loss = means.pop("train_loss"), means.pop("valid_loss")
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.columns = [*COLUMNS, *means]
        self.rows.append([epoch, train_loss, valid_loss, rate, float(pl_module.gradient_norm), *means.values()])
        spoilt = math.isfinite(float(pl_module.first_bad_gradient))  # and with it the weights
        if spoilt or not (math.isfinite(train_loss) and math.isfinite(valid_loss)):
            self._stop_diverged(trainer, pl_module)
            return
        before = valid_loss if math.isnan(self.smoothed) else self.smoothed
        self.smoothed = self.settings.smoothing * before + (1 - self.settings.smoothing) * valid_loss
        if self.smoothed < self.best_loss and epoch >= self.settings.burn_in:
            self.best_epoch, self.best_loss = epoch, self.smoothed
            self._keep_weights(pl_module.module)
        if self.plateau is not None:
            self.plateau.step(self.smoothed)
        # Lightning's EarlyStopping would count this epoch only after the checkpoint below is written.
        since = epoch - max(self.best_epoch, self.settings.burn_in)
        if self.settings.patience is not None and since >= self.settings.patience:
            trainer.should_stop = self.finished = True
        self._report(trainer)
        if time.monotonic() - self._last_write >= self._checkpoint_seconds:
            self.write_checkpoint(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave a checkpoint of the finished run, from which its outputs can be written again without training."""
        if self.diverged is None:
            self.finished = True
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
            os.replace(partial, self.checkpoint)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise write_error(self.checkpoint, error) from error
        self._last_write = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint: plain values and tensors only."""
        return {
            "run": self.run,
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
        """State from the checkpoint."""
        self.columns, self.rows = state_dict["columns"], state_dict["rows"].tolist()
        self.best_weights = state_dict["best_weights"]
        self.best_epoch, self.best_loss = state_dict["best_epoch"], state_dict["best_loss"]
        self.smoothed = state_dict["smoothed"]
        self._plateau_state = state_dict["plateau"]

    def history(self) -> pd.DataFrame:
        """One row per epoch."""
        return pd.DataFrame(self.rows, columns=self.columns).astype({"epoch": int})

    def write_history(self) -> None:
        """Write `history.csv`."""
        write_text(self.history_file, self.history().to_csv(index=False))

    def _keep_weights(self, module: nn.Module) -> None:
        self.best_weights = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}

    def _stop_diverged(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        row = dict(zip(self.columns, self.rows[-1], strict=True))
        epoch, step, of_gradient = row["epoch"], float(pl_module.first_bad_step), float(pl_module.first_bad_gradient)
        first = {name: float(value) for name, value in pl_module.first_bad_term.items()}
        bad_terms = [name for name, value in first.items() if value == step < math.inf]
        if not math.isfinite(step):
            bad_terms = [name for name in self.columns[len(COLUMNS) :] if not math.isfinite(row[name])]
        if of_gradient < step:
            what, where = "gradient", f"training step {of_gradient:.0f} (epoch {epoch})"
            value = "NaN or infinite"
        else:
            what, where = "loss", f"training step {step:.0f} (epoch {epoch})"
            if not math.isfinite(step):
                where = f"the validation of epoch {epoch}, after training step {trainer.global_step - 1}"
            value = "NaN" if math.isnan(row["train_loss"]) or math.isnan(row["valid_loss"]) else "infinite"
            if bad_terms:
                value += f" (in {', '.join(bad_terms)})"
        kept = f"the weights of epoch {self.best_epoch}" if self.best_epoch >= 0 else "the initial weights"
        self.diverged = (
            f"the {what} became {value} in {where}; {kept} are kept. "
            "A lower learning_rate or a lower gradient_clip usually cures it"
        )
        trainer.should_stop = True

    def warnings(self) -> list[str]:
        """Gradients that exploded and were caught by clipping."""
        norms = self.history()["gradient_norm"]
        if self.diverged is not None or not norms.max() > EXPLOSION * norms.median() > 0:
            return []
        return [
            f"the gradient exploded in epoch {norms.argmax()}: its norm was {norms.max():.3g}, the median of all "
            f"epochs is {norms.median():.3g}. A lower learning_rate or a lower gradient_clip usually cures it"
        ]

    def _report(self, trainer: pl.Trainer) -> None:
        """Print a line now and then, so that a log file shows progress without a terminal."""
        epoch, train_loss, valid_loss, rate = self.rows[-1][:4]
        last = epoch + 1 == self.settings.max_epochs or trainer.should_stop
        if last or epoch == 0 or time.monotonic() - self._last_line >= 5:
            self._last_line = time.monotonic()
            print(
                f"epoch {epoch + 1:.0f}/{self.settings.max_epochs}: train {train_loss:.6g}, valid {valid_loss:.6g} "
                f"(best {self.best_loss:.6g} at {self.best_epoch + 1}), learning rate {rate:.3g}"
            )
