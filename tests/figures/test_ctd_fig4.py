"""The figure of canonical fits, against the histories, outputs and scores it is drawn from, and the published numbers."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from ctdb import datasets
from ctdb.figures import FIGURES
from ctdb.figures.base import STYLE, make
from ctdb.figures.planned import Files, Planned
from ctdb.figures.published import published
from ctdb.files import write_hdf5
from ctdb.scores import COLUMNS

FIGURE = FIGURES["ctd_fig4"]
METRICS = ["rate_r2", "state_r2_true_to_inferred", "cycle_consistency", "co_bps_ctd"]
SUCCESS = [0.1, 0.7, 0.96, 0.94, 0.97]
FITS = (("some", "good", 0), ("some", "good", 1), ("some", "good@latent_size=3", 0), ("some", "line", 0), ("some", "other", 0), ("far", "good", 0))  # fmt: skip
COLOURS = {"gru": "#0072b2", "lfads": "#d55e00", "lds": "#009e73"}


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    assert plt.get_fignums() == []


def value(model, seed, metric):
    return METRICS.index(metric) / 10 + 0.03 * seed + (0.4 if model == "good" else 0.2)


@pytest.fixture
def made(make_dataset, tmp_path):
    """Files by need, the settings, the data set, and what the fits inferred."""
    files = {}
    dataset = make_dataset(n_trials=20, n_bins=12, latents=5, bin_s=0.02, per_trial=True)
    for split in dataset.splits.values():
        split.n_bins[:] = np.maximum(split.n_bins, 3)
    datasets.write(tmp_path / "some.h5", dataset)
    files["dataset", "some"] = str(tmp_path / "some.h5")
    rng, outputs = np.random.default_rng(3), {}
    for model in ("good", "line"):
        own = {f"{name}_latents": rng.normal(size=(*split.recon_data.shape[:2], 4)) for name, split in dataset.splits.items()}  # fmt: skip
        write_hdf5(tmp_path / f"{model}.h5", own, {"format": "ctdb-output-1", "status": "ok"})
        outputs[model], files["fit", "some", model, 0] = own, str(tmp_path / f"{model}.h5")
    blank = {"dataset": "some", "session": "", "kind": "k", "sweep": "{}", "role": "fit", "split": "test", "status": "ok", "reason": "", "n_trials": 4}  # fmt: skip
    for model, seed in (("good", 0), ("good", 1), ("line", 0)):
        rows = [blank | {"model": model, "seed": seed, "metric": name, "value": value(model, seed, name)} for name in METRICS]  # fmt: skip
        rows += [rows[0] | {"split": "valid", "value": 9.0}, rows[0] | {"metric": "cka", "value": 9.0}]
        if (model, seed) == ("good", 1):
            rows[2] |= {"value": np.nan, "status": "diverged", "reason": "why"}
        path = tmp_path / f"{model}{seed}.csv"
        pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS).to_csv(path, index=False)
        files["scores", "some", model, seed] = str(path)
    history = {"epoch": range(5), "train_loss": 1.0, "valid_loss": [4.0, 2.0, 1.0, 1.2, 0.8], "valid_success": SUCCESS}
    pd.DataFrame(history).to_csv(tmp_path / "history.csv", index=False)
    files["network_history", "net", 7] = str(tmp_path / "history.csv")
    task = {"dataset": "some", "models": {"gru": "good", "lds": "line"}, "network": "net", "network_seed": 7}
    return files, task, dataset, outputs


def drawn(files, show=lambda canvas: None, missing=(), **options):
    settings = FIGURE.Settings(kind="ctd_fig4", **options)
    needs = FIGURE.needs(settings, Planned(FITS))
    given = Files({need: files[need] for need in needs if need not in missing}, dict.fromkeys(missing, "not made"))
    with plt.style.context(STYLE):
        canvas, table = FIGURE.draw(settings, given)
        canvas.canvas.draw()
        seen = show(canvas)
        plt.close(canvas)
    return table, seen, settings, given


def test_it_needs_its_own_fits_of_one_seed_and_their_scores_of_all(made):
    files, task, _, _ = made
    settings = FIGURE.Settings(kind="ctd_fig4", nbff=task)
    assert set(FIGURE.needs(settings, Planned(FITS))) == set(files)
    lone = FIGURE.Settings(kind="ctd_fig4", multitask={"dataset": "some", "models": {"gru": "absent"}})
    assert FIGURE.needs(lone, Planned(FITS)) == [("dataset", "some"), ("fit", "some", "absent", 0), ("scores", "some", "absent", 0)]  # fmt: skip


def test_learning_is_drawn_with_the_epoch_in_which_the_task_was_solved(made):
    files, task, _, _ = made

    def show(canvas):
        ax = canvas.axes[0]
        return {line.get_label(): line.get_ydata() for line in ax.lines}, [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"]  # fmt: skip

    table, (lines, solved), settings, _ = drawn(files, show, nbff=task)
    np.testing.assert_allclose(lines["loss"], [1, 0.5, 0.25, 0.3, 0.2])
    np.testing.assert_allclose(lines["success"], SUCCESS)
    assert solved == [3]
    assert table.loc[table["panel"] == "solved", "epoch"].tolist() == [3]
    assert "nbff: success of 95% from epoch 3." in FIGURE.findings(settings, table)
    table, (_, solved), settings, _ = drawn(files, show, nbff=task, solved=0.98)
    assert solved == []
    assert "nbff: success of 98% in no epoch." in FIGURE.findings(settings, table)


def test_states_are_in_the_true_components_and_those_of_fits_carried_over(made):
    files, task, dataset, outputs = made
    table, _, _, _ = drawn(files, nbff=task, n_trials=3)
    train, test = dataset["train"], dataset["test"]
    valid = np.arange(12) < train.n_bins[:, None]
    pca = PCA(3).fit(train.latents[valid].astype(float))
    line = LinearRegression().fit(outputs["good"]["train_latents"][valid], train.latents[valid].astype(float))
    inferred = line.predict(outputs["good"]["test_latents"].reshape(-1, 4)).reshape(*test.latents.shape)
    for source, states in (("truth", test.latents), ("gru", inferred)):
        own = table[(table["panel"] == "states") & (table["source"] == source)]
        expected = np.concatenate([pca.transform(states[k, : test.n_bins[k]].astype(float)) for k in range(3)])
        np.testing.assert_allclose(np.abs(own[["pc1", "pc2", "pc3"]]), np.abs(expected), atol=1e-5)
        assert own["trial"].unique().tolist() == [0, 1, 2]
    assert set(table.loc[table["panel"] == "states", "source"]) == {"truth", "gru", "lds"}


def test_every_fit_is_a_point_beside_the_published_diamonds_and_failures_are_counted(made):
    files, task, _, _ = made

    def show(canvas):
        told = []
        for ax in canvas.axes:
            labels = [label.get_text() for label in ax.get_xticklabels()]
            if labels in (["rate R²", "state R²", "cycle c."], ["co-bps"]):
                points = {colour: sorted(y for line in ax.lines if line.get_marker() in "os^" and to_hex(line.get_markeredgecolor()) == code for y in line.get_ydata()) for colour, code in COLOURS.items()}  # fmt: skip
                diamonds = sorted(y for line in ax.lines if line.get_marker() == "D" for y in line.get_ydata())
                crosses = sum(line.get_marker() == "x" for line in ax.lines)
                told.append((points, diamonds, crosses, [text.get_text() for text in ax.texts]))
        return told

    table, (left, right), _, _ = drawn(files, show, nbff=task)
    theirs = published("ctd_fig4")
    theirs = theirs[(theirs["x"] == "nbff") & theirs["metric"].isin(METRICS)]
    for (points, diamonds, _, _), metrics in ((left, METRICS[:3]), (right, METRICS[3:])):
        good = [value("good", seed, name) for name in metrics for seed in range(2) if (seed, name) != (1, METRICS[2])]
        np.testing.assert_allclose(points["gru"], sorted(good))
        np.testing.assert_allclose(points["lds"], sorted(value("line", 0, name) for name in metrics))
        assert points["lfads"] == []
        np.testing.assert_allclose(diamonds, sorted(theirs.loc[theirs["metric"].isin(metrics), "value"]))
    assert (left[2:], right[2:]) == ((1, ["1/2"]), (0, []))
    assert (table["panel"] == "scores").sum() == 12
    assert table.loc[table["panel"] == "scores", "value"].max() < 1


def test_ours_stand_beside_the_published_with_their_bands(made):
    files, task, _, _ = made
    table, _, settings, given = drawn(files, nbff=task)
    rows = FIGURE.reproduction(settings, given).set_index(["series", "metric"])
    gru, lds = rows.loc[("nbff_gru", "rate_r2")], rows.loc[("nbff_lds", "rate_r2")]
    assert (gru["ours"], gru["n"], gru["published"]) == (pytest.approx((0.4 + 0.43) / 2), 2, 0.9689)
    assert (gru["dataset"], gru["model"]) == ("some", "good")
    assert (lds["ours"], lds["published"], lds["band"], lds["within"]) == (pytest.approx(0.2), 0.2437, 0.04, False)
    assert rows.loc[("nbff_lds", METRICS[1]), "within"] == (abs(value("line", 0, METRICS[1]) - 0.4882) <= 0.04)
    assert rows.loc[("nbff_gru", METRICS[2]), "n"] == 1
    assert rows.loc[("nbff_network", "epochs_to_solve"), ["ours", "dataset"]].tolist() == [3, "some"]
    assert not FIGURE.reproduction(settings, given)["note"].str.contains("from .9").any()  # said of a GRU of 64 units
    assert rows.loc[("multitask_gru", "rate_r2"), "n"] == 0
    said = FIGURE.findings(settings, table)
    assert f"9 of {len(rows)} published numbers have ours beside them; 0 of 2 with a stated band are within it." in said


def test_what_is_missing_or_not_set_is_said_and_the_rest_drawn(made):
    files, task, _, _ = made

    def show(canvas):
        return [" ".join(text.get_text().replace("\n", "").split()) for ax in canvas.axes for text in ax.texts if "missing" in text.get_text()]  # fmt: skip

    table, said, _, _ = drawn(files, show, [("fit", "some", "good", 0)], nbff={**task, "network": ""})
    assert sum("notmade" in one.replace(" ", "") for one in said) == 1
    assert sum("`network`" in one for one in said) == 3
    assert sum("`models.lfads`of`nbff`" in one.replace(" ", "") for one in said) == 1
    assert sum("`multitask`" in one for one in said) == sum("`random_target`" in one for one in said) == 1
    assert set(table.loc[table["panel"] == "states", "source"]) == {"truth", "lds"}
    scores = [("scores", "some", "good", 0), ("scores", "some", "good", 1), ("scores", "some", "line", 0)]
    table, said, _, _ = drawn(files, show, scores, nbff=task)
    assert "missing: not made" in said
    assert not (table["panel"] == "scores").any()
    table, said, settings, given = drawn(files, show)
    assert len(said) == 6
    assert "0 of 37 published numbers have ours beside them" in FIGURE.findings(settings, table)
    assert set(table["panel"]) == {"published"}
    assert FIGURE.reproduction(settings, given)["n"].sum() == 0


def test_the_same_bytes_twice(made, tmp_path):
    files, task, _, _ = made
    settings = FIGURE.Settings(kind="ctd_fig4", nbff=task)
    for name in ("first", "second"):
        make(FIGURE, settings, Files(files), tmp_path / name)
    for suffix in ("pdf", "png", "csv", "txt"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()
