"""Task-trained networks: the ground truth whose dynamics a fitted model should recover.

One file per architecture, registered under its name; :func:`load` gives back what training wrote.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ctdb.registry import Registry

if TYPE_CHECKING:
    from ctdb.networks.base import Network

NETWORKS = Registry("ctdb.networks")


def load(directory: Path | str) -> "Network":
    """Load a trained network, in eval mode and float64, as :func:`ctdb.networks.base.load` describes."""
    from ctdb.networks import base

    return base.load(directory)
