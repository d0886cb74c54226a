"""The figure of controls, and figures of one session of several: what is drawn, against the arrays it is drawn from."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from scipy.stats import poisson
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from ctdb import datasets
from ctdb.datasets import MultiSession
from ctdb.errors import DatasetError
from ctdb.figures import FIGURES
from ctdb.figures.base import make
from ctdb.figures.planned import Files, Planned
from ctdb.files import write_hdf5
from ctdb.scores import COLUMNS

NAMES = {"behavior": ["speed", "angle"]}


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    assert plt.get_fignums() == []


def draw(kind: str, files: dict, **options) -> pd.DataFrame:
    """Table of a figure; the figure itself is rendered by one test alone, which takes longest."""
    figure = FIGURES[kind]
    settings = figure.Settings(kind=kind, **options)
    assert set(map(tuple, figure.needs(settings, Planned()))) == set(files)
    canvas, table = figure.draw(settings, {need: str(path) for need, path in files.items()})
    plt.close(canvas)
    return table


def make_outputs(dataset, seed, controller=True, prefix=""):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(2, 3))
    arrays = {}
    for name, split in dataset.splits.items():
        shape = split.recon_data.shape
        own = {"rates": rng.gamma(3, 0.3, shape), "latents": rng.normal(size=(*shape[:2], 3)), "ic_mean": rng.normal(size=(len(split.recon_data), 2))}  # fmt: skip
        if controller:
            own |= {"ablated_rates": rng.gamma(3, 0.3, shape), "co_means": rng.normal(size=(*shape[:2], 3))}
            if split.inputs_true is not None:
                own["co_means"] = own["co_means"] + split.inputs_true @ mix
        if split.behavior is not None:
            own["behavior"] = np.nan_to_num(split.behavior) + rng.normal(size=split.behavior.shape)
            if controller:
                own["ablated_behavior"] = own["behavior"] + rng.normal(size=split.behavior.shape)
        arrays |= {f"{prefix}{name}_{key}": value.astype(np.float32) for key, value in own.items()}
    return arrays


@pytest.fixture
def drawn(tmp_path):
    """Write a dataset and the outputs of two models, one without a controller, and draw them."""

    def run(dataset, **options):
        datasets.write(tmp_path / "some.h5", dataset)
        outputs = {"with": make_outputs(dataset, 1), "without": make_outputs(dataset, 2, controller=False)}
        files = {("dataset", "some"): tmp_path / "some.h5"}
        for model, arrays in outputs.items():
            write_hdf5(tmp_path / f"{model}.h5", arrays, {"format": "ctdb-output-1", "status": "ok"})
            files["fit", "some", model, 3] = tmp_path / f"{model}.h5"
        options = {"dataset": "some", "models": ["with", "without"], "seed": 3} | options
        return draw("controls", files, **options), outputs

    return run


def curve(table, model, panel, name):
    rows = table[(table["model"] == model) & (table["panel"] == panel) & (table["curve"] == name)]
    assert len(rows), f"{model}, {panel}: no {name!r} among {sorted(set(table['curve']))}"
    return rows["value"].to_numpy()


def assert_curve(table, model, panel, name, expected):
    np.testing.assert_allclose(curve(table, model, panel, name), expected, rtol=2e-5, atol=1e-5, err_msg=name)


def curves(table, model, panel):
    return set(table[(table["model"] == model) & (table["panel"] == panel)]["curve"])


def test_rates_are_those_of_the_most_active_held_in_neurons_with_and_without_inputs(make_dataset, drawn):
    dataset = make_dataset(n_trials=12, n_bins=20, n_heldin=6)
    for split in dataset.splits.values():
        split.recon_data[:, :, 7] += 100  # held out
    table, outputs = drawn(dataset, trial=2, n_neurons=2)
    total = dataset["test"].recon_data[:, :, :6].sum((0, 1))
    shown = sorted(range(6), key=lambda neuron: -total[neuron])[:2]
    expected = {f"neuron {n} {what}" for n in shown for what in ("true", "inferred")}
    assert curves(table, "without", "rates") == expected
    assert curves(table, "with", "rates") == expected | {f"neuron {n} without inputs" for n in shown}
    for neuron in shown:
        assert_curve(table, "with", "rates", f"neuron {neuron} true", dataset["test"].truth[2, :, neuron])
        for model in ("with", "without"):
            rates = outputs[model]["test_rates"][2, :, neuron]
            assert_curve(table, model, "rates", f"neuron {neuron} inferred", rates)
        assert_curve(table, "with", "rates", f"neuron {neuron} without inputs", outputs["with"]["test_ablated_rates"][2, :, neuron])  # fmt: skip
    times = table[(table["panel"] == "rates") & (table["model"] == "with")].groupby("curve")["time_s"]
    for _, time in times:
        np.testing.assert_allclose(time, 0.01 * np.arange(20), rtol=1e-5)


def test_inferred_inputs_are_drawn_as_they_are_where_the_true_ones_are_not_known(make_dataset, drawn):
    table, outputs = drawn(make_dataset(n_trials=12, n_bins=20, truth=False), trial=1)
    assert curves(table, "with", "inputs") == {f"inferred {channel}" for channel in range(3)}
    for channel in range(3):
        assert_curve(table, "with", "inputs", f"inferred {channel}", outputs["with"]["test_co_means"][1, :, channel])
    assert curves(table, "without", "inputs") == set()
    assert not any("true" in name for name in set(table["curve"]))


@pytest.mark.parametrize("lengths", [False, True])
def test_true_inputs_are_drawn_beside_their_image_by_regression_on_train(make_dataset, drawn, lengths):
    dataset = make_dataset(n_trials=40, n_bins=20, inputs_true=2, per_trial=lengths)
    table, outputs = drawn(dataset, trial=1)
    train = dataset["train"]
    valid = np.ones((40, 20), bool) if not lengths else np.arange(20) < train.n_bins[:, None]
    regression = LinearRegression().fit(outputs["with"]["train_co_means"][valid], train.inputs_true[valid])
    n_bins = 20 if not lengths else dataset["test"].n_bins[1]
    image = regression.predict(outputs["with"]["test_co_means"][1, :n_bins])
    assert curves(table, "with", "inputs") == {f"{what} {c}" for what in ("true", "from inferred") for c in range(2)}
    for channel in range(2):
        assert_curve(table, "with", "inputs", f"true {channel}", dataset["test"].inputs_true[1, :n_bins, channel])
        assert_curve(table, "with", "inputs", f"from inferred {channel}", image[:, channel])
    assert curves(table, "without", "inputs") == set()


def test_behaviour_is_drawn_in_deviations_of_the_train_trials(make_dataset, drawn):
    dataset = make_dataset(n_trials=12, n_bins=20, behavior=2, names=NAMES)
    for split in dataset.splits.values():
        split.behavior[:] = 50 * split.behavior + 7
        split.behavior[:, 3, 1] = np.nan
    table, outputs = drawn(dataset, trial=4)
    train = dataset["train"].behavior.astype(np.float64)
    for channel, name in enumerate(NAMES["behavior"]):
        mean, std = np.nanmean(train[:, :, channel]), np.nanstd(train[:, :, channel])
        assert_curve(table, "with", "behavior", f"{name} true", (dataset["test"].behavior[4, :, channel] - mean) / std)
        for key, label in (("behavior", "decoded"), ("ablated_behavior", "without inputs")):
            value = outputs["with"][f"test_{key}"][4, :, channel]
            assert_curve(table, "with", "behavior", f"{name} {label}", (value - mean) / std)
    assert curves(table, "without", "behavior") == {f"{n} {w}" for n in NAMES["behavior"] for w in ("true", "decoded")}


@pytest.mark.parametrize("padded", [False, True])
def test_scores_are_those_with_and_without_the_inferred_inputs(make_dataset, drawn, padded):
    dataset = make_dataset(n_trials=12, n_bins=20, behavior=2, per_trial=padded)
    table, outputs = drawn(dataset)
    test, train = dataset["test"], dataset["train"]

    def valid(trials):
        n_bins = np.full(trials.n_trials, 20) if trials.n_bins is None else trials.n_bins
        return np.arange(20) < n_bins[:, None]

    seen = valid(test)
    null = train.recon_data[valid(train)][:, :4].mean(0, dtype=float)
    spikes = test.recon_data[seen][:, :4]

    def bits(name):
        rates = outputs["with"][name][seen][:, :4].astype(float)
        return (poisson.logpmf(spikes, rates) - poisson.logpmf(spikes, null)).sum() / spikes.sum() / np.log(2)

    def r2(name):
        return r2_score(test.behavior[seen], outputs["with"][name][seen], multioutput="uniform_average")

    expected = {
        "bits/spike": bits("test_rates"),
        "bits/spike, no inputs": bits("test_ablated_rates"),
        "R²": r2("test_behavior"),
        "R², no inputs": r2("test_ablated_behavior"),
    }
    assert curves(table, "with", "scores") == set(expected)
    for name, value in expected.items():
        assert curve(table, "with", "scores", name).item() == pytest.approx(value, rel=1e-4)
    assert curves(table, "without", "scores") == {"bits/spike", "R²"}


def test_without_behaviour_there_is_no_panel_of_it(make_dataset, tmp_path):
    panels = {}
    for n_channels in (0, 2):
        dataset = make_dataset(n_trials=12, n_bins=20, **({"behavior": n_channels} if n_channels else {}))
        datasets.write(tmp_path / "some.h5", dataset)
        write_hdf5(tmp_path / "fit.h5", make_outputs(dataset, 1), {"format": "ctdb-output-1", "status": "ok"})
        figure = FIGURES["controls"]
        settings = figure.Settings(kind="controls", dataset="some", models=["lfads"])
        files = {("dataset", "some"): str(tmp_path / "some.h5"), ("fit", "some", "lfads", 0): str(tmp_path / "fit.h5")}
        canvas, table = figure.draw(settings, files)
        panels[n_channels] = [ax.get_ylabel() for ax in canvas.axes], set(table["panel"])
        plt.close(canvas)
    assert panels[0] == (["rates", "inputs", ""], {"rates", "inputs", "scores"})
    assert panels[2] == (["rates", "inputs", "behaviour", ""], {"rates", "inputs", "behavior", "scores"})


def test_a_score_that_is_not_defined_has_no_bar(make_dataset, drawn):
    dataset = make_dataset(n_trials=12, n_bins=20, behavior=2)
    dataset["test"].behavior[:] = np.nan
    table, _ = drawn(dataset)
    assert curves(table, "with", "scores") == {"bits/spike", "bits/spike, no inputs"}
    silent = make_dataset(n_trials=12, n_bins=20, behavior=2)
    silent["test"].recon_data[:] = silent["test"].encod_data[:] = 0
    table, _ = drawn(silent)
    assert curves(table, "with", "scores") == {"R²", "R², no inputs"}


def test_a_signal_that_is_no_count_has_no_bits_per_spike(make_dataset, drawn):
    dataset = replace(make_dataset(n_trials=12, n_bins=20, behavior=1), signal="continuous")
    table, _ = drawn(dataset)
    assert curves(table, "with", "scores") == {"R²", "R², no inputs"}
    bare, _ = drawn(replace(make_dataset(n_trials=12, n_bins=20), signal="continuous"))
    assert curves(bare, "with", "scores") == set()


def test_a_trial_that_ends_early_is_drawn_to_its_end(make_dataset, drawn):
    dataset = make_dataset(n_trials=12, n_bins=20, behavior=1, per_trial=True)
    trial = int(np.argmin(dataset["test"].n_bins))
    length = dataset["test"].n_bins[trial]
    table, _ = drawn(dataset, trial=trial)
    assert length < 20
    for panel in ("rates", "inputs", "behavior"):
        assert set(table[table["panel"] == panel].groupby(["model", "curve"]).size()) == {length}


def test_behaviour_in_padding_moves_nothing(make_dataset, drawn):
    tables = []
    for fill in (0.0, 100.0):
        dataset = make_dataset(n_trials=12, n_bins=20, behavior=2, per_trial=True)
        for split in dataset.splits.values():
            split.behavior[np.arange(20) >= split.n_bins[:, None]] = fill
        table, _ = drawn(dataset)
        tables.append(table[(table["panel"] == "behavior") & table["curve"].str.endswith("true")])
    pd.testing.assert_frame_equal(*tables)


def test_the_figure_of_controls_has_the_same_bytes_twice(make_dataset, tmp_path):
    dataset = make_dataset(n_trials=12, n_bins=20, behavior=2, inputs_true=2)
    datasets.write(tmp_path / "some.h5", dataset)
    write_hdf5(tmp_path / "fit.h5", make_outputs(dataset, 1), {"format": "ctdb-output-1", "status": "diverged"})
    files = {("dataset", "some"): str(tmp_path / "some.h5"), ("fit", "some", "band", 0): str(tmp_path / "fit.h5")}
    figure = FIGURES["controls"]
    settings = figure.Settings(kind="controls", dataset="some", models=["band"])
    for name in ("first", "second"):
        make(figure, settings, Files(files), tmp_path / name)
    for suffix in ("pdf", "png", "csv"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()
    assert (tmp_path / "first.pdf").read_bytes()[:5] == b"%PDF-"
    assert (tmp_path / "first.png").read_bytes()[1:4] == b"PNG"
    with plt.rc_context():
        canvas, table = figure.draw(settings, files)
        titles = [ax.get_title() for ax in canvas.axes]
        plt.close(canvas)
    assert "band (diverged)" in titles
    written = pd.read_csv(tmp_path / "first.csv")
    np.testing.assert_allclose(written["value"], table["value"], rtol=1e-4)


def test_a_trial_that_is_not_there_is_refused(make_dataset, drawn):
    with pytest.raises(DatasetError, match="figure `controls`: trial 6 of 6 test trials, counted from 0"):
        drawn(make_dataset(n_trials=12, n_bins=20), trial=6)


# --------------------------------------------------------------------------------------------- one session of several


@pytest.fixture
def sessions(make_dataset, tmp_path):
    common = {"n_bins": 20, "latents": 3, "behavior": 2}
    dataset = MultiSession({"monday": make_dataset(n_trials=12, seed=1, **common), "friday": make_dataset(n_trials=16, n_heldin=7, seed=2, **common)})  # fmt: skip
    datasets.write(tmp_path / "some.h5", dataset)
    outputs = {}
    for seed, (name, session) in enumerate(dataset.sessions.items()):
        outputs |= make_outputs(session, seed, prefix=f"{name}/")
    write_hdf5(tmp_path / "fit.h5", outputs, {"format": "ctdb-output-1", "status": "ok"})
    return (
        dataset,
        outputs,
        {("dataset", "some"): tmp_path / "some.h5", ("fit", "some", "lfads", 0): tmp_path / "fit.h5"},
    )


def test_a_session_is_drawn_by_its_name(sessions):
    dataset, outputs, files = sessions
    options = {"dataset": "some", "models": ["lfads"], "session": "friday"}
    friday = dataset.sessions["friday"]["test"]
    table = draw("raster", files, trial=7, **options)
    np.testing.assert_array_equal(table["spikes"], friday.recon_data[7].ravel())
    np.testing.assert_allclose(table["lfads"], outputs["friday/test_rates"][7].ravel(), rtol=1e-4)
    table = draw("controls", files, trial=7, **options)
    neuron = int(friday.recon_data[:, :, :7].sum((0, 1)).argmax())
    assert_curve(table, "lfads", "rates", f"neuron {neuron} inferred", outputs["friday/test_rates"][7, :, neuron])
    assert_curve(table, "lfads", "rates", f"neuron {neuron} true", friday.truth[7, :, neuron])
    table = draw("latents", files, n_trials=8, **options)
    assert table["trial"].nunique() == 8
    train = dataset.sessions["friday"]["train"].latents.reshape(-1, 3).astype(np.float64)
    true = table[table["source"] == "true states"][["pc1", "pc2", "pc3"]].to_numpy()
    centred = friday.latents.reshape(-1, 3) - train.mean(0)
    np.testing.assert_allclose((true**2).sum(1), (centred**2).sum(1), rtol=1e-4)


@pytest.mark.parametrize("kind", ["raster", "latents", "controls"])
def test_several_sessions_need_the_name_of_one(sessions, kind):
    _, _, files = sessions
    for session in ({}, {"session": "tuesday"}):
        with pytest.raises(
            DatasetError, match=r"a figure draws one session; set `session` to one of \['monday', 'friday'\]"
        ):
            draw(kind, files, dataset="some", models=["lfads"], **session)


def test_a_dataset_of_one_session_has_no_other(make_dataset, tmp_path):
    dataset = make_dataset()
    datasets.write(tmp_path / "some.h5", dataset)
    write_hdf5(tmp_path / "fit.h5", make_outputs(dataset, 0), {"format": "ctdb-output-1", "status": "ok"})
    files = {("dataset", "some"): tmp_path / "some.h5", ("fit", "some", "lfads", 0): tmp_path / "fit.h5"}
    with pytest.raises(DatasetError, match="set `session` to one of"):
        draw("raster", files, dataset="some", models=["lfads"], session="monday")


def test_a_score_table_has_a_row_for_each_session_and_the_baseline_between_fits_and_floor(tmp_path):
    blank = {
        "dataset": "some",
        "kind": "k",
        "sweep": "{}",
        "n_trials": 4,
        "status": "ok",
        "reason": "",
        "split": "test",
    }
    blank |= {"metric": "behavior_r2", "low": 0.0, "high": 1.0}
    rows = [
        {
            "model": "floor_mean_rate",
            "role": "floor",
            "session": "monday",
            "metric": "bits_per_spike_heldin",
            "value": 0.0,
        },
        {"model": "baseline_ridge_on_spikes", "role": "baseline", "session": "monday", "value": 0.7},
        {"model": "band", "role": "fit", "session": "monday", "seed": 0, "value": 0.8},
        {"model": "band", "role": "fit", "session": "friday", "seed": 0, "value": 0.6},
        {"model": "band", "role": "fit", "session": "friday", "seed": 1, "value": 0.4},
    ]
    pd.DataFrame([blank | row for row in rows], columns=list(COLUMNS)).astype(COLUMNS).to_csv(
        tmp_path / "s.csv", index=False
    )
    files = {("scores", "some"): tmp_path / "s.csv"}
    table = draw("score_table", files, dataset="some")
    assert table["model"].tolist() == [
        "band (friday)",
        "band (monday)",
        "baseline_ridge_on_spikes (monday)",
        "floor_mean_rate (monday)",
    ]
    means = table.set_index("model")["mean"]
    assert means["band (friday)"] == pytest.approx(0.5)
    assert means["band (monday)"] == pytest.approx(0.8)
