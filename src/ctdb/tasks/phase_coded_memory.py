"""Phase-coded memory: remember which cue was shown as the phase of an oscillation relative to a reference.

After Pals, Macke & Barak (2024), Trained recurrent neural networks develop phase-locked limit cycles in a working
memory task, PLOS Computational Biology 20:e1011852; settings as in the computation-through-dynamics toolkit (CtDB's
successor).
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor

from ctdb.settings import BinRange, Count, NonNegative, Pair, Positive
from ctdb.tasks import TASKS
from ctdb.tasks.base import Rollout, Task, TaskSettings, TaskTrials, TrialSettings


class PhaseCodedMemorySettings(TaskSettings):
    """Settings of task `phase_coded_memory`.

    `period_s` is the range of the reference's period in seconds, `lags` how far the answers to cues A and B lag behind
    the reference, in units of pi. `cue_on` and `cue_bins` are the ranges of the cue's first bin and of its length, and
    hold their first number and not their last. `weight_before` is the weight in the loss of bins up to the cue's end.

    The same trials in bins of 10 ms, five times as fast:
    ``{bin_s: 0.01, n_bins: 80, cue_on: [12, 24], cue_bins: [12, 16]}``.
    """

    bin_s: Positive = 0.002
    train: TrialSettings = TrialSettings(n_trials=5000, seed=0)
    n_bins: Count = 400
    period_s: Pair = [0.125, 0.25]
    cue_on: BinRange = [60, 120]
    cue_bins: BinRange = [60, 80]
    cue_size: Positive = 1.0
    lags: Pair = [0.2, 1.2]
    input_noise: NonNegative = 0.2
    weight_before: NonNegative = 0.0

    @model_validator(mode="after")
    def _times_fit(self) -> "PhaseCodedMemorySettings":
        for name in ("cue_on", "cue_bins"):
            span = getattr(self, name)
            if span[0] >= span[1]:
                raise ValueError(f"{name} {span} is empty: it holds its first number, and not its last")
        if self.cue_bins[0] < 1:
            raise ValueError(f"cue_bins {self.cue_bins}: a cue must last at least 1 bin")
        shortest, longest = self.period_s
        if not 4 * self.bin_s <= shortest <= longest:
            raise ValueError(
                f"period_s {self.period_s} must be two durations, the shorter first, of at least four bins of "
                f"{self.bin_s} s"
            )
        if np.isclose(np.cos(np.pi * (self.lags[0] - self.lags[1])), 1):
            raise ValueError(f"lags {self.lags} are the same phase, so that the answers to A and B could not differ")
        end = self.cue_on[1] + self.cue_bins[1] - 2
        needed = end + int(np.ceil(longest / self.bin_s - 1e-9))
        if self.n_bins < needed:
            raise ValueError(
                f"n_bins {self.n_bins} is too short: cues may end as late as with bin {end - 1}, and the answer is "
                f"judged over at least one period of up to {longest} s; take n_bins of at least {needed}"
            )
        return self


@TASKS.register("phase_coded_memory")
class PhaseCodedMemory(Task):
    r"""Answer with an oscillation whose phase tells which of two cues was shown.

    The reference is :math:`\sin \varphi` with :math:`\varphi(t) = 2 \pi t / p + \theta`; its period p and the phase
    :math:`\theta \sim U(0, 2 \pi)` are the trial's, and t is 0 in the first bin. It is shown throughout. One cue, A or
    B, is shown once, as a step on its own input. All inputs get N(0, input_noise^2), drawn once per trial.

    The target is the reference until the cue has ended and :math:`\sin(\varphi - \pi\, lag)` from then on. The loss is
    the mean over trials of the mean squared error over the bins after the cue. What the network does before does not
    count, as in the reference, unless `weight_before` says so: it would have to jump in phase at the cue's end.

    A trial's success is 1 if the output after the cue is nearer in phase to its own target than to that of the other
    cue; its phase is that of the sine with the reference's period that fits best. Guessing gives 50 %. An output that
    has no phase, such as 0 throughout, is no success.

    The toolkit's penalty on states after the cue, which has three values in its paper, configuration and run, is left
    out; `latent_l2` of the network is of its kind.
    """

    Settings = PhaseCodedMemorySettings
    settings: PhaseCodedMemorySettings
    input_names = ["reference", "cue A", "cue B"]
    output_names = ["answer"]
    conditions = ["A", "B"]

    def generate(self, drawn: TrialSettings, rng: np.random.Generator) -> TaskTrials:
        """Draw trials: phases, periods, onsets and lengths of the cues, cues, then input noise.

        `extra` holds `phase` (rad) and `period_s` of the reference, `cue_on` and `cue_off`, the first bin of the cue
        and the first one after it.
        """
        s, n = self.settings, drawn.n_trials
        # Rounded here, so that what is computed from the numbers on disk is what was shown.
        phase = rng.uniform(0, 2 * np.pi, n).astype(np.float32)
        period = rng.uniform(*s.period_s, n).astype(np.float32)
        on = rng.integers(*s.cue_on, n)
        off = on + rng.integers(*s.cue_bins, n)
        cue = rng.integers(0, 2, n)

        at = np.arange(s.n_bins)[None, :]
        angle = 2 * np.pi * s.bin_s * at / period.astype(np.float64)[:, None] + phase[:, None]
        after = at >= off[:, None]
        inputs_true = np.zeros((n, s.n_bins, 3), np.float32)
        inputs_true[:, :, 0] = np.sin(angle)
        inputs_true[np.arange(n), :, 1 + cue] = s.cue_size * ((at >= on[:, None]) & ~after)
        lag = np.pi * np.array(s.lags)[cue, None]
        targets = np.sin(angle - lag * after)
        noise = rng.standard_normal(inputs_true.shape, dtype=np.float32)
        return TaskTrials(
            inputs=inputs_true + np.float32(s.input_noise) * noise,
            inputs_true=inputs_true,
            targets=targets.astype(np.float32)[..., None],
            loss_weight=np.where(after, 1, s.weight_before).astype(np.float32)[..., None],
            condition=cue,
            extra={"phase": phase, "period_s": period, "cue_on": on, "cue_off": off},
        )

    def loss(self, run: Rollout, trials: Mapping[str, Tensor], epoch: int | None = None) -> Tensor:
        """Mean over trials of the weighted mean squared error of each."""
        weight = trials["loss_weight"]
        error = weight * (run.outputs - trials["targets"]) ** 2
        return (error.sum((1, 2)) / weight.sum((1, 2))).mean()

    def success(self, run: Rollout, trials: Mapping[str, Tensor]) -> Float[Tensor, " trials"]:
        """1 where the output after the cue is nearer in phase to its own target than to the other one."""
        output, cue = run.outputs[:, :, 0], trials["condition"]
        at = torch.arange(output.shape[1], device=output.device)
        turns = self.settings.bin_s * at / trials["period_s"][:, None].to(output)
        angle = 2 * np.pi * turns + trials["phase"][:, None].to(output)
        after = (at >= trials["cue_off"][:, None]).to(output)
        # Least squares on sine and cosine, not mere products with them: no whole number of periods follows the cue.
        waves = torch.stack([angle.sin(), angle.cos()], 2) * after[..., None]
        found = torch.linalg.solve(waves.mT @ waves, waves.mT @ output[..., None])[..., 0]
        lags = np.pi * torch.tensor(self.settings.lags).to(output)
        # What an answer of that lag, sin(angle - lag), would have found; the nearer in phase has the larger product.
        nearness = found @ torch.stack([lags.cos(), -lags.sin()])
        own = nearness.gather(1, cue[:, None].long())
        other = nearness.gather(1, 1 - cue[:, None].long())
        return (own > other)[:, 0].to(output.dtype)
