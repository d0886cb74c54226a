"""Systems whose fixed points are known, turned at random into 16 dimensions, of which the others die out."""

import torch

D = 16


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ROTATION = torch.linalg.qr(draw(D, D, seed=7))[0]


def rotated(field, n, dt=0.1):
    """Euler map of ``dy/dt = field(y)`` in the first `n` coordinates; the others shrink to 0.8 in each step."""

    def step(state, input):
        y = state @ ROTATION
        own = y[:, :n]
        return torch.cat([own + dt * field(own), 0.8 * y[:, n:]], 1) @ ROTATION.T

    return step


def place(y):
    """State of the system at given first coordinates."""
    return torch.nn.functional.pad(y, (0, D - y.shape[1])) @ ROTATION.T


def coordinates(state):
    return state @ ROTATION


def visited(n_states=300, width=1.0, seed=1):
    return width * draw(n_states, D, seed=seed) @ ROTATION.T


STEEPNESS = 3.0


def flip_flop(y):
    """Double well with stable points at 0 and 1 and an unstable one at 1/2."""
    return -STEEPNESS * (2 * y - 6 * y**2 + 4 * y**3)


def flip_flop_slope(y, dt=0.1):
    """Eigenvalue of the flip-flop's Euler map."""
    return 1 - dt * STEEPNESS * (2 - 12 * y + 12 * y**2)


def hopf(y):
    """Limit cycle of radius 1 around an unstable focus, of angular velocity 1."""
    return y * (1 - (y**2).sum(1, keepdim=True)) + torch.stack([-y[:, 1], y[:, 0]], 1)


def ring(y):
    """Ring of fixed points of radius 1 around an unstable one."""
    return y * (1 - (y**2).sum(1, keepdim=True))


def line(y):
    """Every point is one."""
    return 0 * y


def saddle_node(gap):
    """Two points at +-sqrt(-gap), or, for gap > 0, only their ghost, with a lowest speed of 0.1 gap."""
    return lambda y: -(gap + y**2)


def cubic(y):
    """One point, at which the linearisation says nothing."""
    return -(y**3)
