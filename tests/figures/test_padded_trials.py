"""Every figure of trials that end early is the same whatever stands beyond their end."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from ctdb import datasets
from ctdb.figures import FIGURES
from ctdb.files import write_hdf5

BINS = 20


def drawn(kind, files, **options):
    figure = FIGURES[kind]
    canvas, table = figure.draw(figure.Settings(kind=kind, **options), files)
    canvas.draw_without_rendering()
    limits = [limit for ax in canvas.get_axes() for limit in (*ax.get_xlim(), *ax.get_ylim())]
    plt.close(canvas)
    return table, limits


def filled(value, n_bins, fill):
    inside = (np.arange(value.shape[1]) < n_bins[:, None])[..., None]
    return np.where(inside, value, np.asarray(fill, value.dtype))


def assert_same(found):
    (table, limits), *others = found
    assert np.isfinite(limits).all()
    for other, other_limits in others:
        pd.testing.assert_frame_equal(table, other, check_exact=False, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(limits, other_limits, rtol=1e-9)


@pytest.mark.parametrize("kind", ["raster", "latents", "controls"])
@pytest.mark.parametrize("trial", [0, 2])
def test_a_figure_of_a_dataset_and_its_fits(make_dataset, tmp_path, kind, trial):
    channels = {"latents": 4, "inputs_true": 2, "behavior": 2, "ext_input": 2}
    found = []
    for counts, known, inferred in ((0, 0, 0), (1e6, 1e6, np.nan), (3, -1e6, 1e6)):
        source = make_dataset(n_trials=16, n_bins=BINS, n_heldin=6, per_trial=True, **channels)
        splits, outputs, rng = {}, {}, np.random.default_rng(0)
        for name, split in source.splits.items():
            n_bins = np.maximum(split.n_bins, 5)
            fills = dict.fromkeys(("encod_data", "recon_data"), counts) | dict.fromkeys(channels, known)
            changed = {key: filled(getattr(split, key), n_bins, fill) for key, fill in fills.items()}
            changed["truth"] = filled(split.truth, n_bins, abs(known))
            splits[name] = replace(split, n_bins=n_bins, **changed)
            sizes = {"latents": 3, "co_means": 3, "behavior": 2, "ablated_behavior": 2}
            own = {key: rng.normal(size=(split.n_trials, BINS, size)) for key, size in sizes.items()}
            own |= {key: rng.gamma(3, 0.3, split.recon_data.shape) for key in ("rates", "ablated_rates")}
            outputs |= {f"{name}_{key}": filled(value, n_bins, inferred) for key, value in own.items()}
        datasets.write(tmp_path / "some.h5", replace(source, splits=splits))
        write_hdf5(tmp_path / "fit.h5", outputs, {"format": "ctdb-output-1", "status": "ok"})
        files = {("dataset", "some"): str(tmp_path / "some.h5"), ("fit", "some", "lfads", 0): str(tmp_path / "fit.h5")}
        options = {} if kind == "latents" else {"trial": trial}
        found.append(drawn(kind, files, dataset="some", models=["lfads"], **options))
    assert_same(found)


def test_a_figure_of_a_task(tmp_path):
    found = []
    for fill in (0, 1e6, np.nan):
        rng, n_bins = np.random.default_rng(0), np.array([7, 20, 12, 9])
        sizes = {"inputs": 3, "outputs": 2, "targets": 2}
        arrays = {name: filled(rng.normal(size=(4, BINS, n)), n_bins, fill) for name, n in sizes.items()}
        weight = filled(np.ones((4, BINS, 2)), n_bins, 0)
        arrays |= {"loss_weight": weight, "n_bins": n_bins, "success": np.ones(4), "condition": np.arange(4) % 2}
        facts = {"bin_s": 0.02, "target_names": ["x", "y"], "condition_names": ["left", "right"], "success": 1.0}
        write_hdf5(tmp_path / "activity.h5", arrays, facts)
        files = {("activity", "gru", 0, ""): str(tmp_path / "activity.h5")}
        found.append(drawn("task_performance", files, network="gru", n_trials=3))
    assert_same(found)
