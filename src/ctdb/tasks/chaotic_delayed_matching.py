"""Delayed matching of two cues, learned by networks that are chaotic at first.

After Miconi (2017), Biologically plausible learning in recurrent neural networks reproduces neural dynamics observed
during cognitive tasks, eLife 6:e20899; settings as in the computation-through-dynamics toolkit (CtDB's successor).
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ctdb.settings import Count, NonNegative, Positive
from ctdb.tasks import TASKS
from ctdb.tasks.base import Rollout, Task, TaskSettings, TaskTrials, TrialSettings


class ChaoticDelayedMatchingSettings(TaskSettings):
    """Settings of task `chaotic_delayed_matching`: how long each part of a trial is, in bins and in this order.

    The same trials in bins of 10 ms, ten times as fast: ``{bin_s: 0.01, base_bins: 5, cue1_bins: 20, delay1_bins: 20,
    cue2_bins: 20, delay2_bins: 20, response_bins: 20}``.
    """

    bin_s: Positive = 0.001
    train: TrialSettings = TrialSettings(n_trials=2000, seed=0)
    base_bins: int = Field(50, ge=0)
    cue1_bins: Count = 200
    delay1_bins: int = Field(200, ge=0)
    cue2_bins: Count = 200
    delay2_bins: int = Field(200, ge=0)
    response_bins: Count = 200
    cue_size: Positive = 1.0
    input_noise: NonNegative = 0.1


@TASKS.register("chaotic_delayed_matching")
class ChaoticDelayedMatching(Task):
    """Tell, after a delay, whether the second of two cues was another one than the first.

    Each cue, A or B, is a step on its own input; all four pairs are equally likely. Both inputs get
    N(0, input_noise^2), drawn once per trial. In the response period the target is +1 for two different cues and -1 for
    the same one twice; before, it is 0 and nothing counts.

    The answer is the output's mean over the response period: the loss is the mean over trials of its absolute error,
    and a trial's success is 1 if it has the target's sign. Guessing gives 50 %.
    """

    Settings = ChaoticDelayedMatchingSettings
    settings: ChaoticDelayedMatchingSettings
    input_names = ["cue A", "cue B"]
    output_names = ["non-match"]
    conditions = ["AA", "AB", "BA", "BB"]

    def generate(self, drawn: TrialSettings, rng: np.random.Generator) -> TaskTrials:
        """Draw trials: pairs of cues, then input noise."""
        s, n = self.settings, drawn.n_trials
        parts = (s.base_bins, s.cue1_bins, s.delay1_bins, s.cue2_bins, s.delay2_bins, s.response_bins)
        starts = np.cumsum((0, *parts))
        cue1, cue2, response = (slice(starts[part], starts[part + 1]) for part in (1, 3, 5))
        condition = rng.integers(0, 4, n)
        first, second = np.divmod(condition, 2)
        trial = np.arange(n)
        inputs_true = np.zeros((n, starts[-1], 2), np.float32)
        inputs_true[trial, cue1, first] = s.cue_size
        inputs_true[trial, cue2, second] = s.cue_size
        targets = np.zeros((n, starts[-1], 1), np.float32)
        targets[:, response, 0] = np.where(first != second, 1, -1)[:, None]
        weight = np.zeros_like(targets)
        weight[:, response] = 1
        noise = rng.standard_normal(inputs_true.shape, dtype=np.float32)
        return TaskTrials(
            inputs=inputs_true + np.float32(s.input_noise) * noise,
            inputs_true=inputs_true,
            targets=targets,
            loss_weight=weight,
            condition=condition,
        )

    def loss(self, run: Rollout, trials: Mapping[str, Tensor], epoch: int | None = None) -> Tensor:
        """Mean over trials of the absolute error of the answer."""
        return (_answer(run.outputs, trials) - _answer(trials["targets"], trials)).abs().mean()

    def success(self, run: Rollout, trials: Mapping[str, Tensor]) -> Float[Tensor, " trials"]:
        """1 where the answer has the target's sign."""
        right = _answer(run.outputs, trials) * _answer(trials["targets"], trials) > 0
        return right.to(run.outputs.dtype)


def _answer(value: Tensor, trials: Mapping[str, Tensor]) -> Float[Tensor, " trials"]:
    """Mean over the response period."""
    weight = trials["loss_weight"]
    return (weight * value).sum((1, 2)) / weight.sum((1, 2))
