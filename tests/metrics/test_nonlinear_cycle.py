"""Non-linear cycle consistency: curved readouts are forgiven, hidden dimensions are not."""

import numpy as np
import pytest
import torch

from ctdb.errors import MetricError
from ctdb.metrics import cycle_consistency, state_r2
from ctdb.metrics.nonlinear_cycle import nonlinear_cycle_consistency, nonlinear_cycle_sums

pytestmark = pytest.mark.usefixtures("one_thread")


def made(n_hidden=0, curved=False, seed=0, n_trials=24, n_bins=25):
    """Latents, the last `n_hidden` of which no rate shows, and rates."""
    r = np.random.default_rng(seed)
    z = r.normal(size=(n_trials, n_bins, 3 + n_hidden))
    shown = z[..., :3]
    weights = np.random.default_rng(99).normal(size=(3, 12)) * 0.4
    log_rates = shown @ weights
    if curved:
        bend = np.random.default_rng(98).normal(size=(3, 12))
        log_rates = np.sinh(shown) @ weights * 0.5 + 0.3 * np.tanh(2 * shown) @ bend
    return 5 * z + 2, np.exp(log_rates)


def arrays(**settings):
    return *made(**settings), *made(seed=1, **settings)


def test_latents_that_the_rates_show_come_back():
    found = nonlinear_cycle_consistency(*arrays())
    assert found.r2[0] > 0.95
    assert found.n_epochs > 20


def test_hidden_dimensions_lower_the_score_by_their_share():
    assert nonlinear_cycle_consistency(*arrays(n_hidden=3)).r2[0] == pytest.approx(0.5, abs=0.06)


def test_a_curved_readout_lowers_the_linear_score_alone():
    curved = arrays(curved=True)
    found = nonlinear_cycle_consistency(*curved).r2[0]
    z, rates, z_eval, rates_eval = curved
    linear = state_r2(np.log(rates), z, np.log(rates_eval), z_eval)
    assert found > linear + 0.02
    assert found > cycle_consistency(*curved, through="inferred") + 0.1


def test_noise_lowers_the_score():
    r2 = nonlinear_cycle_consistency(*arrays(), noise=(0.0, 0.1, 0.5)).r2
    assert r2[0] > r2[1] > r2[2]


def test_the_same_seed_gives_the_same_score_and_leaves_torch_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    a = nonlinear_cycle_consistency(*arrays(n_bins=10), noise=(0.0, 0.2))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    assert nonlinear_cycle_consistency(*arrays(n_bins=10), noise=(0.0, 0.2)) == a
    assert nonlinear_cycle_consistency(*arrays(n_bins=10), seed=1).r2 != a.r2[:1]


def test_padding_does_not_enter():
    clean = list(arrays(n_bins=12))
    lengths = [np.random.default_rng(i).integers(4, 13, 24) for i in range(2)]
    padded = [array.copy() for array in clean]
    for array, n_bins in zip(padded, np.repeat(lengths, 2, axis=0), strict=True):
        array[np.arange(12) >= n_bins[:, None]] = np.nan
    a, b = (
        nonlinear_cycle_consistency(*s, noise=(0.1,), n_bins_train=lengths[0], n_bins_eval=lengths[1])
        for s in (clean, padded)
    )
    assert a == b


def test_sums_over_trials_give_the_score():
    sums, n_epochs = nonlinear_cycle_sums(*arrays(n_bins=10), noise=(0.0, 0.3))
    found = nonlinear_cycle_consistency(*arrays(n_bins=10), noise=(0.0, 0.3))
    assert tuple(s.value for s in sums) == found.r2
    assert n_epochs == found.n_epochs
    low, high = sums[0].interval(np.random.default_rng(0))
    assert low < found.r2[0] < high


def test_the_decoder_is_the_one_that_read_the_stopping_trials_best(monkeypatch):
    """A run that ends with the best pass gives the same decoder as one that went on and took it back."""
    whole = nonlinear_cycle_consistency(*arrays(n_bins=6))
    monkeypatch.setattr("ctdb.metrics.nonlinear_cycle.MAX_EPOCHS", whole.n_epochs)
    assert nonlinear_cycle_consistency(*arrays(n_bins=6)) == whole


def test_errors():
    z, rates, z_eval, rates_eval = arrays(n_bins=6)
    with pytest.raises(MetricError, match="at least 0"):
        nonlinear_cycle_consistency(z, -rates, z_eval, rates_eval)
    with pytest.raises(MetricError, match="channels"):
        nonlinear_cycle_consistency(z, rates, z_eval[..., :2], rates_eval)
    with pytest.raises(MetricError, match="two train trials"):
        nonlinear_cycle_consistency(z[:1], rates[:1], z_eval, rates_eval)
