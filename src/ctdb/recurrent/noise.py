"""Masks and normal numbers that depend on the seed, the trial, the bin and the channel, and on nothing else.

Counter-based: number i of a trial is computed from (seed, stream, trial, bin, i), not from what was drawn before. So a
trial meets the same dropout and the same noise however the batches are cut, on any number of threads, on any device
and whichever backend runs.

References
----------
Salmon, Moraes, Dror & Shaw (2011), Parallel random numbers: as easy as 1, 2, 3 (Philox 4x32, ten rounds).
"""

import math
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ctdb.recurrent import cpu

Key = torch.Generator | Int[Tensor, ""]
"""A generator, whose seed is the key of random numbers, or the key itself, which `vmap` may give each of its models."""
_LOW = 0xFFFFFFFF
_LEVELS = 2**16
"""Steps of a probability: masks come from 16 random bits."""


def philox(counter: list[Tensor], key: int | Int[Tensor, ""]) -> list[Tensor]:
    """Four random words of 32 bits for each counter of four words, all as int64; a tensor's key is one too."""
    keys = [key & _LOW, (key >> 32) & _LOW]
    c = list(counter)
    for _ in range(10):
        p, q = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [((q >> 32) & _LOW) ^ c[1] ^ keys[0], q & _LOW, ((p >> 32) & _LOW) ^ c[3] ^ keys[1], p & _LOW]
        keys = [(keys[0] + 0x9E3779B9) & _LOW, (keys[1] + 0xBB67AE85) & _LOW]
    return c


class StateNoise(NamedTuple):
    """Normal noise that a scan adds to its states; drawn inside the loop where the backend can."""

    noise: "Noise"
    stream: str
    scale: float

    def tensor(self, n_bins: int, n_states: int, like: Tensor) -> Float[Tensor, "trials bins states"]:
        """All of it at once."""
        return self.scale * self.noise.normal(self.stream, n_bins, n_states, like)


class Noise:
    """Random numbers of the trials in a batch.

    Parameters
    ----------
    key
        Of a generator, its seed: the same generator gives the same numbers whatever was drawn from it before. A tensor
        is the key itself, from 0 to 2^63 - 1, and gives the numbers of a generator of this seed.
    trials
        Number of each trial in its data set, on the device where the numbers are needed.
    scope
        Name of the data set, where several have trials of the same numbers.
    """

    def __init__(self, key: Key, trials: Int[Tensor, " trials"], scope: str = ""):
        self.key = key.initial_seed() if isinstance(key, torch.Generator) else key
        self.trials, self.scope = trials.to(torch.int64), scope

    @classmethod
    def of(cls, batch: Mapping[str, Tensor], key: Key, scope: str = "") -> "Noise":
        """For a batch, whose trials name themselves in `trial_index`, or count from 0."""
        trials = batch.get("trial_index")
        if trials is None:
            first = next(iter(batch.values()))
            trials = torch.arange(len(first), device=first.device)
        return cls(key, trials, scope)

    def keep(
        self, stream: str, n_bins: int, n_channels: int, rate: float | Float[Tensor, ""]
    ) -> UInt8[Tensor, "trials bins channels"]:
        """1 with probability 1 - `rate` (to 1 / 65536), else 0.

        Parameters
        ----------
        stream
            What it is for; each has numbers of its own.
        n_bins, n_channels
            Shape, for each trial.
        rate
            Probability of 0.
        """
        threshold = (rate * _LEVELS).round() if isinstance(rate, Tensor) else round(rate * _LEVELS)
        if self._on_cpu and isinstance(threshold, int):
            return cpu.keep(self.trials, n_bins, n_channels, self.key, self.stream(stream), threshold)
        words = self._words(stream, n_bins, -(-n_channels // 8))
        halves = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], -1)
        return (halves >= threshold).flatten(2)[:, :, :n_channels].to(torch.uint8)

    def normal(self, stream: str, n_bins: int, n_channels: int, like: Tensor) -> Float[Tensor, "trials bins channels"]:
        """Standard normal numbers, in the type of `like`."""
        if self._on_cpu and like.dtype in (torch.float32, torch.float64):
            return cpu.normal(self.trials, n_bins, n_channels, self.key, self.stream(stream), like.dtype)
        words = self._words(stream, n_bins, -(-n_channels // 4))
        u = [(word >> 8).float() for word in words]
        drawn = []
        for first, second in ((u[0], u[1]), (u[2], u[3])):
            radius = (-2 * ((first + 0.5) * 2**-24).log()).clamp(min=0).sqrt()
            angle = 2 * math.pi * (second * 2**-24)
            drawn += [radius * angle.cos(), radius * angle.sin()]
        return torch.cat(drawn, -1)[:, :, :n_channels].to(like.dtype)

    def whole(self, stream: str, n_bins: int, n_channels: int, n: int) -> Int[Tensor, "trials bins channels"]:
        """Whole numbers 0 to n - 1, equally likely to 1 / 2^32 * n."""
        words = torch.stack(self._words(stream, n_bins, -(-n_channels // 4)), -1)
        return ((words * n) >> 32).flatten(2)[:, :, :n_channels]

    def stream(self, name: str) -> int:
        """Number of a stream."""
        return zlib.crc32(f"{self.scope}/{name}".encode())

    @property
    def _on_cpu(self) -> bool:
        return isinstance(self.key, int) and self.trials.device.type == "cpu" and cpu.available()

    def _words(self, stream: str, n_bins: int, n_blocks: int) -> list[Tensor]:
        device = self.trials.device
        block = torch.arange(n_blocks, device=device)[None, None]
        at = torch.arange(n_bins, device=device)[None, :, None]
        shape = (len(self.trials), n_bins, n_blocks)
        counter = [block, at, (self.trials & _LOW)[:, None, None], torch.full((), self.stream(stream), device=device)]
        return philox([part.expand(shape) for part in counter], self.key)
