"""Training of anything with a loss: networks on tasks, models on datasets."""

import importlib
from collections.abc import Callable

from ctdb.training.batches import Batches, SessionBatches
from ctdb.training.fitting import fit
from ctdb.training.loop import TrainingResult, discard_checkpoint, train

__all__ = ["Batches", "SessionBatches", "TrainingResult", "discard_checkpoint", "fit", "fit_together", "train"]


def __getattr__(name: str) -> Callable:
    if name == "fit_together":  # by name, so that a change of its code reruns no fit that was made alone
        return importlib.import_module("ctdb.training.together").fit_together
    raise AttributeError(f"module 'ctdb.training' has no attribute {name!r}")
