"""Figures of dynamical similarity, and of forecasts and exponents: what is drawn, against the files it is drawn from."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from scipy.spatial.distance import pdist, squareform

from ctdb import datasets
from ctdb.figures import FIGURES
from ctdb.figures.base import STYLE, make
from ctdb.figures.planned import Files, Planned
from ctdb.files import write_hdf5

SYSTEMS = ["truth", "gru seed 0", "gru seed 1", "lds@latent_size=3 seed 0"]
WHERE = np.array([[0.0, 0.0], [1.0, 0.2], [0.9, 0.0], [3.0, -1.0]])
NULL = np.array([[0.5, 0.5, 1.1], [0.1, 0.1, 0.1], [0.1, 0.1, 0.1], [0.2, 0.3, 0.4]])
LIMIT = np.quantile(NULL, 0.95, axis=1)


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    assert plt.get_fignums() == []


def draw(kind, files, show=lambda canvas: None, **options):
    figure = FIGURES[kind]
    settings = figure.Settings(kind=kind, **options)
    assert set(map(tuple, figure.needs(settings, Planned()))) == set(files)
    with plt.style.context(STYLE):
        canvas, table = figure.draw(settings, {need: str(path) for need, path in files.items()})
        canvas.canvas.draw()
        seen = show(canvas)
        plt.close(canvas)
    return table, seen


# ------------------------------------------------------------------------------------------------------------------ DSA


@pytest.fixture
def compared(tmp_path):
    """Write distances between systems, which are squared lengths on a map; the files of the figure."""

    def write(names=SYSTEMS, where=WHERE, null=NULL, floor=4.0, metric="wasserstein", order=None):
        distances = squareform(pdist(where, "sqeuclidean")) if len(where) else np.zeros((0, 0))
        arrays = {"distances": distances, "null": null, "points": where, "n_channels": np.full(len(names), 3)}
        arrays["order"] = np.arange(len(names))[::-1] if order is None else order
        arrays |= {} if floor is None else {"floor": np.array([floor])}
        facts = {"format": "ctdb-dsa-1", "names": names, "metric": metric, "n_delays": 5, "rank": 7}
        write_hdf5(tmp_path / "dsa.h5", arrays, facts)
        return {("dsa", "some"): tmp_path / "dsa.h5"}

    return write


def matrix(canvas):
    """Heat map, its names, frames (row, column), texts; the map's legend and points; the lines in the colour bar."""
    ax, other, *bars = canvas.axes
    frames = {(round(p.get_y() + 0.46), round(p.get_x() + 0.46)) for p in ax.patches}
    points = {line.get_label(): (np.stack(line.get_data(), 1), line.get_marker()) for line in other.lines}
    bar = bars[0]
    lines = {text.get_text(): line.get_ydata()[0] for text, line in zip(bar.texts, bar.lines, strict=True)}
    return {
        "image": np.asarray(ax.images[0].get_array()),
        "names": [label.get_text() for label in ax.get_yticklabels()],
        "below": [label.get_text() for label in ax.get_xticklabels()],
        "frames": frames,
        "texts": [text.get_text() for text in ax.texts],
        "points": points,
        "lines": lines,
        "title": canvas.get_suptitle(),
        "boxes": (ax.get_position(), other.get_position()),
        "unit": other.get_xlabel(),
    }


