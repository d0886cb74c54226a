"""The wheel: its filter against closed forms, means over bins against loops, and a real trace."""

import numpy as np
import pytest

from ctdb.datasets.ibl.wheel import bin_means, movement
from ctdb.errors import IblPrepareError


def gain(frequency, cutoff=20.0, order=8, fs=1000.0):
    """Of a digital Butterworth low pass of that order that runs forth and back."""
    ratio = np.tan(np.pi * frequency / fs) / np.tan(np.pi * cutoff / fs)
    return 1 / (1 + ratio ** (2 * order))


@pytest.mark.parametrize("frequency", [1.0, 10.0, 19.0, 20.0, 21.0, 40.0])
@pytest.mark.parametrize("start", [0.0, 4000.0])
def test_a_sine_passes_with_the_gain_of_the_filter_and_without_delay(frequency, start):
    times = start + np.arange(0, 10, 0.001)
    wheel = movement(times, np.sin(2 * np.pi * frequency * (times - start)))
    inner = slice(2000, 8000)
    phase = 2 * np.pi * frequency * (wheel.times[inner] - start)
    np.testing.assert_allclose(wheel.position[inner], gain(frequency) * np.sin(phase), atol=2e-6)
    middle = phase - 2 * np.pi * frequency * 0.0005  # a difference lies between two samples
    exact = gain(frequency) * 2000 * np.sin(np.pi * frequency / 1000) * np.cos(middle)
    np.testing.assert_allclose(wheel.velocity[inner], exact, atol=2e-4)


def test_irregular_samples_of_a_slow_movement_give_its_velocity():
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(3000, 3020, 4000))
    wheel = movement(times, 2 * np.sin(2 * np.pi * 0.5 * times))
    inner = slice(3000, -3000)
    exact = 2 * np.pi * np.cos(2 * np.pi * 0.5 * (wheel.times - 0.0005))
    np.testing.assert_allclose(wheel.velocity[inner], exact[inner], atol=0.15)
    assert wheel.times.dtype == np.float64
    np.testing.assert_allclose(np.diff(wheel.times), 0.001, atol=1e-9)
    assert wheel.times[0] == times[0]
    assert times[-1] - 0.001 < wheel.times[-1] <= times[-1]


def test_samples_at_the_same_time_and_long_rests_are_no_error():
    times = np.array([0.0, 1.0, 1.0, 30.0, 30.5, 31.0])
    wheel = movement(times, np.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.0]))
    assert np.abs(wheel.velocity[:29000]).max() < 1e-3
    assert wheel.velocity[30000:30500].max() > 1.5


@pytest.mark.parametrize(
    ("times", "position", "expected"),
    [
        (np.arange(5.0), np.arange(4.0), r"\(5,\) times but \(4,\) positions"),
        (np.array([0, 1, np.nan, 3]), np.arange(4.0), "not finite"),
        (np.arange(4.0), np.array([0, np.inf, 0, 0]), "not finite"),
        (np.array([0, 2.0, 1.0, 3]), np.arange(4.0), "backwards after sample 1"),
        (np.array([1.0, 1.05]), np.zeros(2), r"2 samples last less than 0\.1 s"),
        (np.empty(0), np.empty(0), "0 samples last less"),
    ],
)
def test_a_trace_that_cannot_be_used_is_named(times, position, expected):
    with pytest.raises(IblPrepareError, match=expected):
        movement(times, position, "somewhere")
    with pytest.raises(IblPrepareError, match=r"^somewhere"):
        movement(times, position, "somewhere")


@pytest.mark.parametrize("bin_s", [0.002, 0.02, 0.1])
def test_means_are_those_of_a_loop_over_bins(bin_s):
    rng = np.random.default_rng(1)
    times = 2.0 + np.arange(5000) / 1000
    values = 1e3 + rng.normal(size=5000)
    edges = rng.uniform(2.2, 5.5, 6)[:, None] + bin_s * np.arange(10)
    edges[0] += times[300] - edges[0, 0]  # edges on samples too
    means = bin_means(times, values, edges)
    for window, t in np.ndindex(means.shape):
        inside = (times >= edges[window, t]) & (times < edges[window, t + 1])
        np.testing.assert_allclose(means[window, t], values[inside].mean(), rtol=1e-11)


def test_a_bin_without_a_sample_is_named():
    with pytest.raises(IblPrepareError, match=r"from 0.0012 s to 0.0014 s holds no sample.*wider bins"):
        bin_means(np.arange(100) / 1000, np.zeros(100), np.array([[0.0005, 0.0012, 0.0014]]))


def test_a_real_wheel_turns_in_the_movements_that_were_detected_in_it(data_file):
    trace = np.load(data_file("ibl_wheel_180s.npz"))
    wheel = movement(trace["timestamps"], trace["position"])
    moving = np.zeros(len(wheel.times), bool)
    for begin, end in zip(trace["move_onsets"], trace["move_offsets"], strict=True):
        moving |= (wheel.times >= begin) & (wheel.times < end)
    speed = np.abs(wheel.velocity)
    assert speed[moving].mean() == pytest.approx(2.53, abs=0.02)  # shared/data/README.md
    assert speed[~moving].mean() == pytest.approx(0.066, abs=0.005)
    np.testing.assert_allclose(wheel.position[-1] - wheel.position[0], np.ptp(trace["position"][[0, -1]]), atol=0.01)
    biggest = np.abs(trace["move_amplitudes"]).argmax()
    low, high = np.searchsorted(wheel.times, (trace["move_onsets"][biggest], trace["move_offsets"][biggest]))
    assert wheel.velocity[low:high].mean() * trace["move_amplitudes"][biggest] > 0
    peak = wheel.times[low + speed[low:high].argmax()]
    assert np.abs(trace["peak_velocity_times"] - peak).min() < 0.02
