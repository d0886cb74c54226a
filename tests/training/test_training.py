"""Training: against a plain loop with torch's Adam, against kills at bad moments, and against losses gone wrong."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from torch import nn

from ctdb import datasets, models
from ctdb.datasets import SpikeDataset, Split
from ctdb.errors import ConfigError, TrainingDivergedError
from ctdb.files import read_hdf5, read_yaml
from ctdb.recurrent import cpu
from ctdb.settings import TrainingSettings
from ctdb.training import Batches, discard_checkpoint, fit, train

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------------- batches


def numbered(n_trials, batch_size, seed=None):
    return Batches({"x": torch.arange(n_trials), "y": 2 * torch.arange(n_trials)}, batch_size, seed)


def order_of(batches, epoch):
    batches.set_epoch(epoch)
    return torch.cat([batch["x"] for batch in batches]).tolist()


@pytest.mark.parametrize(("n_trials", "batch_size"), [(10, 3), (10, 5), (10, 100), (1, 1)])
def test_every_trial_comes_once_per_epoch(n_trials, batch_size):
    batches = numbered(n_trials, batch_size, seed=0)
    sizes = [len(batch["x"]) for batch in batches]
    assert len(sizes) == len(batches) == math.ceil(n_trials / batch_size)
    assert all(size == batch_size for size in sizes[:-1])
    for epoch in range(3):
        assert sorted(order_of(batches, epoch)) == list(range(n_trials))


def test_tensors_of_a_batch_belong_to_the_same_trials():
    for batch in numbered(20, 6, seed=1):
        assert torch.equal(batch["y"], 2 * batch["x"])


def test_order_depends_on_seed_and_epoch_alone():
    first = order_of(numbered(30, 7, seed=3), 5)
    torch.manual_seed(0)
    batches = numbered(30, 11, seed=3)
    order_of(batches, 4)
    assert order_of(batches, 5) == first
    assert order_of(batches, 6) != first
    assert order_of(numbered(30, 7, seed=4), 5) != first


def test_without_a_seed_trials_keep_their_order():
    assert order_of(numbered(10, 3), 4) == list(range(10))


# ----------------------------------------------------------------------- the loop, on modules simple enough to follow


class NoisyRegression(nn.Module):
    """Linear regression whose inputs are shaken in training."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-1, 1, generator=generator(5))

    def loss(self, batch, generator):
        x = batch["x"]
        if self.training:
            x = x + 0.1 * torch.randn(x.shape, generator=generator)
        return ((self.linear(x) - batch["y"]) ** 2).mean()


def regression_data(n_train=23, n_valid=9, batch_size=5, seed=0):
    x = torch.randn(n_train + n_valid, 4, generator=generator(seed))
    y = x @ torch.randn(4, 2, generator=generator(seed + 1)) + 0.3 * torch.randn(len(x), 2, generator=generator(9))
    first, second = slice(None, n_train), slice(n_train, None)
    return (
        Batches({"x": x[first], "y": y[first]}, batch_size, shuffle_seed=7),
        Batches({"x": x[second], "y": y[second]}, batch_size),
    )


def settings(**changed):
    defaults = {"max_epochs": 10, "batch_size": 5, "learning_rate": 0.05}
    return TrainingSettings(**(defaults | changed))