def test_distances_are_drawn_in_the_order_of_clusters_and_tabulated_by_pair(compared):
    order = np.array([2, 0, 3, 1])
    files = compared(order=order)
    table, seen = draw("dsa", files, matrix, dataset="some")
    distances = squareform(pdist(WHERE, "sqeuclidean"))
    np.testing.assert_allclose(seen["image"], distances[np.ix_(order, order)])
    assert seen["names"] == seen["below"] == [SYSTEMS[i] for i in order]
    assert seen["texts"] == [f"{distances[i, j]:.2g}" for i in order for j in order if i != j]
    assert len(table) == 6
    assert table[["first", "second"]].values.tolist()[0] == ["truth", "gru seed 0"]
    for row in table.itertuples():
        i, j = SYSTEMS.index(row.first), SYSTEMS.index(row.second)
        assert row.distance == pytest.approx(distances[i, j])
        assert row.different == (distances[i, j] > max(LIMIT[i], LIMIT[j]))
    assert set(table["different"]) == {True, False}
    assert table[["metric", "n_delays", "rank"]].drop_duplicates().values.tolist() == [["wasserstein", 5, 7]]
    assert seen["title"] == "some: dynamical similarity, wasserstein, 5 delays, rank 7"


def test_pairs_as_near_as_halves_of_one_system_are_framed(compared):
    _, seen = draw("dsa", compared(), matrix, dataset="some")
    names, expected = seen["names"], set()
    distances = squareform(pdist(WHERE, "sqeuclidean"))
    for row, first in enumerate(names):
        for column, second in enumerate(names):
            i, j = SYSTEMS.index(first), SYSTEMS.index(second)
            if i != j and distances[i, j] <= max(LIMIT[i], LIMIT[j]):
                expected.add((row, column))
    assert seen["frames"] == expected
    assert 0 < len(expected) < 12


def test_the_colour_bar_has_the_null_of_the_truth_and_no_dynamics(compared):
    _, seen = draw("dsa", compared(), matrix, dataset="some")
    assert seen["lines"] == {"no dynamics": 4.0, "null of truth": pytest.approx(LIMIT[0])}
    _, seen = draw("dsa", compared(null=np.zeros((4, 0))), matrix, dataset="some")
    assert seen["lines"] == {"no dynamics": 4.0}


def test_the_map_has_a_star_for_the_truth_and_one_marker_for_the_seeds_of_a_model(compared):
    _, seen = draw("dsa", compared(), matrix, dataset="some")
    assert set(seen["points"]) == {"truth", "gru", "lds@latent_size=3"}
    for name, rows in (("truth", [0]), ("gru", [1, 2]), ("lds@latent_size=3", [3])):
        np.testing.assert_allclose(seen["points"][name][0], WHERE[rows])
    assert seen["points"]["truth"][1] == "*"
    assert "square root" in seen["unit"]
    _, seen = draw("dsa", compared(metric="angular"), matrix, dataset="some")
    assert seen["unit"] == "dimension 1 (distance)"


def test_without_a_null_nothing_is_said_to_be_alike(compared):
    table, seen = draw("dsa", compared(null=np.zeros((4, 0))), matrix, dataset="some")
    assert seen["frames"] == set()
    assert table["different"].isna().all()


def test_without_a_truth_fits_are_compared_alone(compared):
    table, seen = draw("dsa", compared(SYSTEMS[1:], WHERE[1:], NULL[1:], floor=None), matrix, dataset="some")
    assert len(table) == 3
    assert set(seen["points"]) == {"gru", "lds@latent_size=3"}
    assert seen["lines"] == {}


def test_some_models_are_drawn_beside_the_truth(compared):
    table, seen = draw("dsa", compared(), matrix, dataset="some", models=["gru"])
    assert seen["names"] == ["gru seed 1", "gru seed 0", "truth"]
    distances = squareform(pdist(WHERE, "sqeuclidean"))
    np.testing.assert_allclose(seen["image"], distances[np.ix_([2, 1, 0], [2, 1, 0])])
    assert len(table) == 3
    assert set(seen["points"]) == {"truth", "gru"}


def test_many_systems_are_drawn_above_their_map_with_their_names_at_the_left(compared):
    names = ["truth", *(f"gru@latent_size={k // 2} seed {k % 2}" for k in range(24))]
    where = np.random.default_rng(0).normal(size=(25, 2))
    _, seen = draw("dsa", compared(names, where, np.ones((25, 3))), matrix, dataset="some")
    assert sorted(seen["names"]) == sorted(names)
    assert seen["below"] == []
    assert seen["texts"] == []
    above, below = seen["boxes"]
    assert below.y1 < above.y0
    assert len(seen["points"]) == 13


