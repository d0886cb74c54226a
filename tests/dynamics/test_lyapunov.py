"""Lyapunov spectra of maps and flows whose exponents are known."""

import numpy as np
import pytest
import torch

from ctdb.dynamics.lyapunov import kaplan_yorke, lyapunov_spectrum, rk4_map
from ctdb.errors import MetricError


def lorenz(state, input):
    x, y, z = state.unbind(1)
    return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], 1)


def rossler(state, input):
    x, y, z = state.unbind(1)
    return torch.stack([-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)], 1)


def rossler_jacobian_of_flow(state):
    x, z = state[:, 0], state[:, 2]
    o, i = torch.zeros_like(x), torch.ones_like(x)
    return torch.stack(
        [torch.stack([o, -i, -i], 1), torch.stack([i, 0.2 * i, o], 1), torch.stack([z, o, x - 5.7], 1)], 1
    )


def starts(n, seed=0, size=1.0):
    return size * torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 3)))


def linear(A):
    A = torch.as_tensor(A, dtype=torch.float64)
    return lambda state, input: state @ A.T


def test_a_linear_map_has_the_logarithms_of_its_moduli():
    A = np.array([[0.9, 0.4, 0.0], [-0.4, 0.9, 0.0], [0.3, 0.0, 1.2]])
    found = lyapunov_spectrum(linear(A), starts(2), 300, transient=60, bin_s=0.5)
    expected = np.sort(np.log(np.abs(np.linalg.eigvals(A))))[::-1]
    np.testing.assert_allclose(found.exponents, expected, atol=2e-3)
    np.testing.assert_allclose(found.exponents.sum(), np.log(np.linalg.det(A)), atol=1e-10)
    np.testing.assert_array_equal(found.per_second, found.exponents / 0.5)
    diagonal = lyapunov_spectrum(linear(np.diag([0.5, 2.0, 1.0])), starts(1), 200, transient=100)
    np.testing.assert_allclose(diagonal.exponents, np.log([2, 1, 0.5]), atol=1e-12)
    np.testing.assert_allclose(diagonal.standard_error, 0, atol=1e-12)


def test_lorenz():
    found = lyapunov_spectrum(rk4_map(lorenz, 0.01), starts(48) + 5, 1500, transient=500, bin_s=0.01)
    np.testing.assert_array_less(np.abs(found.per_second - [0.91, -0.01, -14.56]), [0.05, 0.02, 0.3])
    assert found.per_second.sum() == pytest.approx(-(10 + 1 + 8 / 3), abs=1e-3)
    assert found.dimension == pytest.approx(2.06, abs=0.01)
    assert 0.002 < found.standard_error_per_second[0] < 0.05
    assert found.of_trajectories.shape == (48, 3)


def test_rossler_by_its_own_jacobian():
    def jacobian(state, input):
        # Of one RK4 step, by the variational equation in the same stages.
        h, eye = 0.05, torch.eye(3, dtype=state.dtype).expand(len(state), 3, 3)
        k1, j1 = rossler(state, input), rossler_jacobian_of_flow(state)
        s2 = state + h / 2 * k1
        k2, j2 = rossler(s2, input), rossler_jacobian_of_flow(s2) @ (eye + h / 2 * j1)
        s3 = state + h / 2 * k2
        k3, j3 = rossler(s3, input), rossler_jacobian_of_flow(s3) @ (eye + h / 2 * j2)
        j4 = rossler_jacobian_of_flow(state + h * k3) @ (eye + h * j3)
        return eye + h / 6 * (j1 + 2 * j2 + 2 * j3 + j4)

    step = rk4_map(rossler, 0.05)
    found = lyapunov_spectrum(step, starts(64), 6000, transient=2000, bin_s=0.05, jacobian=jacobian)
    np.testing.assert_array_less(np.abs(found.per_second - [0.07, 0.01, -5.48]), [0.02, 0.02, 0.3])
    short = [lyapunov_spectrum(step, starts(3), 60, bin_s=0.05, jacobian=j).exponents for j in (jacobian, None)]
    np.testing.assert_allclose(short[0], short[1], atol=1e-10)