def trained_by_hand(module, train_data, valid_data, options, seed):
    """Plain loop: Adam or AdamW, gradients clipped, the best valid epoch kept. Noise and order seeded as documented."""
    from ctdb.seeds import derive

    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimizer]
    adam = kind(module.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, eps=options.epsilon)
    rows, best, weights = [], math.inf, None
    for epoch in range(options.max_epochs):
        noise = generator(derive("training noise", seed, epoch))
        train_data.set_epoch(epoch)
        module.train()
        total = largest = 0.0
        for batch in train_data:
            adam.zero_grad()
            loss = module.loss(batch, noise)
            loss.backward()
            norm = torch.sqrt(sum((p.grad**2).sum() for p in module.parameters()))
            largest = max(largest, float(norm))
            if options.gradient_clip is not None:
                for p in module.parameters():
                    p.grad *= min(1.0, options.gradient_clip / (float(norm) + 1e-6))
            adam.step()
            total += loss.item() * len(batch["x"])
        module.eval()
        with torch.no_grad():
            valid = sum(module.loss(batch, None).item() * len(batch["x"]) for batch in valid_data)
        rows.append((epoch, total / train_data.n_trials, valid / valid_data.n_trials, largest))
        if rows[-1][2] < best:
            best, weights = rows[-1][2], {name: value.clone() for name, value in module.state_dict().items()}
    return rows, weights


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_clip": None},
        {"gradient_clip": 0.05},
        {"weight_decay": 0.3},
        {"learning_rate": 0.7},
        {"epsilon": 0.3},  # so large that Adam's steps follow the size of the gradient
        {"epsilon": 0.3, "gradient_clip": 0.4},
        {"optimizer": "adamw", "weight_decay": 0.3},
        {"optimizer": "adamw", "weight_decay": 0.3, "epsilon": 0.3, "gradient_clip": None},
    ],
    ids=str,
)
def test_training_equals_a_plain_loop_with_adam(options, tmp_path):
    options = settings(**options)
    module = NoisyRegression()
    result = train(module, *regression_data(), options, seed=11, out=tmp_path)
    rows, weights = trained_by_hand(NoisyRegression(), *regression_data(), options, seed=11)
    assert result.history["epoch"].tolist() == list(range(10))
    np.testing.assert_allclose(result.history["train_loss"], [row[1] for row in rows], rtol=1e-5)
    np.testing.assert_allclose(result.history["valid_loss"], [row[2] for row in rows], rtol=1e-5)
    np.testing.assert_allclose(result.history["gradient_norm"], [row[3] for row in rows], rtol=1e-4)
    assert (result.history["learning_rate"] == options.learning_rate).all()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-6)
    assert not module.training
    assert result.diverged is None
    written = pd.read_csv(tmp_path / "history.csv")
    pd.testing.assert_frame_equal(written, result.history, check_exact=True)
    assert list(written) == ["epoch", "train_loss", "valid_loss", "learning_rate", "gradient_norm"]


class Scripted(nn.Module):
    """A module whose losses are prescribed, epoch by epoch, and whose weight counts the training steps."""

    def __init__(self, valid_losses, bad_step=None, bad_value=math.nan):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("steps", torch.zeros(()))
        self.valid_losses, self.bad_step, self.bad_value, self.epoch = valid_losses, bad_step, bad_value, -1

    def loss(self, batch, generator):
        if self.training:
            bad = self.steps == self.bad_step
            self.steps += 1
            return self.weight * 0 + (self.bad_value if bad else 1.0)
        self.epoch += 1
        return torch.tensor(self.valid_losses[self.epoch])


def run_script(tmp_path, module, **options):
    trials = {"x": torch.zeros(12, 1)}
    data = Batches(trials, 3, shuffle_seed=0), Batches({"x": torch.zeros(4, 1)}, 4)  # 4 steps, one valid batch
    return train(module, *data, settings(**options), seed=0, out=tmp_path)


def test_patience_stops_early_and_the_best_epoch_is_kept(tmp_path):
    module = Scripted([5.0, 4.0, 3.0, 3.5, 3.6, 3.7, 2.0, 1.0])
    result = run_script(tmp_path, module, max_epochs=8, patience=3)
    assert result.history["valid_loss"].tolist() == pytest.approx([5.0, 4.0, 3.0, 3.5, 3.6, 3.7])
    assert result.best_epoch == 2
    assert module.steps == 4 * 3  # weights and buffers after epoch 2
    assert result.facts() == {
        "status": "ok",
        "reason": "",
        "warnings": [],
        "n_epochs": 6,
        "best_epoch": 2,
        "best_valid_loss": pytest.approx(3.0),
    }


def test_without_patience_all_epochs_run_and_the_first_of_equal_bests_is_kept(tmp_path):
    module = Scripted([5.0, 3.0, 4.0, 3.0, 6.0])
    result = run_script(tmp_path, module, max_epochs=5)
    assert len(result.history) == 5
    assert result.best_epoch == 1
    assert module.steps == 4 * 2


