"""The recurrent core that networks and models share: cells with one `step`, and the scan over time."""

from ctdb.recurrent.bidirectional import Bidirectional
from ctdb.recurrent.cells import Cell, ClippedGRUCell, EulerMLPCell, GRUCell, LinearCell, TanhCell
from ctdb.recurrent.initialise import initialise
from ctdb.recurrent.linear import FanInLinear, UnitRowLinear
from ctdb.recurrent.scan import scan

__all__ = [
    "Bidirectional",
    "Cell",
    "ClippedGRUCell",
    "EulerMLPCell",
    "FanInLinear",
    "GRUCell",
    "LinearCell",
    "TanhCell",
    "UnitRowLinear",
    "initialise",
    "scan",
]
