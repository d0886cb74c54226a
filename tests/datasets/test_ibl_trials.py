"""Which trials are taken and why not, sides and signs, and splits that share no bin."""

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from ctdb.datasets.ibl.splits import Shares, deal, without_overlap
from ctdb.datasets.ibl.trials import (
    CONDITIONS,
    TrialFilters,
    choose_trials,
    condition,
    facts,
    needed_columns,
    stimulus_side,
)
from ctdb.errors import IblNoTrialsError

SPAN = (0.0, 1000.0)


def table(n=20):
    """Good trials, 10 s apart; the stimulus is left of the even ones."""
    on = 10.0 * np.arange(1, n + 1)
    left = np.arange(n) % 2 == 0
    return {
        "stimOn_times": on,
        "goCue_times": on + 0.001,
        "firstMovement_times": on + 0.3,
        "response_times": on + 0.5,
        "feedback_times": on + 0.501,
        "choice": np.where(left, 1.0, -1.0),
        "feedbackType": np.ones(n),
        "probabilityLeft": np.full(n, 0.8),
        "contrastLeft": np.where(left, 0.25, np.nan),
        "contrastRight": np.where(left, np.nan, 0.0),
    }


def choose(trials, span=SPAN, **options):
    filters = TrialFilters(**({"min_trials": 1} | options))
    used = {column: trials[column] for column in needed_columns(filters)}
    return choose_trials(used, filters, span, "session x")


def dropped(trials, span=SPAN, **options):
    kept, counts = choose(trials, span, **options)
    recorded, left = counts.pop("recorded"), counts.pop("kept")
    assert recorded == len(kept) == left + sum(counts.values())
    assert left == kept.sum()
    return np.flatnonzero(~kept).tolist(), {reason: n for reason, n in counts.items() if n}


CHANGES = {
    "no stimulus onset": ({"stimOn_times": np.nan}, {}, "missing"),
    "no choice": ({"choice": np.nan}, {}, "missing"),
    "no feedback time": ({"feedback_times": np.nan}, {}, "missing"),
    "no feedback": ({"feedbackType": np.nan}, {}, "missing"),
    "no block": ({"probabilityLeft": np.nan}, {}, "missing"),
    "no movement": ({"firstMovement_times": np.nan}, {}, "missing"),
    "no contrast": ({"contrastLeft": np.nan, "contrastRight": np.nan}, {}, "missing"),
    "both contrasts": ({"contrastLeft": 0.5, "contrastRight": 0.5}, {}, "missing"),
    "no go cue, aligned": ({"goCue_times": np.nan}, {"align": "goCue_times"}, "missing"),
    "no go cue, not aligned": ({"goCue_times": np.nan}, {}, None),
    "no response, aligned": ({"response_times": np.nan}, {"align": "response_times"}, "missing"),
    "no movement, not wanted": ({"firstMovement_times": np.nan}, {"reaction_time_s": None}, None),
    "too fast": ({"firstMovement_times": 40.0 + 0.0799}, {}, "reaction_time"),
    "fast": ({"firstMovement_times": 40.0 + 0.0801}, {}, None),
    "too slow": ({"firstMovement_times": 42.001}, {}, "reaction_time"),
    "slow": ({"firstMovement_times": 41.999}, {}, None),
    "any reaction": ({"firstMovement_times": 39.0}, {"reaction_time_s": None}, None),
    "too long": ({"feedback_times": 50.01}, {}, "length"),
    "long": ({"feedback_times": 49.9}, {}, None),
    "any length": ({"feedback_times": 99.0}, {"max_length_s": None}, None),
    "no-go": ({"choice": 0.0}, {}, "no_go"),
    "no-go without movement": ({"choice": 0.0, "firstMovement_times": np.nan}, {}, "no_go"),
    "no-go, wanted": ({"choice": 0.0}, {"drop_no_go": False}, None),
    "even block": ({"probabilityLeft": 0.5}, {"drop_even_block": True}, "even_block"),
    "even block, wanted": ({"probabilityLeft": 0.5}, {}, None),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_trial_is_dropped_for_its_reason_and_no_other_trial_is(case):
    changes, options, reason = CHANGES[case]
    trials = table()
    for column, value in changes.items():
        trials[column][3] = value
    assert dropped(trials, **options) == (([3], {reason: 1}) if reason else ([], {}))


def test_windows_beyond_the_recording_are_dropped_at_both_ends():
    trials = table()
    assert dropped(trials, (9.5, 201.5)) == ([], {})  # windows reach exactly to both ends
    assert dropped(trials, (9.6, 201.4)) == ([0, 19], {"outside_recording": 2})
    assert dropped(trials, (10.7, 202.0), align="feedback_times", window_s=[0.2, 0.4]) == ([], {})
    assert dropped(trials, (10.8, 200.9), align="feedback_times", window_s=[0.2, 0.4]) == ([0, 19], {"outside_recording": 2})  # fmt: skip


def test_too_few_trials_are_an_error_with_the_counts():
    trials = table()
    trials["choice"][:4] = 0
    trials["firstMovement_times"][5] = np.nan
    assert choose(trials, min_trials=15)[0].sum() == 15
    with pytest.raises(IblNoTrialsError, match=r"session x: 15 trials.*`min_trials`, 16.*'no_go': 4, 'missing': 1"):
        choose(trials, min_trials=16)


def test_only_columns_that_are_used_are_needed():
    columns = needed_columns(TrialFilters(reaction_time_s=None, max_length_s=None))
    assert not {"firstMovement_times", "goCue_times", "response_times"} & set(columns)
    assert "firstMovement_times" in needed_columns(TrialFilters(reaction_time_s=None, max_length_s=None), True)
    assert "response_times" in needed_columns(TrialFilters(align="response_times"))
    assert {"firstMovement_times", "goCue_times"} <= set(needed_columns(TrialFilters()))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"window_s": [-0.5, 1.51]}, "100.5 bins"),
        ({"window_s": [0.5, -0.5]}, "first must be below the second"),
        ({"reaction_time_s": [2.0, 0.08]}, "first must be below the second"),
        ({"bin_s": 0.03}, "66.6667 bins"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, expected):
    with pytest.raises(ValidationError, match=expected):
        TrialFilters(**options)