def test_plateau_lowers_the_learning_rate_down_to_its_minimum(tmp_path):
    module = Scripted([5.0, 4.0, 4.1, 4.2, 4.3, 4.4, 3.0, 3.1, 3.2, 3.3, 3.4])
    plateau = {"factor": 0.5, "patience": 1, "minimum": 0.02}
    result = run_script(tmp_path, module, max_epochs=11, learning_rate=0.1, plateau=plateau)
    # Lowered after the second epoch in a row without improvement: after 3 (epochs 2, 3) and 5, then 8, at the minimum.
    expected = [0.1] * 4 + [0.05] * 2 + [0.025] * 3 + [0.02] * 2
    assert result.history["learning_rate"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("bad_step", [0, 1, 10, 15])
@pytest.mark.parametrize(("bad_value", "word"), [(math.nan, "NaN"), (math.inf, "infinite")])
def test_a_loss_that_is_not_finite_names_its_step_and_leaves_the_last_good_weights(bad_step, bad_value, word, tmp_path):
    module = Scripted([5.0, 4.0, 3.0, 2.0, 1.0, 0.5], bad_step, bad_value)
    result = run_script(tmp_path, module, max_epochs=6)
    epoch = bad_step // 4
    assert f"became {word} in training step {bad_step} (epoch {epoch})" in result.diverged
    assert result.best_epoch == epoch - 1
    assert module.steps == 4 * epoch
    assert len(result.history) == epoch + 1
    kept = "the initial weights are kept" if epoch == 0 else f"the weights of epoch {epoch - 1} are kept"
    assert kept in result.diverged
    with pytest.raises(TrainingDivergedError, match=f"training step {bad_step} "):
        result.raise_if_diverged()


def test_a_valid_loss_that_is_not_finite_names_its_epoch(tmp_path):
    result = run_script(tmp_path, Scripted([5.0, 4.0, math.nan, 1.0]), max_epochs=4)
    assert "became NaN in the validation of epoch 2" in result.diverged
    assert result.best_epoch == 1
    assert result.facts()["status"] == "diverged"


def test_a_run_that_diverged_diverges_again_in_the_same_step(tmp_path):
    for _ in range(2):  # the second time from the checkpoint that the first has left
        module = Scripted([5.0, 4.0, 3.0, 2.0, 1.0], bad_step=13)
        module.epoch = -1 if not (tmp_path / "checkpoint").exists() else 2
        result = run_script(tmp_path, module, max_epochs=5)
        assert "training step 13 (epoch 3)" in result.diverged
        assert result.best_epoch == 2
        assert len(result.history) == 4


# ---------------------------------------------------------------------------------------------------- whole fits


def make_data(seed=0, contrary=False):
    """Waves that run over the neurons; on the valid trials of `contrary` data, they run the other way."""
    rng = np.random.default_rng(seed)
    splits = {}
    for name, n_trials in (("train", 24), ("valid", 8), ("test", 6)):
        phase = rng.uniform(0, 2 * np.pi, (n_trials, 1, 1))
        drive = np.sin(phase + np.arange(15)[None, :, None] / 2 + np.arange(8))
        if contrary and name == "valid":
            drive = drive[:, :, ::-1]
        recon = rng.poisson(np.exp(drive)).astype(np.float32)
        splits[name] = Split(
            encod_data=recon[:, :, :6],
            recon_data=recon,
            ext_input=rng.normal(size=(n_trials, 15, 2)).astype(np.float32),
        )
    return SpikeDataset(splits, bin_s=0.01)


def make_spec(seed=0, dropout=0.1, **changed):
    options = {"max_epochs": 12, "batch_size": 8, "learning_rate": 0.01} | changed
    return {
        "kind": "sae_gru",
        "latent_size": 5,
        "encoder_size": 6,
        "dropout": dropout,
        "initial_state_dropout": dropout,
        "seed": seed,
        "training": options,
    }


RESTLESS = make_spec(
    learning_rate=0.1, max_epochs=60, patience=10, plateau={"factor": 0.5, "patience": 1, "minimum": 0.001}
)
"""On contrary data the valid loss soon rises, so that the learning rate falls and the run stops early."""
FITS = {"plain": (make_spec(), make_data()), "restless": (RESTLESS, make_data(contrary=True))}


@pytest.fixture(scope="module", autouse=True)
def a_checkpoint_after_every_epoch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTDB_CHECKPOINT_SECONDS", "0")
        yield


def run_fit(out, spec=None, data=None):
    spec, data = spec or make_spec(), data or make_data()
    return fit(models.build(spec, data), data, spec, out)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same_fit(ours, theirs):
    ours, theirs = contents(ours), contents(theirs)
    assert ours.keys() == theirs.keys() >= {"weights.safetensors", "spec.yaml", "history.csv", "output.h5"}
    for name, value in ours.items():
        assert value == theirs[name], name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    for kind, (spec, data) in FITS.items():
        run_fit(out / kind, spec, data)
    return out


def test_two_fits_in_two_folders_have_the_same_bytes_and_leave_random_states_alone(undisturbed, tmp_path):
    torch.manual_seed(123)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    run_fit(tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert_same_fit(tmp_path, undisturbed / "plain")
    assert not (tmp_path / "checkpoint").exists()


def test_how_often_a_checkpoint_is_written_changes_nothing(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("CTDB_CHECKPOINT_SECONDS", "1000")
    run_fit(tmp_path)
    assert_same_fit(tmp_path, undisturbed / "plain")


def test_a_damaged_checkpoint_is_passed_over(undisturbed, tmp_path, capsys):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/last.ckpt").write_bytes(bytes(range(100)))
    run_fit(tmp_path)
    assert "cannot be read" in capsys.readouterr().out
    assert_same_fit(tmp_path, undisturbed / "plain")


def test_a_model_built_from_another_spec_is_refused(tmp_path):
    data = make_data()
    with pytest.raises(ConfigError, match="built from another spec"):
        fit(models.build(make_spec(seed=3), data), data, make_spec(seed=4), tmp_path)


def test_the_valid_loss_does_not_depend_on_how_padded_trials_are_batched(tmp_path):
    data = make_data()
    rng = np.random.default_rng(5)
    padded = {
        name: Split(**split.arrays(), n_bins=rng.integers(1, split.encod_data.shape[1] + 1, split.n_trials))
        for name, split in data.splits.items()
    }
    data = SpikeDataset(padded, bin_s=0.01)
    losses = []
    for batch_size in (3, 1000):
        spec = make_spec(batch_size=batch_size, max_epochs=1, learning_rate=1e-12, dropout=0.0)
        result = run_fit(tmp_path / str(batch_size), spec, data)
        losses.append(result.history[["train_loss", "valid_loss"]].to_numpy())
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_another_seed_is_another_fit(undisturbed, tmp_path):
    run_fit(tmp_path, make_spec(seed=1))
    assert contents(tmp_path)["output.h5"] != contents(undisturbed / "plain")["output.h5"]


def test_what_is_written_comes_from_the_best_epoch_and_not_the_last(undisturbed):
    folder, (_, data) = undisturbed / "restless", FITS["restless"]
    history = pd.read_csv(folder / "history.csv")
    best = history["valid_loss"].idxmin()
    assert best < len(history) - 1
    assert abs(history["valid_loss"].iloc[-1] - history["valid_loss"][best]) > 1e-3
    spec = read_yaml(folder / "spec.yaml")
    assert (spec["status"], spec["best_epoch"], spec["n_epochs"]) == ("ok", best, len(history))
    model = models.base.load(folder, torch.float32)
    with torch.no_grad():
        loss = model.loss(model.tensors(data["valid"]), generator())
    assert loss.item() == pytest.approx(history["valid_loss"][best], rel=1e-5)
    written, _ = read_hdf5(folder / "output.h5")
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(written[f"{split}_rates"], model.infer(data[split])["rates"].numpy())


def test_a_diverged_fit_is_written_from_its_last_good_weights(tmp_path):
    data = make_data()
    spec = make_spec(learning_rate=1e3, gradient_clip=None) | {"kind": "lds"}
    with pytest.raises(TrainingDivergedError, match="the loss became") as caught:
        fit(models.build(spec, data), data, spec, tmp_path)
    written = read_yaml(tmp_path / "spec.yaml")
    assert written["status"] == "diverged"
    assert written["reason"] == str(caught.value)
    assert all(
        torch.isfinite(value).all() for value in safetensors.torch.load_file(tmp_path / "weights.safetensors").values()
    )
    arrays, _ = read_hdf5(tmp_path / "output.h5")
    assert arrays["test_rates"].shape == data["test"].recon_data.shape
    assert all(np.isfinite(value).all() for value in arrays.values())
    assert not (tmp_path / "checkpoint").exists()


def test_a_fit_on_a_dataset_without_test_trials_writes_none(tmp_path):
    data = make_data()
    run_fit(tmp_path, make_spec(max_epochs=1), SpikeDataset({k: data[k] for k in ("train", "valid")}, 0.01))
    arrays, _ = read_hdf5(tmp_path / "output.h5")
    assert set(arrays) == {"train_rates", "train_latents", "valid_rates", "valid_latents"}


# ---------------------------------------------------------------------------------------------------- backends

BACKENDS = ("eager", "torch", "cpu")
OF_BACKENDS = {
    "sae_gru": make_spec(max_epochs=3),
    "lfads": {
        **{"kind": "lfads", "ic_enc_dim": 6, "ic_dim": 4, "ci_enc_dim": 5, "con_dim": 5, "co_dim": 2, "gen_dim": 9},
        **{"fac_dim": 4, "n_samples": 2, "spike_jitter": 1, "kl_increase_epoch": 0, "l2_gen_scale": 0.1},
        "training": {"max_epochs": 3, "batch_size": 8, "learning_rate": 0.01},
    },
}


def on_backend(spec, backend):
    return spec | {"training": spec["training"] | {"backend": backend}}


def needs(backend):
    if backend == "cpu" and (why := cpu.why_not()):
        pytest.skip(f"the CPU kernels cannot be had here: {why}")


@pytest.fixture(scope="module")
def by_eager(tmp_path_factory):
    out = tmp_path_factory.mktemp("eager")
    for kind, spec in OF_BACKENDS.items():
        run_fit(out / kind, on_backend(spec, "eager"))
    return out


@pytest.mark.parametrize("kind", OF_BACKENDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_the_same_fit_to_rounding_and_twice_the_same_bytes(
    backend, kind, by_eager, tmp_path, capsys
):
    needs(backend)
    spec = on_backend(OF_BACKENDS[kind], backend)
    for name in ("a", "b"):
        run_fit(tmp_path / name, spec)
        line = f"recurrent loops run on backend {backend!r}: chosen in the settings\n"
        assert capsys.readouterr().out.count(line) == 1
    assert_same_fit(tmp_path / "a", tmp_path / "b")
    found, expected = (pd.read_csv(folder / "history.csv") for folder in (tmp_path / "a", by_eager / kind))
    assert list(found) == list(expected)
    assert len(found) == 3
    np.testing.assert_allclose(found["valid_loss"], expected["valid_loss"], rtol=1e-3)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-6)
    if backend != "eager":
        weights = [(folder / "weights.safetensors").read_bytes() for folder in (tmp_path / "a", by_eager / kind)]
        assert weights[0] != weights[1], "the backend that was asked for is not the one that ran"


def test_the_log_names_the_backend_that_was_chosen_and_why(tmp_path, capsys, monkeypatch):
    run_fit(tmp_path / "first", make_spec(max_epochs=1))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("recurrent loops"))
    if cpu.why_not():
        assert line.startswith("recurrent loops run on backend 'torch': the CPU kernels cannot be had: ")
    else:
        assert line.startswith("recurrent loops run on backend 'cpu': kernels compiled for this processor, ")
    monkeypatch.setattr(cpu, "_reason", "no C++ compiler found (c++)")
    run_fit(tmp_path / "second", make_spec(max_epochs=1))
    assert "backend 'torch': the CPU kernels cannot be had: no C++ compiler found (c++)" in capsys.readouterr().out


NO_COMPILER = """
import json, sys
from pathlib import Path

import torch

torch.set_num_threads(1)
from ctdb import datasets, errors, models, training

folder = Path(sys.argv[1])
data = datasets.read(folder / "data.h5")
for backend, spec in json.loads((folder / "specs.json").read_text()).items():
    try:
        training.fit(models.build(spec, data), data, spec, folder / backend)
    except errors.ConfigError as error:
        print("refused:", error)
"""


def test_without_a_compiler_the_cpu_backend_is_refused_and_torch_takes_its_place(by_eager, tmp_path):
    specs = {backend: on_backend(OF_BACKENDS["lfads"], backend) for backend in ("cpu", "auto")}
    (tmp_path / "specs.json").write_text(json.dumps(specs))
    (tmp_path / "fits.py").write_text(NO_COMPILER)
    datasets.write(tmp_path / "data.h5", make_data())
    environment = os.environ | {"CXX": "no-such-compiler", "CTDB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, tmp_path / "fits.py", tmp_path], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "refused: backend: 'cpu' cannot run here: no C++ compiler found (no-such-compiler); "
        "install a C++ compiler, or choose 'auto' or 'torch'"
    )
    assert not (tmp_path / "cpu" / "weights.safetensors").exists()
    assert (
        "recurrent loops run on backend 'torch': "
        "the CPU kernels cannot be had: no C++ compiler found (no-such-compiler)"
    ) in lines
    found, expected = (pd.read_csv(folder / "history.csv") for folder in (tmp_path / "auto", by_eager / "lfads"))
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-6)  # masks and noise are the same too
    np.testing.assert_allclose(found["valid_loss"], expected["valid_loss"], rtol=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_cuda_backend_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="backend: 'cuda' cannot run here: torch finds no GPU; choose 'auto'"):
        run_fit(tmp_path, make_spec(backend="cuda"))


def test_a_backend_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"backend\n.*'auto', 'eager', 'torch', 'cpu' or 'cuda'"):
        settings(backend="gpu")


