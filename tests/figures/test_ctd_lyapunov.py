"""The figure of Lyapunov exponents, against their known values, a finite difference and an ODE solver."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from scipy.integrate import solve_ivp

from ctdb.figures import FIGURES
from ctdb.figures.base import STYLE, make
from ctdb.figures.ctd_lyapunov import SYSTEMS
from ctdb.figures.planned import Files, Planned
from ctdb.figures.published import published

FIGURE = FIGURES["ctd_lyapunov"]


def lorenz(t, state):
    x, y, z = state
    return [10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z]


def rossler(t, state):
    x, y, z = state
    return [-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)]


ODES = {"lorenz": lorenz, "rossler": rossler}


@pytest.fixture(scope="module")
def drawn():
    settings = FIGURE.Settings(kind="ctd_lyapunov", n_trajectories=24)
    with plt.style.context(STYLE):
        canvas, table = FIGURE.draw(settings, {})
        canvas.canvas.draw()
        lines = [{line.get_label(): np.stack(line.get_data(), 1) for line in ax.lines} for ax in canvas.axes]
        diamonds = [[line.get_xydata() for line in ax.lines if line.get_marker() == "D"] for ax in canvas.axes]
        plt.close(canvas)
    return table, lines, diamonds, settings


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_bin_is_that_of_the_ode_and_its_jacobian_a_finite_difference(name):
    system, state = SYSTEMS[name], torch.tensor([[1.5, -2.0, 4.0], [0.3, 5.0, 11.0]], dtype=torch.float64)
    nothing = torch.zeros(2, 0)
    after = system.step(state, nothing).numpy()
    for one, expected in zip(state.numpy(), after, strict=True):
        found = solve_ivp(ODES[name], (0, system.dt), one, rtol=1e-10, atol=1e-12).y[:, -1]
        np.testing.assert_allclose(expected, found, rtol=2e-3)
    slopes = system.jacobian(state, nothing).numpy()
    for axis in range(3):
        aside = torch.zeros(3, dtype=torch.float64)
        aside[axis] = 1e-6
        difference = (system.step(state + aside, nothing) - system.step(state - aside, nothing)).numpy() / 2e-6
        np.testing.assert_allclose(slopes[:, :, axis], difference, atol=1e-7)


def test_exponents_are_the_known_ones_and_stand_beside_the_published(drawn):
    table, _, diamonds, _ = drawn
    rows = table[table["panel"] == "exponents"]
    # Sprott (2003), Chaos and time-series analysis, appendix A
    known = {"lorenz": [0.906, 0.0, -14.572], "rossler": [0.0714, 0.0, -5.394]}
    for name, values in known.items():
        ours = rows[rows["series"] == name]
        np.testing.assert_allclose(ours["ours"], values, atol=0.03)
        theirs = published("ctd_lyapunov").query("series == @name")["value"].tolist()
        np.testing.assert_allclose(ours["published"], theirs)
        np.testing.assert_allclose(ours["difference"], ours["ours"] - ours["published"])
    shown = [np.concatenate(one)[:, 1].tolist() for one in diamonds if one]
    assert shown == [[0.91, -0.01, -14.56], [0.07, 0.01, -5.48]]


def test_each_trajectory_is_a_point_and_their_mean_is_ours(drawn):
    table, lines, _, _ = drawn
    each = table[table["panel"] == "of trajectories"]
    assert each.groupby("series")["trajectory"].nunique().to_dict() == {"lorenz": 24, "rossler": 24}
    mean = each.groupby(["series", "x"], sort=False)["value"].mean().to_numpy()
    np.testing.assert_allclose(mean, table.loc[table["panel"] == "exponents", "ours"])
    np.testing.assert_allclose(sorted(np.concatenate([[v for line in lines[i].values() for v in line[:, 1] if len(line) == 72] for i in (1, 3)])), sorted(each["value"]))  # fmt: skip


@pytest.fixture
def short(monkeypatch):
    """The systems, for so short that numbers mean nothing."""
    for name, system in SYSTEMS.items():
        monkeypatch.setitem(SYSTEMS, name, replace(system, transient=2.0, duration=6.0))
    monkeypatch.setattr("ctdb.figures.ctd_lyapunov.TURNS", dict.fromkeys(SYSTEMS, 3.0))
    return FIGURE.Settings(kind="ctd_lyapunov", n_trajectories=3)


def test_what_is_said_and_reproduced_comes_from_the_computation(drawn, short):
    said = FIGURE.findings(drawn[3], drawn[0])
    assert said.startswith("Lorenz: 0.9")
    assert "(published 0.07, 0.01, -5.48)" in said
    assert "-0.00" not in said
    _, table = FIGURE.draw(short, {})
    plt.close("all")
    rows = table[table["panel"] == "exponents"].reset_index(drop=True)
    np.testing.assert_array_equal(FIGURE.reproduction(short, {})["ours"], rows["ours"])
    _, again = FIGURE.draw(short.model_copy(update={"seed": 1}), {})
    plt.close("all")
    assert (again.loc[again["panel"] == "exponents", "ours"] != rows["ours"]).all()


def test_it_needs_nothing_and_has_the_same_bytes_twice(short, tmp_path):
    assert FIGURE.needs(short, Planned()) == []
    for name in ("first", "second"):
        make(FIGURE, short, Files({}), tmp_path / name)
    for suffix in ("pdf", "png", "csv", "txt"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()
