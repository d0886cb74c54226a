"""Datasets of spikes: the HDF5 format shared by every stage, and how recorded or foreign files become one."""

from ctdb.datasets.dataset import SPLITS, SpikeDataset, Split, check
from ctdb.datasets.hdf5 import read, write
from ctdb.datasets.kind import DATASETS
from ctdb.datasets.multi_session import MultiSession, check_sessions
from ctdb.datasets.user_file import FileSettings, prepare_file

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