# ------------------------------------------------------------------------------------------------------- kills

# One process imports the package once and forks a victim for each moment; a victim kills itself with SIGKILL at that
# very moment, except for the first, which is killed from outside while it runs.
VICTIMS = """
import json, os, shutil, signal, sys, time
from pathlib import Path

import torch

torch.set_num_threads(1)
from ctdb import datasets, models, training
from ctdb.training import fitting, loop

folder = Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def in_the_middle_of_an_epoch(model):
    loss, calls = model.loss, []
    def counted(batch, generator):
        calls.append(None)
        return loss(batch, generator) if len(calls) < 9 * 4 + 2 else die()  # 3 steps and a validation per epoch
    model.loss = counted


def after_the_checkpoint_of_the_last_epoch(model):
    loop.Keeper.on_train_end = die


def after_training_before_the_outputs(model):
    model.save = die


def after_the_weights_before_the_outputs(model):
    fitting.write_hdf5 = die


def while_a_checkpoint_is_copied(model):
    # Across file systems, shutil.move copies: a kill finds half of the bytes at the destination.
    moved = []
    def half(source, destination):
        moved.append(None)
        if len(moved) < 4:
            return move(source, destination)
        content = Path(source).read_bytes()
        Path(destination).write_bytes(content[: len(content) // 2])
        die()
    move, shutil.move = shutil.move, half


def at_any_time(model):
    loss = model.loss
    def slow(batch, generator):
        time.sleep(0.02)
        return loss(batch, generator)
    model.loss = slow


ends = {}
for name, (moment, kind, spec) in job.items():
    out, data = folder / name, datasets.read(folder / f"{kind}.h5")
    victim = os.fork()
    if victim == 0:
        model = models.build(spec, data)
        globals()[moment](model)
        training.fit(model, data, spec, out)
        os._exit(0)
    if moment == "at_any_time":
        checkpoint, seen, deadline = out / "checkpoint" / "last.ckpt", set(), time.monotonic() + 60
        while len(seen) < 3 and time.monotonic() < deadline:
            if checkpoint.exists():
                seen.add(checkpoint.stat().st_mtime_ns)
            time.sleep(0.001)
        os.kill(victim, signal.SIGKILL)
    _, status = os.waitpid(victim, 0)
    ends[name] = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
(folder / "ends.json").write_text(json.dumps(ends))
"""

