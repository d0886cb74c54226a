"""Figures: files that are whole and reproducible, tables that hold what is drawn, recordings without truth."""

import base64
import json

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from ctdb import datasets
from ctdb.errors import DatasetError
from ctdb.figures import FIGURES
from ctdb.figures.base import make, make_interactive
from ctdb.figures.planned import Files, Planned
from ctdb.files import write_hdf5
from ctdb.scores import COLUMNS


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    assert plt.get_fignums() == []


def draw(kind: str, files: dict, out, **options) -> pd.DataFrame:
    figure = FIGURES[kind]
    settings = figure.Settings(kind=kind, **options)
    assert set(map(tuple, figure.needs(settings, Planned()))) == set(files)
    make(figure, settings, Files({need: str(path) for need, path in files.items()}), out)
    assert out.with_suffix(".pdf").read_bytes()[:5] == b"%PDF-"
    assert out.with_suffix(".png").read_bytes()[1:4] == b"PNG"
    return pd.read_csv(out.with_suffix(".csv"))


def write_outputs(path, dataset, status="ok", seed=1):
    """A fit's outputs: the true rates (or some), and states that are an affine image of the true ones (or some)."""
    rng = np.random.default_rng(seed)
    mixing, arrays = None, {}
    for name, split in dataset.splits.items():
        shape = (*split.recon_data.shape[:2], 3)
        latents = rng.normal(size=shape) if split.latents is None else split.latents
        mixing = rng.normal(size=(latents.shape[2], 4)) if mixing is None else mixing
        arrays[f"{name}_rates"] = split.recon_data * 0 + 0.5 if split.truth is None else split.truth
        arrays[f"{name}_latents"] = latents @ mixing + 2
    write_hdf5(path, arrays, {"format": "ctdb-output-1", "status": status})


@pytest.fixture
def simulated(make_dataset, tmp_path):
    dataset = make_dataset(n_trials=20, n_bins=30, latents=4, ext_input=2)
    datasets.write(tmp_path / "some.h5", dataset)
    write_outputs(tmp_path / "good.h5", dataset)
    return dataset, {("dataset", "some"): tmp_path / "some.h5", ("fit", "some", "good", 0): tmp_path / "good.h5"}


def test_a_figure_has_the_same_bytes_twice(simulated, tmp_path):
    _, files = simulated
    for name in ("first", "second"):
        draw("raster", files, tmp_path / name, dataset="some", models=["good"])
        draw("latents", files, tmp_path / f"{name}_states", dataset="some", models=["good"])
    for suffix in (".pdf", ".png", ".csv", "_states.pdf", "_states.png", "_states.csv"):
        assert (tmp_path / f"first{suffix}").read_bytes() == (tmp_path / f"second{suffix}").read_bytes()


def test_a_raster_tabulates_the_trial_it_draws(simulated, tmp_path):
    dataset, files = simulated
    table = draw("raster", files, tmp_path / "figure", dataset="some", models=["good"], trial=3)
    neuron = table[table["neuron"] == 5]
    np.testing.assert_array_equal(neuron["spikes"], dataset["test"].recon_data[3, :, 5])
    np.testing.assert_allclose(neuron["true_rates"], dataset["test"].truth[3, :, 5], rtol=1e-5)
    np.testing.assert_allclose(neuron["good"], neuron["true_rates"])
    np.testing.assert_allclose(neuron["time_s"], dataset.bin_s * np.arange(30))
    assert neuron["heldout"].all()


def test_a_raster_of_a_recording_does_without_true_rates_and_held_out_neurons(make_dataset, tmp_path):
    recording = make_dataset(n_heldout=0, truth=False)
    datasets.write(tmp_path / "some.h5", recording)
    write_outputs(tmp_path / "fit.h5", recording)
    files = {("dataset", "some"): tmp_path / "some.h5", ("fit", "some", "sae", 2): tmp_path / "fit.h5"}
    table = draw("raster", files, tmp_path / "figure", dataset="some", models=["sae"], seed=2)
    assert "true_rates" not in table
    assert not table["heldout"].any()


def test_states_that_are_an_affine_image_of_the_true_ones_are_drawn_on_top_of_them(simulated, tmp_path):
    _, files = simulated
    table = draw("latents", files, tmp_path / "figure", dataset="some", models=["good"], n_trials=4)
    true, inferred = (table[table["source"] == source] for source in ("true states", "good"))
    assert true["trial"].nunique() == 4
    axes = ["pc1", "pc2", "pc3"]
    np.testing.assert_allclose(inferred[axes], true[axes].to_numpy(), atol=1e-4)
    assert (np.diff(true[axes].var()) < 0).all()


