"""What a fit asks of a model and what it writes: once finished, from its best weights, for one session or several."""

import math
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from ctdb import models
from ctdb.datasets import MultiSession
from ctdb.errors import TrainingDivergedError
from ctdb.files import read_hdf5, read_yaml, write_yaml
from ctdb.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")
VALID = (5.0, 4.0, 3.0, 3.5, 6.0)  # the best epoch is the third


class Recorder(nn.Module):
    """A model of scripted valid losses that notes what it is asked; its weight counts the training steps.

    It infers the counts themselves as `rates`, `latents` that hold its weight and what `finish` left, and, without its
    inferred inputs, `ablated_rates`.
    """

    aliases = {"output_params": "rates", "gen_states": "latents"}

    def __init__(self, valid_losses=VALID):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("finished", torch.zeros(()))
        self.valid_losses, self.epoch, self.calls, self.seen = valid_losses, None, [], []

    def start_epoch(self, epoch):
        self.epoch = epoch

    def tensors(self, trials, session=None):
        counts = torch.from_numpy(trials.recon_data)
        return {"counts": counts, "weight": torch.ones(*counts.shape[:2], 1)}

    def loss(self, batch, generator):
        if not self.training:
            return torch.tensor(self.valid_losses[self.epoch])
        self.steps += 1
        self.seen.append({name: len(own["counts"]) for name, own in batch.items()} if "counts" not in batch else None)
        return 0 * self.weight + 1

    def finish(self, dataset):
        self.calls.append(("finish", int(self.steps), self.training, dataset))
        self.finished += 100

    def save(self, directory, **facts):
        self.calls.append(("save", int(self.finished)))
        write_yaml(directory / "spec.yaml", facts)

    def infer(self, trials, session=None):
        self.calls.append(("infer", session))
        rates = torch.from_numpy(trials.recon_data)
        return {"rates": rates, "latents": torch.full((len(rates), 2, 1), float(self.steps + self.finished))}

    def ablated(self, trials, session=None):
        return {"ablated_rates": 2 * torch.from_numpy(trials.recon_data)}


def run(model, dataset, out, **options):
    return fit(model, dataset, {"training": {"max_epochs": 5, "batch_size": 4} | options, "seed": 1}, out)


@pytest.fixture
def dataset(make_dataset):
    return make_dataset()  # 8 train trials: two steps an epoch


@pytest.fixture
def sessions(make_dataset):
    """Two sessions of other neurons, trials and bins, the second without test trials."""
    return MultiSession(
        {
            "monday": make_dataset(n_trials=9, n_heldin=3, seed=1),
            "friday_2": make_dataset(n_trials=5, n_bins=4, n_heldin=2, seed=2, splits=("train", "valid")),
        }
    )


def test_finish_is_called_once_with_the_best_weights_before_anything_is_written(dataset, tmp_path):
    model = Recorder()
    result = run(model, dataset, tmp_path)
    assert result.best_epoch == 2
    assert model.calls[0] == ("finish", 6, False, dataset)
    assert model.calls[1] == ("save", 100)
    assert [call[0] for call in model.calls] == ["finish", "save", "infer", "infer", "infer"]
    found, _ = read_hdf5(tmp_path / "output.h5")
    assert (found["test_latents"] == 106).all()


def test_a_diverged_fit_is_finished_from_its_last_good_weights(dataset, tmp_path):
    model = Recorder((5.0, 4.0, 3.0, math.nan, 6.0))
    with pytest.raises(TrainingDivergedError):
        run(model, dataset, tmp_path)
    assert [call[:2] for call in model.calls[:2]] == [("finish", 6), ("save", 100)]
    assert (read_hdf5(tmp_path / "output.h5")[0]["train_latents"] == 106).all()


def test_a_model_without_extras_is_fitted_all_the_same(dataset, tmp_path):
    class Plain(Recorder):
        finish = ablated = start_epoch = aliases = property()  # hasattr says no

        def loss(self, batch, generator):
            return (self.weight - batch["counts"].mean()) ** 2

    run(Plain(), dataset, tmp_path)
    assert set(read_hdf5(tmp_path / "output.h5")[0]) == {
        f"{split}_{name}" for split in ("train", "valid", "test") for name in ("rates", "latents")
    }


def test_warnings_of_the_training_reach_the_spec(dataset, tmp_path):
    class Worried(Recorder):
        def warnings(self, terms):
            return [f"the best valid loss was {terms['valid_loss']:.0f}"]

    run(Worried(), dataset, tmp_path)
    assert read_yaml(tmp_path / "spec.yaml")["warnings"] == ["the best valid loss was 3"]


def test_what_is_inferred_of_a_split_is_written_under_its_name(dataset, tmp_path):
    run(Recorder(), dataset, tmp_path)
    found, attributes = read_hdf5(tmp_path / "output.h5")
    assert attributes == {"format": "ctdb-output-1", "status": "ok"}
    assert set(found) == {
        f"{split}_{name}" for split in ("train", "valid", "test") for name in ("rates", "latents", "ablated_rates")
    }
    for name, split in dataset.splits.items():
        np.testing.assert_array_equal(found[f"{name}_rates"], split.recon_data)
        np.testing.assert_array_equal(found[f"{name}_ablated_rates"], 2 * split.recon_data)


