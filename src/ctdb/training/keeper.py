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
COLUMNS = ("epoch", "train_loss", "valid_loss", "learning_rate")


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
        self.rows: list[list[float]] = []
        self.best_weights: dict[str, Tensor] | None = None
        self.best_epoch, self.best_loss = -1, math.inf
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
        train_loss, valid_loss = float(pl_module.train_loss), float(pl_module.valid_loss)
        self.rows.append([epoch, train_loss, valid_loss, trainer.optimizers[0].param_groups[0]["lr"]])
        if not (math.isfinite(train_loss) and math.isfinite(valid_loss)):
            self._stop_diverged(trainer, pl_module, epoch, train_loss)
            return
        if valid_loss < self.best_loss:
            self.best_epoch, self.best_loss = epoch, valid_loss
            self._keep_weights(pl_module.module)
        if self.plateau is not None:
            self.plateau.step(valid_loss)
        # Lightning's EarlyStopping would count this epoch only after the checkpoint below is written.
        if self.settings.patience is not None and epoch - self.best_epoch >= self.settings.patience:
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
            "rows": torch.tensor(self.rows, dtype=torch.float64),
            "best_weights": self.best_weights,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "plateau": None if self.plateau is None else self.plateau.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """State from the checkpoint."""
        self.rows = state_dict["rows"].tolist()
        self.best_weights = state_dict["best_weights"]
        self.best_epoch, self.best_loss = state_dict["best_epoch"], state_dict["best_loss"]
        self._plateau_state = state_dict["plateau"]

    def history(self) -> pd.DataFrame:
        """One row per epoch."""
        return pd.DataFrame(self.rows, columns=list(COLUMNS)).astype({"epoch": int})

    def write_history(self) -> None:
        """Write `history.csv`."""
        write_text(self.history_file, self.history().to_csv(index=False))

    def _keep_weights(self, module: nn.Module) -> None:
        self.best_weights = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}

    def _stop_diverged(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int, train_loss: float) -> None:
        step = float(pl_module.first_bad_step)
        if math.isfinite(step):
            where = f"training step {step:.0f} (epoch {epoch})"
        else:
            where = f"the validation of epoch {epoch}, after training step {trainer.global_step - 1}"
        kept = f"the weights of epoch {self.best_epoch}" if self.best_epoch >= 0 else "the initial weights"
        value = "NaN" if math.isnan(train_loss) or math.isnan(float(pl_module.valid_loss)) else "infinite"
        self.diverged = (
            f"the loss became {value} in {where}; {kept} are kept. "
            "A lower learning_rate or a lower gradient_clip usually cures it"
        )
        trainer.should_stop = True

    def _report(self, trainer: pl.Trainer) -> None:
        """Print a line now and then, so that a log file shows progress without a terminal."""
        epoch, train_loss, valid_loss, rate = self.rows[-1]
        last = epoch + 1 == self.settings.max_epochs or trainer.should_stop
        if last or epoch == 0 or time.monotonic() - self._last_line >= 5:
            self._last_line = time.monotonic()
            print(
                f"epoch {epoch + 1:.0f}/{self.settings.max_epochs}: train {train_loss:.6g}, valid {valid_loss:.6g} "
                f"(best {self.best_loss:.6g} at {self.best_epoch + 1}), learning rate {rate:.3g}"
            )
