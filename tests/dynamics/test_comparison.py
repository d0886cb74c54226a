"""Fixed points of two systems against each other, where the agreement is known."""

import numpy as np
import pytest
import torch
from systems import D, draw, flip_flop, hopf, line, place, ring, rotated, visited

from ctdb.dynamics import compare_fixed_points, connections, find_fixed_points
from ctdb.dynamics.known import EXACT
from ctdb.errors import DynamicsError

N_BITS = 2
MIX, SHIFT = draw(D, 20, seed=11), draw(20, seed=12)
BACK = torch.linalg.pinv(MIX)
"""The other system has 20 units, which mix those of the first."""


def states():
    bits = torch.randint(2, (400, N_BITS), generator=torch.Generator().manual_seed(3)).double()
    return place(bits) + 0.05 * visited(400)


def mixed(step):
    """The same dynamics in other coordinates, in 20 units."""
    return lambda x, u: step((x - SHIFT) @ BACK, u) @ MIX + SHIFT


@pytest.fixture(scope="module")
def truth():
    step = rotated(flip_flop, N_BITS)
    return find_fixed_points(step, states(), bin_s=0.01), states(), step


@pytest.fixture(scope="module")
def same(truth):
    step, seen = mixed(truth[2]), states() @ MIX + SHIFT
    return find_fixed_points(step, seen, bin_s=0.01), seen, step


def compare(truth, found, **options):
    return compare_fixed_points(
        truth[0], found[0], truth[1], found[1], truth_step=truth[2], found_step=found[2], **options
    )


def test_the_same_system_in_mixed_coordinates_agrees_in_all(truth, same):
    result = compare(truth, same)
    scores = result.row()
    assert scores.pop("distance_mean") < 1e-8
    assert set(scores) == {
        "recall", "precision", "stability_agreement", "index_agreement", "time_constant_agreement", "edge_agreement",
        "alignment_r2",
    }  # fmt: skip
    for name, value in scores.items():
        assert value == pytest.approx(1, abs=1e-9), name
    assert len(result.pairs) == 9
    np.testing.assert_allclose(result.time_constant_ratio, 1, rtol=1e-6)
    moved = truth[0].x[result.pairs[:, 0]] @ MIX + SHIFT
    torch.testing.assert_close(same[0].x[result.pairs[:, 1]], moved, rtol=0, atol=1e-7)


def test_arrays_of_trials_give_the_same(truth, same):
    flat = compare(truth, same)
    trials = compare_fixed_points(
        truth[0], same[0], truth[1].reshape(20, 20, -1).numpy(), same[1].reshape(20, 20, -1).numpy()
    )
    assert trials.recall == flat.recall
    np.testing.assert_array_equal(trials.pairs, flat.pairs)
    assert np.isnan(trials.edge_agreement)


def test_points_that_are_not_found_lower_recall_and_extra_ones_precision(truth):
    slow_bit = rotated(lambda y: torch.cat([flip_flop(y[:, :1]), -(y[:, 1:] - 0.5)], 1), N_BITS)
    found = (find_fixed_points(slow_bit, states(), bin_s=0.01), states(), slow_bit)
    assert len(found[0]) == 3
    result = compare(truth, found)
    assert result.recall == pytest.approx(3 / 9)
    assert result.precision == 1
    assert result.index_agreement == 0  # the second bit is unstable there in truth
    assert result.stability_agreement == pytest.approx(1 / 3)
    reverse = compare(found, truth)
    assert reverse.recall == 1
    assert reverse.precision == pytest.approx(3 / 9)


def test_faster_dynamics_differ_in_time_constants_alone(truth):
    fast = rotated(lambda y: 3 * flip_flop(y), N_BITS)
    found = (find_fixed_points(fast, states(), bin_s=0.01), states(), fast)
    result = compare(truth, found)
    assert result.recall == result.precision == result.index_agreement == 1
    assert result.time_constant_agreement < 1
    unstable = truth[0].index[result.pairs[:, 0]].numpy() > 0
    assert (result.time_constant_ratio[unstable] < 0.5).all()


def test_bins_of_other_lengths_count_in_seconds(truth):
    slower = find_fixed_points(truth[2], truth[1], bin_s=0.02)
    result = compare_fixed_points(truth[0], slower, truth[1], truth[1])
    np.testing.assert_allclose(result.time_constant_ratio, 2, rtol=1e-6)


