"""The distinct points that a search has found so far."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

EQUAL = 1e-3
"""Distance, in radii of the visited states, below which two points under one input are one."""
NEAR = EQUAL / 4
"""Distance, in the same unit, at which a start counts as arrived at a known point."""

EXACT = "donot_use_mm_for_euclid_dist"
"""Mode of `torch.cdist`; the faster one is off by the square root of rounding."""


class KnownPoints:
    """Distinct points in the order in which they were found.

    Parameters
    ----------
    n_states, n_inputs
        Channels of states and inputs.
    radius
        Unit of distances.
    """

    def __init__(self, n_states: int, n_inputs: int, radius: float):
        self.radius = radius
        self.x = torch.empty(0, n_states, dtype=torch.float64)
        self.input = torch.empty(0, n_inputs, dtype=torch.float64)

    def add(
        self, x: Float[Tensor, "n d"], input: Float[Tensor, "n i"], residual: Float[Tensor, " n"]
    ) -> Int[Tensor, " n"]:
        """Number of the point that each state is; among equal new ones, the lowest residual stands for all."""
        number = torch.full((len(x),), -1)
        for row in residual.argsort(stable=True).tolist():
            distance, nearest = self.nearest(x[row : row + 1], input[row : row + 1])
            if distance < EQUAL * self.radius:
                number[row] = nearest
            else:
                number[row] = len(self.x)
                self.x = torch.cat([self.x, x[row : row + 1]])
                self.input = torch.cat([self.input, input[row : row + 1]])
        return number

    def nearest(
        self, x: Float[Tensor, "n d"], input: Float[Tensor, "n i"]
    ) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Distance to the nearest point under the same input, infinite where there is none, and its number."""
        if not len(self.x):
            return x.new_full((len(x),), torch.inf), torch.full((len(x),), -1)
        far = torch.cdist(x, self.x, compute_mode=EXACT)
        far[(input[:, None] != self.input[None]).any(2)] = torch.inf
        distance, nearest = far.min(1)
        return distance, nearest

    def reached(self, x: Float[Tensor, "n d"], input: Float[Tensor, "n i"]) -> Bool[Tensor, " n"]:
        """Whether each state is at a known point."""
        return self.nearest(x, input)[0] < NEAR * self.radius
