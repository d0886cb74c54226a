"""The scores table: anchors, tidy rows, what happens to metrics that do not apply and to fits that failed."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import poisson
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from ctdb.datasets import MultiSession, SpikeDataset, Split
from ctdb.errors import MetricError
from ctdb.files import write_hdf5, write_yaml
from ctdb.metrics import COSTLY, METRICS
from ctdb.regression import PENALTIES
from ctdb.scores import BASELINE, CEILING, COLUMNS, FLOOR, gather, score_anchors, score_fit

HELDIN, NEURONS, BINS, INPUTS = 6, 9, 12, 2
AHEAD = BINS + 6
ALL = set(METRICS.modules) - COSTLY
NEED_TRUTH = {"rate_r2", "marginal_wasserstein_skill", "marginal_kl_skill", "power_spectrum_skill"}
NEED_STATES = {"state_r2_true_to_inferred", "state_r2_inferred_to_true", "procrustes_similarity", "cca", "cka"}
WITHOUT_INTERVAL = {
    "marginal_wasserstein_skill",
    "marginal_kl_skill",
    "power_spectrum_skill",
    "procrustes_similarity",
    "cca",
    "cka",
}
NEED_INPUTS = {"input_r2_true_to_inferred", "input_r2_inferred_to_true"}
NEED_BEHAVIOR = {
    "behavior_r2",
    "behavior_r2_ridge",
    "behavior_r2_ridge_sequence",
    "behavior_r2_uive",
    "control_behavior_r2",
}
NEED_LATER_BINS = {"bits_per_spike_forward"}
NEED_COUNTS = {
    "poisson_nll",
    "bits_per_spike_heldin",
    "bits_per_spike_heldout",
    "bits_per_spike_forward",
    "co_bps_ctd",
    "control_bits_per_spike",
}


def make_data(n_recon_bins=BINS, lengths=False, heldin=HELDIN):
    """Everything known; every metric applies where there are more bins to predict than to see."""
    rng = np.random.default_rng(0)
    readout = rng.normal(size=(3, NEURONS))
    splits = {}
    for name, n_trials in (("train", 20), ("valid", 8), ("test", 9)):
        latents = rng.normal(size=(n_trials, n_recon_bins, 3))
        truth = np.exp(0.5 * latents @ readout)
        recon = rng.poisson(truth).astype(np.float32)
        splits[name] = Split(
            encod_data=recon[:, :BINS, :heldin],
            recon_data=recon,
            ext_input=rng.normal(size=(n_trials, n_recon_bins, INPUTS)).astype(np.float32),
            truth=truth.astype(np.float32),
            latents=latents.astype(np.float32),
            behavior=(latents @ readout[:, :2] + rng.normal(size=(n_trials, n_recon_bins, 2))).astype(np.float32),
            inputs_true=rng.normal(size=(n_trials, n_recon_bins, INPUTS)).astype(np.float32),
            condition=np.arange(n_trials) % 2,
            n_bins=rng.integers(5, n_recon_bins + 1, size=n_trials) if lengths else None,
        )
    return SpikeDataset(splits, bin_s=0.01, names={"condition": ["left", "right"]})


def without(data, *fields):
    return replace(data, splits={k: replace(split, **dict.fromkeys(fields)) for k, split in data.splits.items()})


def cut(array, n_bins):
    """Valid samples of all trials."""
    n_bins = [array.shape[1]] * len(array) if n_bins is None else n_bins
    return np.concatenate([trial[:n] for trial, n in zip(array, n_bins, strict=True)]).astype(np.float64)


LABELS = {"dataset": "some", "model": "gru", "kind": "sae_gru", "sweep": json.dumps({"latent_size": 3}), "seed": 4}


def make_outputs(data, prefix="", seed=1):
    """Outputs of a fit that knows the truth but for some noise."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, split in data.splits.items():
        shape, own = split.recon_data.shape, {}
        own["rates"] = rng.gamma(4, 0.25, size=shape) * (1 if split.truth is None else split.truth)
        own["latents"] = rng.normal(size=(*shape[:2], 5))
        if split.latents is not None:
            own["latents"][:, :, :3] += 2 * split.latents
        own["ablated_rates"] = own["rates"] * rng.gamma(1, 1, size=shape)
        own["co_means"] = rng.normal(size=(*shape[:2], 3))
        own["behavior"] = rng.normal(size=(*shape[:2], 2)) + (0 if split.behavior is None else split.behavior)
        own["ablated_behavior"] = own["behavior"] + 2 * rng.normal(size=(*shape[:2], 2))
        if split.inputs_true is not None:
            own["co_means"][:, :, :2] += split.inputs_true
        arrays |= {f"{prefix}{name}_{key}": value.astype(np.float32) for key, value in own.items()}
    return arrays


