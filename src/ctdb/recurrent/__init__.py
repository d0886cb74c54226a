"""The recurrent core that networks and models share: cells with one `step`, loops over time, and their backends."""

from ctdb.recurrent.backends import (
    Backend,
    choose,
    controlled_scan,
    masked,
    noisy_scan,
    poisson_nll,
    scan,
    use_backend,
    without_gpu,
)
from ctdb.recurrent.bidirectional import Bidirectional, gru_summary
from ctdb.recurrent.cells import Cell, ClippedGRUCell, EulerMLPCell, GRUCell, LeakyRateCell, LinearCell, TanhCell
from ctdb.recurrent.eager import Generated, Kept, Linear
from ctdb.recurrent.initialise import initialise
from ctdb.recurrent.linear import FanInLinear, UnitRowLinear
from ctdb.recurrent.noise import Key, Noise, StateNoise

__all__ = [
    "Backend",
    "Bidirectional",
    "Cell",
    "ClippedGRUCell",
    "EulerMLPCell",
    "FanInLinear",
    "GRUCell",
    "Generated",
    "Kept",
    "Key",
    "LeakyRateCell",
    "Linear",
    "LinearCell",
    "Noise",
    "StateNoise",
    "TanhCell",
    "UnitRowLinear",
    "choose",
    "controlled_scan",
    "gru_summary",
    "initialise",
    "masked",
    "noisy_scan",
    "poisson_nll",
    "scan",
    "use_backend",
    "without_gpu",
]
