"""Points and orders from distances."""

import numpy as np
import pytest

from ctdb.dynamics.embedding import classical_mds, cluster_order
from ctdb.errors import MetricError


def distances_of(points):
    gaps = np.linalg.norm(points[:, None] - points, axis=2)
    return (gaps + gaps.T) / 2 * (1 - np.eye(len(points)))


def test_points_have_the_distances():
    points = np.random.default_rng(0).normal(size=(7, 2))
    found = classical_mds(distances_of(points))
    np.testing.assert_allclose(distances_of(found), distances_of(points), atol=1e-9)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-9)
    assert found[:, 0].var() >= found[:, 1].var()


def test_more_dimensions_than_there_are_stay_empty():
    found = classical_mds(distances_of(np.array([[0.0], [1.0]])), 3)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(np.abs(found[:, 0]), 0.5)
    np.testing.assert_allclose(found[:, 1:], 0, atol=1e-9)


def test_neighbours_on_a_line_are_neighbours_in_the_order():
    place = np.array([3.0, 0.0, 9.0, 1.0, 8.0, 3.5])
    order = place[cluster_order(distances_of(place[:, None]))]
    assert (np.diff(order) > 0).all() or (np.diff(order) < 0).all()
    assert cluster_order(np.zeros((1, 1))).tolist() == [0]


@pytest.mark.parametrize("function", [classical_mds, cluster_order])
def test_errors(function):
    for wrong in (np.ones((2, 2)), np.array([[0.0, 1.0], [2.0, 0.0]]), np.zeros((2, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(MetricError, match="symmetric"):
            function(wrong)
