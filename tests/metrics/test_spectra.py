"""Power spectra: where the power is, and the Hellinger distance between two."""

import numpy as np
import pytest

from ctdb.errors import MetricError
from ctdb.metrics.spectra import power_spectrum, power_spectrum_distance


def wave(cycles, n_trials=6, n_bins=64, seed=0, noise=0.0):
    r = np.random.default_rng(seed)
    phase = r.uniform(0, 2 * np.pi, (n_trials, 1))
    x = np.sin(2 * np.pi * cycles * np.arange(n_bins) / 64 + phase)
    return x[..., None] + noise * r.normal(size=(n_trials, n_bins, 1))


def test_the_power_is_at_the_frequency():
    p = power_spectrum(wave(5), smoothing=0.0)
    assert p.shape == (32, 1)
    assert p[4, 0] == pytest.approx(1)
    assert power_spectrum(wave(5), smoothing=2.0).sum() == pytest.approx(1)
    assert power_spectrum(wave(5), smoothing=2.0)[4] < 0.5


def test_hellinger_distance_by_hand():
    x, y = np.concatenate([wave(5), wave(9)]), wave(5)
    assert power_spectrum_distance(x, y, smoothing=0.0) == pytest.approx(np.sqrt(1 - np.sqrt(0.5)))
    assert power_spectrum_distance(y, wave(9), smoothing=0.0) == pytest.approx(1)
    assert power_spectrum_distance(y, wave(6)) < power_spectrum_distance(y, wave(9))


def test_shift_scale_phase_and_order_do_not_matter():
    x = wave(5, noise=0.3)
    assert power_spectrum_distance(x, 7 * x[::-1] + 3) == pytest.approx(0, abs=1e-6)
    assert power_spectrum_distance(x, wave(5, n_trials=9, seed=4)) == power_spectrum_distance(
        x, wave(5, n_trials=9, seed=4)[::-1]
    )
    assert power_spectrum_distance(wave(5), wave(5, seed=3)) == pytest.approx(0, abs=1e-6)


def test_channels_are_averaged_and_a_still_one_is_furthest():
    x = wave(5)
    pair = np.concatenate([x, np.ones_like(x)], 2)
    assert power_spectrum_distance(pair, pair) == pytest.approx(0, abs=1e-6)
    assert power_spectrum_distance(pair, np.concatenate([x, x], 2)) == pytest.approx(0.5, abs=1e-6)


def test_padding_does_not_enter():
    n_bins = np.array([64, 40, 33, 64, 50, 64])
    x, y = wave(5, noise=0.2), wave(5, seed=1, noise=0.2)
    cut = x[:, :33], y[:, :33]
    clean = power_spectrum_distance(x, y, n_bins)
    windowed = power_spectrum_distance(x, y, n_bins, window=10)
    for a in (x, y):
        a[np.arange(64) >= n_bins[:, None]] = np.nan
    assert power_spectrum_distance(x, y, n_bins) == clean
    assert power_spectrum_distance(x, y, n_bins, window=10) == windowed
    assert clean == pytest.approx(power_spectrum_distance(*cut), abs=1e-12)


def test_windows_use_long_trials_in_parts():
    x = wave(5, n_bins=130)
    np.testing.assert_allclose(
        power_spectrum(x, window=64), power_spectrum(np.concatenate([x[:, :64], x[:, 64:128]])), atol=1e-12
    )


def test_errors():
    with pytest.raises(MetricError, match="4 bins"):
        power_spectrum(wave(1, n_bins=3))
    with pytest.raises(MetricError, match="equal channels"):
        power_spectrum_distance(wave(1), np.concatenate([wave(1), wave(1)], 2))
    with pytest.raises(MetricError, match="NaN"):
        power_spectrum(wave(1) * np.nan)
