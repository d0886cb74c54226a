"""The examples of docs/lfads_band.md and docs/recurrent_core.md work as they stand there."""

import re
from dataclasses import replace

import pytest
import torch
from scipy.stats import nbinom

from ctdb import models, training
from ctdb.models.observations import OBSERVATIONS
from project import REPOSITORY

pytestmark = pytest.mark.usefixtures("one_thread")


def blocks(page="lfads_band.md"):
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / page).read_text(), re.DOTALL)


def test_inference_and_fine_tuning(make_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = make_dataset()
    spec = {"kind": "lfads", "gen_dim": 8, "training": {"max_epochs": 1}}
    training.fit(models.build(spec, dataset), dataset, spec, "results/fits/mine/lfads/seed0")
    inference, tuning, _ = blocks()
    names = {"new_spikes": dataset["test"].encod_data, "dataset": dataset}
    exec(compile(inference, "lfads_band.md", "exec"), names)
    exec(compile(tuning, "lfads_band.md", "exec"), names)
    assert names["inferred"]["rates"].shape == dataset["test"].recon_data.shape
    assert not torch.equal(names["inferred"]["rates"], names["without"]["rates"])
    assert (tmp_path / "tuned/output.h5").exists()


def test_an_observation_model_of_one_s_own(make_dataset, monkeypatch):
    monkeypatch.setattr(OBSERVATIONS, "_defined", dict(OBSERVATIONS._defined))
    monkeypatch.setitem(OBSERVATIONS.modules, "negative_binomial", "math")
    *_, own = blocks()
    exec(compile(own, "lfads_band.md", "exec"), {"__name__": "own"})
    dataset = replace(make_dataset(), signal="spikes")
    model = models.build({"kind": "lfads", "observation": {"kind": "negative_binomial"}}, dataset)
    parameters = torch.randn(4, 2, 6, generator=torch.Generator().manual_seed(0))
    counts = torch.arange(24.0).reshape(4, 6)
    failures, mean = parameters[:, 1].exp().numpy(), parameters[:, 0].exp().numpy()
    expected = -nbinom.logpmf(counts.numpy(), failures, failures / (failures + mean))
    torch.testing.assert_close(model.observation[0].nll(parameters, counts), torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-4)  # fmt: skip
    assert model.loss(model.tensors(dataset["train"]), torch.Generator()).isfinite()


def test_the_recurrent_core(make_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    choice, own_loss, several, checkpoint = blocks("recurrent_core.md")
    exec(compile(choice, "recurrent_core.md", "exec"), {})
    assert "Choice(name=" in capsys.readouterr().out
    names = {}
    exec(compile(own_loss, "recurrent_core.md", "exec"), names)
    batch = {"weight": torch.ones(5, 20, 1), "trial_index": torch.arange(5)}
    first, again = (names["loss"](None, batch, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first == again != names["loss"](None, batch, torch.Generator().manual_seed(2))
    common = {"kind": "lfads", "gen_dim": 8, "training": {"max_epochs": 1}}
    names = {"common": common, "dataset": make_dataset()}
    exec(compile(several, "recurrent_core.md", "exec"), names)
    assert [result.best_epoch for result in names["results"]] == [0, 0, 0]
    assert len(list((tmp_path / "fits").glob("seed?/output.h5"))) == 3
    model = models.build({"kind": "lfads", "gen_dim": 8}, make_dataset())
    exec(compile(checkpoint, "recurrent_core.md", "exec"), {"model": model})
    assert (tmp_path / "theirs.pt").exists()
