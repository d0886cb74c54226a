"""The figure of the path of the data, against the data set, the outputs and the scores it is drawn from."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from ctdb import datasets
from ctdb.errors import DatasetError
from ctdb.figures import FIGURES
from ctdb.figures.base import STYLE, make
from ctdb.figures.planned import Files, Planned
from ctdb.files import write_hdf5
from ctdb.scores import COLUMNS

FIGURE = FIGURES["ctd_fig2"]
SCORES = {"rate_r2": 0.91, "state_r2_true_to_inferred": 0.82, "input_r2_true_to_inferred": 0.73}
FIT = ("some", "good", 2)


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    assert plt.get_fignums() == []


def scores(tmp_path, **without):
    blank = {"dataset": "some", "session": "", "model": "good", "kind": "k", "sweep": "{}", "role": "fit", "seed": 2, "split": "test", "status": "ok", "reason": "", "n_trials": 4}  # fmt: skip
    rows = [blank | {"metric": metric, "value": value} for metric, value in SCORES.items() if metric not in without]
    rows += [rows[0] | {"split": "valid", "value": 9.0}, rows[0] | {"role": "floor", "value": 8.0, "model": "floor"}]
    path = tmp_path / "scores.csv"
    pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS).to_csv(path, index=False)
    return str(path)


@pytest.fixture
def made(make_dataset, tmp_path):
    """A data set, what a fit inferred, and the files of the figure."""

    def write(inputs=True, given=True, **options):
        names = {"inputs_true": ["left", "never", "right"]}
        channels = {"latents": 5, "inputs_true": 3} | ({"ext_input": 3} if given else {})
        dataset = make_dataset(n_trials=20, n_bins=14, bin_s=0.02, names=names, **channels, **options)
        rng, outputs = np.random.default_rng(3), {}
        for name, split in dataset.splits.items():
            split.inputs_true[..., 1] = 0
            if split.n_bins is not None:
                split.n_bins[:] = np.maximum(split.n_bins, 4)
            shape = split.recon_data.shape[:2]
            outputs[f"{name}_rates"] = rng.gamma(2.0, size=split.recon_data.shape)
            outputs[f"{name}_latents"] = rng.normal(size=(*shape, 4))
            if inputs:
                outputs[f"{name}_co_means"] = rng.normal(size=(*shape, 2))
        datasets.write(tmp_path / "some.h5", dataset)
        write_hdf5(tmp_path / "fit.h5", outputs, {"format": "ctdb-output-1", "status": "ok"})
        files = {("dataset", "some"): str(tmp_path / "some.h5"), ("fit", *FIT): str(tmp_path / "fit.h5"), ("scores", *FIT): scores(tmp_path)}  # fmt: skip
        return dataset, outputs, files

    return write


def drawn(files, show=lambda canvas: None, missing=(), **options):
    settings = FIGURE.Settings(kind="ctd_fig2", dataset="some", model="good", seed=2, **options)
    given = Files({need: path for need, path in files.items() if need not in missing}, dict.fromkeys(missing, "not made"))  # fmt: skip
    with plt.style.context(STYLE):
        canvas, table = FIGURE.draw(settings, given)
        canvas.canvas.draw()
        seen = show(canvas)
        plt.close(canvas)
    return table, seen, settings


def texts(canvas):
    return [" ".join(text.get_text().split()) for ax in canvas.axes for text in ax.texts]


def values(table, source, panel):
    rows = table[(table["source"] == source) & (table["panel"] == panel)]
    return {name: own["value"].to_numpy() for name, own in rows.groupby("curve", sort=False)}


def test_it_needs_one_fit_and_its_scores_alone():
    planned = Planned((FIT, ("some", "other", 2), ("some", "good", 0)))
    settings = FIGURE.Settings(kind="ctd_fig2", dataset="some", model="good", seed=2)
    assert FIGURE.needs(settings, planned) == [("dataset", "some"), ("fit", *FIT), ("scores", *FIT)]


def test_the_true_path_of_the_trial_is_drawn_without_padding_and_unused_inputs(made):
    dataset, _, files = made(per_trial=True)
    trial = int(dataset["test"].n_bins.argmin())
    table, _, _ = drawn(files, trial=trial)
    test, train = dataset["test"], dataset["train"]
    n = test.n_bins[trial]
    assert 1 < n < 14
    inputs = values(table, "true", "inputs")
    assert list(inputs) == ["left", "right"]
    np.testing.assert_allclose(inputs["right"], test.inputs_true[trial, :n, 2])
    spikes = values(table, "true", "spikes")
    np.testing.assert_allclose(np.stack(list(spikes.values()), 1), test.recon_data[trial, :n])
    seen = np.concatenate([one[:k] for one, k in zip(train.latents, train.n_bins, strict=True)]).astype(float)
    expected = PCA(3).fit(seen).transform(test.latents[trial, :n].astype(float))
    for axis, own in enumerate(values(table, "true", "states").values()):
        np.testing.assert_allclose(np.abs(own), np.abs(expected[:, axis]), atol=1e-5)


def test_the_rates_shown_are_of_held_in_neurons_that_vary_most(made):
    dataset, outputs, files = made()
    table, _, _ = drawn(files, n_neurons=2, trial=1)
    chosen = np.argsort(-dataset["train"].truth.var((0, 1))[:4])[:2]
    true, inferred = (values(table, source, "rates") for source in ("true", "inferred"))
    assert list(true) == list(inferred) == [f"neuron {k}" for k in chosen]
    for name, k in zip(true, chosen, strict=True):
        np.testing.assert_allclose(true[name], dataset["test"].truth[1, :, k])
        np.testing.assert_allclose(inferred[name], outputs["test_rates"][1, :, k])


def test_inferred_states_and_inputs_are_carried_over_by_regression_on_the_train_trials(made):
    dataset, outputs, files = made()
    table, _, _ = drawn(files, trial=2)
    train, test = dataset["train"], dataset["test"]
    target = train.inputs_true.reshape(-1, 3)
    line = LinearRegression().fit(outputs["train_co_means"].reshape(-1, 2), target)
    expected = line.predict(outputs["test_co_means"][2])
    np.testing.assert_allclose(values(table, "inferred", "inputs")["right"], expected[:, 2], atol=1e-6)
    pca = PCA(3).fit(train.latents.reshape(-1, 5).astype(float))
    line = LinearRegression().fit(outputs["train_latents"].reshape(-1, 4), train.latents.reshape(-1, 5).astype(float))
    expected = pca.transform(line.predict(outputs["test_latents"][2]))
    own = np.stack(list(values(table, "inferred", "states").values()), 1)
    np.testing.assert_allclose(np.abs(own), np.abs(expected), atol=1e-5)
    assert len(test.recon_data) > 2


def test_scores_stand_between_the_panels_that_they_compare(made):
    _, _, files = made()
    table, seen, settings = drawn(files, lambda canvas: (texts(canvas), [ax.get_title() for ax in canvas.axes]))
    assert [text for text in seen[0] if "R²" in text] == ["input R² 0.73", "state R² 0.82", "rate R² 0.91"]
    assert seen[1][4:7] == ["inferred inputs", "inferred states", "inferred rates"]
    assert table[table["source"] == "score"].set_index("panel")["value"].to_dict() == {"inputs": 0.73, "states": 0.82, "rates": 0.91}  # fmt: skip
    assert (
        FIGURE.findings(settings, table) == "The fit of good with seed 2: input R² 0.73, state R² 0.82, rate R² 0.91."
    )


@pytest.mark.parametrize(("given", "note"), [(True, "none inferred: external input"), (False, "none inferred")])
def test_a_fit_that_infers_no_inputs_says_so(made, given, note):
    _, _, files = made(inputs=False, given=given)
    table, seen, _ = drawn(files, texts)
    assert note in seen
    assert not [text for text in seen if "input R²" in text]
    assert values(table, "inferred", "inputs") == {}


def test_a_score_that_is_not_there_and_neurons_without_known_rates_are_said(made, tmp_path):
    _, _, files = made(truth=False)
    files["scores", *FIT] = scores(tmp_path, rate_r2=True)
    _, seen, _ = drawn(files, texts)
    assert "rate R²: no score" in seen
    assert "not known" in seen


def test_without_the_fit_the_true_path_is_drawn_and_the_rest_said_to_be_missing(made):
    _, _, files = made()
    table, seen, settings = drawn(files, texts, [("fit", *FIT)])
    assert sum(text == "missing: not made" for text in seen) == 4
    assert len(values(table, "true", "spikes")) == 6
    assert set(table["source"]) == {"true"}
    assert FIGURE.findings(settings, table) == ""


def test_without_the_scores_the_fit_is_drawn_all_the_same(made):
    _, _, files = made()
    table, seen, _ = drawn(files, texts, [("scores", *FIT)])
    assert [text for text in seen if "R²" in text] == ["input R²: no score", "state R²: no score", "rate R²: no score"]
    assert len(values(table, "inferred", "rates")) == 4


def test_a_trial_that_is_not_there_is_an_error(made):
    _, _, files = made()
    with pytest.raises(DatasetError, match="trial 10 of 10 test trials"):
        drawn(files, trial=10)
    plt.close("all")


def test_the_same_bytes_twice(made, tmp_path):
    _, _, files = made()
    settings = FIGURE.Settings(kind="ctd_fig2", dataset="some", model="good", seed=2)
    for name in ("first", "second"):
        make(FIGURE, settings, Files(files), tmp_path / name)
    for suffix in ("pdf", "png", "csv", "txt"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()
