"""The switching linear system holds a memory that no linear one can."""

import numpy as np
import pytest

from ctdb import models, training
from ctdb.datasets import SpikeDataset, Split
from ctdb.metrics import rate_r2
from ctdb.models.base import load


def flip_flop(n_trials, seed, n_bins=20, n_neurons=8):
    """Spikes of one bit, which keeps the sign of the last pulse."""
    rng = np.random.default_rng(seed)
    pulses = rng.choice([-1.0, 0.0, 1.0], p=[0.2, 0.6, 0.2], size=(n_trials, n_bins)).astype(np.float32)
    memory, state = np.zeros_like(pulses), np.zeros(n_trials)
    for t in range(n_bins):
        state = np.where(pulses[:, t] != 0, pulses[:, t], state)
        memory[:, t] = state
    rates = np.exp(memory[:, :, None] * np.linspace(-1, 1, n_neurons)).astype(np.float32)
    spikes = rng.poisson(rates).astype(np.float32)
    return Split(encod_data=spikes, recon_data=spikes, ext_input=pulses[:, :, None], truth=rates)


@pytest.mark.usefixtures("one_thread")
def test_it_holds_a_bit_that_a_linear_system_loses(tmp_path):
    data = SpikeDataset(
        {name: flip_flop(n, n) for name, n in (("train", 240), ("valid", 60), ("test", 61))}, bin_s=0.01
    )
    found = {}
    for kind, own in (("lds", {}), ("slds", {"n_modes": 2})):
        fitting = {"max_epochs": 10, "batch_size": 10, "learning_rate": 3e-2, "gradient_clip": 1.0}
        shape = {"latent_size": 3, "encoder_size": 6, "dropout": 0.0, "initial_state_dropout": 0.0}
        spec = {"kind": kind, "seed": 0, "training": fitting} | shape | own
        training.fit(models.build(spec, data), data, spec, tmp_path / kind)
        rates = load(tmp_path / kind).infer(data["test"])["rates"].numpy()
        found[kind] = rate_r2(data["test"].truth, rates)
    assert found["slds"] > found["lds"] + 0.15
