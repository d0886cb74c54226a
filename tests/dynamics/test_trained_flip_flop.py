"""Fixed points of a small network that has learned to remember three bits."""

import itertools

import pytest
import torch

from ctdb.dynamics import find_fixed_points
from ctdb.dynamics.known import EXACT
from ctdb.networks.train import train_network
from ctdb.tasks.base import build, simulation_trials, training_trials


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small network that has learned three bits, in double precision, and states that it visits."""
    task = build(
        {
            "kind": "nbff",
            "n_bins": 60,
            "switch_prob": 0.04,
            "train": {"n_trials": 500, "seed": 0},
            "simulate": {"n_trials": 60, "seed": 1},
        }
    )
    training = {"max_epochs": 60, "batch_size": 50, "learning_rate": 1e-2}
    spec = {"kind": "noisy_gru", "hidden_size": 32, "training": training}
    network = train_network(spec, task, training_trials(task), 0, tmp_path_factory.mktemp("net")).double().eval()
    with torch.no_grad():
        states, _ = network.run(torch.from_numpy(simulation_trials(task).inputs))
    return network, states


def test_trained_flip_flop_has_a_stable_point_for_every_memory(trained):
    network, states = trained
    before = {name: value.clone() for name, value in network.state_dict().items()}
    points = find_fixed_points(network.step, states, bin_s=0.01)
    assert points.residual.max() < 1e-11
    after = network.step(points.x, points.input)
    torch.testing.assert_close(after, points.x, rtol=0, atol=1e-11)
    with torch.no_grad():
        memory = network.readout(points.x[points.stable]).round()
    assert {tuple(bits) for bits in memory.abs().tolist()} == set(itertools.product([0.0, 1.0], repeat=3))
    assert (points.index == 1).sum() >= 8
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(value.requires_grad and value.grad is None for value in network.cell.parameters())


def test_closed_form_and_autograd_find_the_same_points(trained):
    network, states = trained
    closed = find_fixed_points(network.step, states)
    plain = find_fixed_points(lambda x, u: network.step(x, u), states, torch.zeros(3))
    assert len(closed) == len(plain)
    assert torch.cdist(closed.x, plain.x, compute_mode=EXACT).min(1)[0].max() < 1e-8
