"""Cells and scan against torch's own layers, explicit formulas in numpy, and finite differences."""

import numpy as np
import pytest
import torch
from torch import nn

from ctdb.recurrent import EulerMLPCell, GRUCell, LinearCell, TanhCell, initialise, scan

CELLS = {
    "gru": lambda n_inputs: GRUCell(n_inputs, 5),
    "tanh": lambda n_inputs: TanhCell(n_inputs, 5),
    "linear": lambda n_inputs: LinearCell(n_inputs, 5),
    "euler": lambda n_inputs: EulerMLPCell(n_inputs, 5, n_layers=2, width=7, gain=0.3),
}


def make_cell(kind, n_inputs=3, seed=0):
    cell = CELLS[kind](n_inputs)
    initialise(cell, torch.Generator().manual_seed(seed))
    return cell.double()


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arrays(cell):
    return {name: value.detach().numpy() for name, value in cell.state_dict().items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(kind, cell, u, h):
    """Next state in float64 numpy, from the equation."""
    w = arrays(cell)
    if kind == "gru":
        a, c = u @ w["weight_ih"].T + w["bias_ih"], h @ w["weight_hh"].T + w["bias_hh"]
        (ar, az, an), (cr, cz, cn) = np.split(a, 3, axis=1), np.split(c, 3, axis=1)
        r, z = sigmoid(ar + cr), sigmoid(az + cz)
        return (1 - z) * np.tanh(an + r * cn) + z * h
    if kind == "tanh":
        return np.tanh(u @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"])
    if kind == "linear":
        through_input = u @ w["input.weight"].T if "input.weight" in w else 0
        return h @ w["recurrent.weight"].T + w["recurrent.bias"] + through_input
    x = np.concatenate([h, u], axis=1)
    for layer in (0, 2):
        x = np.maximum(x @ w[f"field.{layer}.weight"].T + w[f"field.{layer}.bias"], 0)
    return h + 0.3 * (x @ w["field.4.weight"].T + w["field.4.bias"])


@pytest.mark.parametrize("n_inputs", [3, 0])
@pytest.mark.parametrize("kind", CELLS)
def test_cell_follows_its_equation(kind, n_inputs):
    cell = make_cell(kind, n_inputs)
    u, h = draw(6, n_inputs), draw(6, 5, seed=2)
    np.testing.assert_allclose(
        cell(u, h).detach().numpy(), by_hand(kind, cell, u.numpy(), h.numpy()), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize(("kind", "torch_cell"), [("gru", nn.GRUCell), ("tanh", nn.RNNCell)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cell_equals_the_one_of_torch_with_the_same_weights(kind, torch_cell, dtype):
    cell = make_cell(kind).to(dtype)
    other = torch_cell(3, 5, dtype=dtype)
    other.load_state_dict(cell.state_dict())
    u, h = draw(6, 3).to(dtype), draw(6, 5, seed=2).to(dtype)
    torch.testing.assert_close(cell(u, h), other(u, h), rtol=0, atol=0)


@pytest.mark.parametrize("n_inputs", [3, 0])
@pytest.mark.parametrize("kind", CELLS)
def test_gradients_equal_finite_differences(kind, n_inputs):
    cell = make_cell(kind, n_inputs)
    names = list(cell.state_dict())
    weights = [cell.state_dict()[name].clone().requires_grad_() for name in names]
    u, h = draw(2, n_inputs).requires_grad_(), draw(2, 5, seed=2).requires_grad_()

    def step(u, h, *weights):
        return torch.func.functional_call(cell, dict(zip(names, weights, strict=True)), (u, h))

    assert torch.autograd.gradcheck(step, (u, h, *weights), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", CELLS)
def test_scan_equals_stepping_by_hand(kind):
    cell = make_cell(kind)
    inputs, state = draw(4, 9, 3), draw(4, 5, seed=2)
    states = scan(cell, state, inputs)
    assert states.shape == (4, 9, 5)
    h = state.numpy()
    for t in range(9):
        h = by_hand(kind, cell, inputs[:, t].numpy(), h)
        np.testing.assert_allclose(states[:, t].detach().numpy(), h, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", CELLS)
def test_scan_without_input_channels_runs_as_many_steps_as_there_are_bins(kind):
    cell = make_cell(kind, n_inputs=0)
    states = scan(cell, draw(4, 5), torch.zeros(4, 6, 0, dtype=torch.float64))
    assert states.shape == (4, 6, 5)


def test_gradient_through_the_scan_equals_finite_differences():
    cell = make_cell("gru")
    inputs, state = draw(2, 4, 3).requires_grad_(), draw(2, 5, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda h, u: scan(cell, h, u), (state, inputs), eps=1e-6, atol=1e-6)


class EveryLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.ModuleList([make(2) for make in CELLS.values()])
        self.encoder = nn.GRU(4, 6, bidirectional=True, batch_first=True)
        self.readout = nn.Linear(9, 2)
        self.own = nn.Parameter(torch.full((3,), 7.0))


def initialised(seed):
    module = EveryLayer()
    initialise(module, torch.Generator().manual_seed(seed))
    return module.state_dict()


def test_initial_weights_depend_on_the_generator_alone():
    torch.manual_seed(1)
    first = initialised(0)
    torch.manual_seed(2)
    again, other = initialised(0), initialised(1)
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
        if name not in ("own", "cells.2.recurrent.bias"):  # these start as constants
            assert not torch.equal(value, other[name]), name


def test_initialise_leaves_the_global_random_state_alone():
    module = EveryLayer()
    before = torch.get_rng_state()
    initialise(module, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_fill_the_bounds_that_torch_uses():
    weights = initialised(0)
    fan_in = {"readout": 9, "encoder": 6, "cells.0": 5, "cells.1": 5, "cells.2.input": 2, "cells.3.field.0": 7}
    for prefix, n in fan_in.items():
        bound = 1 / np.sqrt(n)
        values = torch.cat([value.flatten() for name, value in weights.items() if name.startswith(prefix + ".")])
        assert values.abs().max() <= bound
        assert values.abs().max() > 0.75 * bound
        assert abs(float(values.mean())) < 5 * bound / np.sqrt(3 * len(values))
    assert torch.equal(weights["own"], torch.full((3,), 7.0))


def test_linear_system_starts_near_the_identity_and_cannot_explode():
    for seed in range(3):
        weights = initialised(seed)
        matrix = weights["cells.2.recurrent.weight"].double().numpy()
        assert np.linalg.svd(matrix, compute_uv=False)[0] == pytest.approx(0.95, rel=1e-5)
        direction = matrix / np.linalg.norm(matrix)
        assert np.trace(direction) / np.sqrt(5) > 0.95  # cosine with the identity
        assert not np.allclose(direction, np.eye(5) / np.sqrt(5), atol=1e-3)
        assert (weights["cells.2.recurrent.bias"] == 0).all()
