"""Recordings without trials: windows out and back, weights of what overlaps, and blocks that share no bin."""

import numpy as np
import pytest
from pydantic import ValidationError

from ctdb.datasets import SPLITS, read, write
from ctdb.datasets.continuous import Continuous, ContinuousSettings, chop, merge, merge_fit, window_starts
from ctdb.errors import DatasetError

SHAPES = [(n, w, o) for n in (7, 20, 53, 100) for w in (1, 4, 7, 20) for o in (0, 1, 2, 3, 5, 13, 19) if o < w <= n]


def settings(**options) -> ContinuousSettings:
    defaults = {"kind": "continuous", "path": "not used", "window_bins": 10, "block_bins": 30, "bin_s": 0.02}
    return ContinuousSettings(**(defaults | options))


def make_arrays(n_bins=400, seed=0):
    rng = np.random.default_rng(seed)
    spikes = rng.poisson(0.5, (n_bins, 6))
    spikes[:, 0] = np.arange(n_bins)  # each bin can be told from every other
    signals = {"input": 1, "hand": 2, "rate": 6, "state": 3, "pulse": 2}
    return {"spikes": spikes} | {name: rng.random((n_bins, n)).astype(np.float32) for name, n in signals.items()}


KEYS = {"ext_input": "input", "behavior": "hand", "truth": "rate", "latents": "state", "inputs_true": "pulse"}


def merged_by_hand(windows, starts, n_bins):
    """Bin by bin: half-sine weights of the windows that hold it."""
    length, found = windows.shape[1], np.full((n_bins, windows.shape[2]), np.nan)
    for t in range(n_bins):
        holding = [(window[t - start], np.sin(np.pi * (t - start + 0.5) / length)) for window, start in zip(windows, starts, strict=True) if start <= t < start + length]  # fmt: skip
        if holding:
            values, weights = (np.array(column) for column in zip(*holding, strict=True))
            found[t] = (weights[:, None] * values).sum(0) / weights.sum()
    return found


# ------------------------------------------------------------------------------------------------- windows and back


