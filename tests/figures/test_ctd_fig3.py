"""The figure of three networks at their tasks, against the activity and the fixed points it is drawn from."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from sklearn.decomposition import PCA

from ctdb import datasets
from ctdb.dynamics import FixedPoints
from ctdb.errors import DatasetError
from ctdb.figures import FIGURES
from ctdb.figures.base import STYLE, make
from ctdb.figures.planned import Files, Planned
from ctdb.files import write_hdf5

FIGURE = FIGURES["ctd_fig3"]
BIN_S = 0.02


@pytest.fixture(autouse=True)
def no_figure_left_open():
    yield
    assert plt.get_fignums() == []


def points(x, n_unstable, held):
    """Fixed points with that many eigenvalues of 1.5, the others 0.5, under the constant input `held`."""
    x = torch.as_tensor(x, dtype=torch.float64)
    k, d = x.shape
    sizes = torch.where(torch.arange(d) < torch.tensor(n_unstable)[:, None], 1.5, 0.5).double()
    none, nothing = torch.zeros(0, dtype=torch.long), torch.zeros(k, dtype=torch.float64)
    inputs = torch.tensor(held, dtype=torch.float64).expand(k, -1)
    return FixedPoints(x, inputs, nothing, torch.diag_embed(sizes), torch.zeros(k, d, len(held), dtype=torch.float64), nothing, torch.ones(k, dtype=torch.long), none, none, radius=1.0, bin_s=BIN_S)  # fmt: skip


def write_activity(path, seed, inputs, targets, conditions=(), **more):
    rng = np.random.default_rng(seed)
    arrays = {
        "inputs": rng.normal(size=(6, 10, len(inputs))),
        "inputs_true": rng.normal(size=(6, 10, len(more.pop("meant", inputs)))),
        "targets": rng.normal(size=(6, 10, len(targets))),
        "outputs": rng.normal(size=(6, 10, 4 if "behavior" in more else len(targets))),
        "success": np.array([1.0, 0.5, 0.0, 1.0, 1.0, 0.0]),
    }
    facts = {"bin_s": BIN_S, "target_names": targets, "input_names": inputs, "true_input_names": inputs}
    facts |= {"condition_names": list(conditions), "success": 3.5 / 6}
    facts["output_names"] = [f"out {channel}" for channel in range(arrays["outputs"].shape[2])]
    arrays |= {name: value for name, value in more.items() if isinstance(value, np.ndarray)}
    facts |= {name: value for name, value in more.items() if not isinstance(value, np.ndarray)}
    return path, arrays, facts


@pytest.fixture
def made(make_dataset, tmp_path):
    """Files of all three tasks by need, the settings, and what is in the files."""
    rng = np.random.default_rng(9)
    known = {}

    def put(need, path, arrays, facts):
        write_hdf5(path, arrays, facts)
        known[need] = arrays, facts
        files[need] = str(path)

    files = {}
    put(("activity", "flip", 1, ""), *write_activity(tmp_path / "flip.h5", 0, ["p1", "p2"], ["b1", "b2"]))
    path, arrays, facts = write_activity(
        tmp_path / "many.h5",
        1,
        ["fix", "cos", "rule"],
        ["fix", "cos"],
        ["pro", "anti"],
        condition=np.array([0, 1, 0, 1, 1, 0]),
        n_bins=np.array([10, 9, 8, 7, 6, 5]),
        response_start=np.array([5, 5, 5, 4, 4, 3]),
    )
    arrays["inputs_true"][..., 1] = 0
    put(("activity", "many", 0, ""), path, arrays, facts)
    force = np.zeros((6, 10, 2))
    force[0, 4:6] = [2.0, 0.0]
    force[1, 3:6] = [-2.0, 1.0]
    force[3, 2:3] = [-1.0, 0.0]
    force[4, 7:9] = [0.5, -3.0]
    for variant in ("", "bumps"):
        about = {"behavior": rng.normal(size=(6, 10, 5)), "force": force, "go_bin": np.full(6, 4), "condition": np.array([1, 1, 0, 1, 2, 0])}  # fmt: skip
        path, arrays, facts = write_activity(tmp_path / f"reach{variant}.h5", 2, ["x", "go"], ["x", "y"], ["reach", "reach, bumped", "catch"], **about)  # fmt: skip
        facts["input_names"] = ["seen x", "length", "x", "go"]
        put(("activity", "reach", 0, variant), path, arrays, facts)
    states = {}
    for name, held in (("cube", [0.0, 0.0]), ("ring", [1.0, 0.0, 0.5])):
        channels = [f"channel {k}" for k in range(len(held))]
        names = {"condition": ["anti", "pro", "none"], "inputs": channels}
        dataset = make_dataset(n_trials=24, n_bins=12, latents=4, ext_input=len(held), bin_s=BIN_S, per_trial=True, names=names)  # fmt: skip
        for split in dataset.splits.values():
            split.latents[..., 0] *= 3
        datasets.write(tmp_path / f"{name}.h5", dataset)
        found = points([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [2, 0, 0, 1]], [0, 0, 1, 3], held)
        found.save(tmp_path / f"{name}/fixed_points.h5")
        write_hdf5(tmp_path / f"{name}/dynamics.h5", {}, {"format": "ctdb-dynamics-1", "status": "ok"})
        files[("dataset", name)] = str(tmp_path / f"{name}.h5")
        files[("dynamics", name)] = str(tmp_path / f"{name}/dynamics.h5")
        states[name] = dataset
    options = {
        "nbff": {"network": "flip", "seed": 1, "dataset": "cube"},
        "multitask": {"network": "many", "dataset": "ring", "condition": "pro", "trial": 1},
        "random_target": {"network": "reach", "variant": "bumps"},
    }
    return files, options, known, states


def drawn(files, options, show=lambda canvas: None, missing=()):
    settings = FIGURE.Settings(kind="ctd_fig3", **options)
    needs = FIGURE.needs(settings, Planned())
    given = Files({need: files[need] for need in needs if need not in missing}, dict.fromkeys(missing, "not made"))
    with plt.style.context(STYLE):
        canvas, table = FIGURE.draw(settings, given)
        canvas.canvas.draw()
        seen = show(canvas)
        plt.close(canvas)
    return table, seen, settings, given


def curve(table, task, panel, channel, name):
    chosen = (table["task"] == task) & (table["panel"] == panel) & (table["channel"] == channel)
    return table[chosen & (table["curve"] == name)]


def test_it_needs_the_activity_and_the_dynamics_of_what_is_set(made):
    files, options, _, _ = made
    needs = FIGURE.needs(FIGURE.Settings(kind="ctd_fig3", **options), Planned())
    assert set(needs) == set(files)
    alone = FIGURE.Settings(kind="ctd_fig3", multitask={"network": "many"})
    assert FIGURE.needs(alone, Planned()) == [("activity", "many", 0, "")]
    assert FIGURE.needs(FIGURE.Settings(kind="ctd_fig3"), Planned()) == []


def test_a_trial_of_the_condition_is_drawn_to_its_end_without_channels_it_does_not_use(made):
    files, options, known, _ = made

    def show(canvas):
        left, middle = canvas.axes[2:4]
        return [label.get_text() for label in left.get_yticklabels()], [ax.lines[-1].get_xdata()[0] for ax in (left, middle)]  # fmt: skip

    table, (channels, response), _, _ = drawn(files, options, show)
    arrays, _ = known["activity", "many", 0, ""]
    assert set(table.loc[(table["task"] == "multitask") & table["channel"].notna(), "trial"]) == {2}
    for name, key in (("given", "inputs"), ("meant", "inputs_true")):
        own = curve(table, "multitask", "inputs", "rule", name)
        np.testing.assert_allclose(own["value"], arrays[key][2, :8, 2])
        np.testing.assert_allclose(own["time_s"], BIN_S * np.arange(8))
    for name, key in (("target", "targets"), ("answer", "outputs")):
        np.testing.assert_allclose(curve(table, "multitask", "answers", "cos", name)["value"], arrays[key][2, :8, 1])
    assert channels == ["fix", "rule"]
    assert response == pytest.approx([5 * BIN_S] * 2)
    flip = curve(table, "nbff", "answers", "b2", "answer")
    np.testing.assert_allclose(flip["value"], known["activity", "flip", 1, ""][0]["outputs"][0, :, 1])


def test_curves_keep_their_shape_and_channels_do_not_touch(made):
    files, options, known, _ = made

    def show(canvas):
        return [np.asarray(line.get_ydata()) for line in canvas.axes[1].lines], [line.get_linestyle() for line in canvas.axes[1].lines]  # fmt: skip

    _, (curves, styles), _, _ = drawn(files, options, show)
    arrays, _ = known["activity", "flip", 1, ""]
    expected = [arrays[key][0, :, channel] for channel in range(2) for key in ("targets", "outputs")]
    scale = np.ptp(np.concatenate(expected))
    for seen, true in zip(curves, expected, strict=True):
        np.testing.assert_allclose(np.diff(seen), np.diff(true) * 0.85 / scale)
    assert min(map(np.min, curves[:2])) > max(map(np.max, curves[2:]))
    assert styles == ["--", "-"] * 2


def test_a_body_answers_by_what_it_did_and_its_muscles_are_shown(made):
    files, options, known, _ = made
    table, _, _, _ = drawn(files, options)
    arrays, _ = known["activity", "reach", 0, ""]
    np.testing.assert_allclose(curve(table, "random_target", "answers", "y", "answer")["value"], arrays["behavior"][0, :, 1])  # fmt: skip
    np.testing.assert_allclose(curve(table, "random_target", "answers", "muscles", "out 3")["value"], arrays["outputs"][0, :, 3])  # fmt: skip
    assert curve(table, "random_target", "inputs", "go", "given").empty  # a body's inputs are others than those meant


def test_fixed_points_and_states_are_those_of_the_condition_in_its_principal_components(made):
    files, options, _, states = made

    def show(canvas):
        (ax,) = [ax for ax in canvas.axes if hasattr(ax, "get_zlim") and "channel" in ax.texts[-1].get_text()]
        found = {to_hex(line.get_markeredgecolor()): len(line.get_data_3d()[0]) for line in ax.lines if line.get_marker() not in ("None", "")}  # fmt: skip
        (legend,) = canvas.legends
        return ax.texts[-1].get_text(), found, [text.get_text() for text in legend.get_texts()]

    table, (title, found, legend), settings, _ = drawn(files, options | {"n_trials": 3}, show)
    train, test = states["ring"]["train"], states["ring"]["test"]
    own = train.condition == 1
    seen = np.concatenate([trial[:n] for trial, n in zip(train.latents[own], train.n_bins[own], strict=True)])
    pca = PCA(3).fit(seen.astype(float))
    trials = np.flatnonzero(test.condition == 1)[:3]
    rows = table[(table["task"] == "multitask") & (table["panel"] == "trajectories")]
    expected = np.concatenate([pca.transform(test.latents[k, : test.n_bins[k]].astype(float)) for k in trials])
    np.testing.assert_allclose(np.abs(rows[["pc1", "pc2", "pc3"]]), np.abs(expected), atol=1e-4)
    where = table[(table["task"] == "multitask") & (table["panel"] == "fixed points")]
    x = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [2, 0, 0, 1]]
    np.testing.assert_allclose(np.abs(where[["pc1", "pc2", "pc3"]]), np.abs(pca.transform(x)), atol=1e-4)
    assert "channel 0 1, channel 2 0.5" in title
    assert found == {"#0072b2": 2, "#d55e00": 1, "#cc79a7": 1}
    assert legend == ["stable", "1 unstable direction", "3 or more"]
    said = FIGURE.findings(settings, table)
    assert "multitask: success 58.3%; fixed points: 2 stable, 1 with 1 unstable direction, 1 with 3 or more." in said


def test_reaches_are_told_apart_by_where_they_are_pushed_and_catch_trials_left_out(made):
    files, options, known, _ = made

    def show(canvas):
        ax = canvas.axes[-1]
        return [(line.get_marker(), tuple(np.ravel(line.get_xydata()))) for line in ax.lines if line.get_marker() in ("<", ">") and len(line.get_xdata())]  # fmt: skip

    table, begins, _, _ = drawn(files, options, show)
    reaches = table[table["panel"] == "reaches"]
    kinds = {kind: own["trial"].unique().tolist() for kind, own in reaches.groupby("curve")}
    assert kinds == {"no force": [2, 5], "force to −x": [1, 3], "force to +x": [0]}
    hand = known["activity", "reach", 0, "bumps"][0]["behavior"]
    np.testing.assert_allclose(reaches.loc[reaches["trial"] == 3, ["x_m", "y_m"]], hand[3, :, :2])
    assert begins == [("<", tuple(hand[1, 3, :2])), ("<", tuple(hand[3, 2, :2])), (">", tuple(hand[0, 4, :2]))]


def test_what_is_missing_or_not_set_is_said_and_the_rest_drawn(made):
    files, options, _, _ = made

    def show(canvas):
        return [text.get_text().replace("\n", " ") for ax in canvas.axes for text in ax.texts if "missing" in text.get_text()]  # fmt: skip

    table, said, _, _ = drawn(files, {"multitask": options["multitask"]}, show, [("dynamics", "ring")])
    assert [" ".join(one.split()) for one in said] == [
        *["missing: `nbff` of this figure is not set"] * 2,
        *["missing: `random_target` of this figure is not set"] * 2,
        "missing: `nbff` of this figure is not set",
        "missing: not made",
        "missing: `random_target` of this figure is not set",
    ]
    assert set(table["panel"]) == {"inputs", "answers", "success"}
    table, said, settings, given = drawn(files, {}, show)
    assert len(said) == 9
    assert table.empty
    assert FIGURE.findings(settings, table) == ""
    assert FIGURE.reproduction(settings, given)["n"].tolist() == [0] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition": "por"}, "no condition called 'por'; did you mean 'pro'"),
        ({"trial": 3}, "trial 3 of 3 trials of condition 'pro' of network 'many'"),
    ],
)
def test_a_trial_that_is_not_there_is_an_error(made, change, message):
    files, options, _, _ = made
    with pytest.raises(DatasetError, match=message):
        drawn(files, {"multitask": options["multitask"] | change})
    plt.close("all")


def test_numbers_of_fixed_points_stand_beside_those_of_a_cube(made):
    files, options, _, _ = made
    settings = FIGURE.Settings(kind="ctd_fig3", **options)
    rows = FIGURE.reproduction(settings, Files(files))
    assert rows["x"].tolist() == ["0", "1", "2", "3"]
    assert rows["ours"].tolist() == [2, 1, 0, 1]
    assert rows["published"].tolist() == [8, 12, 6, 1]
    assert set(rows["dataset"]) == {"cube"}


def test_the_same_bytes_twice(made, tmp_path):
    files, options, _, _ = made
    settings = FIGURE.Settings(kind="ctd_fig3", **options)
    for name in ("first", "second"):
        make(FIGURE, settings, Files(files), tmp_path / name)
    for suffix in ("pdf", "png", "csv", "txt"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"second.{suffix}").read_bytes()
