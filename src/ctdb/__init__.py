"""ctdb: does a model fitted to neural spikes recover the dynamics that produced them?

``ctdb.datasets``, ``ctdb.models``, ``ctdb.metrics`` and the other parts are loaded when first used, so that
a program pays only for what it touches.
"""

import importlib
from types import ModuleType

_PARTS = (
    "config",
    "datasets",
    "dynamics",
    "figures",
    "metrics",
    "models",
    "networks",
    "recurrent",
    "scores",
    "simulation",
    "tasks",
    "training",
)


def __getattr__(name: str) -> ModuleType:
    if name in _PARTS:
        return importlib.import_module(f"ctdb.{name}")
    raise AttributeError(f"module 'ctdb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_PARTS)
