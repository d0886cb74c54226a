"""Fixed points of systems with known answers and of bad input."""

import itertools

import numpy as np
import pytest
import torch
from systems import (
    D,
    coordinates,
    cubic,
    draw,
    flip_flop,
    flip_flop_slope,
    hopf,
    line,
    place,
    ring,
    rotated,
    saddle_node,
    visited,
)

from ctdb.dynamics import FixedPoints, Status, find_fixed_points
from ctdb.dynamics.known import EXACT
from ctdb.errors import DynamicsError


def corners(n_bits, n_states=200, noise=0.1):
    """States about the stable points of a product of flip-flops."""
    bits = torch.randint(2, (n_states, n_bits), generator=torch.Generator().manual_seed(3)).double()
    return place(bits) + noise * visited(n_states)


# --- linear maps


@pytest.mark.parametrize(
    ("eigenvalues", "index", "kind"),
    [
        ([0.9, 0.5, -0.3], 0, "stable node"),
        ([1.2, 0.5, -0.3], 1, "saddle node"),
        ([1.2, -1.1, 0.3], 2, "saddle node"),
        ([1.2, -1.1, 1.3], 3, "unstable node"),
    ],
)
def test_linear_map_has_its_one_fixed_point(eigenvalues, index, kind):
    basis, offset = draw(3, 3), draw(3, seed=1)
    matrix = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ torch.linalg.inv(basis)
    where = torch.linalg.solve(torch.eye(3) - matrix, offset)
    points = find_fixed_points(lambda x, u: x @ matrix.T + offset, where + 2 * draw(50, 3, seed=2))
    assert len(points) == 1
    torch.testing.assert_close(points.x[0], where, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(points.jacobian[0], matrix, rtol=1e-12, atol=1e-14)
    ordered = sorted(eigenvalues, key=abs, reverse=True)
    np.testing.assert_allclose(points.eigenvalues[0].numpy(), ordered, atol=1e-12)
    assert points.index.tolist() == [index]
    assert points.stable.tolist() == [index == 0]
    assert points.kind == [kind]
    assert points.n_starts.sum() == len(points.start_status) >= 160


def test_rotation_has_its_time_constant_and_frequency():
    size, angle, bin_s = 0.95, 0.3, 0.02
    turn = size * torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = find_fixed_points(lambda x, u: x @ turn.T, draw(20, 2), bin_s=bin_s)
    np.testing.assert_allclose(points.time_constants[0], -bin_s / np.log(size), rtol=1e-10)
    np.testing.assert_allclose(points.frequencies[0], angle / (2 * np.pi * bin_s), rtol=1e-10)
    assert points.kind == ["stable focus"]


def test_growing_modes_have_negative_time_constants():
    points = find_fixed_points(lambda x, u: 1.1 * x, draw(20, 2), bin_s=1.0)
    np.testing.assert_allclose(points.time_constants[0], -1 / np.log(1.1), rtol=1e-10)


def test_times_need_the_duration_of_a_bin():
    points = find_fixed_points(lambda x, u: 0.5 * x, draw(20, 2))
    with pytest.raises(DynamicsError, match="bin_s"):
        _ = points.time_constants


def test_constant_input_moves_the_point_and_is_recorded():
    gain = draw(3, 2)
    points = find_fixed_points(lambda x, u: 0.5 * x + u @ gain.T, draw(40, 3, seed=1), np.array([0.3, -0.2]))
    expected = 2 * gain @ torch.tensor([0.3, -0.2], dtype=torch.float64)
    torch.testing.assert_close(points.x[0], expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(points.input_jacobian[0], gain)
    assert points.input[0].tolist() == [0.3, -0.2]


def test_points_under_different_inputs_are_different_points():
    states = draw(40, 3)
    inputs = torch.zeros(40, 1)
    inputs[20:] = 1e-9
    points = find_fixed_points(lambda x, u: 0.5 * x + u, states, inputs)
    assert len(points) == 2
    assert sorted(points.input[:, 0].tolist()) == [0, np.float32(1e-9)]
    assert points.n_starts.min() > 30


# --- flip-flops


@pytest.mark.parametrize("n_bits", [1, 2, 3])
def test_product_of_flip_flops_has_all_its_points_with_exact_eigenvalues(n_bits):
    points = find_fixed_points(rotated(flip_flop, n_bits), corners(n_bits))
    truth = torch.tensor(list(itertools.product([0, 0.5, 1], repeat=n_bits)), dtype=torch.float64)
    assert len(points) == len(truth)
    found = coordinates(points.x)
    distance = torch.cdist(truth, found[:, :n_bits], compute_mode=EXACT)
    assert distance.min(1)[0].max() < 1e-8
    assert found[:, n_bits:].abs().max() < 1e-10
    match = distance.argmin(1)
    assert sorted(match.tolist()) == list(range(len(truth)))
    assert torch.equal(points.index[match], (truth == 0.5).sum(1))
    expected = torch.cat([flip_flop_slope(truth), truth.new_full((len(truth), D - n_bits), 0.8)], 1)
    torch.testing.assert_close(points.eigenvalues[match].real, expected.sort(1, descending=True)[0], rtol=0, atol=1e-8)
    assert points.eigenvalues.imag.abs().max() < 1e-8
    assert points.residual.max() < 1e-13
    assert points.index.tolist() == sorted(points.index.tolist())


def test_discovery_counts_points_against_starts():
    points = find_fixed_points(rotated(flip_flop, 2), corners(2))
    assert points.discovery[0] == 1
    assert points.discovery[-1] == len(points) == 9
    assert (points.discovery.diff() >= 0).all()
    first = {int(p): at for at, p in reversed(list(enumerate(points.start_point.tolist())))}
    assert [int((points.discovery > n).nonzero()[0]) for n in range(9)] == sorted(first.values())
    assert torch.equal(points.start_point.bincount(minlength=9), points.n_starts)


def test_distance_is_that_to_the_nearest_visited_state():
    states = corners(1)
    points = find_fixed_points(rotated(flip_flop, 1), states)
    torch.testing.assert_close(points.distance, torch.cdist(points.x, states, compute_mode=EXACT).amin(1))


def test_thorough_search_adds_starts_that_lie_out_of_the_hull():
    one_well = place(torch.ones(1, 1, dtype=torch.float64)) + 0.1 * visited(200)
    usual, thorough = (find_fixed_points(rotated(flip_flop, 1), one_well, thorough=more) for more in (False, True))
    assert len(thorough.start_status) >= 2 * 160 + 160
    assert len(thorough) >= len(usual)


# --- what is no isolated point


def test_limit_cycle_has_the_unstable_focus_alone():
    points = find_fixed_points(rotated(hopf, 2), visited())
    assert len(points) == 1
    assert points.x.abs().max() < 1e-12
    assert points.index.tolist() == [2]
    assert points.kind == ["saddle focus"]
    np.testing.assert_allclose(points.eigenvalues[0, :2].numpy(), [1.1 + 0.1j, 1.1 - 0.1j], atol=1e-12)


def test_line_attractor_is_a_continuous_set_of_one_dimension():
    points = find_fixed_points(rotated(line, 1), visited())
    assert set(points.kind) == {"marginal"}
    assert not points.stable.any()
    (found,) = points.continuous_sets
    assert len(found.members) == len(points) > 50
    assert found.dimension == 1
    assert coordinates(points.x)[:, 0].abs().max() > 1.5  # starts find the line where they are near it


def test_plane_attractor_has_two_dimensions():
    (found,) = find_fixed_points(rotated(line, 2), visited()).continuous_sets
    assert found.dimension == 2


def test_ring_attractor_is_a_continuous_set_around_one_unstable_point():
    points = find_fixed_points(rotated(ring, 2), visited())
    (found,) = points.continuous_sets
    assert found.dimension == 1
    radius = coordinates(points.x)[:, :2].norm(dim=1)
    assert (radius[found.members] - 1).abs().max() < 1e-8
    rest = torch.ones(len(points), dtype=torch.bool)
    rest[found.members] = False
    assert points.index[rest].tolist() == [2]
    assert radius[rest].max() < 1e-10


def test_isolated_points_are_no_continuous_set():
    assert find_fixed_points(rotated(flip_flop, 3), corners(3)).continuous_sets == []


def test_ghost_of_a_saddle_node_is_slow_and_no_fixed_point():
    gap = 1e-3
    points = find_fixed_points(rotated(saddle_node(gap), 1), visited())
    assert len(points) == 0
    assert points.status_counts["slow"] >= 150
    assert len(points.slow) == 1
    np.testing.assert_allclose(points.slow.residual, 0.1 * gap, rtol=1e-6)
    assert points.slow.x.abs().max() < 1e-4
    assert points.slow.n_starts.sum() == points.status_counts["slow"]


def test_saddle_node_has_two_points_and_no_slow_one_between_them():
    gap = -1e-3
    points = find_fixed_points(rotated(saddle_node(gap), 1), visited())
    np.testing.assert_allclose(coordinates(points.x)[:, 0], [(-gap) ** 0.5, -((-gap) ** 0.5)], rtol=1e-8)
    assert points.kind == ["stable node", "saddle node"]
    assert len(points.slow) == 0


def test_ghost_in_one_dimension():
    states = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    points = find_fixed_points(lambda x, u: x + 0.1 * (1e-4 + x**2), states)
    assert len(points) == 0
    assert points.status_counts["slow"] == len(points.start_status)
    np.testing.assert_allclose(points.slow.residual, 1e-5, rtol=1e-6)


def test_point_without_a_linear_part_is_marginal():
    points = find_fixed_points(rotated(cubic, 1), visited())
    assert len(points) == 1
    assert points.kind == ["marginal"]
    assert points.x.norm() < 1e-3
    assert points.residual[0] < 1e-11


def test_system_without_a_fixed_point_in_reach_says_where_starts_went():
    points = find_fixed_points(lambda x, u: x * 1.5 + 100, draw(30, 2))
    assert len(points) == 0
    assert points.status_counts["out"] == len(points.start_status)
    assert points.eigenvalues.shape == (0, 2)
    assert points.kind == []
    assert points.continuous_sets == []
    assert points.discovery[-1] == 0


# --- bad and unusual input


def nan_on_one_side(x, u):
    return torch.where((x[:, :1] > 0).expand_as(x), torch.nan, 0.5 * x - 0.2)


def test_starts_at_which_the_step_is_nan_are_invalid_and_the_rest_kept():
    states = draw(40, 3)
    points = find_fixed_points(nan_on_one_side, states, starts="given")
    assert torch.equal(points.start_status[:40] == Status.INVALID, states[:, 0] > 0)
    torch.testing.assert_close(points.x, torch.full((1, 3), -0.4, dtype=torch.float64))


def test_nan_states_are_left_out_of_the_hull_and_invalid_where_given():
    states = draw(40, 3)
    states[3, 1], states[5] = torch.nan, torch.inf
    assert find_fixed_points(lambda x, u: 0.5 * x, states).status_counts["invalid"] == 0
    given = find_fixed_points(lambda x, u: 0.5 * x, states, starts="given")
    assert (given.start_status == Status.INVALID).nonzero()[:, 0].tolist() == [3, 5]
    assert len(given) == 1


def test_step_whose_jacobian_is_nan_ends_without_a_point():
    points = find_fixed_points(lambda x, u: x + 1 + 0 * (x - x).sqrt(), draw(10, 2))
    assert len(points) == 0
    assert points.status_counts["fixed"] == 0


@pytest.mark.parametrize("starts", ["hull", "given"])
def test_one_state_is_enough(starts):
    points = find_fixed_points(lambda x, u: 0.9 * x + 1, draw(1, 2), starts=starts)
    torch.testing.assert_close(points.x, torch.full((1, 2), 10.0, dtype=torch.float64))


def test_trials_of_states_and_arrays_are_taken():
    states = draw(5, 8, 2).numpy()
    assert len(find_fixed_points(lambda x, u: 0.9 * x, states)) == 1


@pytest.mark.parametrize(
    ("step", "states", "inputs", "message"),
    [
        (lambda x, u: x, torch.zeros(3), None, "expected .states, units."),
        (lambda x, u: x, torch.zeros(0, 3), None, "expected .states, units."),
        (lambda x, u: x[:, :2], draw(4, 3), None, "it must give the next state"),
        (lambda x, u: x, draw(4, 3), draw(3, 2), r"\(4, channels\)"),
        (lambda x, u: x.float(), draw(4, 3), None, "float64"),
        (lambda x, u: x, draw(4, 3) * torch.nan, None, "none of the 4 states is finite"),
    ],
)
def test_what_does_not_go_together_is_said(step, states, inputs, message):
    with pytest.raises(DynamicsError, match=message):
        find_fixed_points(step, states, inputs)


def test_unknown_way_to_start_is_an_error(shapes_unchecked):
    with pytest.raises(DynamicsError, match="'hull' or 'given'"):
        find_fixed_points(lambda x, u: x, draw(4, 3), starts="grid")


@pytest.mark.parametrize("starts", ["hull", "given"])
@pytest.mark.parametrize("thorough", [False, True])
def test_inputs_and_random_state_are_left_unchanged(starts, thorough):
    states, inputs = corners(1), draw(200, 2)
    weights = draw(2, D).requires_grad_()
    copies, random = (states.clone(), inputs.clone()), torch.get_rng_state()

    def step(x, u):
        return rotated(flip_flop, 1)(x, u) + 0 * u @ weights

    find_fixed_points(step, states, inputs, starts=starts, thorough=thorough, n_starts=32)
    assert torch.equal(states, copies[0])
    assert torch.equal(inputs, copies[1])
    assert weights.requires_grad
    assert weights.grad is None
    assert not states.requires_grad
    assert torch.equal(torch.get_rng_state(), random)


def test_same_seed_gives_the_same_bytes_and_another_seed_other_starts(tmp_path):
    step = rotated(flip_flop, 2)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(seed + 5)
        find_fixed_points(step, corners(2), seed=seed).save(tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_saved_points_come_back_and_are_saved_to_the_same_bytes(tmp_path):
    points = find_fixed_points(rotated(saddle_node(1e-3), 1), visited(), bin_s=0.01)
    for number, made in enumerate((points, find_fixed_points(rotated(flip_flop, 2), corners(2)))):
        made.save(tmp_path / f"{number}.h5")
        again = FixedPoints.load(tmp_path / f"{number}.h5")
        again.save(tmp_path / f"{number}b.h5")
        assert (tmp_path / f"{number}.h5").read_bytes() == (tmp_path / f"{number}b.h5").read_bytes()
        assert again.kind == made.kind
        assert again.bin_s == made.bin_s
        assert again.status_counts == made.status_counts
        for name in ("x", "jacobian", "input_jacobian", "eigenvalues", "n_starts", "distance", "discovery"):
            assert torch.equal(getattr(again, name), getattr(made, name))
        assert torch.equal(again.slow.x, made.slow.x)


def test_file_of_something_else_is_an_error(tmp_path, write_raw):
    with pytest.raises(DynamicsError, match="ctdb-fixed-points-1"):
        FixedPoints.load(write_raw({"x": np.zeros(3)}))


# --- eigenvectors


def test_eigenvectors_belong_to_the_eigenvalues_and_are_biorthogonal():
    matrix = 0.3 * draw(8, 8)
    points = find_fixed_points(lambda x, u: x @ matrix.T, draw(20, 8))
    right, left, values = points.right_eigenvectors[0], points.left_eigenvectors[0], points.eigenvalues[0]
    assert values.imag.abs().max() > 0.1
    assert (values.abs().diff() < 1e-12).all()
    complete = matrix.to(values.dtype)
    torch.testing.assert_close(complete @ right, right * values, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(left @ complete, values[:, None] * left, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(left @ right, torch.eye(8, dtype=values.dtype), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(right.norm(dim=0), torch.ones(8, dtype=torch.float64))


def test_jacobian_without_enough_eigenvectors_has_no_left_ones():
    block = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64)
    points = find_fixed_points(lambda x, u: x @ block.T, draw(20, 2))
    assert points.left_eigenvectors.isnan().all()
