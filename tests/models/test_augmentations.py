"""What training does to the data, against loops in numpy and the distributions it promises."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, norm

from ctdb.models.augmentations import dropout, hide_samples, spike_jitter, temporal_shift
from ctdb.recurrent import Noise

pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(n_trials, seed=0):
    return Noise(generator(seed), torch.arange(n_trials))


def draw_counts(trials=6, bins=12, neurons=5, rate=1.5, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).poisson(rate, (trials, bins, neurons)).astype(np.float32))


def moved_from(start, width, n_bins=None, bins=9, n_spikes=20_000, seed=1):
    """Where `n_spikes` spikes that were in one bin of their trial end up, as counts of the bins."""
    counts = torch.zeros(n_spikes // 20, bins, 5)
    counts[:, start] = 4
    lengths = None if n_bins is None else torch.full((len(counts),), n_bins)
    return spike_jitter(counts, width, lengths, noise(len(counts), seed), "seen").sum((0, 2)).numpy()


AUGMENTATIONS = {
    "dropout": lambda data, *source: dropout(data, 0.4, *source),
    "dropout of one value per channel": lambda data, *source: dropout(data[:, 0], 0.4, *source),
    "spike_jitter": lambda data, *source: spike_jitter(data, 2, None, *source),
    "temporal_shift": lambda data, *source: temporal_shift(data, 2.0, 4, None, *source),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_draws_come_from_the_noise_and_the_stream_alone(name):
    data, change = draw_counts() + 1, AUGMENTATIONS[name]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = change(data, noise(6, 5), "one")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = noise(6, 5)
    assert torch.equal(change(data, again, "one"), first)
    assert torch.equal(change(data, again, "one"), first)  # whatever was drawn before
    assert not torch.equal(change(data, noise(6, 6), "one"), first)
    assert not torch.equal(change(data, noise(6, 5), "two"), first)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_what_happens_to_a_trial_does_not_depend_on_the_others(name):
    data, change = draw_counts() + 1, AUGMENTATIONS[name]
    whole, part = change(data, noise(6), "one"), torch.tensor([4, 1, 5])
    assert torch.equal(change(data[part], Noise(generator(), part), "one"), whole[part])
    same = data[:1].expand(6, -1, -1)
    changed = change(same, noise(6), "one")
    assert len({tuple(trial.flatten().tolist()) for trial in changed}) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rate", [0.1, 0.7])
@pytest.mark.parametrize("shape", [(200, 500), (200, 20, 25)])
def test_dropout_keeps_the_mean(shape, rate, dtype):
    data = torch.full(shape, 3.0, dtype=dtype)
    dropped = dropout(data, rate, noise(200), "one")
    assert dropped.dtype == dtype
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], data[kept] / (1 - rate))
    error = (rate * (1 - rate) / data.numel()) ** 0.5
    assert kept.double().mean().item() == pytest.approx(1 - rate, abs=4 * error)
    assert dropped.double().mean().item() == pytest.approx(3, abs=4 * 3 * error / (1 - rate))


def test_without_noise_or_rate_nothing_is_dropped():
    data = draw_counts()
    assert torch.equal(dropout(data, 0.9, None, "one"), data)
    assert torch.equal(dropout(data, 0.0, noise(6), "one"), data)


def test_a_mask_drops_its_rate_independently():
    mask = noise(100).keep("one", 30, 40, 0.3)
    assert mask.dtype == torch.uint8
    assert mask.shape == (100, 30, 40)
    assert set(mask.unique().tolist()) == {0, 1}
    mask = mask.double()
    assert mask.mean().item() == pytest.approx(0.7, abs=4 * (0.21 / mask.numel()) ** 0.5)
    for axis in range(3):
        ours, neighbour = mask.narrow(axis, 1, mask.shape[axis] - 1), mask.narrow(axis, 0, mask.shape[axis] - 1)
        assert (ours * neighbour).mean().item() == pytest.approx(0.49, abs=0.01)


@pytest.mark.parametrize("width", [1, 2, 5, 30])
@pytest.mark.parametrize("lengths", [False, True])
def test_jitter_keeps_the_spikes_of_each_trial_and_neuron_within_the_trial(width, lengths):
    counts = draw_counts()
    n_bins = torch.tensor([1, 3, 12, 7, 5, 11]) if lengths else None
    if lengths:
        counts[torch.arange(12) >= n_bins[:, None]] = 0
    moved = spike_jitter(counts, width, n_bins, noise(6), "seen")
    assert torch.equal(moved.sum(1), counts.sum(1))
    assert not torch.equal(moved, counts)
    assert (moved == moved.round()).all()
    assert (moved >= 0).all()
    if lengths:
        assert (moved[torch.arange(12) >= n_bins[:, None]] == 0).all()


@pytest.mark.parametrize("width", [1, 3])
def test_jitter_moves_within_its_width_uniformly(width):
    found = moved_from(4, width)
    inside = np.abs(np.arange(9) - 4) <= width
    assert found[~inside].sum() == 0
    assert chisquare(found[inside]).pvalue > 1e-3


@pytest.mark.parametrize("n_bins", [None, 6])
@pytest.mark.parametrize("at_end", [False, True])
def test_jitter_is_reflected_at_both_ends_of_a_trial(at_end, n_bins):
    last = (n_bins or 9) - 1
    # From the bin next to the edge, moves of -2 to 2 lead to -1 0 1 2 3, and -1 is reflected to 1.
    expected = np.array([1, 2, 1, 1]) / 5
    found = moved_from(last - 1 if at_end else 1, 2, n_bins)
    assert found[last + 1 :].sum() == 0
    if at_end:
        found = found[: last + 1][::-1]
    assert found[4:].sum() == 0
    assert chisquare(found[:4], 20_000 * expected).pvalue > 1e-3


def test_jitter_leaves_missing_counts_where_they_are():
    counts = draw_counts(rate=3.0)
    missing = torch.rand(counts.shape, generator=generator(1)) < 0.3
    counts[missing] = torch.nan
    moved = spike_jitter(counts, 3, None, noise(6), "seen")
    assert torch.equal(moved.isnan(), missing)
    assert torch.equal(moved.nan_to_num().sum(1), counts.nan_to_num().sum(1))
    assert not torch.equal(moved.nan_to_num(), counts.nan_to_num())


def shifts_of(data, shifted, n_bins, largest):
    """The shift of each trial and channel that explains the result with repeated edges; None where none does."""
    found = np.full((len(data), data.shape[2]), None, dtype=object)
    for trial, channel in np.ndindex(found.shape):
        length = n_bins[trial]
        for shift in range(-largest, largest + 1):
            source = [min(max(t - shift, 0), length - 1) for t in range(length)]
            same = np.array_equal(data[trial, source, channel], shifted[trial, :length, channel])
            beyond = np.array_equal(data[trial, length:, channel], shifted[trial, length:, channel])
            if same and beyond:
                found[trial, channel] = shift
                break
    return found


@pytest.mark.parametrize("lengths", [False, True])
def test_each_channel_of_each_trial_is_shifted_as_a_whole_with_its_edges_repeated(lengths):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(30, 20, 4)).astype(np.float32)
    n_bins = rng.integers(12, 21, 30) if lengths else np.full(30, 20)
    given = torch.from_numpy(n_bins) if lengths else None
    shifted = temporal_shift(torch.from_numpy(data), 3.0, 6, given, noise(30), "seen")
    found = shifts_of(data, shifted.numpy(), n_bins, 6)
    assert (found != None).all()  # noqa: E711
    found = found.astype(int)
    assert found.min() < -2
    assert found.max() > 2
    assert len(np.unique(found[0])) > 1
    assert len(np.unique(found[:, 0])) > 1


def test_shifts_are_rounded_normal_numbers_up_to_the_largest():
    data = torch.arange(100.0).expand(3000, 100)[..., None].repeat(1, 1, 2)
    shifted = temporal_shift(data, 3.0, 5, None, noise(3000), "seen")
    shift = (50 - shifted[:, 50]).flatten().numpy()
    inner = np.arange(-4, 5)
    share = norm.cdf((inner + 0.5) / 3) - norm.cdf((inner - 0.5) / 3)
    share = np.array([norm.cdf(-4.5 / 3), *share, norm.cdf(-4.5 / 3)])
    found = np.array([(shift == value).sum() for value in range(-5, 6)])
    assert found.sum() == shift.size
    assert chisquare(found, share * shift.size).pvalue > 1e-3


def test_a_trial_of_one_bin_cannot_move():
    data = draw_counts(rate=4.0)
    one = torch.ones(6, dtype=torch.long)
    assert torch.equal(temporal_shift(data, 3.0, 6, one, noise(6), "seen"), data)
    data[:, 1:] = 0
    assert torch.equal(spike_jitter(data, 3, one, noise(6), "seen"), data)


def test_hidden_samples_are_fixed_by_the_seed_and_have_their_rate():
    like, shape = torch.zeros(1), (100, 50, 20)
    hidden = hide_samples(shape, 0.2, 7, like)
    assert hidden.shape == shape
    assert hidden.dtype == torch.bool
    assert torch.equal(hide_samples(shape, 0.2, 7, like), hidden)
    assert not torch.equal(hide_samples(shape, 0.2, 8, like), hidden)
    assert hidden.double().mean().item() == pytest.approx(0.2, abs=4 * (0.16 / hidden.numel()) ** 0.5)
