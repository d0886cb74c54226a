"""Weights under lfads-torch's names, and LFADS beside lfads-torch's algorithm on the same weights, masks and noise."""

import sys

import pytest
import torch

from ctdb.errors import ConfigError
from ctdb.models.base import Sizes
from ctdb.models.lfads import LFADS, LFADSSettings
from ctdb.models.lfads_torch import load_lfads_torch, to_lfads_torch
from ctdb.recurrent import initialise
from project import REPOSITORY

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {"ic_enc_dim": 7, "ic_dim": 3, "gen_dim": 9, "fac_dim": 4}
CONTROLLED = SIZES | {"ci_enc_dim": 5, "con_dim": 6, "co_dim": 2}
ALONE = SIZES | {"ci_enc_dim": 0, "con_dim": 0, "co_dim": 0}


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark's module, whose peer is lfads-torch's algorithm."""
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import recurrent_core

        yield recurrent_core
    finally:
        sys.path.remove(str(REPOSITORY / "benchmarks"))


def make(settings=CONTROLLED, seed=0, n_inputs=2, **more):
    model = LFADS(
        LFADSSettings(kind="lfads", **settings, **more),
        Sizes(n_heldin=6, n_neurons=8, n_bins=5, n_recon_bins=7, n_inputs=n_inputs),
    )
    initialise(model, torch.Generator().manual_seed(seed))
    return model


@pytest.mark.parametrize("n_trials", [1, 33])
@pytest.mark.parametrize(("sizes", "n_ext"), [(CONTROLLED, 0), (CONTROLLED, 3), (ALONE, 3)])
@pytest.mark.parametrize("bins", [(1, 1), (6, 9)])
def test_loss_and_gradients_equal_those_of_lfads_torch(benchmark, sizes, n_ext, n_trials, bins):
    if bins == (1, 1) and sizes is CONTROLLED:
        sizes = sizes | {"ci_lag": 1}
    shape = benchmark.Shape("", 6, 8, *bins, sizes | {"dropout_rate": 0.3, "cd_rate": 0.3}, n_ext)
    loss, gradient = benchmark.Pair(shape, n_trials).check_equal()
    assert loss < 1e-5
    assert gradient < 1e-5


@pytest.mark.parametrize("settings", [CONTROLLED, ALONE])
def test_weights_come_back_from_a_file(settings, tmp_path):
    source, target = make(settings, seed=1), make(settings, seed=2)
    torch.save(to_lfads_torch(source), tmp_path / "weights.pt")
    load_lfads_torch(target, tmp_path / "weights.pt")
    for (name, wanted), found in zip(source.named_parameters(), target.parameters(), strict=True):
        assert torch.equal(wanted, found), name


def test_a_lightning_checkpoint_s_state_dict_is_found(tmp_path):
    source, target = make(seed=1), make(seed=2)
    torch.save({"state_dict": to_lfads_torch(source), "epoch": 3}, tmp_path / "last.ckpt")
    load_lfads_torch(target, tmp_path / "last.ckpt")
    assert torch.equal(source.generator.weight_hh, target.generator.weight_hh)


def test_what_does_not_fit_is_refused_and_nothing_is_copied(tmp_path):
    weights, model = to_lfads_torch(make(seed=1)), make(seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bias = "decoder.rnn.cell.gen_cell.bias_hh"
    for changed, message in (
        ({key: value for key, value in weights.items() if "con_cell" not in key}, "missing.*con_cell"),
        (weights | {"decoder.extra": torch.zeros(2)}, "not known.*extra"),
        (weights | {"readout.0.weight": torch.zeros(8, 5)}, r"readout.0.weight has shape \(8, 5\), the model \(8, 4\)"),
        (weights | {bias: torch.ones_like(weights[bias])}, "bias_hh is not 0"),
        (weights | {"ic_prior.logvar": torch.zeros(3)}, "set ic_prior.variance to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_lfads_torch(model, changed)
    with pytest.raises(ConfigError, match="'clipped_gru' alone"):
        to_lfads_torch(make(cell="gru"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Pickled:
    """As lfads-torch's checkpoints hold them."""


def test_a_file_with_pickled_objects_is_not_loaded(tmp_path):
    torch.save({"state_dict": {}, "hparams": Pickled()}, tmp_path / "last.ckpt")
    with pytest.raises(ConfigError, match=r"cannot be loaded safely .*torch.save\(torch.load"):
        load_lfads_torch(make(), tmp_path / "last.ckpt")