def test_states_without_truth_are_an_error_that_says_so(make_dataset, tmp_path):
    datasets.write(tmp_path / "some.h5", make_dataset())
    figure = FIGURES["latents"]
    settings = figure.Settings(kind="latents", dataset="some", models=["none"])
    with pytest.raises(DatasetError, match="'some' has no true latents"):
        make(figure, settings, Files({("dataset", "some"): str(tmp_path / "some.h5")}), tmp_path / "figure")
    assert list(tmp_path.glob("figure*")) == []


def test_a_fit_that_diverged_is_named_so(simulated, tmp_path):
    dataset, files = simulated
    write_outputs(tmp_path / "good.h5", dataset, status="diverged")
    table = draw("latents", files, tmp_path / "figure", dataset="some", models=["good"])
    assert set(table["source"]) == {"true states", "good (diverged)"}


def write_activity(path, rng, **more):
    shape = (6, 10, 2)
    arrays = {name: rng.normal(size=shape) for name in ("inputs", "targets", "outputs", "states")}
    arrays |= {"loss_weight": np.ones(shape), "success": np.array([1.0, 0.5, 0.0, 1.0, 1.0, 0.0])}
    facts = {"bin_s": 0.01, "target_names": ["x", "y"], "condition_names": [], "success": 3.5 / 6, "loss": 0.1}
    arrays |= {name: value for name, value in more.items() if isinstance(value, np.ndarray)}
    facts |= {name: value for name, value in more.items() if not isinstance(value, np.ndarray)}
    write_hdf5(path, arrays, facts)
    return arrays, {("activity", "gru", 0, ""): path}


def test_task_performance_tabulates_targets_answers_and_success(tmp_path):
    arrays, files = write_activity(tmp_path / "activity.h5", np.random.default_rng(0), baseline_loss=1.0)
    table = draw("task_performance", files, tmp_path / "figure", network="gru", n_trials=2)
    traces = table[table["trial"].notna()]
    assert len(traces) == 2 * 2 * 10
    shown = traces[(traces["trial"] == 1) & (traces["channel"] == "y")]
    np.testing.assert_allclose(shown["target"], arrays["targets"][1, :, 1], rtol=1e-5)
    np.testing.assert_allclose(shown["answer"], arrays["outputs"][1, :, 1], rtol=1e-5)
    success = table[table["condition"].notna()]
    assert success[["condition", "success", "n_trials"]].values.tolist() == [["all", pytest.approx(3.5 / 6), 6]]


def test_task_performance_shows_one_trial_of_each_condition_without_its_padding(tmp_path):
    condition, n_bins = np.array([0, 0, 2, 2, 1, 1]), np.array([10, 9, 4, 10, 7, 10])
    behavior = np.random.default_rng(1).normal(size=(6, 10, 4))
    _, files = write_activity(
        tmp_path / "activity.h5",
        np.random.default_rng(0),
        condition=condition,
        n_bins=n_bins,
        behavior=behavior,
        condition_names=["a", "b", "c"],
    )
    table = draw("task_performance", files, tmp_path / "figure", network="gru", n_trials=3)
    traces = table[table["trial"].notna()]
    assert traces.groupby("trial").size().to_dict() == {0: 20, 4: 14, 2: 8}
    shown = traces[(traces["trial"] == 2) & (traces["channel"] == "x")]
    np.testing.assert_allclose(shown["answer"], behavior[2, :4, 0], rtol=1e-5)
    by_condition = table[table["condition"].notna()].set_index("condition")
    assert by_condition["success"].to_dict() == pytest.approx({"all": 3.5 / 6, "a": 0.75, "b": 0.5, "c": 0.5})


def scores_file(path, rows):
    blank = {"dataset": "some", "kind": "k", "sweep": "{}", "n_trials": 4, "status": "ok", "reason": ""}
    table = pd.DataFrame([blank | row for row in rows], columns=list(COLUMNS)).astype(COLUMNS)
    table.to_csv(path, index=False)
    return {("scores", "some"): path}


