"""N-bit flip-flop: each output remembers the sign of the last pulse on its own input.

Sussillo & Barak (2013), Opening the black box; settings as in the computation-through-dynamics benchmark (3 bits).
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor

from ctdb.settings import Count, NonNegative
from ctdb.tasks import TASKS
from ctdb.tasks.base import Rollout, Task, TaskSettings, TaskTrials, TrialSettings

PULSE_FREE_BINS = 3
"""Bins at the start of a trial in which no pulse comes."""


class NBitFlipFlopTrialSettings(TrialSettings):
    """How trials of task `nbff` are drawn; `step_stimulus` adds a step that the task does not know (see there)."""

    step_stimulus: bool = False


class NBitFlipFlopSettings(TaskSettings):
    """Settings of task `nbff`."""

    train: NBitFlipFlopTrialSettings = NBitFlipFlopTrialSettings(seed=0)
    simulate: NBitFlipFlopTrialSettings = NBitFlipFlopTrialSettings(seed=100)
    variants: dict[str, NBitFlipFlopTrialSettings] = {}
    n_bits: Count = 3
    n_bins: int = Field(500, ge=6)
    switch_prob: float = Field(0.01, gt=0, le=0.5)
    input_noise: NonNegative = 0.15
    blind_start: int = Field(5, ge=0)
    blind_after_change: int = Field(4, ge=0)

    @model_validator(mode="after")
    def _something_counts(self) -> "NBitFlipFlopSettings":
        if self.blind_start >= self.n_bins:
            raise ValueError(f"blind_start {self.blind_start} leaves none of the {self.n_bins} bins in the loss")
        return self


@TASKS.register("nbff")
class NBitFlipFlop(Task):
    """Remember the last pulse of each of `n_bits` inputs.

    In every bin and bit a pulse is +1 with probability `switch_prob`, -1 with the same, else 0; the first three bins
    have none. A bit starts at 0, turns to 1 in the very bin of a +1 pulse and to 0 in that of a -1 pulse. The
    network sees the pulses plus N(0, input_noise^2), drawn once per trial.

    The loss is blind to the first `blind_start` bins and, per bit, to the `blind_after_change` bins that follow a
    change of target. As in the reference implementation, the bin of the change itself does count, and a pulse that
    changes nothing hides nothing.

    With `step_stimulus`, a step of size U(0.5, 1.5) is added to one random input of each trial from a quarter to three
    quarters of it; what the network should answer stays the same. A trial's success is the share of outputs that the
    loss counts and that are on the right side of 1/2; 1 where nothing counts.
    """

    Settings = NBitFlipFlopSettings
    settings: NBitFlipFlopSettings

    def __init__(self, settings: NBitFlipFlopSettings):
        super().__init__(settings)
        self.input_names = [f"pulse {bit + 1}" for bit in range(settings.n_bits)]
        self.output_names = [f"bit {bit + 1}" for bit in range(settings.n_bits)]

    def generate(self, drawn: NBitFlipFlopTrialSettings, rng: np.random.Generator) -> TaskTrials:
        """Draw trials: pulses first, then input noise, then steps."""
        settings, n_trials = self.settings, drawn.n_trials
        shape = (n_trials, settings.n_bins, settings.n_bits)
        draw = rng.random(shape, dtype=np.float32)
        pulses = (draw < settings.switch_prob).astype(np.int8)
        pulses -= draw >= 1 - settings.switch_prob
        pulses[:, :PULSE_FREE_BINS] = 0
        state = flip_flop(pulses)
        weight = ~self.blind(state)
        noise = rng.standard_normal(shape, dtype=np.float32)
        noise *= np.float32(settings.input_noise)
        noise += pulses
        inputs_true = pulses.astype(np.float32)
        if drawn.step_stimulus:
            bit, size = rng.integers(0, settings.n_bits, n_trials), rng.uniform(0.5, 1.5, n_trials)
            during = slice(settings.n_bins // 4, 3 * settings.n_bins // 4)
            for shown in (inputs_true, noise):
                shown[np.arange(n_trials), during, bit] += size[:, None]
        return TaskTrials(
            inputs=noise,
            inputs_true=inputs_true,
            targets=state.astype(np.float32),
            loss_weight=weight.astype(np.float32),
        )

    def success(self, run: Rollout, trials: Mapping[str, Tensor]) -> Float[Tensor, " trials"]:
        """Share of the outputs that count and are on the right side of 1/2."""
        counts = trials["loss_weight"] > 0
        wrong = ((run.outputs > 0.5) != (trials["targets"] > 0.5)) & counts
        return 1 - wrong.sum((1, 2)) / counts.sum((1, 2)).clamp(min=1).to(run.outputs.dtype)

    def blind(self, state: Bool[np.ndarray, "trials bins bits"]) -> Bool[np.ndarray, "trials bins bits"]:
        """Entries that the loss does not count."""
        changed = np.zeros_like(state)
        changed[:, 1:] = state[:, 1:] != state[:, :-1]
        blind = np.zeros_like(state)
        for delay in range(1, self.settings.blind_after_change + 1):
            blind[:, delay:] |= changed[:, :-delay]
        blind[:, : self.settings.blind_start] = True
        return blind


def flip_flop(pulses: np.ndarray) -> Bool[np.ndarray, "trials bins bits"]:
    """Sign of the last pulse so far, in each bin, as True (+1) or False (-1, or none yet).

    Parameters
    ----------
    pulses
        Array (trials, bins, bits) of -1, 0 or +1.
    """
    # The bin of the last pulse is the running maximum of "this bin if it has a pulse"; its sign is then looked up.
    # With the sign in the lowest bit of the number, one pass over the bins gives both.
    bins = np.arange(1, pulses.shape[1] + 1, dtype=np.int32)[None, :, None]
    stamped = np.where(pulses == 0, 0, 2 * bins + (pulses > 0))
    return (np.maximum.accumulate(stamped, axis=1) & 1).astype(bool)
