"""The recurrent core that networks and models share: cells with one `step`, and the scan over time."""

from ctdb.recurrent.cells import Cell, EulerMLPCell, GRUCell, LinearCell, TanhCell
from ctdb.recurrent.initialise import initialise
from ctdb.recurrent.scan import scan

__all__ = ["Cell", "EulerMLPCell", "GRUCell", "LinearCell", "TanhCell", "initialise", "scan"]