def test_points_off_the_visited_states_match_by_what_varied(truth):
    points, seen, _ = truth
    far = place(torch.nn.functional.pad(torch.ones(1, 1, dtype=torch.float64), (5, 0)))  # along what hardly varied
    moved = find_fixed_points(lambda x, u: truth[2](x - far, u) + far, seen + far)
    assert compare_fixed_points(points, moved, seen, seen).recall == 1
    assert compare_fixed_points(points, moved, seen, seen, variance_kept=1.0).recall == 0


def test_no_points_give_no_score_but_recall_or_precision(truth):
    runaway = find_fixed_points(lambda x, u: 1.5 * x + 100, states())
    result = compare_fixed_points(truth[0], runaway, truth[1], truth[1])
    assert result.recall == 0
    assert np.isnan([result.precision, result.distance_mean, result.index_agreement]).all()
    assert np.isnan(compare_fixed_points(runaway, truth[0], truth[1], truth[1]).recall)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t, f: (t[:-1], f), "399 true and 400 found states"),
        (lambda t, f: (t * torch.nan, f), "true states hold NaN"),
        (lambda t, f: (t, f[:, :5]), "found points have 16 units, found states 5"),
        (lambda t, f: (0 * t, f), "do not vary"),
    ],
)
def test_what_does_not_go_together_is_said(truth, spoil, message):
    with pytest.raises(DynamicsError, match=message):
        compare_fixed_points(truth[0], truth[0], *spoil(truth[1], truth[1]))


# --- connections


def test_unstable_point_of_one_bit_leads_to_both_memories():
    bits = torch.randint(2, (200, 1), generator=torch.Generator().manual_seed(3)).double()
    step = rotated(flip_flop, 1)
    points = find_fixed_points(step, place(bits) + 0.05 * visited(200))
    assert points.index.tolist() == [0, 0, 1]
    assert connections(points, step).tolist() == [[False, False, False], [False, False, False], [True, True, False]]


def test_saddles_of_two_bits_lead_to_their_two_neighbours(truth):
    points, _, step = truth
    edges = connections(points, step)
    distance = torch.cdist(points.x, points.x, compute_mode=EXACT)
    for saddle in (points.index == 1).nonzero()[:, 0].tolist():
        ends = edges[saddle].nonzero()[:, 0]
        assert len(ends) == 2
        assert points.stable[ends].all()
        torch.testing.assert_close(distance[saddle, ends], torch.full((2,), 0.5, dtype=torch.float64))
    assert not edges[points.stable].any()


def test_manifold_that_ends_on_a_cycle_or_nowhere_has_no_connection():
    for field in (hopf, lambda y: y):
        step = rotated(field, 2)
        points = find_fixed_points(step, visited())
        assert len(points) == 1
        assert not connections(points, step, max_bins=500).any()


def test_continuous_sets_can_be_compared():
    for field in (line, ring):
        step = rotated(field, 2)
        points = find_fixed_points(step, visited(), n_starts=64)
        assert compare_fixed_points(points, points, visited(), visited()).recall == 1


def test_modes_without_a_time_constant_agree_with_themselves():
    """What is forgotten at once, and what stays for good: eigenvalues 0 and 1."""
    for step in (lambda x, u: 0 * x + 1, lambda x, u: 1 * x):
        seen = visited(30)
        points = find_fixed_points(step, seen, starts="given", bin_s=0.01)
        result = compare_fixed_points(points, points, seen, seen)
        assert result.time_constant_agreement == 1


def test_runs_that_stand_still_or_leave_the_numbers_are_not_waited_for():
    def square(x, u):
        """Stable points in the corners, saddles on the edges between, to which the middle leads by symmetry."""
        calls.append(len(x))
        return torch.tanh(2 * x)

    def runaway(x, u):
        calls.append(len(x))
        return 3 * x

    calls = []
    points = find_fixed_points(
        square, 2 * torch.rand(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    )
    assert points.index.bincount().tolist() == [4, 4, 1]
    calls.clear()
    assert connections(points, square)[points.index == 1].sum(1).tolist() == [2] * 4
    assert len(calls) < 1000
    points = find_fixed_points(runaway, torch.eye(2, dtype=torch.float64) - 0.5)
    calls.clear()
    assert not connections(points, runaway).any()
    assert len(calls) < 1000