def write_fit(folder, data, status="ok", reason=""):
    arrays = {}
    for number, (name, session) in enumerate(data.sessions.items()):
        arrays |= make_outputs(session, f"{name}/" if name else "", seed=1 + number)
    write_hdf5(folder / "output.h5", arrays, {})
    write_yaml(folder / "spec.yaml", {"status": status, "reason": reason})
    return arrays


def value_of(table, metric, split="test", model=None):
    rows = table[(table["metric"] == metric) & (table["split"] == split)]
    if model is not None:
        rows = rows[rows["model"] == model]
    assert len(rows) == 1
    return rows["value"].iloc[0]


SHAPES = {"plain": {}, "padded": {"lengths": True}, "forward prediction": {"n_recon_bins": AHEAD}}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_floor_has_no_bits_and_ceiling_has_all_the_rates(shape):
    table = score_anchors(make_data(**shape), None, "some")
    assert set(table["role"]) == {"floor", "ceiling", "baseline"}
    assert set(table.loc[table["model"] == BASELINE, "metric"]) == {"behavior_r2", "behavior_r2_uive"}
    for split in ("valid", "test"):
        for metric in ("bits_per_spike_heldin", "bits_per_spike_heldout"):
            assert value_of(table, metric, split, FLOOR) == 0.0
            assert value_of(table, metric, split, CEILING) > 0.05
        assert value_of(table, "rate_r2", split, FLOOR) < 0.05
        assert value_of(table, "rate_r2", split, CEILING) == 1.0
        for metric in NEED_STATES:
            assert value_of(table, metric, split, CEILING) == pytest.approx(1)
        assert value_of(table, "poisson_nll", split, CEILING) < value_of(table, "poisson_nll", split, FLOOR)


def test_every_fit_lies_between_floor_and_ceiling(tmp_path):
    data = make_data()
    write_fit(tmp_path, data)
    fit, anchors = score_fit(data, tmp_path, None, LABELS), score_anchors(data, None, "some")
    for metric in ("bits_per_spike_heldin", "bits_per_spike_heldout", "rate_r2"):
        assert value_of(fit, metric) < value_of(anchors, metric, model=CEILING)


def test_rows_are_tidy(tmp_path):
    data = make_data(n_recon_bins=AHEAD)
    write_fit(tmp_path, data)
    table = score_fit(data, tmp_path, None, LABELS)
    assert list(table.columns) == list(COLUMNS)
    assert not table.duplicated(["split", "metric"]).any()
    assert set(table["metric"]) == ALL
    assert set(table["split"]) == {"valid", "test"}  # train trials were used
    assert (table["status"] == "ok").all()
    for column, value in (LABELS | {"role": "fit", "session": ""}).items():
        assert (table[column] == value).all()
    assert table.loc[table["split"] == "test", "n_trials"].eq(9).all()
    assert table.loc[table["split"] == "valid", "n_trials"].eq(8).all()
    assert table["value"].notna().all()
    whole = table["metric"].isin(WITHOUT_INTERVAL)
    assert table.loc[whole, ["low", "high"]].isna().all(axis=None)
    bounded = table[~whole]
    assert (bounded["low"] < bounded["high"]).all()
    assert ((bounded["low"] <= bounded["value"] + 0.1) & (bounded["value"] <= bounded["high"] + 0.1)).all()
    assert table["sweep"].iloc[0] == '{"latent_size": 3}'


