"""Which trials of a session are taken, and what is known of each of them.

In the files a choice is -1 for right (the wheel turned counter-clockwise), +1 for left and 0 for none (no-go). Here
right is +1 and left is -1, for choices and for stimuli, as in the sign of the wheel's velocity.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator, model_validator

from ctdb.errors import IblNoTrialsError
from ctdb.settings import Count, Pair, Positive, Settings

Event = Literal["stimOn_times", "goCue_times", "firstMovement_times", "response_times", "feedback_times"]
ALWAYS = (
    "stimOn_times",
    "choice",
    "feedback_times",
    "feedbackType",
    "probabilityLeft",
    "contrastLeft",
    "contrastRight",
)
NEVER_MISSING = ALWAYS[:5]
CONDITIONS = {
    "choice": ("left", "right", "no-go"),
    "stim_side": ("left", "right"),
    "feedback": ("error", "reward"),
    "block": ("left unlikely", "even", "left likely"),
    "stim_side_choice": (
        *("left, left", "left, right", "left, no-go"),
        *("right, left", "right, right", "right, no-go"),
    ),
}


class TrialFilters(Settings):
    """Settings that choose trials."""

    align: Event = "stimOn_times"
    bin_s: Positive = 0.02
    window_s: Pair = [-0.5, 1.5]
    reaction_time_s: Pair | None = Field(default=[0.08, 2.0])
    max_length_s: Positive | None = 10.0
    drop_no_go: bool = True
    drop_even_block: bool = False
    min_trials: Count = 30

    @field_validator("window_s", "reaction_time_s")
    @classmethod
    def _rising(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and value[0] >= value[1]:
            raise ValueError(f"{value}: the first must be below the second")
        return value

    @model_validator(mode="after")
    def _whole_bins(self) -> "TrialFilters":
        n_bins = (self.window_s[1] - self.window_s[0]) / self.bin_s
        if abs(n_bins - round(n_bins)) > 1e-6:
            raise ValueError(f"window_s {self.window_s} is {n_bins:.6g} bins of bin_s {self.bin_s}; make them whole")
        return self

    @property
    def n_bins(self) -> int:
        """Bins of a window."""
        return round((self.window_s[1] - self.window_s[0]) / self.bin_s)

    def edges(self, align: Float[np.ndarray, " trials"]) -> Float[np.ndarray, "trials edges"]:
        """Edges of the bins (s) around the time of each trial's event."""
        return align[:, None] + (self.window_s[0] + self.bin_s * np.arange(self.n_bins + 1))


def needed_columns(filters: TrialFilters, reaction_time: bool = False) -> list[str]:
    """Columns of the trials table that are used; `reaction_time` tells whether it is wanted besides filtering."""
    optional = {filters.align: True}
    optional["firstMovement_times"] = reaction_time or filters.reaction_time_s is not None
    optional["goCue_times"] = filters.max_length_s is not None
    own = [column for column, used in optional.items() if used or column == filters.align]
    return list(dict.fromkeys([*ALWAYS, *own]))


def choose_trials(
    trials: Mapping[str, Float[np.ndarray, " trials"]],
    filters: TrialFilters,
    span: tuple[float, float],
    where: str,
) -> tuple[Bool[np.ndarray, " trials"], dict[str, int]]:
    """Trials to take, and how many are dropped for each reason; a trial counts under the first that applies.

    Parameters
    ----------
    trials
        Columns of :func:`needed_columns`.
    filters
        Settings.
    span
        First and last time (s) that all that is wanted was recorded.
    where
        Name of the session, for the message.

    Returns
    -------
    Whether each trial is kept, and the counts: `recorded`; `no_go`; `missing`, a NaN in a column that is used;
    `reaction_time` (first movement after stimulus onset) or `length` (feedback after go cue) out of its range;
    `even_block`; `outside_recording`, the window; `kept`.

    Raises
    ------
    IblNoTrialsError
        If fewer than `min_trials` are kept; tells the counts.

    References
    ----------
    International Brain Laboratory, brainwidemap, `load_trials_and_mask`, for the defaults.
    """
    used = [column for column in trials if column in (*NEVER_MISSING, filters.align)]
    missing = np.any([np.isnan(trials[column]) for column in used], 0) | np.isnan(stimulus_side(trials))
    reasons = {"no_go": filters.drop_no_go & (trials["choice"] == 0), "missing": missing}
    if filters.reaction_time_s is not None:
        reaction = trials["firstMovement_times"] - trials["stimOn_times"]
        low, high = filters.reaction_time_s
        reasons["missing"] = missing | np.isnan(reaction)
        reasons["reaction_time"] = (reaction < low) | (reaction > high)
    if filters.max_length_s is not None:
        reasons["length"] = trials["feedback_times"] - trials["goCue_times"] > filters.max_length_s
    if filters.drop_even_block:
        reasons["even_block"] = trials["probabilityLeft"] == 0.5
    begin, end = trials[filters.align] + filters.window_s[0], trials[filters.align] + filters.window_s[1]
    reasons["outside_recording"] = ~((begin >= span[0]) & (end <= span[1]))
    kept, counts = np.ones(len(missing), bool), {"recorded": len(missing)}
    for reason, applies in reasons.items():
        counts[reason] = int((kept & applies).sum())
        kept &= ~applies
    counts["kept"] = int(kept.sum())
    if counts["kept"] < filters.min_trials:
        raise IblNoTrialsError(
            f"{where}: {counts['kept']} trials are left, expected at least `min_trials`, {filters.min_trials}; dropped "
            f"for {counts}. Weaken a filter, shorten the window, or leave the session out"
        )
    return kept, counts


def stimulus_side(trials: Mapping[str, Float[np.ndarray, " trials"]]) -> Float[np.ndarray, " trials"]:
    """+1 for right, -1 for left, also at contrast 0: the side whose contrast is given; NaN where both or none are."""
    left, right = ~np.isnan(trials["contrastLeft"]), ~np.isnan(trials["contrastRight"])
    return np.where(left == right, np.nan, np.where(right, 1.0, -1.0))


def facts(trials: Mapping[str, Float[np.ndarray, " trials"]]) -> dict[str, Float[np.ndarray, " trials"]]:
    """What is known of each trial.

    Returns
    -------
    `choice` (+1 right, -1 left, 0 none), `stim_side` (+1 right, -1 left), `contrast` (0 to 1, right positive), `block`
    (probability of a left stimulus), `feedback` (+1 reward, -1 error), and `reaction_time` (s) where the first movement
    is among the columns.
    """
    side = stimulus_side(trials)
    contrast = np.fmax(trials["contrastLeft"], trials["contrastRight"])
    found = {
        "choice": 0.0 - trials["choice"],
        "stim_side": side,
        "contrast": side * contrast,
        "block": trials["probabilityLeft"],
        "feedback": trials["feedbackType"],
    }
    if "firstMovement_times" in trials:
        found["reaction_time"] = trials["firstMovement_times"] - trials["stimOn_times"]
    return found


def condition(known: Mapping[str, Float[np.ndarray, " trials"]], name: str) -> Int[np.ndarray, " trials"]:
    """Place of each trial's condition in ``CONDITIONS[name]``, from what :func:`facts` tells."""
    choice = np.select([known["choice"] < 0, known["choice"] > 0], [0, 1], 2)
    side = (known["stim_side"] > 0).astype(np.int64)
    return {
        "choice": choice,
        "stim_side": side,
        "feedback": (known["feedback"] > 0).astype(np.int64),
        "block": np.select([known["block"] < 0.5, known["block"] > 0.5], [0, 2], 1),
        "stim_side_choice": 3 * side + choice,
    }[name]