MOMENTS = (
    "at_any_time",
    "in_the_middle_of_an_epoch",
    "after_the_checkpoint_of_the_last_epoch",
    "after_training_before_the_outputs",
    "after_the_weights_before_the_outputs",
    "while_a_checkpoint_is_copied",
)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    job = {f"{moment}-{kind}": (moment, kind, spec) for moment in MOMENTS for kind, (spec, _) in FITS.items()}
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "victims.py").write_text(VICTIMS)
    for kind, (_, data) in FITS.items():
        datasets.write(folder / f"{kind}.h5", data)
    subprocess.run([sys.executable, folder / "victims.py", folder], check=True, timeout=120)
    assert json.loads((folder / "ends.json").read_text()) == dict.fromkeys(job, 9)
    return folder


def test_the_restless_fit_lowers_its_rate_and_stops_early(undisturbed):
    history = pd.read_csv(undisturbed / "restless" / "history.csv")
    assert history["learning_rate"].nunique() > 1
    assert len(history) < 60
    # The victim of epoch 9 has by then waited for some epochs, which it must not forget.
    assert history["valid_loss"].idxmin() <= 7
    assert len(history) > 10


@pytest.mark.parametrize("kind", ["plain", "restless"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_fit_goes_on_to_the_bytes_of_an_undisturbed_one(moment, kind, killed, undisturbed, tmp_path, capsys):
    out = tmp_path / "fit"
    shutil.copytree(killed / f"{moment}-{kind}", out)
    assert (out / "checkpoint" / "last.ckpt").exists()
    assert not (out / "output.h5").exists()
    run_fit(out, *FITS[kind])
    assert "continuing from" in capsys.readouterr().out
    assert_same_fit(out, undisturbed / kind)


def test_a_finished_training_is_not_repeated(killed, tmp_path, monkeypatch, undisturbed):
    out = tmp_path / "fit"
    shutil.copytree(killed / "after_training_before_the_outputs-plain", out)
    spec, data = make_spec(), make_data()
    model = models.build(spec, data)
    monkeypatch.setattr(model, "loss", lambda *_: pytest.fail("trained again"))
    fit(model, data, spec, out)
    assert_same_fit(out, undisturbed / "plain")


OTHER_RUNS = {
    "learning rate": {"spec": make_spec(learning_rate=0.02)},
    "epochs": {"spec": make_spec(max_epochs=13)},
    "clipping": {"spec": make_spec(gradient_clip=0.1)},
    "dropout": {"spec": make_spec(dropout=0.4)},
    "seed": {"spec": make_spec(seed=1)},
    "backend": {"spec": make_spec(backend="eager")},
    "data": {"data": make_data(seed=1)},
}


@pytest.mark.parametrize("change", OTHER_RUNS.values(), ids=OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_not_continued(change, killed, tmp_path, capsys):
    leftover = tmp_path / "leftover"
    shutil.copytree(killed / "in_the_middle_of_an_epoch-plain", leftover)
    run_fit(leftover, **change)
    assert "starting afresh" in capsys.readouterr().out
    run_fit(tmp_path / "fresh", **change)
    assert_same_fit(leftover, tmp_path / "fresh")


def test_discarding_a_checkpoint_removes_it_and_nothing_else(killed, tmp_path):
    out = tmp_path / "fit"
    shutil.copytree(killed / "in_the_middle_of_an_epoch-plain", out)
    (out / "kept.txt").write_text("")
    discard_checkpoint(out)
    discard_checkpoint(out)
    assert not (out / "checkpoint").exists()
    assert (out / "kept.txt").exists()


def test_a_checkpoint_holds_no_code(killed):
    path = Path(killed / "at_any_time-plain" / "checkpoint" / "last.ckpt")
    assert torch.load(path, weights_only=True)["epoch"] >= 1
