"""Figure 5 of CtDB: points, regressions and published means, against the rows that it is drawn from."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib import pyplot as plt

from ctdb.figures import FIGURES
from ctdb.figures.base import make
from ctdb.figures.planned import Files, Planned
from ctdb.figures.published import published
from swept import anchor_rows, draw, fit_rows, marked, write

METRICS = ["rate_r2", "state_r2_true_to_inferred", "co_bps_ctd", "cycle_consistency"]
PANELS = [(0, 2), (1, 3), (0, 1), (2, 3)]
MARKERS = {3: "o", 8: "s", 64: "^"}
FITS = [("some", f"node@latent_size={size}", seed) for size in MARKERS for seed in range(3)]


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    assert plt.get_fignums() == []


def scores(size, seed):
    rate = 0.8 + np.log(size) / 40 + 0.002 * seed**2
    state = 1 - np.log(size) ** 2 / 40 - 0.01 * seed
    return dict(zip(METRICS, [rate, state, rate / 7 + 0.001 * seed, state**2 + 0.01 * seed], strict=True))


VALUES = {(size, seed): scores(size, seed) for size in MARKERS for seed in range(3)}


@pytest.fixture
def files(tmp_path):
    def written(rows, missing=None):
        return Files({("scores", "some"): write(tmp_path / "scores.csv", rows)}, missing or {})

    return written


def table_of(values):
    return pd.DataFrame({key: pd.Series(own) for key, own in values.items()}).T


def test_each_panel_has_a_point_per_fit_by_size_their_regression_and_the_published_means(files):
    rows = anchor_rows({"rate_r2": (0, 1)}) + fit_rows("node", "latent_size", VALUES)
    own, theirs = table_of(VALUES), published("ctd_fig5").query("series == 'node' and x != ''")

    def show(canvas):
        seen = []
        for ax in canvas.axes:
            (line,) = [
                line
                for line in ax.lines
                if line.get_marker() == "None" and len(line.get_xdata()) == 2 and line.get_lw() > 0.7
            ]
            points = {size: marked(ax, marker) for size, marker in MARKERS.items()}
            links = [np.stack(own.get_data(), 1).tolist() for own in ax.lines if own.get_lw() == 0.5]
            seen.append((points, marked(ax, "D"), links, np.stack(line.get_data(), 1), ax.texts[0].get_text()))
        return seen

    table, seen, said, _ = draw("ctd_fig5", files(rows), show, dataset="some", model="node")
    assert len(seen) == 4
    for (points, diamonds, links, line, text), (i, j) in zip(seen, PANELS, strict=True):
        across, up = METRICS[i], METRICS[j]
        for size in MARKERS:
            np.testing.assert_allclose(points[size], sorted(own.loc[size, [across, up]].to_numpy().tolist()))
        means = theirs.pivot(index="x", columns="metric", values="value")[[across, up]]
        np.testing.assert_allclose(diamonds, sorted(means.to_numpy().tolist()))
        ours = own.groupby(level=0)[[across, up]].mean()
        ties = [[means.loc[str(size)].tolist(), ours.loc[size].tolist()] for size in MARKERS]
        np.testing.assert_allclose(sorted(links), sorted(ties))
        fit = scipy.stats.linregress(own[across], own[up])
        ends = np.array([own[across].min(), own[across].max()])
        np.testing.assert_allclose(line, np.stack([ends, fit.intercept + fit.slope * ends], 1))
        assert text == f"r = {fit.rvalue:.2f}, n = 9"
        drawn = table[(table["across"] == across) & (table["up"] == up)]
        assert drawn["drawn"].value_counts().to_dict() == {"fit": 9, "published": 6, "regression": 1}
        assert drawn["r"].dropna().tolist() == pytest.approx([fit.rvalue])
        assert f"{fit.rvalue:.2f}" in said


def test_our_means_and_correlations_are_compared_with_the_published_ones(files):
    given = files(fit_rows("node", "latent_size", VALUES) + fit_rows("net", "latent_size", VALUES))
    figure = FIGURES["ctd_fig5"]
    settings = figure.Settings(kind="ctd_fig5", dataset="some", model="node", gru="net")
    compared = figure.reproduction(settings, given).set_index(["series", "x", "metric"])
    own = table_of(VALUES)
    for series in ("node", "gru"):
        row = compared.loc[(series, "8", "state_r2_true_to_inferred")]
        assert row["ours"] == pytest.approx(own.loc[8, "state_r2_true_to_inferred"].mean())
        assert row["n"] == 3
        assert compared.loc[(series, "16", "rate_r2"), "n"] == 0
    assert compared.loc[("node", "8", "rate_r2"), "model"] == "node@latent_size=8"
    assert compared.loc[("gru", "8", "rate_r2"), "model"] == "net@latent_size=8"
    r = scipy.stats.pearsonr(own["rate_r2"], own["co_bps_ctd"])[0]
    row = compared.loc[("node", "", "r_rate_r2_co_bps_ctd")]
    assert row["ours"] == pytest.approx(r)
    assert (row["published"], row["within"]) == (0.9995, r >= 0.99)
    assert row["at_least"] == 0.99  # ctd.md 2.7
    row = compared.loc[("node", "", "r_state_r2_true_to_inferred_cycle_consistency")]
    assert row["ours"] == pytest.approx(
        scipy.stats.pearsonr(own["state_r2_true_to_inferred"], own["cycle_consistency"])[0]
    )
    assert (row["published"], row["at_least"]) == (0.994, 0.95)


def test_fits_that_failed_are_counted(files):
    values = VALUES | {(8, 1): dict.fromkeys(METRICS, np.nan)}
    _, texts, said, _ = draw(
        "ctd_fig5",
        files(fit_rows("node", "latent_size", values)),
        lambda canvas: [ax.texts[0].get_text() for ax in canvas.axes],
        dataset="some",
        model="node",
    )
    good = table_of(values).dropna()
    r = scipy.stats.pearsonr(good["rate_r2"], good["co_bps_ctd"])[0]
    assert texts[0] == f"r = {r:.2f}, n = 8 of 9"
    assert "8 of 9 fits of node went well" in said


def test_two_fits_have_no_regression(files):
    few = {key: value for key, value in VALUES.items() if key in ((3, 0), (8, 0))}
    table, texts, said, _ = draw(
        "ctd_fig5",
        files(fit_rows("node", "latent_size", few)),
        lambda canvas: [ax.texts[0].get_text() for ax in canvas.axes],
        dataset="some",
        model="node",
    )
    assert texts == ["n = 2"] * 4
    assert table["r"].isna().all()
    assert said == ""


def test_other_models_splits_and_settings_are_left_out(files):
    rows = fit_rows("node", "latent_size", VALUES)
    odd = {(3, 0): dict.fromkeys(METRICS, 9.0)}
    rows += fit_rows("node", "latent_size", odd, split="valid") + fit_rows("nodes", "latent_size", odd)
    rows += fit_rows("node", "dropout", odd)
    table, *_ = draw("ctd_fig5", files(rows), dataset="some", model="node")
    fits = table[table["drawn"] == "fit"]
    assert len(fits) == 4 * 9
    assert fits["at"].max() < 1.1


def test_a_missing_sweep_or_score_or_model_is_said(files):
    def texts(canvas):
        return [" ".join(text.get_text().split()) for ax in canvas.axes for text in ax.texts]

    no_cycle = {key: {m: v for m, v in own.items() if m != "cycle_consistency"} for key, own in VALUES.items()}
    given = files(fit_rows("node", "latent_size", no_cycle))
    table, said, *_ = draw("ctd_fig5", given, texts, dataset="some", model="node", gru="net")
    assert any("fits of 'net' to 'some' that sweep 'latent_size'" in text for text in said)
    assert sum("fits with both" in text and text.endswith("none of 9 has them") for text in said) == 2
    assert set(table["series"]) == {"node"}
    _, said, *_ = draw("ctd_fig5", given, texts, dataset="some")
    assert "a model to draw" in said[0]


def test_only_scores_of_the_sweeps_are_needed():
    others = [("some", "node", 0), ("some", "net@dropout=3", 0), ("other", "node@latent_size=3", 0), ("some", "node@max_latent_size=3", 0)]  # fmt: skip
    figure = FIGURES["ctd_fig5"]
    planned = Planned((*FITS, *others), {"some": True})
    needs = figure.needs(figure.Settings(kind="ctd_fig5", dataset="some", model="node"), planned)
    assert set(needs) == {("scores", "some"), *(("scores", *fit) for fit in FITS)}
    needs = figure.needs(figure.Settings(kind="ctd_fig5", dataset="some", gru="net"), planned)
    assert set(needs) == {("scores", "some"), ("scores", "some", "net@latent_size", 0)}


def test_the_same_bytes_twice(files, tmp_path):
    given = files(fit_rows("node", "latent_size", VALUES))
    figure = FIGURES["ctd_fig5"]
    for name in ("first", "second"):
        make(figure, figure.Settings(kind="ctd_fig5", dataset="some", model="node"), given, tmp_path / name)
    for suffix in ("pdf", "png", "csv", "txt"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()
