"""Counter-based numbers: the published vectors, both implementations, independence of the batch, distributions."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from ctdb.recurrent import Noise, StateNoise, cpu
from ctdb.recurrent.noise import philox

pytestmark = pytest.mark.usefixtures("one_thread")

LIKE = {kind: torch.zeros((), dtype=kind) for kind in (torch.float32, torch.float64)}
SHAPES = [(1, 1), (1, 3), (2, 4), (3, 5), (4, 16), (2, 31), (2, 33), (3, 64), (2, 65), (1, 137), (2, 300)]
TRIALS = [5, 0, 77777, 2**31 - 1, 2**31, 2**31 + 5, 2**32 - 1, 5]


def noise(seed=3, trials=(0, 1, 2), scope=""):
    return Noise(torch.Generator().manual_seed(seed), torch.as_tensor(trials), scope)


def drawn(source, n_bins=5, n_channels=21, stream="x"):
    """Everything that there is to draw."""
    return {
        "keep": source.keep(stream, n_bins, n_channels, 0.3),
        "single": source.normal(stream, n_bins, n_channels, LIKE[torch.float32]),
        "double": source.normal(stream, n_bins, n_channels, LIKE[torch.float64]),
        "whole": source.whole(stream, n_bins, n_channels, 1000),
    }


def equal(found, expected):
    return all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.fixture
def in_torch(monkeypatch):
    """The numbers as torch draws them, where nothing is compiled."""
    monkeypatch.setattr(cpu, "_reason", "switched off in this test")


@pytest.fixture(params=["compiled", "torch"])
def either(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(cpu, "_reason", "switched off in this test")
    elif why := cpu.why_not():
        pytest.skip(why)


@pytest.fixture
def compiled():
    if why := cpu.why_not():
        pytest.skip(why)


def switched_off(draw):
    """What `draw` gives without the compiled kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_reason", "switched off in this test")
        return draw()


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0_A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers_of_random123(counter, key, expected):
    words = philox([torch.tensor([word, 7]) for word in counter], key)
    assert [int(word[0]) for word in words] == expected
    assert all(0 <= int(word[1]) < 2**32 for word in words)


def test_masks_are_the_16_bit_halves_of_the_known_words(either, monkeypatch):
    """Block 0 of bin 0 of trial 0, under stream 0 and key 0, is the first vector; low halves come first."""
    monkeypatch.setattr(Noise, "stream", lambda self, name: 0)
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    halves = np.array([half for word in words for half in (word & 0xFFFF, word >> 16)])
    source = noise(0, [0])
    for rate in (0.0, 0.1, 0.4, 0.6, 0.88, 0.9, 1.0):
        keep = source.keep("any", 1, 8, rate)[0, 0].numpy()
        np.testing.assert_array_equal(keep, halves >= round(rate * 65536))


def test_normals_are_box_mullers_of_the_known_words(either, monkeypatch):
    monkeypatch.setattr(Noise, "stream", lambda self, name: 0)
    words = np.array([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]) >> 8
    radius = np.sqrt(-2 * np.log((words[::2] + 0.5) / 2**24))
    angle = 2 * np.pi * words[1::2] / 2**24
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()
    found = noise(0, [0]).normal("any", 1, 4, LIKE[torch.float64])[0, 0]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_whole_numbers_are_the_high_part_of_a_product(monkeypatch):
    monkeypatch.setattr(Noise, "stream", lambda self, name: 0)
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    for n in (1, 2, 7, 1000, 2**20):
        assert noise(0, [0]).whole("any", 1, 4, n)[0, 0].tolist() == [word * n >> 32 for word in words]


@pytest.mark.parametrize("seed", [0, 3, 2**32 + 1, 2**63 - 1, 2**63, 2**63 + 12345, 2**64 - 1])
@pytest.mark.parametrize("scope", ["", "session é"])
def test_both_implementations_give_the_same_numbers(compiled, seed, scope):
    source = noise(seed, TRIALS, scope)
    assert source.key == seed
    for n_bins, n_channels in SHAPES:
        found = drawn(source, n_bins, n_channels)
        expected = switched_off(lambda shape=(n_bins, n_channels): drawn(source, *shape))
        assert torch.equal(found["keep"], expected["keep"])
        assert found["keep"].dtype == expected["keep"].dtype == torch.uint8
        for name, kind in (("single", torch.float32), ("double", torch.float64)):
            assert found[name].dtype == expected[name].dtype == kind
            assert found[name].shape == expected[name].shape == (len(TRIALS), n_bins, n_channels)
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize("rate", [0.0, 1e-6, 1 / 65536, 0.05, 0.5, 0.95, 1 - 1 / 65536, 1.0])
def test_masks_of_any_rate_are_the_same(compiled, rate):
    source = noise(7, range(40))
    found = source.keep("x", 6, 70, rate)
    assert torch.equal(found, switched_off(lambda: source.keep("x", 6, 70, rate)))
    if round(rate * 65536) in (0, 65536):
        assert (found == (rate < 0.5)).all()


