"""Batches of trials that are already in memory: one index per tensor, no workers, no copies between processes."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ctdb.seeds import derive


class Batches:
    """Iterate over trials in batches; the order of an epoch depends on the seed and the epoch alone.

    Parameters
    ----------
    tensors
        Tensors whose first axis is trials. Kept on the device they are on.
    batch_size
        Trials in a batch; the last one may be smaller, no trial is dropped.
    shuffle_seed
        Seed of the order; None keeps the trials in their order.
    """

    def __init__(self, tensors: Mapping[str, Tensor], batch_size: int, shuffle_seed: int | None = None):
        self.tensors = dict(tensors)
        self.n_trials = len(next(iter(self.tensors.values())))
        self.batch_size, self.shuffle_seed = batch_size, shuffle_seed
        self.epoch = 0
        self._total_weight = self.tensors["weight"].sum() if "weight" in self.tensors else None

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def to(self, device: torch.device) -> "Batches":
        """Same batches from tensors on `device`."""
        moved = {name: value.to(device) for name, value in self.tensors.items()}
        return Batches(moved, self.batch_size, self.shuffle_seed)

    def share(self, batch: Mapping[str, Tensor]) -> float | Tensor:
        """Share of a batch in the mean over all trials: by valid bins where there is a `weight`, else by trials."""
        if "weight" in self.tensors:
            return batch["weight"].sum() / self._total_weight
        return len(next(iter(batch.values()))) / self.n_trials

    def __len__(self) -> int:
        return -(-self.n_trials // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if self.shuffle_seed is None:
            order = torch.arange(self.n_trials)
        else:
            generator = torch.Generator().manual_seed(derive("epoch order", self.shuffle_seed, self.epoch))
            order = torch.randperm(self.n_trials, generator=generator)
        for part in order.split(self.batch_size):
            yield {name: value[part.to(value.device)] for name, value in self.tensors.items()}
