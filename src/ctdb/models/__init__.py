"""Models that are fitted to a dataset: one file per model, registered under its name.

:func:`build` makes an untrained one, :func:`load` gives back a fit.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctdb.registry import Registry

if TYPE_CHECKING:
    from ctdb.datasets import MultiSession, SpikeDataset
    from ctdb.models.base import Model

MODELS = Registry("ctdb.models")


def build(
    spec: Mapping[str, Any], dataset: "SpikeDataset | MultiSession", initial: Path | str | None = None
) -> "Model":
    """Untrained model, or one that begins with a fit, as :func:`ctdb.models.base.build` describes."""
    from ctdb.models import base

    return base.build(spec, dataset, initial)


def load(directory: Path | str) -> "Model":
    """Fitted model, as :func:`ctdb.models.base.load` describes."""
    from ctdb.models import base

    return base.load(directory)
