"""Batches of trials that are already in memory: one index per tensor, no workers, no copies between processes."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from ctdb.seeds import derive


class Batches:
    """Iterate over trials in batches; the order of an epoch depends on the seed and the epoch alone.

    A batch holds the chosen trials of each tensor, and their numbers as `trial_index`.

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
        self._total_weight = amount(self.tensors) if "weight" in self.tensors else None

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
            return amount(batch) / self._total_weight
        return len(next(iter(batch.values()))) / self.n_trials

    def __len__(self) -> int:
        return -(-self.n_trials // self.batch_size)

    def order(self) -> Int[Tensor, " trials"]:
        """Trials in the order of the next pass."""
        if self.shuffle_seed is None:
            return torch.arange(self.n_trials)
        generator = torch.Generator().manual_seed(derive("epoch order", self.shuffle_seed, self.epoch))
        return torch.randperm(self.n_trials, generator=generator)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for part in self.order().split(self.batch_size):
            yield _selected(self.tensors, part)


class SessionBatches:
    """Batches over several sessions: each holds a share of every session, so that all end together.

    Every trial is used once per epoch, whatever the sessions' sizes; a batch maps session to its own batch.

    Parameters
    ----------
    sessions
        Session to its tensors, whose first axis is trials.
    batch_size
        Trials in a batch, over all sessions.
    shuffle_seed
        As in :class:`Batches`.
    """

    def __init__(self, sessions: Mapping[str, Mapping[str, Tensor]], batch_size: int, shuffle_seed: int | None = None):
        self.sessions = {name: dict(tensors) for name, tensors in sessions.items()}
        self.tensors = {f"{name}/{key}": value for name, own in self.sessions.items() for key, value in own.items()}
        self.batch_size, self.shuffle_seed = batch_size, shuffle_seed
        self.epoch = 0
        self._n_trials = {name: len(own["weight"]) for name, own in self.sessions.items()}
        self._total_weight = sum(amount(own) for own in self.sessions.values())

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def to(self, device: torch.device) -> "SessionBatches":
        """Same batches from tensors on `device`."""
        moved = {name: {key: value.to(device) for key, value in own.items()} for name, own in self.sessions.items()}
        return SessionBatches(moved, self.batch_size, self.shuffle_seed)

    def share(self, batch: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """Share of a batch in the mean over all trials, by valid bins."""
        return sum(amount(own) for own in batch.values()) / self._total_weight

    def __len__(self) -> int:
        return -(-sum(self._n_trials.values()) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, dict[str, Tensor]]]:
        parts, next_step = {}, 0
        for name, n_trials in self._n_trials.items():
            order = torch.arange(n_trials)
            if self.shuffle_seed is not None:
                seed = derive("epoch order", self.shuffle_seed, self.epoch, name)
                order = torch.randperm(n_trials, generator=torch.Generator().manual_seed(seed))
            # Where the trials do not divide evenly, the next session's rest goes on where the last one's ended.
            each, rest = divmod(n_trials, len(self))
            sizes = [each] * len(self)
            for _ in range(rest):
                sizes[next_step] += 1
                next_step = (next_step + 1) % len(self)
            parts[name] = order.split(sizes)
        for step in range(len(self)):
            yield {name: _selected(self.sessions[name], part[step]) for name, part in parts.items() if len(part[step])}


def _selected(tensors: Mapping[str, Tensor], trials: Tensor) -> dict[str, Tensor]:
    """Some trials, and their numbers as `trial_index`."""
    trials = trials.to(next(iter(tensors.values())).device)
    return {"trial_index": trials} | {name: value[trials] for name, value in tensors.items()}


def amount(tensors: Mapping[str, Tensor]) -> Tensor:
    """Valid bins in a batch; where values are missing, in shares of a bin's neurons."""
    return tensors["weight"].mean(2).sum()
