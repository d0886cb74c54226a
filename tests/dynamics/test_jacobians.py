"""Closed-form Jacobians against autograd and finite differences, and which step uses which."""

import pytest
import torch

from ctdb import models
from ctdb.dynamics import jacobian_of
from ctdb.dynamics.jacobians import CLOSED_FORMS, cell_of
from ctdb.networks import NETWORKS
from ctdb.networks.base import build
from ctdb.recurrent import GRUCell, initialise
from recurrent.test_cells import CELLS, draw, make_cell, n_states


def by_autograd(step):
    return jacobian_of(lambda state, input: step(state, input))


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("n_inputs", [3, 0])
@pytest.mark.parametrize("kind", CELLS)
def test_closed_form_equals_autograd(kind, n_inputs):
    cell = make_cell(kind, n_inputs)
    state, input = draw(6, n_states(kind), seed=2), draw(6, n_inputs)
    expected = by_autograd(lambda state, input: cell(input, state))(state, input)
    assert expected.state.shape == (6, n_states(kind), n_states(kind))
    assert expected.input.shape == (6, n_states(kind), n_inputs)
    if kind == "euler":
        assert type(cell).forward not in CLOSED_FORMS
        return
    with torch.no_grad():
        assert_equal(CLOSED_FORMS[type(cell).forward](cell, input, state), expected)


@pytest.mark.parametrize("activation", ["tanh", "relu", "softplus"])
def test_every_activation_has_its_slope(activation):
    cell = make_cell("leaky")
    cell.activation = activation
    state, input = draw(6, 5, seed=2), draw(6, 3)
    expected = by_autograd(lambda state, input: cell(input, state))(state, input)
    with torch.no_grad():
        assert_equal(CLOSED_FORMS[type(cell).forward](cell, input, state), expected)


@pytest.mark.parametrize("kind", CELLS)
def test_jacobians_equal_finite_differences(kind):
    cell, eps = make_cell(kind), 1e-6
    state, input = draw(1, n_states(kind), seed=4), draw(1, 3, seed=5)
    found = by_autograd(lambda state, input: cell(input, state))(state, input)
    with torch.no_grad():
        by_state = [
            (cell(input, state + eps * e) - cell(input, state - eps * e))[0] / (2 * eps)
            for e in torch.eye(n_states(kind), dtype=torch.float64)
        ]
        by_input = [
            (cell(input + eps * e, state) - cell(input - eps * e, state))[0] / (2 * eps)
            for e in torch.eye(3, dtype=torch.float64)
        ]
    torch.testing.assert_close(found.state[0], torch.stack(by_state, 1), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.input[0], torch.stack(by_input, 1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", NETWORKS.modules)
def test_every_network_is_known_by_its_cell(kind):
    network = build({"kind": kind, "hidden_size": 10}, 3, 2, seed=0).double()
    assert cell_of(network.step) is network.cell
    state, input = draw(4, network.cell.n_states, seed=2), draw(4, 3)
    assert_equal(jacobian_of(network.step)(state, input), by_autograd(network.step)(state, input))


@pytest.mark.parametrize("kind", ["sae_gru", "sae_rnn", "sae_node", "lds", "slds", "lfads", "band"])
def test_every_model_is_known_by_its_cell(kind, make_dataset):
    dataset = make_dataset(ext_input=2, behavior=2)
    own = {"co_dim": 1, "gen_dim": 5, "cell_clip": 0.7} if kind in ("lfads", "band") else {"latent_size": 5}
    model = models.build({"kind": kind, "seed": 0, **own}, dataset).double()
    cell = cell_of(model.step)
    assert cell is not None
    for n_inputs in {2, cell.n_inputs}:  # external input alone, or inferred input before it
        state, input = draw(4, 5, seed=2), draw(4, n_inputs)
        assert_equal(jacobian_of(model.step)(state, input), by_autograd(model.step)(state, input))


def test_subclass_with_a_step_of_its_own_is_differentiated_by_autograd():
    class Doubled(NETWORKS["gru"]):
        def step(self, state, input):
            return 2 * super().step(state, input)

    network = Doubled(Doubled.Settings(kind="gru", hidden_size=4), 3, 2).double()
    initialise(network, torch.Generator().manual_seed(0))
    state, input = draw(4, 4), draw(4, 3)
    assert cell_of(network.step) is None
    assert_equal(jacobian_of(network.step)(state, input), by_autograd(network.step)(state, input))


def test_cell_with_a_forward_of_its_own_is_differentiated_by_autograd():
    class Halved(GRUCell):
        def forward(self, input, state):
            return 0.5 * super().forward(input, state)

    network = build({"kind": "gru", "hidden_size": 4}, 3, 2, seed=0).double()
    own = Halved(3, 4).double()
    own.load_state_dict(network.cell.state_dict())
    network.cell = own
    state, input = draw(4, 4), draw(4, 3)
    assert_equal(jacobian_of(network.step)(state, input), by_autograd(network.step)(state, input))


def test_autograd_does_without_vmap_where_the_step_has_none():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, grad):
            assert not torch._C._functorch.is_batchedtensor(grad), "no vmap"
            return torch.from_numpy(2 * ctx.saved_tensors[0].numpy() * grad.numpy())

    state = draw(3, 4)
    found = jacobian_of(lambda x, u: Square.apply(x).flip(1))(state, torch.zeros(3, 0))
    assert_equal([found.state], [torch.diag_embed(2 * state).flip(1)])


def test_gradients_and_weights_are_left_alone():
    network = build({"kind": "gru", "hidden_size": 4}, 3, 2, seed=0).double()
    state, input = draw(4, 4), draw(4, 3)
    for linearise in (jacobian_of(network.step), by_autograd(network.step)):
        with torch.no_grad():
            found = linearise(state, input)
        assert not found.state.requires_grad
        assert not state.requires_grad
        assert all(value.grad is None and value.requires_grad for value in network.parameters())


def test_step_that_ignores_its_input_has_no_derivative_by_it():
    found = jacobian_of(lambda x, u: torch.ones_like(x))(draw(2, 3), draw(2, 1))
    assert found.state.abs().max() == 0
    assert found.input.shape == (2, 3, 1)
    for n in (1, 2, 3):  # as many as states, or not
        x, u = draw(n, 3), draw(n, 2)
        free = jacobian_of(lambda x, u: torch.tanh(2 * x))(x, u)
        torch.testing.assert_close(free.state, torch.diag_embed(2 * (1 - torch.tanh(2 * x) ** 2)))
        torch.testing.assert_close(free.input, torch.zeros(n, 3, 2, dtype=torch.float64))
        driven = jacobian_of(lambda x, u: u @ torch.ones(2, 3, dtype=u.dtype))(x, u)
        torch.testing.assert_close(driven.state, torch.zeros(n, 3, 3, dtype=torch.float64))
        torch.testing.assert_close(driven.input, torch.ones(n, 3, 2, dtype=torch.float64))