def test_a_dataset_without_test_trials_has_rows_of_valid_ones(tmp_path):
    data = make_data()
    data = SpikeDataset({name: data[name] for name in ("train", "valid")}, 0.01)
    write_fit(tmp_path, data)
    assert set(score_fit(data, tmp_path, None, LABELS)["split"]) == {"valid"}


@pytest.mark.parametrize("lengths", [False, True])
def test_values_are_the_metrics_of_the_outputs(lengths, tmp_path):
    data = make_data(lengths=lengths)
    outputs = write_fit(tmp_path, data)
    table = score_fit(data, tmp_path, None, LABELS)
    trials, train = data["test"], data["train"]
    spikes, rates = cut(trials.recon_data, trials.n_bins), cut(outputs["test_rates"], trials.n_bins)
    truth, null = cut(trials.truth, trials.n_bins), cut(train.recon_data, train.n_bins).mean(0)

    def bits(neurons, null):
        gain = poisson.logpmf(spikes[:, neurons], rates[:, neurons]) - poisson.logpmf(spikes[:, neurons], null[neurons])
        return gain.sum() / spikes[:, neurons].sum() / np.log(2)

    expected = {
        "rate_r2": r2_score(truth, rates, multioutput="variance_weighted"),
        "poisson_nll": -poisson.logpmf(spikes, rates).mean(),
        "bits_per_spike_heldin": bits(slice(None, HELDIN), null),
        "bits_per_spike_heldout": bits(slice(HELDIN, None), null),
        # Theirs: all but as many neurons as there are inputs, and the mean of the very trials that are scored.
        "co_bps_ctd": bits(slice(INPUTS, None), spikes.mean(0)),
    }
    for metric, value in expected.items():
        assert value_of(table, metric) == pytest.approx(value, rel=1e-6), metric
    assert value_of(table, "co_bps_ctd") != pytest.approx(bits(slice(HELDIN, None), null), abs=1e-3)


def test_legacy_cosmoothing_without_inputs_is_over_all_neurons(tmp_path):
    data = without(make_data(), "ext_input")
    rates = write_fit(tmp_path, data)["test_rates"].astype(np.float64)
    spikes = data["test"].recon_data
    gain = poisson.logpmf(spikes, rates) - poisson.logpmf(spikes, spikes.mean((0, 1), dtype=float))
    expected = gain.sum() / spikes.sum() / np.log(2)
    assert value_of(score_fit(data, tmp_path, None, LABELS), "co_bps_ctd") == pytest.approx(expected, rel=1e-6)


def test_bits_per_spike_is_over_the_bins_that_the_model_saw(tmp_path):
    data = make_data(n_recon_bins=AHEAD)
    outputs = write_fit(tmp_path, data)
    spikes, rates = data["test"].recon_data[:, :BINS, HELDIN:], outputs["test_rates"][:, :BINS, HELDIN:]
    null = data["train"].recon_data[:, :BINS, HELDIN:].mean((0, 1), dtype=float)
    gain = poisson.logpmf(spikes, rates.astype(float)) - poisson.logpmf(spikes, null)
    expected = gain.sum() / spikes.sum() / np.log(2)
    table = score_fit(data, tmp_path, None, LABELS)
    assert value_of(table, "bits_per_spike_heldout") == pytest.approx(expected, rel=1e-6)


NOT_APPLICABLE = {
    "truth": (lambda: without(make_data(AHEAD), "truth"), NEED_TRUTH),
    "latents": (lambda: without(make_data(AHEAD), "latents"), NEED_STATES),
    "heldout": (lambda: make_data(AHEAD, heldin=NEURONS), {"bits_per_spike_heldout"}),
    "forward": (lambda: make_data(), NEED_LATER_BINS),
    "inputs": (lambda: without(make_data(AHEAD), "inputs_true"), NEED_INPUTS),
    "behaviour": (lambda: without(make_data(AHEAD), "behavior"), NEED_BEHAVIOR),
    "condition": (lambda: without(make_data(AHEAD), "condition"), {"behavior_r2_uive", "condition_accuracy"}),
    "counts": (lambda: replace(make_data(AHEAD), signal="continuous"), NEED_COUNTS),
}