def test_edges_are_whole_bins_around_the_event():
    filters = TrialFilters(window_s=[-0.1, 0.3], bin_s=0.1)
    np.testing.assert_allclose(filters.edges(np.array([5.0, 7.0])), [[4.9, 5, 5.1, 5.2, 5.3], [6.9, 7, 7.1, 7.2, 7.3]])
    assert filters.n_bins == 4


def test_signs_are_positive_for_the_right():
    trials = {
        "stimOn_times": np.array([1.0, 2, 3, 4]),
        "firstMovement_times": np.array([1.2, 2.3, 3.4, 4.5]),
        "choice": np.array([-1.0, 1, 0, 1]),  # right, left, none, left
        "contrastLeft": np.array([np.nan, 0.25, 0.0, np.nan]),
        "contrastRight": np.array([1.0, np.nan, np.nan, 0.125]),
        "probabilityLeft": np.array([0.2, 0.5, 0.8, 0.8]),
        "feedbackType": np.array([1.0, 1, -1, -1]),
    }
    known = facts(trials)
    np.testing.assert_array_equal(known["choice"], [1, -1, 0, -1])
    np.testing.assert_array_equal(known["stim_side"], [1, -1, -1, 1])
    np.testing.assert_array_equal(known["contrast"], [1, -0.25, 0, 0.125])
    np.testing.assert_array_equal(known["block"], [0.2, 0.5, 0.8, 0.8])
    np.testing.assert_array_equal(known["feedback"], [1, 1, -1, -1])
    np.testing.assert_allclose(known["reaction_time"], [0.2, 0.3, 0.4, 0.5])
    named = {name: [CONDITIONS[name][code] for code in condition(known, name)] for name in CONDITIONS}
    assert named == {
        "choice": ["right", "left", "no-go", "left"],
        "stim_side": ["right", "left", "left", "right"],
        "feedback": ["reward", "reward", "error", "error"],
        "block": ["left unlikely", "even", "left likely", "left likely"],
        "stim_side_choice": ["right, right", "left, left", "left, no-go", "right, left"],
    }


