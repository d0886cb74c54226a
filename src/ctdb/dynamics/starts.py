"""Where fixed-point searches start: in the convex hull of visited states, between known points, further out."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ctdb.dynamics.jacobians import Step

DESCENT_STEPS, DESCENT_RATE = 300, 1e-2


def hull(
    states: Float[Tensor, "m d"], n: int, generator: torch.Generator
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
    """Random starts in the convex hull of states, and one of the states behind each.

    A quarter are states, half lie between two, a quarter between three, mixed. Newton's method from visited states
    alone finds the stable points, but saddles lie between these.
    """
    parents = torch.randint(len(states), (n, 3), generator=generator)
    weights = torch.rand(n, 3, generator=generator, dtype=states.dtype)
    corners = torch.tensor([1, 2, 2, 3])[torch.arange(n) % 4]
    weights = -weights.clamp(min=1e-300).log() * (torch.arange(3) < corners[:, None])  # uniform over the simplex
    weights = weights / weights.sum(1, keepdim=True)
    return (weights[:, :, None] * states[parents]).sum(1), parents[:, 0]


def noisy(states: Float[Tensor, "m d"], n: int, generator: torch.Generator) -> tuple[Tensor, Int[Tensor, " n"]]:
    """Random states plus normal noise, half as large along each principal component as the states are wide."""
    parents = torch.randint(len(states), (n,), generator=generator)
    _, singular, components = torch.linalg.svd(states - states.mean(0), full_matrices=False)
    noise = torch.randn(n, len(singular), generator=generator, dtype=states.dtype)
    return states[parents] + 0.5 * (noise * singular / len(states) ** 0.5) @ components, parents


def descended(step: Step, starts: Float[Tensor, "n d"], input: Float[Tensor, "n i"]) -> Float[Tensor, "n d"]:
    r"""Where Adam on :math:`q = |F(x) - x|^2 / 2` leads in a few steps: gradients go to saddles too."""
    x = starts.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([x], lr=DESCENT_RATE)
    with torch.enable_grad():
        for _ in range(DESCENT_STEPS):
            q = 0.5 * ((step(x, input) - x) ** 2).sum()
            (x.grad,) = torch.autograd.grad(q, x)
            optimiser.step()
    return x.detach()


def midpoints(
    x: Float[Tensor, "k d"], input: Float[Tensor, "k i"], tried: set[tuple[int, int]], n: int
) -> tuple[Float[Tensor, "pairs d"], Int[Tensor, " pairs"]]:
    """Midpoints of `n` pairs of points under one input that were not tried, and one point of each pair.

    Those furthest from all points come first: where a saddle is missing, there is a hole. The pairs are added to
    `tried`.
    """
    first, second = torch.triu_indices(len(x), len(x), 1)
    fresh = [at for at, pair in enumerate(zip(first.tolist(), second.tolist(), strict=True)) if pair not in tried]
    first, second = first[fresh], second[fresh]
    same = (input[first] == input[second]).all(1)
    first, second = first[same], second[same]
    middle = (x[first] + x[second]) / 2
    hole = torch.cat([torch.cdist(part, x).amin(1) for part in middle.split(1024)]) if len(middle) else middle[:, 0]
    chosen = hole.argsort(descending=True, stable=True)[:n]
    tried.update(zip(first[chosen].tolist(), second[chosen].tolist(), strict=True))
    return middle[chosen], first[chosen]
