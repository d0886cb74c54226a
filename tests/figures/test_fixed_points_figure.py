"""The figure of fixed points, on paper and to be turned: what is drawn, against the points it is drawn from."""

import base64
import json

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from sklearn.decomposition import PCA

from ctdb import datasets
from ctdb.dynamics import FixedPoints
from ctdb.errors import DatasetError
from ctdb.figures import FIGURES
from ctdb.figures.base import STYLE, make, make_interactive
from ctdb.figures.planned import Files, Planned
from ctdb.files import read_hdf5, write_hdf5

BIN_S = 0.02
SPECTRA = {
    "stable": [0.9, 0.5, 0.2, 0.1],
    "stable focus": [0.8 * np.exp(0.3j), 0.8 * np.exp(-0.3j), 0.2, 0.1],
    "marginal": [1.0, 0.5, 0.2, 0.1],
    "one": [1.5, 0.5, 0.2, 0.1],
    "two": [1.2 * np.exp(0.5j), 1.2 * np.exp(-0.5j), 0.2, 0.1],
    "three": [1.5, 1.4, 1.3, 0.1],
    "four": [1.5, 1.4, 1.3, 1.2],
}
COLOURS = {"stable": "#0072b2", "stable focus": "#0072b2", "marginal": "#595959", "one": "#d55e00", "two": "#009e73", "three": "#cc79a7", "four": "#cc79a7"}  # fmt: skip


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    assert plt.get_fignums() == []


def jacobian(values, size, rng):
    """Matrix with the given eigenvalues; zeros fill up, or the least ones are left out."""
    real, k = np.zeros((size, size)), 0
    values = [*values, *[0.0] * size][:size]
    while k < size:
        if np.imag(values[k]) and k + 1 < size:
            real[k : k + 2, k : k + 2] = [[values[k].real, values[k].imag], [-values[k].imag, values[k].real]]
            k += 2
        else:
            real[k, k] = np.real(values[k])
            k += 1
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return basis @ real @ basis.T


def points(x, kinds, seed=0):
    rng, (k, d) = np.random.default_rng(seed), np.shape(x)
    matrices = np.stack([jacobian(SPECTRA[kind], d, rng) for kind in kinds]) if k else np.zeros((0, d, d))

    def tensor(value, dtype=torch.float64):
        return torch.as_tensor(np.asarray(value), dtype=dtype)

    none = torch.zeros(0, dtype=torch.long)
    return FixedPoints(tensor(x), torch.zeros(k, 0, dtype=torch.float64), tensor(1e-12 * (1 + np.arange(k))), tensor(matrices), torch.zeros(k, d, 0, dtype=torch.float64), tensor(np.ones(k)), tensor(3 + np.arange(k), torch.long), none, none, radius=1.0, bin_s=BIN_S)  # fmt: skip


@pytest.fixture
def drawn(make_dataset, tmp_path):
    """Draw true points and those of fits: model to its points and the facts of their comparison, or a failed status.

    Gives the dataset, the table, what `show` made of the canvas, and what the figure was made from.
    """

    def run(truth, fits, n_latents=4, show=lambda canvas: None, fill=None, **options):
        dataset = make_dataset(n_trials=20, n_bins=12, latents=n_latents, bin_s=BIN_S, per_trial=fill is not None)
        for split in dataset.splits.values():
            split.latents[..., 0] *= 3
            if fill is not None:
                split.n_bins[:] = np.maximum(split.n_bins, 3)
                split.latents[np.arange(12) >= split.n_bins[:, None]] = fill
        datasets.write(tmp_path / "some.h5", dataset)
        truth.save(tmp_path / "true/fixed_points.h5")
        write_hdf5(tmp_path / "true/dynamics.h5", {}, {"format": "ctdb-dynamics-1", "status": "ok"})
        files = {("dataset", "some"): tmp_path / "some.h5", ("dynamics", "some"): tmp_path / "true/dynamics.h5"}
        for model, (found, facts) in fits.items():
            own, status = tmp_path / model, facts if isinstance(facts, str) else "ok"
            facts = {} if isinstance(facts, str) else facts
            found.save(own / "fixed_points.h5")
            write_hdf5(own / "dynamics.h5", facts, {"format": "ctdb-dynamics-1", "status": status})
            size, rng = len(facts.get("to_true_weights", [0])), np.random.default_rng(1)
            outputs = {}
            for name, split in dataset.splits.items():
                outputs[f"{name}_latents"] = rng.normal(size=(*split.latents.shape[:2], size))
            write_hdf5(own / "output.h5", outputs, {"format": "ctdb-output-1", "status": status})
            files |= {("fit", "some", model, 1): own / "output.h5", ("dynamics", "some", model, 1): own / "dynamics.h5"}
        figure = FIGURES["fixed_points"]
        settings = figure.Settings(kind="fixed_points", dataset="some", models=list(fits), seed=1, **options)
        assert set(map(tuple, figure.needs(settings, Planned()))) == set(files)
        files = {need: str(path) for need, path in files.items()}
        with plt.style.context(STYLE):
            canvas, table = figure.draw(settings, files)
            canvas.canvas.draw()
            seen = show(canvas)
            plt.close(canvas)
        return dataset, table, seen, (figure, settings, files)

    return run