def test_a_dataset_without_a_comparison_says_so(compared):
    files = compared([], np.zeros((0, 2)), np.zeros((0, 3)), floor=None)
    table, seen = draw("dsa", files, lambda canvas: [text.get_text() for text in canvas.texts], dataset="some")
    assert not len(table)
    assert "no system could be compared" in seen[0]


def test_a_single_system_is_drawn(compared):
    table, seen = draw("dsa", compared(["gru seed 0"], WHERE[:1], NULL[:1], floor=None), matrix, dataset="some")
    assert seen["names"] == ["gru seed 0"]
    assert table.empty


# ------------------------------------------------------------------------------------------------------------ forecasts


def facts(seed, n_exponents=4, horizon=5):
    rng = np.random.default_rng(seed)
    return {
        "forecast_error": rng.gamma(2, 0.1, horizon),
        "forecast_persistence": np.linspace(0.3, 1.2, horizon),
        "lyapunov": -np.sort(rng.gamma(2, 2, n_exponents)),
        "lyapunov_error": rng.gamma(2, 0.05, n_exponents),
    }


@pytest.fixture
def analysed(make_dataset, tmp_path):
    """Write the dynamics of a truth and of fits (or the status of one that failed); the files of the figure."""

    def write(truth, fits):
        datasets.write(tmp_path / "some.h5", make_dataset(latents=2, bin_s=0.02))
        write_hdf5(tmp_path / "true.h5", truth, {"status": "ok"})
        files = {("dataset", "some"): tmp_path / "some.h5", ("dynamics", "some"): tmp_path / "true.h5"}
        for model, own in fits.items():
            status, own = (own, {}) if isinstance(own, str) else ("ok", own)
            write_hdf5(tmp_path / f"{model}_dynamics.h5", own, {"status": status})
            write_hdf5(tmp_path / f"{model}.h5", {}, {"status": status})
            files["dynamics", "some", model, 2] = tmp_path / f"{model}_dynamics.h5"
            files["fit", "some", model, 2] = tmp_path / f"{model}.h5"
        return files

    return write


def curves(canvas):
    """Per panel: lines by colour and style; what panels say; labels of the legend with their colour."""
    left, right = canvas.axes
    lines = []
    for ax in (left, right):
        shown = [line for line in ax.lines if len(line.get_xdata()) > 2]
        lines.append(
            {
                (to_hex(line.get_color()), line.get_linestyle()): np.stack(line.get_data(), 1).astype(float)
                for line in shown
            }
        )
    bars = [segment for group in right.collections for segment in group.get_segments()]
    (legend,) = canvas.legends
    labels = {text.get_text(): (to_hex(line.get_color()), line.get_linestyle()) for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}  # fmt: skip
    return lines, [[text.get_text() for text in ax.texts] for ax in canvas.axes], labels, bars, left.get_ylim()