@pytest.mark.parametrize(("n_bins", "window", "overlap"), SHAPES)
def test_windows_cover_the_recording_and_merge_to_it_exactly(n_bins, window, overlap):
    recording = np.random.default_rng(n_bins).normal(size=(n_bins, 3)) * 1e3
    windows, starts = chop(recording, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == n_bins - window
    steps = np.diff(starts)
    assert (steps[:-1] == window - overlap).all()
    assert steps.size == 0 or 0 < steps[-1] <= window - overlap
    for values, start in zip(windows, starts, strict=True):
        np.testing.assert_array_equal(values, recording[start : start + window])
    np.testing.assert_array_equal(merge(windows, starts, n_bins), recording)  # to the last bit


@pytest.mark.parametrize(("n_bins", "window", "overlap"), [(53, 20, 5), (53, 20, 13), (53, 20, 19), (20, 7, 3)])
def test_windows_that_differ_are_weighted_as_half_sines(n_bins, window, overlap):
    rng = np.random.default_rng(1)
    _, starts = chop(np.zeros((n_bins, 2)), window, overlap)
    windows = rng.normal(size=(len(starts), window, 2))
    expected = merged_by_hand(windows, starts, n_bins)
    np.testing.assert_allclose(merge(windows, starts, n_bins), expected, rtol=1e-9, atol=1e-12)
    order = rng.permutation(len(starts))
    np.testing.assert_allclose(merge(windows[order], starts[order], n_bins), expected, rtol=1e-9, atol=1e-12)
    shifted = np.concatenate([windows + 5, windows - 5]), np.concatenate([starts, starts])  # several of one start
    np.testing.assert_allclose(merge(*shifted, n_bins), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("window", "overlap"), [(20, 4), (20, 10), (20, 15), (50, 49)])
def test_the_blend_lies_between_the_windows_and_moves_smoothly(window, overlap):
    n_bins = 6 * window
    _, starts = chop(np.zeros((n_bins, 1)), window, overlap)
    values = np.random.default_rng(2).permutation(len(starts)).astype(np.float64)
    found = merge(np.ones((len(starts), window, 1)) * values[:, None, None], starts, n_bins)[:, 0]
    held = [values[(starts <= t) & (t < starts + window)] for t in range(n_bins)]
    for t in range(n_bins):
        assert held[t].min() - 1e-12 <= found[t] <= held[t].max() + 1e-12
    for t in range(window, n_bins - window):  # at its steepest a half sine moves by pi / window, a line by 1 / overlap
        steepest = max(np.pi / window, 1.6 / overlap)
        assert abs(found[t] - found[t - 1]) <= steepest * np.ptp(np.concatenate([held[t - 1], held[t]])) + 1e-12


@pytest.mark.parametrize("overlap", [1, 2, 5, 10])
def test_one_window_gives_way_to_the_next_evenly(overlap):
    levels = np.array([0.0, 1.0])[:, None, None] * np.ones((2, 20, 1))
    found = merge(levels, np.array([0, 20 - overlap]), 40 - overlap)[:, 0]
    shared = found[20 - overlap : 20]
    assert (np.diff(found) >= 0).all()
    assert np.diff(found).max() <= 1.6 / (overlap + 0.1)
    np.testing.assert_allclose(shared + shared[::-1], 1, rtol=1e-12)


def test_bins_that_no_window_holds_are_not_known():
    windows = np.arange(12.0).reshape(2, 3, 2)
    found = merge(windows, np.array([1, 6]), 10)
    np.testing.assert_array_equal(found[1:4], windows[0])
    np.testing.assert_array_equal(found[6:9], windows[1])
    assert np.isnan(found[[0, 4, 5, 9]]).all()
    assert np.isnan(merge(windows[:0], np.array([], int), 4)).all()


def test_a_single_bin_in_float32_merges_without_rounding():
    recording = np.random.default_rng(3).normal(size=(40, 2)).astype(np.float32)
    windows, starts = chop(recording, 8, 5)
    np.testing.assert_array_equal(merge(windows, starts, 40).astype(np.float32), recording)


@pytest.mark.parametrize("starts", [[-1, 3], [0, 8]])
def test_windows_outside_the_recording_are_refused(starts):
    with pytest.raises(DatasetError, match="beyond the recording of 10 bins"):
        merge(np.zeros((2, 3, 1)), np.array(starts), 10)


def test_a_recording_shorter_than_a_window_is_refused():
    with pytest.raises(DatasetError, match="4 bins do not hold a window of 5; choose a shorter window"):
        chop(np.zeros((4, 1)), 5, 2)
    assert window_starts(5, 5, 2).tolist() == [0]


# --------------------------------------------------------------------------------------------------------- datasets


@pytest.fixture
def recording(write_raw):
    arrays = make_arrays()
    return write_raw(arrays), arrays


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"overlap_bins": 4},
        {"overlap_bins": 9, "block_bins": 10},
        {"block_bins": 37, "valid_fraction": 0.3, "test_fraction": 0.2},
        {"window_bins": 30, "overlap_bins": 7, "block_bins": 77},
        {"seed": 1},
    ],
)
def test_every_bin_is_in_one_split_and_windows_hold_its_values(recording, options):
    path, arrays = recording
    chosen = settings(keys=KEYS, **options)
    dataset = Continuous.prepare(chosen, [path])
    owner = np.full(400, -1)
    for index, name in enumerate(SPLITS):
        split = dataset[name]
        assert split.recon_data.shape[1] == chosen.window_bins
        for i, start in enumerate(split.start):
            bins = slice(start, start + chosen.window_bins)
            assert set(owner[bins]) <= {-1, index}
            owner[bins] = index
            np.testing.assert_array_equal(split.recon_data[i], arrays["spikes"][bins])
            np.testing.assert_array_equal(split.encod_data[i], split.recon_data[i])
            for ours, theirs in KEYS.items():
                np.testing.assert_array_equal(getattr(split, ours)[i], arrays[theirs][bins], err_msg=ours)
    assert (owner >= 0).all()
    block = chosen.block_bins
    n_blocks = 400 // block
    owners = [set(owner[i * block : (i + 1) * block if i < n_blocks - 1 else 400]) for i in range(n_blocks)]
    assert all(len(own) == 1 for own in owners)  # whole blocks; what is left over belongs to the last
    count = [sum(own == {index} for own in owners) for index in range(3)]
    expected = [max(1, round(share * n_blocks)) for share in (chosen.valid_fraction, chosen.test_fraction)]
    assert count[1:] == expected


def test_neighbouring_windows_of_a_block_share_the_overlap(recording):
    dataset = Continuous.prepare(settings(overlap_bins=4), [recording[0]])
    steps = np.diff(np.sort(np.concatenate([split.start for split in dataset.splits.values()])))
    assert set(steps.tolist()) <= {6, 2, 10, 8}  # within a block; its last window; from block to block; the last block
    assert (steps == 6).sum() > len(steps) / 2


def test_blocks_are_dealt_by_the_seed(recording):
    path, _ = recording
    tests = [tuple(Continuous.prepare(settings(seed=seed), [path])["test"].start.tolist()) for seed in (0, 0, 1, 2, 3)]
    assert tests[0] == tests[1]
    assert len(set(tests)) > 2


def test_held_out_neurons_are_behind_the_others_with_their_rates(recording):
    path, arrays = recording
    dataset = Continuous.prepare(settings(keys=KEYS, n_heldout=2, seed=3), [path])
    order = [int(name.removeprefix("neuron ")) for name in dataset.names["neurons"]]
    assert order != sorted(order) == list(range(6))
    assert (sorted(order[:4]), sorted(order[4:])) == (order[:4], order[4:])
    assert (dataset.n_heldin, dataset.n_neurons) == (4, 6)
    for split in dataset.splits.values():
        np.testing.assert_array_equal(split.encod_data, split.recon_data[:, :, :4])
        for i, start in enumerate(split.start):
            np.testing.assert_array_equal(split.recon_data[i], arrays["spikes"][start : start + 10][:, order])
            np.testing.assert_array_equal(split.truth[i], arrays["rate"][start : start + 10][:, order])


