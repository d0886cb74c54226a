"""Network and body as one system: a body of two tensors that is known by hand, and the arm of MotorNet."""

import pytest
import torch

from ctdb.dynamics import closed_loop_step, find_fixed_points, jacobian_of
from ctdb.errors import DynamicsError
from ctdb.networks.base import build
from ctdb.networks.rollout import rollout
from ctdb.recurrent import use_backend
from ctdb.tasks.base import Body, simulation_trials
from ctdb.tasks.base import build as build_task


class Cart(Body):
    """A point on a line with friction, pushed by the network and a force; it is seen two bins late."""

    def __init__(self):
        super().__init__()
        self.register_buffer("friction", torch.tensor(0.3))

    def begin(self, trials, noise):
        start = trials["start"]
        return {"motion": start, "seen": start[:, None, :1].repeat(1, 2, 1)}, {"force": trials["force"]}

    def observe(self, state):
        return state["seen"][:, 0]

    def step(self, state, output, now):
        place, velocity = state["motion"].chunk(2, 1)
        velocity = velocity + 0.1 * (output + now["force"] - self.friction * velocity - place)
        motion = torch.cat([place + 0.1 * velocity, velocity], 1)
        return {"motion": motion, "seen": torch.cat([state["seen"][:, 1:], motion[:, None, :1]], 1)}

    def behavior(self, state):
        return state["motion"]


@pytest.fixture
def cart():
    generator = torch.Generator().manual_seed(0)
    trials = {
        "inputs": torch.randn(5, 20, 2, generator=generator),
        "start": torch.randn(5, 2, generator=generator),
        "force": torch.zeros(5, 20, 1),
    }
    network = build({"kind": "gru", "hidden_size": 6}, 3, 1, seed=0).double()
    return network, Cart(), trials


def test_joint_step_follows_the_rollout(cart):
    network, body, trials = cart
    step = closed_loop_step(network, body, trials)
    assert list(step.parts) == ["network", "motion", "seen"]
    states = step.run(trials)
    assert states.shape == (5, 20, 6 + 2 + 2)
    with torch.no_grad(), use_backend("eager"):
        exact = {name: value.double() for name, value in trials.items()}
        run = rollout(network, exact, Cart().double())
    torch.testing.assert_close(states[:, :, step.parts["network"]], run.states, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(states[:, :, step.parts["motion"]], run.behavior, rtol=1e-12, atol=1e-13)


def test_parts_join_to_what_they_were_split_from(cart):
    step = closed_loop_step(*cart)
    state = torch.randn(4, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts = step.split(state)
    assert parts["seen"].shape == (4, 2, 1)
    assert torch.equal(step.join(parts), state)


def test_fixed_point_of_the_loop_is_where_the_cart_is_held_and_seen(cart):
    network, _, trials = cart
    step = closed_loop_step(*cart)
    points = find_fixed_points(step, step.run(trials), [0.2, -0.1])
    assert len(points) >= 1
    assert points.residual.max() < 1e-11
    parts = step.split(points.x)
    place, velocity = parts["motion"].chunk(2, 1)
    assert velocity.abs().max() < 1e-10
    with torch.no_grad():
        torch.testing.assert_close(network.readout(parts["network"]), place, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(parts["seen"], place[:, None].repeat(1, 2, 1), rtol=0, atol=1e-10)


def test_body_is_left_as_it_was(cart):
    network, body, trials = cart
    closed_loop_step(network, body, trials).run(trials)
    assert body.friction.dtype == torch.float32


def test_network_in_single_precision_is_an_error(cart):
    network, body, trials = cart
    with pytest.raises(DynamicsError, match=r"network\.double"):
        closed_loop_step(network.float(), body, trials)


def test_without_input_the_loop_is_given_zeros(cart):
    step = closed_loop_step(*cart)
    points = find_fixed_points(step, step.run(cart[2]))
    assert points.input.tolist() == [[0, 0]] * len(points)


def test_arm_of_random_target_has_a_joint_state_with_exact_jacobians():
    pytest.importorskip("motornet")
    drawn = {"seed": 0, "n_trials": 4, "n_bins": 60, "target_on": [10, 11], "go": [20, 21], "bump_anywhere": [0, 20]}
    task = build_task({"kind": "random_target", "simulate": drawn})
    trials, n_units = simulation_trials(task).tensors(), 12
    spec = {"kind": "noisy_gru", "hidden_size": n_units}
    network = build(spec, len(task.input_names), len(task.output_names), seed=0).double()
    step = closed_loop_step(network, task.body(), trials)
    states = step.run(trials)
    d = n_units + 4 + 6 * 7 + 4 * 6 + 5 * 2 + 2 * 12
    assert states.shape == (4, 60, d)
    assert states.isfinite().all()
    state, input, eps = states[:1, 30], torch.zeros(1, 3, dtype=torch.float64), 1e-6
    found = jacobian_of(step)(state, input)
    assert found.state.shape == (1, d, d)
    assert found.input.shape == (1, d, 3)
    with torch.no_grad():
        moves = eps * torch.eye(d, dtype=torch.float64)
        twice = input.expand(d, -1)
        expected = (step(state + moves, twice) - step(state - moves, twice)).T / (2 * eps)
    close = (found.state[0] - expected).abs() <= 1e-5 * (1 + expected.abs())
    assert close.all(), close.logical_not().nonzero()
    points = find_fixed_points(step, states, n_starts=16)
    assert points.residual.numel() == 0 or points.residual.max() < 1e-11
