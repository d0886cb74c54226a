"""Where searches start."""

import torch
from systems import draw

from ctdb.dynamics.starts import descended, hull, midpoints, noisy


def generator():
    return torch.Generator().manual_seed(0)


def test_hull_starts_are_states_and_lie_between_two_or_three():
    corners = torch.eye(50, dtype=torch.float64)  # the coordinates of a start are then its weights
    starts, parents = hull(corners, 400, generator())
    torch.testing.assert_close(starts.sum(1), torch.ones(400, dtype=torch.float64))
    assert (starts >= 0).all()
    assert (starts[torch.arange(400), parents] > 0).all()
    n_corners = (starts > 0).sum(1).bincount(minlength=4)
    assert 80 <= n_corners[1] <= 120  # some pairs and triples draw a state twice
    assert 180 <= n_corners[2] <= 220
    assert 80 <= n_corners[3] <= 105
    weights = starts[(starts > 0).sum(1) == 2]
    assert abs(float((weights.amax(1) - 0.75).mean())) < 0.05  # uniform between the two


def test_noise_is_as_wide_as_the_states_along_each_direction():
    scales = torch.tensor([10.0, 1.0, 0.1], dtype=torch.float64)
    states = draw(2000, 3) * scales
    starts, parents = noisy(states, 4000, generator())
    torch.testing.assert_close((starts - states[parents]).std(0), 0.5 * scales, rtol=0.1, atol=0)


def test_descent_goes_to_a_saddle_that_is_near():
    start = torch.tensor([[0.05, 0.4]], dtype=torch.float64)
    end = descended(lambda x, u: x * torch.tensor([1.5, 0.5]), start, torch.zeros(1, 0))
    assert end.norm() < 0.05
    assert not end.requires_grad


def test_midpoints_lie_in_the_largest_holes_and_are_tried_once():
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0]], dtype=torch.float64)
    tried: set[tuple[int, int]] = set()
    first, parents = midpoints(x, torch.zeros(4, 0), tried, 2)
    assert first[:, 0].tolist() == [6.0, 5.5]
    assert parents.tolist() == [2, 1]
    assert tried == {(2, 3), (1, 3)}
    rest, _ = midpoints(x, torch.zeros(4, 0), tried, 99)
    assert sorted(rest[:, 0].tolist()) == [0.5, 1.0, 1.5, 5.0]
    assert len(midpoints(x, torch.zeros(4, 0), tried, 99)[0]) == 0


def test_points_under_different_inputs_have_no_midpoint():
    x, input = draw(4, 2), torch.tensor([[0.0], [0.0], [1.0], [2.0]], dtype=torch.float64)
    between, _ = midpoints(x, input, set(), 99)
    torch.testing.assert_close(between, (x[:1] + x[1:2]) / 2)
