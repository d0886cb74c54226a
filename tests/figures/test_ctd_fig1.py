"""The figure of the analytic flip-flop, against an ODE solver, the roots of its polynomial and scikit-learn."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from ctdb.figures import FIGURES
from ctdb.figures.base import STYLE, make
from ctdb.figures.planned import Files, Planned

MODELS = ["underfitting", "invented features", "misattribution"]
SIGNS = np.array([[1, -1], [1, 1], [-1, 1], [-1, -1]])
FIGURE = FIGURES["ctd_fig1"]


def drawn(show=lambda canvas: None, **options):
    settings = FIGURE.Settings(kind="ctd_fig1", **options)
    with plt.style.context(STYLE):
        canvas, table = FIGURE.draw(settings, {})
        canvas.canvas.draw()
        seen = show(canvas)
        plt.close(canvas)
    return table, seen, settings


@pytest.fixture(scope="module")
def table():
    return drawn()[0]


def traces(table, system, quantity):
    """Trials by drawn bins."""
    rows = table[(table["system"] == system) & (table["quantity"] == quantity)]
    return rows.pivot(index="trial", columns="time", values="value").to_numpy()


def pulses(time, signs):
    return sum(sign * 0.475 * np.exp(-((time - at) ** 2) / (2 * 0.7**2)) for at, sign in zip((10, 60), signs, strict=True))  # fmt: skip


@pytest.mark.parametrize("speed", [1.0, 0.7])
def test_the_true_states_are_those_of_the_ode(speed):
    fine, _, _ = drawn(speed=speed, n_bins=2000)
    time = np.sort(fine["time"].dropna().unique())
    for number, signs in enumerate(SIGNS):
        np.testing.assert_allclose(traces(fine, "truth", "input")[number], pulses(time, signs), atol=1e-12)
        found = solve_ivp(
            lambda t, x, signs=signs: -speed * (2 * x - 6 * x**2 + 4 * x**3) + pulses(t, signs),
            (0, 100),
            [0.0],
            t_eval=time,
            max_step=0.2,
            rtol=1e-8,
        )
        np.testing.assert_allclose(traces(fine, "truth", "x")[number], found.y[0], atol=0.04)
    ends = traces(fine, "truth", "x")[:, -1]
    np.testing.assert_allclose(ends, [0, 1, 1, 0], atol=0.01)


def test_fixed_points_are_the_roots_of_the_fields(table):
    points = table[table["quantity"] == "fixed point"].groupby("system")
    roots = np.sort(np.roots([4, -6, 2, 0]).real)
    truth = points.get_group("truth").sort_values("x")
    np.testing.assert_allclose(truth["x"], roots, atol=1e-8)
    assert truth["stable"].tolist() == [True, False, True]
    two = points.get_group("invented features").sort_values(["x", "y"])
    np.testing.assert_allclose(two[["x", "y"]].sort_values(["x", "y"]).round(6), [[x, y] for x in roots for y in roots], atol=1e-6)  # fmt: skip
    at_corner = np.isin(two[["x", "y"]].round(3), [0.0, 1.0]).all(1)
    assert two["stable"].tolist() == at_corner.tolist()
    (misattributed,) = points.get_group("misattribution")[["x", "stable"]].values.tolist()
    assert misattributed == [pytest.approx(0, abs=1e-9), True]


def test_no_linear_system_comes_closer_to_the_true_states_than_the_one_drawn(table):
    true, given, drawn_states = (traces(table, *what) for what in (("truth", "x"), ("truth", "input"), (MODELS[0], "x")))  # fmt: skip
    dt = 0.2  # of the drawn bins

    def misfit(parameters):
        log_decay, centre, gain = parameters
        x, states = np.zeros(4), []
        for now in given.T:
            states.append(x)
            x = x + dt * (-np.exp(log_decay) * (x - centre) + gain * now)
        return (np.stack(states, 1) - true).ravel()

    best = min((least_squares(misfit, [log_decay, 0.5, 1.0]) for log_decay in (-5, -3, -1)), key=lambda found: found.cost)  # fmt: skip
    own = 0.5 * ((drawn_states - true) ** 2).sum()
    assert own == pytest.approx(best.cost, rel=0.03)
    point = table[(table["system"] == MODELS[0]) & (table["quantity"] == "fixed point")]
    assert point["x"].tolist() == [pytest.approx(best.x[1], abs=0.05)]
    assert point["stable"].tolist() == [True]


def test_scores_are_those_of_the_traces(table):
    def regressed(true, inferred):
        fitted = LinearRegression().fit(true, inferred).predict(true)
        return r2_score(inferred, fitted, multioutput="variance_weighted")

    def rates(system):
        x = traces(table, system, "x").reshape(-1, 1)
        return np.exp(np.array([-1.0, 0.5, 0.0, -0.5]) + x * np.array([2.0, -1.5, 1.0, 0.5]))

    true_x, true_input = traces(table, "truth", "x").reshape(-1, 1), traces(table, "truth", "input").reshape(-1, 1)
    for model in MODELS:
        states = traces(table, model, "x").reshape(-1, 1)
        if model == "invented features":
            states = np.column_stack([states, traces(table, model, "y").ravel()])
        expected = {
            "rate_r2": r2_score(rates("truth"), rates(model), multioutput="variance_weighted"),
            "state_r2": regressed(true_x, states),
            "input_r2": regressed(true_input, traces(table, model, "input").reshape(-1, 1)),
        }
        own = table[(table["system"] == model) & table["quantity"].isin(expected)].set_index("quantity")["value"]
        assert own.to_dict() == pytest.approx(expected, abs=0.01)


def test_each_model_is_given_away_by_its_own_score(table):
    scores = table[table["quantity"].isin(["rate_r2", "state_r2", "input_r2"])].pivot(index="system", columns="quantity", values="value")  # fmt: skip
    assert scores["rate_r2"].idxmin() == "underfitting"
    assert scores["state_r2"].idxmin() == "invented features"
    assert scores["input_r2"].idxmin() == "misattribution"
    assert (scores.loc[["invented features", "misattribution"], "rate_r2"] > 0.999).all()
    np.testing.assert_allclose(traces(table, "misattribution", "x"), traces(table, "truth", "x"), atol=1e-9)


def test_stable_points_are_filled_and_bars_are_the_scores():
    def show(canvas):
        first = canvas.axes[:4]
        bars = [[patch.get_width() for patch in ax.patches] for ax in canvas.axes[13:16]]
        points = [
            {to_hex(line.get_markerfacecolor()): len(line.get_xdata()) for line in ax.lines if line.get_marker() == "o"}
            for ax in first
        ]
        return points, bars

    table, (points, bars), settings = drawn(show)
    assert points == [{"#000000": 2, "#ffffff": 1}, {"#000000": 1, "#ffffff": 0}, {"#000000": 4, "#ffffff": 5}, {"#000000": 1, "#ffffff": 0}]  # fmt: skip
    for model, widths in zip(MODELS, bars, strict=True):
        own = table[(table["system"] == model) & table["quantity"].isin(["rate_r2", "state_r2", "input_r2"])]
        assert widths == pytest.approx(own["value"].tolist())
    said = FIGURE.findings(settings, table)
    assert "invented features: 9 fixed points, 4 stable; rate R² 1.00" in said
    assert "underfitting: 1 fixed point, 1 stable" in said


def test_it_needs_nothing_and_has_the_same_bytes_twice(tmp_path):
    settings = FIGURE.Settings(kind="ctd_fig1", n_bins=300)
    assert FIGURE.needs(settings, Planned()) == []
    for name in ("first", "second"):
        make(FIGURE, settings, Files({}), tmp_path / name)
    for suffix in ("pdf", "png", "csv", "txt"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()