def test_a_score_table_has_means_over_seeds_between_ceiling_and_floor_and_counts_failures(tmp_path):
    value = {"split": "test", "metric": "bits_per_spike_heldin", "low": 0.0, "high": 1.0}
    files = scores_file(
        tmp_path / "scores.csv",
        [
            value | {"model": "floor_mean_rate", "role": "floor", "value": 0.0},
            value | {"model": "poor", "role": "fit", "seed": 0, "value": 0.1, "low": 0.05, "high": 0.15},
            value | {"model": "good", "role": "fit", "seed": 0, "value": 0.2},
            value | {"model": "good", "role": "fit", "seed": 1, "value": 0.4},
            value | {"model": "good", "role": "fit", "seed": 2, "value": np.nan, "status": "diverged"},
            value | {"model": "ceiling_true_rates", "role": "ceiling", "value": 0.5},
            value | {"model": "good", "role": "fit", "seed": 0, "value": 9.0, "split": "valid"},
            value | {"model": "good", "role": "fit", "seed": 0, "value": 9.0, "dataset": "other"},
        ],
    )
    table = draw("score_table", files, tmp_path / "figure", dataset="some")
    assert table["model"].tolist() == ["ceiling_true_rates", "good", "poor", "floor_mean_rate"]
    good, poor = table.iloc[1], table.iloc[2]
    assert (good["mean"], good["low"], good["high"]) == pytest.approx((0.3, 0.2, 0.4))
    assert (good["n_ok"], good["n"]) == (2, 3)
    assert (poor["low"], poor["high"]) == pytest.approx((0.05, 0.15))


def test_a_score_table_of_fits_that_all_failed_is_drawn(tmp_path):
    row = {"model": "lds", "role": "fit", "seed": 0, "split": "test", "metric": "rate_r2", "status": "diverged"}
    table = draw("score_table", scores_file(tmp_path / "scores.csv", [row]), tmp_path / "figure", dataset="some")
    assert table["mean"].isna().all()


def texts_of_score_table(files, **options):
    figure = FIGURES["score_table"]
    settings = figure.Settings(kind="score_table", dataset="some", **options)
    canvas, table = figure.draw(settings, {need: str(path) for need, path in files.items()})
    (ax,) = canvas.axes
    seen = [text.get_text() for text in ax.texts], [patch.get_facecolor() for patch in ax.patches]
    plt.close(canvas)
    return table, *seen


def test_a_score_without_an_interval_has_none_in_its_cell(tmp_path):
    value = {"split": "test", "role": "fit", "model": "gru", "seed": 0}
    rows = [
        value | {"metric": "forecast_skill", "value": 0.75},
        value | {"metric": "flow_field_r2", "value": 0.5, "low": 0.25, "high": 0.625},
    ]
    files = scores_file(tmp_path / "scores.csv", rows)
    table, texts, _ = texts_of_score_table(files, metrics=["forecast_skill", "flow_field_r2"])
    assert texts == ["0.750", "0.500", "0.250 … 0.625"]
    assert table.set_index("metric")["range_of"].fillna("").to_dict() == {"forecast_skill": "", "flow_field_r2": "bootstrap over trials"}  # fmt: skip
    more = scores_file(tmp_path / "more.csv", [*rows, rows[0] | {"seed": 1, "value": 0.25}])
    table, texts, _ = texts_of_score_table(more, metrics=["forecast_skill"])
    assert texts == ["0.500", "0.250 … 0.750"]
    assert table["range_of"].tolist() == ["seeds"]


def test_fits_are_ordered_by_the_first_metric_where_bits_per_spike_is_not_shown(tmp_path):
    value = {"split": "test", "role": "fit", "seed": 0}
    scores = {"poor": (0.1, 0.9, 0.3), "good": (0.3, 0.1, 0.1), "fair": (0.2, 0.5, 0.2)}
    metrics = ["flow_field_r2", "forecast_skill", "bits_per_spike_heldin"]
    rows = [value | {"model": model, "metric": metric, "value": one} for model, own in scores.items() for metric, one in zip(metrics, own, strict=True)]  # fmt: skip
    files = scores_file(tmp_path / "scores.csv", rows)
    for shown, expected in (
        (metrics[:2], ["good", "fair", "poor"]),
        (metrics[1::-1], ["poor", "fair", "good"]),
        (metrics, ["poor", "fair", "good"]),
    ):
        table, *_ = texts_of_score_table(files, metrics=shown)
        assert list(dict.fromkeys(table["model"])) == expected


def test_scores_in_units_of_their_own_have_no_shade(tmp_path):
    value = {"split": "test", "role": "fit", "seed": 0}
    rows = [value | {"model": f"m{k}", "metric": metric, "value": k / 2} for k in range(3) for metric in ("lyapunov_max", "flow_field_r2")]  # fmt: skip
    files = scores_file(tmp_path / "scores.csv", rows)
    for metric, n_shades in (("lyapunov_max", 1), ("flow_field_r2", 3)):
        _, _, shades = texts_of_score_table(files, metrics=[metric])
        assert len(set(shades)) == n_shades


