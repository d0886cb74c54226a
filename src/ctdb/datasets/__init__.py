"""Datasets of spikes: the HDF5 format shared by every stage, and how recorded or foreign files become one."""

import importlib
from typing import Any

from ctdb.datasets.dataset import SPLITS, SpikeDataset, Split, check
from ctdb.datasets.hdf5 import read, write
from ctdb.datasets.kind import DATASETS
from ctdb.datasets.multi_session import MultiSession, check_sessions

_OF_USER_FILES = ("FileSettings", "prepare_file")

__all__ = [
    "DATASETS",
    "SPLITS",
    "FileSettings",
    "MultiSession",
    "SpikeDataset",
    "Split",
    "check",
    "check_sessions",
    "prepare_file",
    "read",
    "write",
]


def __getattr__(name: str) -> Any:
    """What reads a user's file, imported where it is asked for: it is not part of every stage that reads a dataset."""
    if name in _OF_USER_FILES:
        return getattr(importlib.import_module("ctdb.datasets.user_file"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
