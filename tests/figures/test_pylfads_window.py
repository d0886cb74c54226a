"""The figure of one window, against the arrays it is drawn from."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt

from ctdb import datasets
from ctdb.errors import DatasetError
from ctdb.figures import FIGURES
from ctdb.figures.base import STYLE, make
from ctdb.figures.planned import Files, Planned
from ctdb.files import write_hdf5

BIN_S = 0.02


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert left == []


@pytest.fixture
def drawn(tmp_path, make_dataset):
    def run(show=lambda canvas: None, lengths=None, leave_out=(), trial=2, name="", n_heldout=2):
        dataset = make_dataset(n_trials=8, n_bins=9, n_heldin=5, n_heldout=n_heldout, bin_s=BIN_S)
        if lengths is not None:
            splits = {name: replace(one, n_bins=np.full(one.n_trials, lengths)) for name, one in dataset.splits.items()}
            dataset = replace(dataset, splits=splits)
        datasets.write(tmp_path / "some.h5", dataset)
        rng, arrays = np.random.default_rng(1), {}
        for split, trials in dataset.splits.items():
            shape = trials.recon_data.shape
            own = {"rates": rng.gamma(2, 0.3, shape), "factors": rng.normal(size=(*shape[:2], 3)), "co_means": rng.normal(size=(*shape[:2], 2)), "co_stds": rng.gamma(2, 0.2, (*shape[:2], 2)), "ic_mean": rng.normal(size=(shape[0], 4)), "ic_std": rng.gamma(2, 0.2, (shape[0], 4))}  # fmt: skip
            arrays |= {f"{split}_{key}": one.astype(np.float32) for key, one in own.items() if key not in leave_out}
        write_hdf5(tmp_path / "fit.h5", arrays, {"format": "ctdb-output-1", "status": "ok"})
        figure = FIGURES["pylfads_window"]
        settings = figure.Settings(kind="pylfads_window", dataset="some", model="lfads", seed=3, trial=trial)
        paths = {"dataset": tmp_path / "some.h5", "fit": tmp_path / "fit.h5"}
        needs = figure.needs(settings, Planned())
        assert needs == [("dataset", "some"), ("fit", "some", "lfads", 3)]
        files = Files({need: str(paths[need[0]]) for need in needs})
        if name:
            return make(figure, settings, files, tmp_path / name)
        with plt.style.context(STYLE):
            canvas, table = figure.draw(settings, files)
            seen = show(canvas)
            plt.close(canvas)
        return table, seen, dataset, arrays, figure.findings(settings, table)

    return run


def values(table, panel):
    rows = table[table["panel"] == panel]
    return rows.pivot(index="time_s", columns="channel", values="value").to_numpy()


def test_the_table_holds_every_number_of_the_window(drawn):
    table, _, dataset, arrays, said = drawn()
    np.testing.assert_allclose(values(table, "spikes"), dataset["test"].recon_data[2])
    for name, panel in (("rates", "rates"), ("factors", "factors"), ("co_means", "inferred inputs"), ("co_stds", "inferred inputs, s.d.")):  # fmt: skip
        np.testing.assert_allclose(values(table, panel), arrays[f"test_{name}"][2], rtol=1e-5, err_msg=name)
    for name, panel in (("ic_mean", "initial condition"), ("ic_std", "initial condition, s.d.")):
        assert table[table["panel"] == panel]["value"].tolist() == pytest.approx(arrays[f"test_{name}"][2].tolist())
    spikes = table[table["panel"] == "spikes"]
    np.testing.assert_allclose(sorted(set(spikes["time_s"])), BIN_S * np.arange(9))
    total, expected = dataset["test"].recon_data[2].sum(), arrays["test_rates"][2].sum()
    assert said == f"The window holds {total:g} spikes; the inferred rates expect {expected:.0f}."


def test_spikes_are_marks_at_the_middle_of_their_bins_and_rates_an_image_per_second(drawn):
    def show(canvas):
        left, right = canvas.axes[:2]
        return (
            left.collections[0].get_offsets(),
            right.images[0].get_array(),
            [line.get_ydata()[0] for line in left.lines],
        )

    _, (marks, image, heldout), dataset, arrays, _ = drawn(show)
    spikes = dataset["test"].recon_data[2]
    expected = [((at + 0.5) * BIN_S, neuron) for at, neuron in np.argwhere(spikes > 0)]
    np.testing.assert_allclose(sorted(map(tuple, marks)), sorted(expected), rtol=1e-5)
    np.testing.assert_allclose(image, arrays["test_rates"][2].T / BIN_S, rtol=1e-5)
    assert heldout == [4.5]  # between the five that are seen and the two that are not


def test_posterior_means_lie_in_bands_of_one_standard_deviation(drawn):
    def show(canvas):
        inputs, start = next(ax for ax in canvas.axes if ax.get_title() == "inferred inputs"), canvas.axes[-2]
        start = next(ax for ax in canvas.axes if ax.get_title() == "initial condition")
        bands = [one.get_paths()[0].vertices for one in inputs.collections]
        bars = start.containers[0].lines
        return [line.get_ydata() for line in inputs.lines[:2]], bands, bars[0].get_xdata(), bars[2][0].get_segments()

    _, (means, bands, centre, segments), _, arrays, _ = drawn(show)
    mean, std = arrays["test_co_means"][2], arrays["test_co_stds"][2]
    np.testing.assert_allclose(np.transpose(means), mean, rtol=1e-5)
    for channel, band in enumerate(bands):
        assert band[:, 1].max() == pytest.approx((mean + std)[:, channel].max(), rel=1e-5)
        assert band[:, 1].min() == pytest.approx((mean - std)[:, channel].min(), rel=1e-5)
    np.testing.assert_allclose(centre, arrays["test_ic_mean"][2], rtol=1e-5)
    half = [np.ptp(np.asarray(one)[:, 0]) / 2 for one in segments]
    np.testing.assert_allclose(half, arrays["test_ic_std"][2], rtol=1e-4)


def test_padding_is_not_drawn(drawn):
    table, _, dataset, arrays, _ = drawn(lengths=6)
    np.testing.assert_allclose(values(table, "spikes"), dataset["test"].recon_data[2, :6])
    np.testing.assert_allclose(values(table, "factors"), arrays["test_factors"][2, :6], rtol=1e-5)
    assert len(table[table["panel"] == "initial condition"]) == 4


def test_what_a_model_does_not_infer_is_said(drawn):
    def show(canvas):
        return [text.get_text().replace("\n", " ") for ax in canvas.axes for text in ax.texts]

    table, said, *_ = drawn(show, leave_out=("co_means", "co_stds", "ic_mean", "ic_std", "factors"))
    assert said == [
        "missing: factors, which this model does not have",
        "missing: inferred inputs: this model has no controller",
        "missing: an initial condition, which this model does not infer",
    ]
    assert set(table["panel"]) == {"spikes", "rates"}


def test_a_window_that_is_not_there_is_refused(drawn):
    with pytest.raises(DatasetError, match="trial 4 of 4 test trials, counted from 0"):
        drawn(trial=4)


def test_the_same_bytes_twice(drawn, tmp_path):
    for name in ("first", "second"):
        drawn(name=name, n_heldout=0)
    for suffix in ("pdf", "png", "csv", "txt"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()