def test_the_tails_are_finite_and_the_same(compiled):
    """A million numbers meet radii of some five deviations."""
    source = noise(1, range(1000))
    found = source.normal("tail", 10, 100, LIKE[torch.float32])
    torch.testing.assert_close(
        found, switched_off(lambda: source.normal("tail", 10, 100, LIKE[torch.float32])), rtol=0, atol=2e-6
    )
    assert 4.5 < found.abs().max() < 5.9


def test_state_noise_is_scaled(either):
    source = noise()
    made = StateNoise(source, "kick", 0.25).tensor(4, 7, LIKE[torch.float64])
    assert torch.equal(made, 0.25 * source.normal("kick", 4, 7, LIKE[torch.float64]))


# ---------------------------------------------------------------------------------------------------------- independence


def test_numbers_belong_to_the_trial_whatever_the_batch(either):
    whole = drawn(noise(trials=range(50)))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for parts in ([50], [1, 49], [7, 31, 12], [1] * 50):
        pieces = [drawn(noise(trials=some)) for some in order.split(parts)]
        for name, value in whole.items():
            assert torch.equal(torch.cat([piece[name] for piece in pieces]), value[order])


def test_numbers_belong_to_the_bin_whatever_the_length(either):
    long = drawn(noise(), n_bins=40)
    assert equal({name: value[:, :7] for name, value in long.items()}, drawn(noise(), n_bins=7))


def test_what_was_drawn_before_does_not_matter(either):
    used = torch.Generator().manual_seed(3)
    torch.rand(100, generator=used)
    source = Noise(used, torch.arange(3))
    drawn(source, stream="something else")
    assert equal(drawn(source), drawn(noise()))


def test_threads_do_not_matter(compiled):
    before, made = torch.get_num_threads(), []
    source = noise(trials=range(300))
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            made.append(drawn(source, 20, 130))
    finally:
        torch.set_num_threads(before)
    assert equal(made[1], made[0])
    assert equal(made[2], made[0])


def test_trials_may_be_of_any_whole_type_and_lie_anyhow(either):
    expected = drawn(noise(trials=[4, 9, 2]))
    wide = torch.tensor([[4, 0], [9, 0], [2, 0]])
    for trials in (torch.tensor([4, 9, 2], dtype=torch.int32), torch.tensor([4, 9, 2], dtype=torch.int16), wide[:, 0]):
        assert equal(drawn(noise(trials=trials)), expected)


def test_everything_that_names_a_number_changes_it(either):
    """Seed (both halves), trial, scope and stream; bins and channels are compared below."""
    sources = [
        noise(3, [5]),
        noise(4, [5]),
        noise(3 + 2**32, [5]),
        noise(3 + 2**63, [5]),
        noise(3, [6]),
        noise(3, [5 + 2**31]),
        noise(3, [5], "session"),
    ]
    made = [drawn(source, 6, 40) for source in sources] + [drawn(sources[0], 6, 40, stream="y")]
    for one, other in itertools.combinations(made, 2):
        for name in ("single", "double", "whole"):
            assert (one[name] == other[name]).double().mean() < 0.02
        assert 0.45 < (one["keep"] == other["keep"]).double().mean() < 0.7  # 0.58 where independent
    numbers = made[0]["double"].flatten()
    assert len(numbers.unique()) > 0.99 * len(numbers)


def test_scope_and_stream_do_not_run_into_each_other():
    assert noise(scope="a").stream("b/c") != noise(scope="").stream("a/b/c")
    streams = [noise(scope=scope).stream(name) for scope in ("", "a", "b") for name in ("x", "y", "kick", "keep")]
    assert len(set(streams)) == len(streams)
    assert all(0 <= stream < 2**32 for stream in streams)


def test_a_batch_names_its_trials():
    generator = torch.Generator().manual_seed(3)
    named = Noise.of({"data": torch.zeros(3, 2), "trial_index": torch.tensor([7, 1, 4])}, generator, "s")
    assert named.trials.tolist() == [7, 1, 4]
    assert named.scope == "s"
    assert Noise.of({"data": torch.zeros(3, 2)}, generator).trials.tolist() == [0, 1, 2]


# --------------------------------------------------------------------------------------------------------- distributions


N_TRIALS, N_BINS, N_CHANNELS = 1000, 10, 101


def standard(value, mean=0.0, std=1.0):
    """Mean in standard errors."""
    return abs(float(value.mean()) - mean) / (std / value.numel() ** 0.5)


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 7])
def test_normals_are_normal(either, seed):
    z = noise(seed, range(N_TRIALS)).normal("q", N_BINS, N_CHANNELS, LIKE[torch.float64])
    assert standard(z) < 4
    assert standard(z**2, 1, 2**0.5) < 4
    assert standard(z**3, 0, 15**0.5) < 4
    assert standard(z**4, 3, 96**0.5) < 4
    assert scipy.stats.kstest(z.flatten()[:200_000].numpy(), "norm").pvalue > 1e-3
    for channel in range(0, N_CHANNELS, 20):  # each of the four numbers of a counter on its own
        assert scipy.stats.kstest(z[:, :, channel].flatten().numpy(), "norm").pvalue > 1e-4
    assert (z.abs() > 3).double().mean() == pytest.approx(0.0027, rel=0.1)


