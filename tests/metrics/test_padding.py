"""What stands beyond a trial's end, in the dataset or in a fit's outputs, changes no score and no interval."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ctdb.datasets import SpikeDataset, Split
from ctdb.files import write_hdf5, write_yaml
from ctdb.metrics import COSTLY, METRICS, Case
from ctdb.scores import score_anchors, score_fit

HELDIN, NEURONS, BINS, RECON = 4, 6, 9, 14
SIZES = {"train": 40, "valid": 15, "test": 16}
COUNTS = ("encod_data", "recon_data")
PER_BIN = ("ext_input", "behavior", "truth", "latents", "inputs_true")


def make(missing=0.0, short=False):
    """A dataset on which all metrics apply, and the outputs of a fit; `short` trials end where the model sees them."""
    rng = np.random.default_rng(0)
    splits, outputs = {}, {}
    for name, n_trials in SIZES.items():
        latents = rng.normal(size=(n_trials, RECON, 3))
        truth = np.exp(0.4 * latents @ rng.normal(size=(3, NEURONS)))
        recon = rng.poisson(truth).astype(np.float32)
        recon[rng.random(recon.shape) < missing] = np.nan
        behavior, inputs = latents[:, :, :2] + 3, rng.normal(size=(n_trials, RECON, 2))
        n_bins = rng.integers(3, BINS if short else RECON, n_trials)
        n_bins[:2] = RECON  # so that there are forward bins to score
        splits[name] = Split(
            encod_data=recon[:, :BINS, :HELDIN].copy(),
            recon_data=recon,
            ext_input=inputs.astype(np.float32),
            behavior=behavior.astype(np.float32),
            truth=truth.astype(np.float32),
            latents=latents.astype(np.float32),
            inputs_true=inputs.astype(np.float32),
            n_bins=n_bins,
            condition=np.arange(n_trials) % 2,
        )
        noisy = {"rates": truth * rng.gamma(9, 1 / 9, truth.shape), "factors": latents, "co_means": inputs}
        noisy |= {"latents": latents @ rng.normal(size=(3, 5)), "behavior": behavior}
        noisy |= {"ablated_rates": noisy["rates"] ** 0.5, "ablated_behavior": behavior / 2}
        outputs[name] = {
            key: (value if "rates" in key else value + rng.normal(size=value.shape)).astype(np.float32)
            for key, value in noisy.items()
        }
    names = {"condition": ["left", "right"]}
    return SpikeDataset(splits, 0.01, names, missing_spikes=missing > 0), outputs


def filled(value, n_bins, fill):
    """`value` with `fill` beyond each trial's end."""
    return np.where((np.arange(value.shape[1]) < n_bins[:, None])[..., None], value, np.asarray(fill, value.dtype))


def poisoned(data, outputs, counts, known, inferred):
    """The same with other values in padding: of counts, of what else is known, and of what is inferred."""
    splits, made = {}, {}
    for name, split in data.splits.items():
        changed = {key: filled(getattr(split, key), split.n_bins, counts) for key in COUNTS}
        changed |= {key: filled(getattr(split, key), split.n_bins, known) for key in PER_BIN}
        splits[name] = replace(split, **changed)
        made[name] = {key: filled(value, split.n_bins, inferred) for key, value in outputs[name].items()}
    return replace(data, splits=splits), made


SHAPES = {"plain": {}, "missing": {"missing": 0.2}, "short": {"short": True}}
POISONS = {"NaN": (1e6, np.nan, np.nan), "large": (1e6, 1e6, 1e6), "negative": (50, -1e6, -1e6)}
POISONS |= {"infinite": (0, np.inf, np.inf), "NaN counts": (np.nan, 1e6, -np.inf)}
quiet = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # in bins that do not count


@quiet
@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_no_registered_metric_depends_on_padding(shape, poison, split):
    data, outputs = poisoned(*make(**shape), 0, 0, 0)
    other, other_outputs = poisoned(data, outputs, *poison)
    for metric in METRICS.modules:
        cases = (Case(data, outputs, split), Case(other, other_outputs, split))
        clean, found = (METRICS[metric](case) for case in cases)
        assert np.isfinite(float(clean)), metric
        assert float(found) == pytest.approx(float(clean), rel=1e-12, abs=1e-12), metric
        if isinstance(clean, float):
            continue
        intervals = [sums.interval(np.random.default_rng(0)) for sums in (clean, found)]
        np.testing.assert_allclose(*intervals, rtol=1e-9, err_msg=metric)


@quiet
@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
def test_no_row_of_a_fit_or_an_anchor_depends_on_padding(poison, tmp_path):
    tables = []
    for number, values in enumerate([(0, 0, 0), poison]):
        data, outputs = poisoned(*make(), *values)
        arrays = {f"{split}_{key}": value for split, own in outputs.items() for key, value in own.items()}
        write_hdf5(tmp_path / f"{number}/output.h5", arrays, {})
        write_yaml(tmp_path / f"{number}/spec.yaml", {"status": "ok", "reason": ""})
        labels = {"dataset": "some", "model": "gru", "kind": "sae_gru", "sweep": "{}", "seed": 0}
        fit = score_fit(data, tmp_path / str(number), None, labels)
        tables.append(pd.concat([fit, score_anchors(data, None, "some")], ignore_index=True))
    assert (tables[0]["status"] == "ok").all()
    assert set(tables[0]["role"]) == {"fit", "floor", "ceiling", "baseline"}
    assert set(tables[0].loc[tables[0]["role"] == "fit", "metric"]) == set(METRICS.modules) - COSTLY
    pd.testing.assert_frame_equal(*tables, rtol=1e-9, atol=1e-12)


def test_the_last_valid_bin_counts_in_every_metric():
    """The other side of the above: what stands just before the end is no padding."""
    data, outputs = make()
    last = {name: data[name].n_bins - 1 for name in SIZES}
    changed = {
        name: {
            key: filled(value, last[name], 0) + (1.5 * value + 0.1 - filled(1.5 * value + 0.1, last[name], 0))
            for key, value in own.items()
        }
        for name, own in outputs.items()
    }
    for metric in METRICS.modules:
        before, after = (float(METRICS[metric](Case(data, one, "test"))) for one in (outputs, changed))
        assert abs(before - after) > 1e-6, metric