def to_true(n_states, n_latents=4, seed=2):
    rng = np.random.default_rng(seed)
    return {"to_true_weights": rng.normal(size=(n_states, n_latents)), "to_true_offset": rng.normal(size=n_latents)}


def panels(canvas):
    """Every other panel has points, the others their spectra; of each its title, texts and lines by colour."""
    told = []
    for ax in canvas.axes:
        lines = {}
        for line in ax.lines:
            data = np.stack(line.get_data_3d() if hasattr(line, "get_data_3d") else line.get_data(), 1)
            marker = line.get_marker()
            key = (to_hex(line.get_markeredgecolor()), marker) if marker not in ("None", None) else "line"
            lines.setdefault(key, []).append((data, line.get_markerfacecolor()))
        told.append((ax.get_title(), [text.get_text() for text in ax.texts if text.get_text()], lines, ax))
    return told


X = np.random.default_rng(3).normal(size=(7, 4))
FOUND = np.random.default_rng(4).normal(size=(3, 5)) * 0.1
KINDS = list(SPECTRA)
FACTS = to_true(5) | {"pairs": np.array([[4, 2], [1, 0]]), "distance": np.array([0.25, 0.125])}


def pca(dataset):
    train = dataset["train"]
    latents = train.latents.reshape(-1, train.latents.shape[2]).astype(np.float64)
    if train.n_bins is not None:
        latents = latents[(np.arange(12) < train.n_bins[:, None]).ravel()]
    return PCA(min(3, latents.shape[1])).fit(latents)