@pytest.mark.parametrize(("make", "missing"), NOT_APPLICABLE.values(), ids=NOT_APPLICABLE)
def test_applicable_skips_what_the_dataset_cannot_have(make, missing, tmp_path):
    data = make()
    write_fit(tmp_path, data)
    assert set(score_fit(data, tmp_path, None, LABELS)["metric"]) == ALL - missing
    anchors = score_anchors(data, None, "some")
    assert not set(anchors["metric"]) & missing
    assert (anchors["status"] == "ok").all()


@pytest.mark.parametrize(("make", "missing"), NOT_APPLICABLE.values(), ids=NOT_APPLICABLE)
def test_a_metric_asked_for_by_name_that_does_not_apply_is_an_error_with_a_remedy(make, missing, tmp_path):
    data = make()
    write_fit(tmp_path, data)
    for metric in missing:
        with pytest.raises(MetricError, match=rf"'some'.*'{metric}'.*scores\.metrics"):
            score_fit(data, tmp_path, ["cycle_consistency", metric], LABELS)
        with pytest.raises(MetricError, match=rf"'some'.*'{metric}'.*scores\.metrics"):  # no need to wait for a fit
            score_anchors(data, ["cycle_consistency", metric], "some")


def test_an_anchor_that_lacks_what_fits_have_is_no_error():
    table = score_anchors(make_data(), ["state_r2_true_to_inferred", "poisson_nll"], "some")
    assert set(table[table["role"] == "floor"]["metric"]) == {"poisson_nll"}
    assert set(table[table["role"] == "ceiling"]["metric"]) == {"state_r2_true_to_inferred", "poisson_nll"}


def test_only_the_metrics_that_were_asked_for_are_scored(tmp_path):
    data = make_data()
    write_fit(tmp_path, data)
    table = score_fit(data, tmp_path, ["rate_r2", "poisson_nll"], LABELS)
    assert table["metric"].tolist() == ["rate_r2", "poisson_nll"] * 2
    assert set(score_anchors(data, ["rate_r2"], "some")["metric"]) == {"rate_r2"}


@pytest.mark.parametrize("metrics", [None, ["rate_r2", "poisson_nll"]])
def test_a_diverged_fit_has_rows_with_status_and_reason_and_no_values(metrics, tmp_path):
    data = make_data(n_recon_bins=AHEAD)
    write_fit(tmp_path, data, status="diverged", reason="the loss became NaN in training step 7")
    table = score_fit(data, tmp_path, metrics, LABELS)
    assert list(table.columns) == list(COLUMNS)
    assert set(table["metric"]) == (ALL if metrics is None else set(metrics))
    assert set(table["split"]) == {"valid", "test"}
    assert (table["status"] == "diverged").all()
    assert (table["reason"] == "the loss became NaN in training step 7").all()
    assert table[["value", "low", "high"]].isna().all(axis=None)
    assert (table["seed"] == 4).all()


def test_a_score_that_is_undefined_is_a_row_with_its_reason(tmp_path):
    data = make_data()
    flat = {name: replace(split, truth=np.ones_like(split.truth)) for name, split in data.splits.items()}
    data = SpikeDataset(flat, 0.01)
    write_fit(tmp_path, data)
    table = score_fit(data, tmp_path, None, LABELS)
    row = table[(table["metric"] == "rate_r2") & (table["split"] == "test")].iloc[0]
    assert row["status"] == "undefined"
    assert "no channel of the target varies" in row["reason"]
    assert np.isnan(row["value"])
    assert (table.loc[~table["metric"].isin(NEED_TRUTH), "status"] == "ok").all()


def test_scores_are_the_same_every_time_and_intervals_use_the_same_resamples_for_all_fits(tmp_path):
    data = make_data()
    write_fit(tmp_path, data)
    first, again = (score_fit(data, tmp_path, None, LABELS) for _ in range(2))
    other = score_fit(data, tmp_path, None, LABELS | {"model": "other", "seed": 1})
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    pd.testing.assert_frame_equal(first[["low", "high"]], other[["low", "high"]], check_exact=True)