def test_forecasts_and_exponents_are_those_of_the_files(analysed):
    truth, gru, lds = facts(0), facts(1), facts(2, 3)
    table, seen = draw("forecasts", analysed(truth, {"gru": gru, "lds": lds}), curves, dataset="some", models=["gru", "lds"], seed=2)  # fmt: skip
    (errors, exponents), _, labels, bars, _ = seen
    seconds = 0.02 * np.arange(1, 6)
    for name, own in (("truth", truth), ("gru", gru), ("lds", lds)):
        np.testing.assert_allclose(errors[labels[name]], np.stack([seconds, own["forecast_error"]], 1))
        numbers = np.arange(1, len(own["lyapunov"]) + 1)
        np.testing.assert_allclose(exponents[labels[name]], np.stack([numbers, own["lyapunov"]], 1))
        rows = table[(table["source"] == name) & (table["panel"] == "forecast")]
        np.testing.assert_allclose(rows[["horizon_s", "error"]], np.stack([seconds, own["forecast_error"]], 1))
        rows = table[(table["source"] == name) & (table["panel"] == "lyapunov")]
        expected = np.stack([numbers, own["lyapunov"], own["lyapunov_error"]], 1)
        np.testing.assert_allclose(rows[["number", "per_second", "standard_error"]].astype(float), expected)
    np.testing.assert_allclose(errors[labels["no change"]][:, 1], truth["forecast_persistence"])
    assert set(table["source"]) == {"truth", "gru", "lds", "no change"}
    heights = np.concatenate([own["lyapunov_error"] for own in (truth, gru, lds)])
    np.testing.assert_allclose([np.ptp(bar[:, 1]) for bar in bars], 2 * heights)
    assert len({tuple(style) for style in labels.values()}) == len(labels) == 5


def test_a_system_that_is_not_known_has_no_curve_and_persistence_comes_from_a_fit(analysed):
    table, seen = draw("forecasts", analysed({}, {"gru": facts(1)}), curves, dataset="some", models=["gru"], seed=2)
    (errors, _), _, labels, _, _ = seen
    assert set(labels) == {"truth (none)", "gru", "no change", "mean state; no growth"}
    np.testing.assert_allclose(errors[labels["no change"]][:, 1], facts(1)["forecast_persistence"])
    assert set(table["source"]) == {"gru", "no change"}


def test_a_fit_that_failed_is_named_so(analysed):
    files = analysed(facts(0), {"gru": "diverged", "lds": {}})
    _, (_, _, labels, _, _) = draw("forecasts", files, curves, dataset="some", models=["gru", "lds"], seed=2)
    assert set(labels) == {"truth", "gru (diverged)", "lds (none)", "no change", "mean state; no growth"}


def test_an_analysis_that_was_left_out_is_said_to_be(analysed):
    names = [name for name in facts(0) if name.startswith("lyapunov")]
    without = [{name: value for name, value in facts(k).items() if name not in names} for k in range(2)]
    _, (_, texts, _, _, _) = draw("forecasts", analysed(without[0], {"gru": without[1]}), curves, dataset="some", models=["gru"], seed=2)  # fmt: skip
    assert texts == [[], ["no lyapunov"]]
    table, (_, texts, _, _, _) = draw("forecasts", analysed({}, {"gru": {}}), curves, dataset="some", models=["gru"], seed=2)  # fmt: skip
    assert texts == [["no forecast"], ["no lyapunov"]]
    assert table.empty


def test_a_run_that_leaves_all_true_states_does_not_flatten_the_others(analysed):
    wild = facts(1) | {"forecast_error": np.array([0.1, 1.0, 1e3, 1e6, np.inf])}
    *_, limits = draw("forecasts", analysed(facts(0), {"gru": wild}), curves, dataset="some", models=["gru"], seed=2)[1]
    assert limits[1] == 10
    *_, limits = draw("forecasts", analysed(facts(0), {"gru": facts(1)}), curves, dataset="some", models=["gru"], seed=2)[1]  # fmt: skip
    assert 1.2 < limits[1] < 2


@pytest.mark.parametrize("kind", ["dsa", "forecasts"])
def test_the_same_bytes_twice(kind, compared, analysed, tmp_path):
    files = compared() if kind == "dsa" else analysed(facts(0), {"gru": facts(1)})
    options = {} if kind == "dsa" else {"models": ["gru"], "seed": 2}
    figure = FIGURES[kind]
    settings = figure.Settings(kind=kind, dataset="some", **options)
    for name in ("first", "second"):
        make(figure, settings, Files({need: str(path) for need, path in files.items()}), tmp_path / name)
    for suffix in ("pdf", "png", "csv"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()
    assert len(pd.read_csv(tmp_path / "first.csv")) == (6 if kind == "dsa" else 23)