def assert_coordinates(found, expected):
    """Up to the sign of each axis."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected)
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, expected * signs, rtol=1e-4, atol=1e-5)


def test_points_are_tabulated_where_they_are_and_with_their_slowest_mode(drawn):
    dataset, table, _, _ = drawn(points(X, KINDS), {"sae": (points(FOUND, ["stable", "one", "two"]), FACTS)})
    true, fit = (table[table["source"] == source] for source in ("truth", "sae"))
    space, axes = pca(dataset), ["pc1", "pc2", "pc3"]
    carried = FOUND @ FACTS["to_true_weights"] + FACTS["to_true_offset"]
    assert_coordinates(table[axes], space.transform(np.concatenate([X, carried])))
    assert true["point"].tolist() == list(range(7))
    assert true["stable"].tolist() == [True, True, False, False, False, False, False]
    assert true["index"].tolist() == [0, 0, 0, 1, 2, 3, 4]
    assert true["kind"].tolist() == ["stable node", "stable focus", "marginal", "saddle node", "saddle focus", "saddle node", "unstable node"]  # fmt: skip
    largest = np.array([SPECTRA[kind][0] for kind in KINDS])
    np.testing.assert_allclose(true["eigenvalue_abs"], np.abs(largest), rtol=1e-6)
    sizes = np.delete(np.abs(largest), 2)
    np.testing.assert_allclose(true["time_constant_s"].drop(2), -BIN_S / np.log(sizes), rtol=1e-6)
    np.testing.assert_allclose(true["frequency_hz"], np.abs(np.angle(largest)) / (2 * np.pi * BIN_S), atol=1e-6)
    np.testing.assert_allclose(true["residual"], 1e-12 * np.arange(1, 8))
    assert fit["n_starts"].tolist() == [3, 4, 5]
    assert fit["true_point"].tolist() == [1, pd.NA, 4]
    np.testing.assert_array_equal(fit["distance"], [0.125, np.nan, 0.25])
    assert true["true_point"].isna().all()
    assert list(table) == ["source", "point", *axes, "residual", "stable", "index", "kind", "eigenvalue_abs", "time_constant_s", "frequency_hz", "n_starts", "true_point", "distance"]  # fmt: skip


def test_points_trajectories_and_all_eigenvalues_are_drawn_by_stability(drawn):
    fits = {"sae": (points(FOUND, ["stable", "one", "two"]), FACTS)}
    dataset, table, seen, _ = drawn(points(X, KINDS), fits, show=panels, n_trials=3)
    assert [title for title, *_ in seen] == ["truth", "", "sae", ""]
    train = dataset["train"].latents.reshape(-1, 4).astype(float)
    shares = PCA(4).fit(train).explained_variance_ratio_
    assert seen[0][3].get_xlabel() == f"PC 1 ({shares[0]:.0%})"
    assert seen[0][3].get_zlabel() == f"PC 3 ({shares[2]:.0%})"
    (_, _, above, _), (_, _, below, _), (_, _, of_fit, _), (_, _, of_fit_below, _) = seen
    markers = {"stable": "o", "stable focus": "o", "marginal": "D", "one": "^", "two": "s", "three": "*", "four": "*"}
    places = table[table["source"] == "truth"][["pc1", "pc2", "pc3"]].to_numpy()
    for kind in KINDS:
        same = [k for k, other in enumerate(KINDS) if markers[other] == markers[kind]]
        ((data, fill),) = above[COLOURS[kind], markers[kind]]
        np.testing.assert_allclose(data, places[same])
        assert (fill == "none") == (kind not in ("stable", "stable focus"))
        ((data, _),) = below[COLOURS[kind], markers[kind]]
        expected = np.concatenate([SPECTRA[KINDS[k]] for k in same])
        np.testing.assert_allclose(np.sort_complex(np.round(data @ [1, 1j], 6)), np.sort_complex(np.round(expected, 6)), atol=2e-6)  # fmt: skip
    assert len(above["line"]) == len(of_fit["line"]) == 3
    trials = np.concatenate([data for data, _ in above["line"]])
    assert_coordinates(trials, pca(dataset).transform(dataset["test"].latents[:3].reshape(-1, 4)))
    assert {key for key in of_fit if key != "line"} == {("#0072b2", "o"), ("#d55e00", "^"), ("#009e73", "s")}
    ((circle, _),) = below["line"]
    np.testing.assert_allclose(np.hypot(*circle.T), 1)
    assert sum(len(data) for key, lines in of_fit_below.items() for data, _ in lines if key != "line") == 15


def test_trajectories_of_a_fit_are_carried_as_its_points(drawn):
    fits = {"sae": (points(FOUND, ["stable", "one", "two"]), FACTS)}
    dataset, _, seen, (_, _, files) = drawn(points(X, KINDS), fits, show=panels, n_trials=2)
    latents = read_hdf5(files["fit", "some", "sae", 1])[0]["test_latents"][:2]
    expected = pca(dataset).transform((latents @ FACTS["to_true_weights"] + FACTS["to_true_offset"]).reshape(-1, 4))
    assert_coordinates(np.concatenate([data for data, _ in seen[2][2]["line"]]), expected)


def test_a_network_with_a_body_is_drawn_by_its_own_states(drawn):
    joint = np.concatenate([X, np.full((7, 2), 50.0)], 1)
    kinds = ["stable"] * 7
    dataset, table, seen, _ = drawn(points(joint, kinds), {"sae": (points(FOUND, kinds[:3]), to_true(5))}, show=panels)
    assert seen[0][0] == "truth (network and body)"
    assert_coordinates(table[:7][["pc1", "pc2", "pc3"]], pca(dataset).transform(X))
    assert set(table["source"]) == {"truth", "sae"}


def test_what_has_no_points_says_why(drawn):
    none = points(np.zeros((0, 4)), [])
    unknown, failed = points(np.zeros((0, 0)), []), points(np.zeros((0, 0)), [])
    fits = {"sae": (points(np.zeros((0, 5)), []), to_true(5)), "lds": (failed, "diverged")}
    for truth, note in ((none, "none found"), (unknown, "no network is known")):
        _, table, seen, (figure, settings, files) = drawn(truth, fits, show=panels)
        assert [(title, texts) for title, texts, *_ in seen[::2]] == [("truth", [note]), ("sae", ["none found"]), ("lds (diverged)", ["not analysed"])]  # fmt: skip
        assert len(seen[2][2]["line"]) == 8
        assert "line" not in seen[4][2]
        assert table.empty
        assert "pc3" in table
        assert f"truth ({note})" in [
            one["label"] for one in page(figure.interactive(settings, files))["layout"]["meta"]["choices"]
        ]


def test_points_of_a_fit_far_from_the_true_states_are_counted_instead(drawn):
    facts = {"to_true_weights": np.eye(4), "to_true_offset": np.zeros(4)}
    found = np.concatenate([X[:2], X[2:3] + 30.0])
    _, table, seen, (figure, settings, files) = drawn(points(X, KINDS), {"sae": (points(found, ["stable"] * 3), facts)}, show=panels)  # fmt: skip
    (_, texts, lines, ax), (*_, below, _) = seen[2:]
    assert texts == ["1 of 3 points farther off"]
    ((data, _),) = lines["#0072b2", "o"]
    assert len(data) == 2
    assert len(table) == 10
    assert max(np.abs(ax.get_xlim())) < 50
    assert len(below["#0072b2", "o"][0][0]) == 12  # their spectra are drawn
    shown = [trace for trace in page(figure.interactive(settings, files))["data"] if trace["name"] == "stable"]
    assert [len(trace["text"]) for trace in shown] == [2, 2]


def test_all_panels_have_the_same_limits_and_the_points_are_inside(drawn):
    facts = {"to_true_weights": np.eye(4), "to_true_offset": np.zeros(4)}
    wide = X[:1] * 0 + [14.0, 0, 0, 0]
    _, table, seen, _ = drawn(points(X, KINDS), {"sae": (points(wide, ["one"]), facts)}, show=panels)
    limits = [[ax.get_xlim(), ax.get_ylim(), ax.get_zlim()] for *_, ax in seen[::2]]
    assert limits[0] == limits[1]
    for (low, high), axis in zip(limits[0], ("pc1", "pc2", "pc3"), strict=True):
        assert low < table[axis].min() < table[axis].max() < high


@pytest.mark.parametrize("n_states", [1, 2])
def test_few_states_are_drawn_too(n_states, drawn):
    x, kinds = np.random.default_rng(0).normal(size=(3, n_states)), ["stable", "marginal", "one"]
    fits = {"sae": (points(FOUND, ["stable", "one", "two"]), to_true(5, n_states))}
    dataset, table, seen, (figure, settings, files) = drawn(points(x, kinds), fits, n_states, panels)
    axes = [f"pc{axis + 1}" for axis in range(n_states)]
    assert f"pc{n_states + 1}" not in table
    assert_coordinates(table[:3][axes], pca(dataset).transform(x))
    ((data, _),) = seen[0][2]["#d55e00", "^"]
    drawn_at = data[:, 1:] if n_states == 1 else data
    np.testing.assert_allclose(drawn_at, table[2:3][axes])
    share = pca(dataset).explained_variance_ratio_[0]
    assert seen[0][3].get_xlabel() == ("time (s)" if n_states == 1 else f"PC 1 ({share:.0%})")
    assert len(page(figure.interactive(settings, files))["data"]) > 4


def test_padding_moves_nothing(drawn):
    tables = []
    for fill in (0.0, 1e6):
        _, table, seen, _ = drawn(
            points(X, KINDS), {"sae": (points(FOUND, ["one"] * 3), FACTS)}, show=panels, fill=fill
        )
        lengths = [len(data) for data, _ in seen[0][2]["line"]]
        tables.append(table)
        assert max(lengths) <= 12
        assert min(lengths) < 12
        assert max(np.abs(seen[0][3].get_xlim())) < 50
    pd.testing.assert_frame_equal(*tables)


def test_more_systems_than_a_row_holds_go_below(drawn):
    fits = {f"model{k}": (points(FOUND, ["stable", "one", "two"]), FACTS) for k in range(4)}
    _, table, seen, _ = drawn(points(X, KINDS), fits, show=panels)
    assert [title for title, *_ in seen[::2]] == ["truth", *fits]
    boxes = [ax.get_position() for *_, ax in seen[::2]]
    assert boxes[4].y1 < boxes[0].y0
    assert table["source"].nunique() == 5


def test_a_dataset_without_true_states_is_refused(drawn, make_dataset):
    _, _, _, (figure, settings, files) = drawn(points(X, KINDS), {"sae": (points(FOUND, ["one"] * 3), FACTS)})
    datasets.write(files["dataset", "some"], make_dataset())
    with pytest.raises(DatasetError, match="'some' has no true latents, which figure `fixed_points` needs"):
        figure.draw(settings, files)


# ------------------------------------------------------------------------------------------------------- to be turned


def page(figure):
    """Data and layout that plotly draws."""
    return json.loads(figure.to_json(engine="json"))


def array(values):
    return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]) if isinstance(values, dict) else np.array(values, float)  # fmt: skip


def test_one_system_is_shown_at_a_time_and_a_point_says_what_it_is(drawn):
    fits = {"sae": (points(FOUND, ["stable", "one", "two"]), FACTS), "lds": (points(FOUND, ["one"] * 3), to_true(5))}
    _, table, _, (figure, settings, files) = drawn(points(X, KINDS), fits, n_trials=3)
    found = page(figure.interactive(settings, files))
    names = [trace["name"] for trace in found["data"]]
    of_truth = ["trajectories", "stable", "marginal", "1 unstable direction", "2 unstable directions", "3 or more"]
    of_sae = ["trajectories", "true points", "stable", "1 unstable direction", "2 unstable directions"]
    assert names == [*of_truth, *of_sae, "trajectories", "true points", "1 unstable direction"]
    assert [trace["visible"] for trace in found["data"]] == [True] * 6 + [False] * 8
    shown = {choice["label"]: choice["visible"] for choice in found["layout"]["meta"]["choices"]}
    assert shown == {"truth": [True] * 6 + [False] * 8, "sae": [False] * 6 + [True] * 5 + [False] * 3, "lds": [False] * 11 + [True] * 3}  # fmt: skip
    for trace, k in ((found["data"][4], [4]), (found["data"][5], [5, 6]), (found["data"][7], range(7))):
        for axis, letter in enumerate("xyz"):
            np.testing.assert_allclose(array(trace[letter]), table[f"pc{axis + 1}"].iloc[list(k)], rtol=1e-5)
    assert np.isnan(array(found["data"][0]["x"])).sum() == 3
    (text,) = found["data"][4]["text"]
    tau, hertz = -BIN_S / np.log(1.2), 0.5 / (2 * np.pi * BIN_S)
    lines = text.split("<br>")
    assert lines[0] == "point 4: saddle focus, 2 unstable of 4 directions"
    assert lines[1] == lines[2] == f"|eigenvalue| 1.200: grows in {-tau:.3g} s, turns at {hertz:.3g} Hz"
    assert lines[3] == f"|eigenvalue| 0.200: decays in {-BIN_S / np.log(0.2):.3g} s, turns at 0 Hz"
    assert lines[4:] == ["reached from 7 starts; residual 5.0e-12"]
    assert found["data"][8]["text"][0].endswith("matches true point 1, 0.12 spreads away")
    assert found["data"][4]["marker"]["color"] == "#009e73"
    limits = [found["layout"]["scene"][f"{letter}axis"]["range"] for letter in "xyz"]
    for (low, high), axis in zip(limits, ("pc1", "pc2", "pc3"), strict=True):
        assert low < table[axis].min() < table[axis].max() < high


def test_on_paper_and_to_be_turned_it_has_the_same_bytes_twice(drawn, tmp_path):
    _, table, _, (figure, settings, files) = drawn(points(X, KINDS), {"sae": (points(FOUND, ["one"] * 3), FACTS)})
    for name in ("first", "second"):
        make(figure, settings, Files(files), tmp_path / name)
        make_interactive(figure, settings, Files(files), tmp_path / name)
    for suffix in ("pdf", "png", "csv", "json"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()
    assert len(pd.read_csv(tmp_path / "first.csv")) == len(table) == 10
