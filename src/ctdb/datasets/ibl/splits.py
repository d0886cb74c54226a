"""Trials to splits: whole blocks of neighbours, and no bin in two splits."""

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator

from ctdb.datasets.dataset import SPLITS
from ctdb.errors import IblNoTrialsError
from ctdb.seeds import numpy_generator
from ctdb.settings import Seed, Settings


class Shares(Settings):
    """Settings that deal trials to the splits."""

    valid_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.2, gt=0, lt=1)
    seed: Seed = 0

    @model_validator(mode="after")
    def _some_left_for_train(self) -> "Shares":
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction and test_fraction must leave some for train: their sum must be below 1")
        return self


def deal(block: Int[np.ndarray, " trials"], shares: Shares, where: str) -> dict[str, Bool[np.ndarray, " trials"]]:
    """Members of each split; the blocks, drawn by the seed, go to test and valid until they have their shares.

    Parameters
    ----------
    block
        Block of each trial; its trials stay together.
    shares
        Shares of the trials, and the seed.
    where
        Name of the source, for the message.

    Raises
    ------
    IblNoTrialsError
        If there are fewer than three blocks, or none is left for train.
    """
    drawn = numpy_generator("ibl blocks", shares.seed).permutation(np.unique(block))
    place = np.argsort(drawn)  # of each block, in sorted order
    rank = place[np.unique(block, return_inverse=True)[1]]
    n_before = np.array([np.sum(rank < index) for index in range(len(drawn))])  # trials in the blocks drawn earlier
    n_test = shares.test_fraction * len(block)
    n_valid = shares.valid_fraction * len(block)
    last_test = max(1, int(np.sum(n_before < n_test)))
    last_valid = max(last_test + 1, int(np.sum(n_before < n_test + n_valid)))
    if last_valid >= len(drawn):
        raise IblNoTrialsError(
            f"{where}: {len(block)} trials in {len(drawn)} blocks are too few for train, valid and test; use smaller "
            "blocks or shares, or weaker filters"
        )
    return dict(
        zip(SPLITS, (rank >= last_valid, (rank >= last_test) & (rank < last_valid), rank < last_test), strict=True)
    )


def without_overlap(
    member: dict[str, Bool[np.ndarray, " trials"]], align: Float[np.ndarray, " trials"], length: float
) -> dict[str, Bool[np.ndarray, " trials"]]:
    """Splits without the trials whose window overlaps one of a later split: train gives way to valid, both to test.

    Parameters
    ----------
    member
        Members of each split.
    align
        Time of each window, s.
    length
        Seconds of a window.
    """
    kept, taken = {}, np.empty(0)
    for split in reversed(SPLITS):
        first = np.searchsorted(taken, align - length, "right")
        clear = first == np.searchsorted(taken, align + length, "left")
        kept[split] = member[split] & clear
        taken = np.sort(np.concatenate([taken, align[kept[split]]]))
    return {split: kept[split] for split in SPLITS}