def test_missing_counts_are_kept_where_they_are_expected(write_raw):
    arrays = make_arrays()
    arrays["spikes"] = arrays["spikes"].astype(np.float64)
    arrays["spikes"][50:60, 2] = np.nan
    path = write_raw(arrays)
    with pytest.raises(DatasetError, match=r"holds nan.*set `missing_spikes`"):
        Continuous.prepare(settings(), [path])
    dataset = Continuous.prepare(settings(missing_spikes=True), [path])
    assert dataset.missing_spikes
    assert sum(int(np.isnan(split.recon_data).sum()) for split in dataset.splits.values()) == 10


# ------------------------------------------------------------------------------------------------------ merging a fit


@pytest.fixture
def dataset(recording, tmp_path):
    made = Continuous.prepare(settings(overlap_bins=6, keys=KEYS), [recording[0]])
    write(tmp_path / "windows.h5", made)
    return read(tmp_path / "windows.h5")  # starts and the length of the recording outlive the file


def test_what_is_inferred_of_the_windows_is_merged_over_the_recording(dataset, recording):
    _, arrays = recording
    inferred = {}
    for name, split in dataset.splits.items():
        inferred |= {
            f"{name}_rates": split.truth,
            f"{name}_latents": split.latents,
            f"{name}_ic_mean": split.truth[:, 0],
        }
    merged = merge_fit(dataset, inferred)
    assert set(merged) == {"rates", "latents", "split"}
    np.testing.assert_array_equal(merged["rates"], arrays["rate"])
    np.testing.assert_array_equal(merged["latents"], arrays["state"])
    assert merged["rates"].dtype == np.float32
    for index, name in enumerate(SPLITS):
        for start in dataset[name].start:
            assert (merged["split"][start : start + 10] == index).all()
    assert merged["split"].shape == (400,)


def test_windows_of_each_split_are_blended_at_their_own_place(dataset):
    rng = np.random.default_rng(5)
    inferred = {f"{name}_rates": rng.random((len(split.start), 10, 2)) for name, split in dataset.splits.items()}
    windows = np.concatenate([inferred[f"{name}_rates"] for name in SPLITS])
    starts = np.concatenate([dataset[name].start for name in SPLITS])
    np.testing.assert_allclose(merge_fit(dataset, inferred)["rates"], merged_by_hand(windows, starts, 400), rtol=1e-6)


def test_only_windows_that_know_their_start_are_merged(make_dataset):
    for dataset in (make_dataset(), make_dataset(provenance={"n_bins": 6})):
        with pytest.raises(DatasetError, match="only datasets of kind `continuous` are merged"):
            merge_fit(dataset, {"train_rates": np.zeros((8, 6, 6))})


# ------------------------------------------------------------------------------------------------------------ errors


def message(chosen, path) -> str:
    with pytest.raises(DatasetError) as raised:
        Continuous.prepare(chosen, [path])
    assert str(path) in str(raised.value)
    return str(raised.value)


def test_bad_recordings_are_told(write_raw, tmp_path):
    arrays = make_arrays()
    path = write_raw(arrays)
    assert "no key 'spike' (did you mean 'spikes'?)" in message(settings(keys={"spikes": "spike"}), path)
    assert "does not tell its bin width; give `bin_s`" in message(settings(bin_s=None), path)
    assert "`n_heldout` is 6 but there are 6 neurons" in message(settings(n_heldout=6), path)
    assert "400 bins make 2 blocks of 200, too few for train, valid and test" in message(settings(block_bins=200), path)
    short = write_raw(arrays | {"hand": arrays["hand"][:-1]}, name="short.h5")
    assert "'hand' has shape (399, 2); expected (bins, channels) with the 400 bins of 'spikes'" in message(
        settings(keys={"behavior": "hand"}), short
    )
    flat = write_raw(arrays | {"hand": arrays["hand"][:, 0]}, name="flat.h5")
    assert "'hand' has shape (400,)" in message(settings(keys={"behavior": "hand"}), flat)
    assert "no such file" in message(settings(), tmp_path / "nowhere.h5")
    told = write_raw(arrays, {"bin_s": 0.05}, name="told.h5")
    assert Continuous.prepare(settings(bin_s=None), [told]).bin_s == 0.05
    assert Continuous.prepare(settings(), [told]).bin_s == 0.02


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"overlap_bins": 10}, "overlap_bins must be below window_bins"),
        ({"block_bins": 9}, "block_bins must be at least window_bins"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "their sum must be below 1"),
        ({"keys": {"spike": "x"}}, "keys.spike"),
        ({"window_bins": 0}, "window_bins"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, expected):
    with pytest.raises(ValidationError) as raised:
        settings(**options)
    assert expected in str(raised.value)


def test_it_tells_its_source_and_keeps_the_path_out_of_the_file(recording, tmp_path):
    path, _ = recording
    assert Continuous.sources(settings(path="here.h5")) == [("file", "here.h5")]
    for name in ("a.h5", "b.h5"):
        write(tmp_path / name, Continuous.prepare(settings(path=str(path)), [path]))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "a.h5").read_bytes()
    assert read(tmp_path / "a.h5").provenance["n_bins"] == 400
