"""The scores table: anchors, tidy rows, what happens to metrics that do not apply and to fits that failed."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import poisson
from sklearn.metrics import r2_score

from ctdb.datasets import SpikeDataset, Split
from ctdb.errors import MetricError
from ctdb.files import write_hdf5, write_yaml
from ctdb.metrics import METRICS
from ctdb.scores import CEILING, COLUMNS, FLOOR, gather, score_anchors, score_fit

HELDIN, NEURONS, BINS, INPUTS = 6, 9, 12, 2
ALL = set(METRICS.modules)
NEED_TRUTH = {"rate_r2"}
NEED_STATES = {"state_r2_true_to_inferred", "state_r2_inferred_to_true"}


def make_data(n_recon_bins=BINS, lengths=False, heldin=HELDIN):
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
            n_bins=rng.integers(5, n_recon_bins + 1, size=n_trials) if lengths else None,
        )
    return SpikeDataset(splits, bin_s=0.01)


def without(data, *fields):
    return SpikeDataset({k: replace(split, **dict.fromkeys(fields)) for k, split in data.splits.items()}, data.bin_s)


LABELS = {"dataset": "some", "model": "gru", "kind": "sae_gru", "sweep": json.dumps({"latent_size": 3}), "seed": 4}


def write_fit(folder, data, status="ok", reason=""):
    """Outputs of a fit that knows the truth but for some noise."""
    rng = np.random.default_rng(1)
    arrays = {}
    for name, split in data.splits.items():
        shape = split.recon_data.shape
        arrays[f"{name}_rates"] = rng.gamma(4, 0.25, size=shape).astype(np.float32)
        if split.truth is not None:
            arrays[f"{name}_rates"] *= split.truth
        arrays[f"{name}_latents"] = rng.normal(size=(*shape[:2], 5)).astype(np.float32)
        if split.latents is not None:
            arrays[f"{name}_latents"][:, :, :3] += 2 * split.latents
    write_hdf5(folder / "output.h5", arrays, {})
    write_yaml(folder / "spec.yaml", {"status": status, "reason": reason})
    return arrays


def value_of(table, metric, split="test", model=None):
    rows = table[(table["metric"] == metric) & (table["split"] == split)]
    if model is not None:
        rows = rows[rows["model"] == model]
    assert len(rows) == 1
    return rows["value"].iloc[0]


SHAPES = {"plain": {}, "padded": {"lengths": True}, "forward prediction": {"n_recon_bins": BINS + 6}}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_floor_has_no_bits_and_ceiling_has_all_the_rates(shape):
    table = score_anchors(make_data(**shape), None, "some")
    assert set(table["role"]) == {"floor", "ceiling"}
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
    data = make_data()
    write_fit(tmp_path, data)
    table = score_fit(data, tmp_path, None, LABELS)
    assert list(table.columns) == list(COLUMNS)
    assert not table.duplicated(["split", "metric"]).any()
    assert set(table["metric"]) == ALL
    assert set(table["split"]) == {"valid", "test"}  # train trials were used
    assert (table["status"] == "ok").all()
    for column, value in (LABELS | {"role": "fit"}).items():
        assert (table[column] == value).all()
    assert table.loc[table["split"] == "test", "n_trials"].eq(9).all()
    assert table.loc[table["split"] == "valid", "n_trials"].eq(8).all()
    assert table["value"].notna().all()
    assert (table["low"] < table["high"]).all()
    assert ((table["low"] <= table["value"] + 0.1) & (table["value"] <= table["high"] + 0.1)).all()
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

    def cut(array, n_bins):
        n_bins = [array.shape[1]] * len(array) if n_bins is None else n_bins
        return np.concatenate([trial[:n] for trial, n in zip(array, n_bins, strict=True)]).astype(np.float64)

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
    data = make_data(n_recon_bins=BINS + 6)
    outputs = write_fit(tmp_path, data)
    spikes, rates = data["test"].recon_data[:, :BINS, HELDIN:], outputs["test_rates"][:, :BINS, HELDIN:]
    null = data["train"].recon_data[:, :BINS, HELDIN:].mean((0, 1), dtype=float)
    gain = poisson.logpmf(spikes, rates.astype(float)) - poisson.logpmf(spikes, null)
    expected = gain.sum() / spikes.sum() / np.log(2)
    table = score_fit(data, tmp_path, None, LABELS)
    assert value_of(table, "bits_per_spike_heldout") == pytest.approx(expected, rel=1e-6)


NOT_APPLICABLE = {
    "truth": (lambda: without(make_data(), "truth"), NEED_TRUTH),
    "latents": (lambda: without(make_data(), "latents"), NEED_STATES),
    "heldout": (lambda: make_data(heldin=NEURONS), {"bits_per_spike_heldout"}),
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
            score_fit(data, tmp_path, ["poisson_nll", metric], LABELS)
        with pytest.raises(MetricError, match=rf"'some'.*'{metric}'.*scores\.metrics"):  # no need to wait for a fit
            score_anchors(data, ["poisson_nll", metric], "some")


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
    data = make_data()
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
    assert (table.loc[table["metric"] != "rate_r2", "status"] == "ok").all()


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