def test_the_standard_error_is_of_the_size_of_the_spread():
    step = rk4_map(lorenz, 0.01)
    found = lyapunov_spectrum(step, starts(40) + 5, 800, transient=300, bin_s=0.01, n_blocks=1)
    expected = found.of_trajectories.std(0, ddof=1) / np.sqrt(40)
    np.testing.assert_allclose(found.standard_error, expected, rtol=1e-9)


def test_inputs_enter_bin_by_bin():
    def step(state, input):
        return state * torch.exp(input)

    u = np.random.default_rng(0).normal(size=(40, 2))
    start = torch.ones(3, 2, dtype=torch.float64)
    both = lyapunov_spectrum(step, start, 30, torch.from_numpy(u), transient=10)
    np.testing.assert_allclose(both.exponents, np.sort(u[10:].mean(0))[::-1], atol=1e-12)
    each = lyapunov_spectrum(step, start, 30, torch.from_numpy(np.stack([u, u, 2 * u])), transient=10)
    np.testing.assert_allclose(each.exponents, np.sort(u[10:].mean(0) * 4 / 3)[::-1], atol=1e-12)
    constant = lyapunov_spectrum(step, start, 30, torch.tensor([0.1, -0.2], dtype=torch.float64))
    np.testing.assert_allclose(constant.exponents, [0.1, -0.2], atol=1e-12)


def test_the_largest_exponents_alone_are_the_same():
    step = rk4_map(lorenz, 0.02)
    whole = lyapunov_spectrum(step, starts(4) + 5, 300, transient=200)
    leading = lyapunov_spectrum(step, starts(4) + 5, 300, transient=200, n_exponents=2)
    np.testing.assert_allclose(leading.exponents, whole.exponents[:2], atol=1e-9)
    assert np.isnan(leading.dimension) == (leading.exponents.sum() >= 0)


def test_start_and_parameters_are_left_as_they_are():
    weight = torch.nn.Parameter(0.5 * torch.eye(3))  # float32, as networks are
    start = starts(2)
    before = start.clone()
    found = lyapunov_spectrum(lambda s, u: s.to(weight.dtype) @ weight, start, 20)
    np.testing.assert_allclose(found.exponents, np.log(0.5), atol=1e-6)
    assert torch.equal(start, before)
    assert weight.requires_grad
    assert weight.grad is None
    again = lyapunov_spectrum(lambda s, u: s.to(weight.dtype) @ weight, start, 20)
    np.testing.assert_array_equal(found.exponents, again.exponents)


def test_a_network_of_ctdb(one_thread):
    from ctdb.networks.gru import GRU

    network = GRU(GRU.Settings(kind="gru", hidden_size=6), 2, 1)
    with torch.no_grad():
        for weight in network.cell.parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    found = lyapunov_spectrum(network.double().step, torch.zeros(2, 6), 200, torch.zeros(2), transient=50)
    assert found.exponents[0] == pytest.approx(
        np.log(0.5), abs=0.2
    )  # half of the state is kept where weights are small
    assert found.dimension == 0


def test_kaplan_yorke():
    assert kaplan_yorke(np.array([0.9, 0.0, -14.5])) == pytest.approx(2 + 0.9 / 14.5)
    assert kaplan_yorke(np.array([-0.1, -0.2])) == 0
    assert kaplan_yorke(np.array([0.2, 0.1])) == 2
    assert kaplan_yorke(np.array([0.0, -1.0])) == 1
    assert np.isnan(kaplan_yorke(np.array([0.2, 0.1]), 5))
    assert kaplan_yorke(np.array([0.2, -0.5]), 5) == pytest.approx(1.4)


def test_errors():
    step = linear(2 * np.eye(3))
    with pytest.raises(MetricError, match="runs away"):
        lyapunov_spectrum(linear(1e3 * np.eye(3)), starts(1), 300)
    with pytest.raises(MetricError, match="blocks"):
        lyapunov_spectrum(step, starts(1), 5)
    with pytest.raises(MetricError, match="n_exponents"):
        lyapunov_spectrum(step, starts(1), 20, n_exponents=4)
    with pytest.raises(MetricError, match=r"\(20, inputs\)"):
        lyapunov_spectrum(step, starts(1), 20, torch.zeros(19, 2))
