"""Training of anything with a loss: networks on tasks, models on datasets."""

from ctdb.training.batches import Batches, SessionBatches
from ctdb.training.fitting import fit
from ctdb.training.loop import TrainingResult, discard_checkpoint, train

__all__ = ["Batches", "SessionBatches", "TrainingResult", "discard_checkpoint", "fit", "train"]
