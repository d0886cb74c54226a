"""The figure of scores against a swept setting, against the rows it is drawn from."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from ctdb.figures import FIGURES
from ctdb.figures.base import STYLE, make
from ctdb.figures.planned import Files, Planned
from ctdb.scores import COLUMNS

SIZES, SEEDS = [3, 8, 64], range(3)
BLUE, RED = "#0072b2", "#d55e00"


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    assert plt.get_fignums() == []


def value(size, seed, metric="rate_r2", rate=None):
    return np.log(size) / 5 + 0.01 * seed**2 * (-1) ** size - (metric != "rate_r2") / 3 - (rate == 0.1) / 4


def rows_of(metric="rate_r2", model="gru", **swept):
    """Rows of a sweep over sizes and seeds, and those of floor and ceiling."""
    blank = {
        "dataset": "some",
        "session": "",
        "kind": "k",
        "split": "test",
        "n_trials": 4,
        "status": "ok",
        "reason": "",
    }
    anchors = [blank | {"model": f"{role}_rates", "role": role, "sweep": "{}", "metric": metric, "value": at} for role, at in (("floor", 0.01), ("ceiling", 0.97))]  # fmt: skip
    fits = []
    for size in SIZES:
        point = {"latent_size": size} | swept
        label = model + "@" + ",".join(f"{key}={one}" for key, one in point.items())
        for seed in SEEDS:
            number = value(size, seed, metric, swept.get("training.learning_rate"))
            fits.append(blank | {"model": label, "role": "fit", "sweep": json.dumps(point), "metric": metric, "seed": seed, "value": number})  # fmt: skip
    return anchors + fits


@pytest.fixture
def drawn(tmp_path):
    def run(rows, show=lambda canvas: None, metrics=("rate_r2",), **options):
        path = tmp_path / "scores.csv"
        pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS).to_csv(path, index=False)
        figure = FIGURES["score_against"]
        options = {"dataset": "some", "model": "gru", "key": "latent_size", "metrics": list(metrics)} | options
        settings = figure.Settings(kind="score_against", **options)
        files = {need: str(path) for need in figure.needs(settings, Planned())}
        assert set(files) == {("scores", "some")}
        with plt.style.context(STYLE):
            canvas, table = figure.draw(settings, files)
            canvas.canvas.draw()
            seen = show(canvas)
            plt.close(canvas)
        return table, seen, (figure, settings, files)

    return run


def panels(canvas):
    """Of each panel: title, what is said by colour, and lines by what they are."""
    told = []
    for ax in canvas.axes:
        kinds = {}
        for line in ax.lines:
            marker, style = line.get_marker(), line.get_linestyle()
            name = {"o": "fits", "x": "failed"}.get(marker) or {"-": "mean", ":": "regression", "--": "anchors"}[style]
            colour = to_hex(line.get_markeredgecolor() if marker in "ox" else line.get_color())
            kinds.setdefault((name, colour), []).append(np.stack(line.get_data(), 1))
        said = {to_hex(text.get_color()): text.get_text() for text in ax.texts}
        told.append((ax.get_title(), said, kinds, ax))
    return told


def test_fits_means_and_the_regression_on_the_logarithm_are_drawn_between_the_anchors(drawn):
    table, ((title, said, kinds, ax),), _ = drawn(rows_of(), panels)
    points = np.array([[size, value(size, seed)] for size in SIZES for seed in SEEDS])
    line = scipy.stats.linregress(np.log10(points[:, 0]), points[:, 1])
    assert title == "rate R²"
    assert said == {BLUE: f"r = {line.rvalue:.2f}"}
    np.testing.assert_allclose(kinds["fits", BLUE][0], points)
    np.testing.assert_allclose(kinds["mean", BLUE][0], [[size, np.mean([value(size, seed) for seed in SEEDS])] for size in SIZES])  # fmt: skip
    ends = np.array([3, 64])
    np.testing.assert_allclose(kinds["regression", BLUE][0], np.stack([ends, line.intercept + line.slope * np.log10(ends)], 1))  # fmt: skip
    assert [ys.tolist() for ys in (one[:, 1] for one in kinds["anchors", "#999999"])] == [[0.01] * 2, [0.97] * 2]
    assert ax.get_xscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["3", "8", "64"]
    np.testing.assert_allclose(table[["latent_size", "value"]], points)
    assert table["seed"].tolist() == [0, 1, 2] * 3
    np.testing.assert_allclose(table["r"], line.rvalue)
    np.testing.assert_allclose(table["slope"], line.slope)


def test_the_regression_may_be_on_the_setting_itself(drawn):
    table, ((_, _, kinds, ax),), _ = drawn(rows_of(), panels, log_x=False)
    points = np.array([[size, value(size, seed)] for size in SIZES for seed in SEEDS])
    line = scipy.stats.linregress(*points.T)
    np.testing.assert_allclose(table["r"], line.rvalue)
    np.testing.assert_allclose(kinds["regression", BLUE][0][:, 1], line.intercept + line.slope * np.array([3, 64]))
    assert ax.get_xscale() == "linear"


def test_a_fit_without_a_score_is_a_cross_and_counted(drawn):
    rows = rows_of()
    rows[3] |= {"value": np.nan, "status": "diverged", "reason": "why"}
    rows[9] |= {"value": np.nan, "status": "undefined"}
    table, ((_, said, kinds, _),), _ = drawn(rows, panels)
    good = [(size, value(size, seed)) for size in SIZES for seed in SEEDS if (size, seed) not in ((3, 1), (64, 1))]
    r = scipy.stats.pearsonr(np.log(np.array(good)[:, 0]), np.array(good)[:, 1])[0]
    assert said == {BLUE: f"r = {r:.2f}, 7 of 9 fits"}
    assert kinds["failed", BLUE][0][:, 0].tolist() == [3, 64]
    assert len(kinds["fits", BLUE][0]) == 7
    assert kinds["mean", BLUE][0][0, 1] == pytest.approx(np.mean([value(3, 0), value(3, 2)]))
    assert len(table) == 9
    assert table["status"].tolist().count("ok") == 7


def test_settings_that_were_swept_together_have_a_colour_each(drawn):
    rows = rows_of(**{"training.learning_rate": 0.01}) + rows_of(**{"training.learning_rate": 0.1})[2:]

    def show(canvas):
        (legend,) = canvas.legends
        return panels(canvas), [text.get_text() for text in legend.get_texts()]

    table, (((_, said, kinds, _),), legend), _ = drawn(rows, show)
    for colour, rate in ((BLUE, 0.01), (RED, 0.1)):
        expected = [[size, value(size, seed, rate=rate)] for size in SIZES for seed in SEEDS]
        np.testing.assert_allclose(kinds["fits", colour][0], expected)
    assert set(said) == {BLUE, RED}
    assert legend == ["floor and ceiling", "training.learning_rate=0.01", "training.learning_rate=0.1"]
    assert table["others"].unique().tolist() == legend[1:]


def test_rows_of_another_sweep_model_split_session_or_dataset_are_left_out(drawn):
    other = rows_of()[2]
    more = [
        {"model": "gru", "sweep": "{}"},
        {"model": "gru@dropout=0.5", "sweep": '{"dropout": 0.5}'},
        {"model": "gruu@latent_size=3"},
        {"split": "valid"},
        {"session": "monday"},
        {"dataset": "other"},
        {"metric": "cka"},
    ]
    table, _, _ = drawn(rows_of() + [other | change | {"value": 9.0} for change in more])
    assert len(table) == 9
    assert table["value"].max() < 1


def test_each_metric_has_a_panel_and_one_that_was_not_made_says_so(drawn):
    def show(canvas):
        return [(title, list(said.values())) for title, said, *_ in panels(canvas)]

    metrics = ["cycle_consistency", "rate_r2", "flow_field_r2", "cka", "cca"]
    table, seen, _ = drawn(rows_of() + rows_of("cycle_consistency"), show, metrics)
    assert [title for title, _ in seen] == ["cycle consistency", "rate R²", "flow field R²", "CKA", "CCA"]
    assert [said for _, said in seen[2:]] == [["no scores"]] * 3
    assert table.groupby("metric").size().to_dict() == {"cycle_consistency": 9, "rate_r2": 9}
    cycle = table[table["metric"] == "cycle_consistency"]
    np.testing.assert_allclose(cycle["value"], [value(size, seed, "cycle") for size in SIZES for seed in SEEDS])


@pytest.mark.parametrize("kept", [[2, 5], [2, 3, 4]])
def test_two_fits_or_one_value_have_no_regression(drawn, kept):
    rows = rows_of()
    table, ((_, said, kinds, _),), _ = drawn([*rows[:2], *(rows[k] for k in kept)], panels)
    assert table["r"].isna().all()
    assert said == {BLUE: ""}
    assert ("regression", BLUE) not in kinds


def test_all_fits_failed_or_none_is_drawn_too(drawn):
    failed = [row | ({"value": np.nan, "status": "diverged"} if row["role"] == "fit" else {}) for row in rows_of()]
    _, ((_, said, kinds, _),), _ = drawn(failed, panels)
    assert said == {BLUE: "0 of 9 fits"}
    assert len(kinds["failed", BLUE][0]) == 9
    table, ((_, said, _, _),), _ = drawn(rows_of()[:2], panels)
    assert list(said.values()) == ["no scores"]
    assert table.empty


def test_the_same_bytes_twice(drawn, tmp_path):
    _, _, (figure, settings, files) = drawn(rows_of())
    for name in ("first", "second"):
        make(figure, settings, Files(files), tmp_path / name)
    for suffix in ("pdf", "png", "csv"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()
