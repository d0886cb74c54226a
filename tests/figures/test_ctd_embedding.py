"""The figure of other embeddings: sweeps, the models beside them and published values, against the rows behind them."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from ctdb.errors import MissingError
from ctdb.figures import FIGURES
from ctdb.figures.base import make
from ctdb.figures.planned import Files, Planned
from ctdb.figures.published import published
from swept import draw, fit_rows, marked, write

METRICS = ["rate_r2", "state_r2_true_to_inferred"]
SWEEPS = [
    {"dataset": "some", "model": "gru", "series": "node_to_gru", "also": {"node": "node@latent_size=3", "lds": "lds"}},
    {"dataset": "other", "model": "slds", "key": "n_modes", "series": "slds"},
]
PLACES = {"3": 0, "5": 1, "8": 2, "10": 3, "16": 4, "64": 5, "128": 6, "node": 7.5, "lds": 8.5}


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    assert plt.get_fignums() == []


def scores(size, seed):
    return dict(zip(METRICS, [0.4 + size / 300 + 0.01 * seed, 0.9 - size / 400 - 0.02 * seed], strict=True))


def unswept(model, values):
    """Rows of a model that was fitted without a sweep."""
    rows = fit_rows(model, "k", {(0, seed): own for seed, own in values.items()})
    return [row | {"model": model, "sweep": "{}"} for row in rows]


GRU = {(size, seed): scores(size, seed) for size in (3, 16, 64) for seed in (0, 1)}
NODE = {(3, seed): scores(90, seed) for seed in (0, 1)}
LDS = {0: scores(1, 0), 1: dict.fromkeys(METRICS, np.nan)}
SLDS = {(modes, 0): scores(modes, 0) for modes in (3, 8)}


@pytest.fixture
def files(tmp_path):
    some = fit_rows("gru", "latent_size", GRU) + fit_rows("node", "latent_size", NODE) + unswept("lds", LDS)
    some += fit_rows("gru", "latent_size", {(5, 0): scores(900, 0)}, split="valid") + unswept(
        "gru", {0: scores(900, 0)}
    )
    return Files(
        {
            ("scores", "some"): write(tmp_path / "some.csv", some),
            ("scores", "other"): write(tmp_path / "other.csv", fit_rows("slds", "n_modes", SLDS, "other")),
        }
    )


def test_sweeps_and_the_models_beside_them_are_drawn_with_published_means(files):
    def show(canvas):
        return [(marked(ax, "o"), marked(ax, "D"), [t.get_text() for t in ax.get_xticklabels()]) for ax in canvas.axes]

    table, seen, *_ = draw("ctd_embedding", files, show, sweeps=SWEEPS)
    theirs = published("ctd_embedding").query("series == 'node_to_gru'")
    for (points, diamonds, ticks), metric in zip(seen[::2], METRICS, strict=True):
        means = {size: np.mean([GRU[size, seed][metric] for seed in (0, 1)]) for size in (3, 16, 64)}
        expected = [[PLACES[str(size)], mean] for size, mean in means.items()]
        expected += [[7.5, np.mean([NODE[3, seed][metric] for seed in (0, 1)])], [8.5, LDS[0][metric]]]
        np.testing.assert_allclose(points, sorted(expected))
        own = theirs[theirs["metric"] == metric]
        np.testing.assert_allclose(
            diamonds, sorted([PLACES[x], v] for x, v in zip(own["x"], own["value"], strict=True))
        )
        assert ticks == list(PLACES)
        drawn = table[(table["metric"] == metric) & (table["drawn"] == "fits") & (table["series"] == "node_to_gru")]
        row = drawn[drawn["x"] == "16"].iloc[0]
        assert (row["low"], row["high"]) == pytest.approx(tuple(sorted(GRU[16, seed][metric] for seed in (0, 1))))
    assert seen[1][2] == ["3", "8", "gru"]
    np.testing.assert_allclose(seen[1][0], [[0, SLDS[3, 0]["rate_r2"]], [1, SLDS[8, 0]["rate_r2"]]])


def test_the_best_points_and_failed_fits_are_said(files):
    *_, said, _ = draw("ctd_embedding", files, sweeps=SWEEPS)
    assert f"gru on some, best by latent_size: rate R² {0.4 + 64 / 300 + 0.005:.3f} at 64, " in said
    assert f"state R² true→inferred {0.9 - 3 / 400 - 0.01:.3f} at 3." in said
    assert "9 of its 10 fits have scores." in said
    assert "slds on other, best by n_modes: rate R²" in said


def test_each_is_compared_with_the_published_number_of_its_name(files):
    figure = FIGURES["ctd_embedding"]
    settings = figure.Settings(kind="ctd_embedding", sweeps=[*SWEEPS, {"dataset": "some", "model": "x", "series": "nonlinear_to_gru"}])  # fmt: skip
    compared = figure.reproduction(settings, files).set_index(["series", "x", "metric"])
    row = compared.loc[("node_to_gru", "node", "rate_r2")]
    assert row["ours"] == pytest.approx(np.mean([NODE[3, seed]["rate_r2"] for seed in (0, 1)]))
    assert row["model"] == "node@latent_size=3"
    assert compared.loc[("node_to_gru", "lds", "rate_r2"), ["ours", "n"]].tolist() == [LDS[0]["rate_r2"], 1]
    assert compared.loc[("node_to_gru", "64", "state_r2_true_to_inferred"), "n"] == 2
    assert compared.loc[("slds", "8", "rate_r2"), "ours"] == SLDS[8, 0]["rate_r2"]
    assert compared.loc[("nonlinear_to_gru", "8", "rate_r2"), "n"] == 0
    with pytest.raises(MissingError, match="'x' to 'some'"):
        figure.reproduction(figure.Settings(kind="ctd_embedding", sweeps=[settings.sweeps[2].model_dump()]), files)


def test_a_missing_sweep_is_said_in_its_column(files):
    sweeps = [SWEEPS[0], {"dataset": "other", "model": "gru", "series": "nonlinear_to_gru"}]

    def show(canvas):
        return [" ".join(" ".join(text.get_text() for text in ax.texts).split()) for ax in canvas.axes]

    table, seen, *_ = draw("ctd_embedding", files, show, sweeps=sweeps)
    assert "fits of 'gru' to 'other' that sweep 'latent_size'" in seen[1]
    assert set(table["dataset"]) == {"some"}


def test_only_the_sweep_and_the_models_beside_it_are_needed():
    figure = FIGURES["ctd_embedding"]
    fits = (("some", "gru@latent_size=3", 0), ("some", "gru", 0), ("some", "node@latent_size=3", 1), ("some", "node@latent_size=8", 1), ("some", "lds@latent_size=3", 0))  # fmt: skip
    settings = figure.Settings(kind="ctd_embedding", sweeps=SWEEPS[:1])
    assert set(figure.needs(settings, Planned(fits, {"some": True}))) == {
        ("scores", "some"),
        ("scores", "some", "gru@latent_size=3", 0),
        ("scores", "some", "node@latent_size=3", 1),
        ("scores", "some", "lds", 0),
    }


def test_the_same_bytes_twice(files, tmp_path):
    figure = FIGURES["ctd_embedding"]
    for name in ("first", "second"):
        make(figure, figure.Settings(kind="ctd_embedding", sweeps=SWEEPS), files, tmp_path / name)
    for suffix in ("pdf", "png", "csv", "txt"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()
