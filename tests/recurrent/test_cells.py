"""Cells and scan against torch's own layers, explicit formulas in numpy, and finite differences."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from ctdb.recurrent import (
    Bidirectional,
    ClippedGRUCell,
    EulerMLPCell,
    FanInLinear,
    GRUCell,
    LeakyRateCell,
    LinearCell,
    TanhCell,
    UnitRowLinear,
    initialise,
    scan,
)
from ctdb.recurrent.rate_cells import ChaoticRateCell, EIRateCell, OscillatorCell, SwitchingLinearCell

CLIP = 0.8  # low, so that some of the states drawn below are clipped and others are not

CELLS = {
    "gru": lambda n_inputs: GRUCell(n_inputs, 5),
    "tanh": lambda n_inputs: TanhCell(n_inputs, 5),
    "linear": lambda n_inputs: LinearCell(n_inputs, 5),
    "euler": lambda n_inputs: EulerMLPCell(n_inputs, 5, n_layers=2, width=7, gain=0.3),
    "clipped": lambda n_inputs: ClippedGRUCell(n_inputs, 5, clip=CLIP),
    "leaky": lambda n_inputs: LeakyRateCell(n_inputs, 5, 0.3, "softplus"),
    "chaotic": lambda n_inputs: ChaoticRateCell(n_inputs, 5, gain=1.5, leak=0.2),
    "ei": lambda n_inputs: EIRateCell(n_inputs, 5, n_excitatory=3, leak=0.4, spectral_radius=1.3),
    "oscillator": lambda n_inputs: OscillatorCell(n_inputs, 3, time_step=0.2, stiffness=1.7, damping=0.6),
    "switching": lambda n_inputs: SwitchingLinearCell(n_inputs, 5, n_modes=3),
}


def n_states(kind):
    return 6 if kind == "oscillator" else 5


def make_cell(kind, n_inputs=3, seed=0):
    cell = CELLS[kind](n_inputs)
    generator = torch.Generator().manual_seed(seed)
    initialise(cell, generator)
    if kind == "clipped":  # its gates start with equal offsets, which would not show if they were exchanged
        with torch.no_grad():
            cell.bias += torch.randn(cell.bias.shape, generator=generator)
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
    if kind == "clipped":
        (xz, xr, xn), (wz, wr, wn) = np.split(u @ w["weight_ih"].T + w["bias"], 3, axis=1), np.split(w["weight_hh"], 3)
        z, r = sigmoid(xz + h @ wz.T), sigmoid(xr + h @ wr.T)
        return np.clip(z * h + (1 - z) * np.tanh(xn + (r * h) @ wn.T), -cell.clip, cell.clip)
    if kind == "tanh":
        return np.tanh(u @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"])
    if kind == "linear":
        through_input = u @ w["input.weight"].T if "input.weight" in w else 0
        return h @ w["recurrent.weight"].T + w["recurrent.bias"] + through_input
    if kind == "leaky":
        drive = u @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"]
        return 0.7 * h + 0.3 * np.log(1 + np.exp(drive))
    if kind == "chaotic":
        return 0.8 * h + 0.2 * (np.tanh(h) @ w["weight_hh"].T + u @ w["weight_ih"].T)
    if kind == "ei":
        acting = np.abs(w["weight_hh"]) * np.array([1, 1, 1, -1, -1])
        np.fill_diagonal(acting, 0)
        return 0.6 * h + 0.4 * (np.maximum(h, 0) @ acting.T + u @ w["weight_ih"].T + w["bias"])
    if kind == "oscillator":
        y, z, recurrent = h[:, :3], h[:, 3:], w["weight_hh"]
        force = np.tanh(y @ recurrent[:, :3].T + z @ recurrent[:, 3:].T + u @ w["weight_ih"].T + w["bias"])
        z = (z + 0.2 * force - 0.2 * 1.7 * y) / (1 + 0.2 * 0.6)
        return np.concatenate([y + 0.2 * z, z], axis=1)
    if kind == "switching":
        following = np.zeros_like(h)
        for trial, (given, state) in enumerate(zip(u, h, strict=True)):
            odds = np.exp(w["mode_weight"] @ state + w["mode_bias"])
            for mode, odd in enumerate(odds):
                moved = w["weight_hh"][mode] @ state + w["weight_ih"][mode] @ given + w["bias"][mode]
                following[trial] += odd / odds.sum() * moved
        return following
    assert kind == "euler"
    x = np.concatenate([h, u], axis=1)
    for layer in (0, 2):
        x = np.maximum(x @ w[f"field.{layer}.weight"].T + w[f"field.{layer}.bias"], 0)
    return h + 0.3 * (x @ w["field.4.weight"].T + w["field.4.bias"])


@pytest.mark.parametrize("n_inputs", [3, 0])
@pytest.mark.parametrize("kind", CELLS)
def test_cell_follows_its_equation(kind, n_inputs):
    cell = make_cell(kind, n_inputs)
    u, h = draw(6, n_inputs), draw(6, n_states(kind), seed=2)
    np.testing.assert_allclose(
        cell(u, h).detach().numpy(), by_hand(kind, cell, u.numpy(), h.numpy()), rtol=1e-12, atol=1e-13
    )


def test_the_clipped_cell_clips_some_of_these_states_and_not_others():
    states = make_cell("clipped")(draw(6, 3), draw(6, 5, seed=2)).abs()
    assert states.max() == CLIP
    assert (states == CLIP).any(0).sum() > 1
    assert (states < CLIP).float().mean() > 0.5


def test_a_clipped_state_passes_no_gradient_on():
    cell = make_cell("clipped")
    state = draw(6, 5, seed=2).requires_grad_()
    following = cell(draw(6, 3), state)
    clipped = following.detach().abs() == CLIP
    following[clipped].sum().backward()
    assert clipped.any()
    assert (state.grad == 0).all()


@pytest.mark.parametrize("kind", ["gru", "clipped"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_gru_stays_on_the_float64_reference_over_hundreds_of_bins(kind, dtype, tolerance):
    cell = make_cell(kind, seed=3)
    inputs, state = draw(4, 400, 3), draw(4, 5, seed=2)
    h, expected = state.numpy(), []
    for t in range(400):
        h = by_hand(kind, cell, inputs[:, t].numpy(), h)
        expected.append(h)
    expected = np.stack(expected, 1)
    states = scan(cell.to(dtype), state.to(dtype), inputs.to(dtype)).detach().numpy()
    assert expected[:, 200:].std() > 0.2  # the state still moves
    np.testing.assert_allclose(states, expected, rtol=0, atol=tolerance)


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
    u, h = draw(2, n_inputs).requires_grad_(), draw(2, n_states(kind), seed=2).requires_grad_()

    def step(u, h, *weights):
        return torch.func.functional_call(cell, dict(zip(names, weights, strict=True)), (u, h))

    assert torch.autograd.gradcheck(step, (u, h, *weights), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", CELLS)
def test_scan_equals_stepping_by_hand(kind):
    cell = make_cell(kind)
    inputs, state = draw(4, 9, 3), draw(4, n_states(kind), seed=2)
    states = scan(cell, state, inputs)
    assert states.shape == (4, 9, n_states(kind))
    h = state.numpy()
    for t in range(9):
        h = by_hand(kind, cell, inputs[:, t].numpy(), h)
        np.testing.assert_allclose(states[:, t].detach().numpy(), h, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", CELLS)
def test_scan_keeps_the_state_in_bins_that_are_not_valid(kind):
    cell = make_cell(kind)
    inputs, state = draw(4, 9, 3), draw(4, n_states(kind), seed=2)
    valid = torch.rand(4, 9, generator=torch.Generator().manual_seed(3)) < 0.6
    assert not valid[:, 0].all()  # so that some trial keeps the state before the first bin
    states = scan(cell, state, inputs, valid).detach().numpy()
    for trial in range(4):
        h = state[trial : trial + 1].numpy()
        for t in range(9):
            if valid[trial, t]:
                h = by_hand(kind, cell, inputs[trial : trial + 1, t].numpy(), h)
            np.testing.assert_allclose(states[trial, t], h[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", CELLS)
def test_scan_without_input_channels_runs_as_many_steps_as_there_are_bins(kind):
    cell = make_cell(kind, n_inputs=0)
    states = scan(cell, draw(4, n_states(kind)), torch.zeros(4, 6, 0, dtype=torch.float64))
    assert states.shape == (4, 6, n_states(kind))


@pytest.mark.parametrize("kind", ["gru", "clipped"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_through_the_scan_equals_finite_differences(kind, masked):
    cell = make_cell(kind)
    inputs, state = draw(2, 4, 3).requires_grad_(), draw(2, 5, seed=2).requires_grad_()
    valid = torch.tensor([[True, True, False, True], [False, True, True, False]]) if masked else None
    assert torch.autograd.gradcheck(lambda h, u: scan(cell, h, u, valid), (state, inputs), eps=1e-6, atol=1e-6)


class EveryLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.ModuleList([make(2) for make in CELLS.values()])
        self.encoder = nn.GRU(4, 6, bidirectional=True, batch_first=True)
        self.readout = nn.Linear(9, 2)
        self.fan_in, self.unit_rows = FanInLinear(9, 2), UnitRowLinear(9, 2)
        self.both_ways = Bidirectional(lambda: ClippedGRUCell(4, 6, joint_fan=True))
        self.own = nn.Parameter(torch.full((3,), 7.0))


CONSTANT_AT_FIRST = {
    "own",
    "cells.2.recurrent.bias",
    "cells.4.bias",
    "fan_in.bias",
    "both_ways.initial",
    "both_ways.ahead.bias",
    "both_ways.back.bias",
}


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
        if name not in CONSTANT_AT_FIRST:
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


def assert_normal(weights, variance):
    """Normal with mean 0 and this variance, as far as this many values tell."""
    values = weights.detach().double().flatten().numpy()
    assert scipy.stats.kstest(values, "norm", (0, np.sqrt(variance))).pvalue > 1e-3
    assert abs(values.mean()) < 4 * np.sqrt(variance / len(values))
    assert abs(values.var() / variance - 1) < 4 * np.sqrt(2 / len(values))


@pytest.mark.parametrize(("joint_fan", "fans"), [(False, (40, 90)), (True, (130, 130))])
def test_clipped_cell_starts_with_the_variance_of_its_fan_and_open_gates(joint_fan, fans):
    cell = ClippedGRUCell(40, 90, joint_fan=joint_fan)
    initialise(cell, torch.Generator().manual_seed(0))
    assert_normal(cell.weight_ih, 1 / fans[0])
    assert_normal(cell.weight_hh, 1 / fans[1])
    for gate in range(3):  # each gate by itself
        assert_normal(cell.weight_ih[gate * 90 : (gate + 1) * 90], 1 / fans[0])
        assert_normal(cell.weight_hh[gate * 90 : (gate + 1) * 90], 1 / fans[1])
    assert cell.bias.tolist() == [1.0] * 180 + [0.0] * 90
    assert cell.clip == 5


@pytest.mark.parametrize("make", [lambda: FanInLinear(70, 50), lambda: UnitRowLinear(70, 50)])
def test_linear_maps_of_lfads_start_normal_with_the_variance_of_their_fan_in(make):
    layer = make()
    initialise(layer, torch.Generator().manual_seed(0))
    assert_normal(layer.weight, 1 / 70)
    assert layer.bias is None or (layer.bias == 0).all()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("joint_fan", [False, True])
def test_layers_without_inputs_can_be_drawn(joint_fan):
    cell, layer = ClippedGRUCell(0, 4, joint_fan=joint_fan), FanInLinear(0, 3)
    initialise(cell, torch.Generator().manual_seed(0))
    initialise(layer, torch.Generator().manual_seed(0))
    assert cell.weight_hh.isfinite().all()
    assert (layer(torch.zeros(2, 0)) == 0).all()


def test_fan_in_map_is_affine_in_its_last_axis():
    layer = FanInLinear(7, 4).double()
    initialise(layer, torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.bias += draw(4, seed=3)
    x = draw(2, 5, 7)
    w = arrays(layer)
    np.testing.assert_allclose(layer(x).detach().numpy(), x.numpy() @ w["weight"].T + w["bias"], rtol=1e-12)


def test_unit_row_map_acts_with_rows_of_norm_one_whatever_its_weights():
    layer = UnitRowLinear(7, 4).double()
    initialise(layer, torch.Generator().manual_seed(0))
    acting = layer(torch.eye(7, dtype=torch.float64)).detach().numpy().T
    np.testing.assert_allclose((acting**2).sum(1), 1, rtol=1e-12)
    raw = layer.weight.detach().numpy()
    np.testing.assert_allclose(acting, raw / np.sqrt((raw**2).sum(1, keepdims=True)), rtol=1e-12)
    np.testing.assert_allclose(layer.unit_weight().detach().numpy(), acting, rtol=1e-12)
    x = draw(2, 5, 7)
    before = layer(x)
    with torch.no_grad():
        layer.weight *= torch.tensor([0.1, 1.0, 7.0, 300.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(layer(x), before, rtol=1e-12, atol=0)
    layer(x).sin().sum().backward()  # so no step along a row's own direction is ever taken
    np.testing.assert_allclose((layer.weight.grad * layer.weight).sum(1).detach().numpy(), 0, atol=1e-12)
    assert layer.weight.grad.abs().max() > 1e-4


def test_a_switching_cell_of_one_mode_is_linear():
    switching, linear = SwitchingLinearCell(3, 5, n_modes=1).double(), LinearCell(3, 5).double()
    initialise(switching, torch.Generator().manual_seed(0))
    with torch.no_grad():
        linear.recurrent.weight.copy_(switching.weight_hh[0])
        linear.recurrent.bias.copy_(switching.bias[0])
        linear.input.weight.copy_(switching.weight_ih[0])
    u, h = draw(6, 3), draw(6, 5, seed=2)
    torch.testing.assert_close(switching(u, h), linear(u, h))


def test_two_modes_have_two_stable_points_and_share_what_lies_between():
    cell = SwitchingLinearCell(1, 1, n_modes=2).double()
    with torch.no_grad():
        for parameter, value in ((cell.weight_hh, 0.5), (cell.weight_ih, 0.0), (cell.mode_bias, 0.0)):
            parameter.fill_(value)
        cell.bias.copy_(torch.tensor([[-0.5], [0.5]]))  # h' = h / 2 -+ 1/2: points at -1 and 1
        cell.mode_weight.copy_(torch.tensor([[-8.0], [8.0]]))
        state = torch.tensor([[-3.0], [-0.2], [0.2], [3.0]], dtype=torch.float64)
        for _ in range(60):
            state = cell(torch.zeros(4, 1, dtype=torch.float64), state)
        np.testing.assert_allclose(state[:, 0], [-1, -1, 1, 1], atol=1e-5)
        shares = cell.mode_shares(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    np.testing.assert_allclose(shares[0], [0.5, 0.5])
    np.testing.assert_allclose(shares[1, 1], 1 / (1 + np.exp(-16)))


def test_the_modes_of_a_switching_cell_start_near_the_identity_and_apart():
    cell = SwitchingLinearCell(0, 40, n_modes=4)
    initialise(cell, torch.Generator().manual_seed(0))
    norms = torch.linalg.matrix_norm(cell.weight_hh, 2)
    np.testing.assert_allclose(norms.detach(), 0.95, rtol=1e-5)
    assert (cell.weight_hh.diagonal(dim1=1, dim2=2) > 0.6).all()
    assert cell.mode_weight.std().item() == pytest.approx(4 / np.sqrt(40), rel=0.2)
    assert cell.mode_shares(torch.randn(200, 40, generator=torch.Generator().manual_seed(1))).max(1)[0].mean() > 0.8