def test_the_scores_shown_by_default_are_not_those_of_dynamics(tmp_path):
    value = {"split": "test", "role": "fit", "seed": 0, "model": "gru", "value": 0.5}
    files = scores_file(tmp_path / "scores.csv", [value | {"metric": metric} for metric in ("rate_r2", "flow_field_r2", "input_r2_inferred_to_true")])  # fmt: skip
    table, *_ = texts_of_score_table(files)
    assert set(table["metric"]) == {"rate_r2", "input_r2_inferred_to_true"}


def test_padding_does_not_move_the_states_in_the_figure(make_dataset, tmp_path):
    tables = []
    for fill in (0.0, 50.0):
        dataset = make_dataset(n_trials=20, n_bins=30, latents=4, per_trial=True)
        for split in dataset.splits.values():
            split.latents[np.arange(30) >= split.n_bins[:, None]] = fill
        datasets.write(tmp_path / "some.h5", dataset)
        write_outputs(tmp_path / "fit.h5", dataset)
        files = {("dataset", "some"): tmp_path / "some.h5", ("fit", "some", "sae", 0): tmp_path / "fit.h5"}
        tables.append(draw("latents", files, tmp_path / "figure", dataset="some", models=["sae"], n_trials=3))
    pd.testing.assert_frame_equal(*tables)
    assert len(tables[0]) == 2 * dataset["test"].n_bins[:3].sum()


@pytest.mark.parametrize("n_states", [1, 2])
def test_few_states_are_drawn_too(n_states, make_dataset, tmp_path):
    dataset = make_dataset(n_trials=20, n_bins=30, latents=n_states)
    datasets.write(tmp_path / "some.h5", dataset)
    write_outputs(tmp_path / "fit.h5", dataset)
    files = {("dataset", "some"): tmp_path / "some.h5", ("fit", "some", "sae", 0): tmp_path / "fit.h5"}
    table = draw("latents", files, tmp_path / "figure", dataset="some", models=["sae"])
    assert f"pc{n_states}" in table
    assert f"pc{n_states + 1}" not in table


def test_a_trial_that_is_not_there_is_refused(simulated, tmp_path):
    _, files = simulated
    with pytest.raises(DatasetError, match="trial 999 of"):
        draw("raster", files, tmp_path / "figure", dataset="some", models=["good"], trial=999)


def test_states_to_be_turned_are_those_on_paper_with_the_truth_beside_each_fit(simulated, tmp_path):
    _, files = simulated
    table = draw("latents", files, tmp_path / "figure", dataset="some", models=["good"], n_trials=3)
    figure = FIGURES["latents"]
    settings = figure.Settings(kind="latents", dataset="some", models=["good"], n_trials=3)
    make_interactive(figure, settings, Files({need: str(path) for need, path in files.items()}), tmp_path / "figure")
    drawn = json.loads((tmp_path / "figure.json").read_text())
    assert [trace["name"] for trace in drawn["data"]] == ["true states", "good"]
    for trace in drawn["data"]:
        rows = table[table["source"] == trace["name"]]
        for letter, column in zip("xyz", ("pc1", "pc2", "pc3"), strict=True):
            values = np.frombuffer(base64.b64decode(trace[letter]["bdata"]), trace[letter]["dtype"])
            assert np.isnan(values).sum() == 3  # a gap after each trial
            np.testing.assert_allclose(values[~np.isnan(values)], rows[column], rtol=1e-4, atol=1e-5)
    choices = drawn["layout"]["meta"]["choices"]
    assert [(one["label"], one["visible"]) for one in choices] == [("true states and all fits", [True, True]), ("true states", [True, False]), ("true states and good", [True, True])]  # fmt: skip
    truth, good = (trace["line"] for trace in drawn["data"])
    assert truth["color"] != good["color"]


def test_what_cannot_be_turned_says_why(simulated, tmp_path):
    _, files = simulated
    figure = FIGURES["latents"]
    settings = figure.Settings(kind="latents", dataset="some", models=["good"])
    there = {("dataset", "some"): str(files["dataset", "some"])}
    lacking = Files(there, {("fit", "some", "good", 0): "a fit of 'good' to 'some'"})
    make_interactive(figure, settings, lacking, tmp_path / "figure")
    assert (
        json.loads((tmp_path / "figure.json").read_text())["layout"]["meta"]["missing"] == "a fit of 'good' to 'some'"
    )