def test_gathered_tables_keep_every_value_and_do_not_depend_on_their_order(tmp_path):
    data = make_data()
    write_fit(tmp_path / "good", data)
    write_fit(tmp_path / "bad", data, status="diverged", reason='a "quoted", comma')
    tables = {
        "good": score_fit(data, tmp_path / "good", None, LABELS),
        "bad": score_fit(data, tmp_path / "bad", None, LABELS | {"seed": 5, "sweep": "{}"}),
        "anchors": score_anchors(data, None, "some"),
    }
    for name, table in tables.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    paths = [tmp_path / f"{name}.csv" for name in tables]
    whole, reverse = gather(paths), gather(paths[::-1])
    pd.testing.assert_frame_equal(whole, reverse, check_exact=True)
    assert dict(whole.dtypes.astype(str)) == dict(tables["good"].dtypes.astype(str))
    keys = ["model", "seed", "split", "metric"]
    expected = pd.concat(tables.values()).sort_values(["dataset", "role", *keys], ignore_index=True)
    pd.testing.assert_frame_equal(whole, expected, check_exact=True)


# ---------------------------------------------------------------------------------------- what models could not pass by


def test_the_baseline_decodes_behaviour_from_the_spikes_of_all_bins():
    data = make_data(AHEAD)
    spikes = {name: split.encod_data.reshape(split.n_trials, -1).astype(float) for name, split in data.splits.items()}
    behavior = {name: split.behavior[:, :BINS].reshape(split.n_trials, -1) for name, split in data.splits.items()}
    data = replace(data, splits={name: replace(split, behavior=split.behavior[:, :BINS]) for name, split in data.splits.items()})  # fmt: skip
    best = None
    for penalty in PENALTIES:
        unit = (np.linalg.svd(spikes["train"] - spikes["train"].mean(0), compute_uv=False) ** 2).mean()
        model = Ridge(alpha=penalty * unit, solver="svd").fit(spikes["train"], behavior["train"].astype(float))
        residual = behavior["valid"] - model.predict(spikes["valid"])
        error = (residual**2 / behavior["train"].var(0)).sum()
        if best is None or error < best[0]:
            best = (error, {name: model.predict(spikes[name]) for name in ("valid", "test")})
    table = score_anchors(data, ["behavior_r2"], "some")
    assert set(table["model"]) == {BASELINE}
    assert set(table["role"]) == {"baseline"}
    for name, decoded in best[1].items():
        expected = r2_score(behavior[name].reshape(-1, 2), decoded.reshape(-1, 2), multioutput="uniform_average")
        assert value_of(table, "behavior_r2", name) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_baseline_tells_behaviour_that_spikes_know_from_shuffled_behaviour():
    rng = np.random.default_rng(3)
    data = make_data()
    told, shuffled = {}, {}
    for name, split in data.splits.items():
        recon = rng.poisson(5 + 4 * np.tanh(split.behavior[:, :, [0, 1, 0, 1, 0, 1, 0, 1, 0]])).astype(np.float32)
        told[name] = replace(split, recon_data=recon, encod_data=recon[:, :, :HELDIN])
        shuffled[name] = replace(told[name], behavior=rng.permutation(split.behavior))
    score = [score_anchors(SpikeDataset(one, 0.01), ["behavior_r2"], "some") for one in (told, shuffled)]
    assert value_of(score[0], "behavior_r2", model=BASELINE) > 0.15
    assert value_of(score[1], "behavior_r2", model=BASELINE) < 0.1


def test_a_dataset_without_behaviour_has_no_baseline():
    assert BASELINE not in set(score_anchors(without(make_data(), "behavior"), None, "some")["model"])


def test_what_stands_in_padding_changes_no_anchor():
    tables = []
    for fill in (0, 50):
        data = make_data(lengths=True)
        for split in data.splits.values():
            padding = np.arange(BINS) >= split.n_bins[:, None]
            split.recon_data[padding] = fill
            split.encod_data[padding] = fill
        tables.append(score_anchors(data, None, "some"))
    pd.testing.assert_frame_equal(*tables)


def with_missing(data, share=0.3):
    rng, splits = np.random.default_rng(2), {}
    for name, split in data.splits.items():
        recon = np.where(rng.random(split.recon_data.shape) < share, np.nan, split.recon_data)
        splits[name] = replace(split, recon_data=recon, encod_data=recon[:, :BINS, : data.n_heldin])
    return replace(data, splits=splits, missing_spikes=True)


