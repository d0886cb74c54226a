"""Dynamics of any ``step(state, input)``: task-trained networks, fitted models, and users' own systems alike."""

from ctdb.dynamics.closed_loop import ClosedLoopStep, closed_loop_step
from ctdb.dynamics.comparison import FixedPointComparison, compare_fixed_points, connections
from ctdb.dynamics.fixed_points import find_fixed_points
from ctdb.dynamics.jacobians import Jacobians, jacobian_of
from ctdb.dynamics.newton import Status
from ctdb.dynamics.points import ContinuousSet, FixedPoints

__all__ = [
    "ClosedLoopStep",
    "ContinuousSet",
    "FixedPointComparison",
    "FixedPoints",
    "Jacobians",
    "Status",
    "closed_loop_step",
    "compare_fixed_points",
    "connections",
    "find_fixed_points",
    "jacobian_of",
]
