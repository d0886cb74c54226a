"""LFADS and BAND as shipped in config/config.yaml, against published numbers and plain baselines."""

import shutil

import numpy as np
import pytest

from ctdb import config, models, training
from ctdb.datasets import SpikeDataset, read, write
from ctdb.datasets.kind import DATASETS, FileBased
from ctdb.files import read_hdf5
from ctdb.scores import score_fit
from project import REPOSITORY, lay_out

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("one_thread")]
LORENZ_NULL, LORENZ_ORACLE, LORENZ_LIMIT = 0.0897, 0.07755, 0.0779
RIDGE_ON_CHEWIE = (0.886, 0.832)
"""Velocity R2 (x, y) of a ridge regression from the binned spikes of all bins, pooled over 5 folds by trial."""


@pytest.fixture(scope="module")
def plan():
    return config.load(REPOSITORY / "config/config.yaml")


@pytest.fixture(scope="module")
def prepare(plan, data_folder, tmp_path_factory):
    """Prepare a dataset of the configuration; skip where its file is absent."""

    def make(name: str) -> SpikeDataset:
        entry = plan["datasets"][name]
        kind = DATASETS[entry["settings"]["kind"]]
        files = []
        for what, source, *_ in entry["sources"]:
            if what == "dataset":
                files.append(tmp_path_factory.mktemp("data") / f"{source}.h5")
                write(files[-1], make(source))
            else:
                files.append(data_folder / source.removeprefix("$CTDB_DATA/"))
                if not files[-1].exists():
                    pytest.skip(f"{files[-1]} is absent: set CTDB_DATA to its folder")
        settings = kind.Settings(**entry["settings"])
        assert issubclass(kind.Settings, FileBased) == any(what == "file" for what, *_ in entry["sources"])
        return kind.prepare(settings, files)

    return make


def fit(plan, dataset, name, seed, out, model):
    (chosen,) = (one for one in plan["fits"] if (one["dataset"], one["model"], one["seed"]) == (name, model, seed))
    spec = chosen["spec"]
    training.fit(models.build(spec, dataset), dataset, spec, out)
    labels = {"dataset": name, "model": model, "kind": chosen["kind"], "sweep": chosen["sweep"], "seed": seed}
    table = score_fit(dataset, out, None, labels)
    return table.set_index(["metric", "split"])["value"]


@pytest.mark.parametrize("model", ["lorenz_lfads", "lorenz_lfads_gru"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lfads_reaches_the_oracle_on_lorenz(plan, prepare, tmp_path, seed, model):
    scores = fit(plan, prepare("lorenz_all"), "lorenz_all", seed, tmp_path, model)
    print(
        f"{model} seed {seed}: valid NLL {scores['poisson_nll', 'valid']:.5f}, rate R2 {scores['rate_r2', 'valid']:.3f}"
    )
    assert LORENZ_ORACLE < scores["poisson_nll", "valid"] <= LORENZ_LIMIT


def test_band_decodes_real_reaches_better_than_a_ridge_on_the_spikes(plan, prepare, tmp_path):
    true, decoded = [], []
    for fold in range(5):
        name = f"chewie_fold{fold}"
        dataset = prepare(name)
        fit(plan, dataset, name, 0, tmp_path / name, "band")
        outputs, _ = read_hdf5(tmp_path / name / "output.h5")
        true.append(dataset["test"].behavior)
        decoded.append(outputs["test_behavior"])
    true, decoded = np.concatenate(true), np.concatenate(decoded)
    assert len(true) == 159
    error = ((true - decoded) ** 2).sum((0, 1)) / ((true - true.mean((0, 1))) ** 2).sum((0, 1))
    print(f"velocity R2 x {1 - error[0]:.3f}, y {1 - error[1]:.3f}")
    assert (1 - error > RIDGE_ON_CHEWIE).all()


@pytest.mark.parametrize("shuffle", ["behavior", "neurons"])
def test_band_decodes_nothing_from_shuffled_trials(plan, prepare, tmp_path, shuffle):
    name = f"chewie_{shuffle}_shuffled"
    scores = fit(plan, prepare(name), name, 0, tmp_path, "band")
    print(f"{name}: R2 {scores['behavior_r2', 'test']:.3f}")
    assert scores["behavior_r2", "test"] <= 0.05


@pytest.fixture(scope="module")
def flip_flop(tmp_path_factory):
    """The 3-bit flip-flop at quick size: its pulses are the inputs that a model must infer."""
    project = lay_out(tmp_path_factory.mktemp("nbff") / "project")
    shutil.copytree(REPOSITORY / "config", project.folder / "config")
    done = project.run("results/quick/datasets/nbff.h5", "--configfile", "config/quick.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return read(project.folder / "results/quick/datasets/nbff.h5")


def test_inferred_inputs_are_the_task_s_pulses_where_kl_is_tuned(flip_flop, tmp_path):
    """CtDB's best input R2 on this task is 0.2; too small a KL lets noise in, too large a one keeps pulses out."""
    plan = config.load(REPOSITORY / "config/quick.yaml")
    (chosen,) = (one for one in plan["fits"] if one["model"] == "lfads_infer")
    scores = {}
    for scale in (0.0, chosen["spec"]["kl_co_scale"], 1.0):
        spec = chosen["spec"] | {"kl_co_scale": scale}
        out = tmp_path / str(scale)
        training.fit(models.build(spec, flip_flop), flip_flop, spec, out)
        table = score_fit(flip_flop, out, None, {})
        scores[scale] = table.set_index(["metric", "split"])["value"]
        named = {name: round(scores[scale][name, "test"], 4) for name in ("input_r2_inferred_to_true", "rate_r2")}
        print(
            f"kl_co_scale {scale}: {named}, lost without inputs: {scores[scale]['control_bits_per_spike', 'test']:.3f}"
        )
    tuned = scores[chosen["spec"]["kl_co_scale"]]
    assert tuned["input_r2_inferred_to_true", "test"] > 0.2
    for scale in (0.0, 1.0):
        assert tuned["input_r2_inferred_to_true", "test"] > scores[scale]["input_r2_inferred_to_true", "test"]
    assert tuned["control_bits_per_spike", "test"] > 0.5 * tuned["bits_per_spike_heldin", "test"]
