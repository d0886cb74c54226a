"""Seeds from named axes."""

import os
import subprocess
import sys

import numpy as np
import pytest

from ctdb.seeds import derive, numpy_generator


def test_seeds_stay_what_they_are_from_version_to_version():
    assert derive("batches", 0, 3) == 2187754453142441386
    assert numpy_generator("batches", 0, 3).integers(1000, size=4).tolist() == [262, 243, 978, 982]


def test_seeds_are_the_same_in_every_process():
    code = "from ctdb.seeds import derive; print(derive('batches', 0, 3), derive('ü', -1))"
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": "5"}, capture_output=True, text=True
    )
    assert found.stdout.split() == [str(derive("batches", 0, 3)), str(derive("ü", -1))]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("batches", 0), ("batches", 1)),
        (("batches", 0), ("weights", 0)),
        (("batches", 0), (0, "batches")),
        (("batches", 1, 2), ("batches", 2, 1)),
        (("batches", 1, 2), ("batches", 12)),
        (("batches", 1), ("batches", "1")),
        (("a", "b"), ("ab",)),
        (("a", "b"), ("a, b",)),
        (("a",), ("a", 0)),
        ((), ("",)),
    ],
)
def test_every_purpose_has_its_own_seed(one, other):
    assert derive(*one) != derive(*other)


def test_seeds_fit_numpy_and_torch():
    seeds = {derive("draw", number) for number in range(1000)}
    assert len(seeds) == 1000
    assert all(isinstance(seed, int) and 0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_a_generator_repeats_its_draws():
    first, second = (numpy_generator("noise", 4).normal(size=8) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_neighbouring_seeds_share_nothing():
    draws = np.stack([numpy_generator("noise", seed).normal(size=4000) for seed in range(6)])
    between = np.corrcoef(draws)[np.triu_indices(6, 1)]
    assert np.abs(between).max() < 5 / np.sqrt(4000)


def test_no_global_state_is_touched():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    numpy_generator("noise", 0).normal(size=100)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