def test_the_floor_of_a_recording_with_missing_counts_has_no_bits_either(tmp_path):
    data = with_missing(make_data(AHEAD, lengths=True))
    table = score_anchors(data, None, "some")
    for metric in ("bits_per_spike_heldin", "bits_per_spike_heldout"):
        assert value_of(table, metric, model=FLOOR) == 0.0
        assert value_of(table, metric, model=CEILING) > 0.05
    write_fit(tmp_path, data)
    fit = score_fit(data, tmp_path, None, LABELS)
    assert set(fit["metric"]) == ALL
    for one in (table, fit):  # some bins have no condition mean
        assert (one.loc[one["metric"] != "behavior_r2_uive", "status"] == "ok").all()
    spikes = data["train"].recon_data[:, :BINS].astype(float)
    spikes[np.arange(BINS) >= data["train"].n_bins[:, None]] = np.nan
    mean = np.nanmean(spikes, (0, 1))
    known = ~np.isnan(data["test"].recon_data) & (np.arange(AHEAD) < data["test"].n_bins[:, None])[..., None]
    expected = -poisson.logpmf(data["test"].recon_data[known], np.broadcast_to(mean, known.shape)[known]).mean()
    assert value_of(table, "poisson_nll", model=FLOOR) == pytest.approx(expected, rel=1e-9)


# --------------------------------------------------------------------------------------------------------- sessions


def make_sessions():
    return MultiSession({"monday": make_data(AHEAD), "friday": without(make_data(heldin=5), "truth")})


def test_each_session_of_a_fit_is_scored_as_if_it_were_alone(tmp_path):
    data = make_sessions()
    write_fit(tmp_path / "both", data)
    table = score_fit(data, tmp_path / "both", None, LABELS)
    assert set(table["session"]) == {"monday", "friday"}
    assert not table.duplicated(["session", "split", "metric"]).any()
    for number, (name, session) in enumerate(data.sessions.items()):
        write_hdf5(tmp_path / name / "output.h5", make_outputs(session, seed=1 + number), {})
        write_yaml(tmp_path / name / "spec.yaml", {"status": "ok", "reason": ""})
        alone = score_fit(session, tmp_path / name, None, LABELS)
        assert set(alone["session"]) == {""}
        own = table[table["session"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(own.drop(columns="session"), alone.drop(columns="session"), check_exact=True)


def test_each_session_has_its_own_anchors():
    data = make_sessions()
    table = score_anchors(data, None, "some")
    for name, session in data.sessions.items():
        own = table[table["session"] == name].reset_index(drop=True)
        alone = score_anchors(session, None, "some")
        pd.testing.assert_frame_equal(own.drop(columns="session"), alone.drop(columns="session"), check_exact=True)
    assert set(table.loc[table["role"] == "ceiling", "session"]) == {"monday"}


def test_a_diverged_fit_of_sessions_has_a_row_for_each(tmp_path):
    data = make_sessions()
    write_fit(tmp_path, data, status="diverged", reason="why")
    table = score_fit(data, tmp_path, ["poisson_nll"], LABELS)
    assert table["session"].tolist() == ["monday"] * 2 + ["friday"] * 2
    assert (table["status"] == "diverged").all()


def test_gathered_tables_of_sessions_are_sorted_by_session_and_one_session_has_no_name(tmp_path):
    data = make_sessions()
    write_fit(tmp_path / "several", data)
    write_fit(tmp_path / "one", data.sessions["monday"])
    score_fit(data, tmp_path / "several", None, LABELS).to_csv(tmp_path / "b.csv", index=False)
    score_fit(data.sessions["monday"], tmp_path / "one", None, LABELS | {"dataset": "lone"}).to_csv(
        tmp_path / "a.csv", index=False
    )
    whole = gather([tmp_path / "b.csv", tmp_path / "a.csv"])
    assert list(dict.fromkeys(zip(whole["dataset"], whole["session"], strict=True))) == [
        ("lone", ""),
        ("some", "friday"),
        ("some", "monday"),
    ]
    assert whole["session"].notna().all()
