"""What a kind of dataset is: its settings, what it is made from, and how."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from ctdb.datasets.dataset import SpikeDataset
from ctdb.datasets.multi_session import MultiSession
from ctdb.registry import Registry
from ctdb.settings import Settings

DATASETS = Registry(
    "ctdb.datasets",
    also=["ctdb.simulation", *(f"ctdb.datasets.ibl.{name}" for name in ("continuous", "prepare", "windows"))],
)
"""Kinds of dataset by name."""

Source = tuple[str | int, ...]
"""``("file", path)``, which may be a folder, ``("dataset", name)``, ``("recording", name)``, which stands for the
recording's manifest and the folder its paths are relative to, or ``("activity", network, seed, variant of its task or
"")``."""


class DatasetSettings(Settings):
    """Settings that every kind of dataset has."""

    kind: str


class FileBased(DatasetSettings):
    """Settings of a dataset that is read from a file of the user's."""

    path: str
    optional: bool = False


class DatasetKind(ABC):
    """A kind of dataset; subclasses set `Settings`, name their sources and prepare the dataset from them."""

    Settings: ClassVar[type[DatasetSettings]]

    @staticmethod
    def sources(settings: DatasetSettings) -> list[Source]:
        """What the dataset is made from; nothing unless a kind says so."""
        return []

    @staticmethod
    @abstractmethod
    def prepare(settings: DatasetSettings, files: Sequence[Path | str]) -> SpikeDataset | MultiSession:
        """Dataset from the files of its sources, in their order.

        Raises
        ------
        DatasetError
            If a source cannot be used; names the key, what was expected, what was found and the remedy.
        """
