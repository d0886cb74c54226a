"""Figure 6 of CtDB: scores against inputs, and the fixed points of the fits that the scores choose."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from ctdb import datasets
from ctdb.dynamics import FixedPoints
from ctdb.figures import FIGURES
from ctdb.figures.base import make
from ctdb.figures.planned import Files, Planned
from ctdb.figures.published import published
from ctdb.files import write_hdf5
from swept import draw, fit_rows, marked, write

METRICS = ["input_r2_true_to_inferred", "co_bps_ctd", "cycle_consistency", "rate_r2", "state_r2_true_to_inferred"]
KLS = [0, 1e-4, 0.01]
OPTIONS = {"dataset": "some", "model": "infer"}
N_POINTS = {"network": (4, 3), "best": (2, 1), "worst": (1, 0)}
"""Stable and unstable points of each system."""


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    assert plt.get_fignums() == []


def points(n_stable, n_unstable, size):
    k, rng = n_stable + n_unstable, np.random.default_rng(n_stable)
    jacobian = np.stack([np.diag([0.5 if one < n_stable else 1.5, *[0.1] * (size - 1)]) for one in range(k)])

    def tensor(value, dtype=torch.float64):
        return torch.as_tensor(value, dtype=dtype)

    none = torch.zeros(0, dtype=torch.long)
    return FixedPoints(tensor(0.5 * rng.normal(size=(k, size))), torch.zeros(k, 0, dtype=torch.float64), tensor(np.full(k, 1e-12)), tensor(jacobian), torch.zeros(k, size, 0, dtype=torch.float64), tensor(np.ones(k)), tensor(np.full(k, 5), torch.long), none, none, radius=1.0, bin_s=0.01)  # fmt: skip


# The highest mean on the valid trials is that of 1e-4; on the test trials, and of single fits, others are higher.
VALID = {(0, 0): 0.04, (0, 1): 0.03, (1e-4, 0): 0.18, (1e-4, 1): 0.22, (0.01, 0): 0.38, (0.01, 1): -0.45}
TEST = {(0, 0): 0.05, (0, 1): 0.07, (1e-4, 0): 0.3, (1e-4, 1): 0.1, (0.01, 0): 0.5, (0.01, 1): 0.6}
BEST, WORST = ("infer@kl_co_scale=0.0001", 1), ("infer@kl_co_scale=0.01", 1)


def scores(inputs):
    return dict(
        zip(METRICS, [inputs, 0.12 - inputs / 50, 0.4 + inputs, 0.9 - inputs / 9, 0.8 + inputs / 7], strict=True)
    )


def rows():
    own = {key: scores(inputs) for key, inputs in TEST.items()}
    valid = {key: scores(inputs) for key, inputs in VALID.items()}
    return fit_rows("infer", "kl_co_scale", own) + fit_rows("infer", "kl_co_scale", valid, split="valid")


FITS = tuple(("some", f"infer@kl_co_scale={kl}", seed) for kl in KLS for seed in (0, 1))


@pytest.fixture
def files(make_dataset, tmp_path):
    """Files of the figure; only the chosen fits and the network have any dynamics."""

    def written(table=None, failed=(), missing=None):
        dataset = make_dataset(n_trials=20, n_bins=12, latents=4)
        datasets.write(tmp_path / "some.h5", dataset)
        points(*N_POINTS["network"], 4).save(tmp_path / "true/fixed_points.h5")
        write_hdf5(tmp_path / "true/dynamics.h5", {}, {"status": "ok"})
        settings = FIGURES["ctd_fig6"].Settings(kind="ctd_fig6", **OPTIONS)
        needs = FIGURES["ctd_fig6"].needs(settings, Planned(FITS, {"some": True}))
        path = write(tmp_path / "scores.csv", table or rows())
        paths = {need: path for need in needs if need[0] == "scores"}
        paths |= {
            ("dataset", "some"): str(tmp_path / "some.h5"),
            ("dynamics", "some"): str(tmp_path / "true/dynamics.h5"),
        }
        for name, fit in (("best", BEST), ("worst", WORST)):
            own, rng = tmp_path / name, np.random.default_rng(1)
            facts = {"to_true_weights": rng.normal(size=(5, 4)), "to_true_offset": rng.normal(size=4)}
            n_points = (0, 0) if name in failed else N_POINTS[name]
            status = "diverged" if name in failed else "ok"
            if name not in failed:
                points(*n_points, 5).save(own / "fixed_points.h5")
            write_hdf5(own / "dynamics.h5", {} if name in failed else facts, {"status": status})
            latents = {
                f"{split}_latents": rng.normal(size=(*one.latents.shape[:2], 5))
                for split, one in dataset.splits.items()
            }
            write_hdf5(own / "output.h5", latents, {"status": status})
            paths |= {
                ("fit", "some", *fit): str(own / "output.h5"),
                ("dynamics", "some", *fit): str(own / "dynamics.h5"),
            }
        assert set(paths) <= set(needs)
        return Files({need: path for need, path in paths.items() if need not in (missing or {})}, missing or {})

    return written


def table_of(values, split=TEST):
    return pd.DataFrame({key: pd.Series(scores(value)) for key, value in split.items()}).T


def test_scores_are_drawn_against_those_of_the_inputs_with_published_means(files):
    own, theirs = table_of(TEST), published("ctd_fig6").query("series == 'infer'")
    means = theirs.pivot(index="x", columns="metric", values="value")
    table, seen, *_ = draw(
        "ctd_fig6", files(), lambda canvas: [[marked(ax, m) for m in "os^D"] for ax in canvas.axes[:5]], **OPTIONS
    )
    for panel, metric in zip(seen, METRICS[1:], strict=False):
        for kl, found in zip(KLS, panel, strict=False):
            np.testing.assert_allclose(found, sorted(own.loc[kl][[METRICS[0], metric]].to_numpy().tolist()))
        np.testing.assert_allclose(panel[3], sorted(means[[METRICS[0], metric]].to_numpy().tolist()))
        drawn = table[(table["panel"] == metric) & (table["drawn"] == "fit")]
        np.testing.assert_allclose(np.sort(drawn["across"]), np.sort(own[METRICS[0]]))
    for kl, found in zip(KLS, seen[4], strict=False):
        np.testing.assert_allclose(found, sorted([kl, own.loc[(kl, seed), METRICS[0]]] for seed in (0, 1)))
    np.testing.assert_allclose(seen[4][3], sorted([float(x), value] for x, value in means[METRICS[0]].items()))


def test_the_axis_of_weights_has_a_zero_and_a_tick_for_each(files):
    def show(canvas):
        ax = canvas.axes[4]
        return ax.get_xscale(), [label.get_text() for label in ax.get_xticklabels()]

    _, (scale, ticks), *_ = draw("ctd_fig6", files(), show, **OPTIONS)
    assert scale == "symlog"
    assert ticks == ["0", "1e-6", "1e-5", "0.0001", "0.001", "0.01"]


def test_fits_are_chosen_on_valid_trials_by_mean_and_seed_and_their_points_counted(files):
    table, titles, said, _ = draw(
        "ctd_fig6", files(), lambda canvas: [ax.get_title() for ax in canvas.axes[5:]], **OPTIONS
    )
    assert titles == ["network\n4 stable, 3 unstable", "best: 0.0001, seed 1\n2 stable, 1 unstable", "worst: 0.01, seed 1\n1 stable, 0 unstable"]  # fmt: skip
    drawn = table[table["drawn"] == "fixed point"]
    assert drawn.groupby("panel").size().to_dict() == {name: sum(n) for name, n in N_POINTS.items()}
    best = drawn[drawn["panel"] == "best"]
    assert set(zip(best["model"], best["seed"], strict=True)) == {BEST}
    for name, (n_stable, n_unstable) in N_POINTS.items():
        assert f"Fixed points of {name}: {n_stable} stable, {n_unstable} unstable." in said


def test_findings_come_from_the_table(files):
    _, _, said, _ = draw("ctd_fig6", files(), **OPTIONS)
    means = table_of(TEST).groupby(level=0).mean()
    assert f"is highest at kl_co_scale 0.01: {means.loc[0.01, METRICS[0]]:.3f}, beside {means.loc[0, METRICS[0]]:.3f} at 0 ({0.55 / 0.06:.1f} times)" in said  # fmt: skip
    spread = means["co_bps_ctd"].max() - means["co_bps_ctd"].min()
    assert f"differs by {spread:.4f} at most" in said


def test_ours_are_compared_with_the_published_scores_and_counts(files):
    figure = FIGURES["ctd_fig6"]
    settings = figure.Settings(kind="ctd_fig6", **OPTIONS)
    compared = figure.reproduction(settings, files()).set_index(["series", "x", "metric"])
    assert compared.loc[("infer", "0.0001", METRICS[0]), "ours"] == pytest.approx(0.2)
    assert compared.loc[("infer", "1e-06", METRICS[0]), "n"] == 0
    assert compared.loc[("best", "", "stable_points"), ["ours", "model"]].tolist() == [2, BEST[0]]
    assert compared.loc[("worst", "", "unstable_points"), "ours"] == 0
    failed = figure.reproduction(settings, files(failed=["best"])).set_index(["series", "x", "metric"])
    assert failed.loc[("best", "", "stable_points"), "n"] == 0
    assert failed.loc[("worst", "", "stable_points"), "ours"] == 1


def test_without_dynamics_the_scores_are_drawn_and_the_rest_is_said(files):
    missing = {("dynamics", "some"): "needs `dynamics.some`, which is not there; add it"}

    def show(canvas):
        return [len(ax.lines) for ax in canvas.axes[:4]], canvas.axes[5].texts[0].get_text()

    table, (lines, text), *_ = draw("ctd_fig6", files(missing=missing), show, **OPTIONS)
    assert min(lines) > 3
    assert "dynamics.some" in text
    assert set(table["drawn"]) == {"fit", "published"}


def test_a_fit_that_failed_is_counted_and_not_chosen(files):
    nan = {(1e-4, 0): dict.fromkeys(METRICS, np.nan)}
    own = [row for row in rows() if not (row["model"] == BEST[0] and row["seed"] == 0)]
    own += fit_rows("infer", "kl_co_scale", nan) + fit_rows("infer", "kl_co_scale", nan, split="valid")
    _, titles, said, _ = draw(
        "ctd_fig6", files(own), lambda canvas: [ax.get_title() for ax in canvas.axes[5:]], **OPTIONS
    )
    assert titles[1].startswith("best: 0.0001, seed 1")
    assert "5 of 6 fits went well" in said


def test_panels_without_any_fit_say_so_beside_the_published_means(files):
    def texts(canvas):
        return [" ".join(text.get_text().split()) for ax in canvas.axes for text in ax.texts]

    failed = [row | {"value": np.nan, "status": "diverged"} for row in rows()]
    _, said, caption, _ = draw("ctd_fig6", files(failed), texts, **OPTIONS)
    assert sum("none of 6 fits has both" in one for one in said) == 4
    assert sum(one == "none of 6 fits has it" for one in said) == 1
    assert "0 of 6 fits went well" in caption


def test_all_fits_of_the_sweep_are_needed_and_no_others():
    figure, others = FIGURES["ctd_fig6"], (("some", "infer", 0), ("some", "infer@co_dim=3", 0), ("some", "gru", 0))
    settings = figure.Settings(kind="ctd_fig6", **OPTIONS)
    needs = figure.needs(settings, Planned((*FITS, *others), {"some": True}))
    expected = {("scores", "some"), ("dataset", "some"), ("dynamics", "some")}
    assert set(needs) == expected | {(what, *fit) for what in ("scores", "fit", "dynamics") for fit in FITS}
    assert set(figure.needs(settings, Planned(others))) == {
        ("scores", "some"),
        ("scores", "some", "infer@kl_co_scale", 0),
    }


def test_the_same_bytes_twice_and_what_is_missing(files, tmp_path):
    figure, given = FIGURES["ctd_fig6"], files()
    settings = figure.Settings(kind="ctd_fig6", **OPTIONS)
    for name in ("first", "second"):
        make(figure, settings, given, tmp_path / name)
    for suffix in ("pdf", "png", "csv", "txt"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()
    nothing = Files({("scores", "some"): write(tmp_path / "none.csv", fit_rows("infer", "co_dim", {(3, 0): {"rate_r2": 1.0}}))})  # fmt: skip
    make(figure, settings, nothing, tmp_path / "none")
    assert "fits of 'infer' to 'some' that sweep 'kl_co_scale'" in (tmp_path / "none.csv").read_text()
