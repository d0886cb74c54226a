"""Figures of LFADS and BAND, against the rows and arrays they are drawn from."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from pydantic import ValidationError
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from ctdb import datasets
from ctdb.errors import DatasetError, MissingError
from ctdb.figures import FIGURES
from ctdb.figures.base import STYLE, make
from ctdb.figures.planned import Files, Planned
from ctdb.figures.published import published
from ctdb.files import write_hdf5
from ctdb.scores import COLUMNS

MODELS = {"lfads": "plain", "band": "supervised"}
DECODED = ["behavior_r2", "behavior_r2_ridge", "behavior_r2_ridge_sequence"]
BASELINES = {"baseline_ridge_on_spikes": ["behavior_r2"], "baseline_smoothed_spikes": DECODED[1:]}


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert left == []


def known_value(dataset, model, seed, metric):
    """A number of its own for each score."""
    return (sum(map(ord, f"{dataset}{model}{metric}")) % 97) / 100 + 0.01 * (seed or 0)


class World:
    """Files of made-up results, by need."""

    def __init__(self, folder):
        self.folder, self.files, self.missing, self.fits = folder, {}, {}, []
        self.datasets, self.outputs = {}, {}

    def dataset(self, name, dataset):
        datasets.write(self.folder / f"{name}.h5", dataset)
        self.files["dataset", name] = str(self.folder / f"{name}.h5")
        self.datasets[name] = dataset
        rows = [self.row(name, model, None, metric, role="baseline") for model, own in BASELINES.items() for metric in own]  # fmt: skip
        self.write(("scores", name), rows)

    def row(self, dataset, model, seed, metric, role="fit", value=None, **other):
        value = known_value(dataset, model, seed, metric) if value is None else value
        blank = {
            "session": "",
            "kind": "k",
            "sweep": "{}",
            "split": "test",
            "n_trials": 4,
            "status": "ok",
            "reason": "",
        }
        own = {"dataset": dataset, "model": model, "role": role, "metric": metric, "seed": seed, "value": value}
        return blank | own | other

    def write(self, need, rows):
        path = self.folder / f"{'-'.join(map(str, need))}.csv"
        pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS).to_csv(path, index=False)
        self.files[need] = str(path)

    def fit(self, dataset, model, seed=0, metrics=DECODED, sweep=None, failed=False, also=(), outputs=None):
        name = model + ("@" + ",".join(f"{key}={one}" for key, one in sweep.items()) if sweep else "")
        change = {"value": np.nan, "status": "diverged", "reason": "why"} if failed else {}
        rows = [self.row(dataset, name, seed, metric, sweep=json.dumps(sweep or {}), **change) for metric in metrics]
        rows += [self.row(dataset, name, seed, metric, **{"split": "valid"}) | {"value": 9.0} for metric in metrics]
        self.write(("scores", dataset, name, seed), rows + list(also))
        self.fits.append((dataset, name, seed))
        if outputs is not None:
            path = self.folder / f"{dataset}-{name}-{seed}.h5"
            write_hdf5(path, outputs, {"format": "ctdb-output-1", "status": "ok"})
            self.files["fit", dataset, name, seed] = str(path)
            self.outputs[dataset, name, seed] = outputs
        return name

    def needs(self, kind, **options):
        figure = FIGURES[kind]
        settings = figure.Settings(kind=kind, **options)
        return figure, settings, figure.needs(settings, Planned(tuple(self.fits)))

    def draw(self, kind, show=lambda canvas: None, **options):
        """Table of a figure from what it needs and nothing else, and what `show` sees of it."""
        figure, settings, needs = self.needs(kind, **options)
        missing = {need: f"there is no {' '.join(map(str, need))}" for need in needs if need not in self.files}
        there = {need: self.files[need] for need in needs if need in self.files}
        files = Files(there or {("activity", "none", 0): "none"}, missing)  # the type checker looks at one value
        with plt.style.context(STYLE):
            canvas, table = figure.draw(settings, files)
            seen = show(canvas)
            plt.close(canvas)
        self.last = figure, settings, files
        return table, seen

    def reproduction(self):
        figure, settings, files = self.last
        return figure.reproduction(settings, files)

    def findings(self, table):
        figure, settings, _ = self.last
        return figure.findings(settings, table)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def reaching(make_dataset, seed=0, n_trials=40, **channels):
    """A data set of three conditions, whose behaviour depends on them, with an unknown value."""
    dataset = make_dataset(n_trials=n_trials, n_bins=6, seed=seed, behavior=2, names={"behavior": ["vx", "vy"]}, **channels)  # fmt: skip
    rng = np.random.default_rng(seed)
    course, splits = rng.normal(size=(3, 6, 2)), {}
    for name, split in dataset.splits.items():
        condition = np.arange(split.n_trials) % 3
        behavior = 5 * course[condition] + rng.normal(size=(split.n_trials, 6, 2))
        behavior[1, 2, 0] = np.nan
        splits[name] = replace(split, behavior=behavior.astype(np.float32), condition=condition)
    return replace(dataset, splits=splits)


def made_outputs(dataset, seed, factors=4, controller=True):
    rng, arrays = np.random.default_rng(seed), {}
    for name, split in dataset.splits.items():
        shape = split.recon_data.shape
        near = np.nan_to_num(split.behavior) + 0.7 * rng.normal(size=split.behavior.shape)
        own = {"behavior": near, "factors": rng.normal(size=(*shape[:2], factors))}
        if controller:
            own |= {"ablated_behavior": 0.5 * near, "co_means": rng.normal(size=(*shape[:2], 3))}
        arrays |= {f"{name}_{key}": value.astype(np.float32) for key, value in own.items()}
    return arrays


def means_of_conditions(dataset, split="test"):
    """By loops over the test trials: the mean of the train trials of the same condition, where it is known."""
    train, trials = dataset["train"], dataset[split]
    return np.stack([np.nanmean(train.behavior[train.condition == one], 0) for one in trials.condition])


def r2_around(true, decoded, centre):
    """Mean over channels of 1 - residual / (variance around the centre)."""
    parts = []
    for channel in range(true.shape[2]):
        known = ~np.isnan(true[..., channel])
        residual = (true - decoded)[..., channel][known]
        parts.append(1 - (residual**2).sum() / ((true - centre)[..., channel][known] ** 2).sum())
    return np.mean(parts)


def diamonds(ax):
    """Places of published values in a panel."""
    found = [np.stack(line.get_data(), 1) for line in ax.lines if line.get_marker() == "D" and len(line.get_xdata())]
    return sorted(map(tuple, np.concatenate(found).astype(float).round(6))) if found else []


def texts(ax):
    return [text.get_text() for text in ax.texts]


# --- decoding ---


@pytest.fixture
def decoding(world, make_dataset):
    for fold in (0, 1):
        world.dataset(f"fold{fold}", reaching(make_dataset, fold))
        for model in MODELS.values():
            for seed in (0, 1):
                world.fit(f"fold{fold}", model, seed)
    world.dataset("mixed", reaching(make_dataset, 2))
    world.fit("mixed", "supervised")
    world.options = {"datasets": ["fold0", "fold1"], "models": MODELS}
    return world


def test_every_fit_of_every_fold_is_a_point_of_its_model_and_decoder(decoding):
    table, _ = decoding.draw("band_decoding", **decoding.options)
    for series, model in MODELS.items():
        for metric in DECODED:
            rows = table[(table["series"] == series) & (table["metric"] == metric)]
            assert rows["value"].tolist() == [known_value(f"fold{fold}", model, seed, metric) for fold in (0, 1) for seed in (0, 1)]  # fmt: skip
    for series, model in zip(["ridge_on_spikes", "smoothed_spikes"], BASELINES, strict=True):
        rows = table[table["series"] == series]
        assert set(rows["metric"]) == set(BASELINES[model])
        expected = [known_value(one.dataset, model, None, one.metric) for one in rows.itertuples()]
        assert rows["value"].tolist() == pytest.approx(expected)


def test_condition_means_are_scored_as_by_hand(decoding):
    table, _ = decoding.draw("band_decoding", **decoding.options)
    rows = table[table["series"] == "condition_mean"].set_index("dataset")["value"]
    for name in ("fold0", "fold1"):
        dataset = decoding.datasets[name]
        mean, true = means_of_conditions(dataset), dataset["test"].behavior
        by_channel = []
        for channel in range(2):
            known = ~np.isnan(true[..., channel])
            by_channel.append(r2_score(true[..., channel][known], mean[..., channel][known]))
        assert rows[name] == pytest.approx(np.mean(by_channel), rel=1e-5)
        assert 0.5 < rows[name] < 1


def test_the_filled_marker_is_the_mean_and_failed_fits_are_counted(decoding):
    decoding.fit("fold0", "supervised", 1, failed=True)
    _, (lines, said) = decoding.draw("band_decoding", lambda canvas: (canvas.axes[0].lines, texts(canvas.axes[0])), **decoding.options)  # fmt: skip
    good = [known_value(fold, "supervised", seed, "behavior_r2") for fold, seed in (("fold0", 0), ("fold1", 0), ("fold1", 1))]  # fmt: skip
    own = [line for line in lines if (line.get_marker() == "o" and line.get_color() == "C1") or line.get_markeredgecolor() == "C1"]  # fmt: skip
    (mean,) = [line.get_xdata() for line in own if line.get_marker() == "o" and line.get_markerfacecolor() == "C1"]
    (points,) = [line.get_xdata() for line in own if line.get_marker() == "o" and line.get_markerfacecolor() == "none"]
    assert float(np.ravel(mean)[0]) == pytest.approx(np.mean(good))
    assert sorted(points) == pytest.approx(sorted(good))
    assert f"{np.mean(good):.3f}, 3 of 4 fits" in said


def test_band_on_shuffled_data_has_a_row_or_the_reason_why_not(decoding):
    options = decoding.options | {"behavior_shuffled": "mixed"}
    table, said = decoding.draw("band_decoding", lambda canvas: texts(canvas.axes[0]), **options)
    rows = table[table["series"] == "behavior_shuffled"]
    assert rows["value"].tolist() == pytest.approx([known_value("mixed", "supervised", 0, metric) for metric in DECODED])  # fmt: skip
    assert "missing: neurons_shuffled is not set" in said
    assert not any("behavior_shuffled" in one for one in said)


def test_a_model_without_fits_is_said_to_be_missing_and_the_others_are_drawn(decoding):
    decoding.fits = [fit for fit in decoding.fits if fit[1] != "plain"]
    for need in [need for need in decoding.files if "plain" in need]:
        del decoding.files[need]
    table, said = decoding.draw("band_decoding", lambda canvas: texts(canvas.axes[0]), **decoding.options)
    assert "missing: there is no scores fold0 plain 0" in said
    assert set(table["series"]) == {"band", "ridge_on_spikes", "smoothed_spikes", "condition_mean"}


def test_nothing_at_all_is_still_a_figure(world):
    table, said = world.draw("band_decoding", lambda canvas: texts(canvas.axes[0]), datasets=["fold0"], models=MODELS, published=True)  # fmt: skip
    assert len([one for one in said if one.startswith("missing: ")]) == 7
    assert set(table["of"]) == {"published"}
    assert world.reproduction()["n"].eq(0).all()


def test_scores_far_below_zero_are_at_the_edge_with_their_number(decoding):
    decoding.fit("mixed", "supervised", also=[])
    rows = [decoding.row("mixed", "supervised", 0, "behavior_r2", value=-7.5)]
    decoding.write(("scores", "mixed", "supervised", 0), rows)
    options = decoding.options | {"neurons_shuffled": "mixed"}
    _, (low, said) = decoding.draw("band_decoding", lambda canvas: (canvas.axes[0].get_xlim()[0], texts(canvas.axes[0])), **options)  # fmt: skip
    assert low >= -0.5
    assert "-7.500 (below the axis)" in said


def test_only_the_models_themselves_are_needed(decoding):
    decoding.fit("fold0", "supervised", sweep={"fac_dim": 4})
    decoding.fit("fold0", "other")
    _, _, needs = decoding.needs("band_decoding", **decoding.options, behavior_shuffled="mixed")
    fits = {need[1:] for need in needs if len(need) == 4}
    expected = {(f"fold{fold}", model, seed) for fold in (0, 1) for model in MODELS.values() for seed in (0, 1)}
    assert fits == expected | {("mixed", "supervised", 0)}
    assert {need for need in needs if len(need) == 2} == {("dataset", "fold0"), ("dataset", "fold1"), ("scores", "fold0"), ("scores", "fold1"), ("scores", "mixed")}  # fmt: skip


def test_published_numbers_of_other_sessions_stand_apart(decoding):
    options = decoding.options | {"published": True}
    _, (left, right) = decoding.draw("band_decoding", lambda canvas: [diamonds(ax) for ax in canvas.axes], **options)
    theirs = published("band_decoding")
    here = theirs["x"] == "this session"
    assert sorted(x for x, _ in left) == pytest.approx(sorted(theirs["value"][here]))
    assert sorted(x for x, _ in right) == pytest.approx(sorted(theirs["value"][~here]))
    table, titles = decoding.draw("band_decoding", lambda canvas: [ax.get_title() for ax in canvas.axes], **decoding.options)  # fmt: skip
    assert titles == ["here"]
    assert set(table["of"]) == {"ours"}
    assert decoding.reproduction().empty


def test_reproduction_sets_means_over_folds_and_seeds_beside_the_headline(decoding):
    decoding.draw("band_decoding", **decoding.options, published=True)
    rows = decoding.reproduction().set_index(["series", "x"])
    assert set(rows.index) == {
        ("band", "C 10-07 AD"), ("lfads", "C 10-07 AD"), ("condition_mean", "C 10-07 AD"),
        ("condition_mean", "this session"), ("ridge_on_spikes", "this session"),
    }  # fmt: skip
    ours = [known_value(f"fold{fold}", "plain", seed, "behavior_r2_ridge_sequence") for fold in (0, 1) for seed in (0, 1)]  # fmt: skip
    lfads = rows.loc["lfads", "C 10-07 AD"]
    assert (lfads["ours"], lfads["n"], lfads["published"]) == (pytest.approx(np.mean(ours)), 4, 0.8273)
    spikes = [known_value(f"fold{fold}", "baseline_ridge_on_spikes", None, "behavior_r2") for fold in (0, 1)]
    assert rows.loc[("ridge_on_spikes", "this session"), "ours"] == pytest.approx(np.mean(spikes))
    assert rows["band"].isna().all()


def test_the_caption_says_the_numbers(decoding):
    table, _ = decoding.draw("band_decoding", **decoding.options)
    said = decoding.findings(table)
    values = {
        m: [known_value(f"fold{f}", m, s, "behavior_r2") for f in (0, 1) for s in (0, 1)] for m in MODELS.values()
    }
    own = values["supervised"]
    assert f"BAND: R² {np.mean(own):.3f} ({min(own):.3f} to {max(own):.3f} over 4 fits)." in said
    difference = np.subtract(own, values["plain"])
    assert f"above LFADS in {(difference > 0).sum()} of 4 pairs of fits, by {difference.mean():.3f} on average" in said


# --- ablation ---

CONTROL = ["behavior_r2", "behavior_r2_uive", "bits_per_spike_heldin", "control_behavior_r2", "control_bits_per_spike"]


@pytest.fixture
def ablation(world, make_dataset):
    world.dataset("some", reaching(make_dataset))
    for number, model in enumerate(MODELS.values()):
        for seed in (0, 1):
            world.fit("some", model, seed, CONTROL, outputs=made_outputs(world.datasets["some"], 10 * number + seed))
    world.options = {"datasets": ["some"], "models": MODELS}
    return world


def ablated(table, series, metric, x):
    rows = table[(table["series"] == series) & (table["metric"] == metric) & (table["x"] == x)]
    return rows.sort_values("seed")["value"].tolist()


def test_scores_without_inputs_are_what_the_control_scores_leave(ablation):
    table, _ = ablation.draw("band_ablation", **ablation.options)
    for series, model in MODELS.items():
        for metric, lost in (("behavior_r2", "control_behavior_r2"), ("bits_per_spike_heldin", "control_bits_per_spike")):  # fmt: skip
            whole = [known_value("some", model, seed, metric) for seed in (0, 1)]
            loss = [known_value("some", model, seed, lost) for seed in (0, 1)]
            assert ablated(table, series, metric, "with") == pytest.approx(whole)
            assert ablated(table, series, metric, "without") == pytest.approx(np.subtract(whole, loss))


def test_what_is_left_around_condition_means_is_scored_from_the_outputs(ablation):
    table, _ = ablation.draw("band_ablation", **ablation.options)
    dataset = ablation.datasets["some"]
    true, mean = dataset["test"].behavior.astype(float), means_of_conditions(dataset)
    for series, model in MODELS.items():
        expected = [r2_around(true, ablation.outputs["some", model, seed]["test_ablated_behavior"], mean) for seed in (0, 1)]  # fmt: skip
        assert ablated(table, series, "behavior_r2_uive", "without") == pytest.approx(expected, rel=1e-4)


def test_a_line_joins_the_scores_of_a_fit(ablation):
    table, lines = ablation.draw("band_ablation", lambda canvas: canvas.axes[0].lines, **ablation.options)
    drawn = sorted(tuple(line.get_ydata()) for line in lines if line.get_linewidth() == 0.5)
    pairs = [pair for series in MODELS for pair in zip(ablated(table, series, "behavior_r2", "with"), ablated(table, series, "behavior_r2", "without"), strict=True)]  # fmt: skip
    np.testing.assert_allclose(drawn, sorted(pairs))
    means = sorted(tuple(line.get_ydata()) for line in lines if line.get_linewidth() == 1.8)
    np.testing.assert_allclose(means, sorted(tuple(np.mean(pairs[k : k + 2], 0)) for k in (0, 2)))


def test_failed_fits_and_those_without_a_controller_are_counted(ablation):
    ablation.fit("some", "plain", 1, CONTROL, failed=True)
    outputs = made_outputs(ablation.datasets["some"], 5, controller=False)
    ablation.fit("some", "supervised", 1, CONTROL[:3], outputs=outputs)
    table, said = ablation.draw("band_ablation", lambda canvas: [texts(ax) for ax in canvas.axes], **ablation.options)
    assert np.isnan(ablated(table, "band", "behavior_r2", "without")[1])
    assert np.isnan(ablated(table, "band", "behavior_r2_uive", "without")[1])
    assert all(one.count("1 of 2 fits") == 2 for one in said)


def test_means_below_the_axis_are_told(ablation):
    rows = [ablation.row("some", "plain", 0, metric, value=value) for metric, value in (("behavior_r2_uive", -9.25), ("behavior_r2", 0.5))]  # fmt: skip
    ablation.write(("scores", "some", "plain", 0), rows)
    ablation.fits.remove(("some", "plain", 1))
    _, (low, said) = ablation.draw("band_ablation", lambda canvas: (canvas.axes[1].get_ylim()[0], texts(canvas.axes[1])), **ablation.options)  # fmt: skip
    assert low > -3
    assert "-9.2" in said


def test_ablation_beside_the_published_numbers(ablation):
    _, seen = ablation.draw("band_ablation", lambda canvas: [diamonds(ax) for ax in canvas.axes], **ablation.options, published=True)  # fmt: skip
    theirs = published("band_ablation")
    for metric, found in zip(CONTROL[:3], seen, strict=True):
        assert sorted(y for _, y in found) == pytest.approx(sorted(theirs["value"][theirs["metric"] == metric]))
    rows = ablation.reproduction().set_index(["series", "x", "metric"])
    assert len(rows) == 12
    without = [known_value("some", "supervised", s, "behavior_r2") - known_value("some", "supervised", s, "control_behavior_r2") for s in (0, 1)]  # fmt: skip
    assert rows.loc[("band", "without", "behavior_r2"), "ours"] == pytest.approx(np.mean(without))
    ablation.draw("band_ablation", **ablation.options)
    assert ablation.reproduction().empty


def test_a_model_without_fits_is_said_to_be_missing_beside_the_other(ablation):
    for need in [need for need in ablation.files if "plain" in need]:
        del ablation.files[need]
    table, (below, said) = ablation.draw("band_ablation", lambda canvas: (canvas.get_supxlabel(), [texts(ax) for ax in canvas.axes]), **ablation.options)  # fmt: skip
    assert below == "Missing: there is no scores some plain 0."
    assert all("missing" in one for one in said)
    assert set(table["series"]) == {"band"}


def test_ablation_without_any_fit_says_so(world):
    _, said = world.draw("band_ablation", lambda canvas: [texts(ax) for ax in canvas.axes], datasets=["some"], models=MODELS)  # fmt: skip
    assert all("missing: there is no scores some" in one[0].replace("\n", " ") for one in said)


# --- small variability ---


@pytest.fixture
def small(world, make_dataset):
    dataset = reaching(make_dataset, inputs_true=3)
    rng = np.random.default_rng(5)
    splits = {}
    for name, split in dataset.splits.items():
        inputs = np.zeros((split.n_trials, 6, 3), np.float32)
        for trial in range(0, split.n_trials, 2):
            start = 1 + trial % 3
            inputs[trial, start : start + 2, 1:] = rng.normal(size=2)
        splits[name] = replace(split, inputs_true=inputs)
    names = {"behavior": ["vx", "vy"], "inputs_true": ["go", "fx", "fy"]}
    world.dataset("some", replace(dataset, splits=splits, names=names))
    for number, model in enumerate(MODELS.values()):
        for seed in (0, 1):
            world.fit("some", model, seed, ["behavior_r2_uive"], outputs=made_outputs(world.datasets["some"], 10 * number + seed))  # fmt: skip
    world.options = {"dataset": "some", "models": MODELS}
    return world


def deviations(world, values):
    dataset = world.datasets["some"]
    spread = np.nanstd(dataset["train"].behavior.astype(float), (0, 1))
    return (values - means_of_conditions(dataset)) / spread


def test_deviations_from_condition_means_bin_by_bin(small):
    table, _ = small.draw("band_small_variability", **small.options)
    true = deviations(small, small.datasets["some"]["test"].behavior.astype(float))
    rows = table[table["panel"] == "bins"]
    for series, model in MODELS.items():
        decoded = deviations(small, small.outputs["some", model, 0]["test_behavior"])
        own = rows[rows["series"] == series]
        assert len(own) == (~np.isnan(true)).sum() == true.size - 1
        at = (own["trial"].astype(int), own["bin"].astype(int), own["channel"].map({"vx": 0, "vy": 1}))
        np.testing.assert_allclose(own["true"], true[at], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(own["value"], decoded[at], rtol=1e-4, atol=1e-5)


def test_the_trials_that_deviate_most_are_of_different_conditions(small):
    table, titles = small.draw("band_small_variability", lambda canvas: [ax.get_title() for ax in canvas.axes[3:]], **small.options, n_trials=2)  # fmt: skip
    true = deviations(small, small.datasets["some"]["test"].behavior.astype(float))
    condition = small.datasets["some"]["test"].condition
    order = sorted(range(len(true)), key=lambda trial: -np.nansum(true[trial] ** 2))
    first = order[0]
    second = next(trial for trial in order if condition[trial] != condition[first])
    rows = table[table["panel"] == "trials"]
    assert rows["trial"].drop_duplicates().tolist() == [first, second]
    assert titles == [f"condition {condition[first]}", f"condition {condition[second]}"]
    curve = rows[(rows["trial"] == second) & (rows["series"] == "true") & (rows["channel"] == "vy")]
    np.testing.assert_allclose(curve["value"], true[second, :, 1], rtol=1e-4)


def test_the_scores_of_all_seeds_are_drawn_between_the_published_ones(small):
    table, found = small.draw("band_small_variability", lambda canvas: diamonds(canvas.axes[2]), **small.options, published=True)  # fmt: skip
    rows = table[table["panel"] == "scores"]
    for series, model in MODELS.items():
        own = rows[rows["series"] == series]["value"].tolist()
        assert own == pytest.approx([known_value("some", model, seed, "behavior_r2_uive") for seed in (0, 1)])
    theirs = published("band_small_variability")
    assert sorted(y for _, y in found) == pytest.approx(sorted(theirs["value"]))
    compared = small.reproduction().set_index("series")
    assert set(compared["x"]) == {"C 10-07, five folds"}
    ours = [known_value("some", "supervised", seed, "behavior_r2_uive") for seed in (0, 1)]
    assert compared.loc["band", "ours"] == pytest.approx(np.mean(ours))


PUSHES = {"fx": "vx", "fy": "vy"}


def test_courses_are_aligned_on_the_push_and_taken_along_it(small):
    table, titles = small.draw("band_small_variability", lambda canvas: [ax.get_title() for ax in canvas.axes[3:]], **small.options, pushes=PUSHES, before_s=0.02, after_s=0.03)  # fmt: skip
    dataset = small.datasets["some"]
    test, train = dataset["test"], dataset["train"]
    pushed = [trial for trial in range(test.n_trials) if np.abs(test.inputs_true[trial, :, 1:]).any()]
    assert titles[0] == f"push, mean of {len(pushed)} trials"
    outputs = small.outputs["some", "supervised", 0]
    fitted = LinearRegression().fit(outputs["train_co_means"].reshape(-1, 3), train.inputs_true[..., 1:].reshape(-1, 2))
    image = fitted.predict(outputs["test_co_means"].reshape(-1, 3)).reshape(*outputs["test_co_means"].shape[:2], 2)
    for panel, series, values in (
        ("push", "true", test.inputs_true[..., 1:]),
        ("push in the inferred inputs", "band", image),
        ("behaviour along the push", "true", test.behavior),
        ("behaviour along the push", "band", outputs["test_behavior"]),
        ("behaviour along the push", "band, without inputs", outputs["test_ablated_behavior"]),
    ):
        expected = []
        for offset in range(-2, 4):
            found = []
            for trial in pushed:
                start = next(b for b in range(6) if np.abs(test.inputs_true[trial, b, 1:]).any())
                way = test.inputs_true[trial, start, 1:] / np.hypot(*test.inputs_true[trial, start, 1:])
                if 0 <= start + offset < 6:
                    found.append(float(values[trial, start + offset] @ way))
            expected.append(np.nanmean(found))
        rows = table[(table["panel"] == panel) & (table["series"] == series)]
        np.testing.assert_allclose(rows["value"], expected, rtol=1e-4, atol=1e-5, err_msg=f"{panel} {series}")
        np.testing.assert_allclose(rows["time_s"], 0.01 * np.arange(-2, 4), atol=1e-12)


def test_the_caption_says_how_much_of_the_course_is_decoded(small):
    table, _ = small.draw("band_small_variability", **small.options, pushes=PUSHES, before_s=0.01, after_s=0.02)
    rows = table[table["panel"] == "behaviour along the push"]
    true, band = (rows[rows["series"] == series]["value"].to_numpy() for series in ("true", "band"))
    assert f"BAND decodes the mean course around a push with R² {r2_score(true, band):.3f}." in small.findings(table)


def test_a_channel_that_is_not_there_is_refused(small):
    with pytest.raises(DatasetError, match=r"'fz', but inputs_true has \['go', 'fx', 'fy'\]"):
        small.draw("band_small_variability", **small.options, pushes={"fz": "vx"})
    plt.close("all")
    with pytest.raises(ValidationError, match="another channel of behaviour for each input"):
        small.draw("band_small_variability", **small.options, pushes={"fx": "vx", "fy": "vx"})


def test_without_conditions_or_a_fit_the_panels_say_so(small):
    dataset = small.datasets["some"]
    bare = replace(dataset, splits={name: replace(split, condition=None) for name, split in dataset.splits.items()})
    small.dataset("some", bare)
    _, said = small.draw("band_small_variability", lambda canvas: [texts(ax) for ax in canvas.axes], **small.options)
    assert all("conditions of the trials" in one[0].replace("\n", " ") for one in said[:2])
    small.dataset("some", dataset)
    del small.files["fit", "some", "plain", 0]
    _, said = small.draw("band_small_variability", lambda canvas: [texts(ax) for ax in canvas.axes], **small.options)
    assert "there is no fit some plain 0" in said[0][0].replace("\n", " ")
    assert "missing" not in said[1][0]


# --- number of factors ---

AGAINST = ["behavior_r2", "behavior_r2_ridge_sequence", "bits_per_spike_heldin"]


@pytest.fixture
def factors(world, make_dataset):
    world.dataset("some", reaching(make_dataset))
    for model in MODELS.values():
        for seed in (0, 1):
            world.fit("some", model, seed, AGAINST, outputs=made_outputs(world.datasets["some"], seed, factors=5))
            for size in (3, 32):
                world.fit("some", model, seed, AGAINST, sweep={"fac_dim": size})
    world.options = {"dataset": "some", "models": MODELS}
    return world


def test_the_models_themselves_are_points_at_the_factors_of_their_outputs(factors):
    table, _ = factors.draw("band_factors", **factors.options)
    rows = table[(table["series"] == "band") & (table["metric"] == "behavior_r2")]
    assert rows["x"].tolist() == [3, 3, 5, 5, 32, 32]
    names = ["supervised@fac_dim=3", "supervised", "supervised@fac_dim=32"]
    assert rows["value"].tolist() == pytest.approx([known_value("some", name, seed, "behavior_r2") for name in names for seed in (0, 1)])  # fmt: skip


def test_lines_go_through_means_and_failed_fits_are_crosses(factors):
    factors.fit("some", "supervised", 1, AGAINST, sweep={"fac_dim": 32}, failed=True)
    _, (lines, said) = factors.draw("band_factors", lambda canvas: (canvas.axes[0].lines, texts(canvas.axes[0])), **factors.options)  # fmt: skip
    (mean,) = [line.get_xydata() for line in lines if line.get_linestyle() == "-" and line.get_color() == "C1"]
    expected = [[3, np.mean([known_value("some", "supervised@fac_dim=3", s, "behavior_r2") for s in (0, 1)])],
                [5, np.mean([known_value("some", "supervised", s, "behavior_r2") for s in (0, 1)])],
                [32, known_value("some", "supervised@fac_dim=32", 0, "behavior_r2")]]  # fmt: skip
    np.testing.assert_allclose(mean, expected)
    crosses = [line.get_xdata().tolist() for line in lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert crosses == [[32.0]]
    assert said == ["BAND: 5 of 6 fits"]


def test_other_sweeps_are_neither_needed_nor_drawn(factors):
    factors.fit("some", "plain", 0, AGAINST, sweep={"dropout_rate": 0.1})
    factors.fit("some", "plain", 0, AGAINST, sweep={"fac_dim": 3, "gen_dim": 8})
    _, _, needs = factors.needs("band_factors", **factors.options)
    labels = {need[2] for need in needs if len(need) == 4}
    assert labels == {f"{model}{point}" for model in MODELS.values() for point in ("", "@fac_dim=3", "@fac_dim=32")}
    assert {need for need in needs if need[0] == "fit"} == {("fit", "some", model, 0) for model in MODELS.values()}


def test_published_numbers_of_factors_and_which_are_not_fitted(factors):
    def show(canvas):
        return canvas.get_suptitle(), [diamonds(ax) for ax in canvas.axes]

    _, (title, found) = factors.draw("band_factors", show, **factors.options, published=True)
    assert title == "some: scores against the number of factors; published and not fitted here: 4, 64, 100"
    assert found[0] == [(4.0, 0.78), (32.0, 0.88), (64.0, 0.91)]
    assert found[1] == [(32.0, 0.76), (64.0, 0.76), (100.0, 0.746)]
    rows = factors.reproduction().set_index(["series", "x"])
    ours = np.mean([known_value("some", "supervised@fac_dim=32", seed, "behavior_r2") for seed in (0, 1)])
    assert rows.loc[("band", "32"), "ours"] == pytest.approx(ours)
    assert rows.loc[("band", "32"), "difference"] == pytest.approx(ours - 0.88)
    assert rows.loc[("lfads", "100"), "n"] == 0


def test_without_fits_the_panels_of_factors_say_so(world):
    _, said = world.draw("band_factors", lambda canvas: [texts(ax) for ax in canvas.axes], dataset="some", models=MODELS)  # fmt: skip
    assert len(said) == 3
    assert all("missing: there is no scores some" in one[0].replace("\n", " ") for one in said)


# --- no controller ---

VARIANTS = {"lfads": "plain", "lfads_no_control": "plain_free", "band": "supervised", "band_no_control": "free"}


@pytest.fixture
def free(world, make_dataset):
    world.dataset("some", reaching(make_dataset))
    for model in VARIANTS.values():
        for seed in (0, 1):
            world.fit("some", model, seed, AGAINST)
    world.options = {"datasets": ["some"], "models": VARIANTS}
    return world


def test_each_variant_has_its_column_with_the_mean_of_its_fits(free):
    table, lines = free.draw("band_no_control", lambda canvas: canvas.axes[2].lines, **free.options)
    bars = [line.get_xydata() for line in lines if line.get_linewidth() == 1.4]
    places = {"lfads": 0, "lfads_no_control": 2, "band": 4.6, "band_no_control": 6.6}
    found = {round(float(bar[:, 0].mean()), 3): bar[0, 1] for bar in bars}
    for series, model in VARIANTS.items():
        values = [known_value("some", model, seed, "bits_per_spike_heldin") for seed in (0, 1)]
        assert found[places[series]] == pytest.approx(np.mean(values))
        rows = table[(table["series"] == series) & (table["metric"] == "bits_per_spike_heldin")]
        assert rows["value"].tolist() == pytest.approx(values)
    assert len(found) == 4


def test_variants_that_are_not_there_are_said_to_be_missing(free):
    free.fits = [fit for fit in free.fits if fit[1] != "free"]
    for seed in (0, 1):
        del free.files["scores", "some", "free", seed]
    free.fit("some", "plain", 1, AGAINST, failed=True)
    _, (below, said) = free.draw("band_no_control", lambda canvas: (canvas.get_supxlabel(), texts(canvas.axes[0])), **free.options)  # fmt: skip
    assert said.count("missing") == 5
    assert "1 of 2 fits" in said
    below = below.replace("\n", " ")
    assert "models.lfads_causal is not set" in below
    assert "there is no scores some free 0" in below


def test_models_without_a_controller_beside_the_published_ones(free):
    _, found = free.draw("band_no_control", lambda canvas: [diamonds(ax) for ax in canvas.axes], **free.options, published=True)  # fmt: skip
    assert found[0] == [(6.98, 0.8559), (7.98, 0.7981)]
    assert found[1] == [(2.38, 0.813), (3.38, 0.7208)]
    rows = free.reproduction().set_index("series")
    ours = np.mean([known_value("some", "free", seed, "behavior_r2") for seed in (0, 1)])
    assert rows.loc["band_no_control", "ours"] == pytest.approx(ours)
    assert rows.loc["band_no_control_causal", "n"] == 0


# --- all of them ---


@pytest.mark.parametrize(
    ("kind", "made", "options"),
    [
        ("band_decoding", "decoding", {"published": True}),
        ("band_ablation", "ablation", {"published": True}),
        ("band_small_variability", "small", {"pushes": PUSHES, "after_s": 0.03}),
        ("band_factors", "factors", {}),
        ("band_no_control", "free", {"published": True}),
    ],
)
def test_the_same_bytes_twice(kind, made, options, request, tmp_path):
    world = request.getfixturevalue(made)
    world.draw(kind, **world.options, **options)
    for name in ("first", "second"):
        make(*world.last, tmp_path / name)
    for suffix in ("pdf", "png", "csv", "txt"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()


def test_what_no_configuration_makes_is_raised_as_missing_by_the_files(decoding):
    decoding.draw("band_decoding", **decoding.options | {"models": {"band": "supervised", "lfads": "unknown"}})
    _, _, files = decoding.last
    with pytest.raises(MissingError, match="there is no scores fold0 unknown 0"):
        files["scores", "fold0", "unknown", 0]