def test_neighbours_trials_bins_and_streams_are_independent(either):
    source = noise(11, range(N_TRIALS))
    z = source.normal("q", N_BINS, N_CHANNELS, LIKE[torch.float64])
    other = source.normal("r", N_BINS, N_CHANNELS, LIKE[torch.float64])
    scoped = noise(11, range(N_TRIALS), "s").normal("q", N_BINS, N_CHANNELS, LIKE[torch.float64])
    seeded = noise(12, range(N_TRIALS)).normal("q", N_BINS, N_CHANNELS, LIKE[torch.float64])
    n = -(-N_CHANNELS // 4)  # channels i, i + n, i + 2 n, i + 3 n come from one counter
    pairs = [(z[:, :, :-lag], z[:, :, lag:]) for lag in (1, 2, 3, 4, n, 2 * n, 3 * n)]
    pairs += [(z[:-1], z[1:]), (z[:, :-1], z[:, 1:]), (z, other), (z, scoped), (z, seeded), (other, seeded)]
    for first, second in pairs:
        assert standard(first * second) < 4
        assert standard((first**2 - 1) * (second**2 - 1), 0, 2) < 4.5


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.5, 0.95])
def test_masks_keep_their_share_independently(either, rate):
    source, kept = noise(5, range(N_TRIALS)), 1 - round(rate * 65536) / 65536
    mask = source.keep("m", N_BINS, N_CHANNELS, rate).double()
    spread = (kept * (1 - kept)) ** 0.5
    assert standard(mask, kept, spread) < 4
    assert (abs(mask.mean((0, 1)) - kept) < 5 * spread / (N_TRIALS * N_BINS) ** 0.5).all()  # each channel
    assert (abs(mask.mean((1, 2)) - kept) < 5 * spread / (N_BINS * N_CHANNELS) ** 0.5).all()  # each trial
    off = (mask - kept) / spread
    stream = (source.keep("n", N_BINS, N_CHANNELS, rate).double() - kept) / spread
    pairs = [(off[:, :, :-lag], off[:, :, lag:]) for lag in range(1, 9)]
    for first, second in [*pairs, (off[:-1], off[1:]), (off[:, :-1], off[:, 1:]), (off, stream)]:
        assert standard(first * second) < 4


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100, 2**16])
def test_whole_numbers_are_equally_likely(n):
    made = noise(9, range(N_TRIALS)).whole("w", N_BINS, N_CHANNELS, n)
    assert made.dtype == torch.int64
    assert made.shape == (N_TRIALS, N_BINS, N_CHANNELS)
    assert 0 <= made.min() <= made.max() < n
    if 1 < n <= 100:
        assert scipy.stats.chisquare(torch.bincount(made.flatten(), minlength=n).numpy()).pvalue > 1e-3
    if n > 100:
        assert standard(made.double(), (n - 1) / 2, n / 12**0.5) < 4
    if n > 1:
        off = (made.double() - (n - 1) / 2) / ((n * n - 1) / 12) ** 0.5
        for lag in (1, 2, 3):
            assert standard(off[:, :, :-lag] * off[:, :, lag:]) < 4


def test_a_key_that_is_a_tensor_gives_the_numbers_of_its_seed(compiled):
    for seed in (0, 3, 2**32 + 1, 2**63 - 1):
        found, expected = drawn(Noise(torch.tensor(seed), torch.tensor(TRIALS))), drawn(noise(seed, TRIALS))
        assert torch.equal(found["keep"], expected["keep"])
        assert torch.equal(found["whole"], expected["whole"])
        for name in ("single", "double"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=2e-6)


def test_under_vmap_each_model_has_its_own_key_trials_and_rate(compiled):
    seeds, rates = [3, 2**40 + 7, 3], [0.3, 0.0, 0.9]
    trials = torch.tensor([[5, 0, 7], [5, 0, 7], [1, 2, 2**31]])

    def draw(key, own, rate):
        source = Noise(key, own)
        return source.keep("x", 4, 13, rate), source.normal("x", 4, 13, LIKE[torch.float32])

    masks, normals = torch.vmap(draw)(torch.tensor(seeds), trials, torch.tensor(rates, dtype=torch.float64))
    for seed, own, rate, mask, normal in zip(seeds, trials, rates, masks, normals, strict=True):
        alone = noise(seed, own)
        assert torch.equal(mask, alone.keep("x", 4, 13, rate))
        torch.testing.assert_close(normal, alone.normal("x", 4, 13, normal), rtol=1e-5, atol=2e-6)
    assert masks[1].all()
