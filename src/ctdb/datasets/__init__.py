"""Datasets of spikes: the HDF5 format shared by every stage, and how recorded or foreign files become one."""

from ctdb.datasets.dataset import SPLITS, SpikeDataset, Split, check
from ctdb.datasets.hdf5 import read, write
from ctdb.datasets.sessions import MultiSession, SessionsSettings, check_sessions
from ctdb.datasets.user_file import FileSettings, prepare_file

__all__ = [
    "SPLITS",
    "FileSettings",
    "MultiSession",
    "SessionsSettings",
    "SpikeDataset",
    "Split",
    "check",
    "check_sessions",
    "prepare_file",
    "read",
    "write",
]
