"""The grid of scores against sizes: means, ranges, anchors and published values, against the rows behind them."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from ctdb.errors import MissingError
from ctdb.figures import FIGURES
from ctdb.figures.base import make
from ctdb.figures.planned import Files, Planned
from ctdb.figures.published import published
from swept import anchor_rows, draw, fit_rows, marked, write

METRICS = ["rate_r2", "lyapunov_max"]
SIZES = [3, 8, 64]
TRUTH = -2.0
ANCHORS = {"rate_r2": (0.0, 0.98), "lyapunov_max": (np.nan, TRUTH)}
SWEEPS = [{"dataset": "some", "model": "node", "series": "nbff_node"}, {"dataset": "some", "model": "gru"}, {"dataset": "other", "model": "lfads", "key": "gen_dim"}]  # fmt: skip


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    assert plt.get_fignums() == []


def value(metric, size, seed, shift=0.0):
    rate = 0.5 + size / 200 + 0.01 * seed**2 + shift
    return rate if metric == "rate_r2" else TRUTH + (-1) ** seed * (0.1 + rate)


def values(shift=0.0, metrics=METRICS):
    return {(size, seed): {m: value(m, size, seed, shift) for m in metrics} for size in SIZES for seed in range(3)}


@pytest.fixture
def files(tmp_path):
    def written(some=None, other=None, missing=None):
        some = (
            some
            if some is not None
            else fit_rows("node", "latent_size", values()) + fit_rows("gru", "latent_size", values(0.1))
        )
        other = other if other is not None else fit_rows("lfads", "gen_dim", values(0.2), "other")
        paths = {
            ("scores", "some"): write(tmp_path / "some.csv", some + anchor_rows(ANCHORS)),
            ("scores", "other"): write(tmp_path / "other.csv", other + anchor_rows(ANCHORS, "other")),
        }
        return Files(paths, missing or {})

    return written


def grid(canvas):
    """Of each panel, by rows: means of each model with the ends of their ranges, published points, lines of anchors."""
    told = []
    for ax in canvas.axes:
        bars = [np.stack(one.get_segments())[:, :, 1] for one in ax.collections]
        lines = {line.get_linestyle(): line.get_ydata()[0] for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() == "None"}  # fmt: skip
        told.append(
            {"o": marked(ax, "o"), "s": marked(ax, "s"), "D": marked(ax, "D"), "bars": bars, "lines": lines, "ax": ax}
        )
    return told


def test_means_ranges_anchors_and_published_values_are_drawn_for_each_data_set(files):
    table, seen, *_ = draw("ctd_sweep", files(), grid, sweeps=SWEEPS, metrics=METRICS)
    rates_some, rates_other, exponents_some, exponents_other = seen
    for panel, marker, shift in ((rates_some, "o", 0.0), (rates_some, "s", 0.1), (rates_other, "o", 0.2)):
        own = np.array([[value("rate_r2", size, seed, shift) for seed in range(3)] for size in SIZES])
        np.testing.assert_allclose(panel[marker], np.stack([SIZES, own.mean(1)], 1))
        bars = panel["bars"][marker == "s"]
        np.testing.assert_allclose(bars, np.stack([own.min(1), own.max(1)], 1))
    assert rates_some["lines"] == {":": 0.0, "--": 0.98}
    theirs = published("ctd_sweep").query("series == 'nbff_node' and metric == 'rate_r2'")
    np.testing.assert_allclose(rates_some["D"], sorted(zip(theirs["x"].astype(float), theirs["value"], strict=True)))
    assert rates_other["D"] == []
    assert [panel["ax"].get_title() for panel in seen] == ["some", "other", "", ""]
    own = np.array([[abs(value("lyapunov_max", size, seed) - TRUTH) for seed in range(3)] for size in SIZES])
    np.testing.assert_allclose(exponents_some["o"], np.stack([SIZES, own.mean(1)], 1))
    assert exponents_some["lines"] == {"--": 0.0}
    drawn = table[(table["model"] == "node") & (table["metric"] == "lyapunov_max") & (table["drawn"] == "fits")]
    np.testing.assert_allclose(drawn[["low", "high"]], np.stack([own.min(1), own.max(1)], 1))
    assert exponents_other["ax"].get_xlabel() == "gen_dim"


def test_the_best_sizes_are_said_and_fits_that_failed(files):
    some = fit_rows("node", "latent_size", values() | {(8, 1): dict.fromkeys(METRICS, np.nan)})
    table, _, said, _ = draw("ctd_sweep", files(some), sweeps=SWEEPS[:1], metrics=METRICS)
    assert "node on some, the best latent_size by score: rate R² 64, Lyapunov max (1/s) 3." in said
    assert "8 of its 9 fits went well" in said
    row = table[(table["metric"] == "rate_r2") & (table["x"] == 8) & (table["drawn"] == "fits")].iloc[0]
    assert (row["n"], row["n_fits"]) == (2, 3)
    assert row["value"] == pytest.approx(np.mean([value("rate_r2", 8, seed) for seed in (0, 2)]))


def test_only_sweeps_with_a_series_are_compared(files):
    figure = FIGURES["ctd_sweep"]
    settings = figure.Settings(
        kind="ctd_sweep", sweeps=[*SWEEPS, {"dataset": "some", "model": "none", "series": "nbff_gru"}]
    )
    compared = figure.reproduction(settings, files()).set_index(["series", "x", "metric"])
    row = compared.loc[("nbff_node", "8", "rate_r2")]
    assert row["ours"] == pytest.approx(np.mean([value("rate_r2", 8, seed) for seed in range(3)]))
    assert row["model"] == "node@latent_size=8"
    assert (compared.xs("nbff_gru")["n"] == 0).all()
    with pytest.raises(MissingError, match="series"):
        figure.reproduction(figure.Settings(kind="ctd_sweep", sweeps=SWEEPS[1:]), files())


def test_what_is_missing_is_said_where_it_would_be(files):
    def texts(canvas):
        return [" ".join(" ".join(text.get_text() for text in ax.texts).split()) for ax in canvas.axes]

    missing = {("dynamics_scores", "other"): "needs `dynamics.other`, which is not there; add it"}
    other = fit_rows("lfads", "gen_dim", values(0.2, ["rate_r2"]), "other")
    _, seen, *_ = draw("ctd_sweep", files(other=other, missing=missing), texts, sweeps=SWEEPS, metrics=METRICS)
    assert seen[1] == ""
    assert seen[3] == "missing: needs `dynamics.other`, which is not there; add it"
    absent = [*SWEEPS[:1], {"dataset": "other", "model": "nothing"}]
    table, seen, *_ = draw("ctd_sweep", files(), texts, sweeps=absent, metrics=METRICS)
    assert "fits of 'nothing' to 'other' that sweep 'latent_size'" in seen[1]
    assert set(table["dataset"]) == {"some"}


def test_only_the_scores_that_are_shown_are_needed():
    fits = (("some", "node@latent_size=3", 0), ("some", "node", 0), ("some", "gru@latent_size=3", 0))
    figure, planned = FIGURES["ctd_sweep"], Planned(fits, {"some": True})

    def needs(*metrics):
        return set(figure.needs(figure.Settings(kind="ctd_sweep", sweeps=SWEEPS[:1], metrics=list(metrics)), planned))

    scores = {("scores", "some"), ("scores", "some", "node@latent_size=3", 0)}
    dynamics = {("dynamics_scores", *need[1:]) for need in scores}
    assert needs("rate_r2") == scores
    assert needs("rate_r2", "flow_field_r2") == scores | dynamics
    assert needs("dsa_similarity") == scores | {("dsa_scores", "some")}


def test_numbers_of_the_same_runs_are_the_same_as_in_figure_5():
    keys = ["series", "x", "metric"]
    here, there = (published(kind).set_index(keys) for kind in ("ctd_sweep", "ctd_fig5"))
    of_fig5 = there[there.index.get_level_values("x") != ""].rename(lambda name: f"nbff_{name}", level="series")
    shared = here.drop("phase_coded_memory", level="series")
    assert shared.sort_index().equals(of_fig5.sort_index())


def test_the_same_bytes_twice(files, tmp_path):
    figure = FIGURES["ctd_sweep"]
    for name in ("first", "second"):
        make(figure, figure.Settings(kind="ctd_sweep", sweeps=SWEEPS, metrics=METRICS), files(), tmp_path / name)
    for suffix in ("pdf", "png", "csv", "txt"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()