def test_real_trials_have_the_signs_that_their_own_columns_tell(data_file):
    frame = pd.read_csv(data_file("ibl_trials_500.csv"))
    trials = {name: frame[name].to_numpy(np.float64) for name in frame.columns}
    options = {"reaction_time_s": None, "max_length_s": 10.0, "min_trials": 1}
    used = needed_columns(TrialFilters(**options))
    kept, counts = choose_trials({name: trials[name] for name in used}, TrialFilters(**options), (0.0, 1e5), "csv")
    too_long = trials["feedback_times"] - trials["goCue_times"] > 10
    assert counts["recorded"] == 500
    assert counts["no_go"] == (trials["choice"] == 0).sum()
    np.testing.assert_array_equal(kept, ~too_long & (trials["choice"] != 0))
    known = facts(trials)
    np.testing.assert_array_equal(known["stim_side"], trials["stim_side"])
    np.testing.assert_array_equal(stimulus_side(trials), trials["stim_side"])
    np.testing.assert_array_equal(known["contrast"], trials["signed_contrast"])
    np.testing.assert_array_equal(known["choice"] == 1, trials["right_choice"] == 1)
    np.testing.assert_array_equal((known["choice"] == known["stim_side"]), trials["correct"] == 1)
    # A choice of the stimulus' side is rewarded, where the file's own rewards agree with `correct`.
    agree = (trials["feedbackType"] == 1) == (trials["correct"] == 1)
    np.testing.assert_array_equal((known["feedback"] == 1)[agree], trials["correct"][agree] == 1)


# --------------------------------------------------------------------------------------------------------- splits


def shares(**options):
    return Shares(**({"valid_fraction": 0.2, "test_fraction": 0.2} | options))


@pytest.mark.parametrize("size", [1, 3, 10])
def test_blocks_stay_whole_and_every_trial_is_in_one_split(size):
    block = np.arange(100) // size
    member = deal(block, shares(), "x")
    np.testing.assert_array_equal(np.sum(list(member.values()), 0), np.ones(100))
    for chosen in member.values():
        assert set(block[chosen]).isdisjoint(block[~chosen])
    assert abs(member["test"].sum() - 20) <= size
    assert abs(member["valid"].sum() - 20) <= size
    for split, other in zip(deal(block, shares(seed=1), "x").values(), member.values(), strict=True):
        assert not np.array_equal(split, other)
    again = deal(block, shares(), "x")
    assert all(np.array_equal(again[split], member[split]) for split in member)


def test_blocks_of_different_sizes_give_the_shares_of_trials():
    block = np.repeat(np.arange(40), np.random.default_rng(0).integers(1, 8, 40))
    member = deal(block, shares(valid_fraction=0.3, test_fraction=0.1), "x")
    assert abs(member["valid"].mean() - 0.3) < 8 / len(block)
    assert abs(member["test"].mean() - 0.1) < 8 / len(block)


def test_three_blocks_are_enough_and_two_are_not():
    member = deal(np.array([4, 4, 7, 9]), shares(), "x")
    assert all(chosen.any() for chosen in member.values())
    with pytest.raises(IblNoTrialsError, match="x: 4 trials in 2 blocks are too few"):
        deal(np.array([4, 4, 7, 7]), shares(), "x")


def test_windows_that_overlap_another_split_give_way_to_test_then_to_valid():
    align = np.array([0.0, 1.5, 3.5, 4.0, 5.9, 8.0, 9.0])
    names = ["train", "test", "train", "valid", "train", "valid", "test"]
    member = {split: np.array([name == split for name in names]) for split in ("train", "valid", "test")}
    kept = without_overlap(member, align, 2.0)
    assert np.flatnonzero(kept["test"]).tolist() == [1, 6]
    assert np.flatnonzero(kept["valid"]).tolist() == [3]  # 5 overlaps the test window 6
    assert np.flatnonzero(kept["train"]).tolist() == []  # 0 overlaps 1, 2 overlaps 3, 4 overlaps 3
    kept = without_overlap(member, align, 0.5)  # windows that touch, 2 and 3, do not overlap
    assert [chosen.sum() for chosen in kept.values()] == [3, 2, 2]
    mirrored = {split: chosen[::-1] for split, chosen in member.items()}
    kept = without_overlap(mirrored, 9.0 - align[::-1], 0.5)
    assert [chosen.sum() for chosen in kept.values()] == [3, 2, 2]


def test_windows_kept_share_no_time_with_another_split():
    rng = np.random.default_rng(0)
    align = np.sort(rng.uniform(0, 300, 150))
    member = deal(np.arange(150) // 5, shares(), "x")
    kept = without_overlap(member, align, 2.0)
    label = np.select([kept["train"], kept["valid"], kept["test"]], [0, 1, 2], -1)
    for i in np.flatnonzero(label >= 0):
        near = (np.abs(align - align[i]) < 2.0) & (label >= 0)
        assert set(label[near]) == {label[i]}
    for i in np.flatnonzero(label < 0):  # none is left out without need
        was = next(order for order, split in enumerate(("train", "valid", "test")) if member[split][i])
        assert (label[np.abs(align - align[i]) < 2.0] > was).any()