def links(path):
    """Soft links of a file with where they lead, and its arrays, as h5py reads them."""
    linked, arrays = {}, {}

    def walk(group, prefix):
        for key in group:
            link = group.get(key, getlink=True)
            if isinstance(link, h5py.SoftLink):
                linked[prefix + key] = link.path
                np.testing.assert_array_equal(group[key][()], group.file[link.path][()])
            elif isinstance(group[key], h5py.Group):
                walk(group[key], f"{prefix}{key}/")
            else:
                arrays[prefix + key] = group[key][()]

    with h5py.File(path) as file:
        walk(file, "")
    return linked, arrays


def test_second_names_are_soft_links_that_other_programs_read_and_we_do_not_list(dataset, tmp_path):
    run(Recorder(), dataset, tmp_path)
    linked, arrays = links(tmp_path / "output.h5")
    assert linked == {
        f"{split}_{alias}": f"/{split}_{name}"
        for split in ("train", "valid", "test")
        for alias, name in Recorder.aliases.items()
    }
    assert arrays.keys() == read_hdf5(tmp_path / "output.h5")[0].keys()


def test_a_second_name_of_what_is_not_inferred_is_not_written(dataset, tmp_path):
    class Other(Recorder):
        aliases = {"output_behavior_params": "behavior", "output": "ablated_rates"}

    run(Other(), dataset, tmp_path)
    linked, _ = links(tmp_path / "output.h5")
    assert linked == {f"{split}_output": f"/{split}_ablated_rates" for split in ("train", "valid", "test")}


def test_a_fit_of_several_sessions_is_written_in_a_group_per_session(sessions, tmp_path):
    model = Recorder()
    run(model, sessions, tmp_path)
    found, _ = read_hdf5(tmp_path / "output.h5")
    expected = {
        f"{name}/{split}": trials for name, one in sessions.sessions.items() for split, trials in one.splits.items()
    }
    assert set(found) == {f"{prefix}_{key}" for prefix in expected for key in ("rates", "latents", "ablated_rates")}
    assert "friday_2/test_rates" not in found
    for prefix, trials in expected.items():
        np.testing.assert_array_equal(found[f"{prefix}_rates"], trials.recon_data)
        np.testing.assert_array_equal(found[f"{prefix}_ablated_rates"], 2 * trials.recon_data)
    linked, arrays = links(tmp_path / "output.h5")
    assert linked == {
        f"{prefix}_{alias}": f"/{prefix}_{name}" for prefix in expected for alias, name in Recorder.aliases.items()
    }
    assert arrays.keys() == found.keys()


def test_a_model_of_several_sessions_is_told_which_one_it_is_given(sessions, tmp_path):
    model = Recorder()
    run(model, sessions, tmp_path)
    assert model.calls[0] == ("finish", 12, False, sessions)  # 14 train trials: four steps an epoch
    assert [call[1] for call in model.calls if call[0] == "infer"] == ["monday"] * 3 + ["friday_2"] * 2
    for epoch in range(5):
        steps = model.seen[4 * epoch : 4 * epoch + 4]
        assert sum(step.get("monday", 0) for step in steps) == 9
        assert sum(step.get("friday_2", 0) for step in steps) == 5


def test_a_model_of_one_session_is_told_of_none(dataset, tmp_path):
    class Single(Recorder):
        def tensors(self, trials):
            return super().tensors(trials)

        def infer(self, trials):
            return super().infer(trials)

        def ablated(self, trials):
            return super().ablated(trials)

    run(Single(), dataset, tmp_path)


def test_a_model_may_fit_other_tensors_than_it_infers_from(sessions, tmp_path):
    class Marked(Recorder):
        def fit_tensors(self, trials, session=None):
            return {**self.tensors(trials, session), "mark": torch.full((trials.n_trials,), len(session))}

        def loss(self, batch, generator):
            assert all((own["mark"] == len(name)).all() for name, own in batch.items())
            return super().loss(batch, generator)

    run(Marked(), sessions, tmp_path)


def test_equal_fits_of_several_sessions_have_the_same_bytes(sessions, tmp_path):
    for name in ("one", "two"):
        run(Recorder(), sessions, tmp_path / name)
    for name in ("output.h5", "history.csv", "spec.yaml"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "sae_gru", "latent_size": 2, "encoder_size": 2},
        {
            "kind": "lfads",
            "ic_enc_dim": 2,
            "ic_dim": 2,
            "ci_enc_dim": 0,
            "con_dim": 0,
            "co_dim": 0,
            "gen_dim": 3,
            "fac_dim": 2,
        },
    ],
    ids=lambda options: options["kind"],
)
def test_a_batch_without_any_recorded_value_does_not_spoil_a_fit(options, make_dataset, tmp_path):
    dataset = replace(make_dataset(n_trials=4), missing_spikes=True)
    dataset["train"].recon_data[0] = dataset["train"].encod_data[0] = np.nan
    spec = {**options, "training": {"max_epochs": 1, "batch_size": 1}}
    result = fit(models.build(spec, dataset), dataset, spec, tmp_path)
    assert np.isfinite(result.history["train_loss"]).all()
