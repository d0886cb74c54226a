"""Fifteen cognitive tasks for one network, which is told by a rule input which of them it is to do.

Yang, Joglekar, Song, Newsome & Wang (2019), Nature Neuroscience 22:297-306; Driscoll, Shenoy & Sussillo (2024), Nature
Neuroscience 27:1349-1363. Times, amplitudes and loss as in the computation-through-dynamics benchmark (CtDB).
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from ctdb.errors import nearest
from ctdb.settings import Count, NonEmpty, NonNegative, Positive
from ctdb.tasks import TASKS
from ctdb.tasks.base import Rollout, Task, TaskSettings, TaskTrials, TrialSettings

PHASES = ("context", "stim1", "mem1", "stim2", "mem2", "response")


class Family(NamedTuple):
    """What sub-tasks have in common: shortest and longest phases (ms, the longest not reached), and what is shown when.

    `holds` tells whether the fixation input stays on in the response; it is on before in all families.
    """

    subtasks: tuple[str, ...]
    milliseconds: dict[str, tuple[int, int]]
    first_shown: tuple[str, ...]
    second_shown: tuple[str, ...] = ()
    holds: bool = False


_LONG, _CUED = (200, 1600), {"response": (300, 700)}
FAMILIES = (
    Family(
        ("delay_pro", "delay_anti"),
        {"context": (300, 700), "stim1": (200, 1500)} | _CUED,
        first_shown=("stim1", "response"),
    ),
    Family(
        ("memory_pro", "memory_anti"),
        {"context": (300, 700), "stim1": _LONG, "mem1": _LONG} | _CUED,
        first_shown=("stim1",),
    ),
    Family(
        ("react_pro", "react_anti"),
        {"context": (500, 2500), "response": (300, 1700)},
        first_shown=("response",),
        holds=True,
    ),
    Family(
        ("int_mod1", "int_mod2", "context_int_mod1", "context_int_mod2", "context_int_multimodal"),
        {"context": (200, 600), "stim1": _LONG, "mem1": _LONG, "stim2": _LONG, "mem2": (100, 300)} | _CUED,
        first_shown=("stim1",),
        second_shown=("stim2",),
    ),
    Family(
        ("match2sample", "non_match2sample", "match_cat_pro", "match_cat_anti"),
        {"context": (200, 600), "stim1": _LONG, "mem1": _LONG} | _CUED,
        first_shown=("stim1",),
        second_shown=("response",),
        holds=True,
    ),
)
SUBTASKS = [name for family in FAMILIES for name in family.subtasks]
"""All sub-tasks, in the order of their rule inputs and of the conditions."""
_FAMILY = [family for family in FAMILIES for _ in family.subtasks]
_IS_INT = np.array(["int" in name for name in SUBTASKS])
_IS_ANTI = np.array([name in ("delay_anti", "memory_anti", "react_anti") for name in SUBTASKS])
# Modalities (first, second) that are shown, and that are judged; all but the Int sub-tasks use the first alone.
_SHOWN = np.array([(name != "int_mod2", name == "int_mod2" or "context" in name) for name in SUBTASKS])
_JUDGED = np.array([(not name.endswith("int_mod2"), name.endswith(("int_mod2", "multimodal"))) for name in SUBTASKS])
# Phases in which each is on, by sub-task.
_FIRST = np.array([[phase in family.first_shown for phase in PHASES] for family in _FAMILY])
_SECOND = np.array([[phase in family.second_shown for phase in PHASES] for family in _FAMILY])
_FIXATION = np.array([[phase != "response" or family.holds for phase in PHASES] for family in _FAMILY])
COHERENCES = np.array([-0.32, -0.16, -0.08, 0.08, 0.16, 0.32])
"""What is added to the mean amplitude for the first stimulus, and taken from it for the second."""

BLIND_MS = 100
"""The loss does not count the start of the trial and that of the response, for so long."""
RESPONSE_WEIGHT = 5.0
TRIALS_AT_ONCE = 128
"""Trials whose noise is drawn in one go: few enough to stay in the processor's cache."""
SUCCESS_LENGTH, SUCCESS_ANGLE = 0.5, np.pi / 10


class MultiTaskTrialSettings(TrialSettings):
    """How trials of task `multitask` are drawn: stimuli at one of `n_angles` angles around the circle."""

    n_angles: int = Field(128, ge=2)


class MultiTaskSimulationSettings(MultiTaskTrialSettings):
    """The same, with the manuscript's number of angles for simulation."""

    n_angles: int = Field(32, ge=2)


class MultiTaskSettings(TaskSettings):
    """Settings of task `multitask`; `n_trials` are those of all `subtasks` together.

    `duration_scale` shortens all phases. ``compatibility: ctd`` restores two habits of CtDB (see :class:`MultiTask`).
    """

    bin_s: Positive = 0.02
    train: MultiTaskTrialSettings = MultiTaskTrialSettings(seed=0)
    simulate: MultiTaskSimulationSettings = MultiTaskSimulationSettings(seed=100)
    variants: dict[str, MultiTaskSimulationSettings] = {}
    subtasks: NonEmpty[str] = SUBTASKS
    n_bins: Count = 320
    duration_scale: Positive = 1.0
    input_noise: NonNegative = 0.3
    compatibility: Literal["none", "ctd"] = "none"

    @model_validator(mode="after")
    def _trials_fit(self) -> "MultiTaskSettings":
        for name in self.subtasks:
            if name not in SUBTASKS:
                raise ValueError(f"unknown sub-task {name!r}; {nearest(name, SUBTASKS)}")
            if self.subtasks.count(name) > 1:
                raise ValueError(f"sub-task {name!r} is named twice in subtasks")
        variants = {f"variants.{name}": drawn for name, drawn in self.variants.items()}
        for name, drawn in {"train": self.train, "simulate": self.simulate, **variants}.items():
            if drawn.n_trials < len(self.subtasks):
                raise ValueError(
                    f"{name}.n_trials {drawn.n_trials} is less than one trial for each of the "
                    f"{len(self.subtasks)} sub-tasks"
                )
        longest = {name: int((self.durations(name)[:, 1] - 1).sum()) for name in self.subtasks}
        name = max(longest, key=longest.__getitem__)
        if longest[name] > self.n_bins:
            raise ValueError(
                f"n_bins {self.n_bins} is too short: a trial of {name} can last {longest[name]} bins; raise n_bins to "
                f"{longest[name]}, or lower duration_scale"
            )
        return self

    def bins(self, milliseconds: int, scale: float) -> int:
        """Nearest number of bins."""
        return round(scale * milliseconds / (1000 * self.bin_s))

    def durations(self, subtask: str) -> Int[np.ndarray, "phases 2"]:
        """Shortest duration of each phase, and one above its longest, in bins; phases that do not occur last 0."""
        ranges = []
        for phase in PHASES:
            low, high = 0, 1
            if spans := _FAMILY[SUBTASKS.index(subtask)].milliseconds.get(phase):
                low, high = (self.bins(span, self.duration_scale) for span in spans)
                low = max(low, 1)
            ranges.append((low, max(high, low + 1)))
        return np.array(ranges)

    @property
    def n_blind(self) -> int:
        """Bins at the start of the trial, and of the response, that the loss does not count.

        5 bins of 20 ms as in CtDB, less in proportion where durations are scaled down. A response lasts at least three
        times as long before rounding, so some of it always counts.
        """
        return self.bins(BLIND_MS, min(1.0, self.duration_scale))


@TASKS.register("multitask")
class MultiTask(Task):
    """Do the one of 15 sub-tasks that the rule input names: respond, or not, in the right direction.

    Inputs are a fixation signal, two modalities of stimuli, each the cosine and sine of an angle times an amplitude,
    and one rule channel per sub-task, always 15 of them so that networks are comparable. In every bin of the trial the
    network sees them plus N(0, input_noise^2). Outputs are fixation, 1 until the response, and the cosine and sine of
    the response, 0 before it and where there is none. Bins after the response are padding, 0 throughout.

    - delay, memory, react: respond towards the stimulus (pro) or away from it (anti), which stays on, went off
      a while ago, or comes just then.
    - int: of two stimuli, 90 to 270 degrees apart, respond towards the stronger one; `context_int` shows both
      modalities, of which `mod1`, `mod2` or the sum (`multimodal`) is to be judged. Amplitudes are a mean, drawn
      from U(0.8, 1.2) for each modality, plus a coherence for the first stimulus and minus it for the second.
    - match: respond towards the second stimulus if it is at the first (`match2sample`) or opposite to it
      (`non_match2sample`), both with probability 1/2, or if both are on the same side of 0 (`match_cat_pro`)
      or not (`match_cat_anti`). Otherwise, no response; fixation goes off all the same.

    The loss weighs the response by 5. A trial is a success if, in the last bin of the response, (cosine, sine) is
    longer than 0.5 and within pi/10 of the right angle, or, where none was due, shorter than 0.5.

    Repairs of CtDB, which ``compatibility: ctd`` takes back: the fixation output, which CtDB lacks in three
    of the four match sub-tasks, and sums of both modalities that are equal (one trial in six), where rounding
    decides what CtDB's network should answer. Repairs that stay: CtDB's success knew the angle alone, or
    sum(outputs) < 0.1 where no response was due, so that a large negative output passed for none.
    """

    Settings = MultiTaskSettings
    settings: MultiTaskSettings
    input_names = [
        *("fixation", "modality 1 cos", "modality 1 sin", "modality 2 cos", "modality 2 sin"),
        *(f"rule {name}" for name in SUBTASKS),
    ]
    output_names = ["fixation", "cos", "sin"]
    conditions = SUBTASKS

    def generate(self, drawn: MultiTaskTrialSettings, rng: np.random.Generator) -> TaskTrials:
        """Draw trials: sub-tasks and durations, then stimuli, then input noise.

        Sub-tasks come in random order and equally often; where `n_trials` is no multiple of their number, the first
        ones have one trial more. `response_start` and `response_end` are the first bin of the response and the one
        after its last; `response_angle` is in radians, and 0 where the trial `responds` not (0).
        """
        n, settings = drawn.n_trials, self.settings
        chosen = np.array([SUBTASKS.index(name) for name in settings.subtasks])
        condition = chosen[rng.permutation(n) % len(chosen)]
        low, high = np.stack([settings.durations(name) for name in SUBTASKS])[condition].transpose(2, 0, 1)
        durations = rng.integers(low, high)
        start, end = durations[:, :-1].sum(1), durations.sum(1)
        stimuli, angle, responds = self._stimuli(drawn, condition, rng)

        first, second = (phases[condition][:, :, None] for phases in (_FIRST, _SECOND))
        shown = np.zeros((n, len(PHASES), len(self.input_names)), np.float32)
        shown[:, :, 0] = _FIXATION[condition]
        shown[:, :, 1:5] = first * stimuli[:, None, 0] + second * stimuli[:, None, 1]
        shown[np.arange(n), :, 5 + condition] = 1
        asked = np.zeros((n, len(PHASES), len(self.output_names)), np.float32)
        asked[:, :-1, 0] = 1
        if settings.compatibility == "ctd":
            asked[condition > SUBTASKS.index("match2sample"), :, 0] = 0
        asked[:, -1, 1:] = responds[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)

        # The loss knows four phases: blind, before the response, blind, response.
        weight = np.zeros((n, 4, len(self.output_names)), np.float32)
        weight[:, 1], weight[:, 3] = 1, RESPONSE_WEIGHT
        blind = np.full(n, settings.n_blind)
        weighted = np.stack([blind, start - blind, blind, end - start - blind], 1)

        inputs, inputs_true = np.zeros((2, n, settings.n_bins, shown.shape[2]), np.float32)
        targets, loss_weight = np.zeros((2, n, settings.n_bins, asked.shape[2]), np.float32)
        # Drawing the noise is most of the work, and torch is three times as fast at it as numpy.
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        for begin in range(0, n, TRIALS_AT_ONCE):
            part = slice(begin, begin + TRIALS_AT_ONCE)
            inside = np.arange(settings.n_bins) < end[part, None]
            rows = _per_bin(shown[part], durations[part])
            noise = torch.empty(rows.shape).normal_(0, settings.input_noise, generator=generator).numpy()
            _place(rows, inside, inputs_true[part])
            _place(np.add(noise, rows, out=noise), inside, inputs[part])
            _place(_per_bin(asked[part], durations[part]), inside, targets[part])
            _place(_per_bin(weight[part], weighted[part]), inside, loss_weight[part])
        return TaskTrials(
            inputs=inputs,
            inputs_true=inputs_true,
            targets=targets,
            loss_weight=loss_weight,
            condition=condition,
            n_bins=end,
            extra={
                "response_start": start,
                "response_end": end.copy(),
                "response_angle": np.where(responds, angle, 0).astype(np.float32),
                "responds": responds.astype(np.uint8),
            },
        )

    def _stimuli(
        self, drawn: MultiTaskTrialSettings, condition: Int[np.ndarray, " trials"], rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "trials 2 4"], Float[np.ndarray, " trials"], Bool[np.ndarray, " trials"]]:
        """First and second stimulus in both modalities, angle of the right response in [-pi, pi), and if one is due.

        Everything is drawn for every trial, whether its sub-task uses it or not.
        """
        n = len(condition)
        angles = np.linspace(-np.pi, np.pi, drawn.n_angles, endpoint=False)
        first, other = angles[rng.integers(0, drawn.n_angles, (2, n))]
        apart = rng.uniform(np.pi / 2, 3 * np.pi / 2, n)
        coin, mismatch = rng.random(n) < 0.5, np.deg2rad(rng.integers(10, 350, n))
        mean = rng.uniform(0.8, 1.2, (n, 2))
        level = rng.integers(0, len(COHERENCES), (n, 2))
        multimodal = condition == SUBTASKS.index("context_int_multimodal")
        if self.settings.compatibility == "none":
            # Any level for the second modality but the one that undoes the first, all equally likely.
            undoing = len(COHERENCES) - 1 - level[:, 0]
            level[:, 1] = np.where(multimodal, (undoing + 1 + rng.integers(0, 5, n)) % 6, level[:, 1])

        is_int = _IS_INT[condition]
        change = np.where(is_int[:, None], COHERENCES[level], 0)
        mean = np.where(is_int[:, None], mean, 1)
        amplitude = np.stack([mean + change, mean - change], 1)  # (trials, stimuli, modalities)
        judged = (amplitude * _JUDGED[condition][:, None]).sum(2)

        is_match, is_non_match, is_cat_pro, is_cat_anti = (condition == SUBTASKS.index(name) for name in _FAMILY[-1][0])
        off = np.where(coin, 0, mismatch)
        second = np.select(
            [is_int, is_match, is_non_match, is_cat_pro | is_cat_anti],
            [first + apart, first + off, first + np.pi + off, other],
        )
        same_side = (first < 0) == (other < 0)
        responds = np.select([is_match | is_non_match, is_cat_pro, is_cat_anti], [coin, same_side, ~same_side], True)
        single = first + np.pi * _IS_ANTI[condition]
        to_second = np.where(is_int, judged[:, 1] > judged[:, 0], _SECOND[condition].any(1))
        response = (np.where(to_second, second, single) + np.pi) % (2 * np.pi) - np.pi

        placed = np.stack([first, second], 1)
        direction = np.stack([np.cos(placed), np.sin(placed)], 2)
        shown = amplitude * _SHOWN[condition][:, None]
        return (shown[..., None] * direction[:, :, None]).reshape(n, 2, 4), response, responds

    def loss(self, run: Rollout, trials: Mapping[str, Tensor], epoch: int | None = None) -> Tensor:
        """Weighted squared error of the outputs, summed over bins, mean over trials and outputs."""
        return (trials["loss_weight"] * (run.outputs - trials["targets"]) ** 2).sum(1).mean()

    def success(self, run: Rollout, trials: Mapping[str, Tensor]) -> Float[Tensor, " trials"]:
        """1 if the trial ends with the right response, or with none where none was due."""
        last = trials["response_end"] - 1
        answer = run.outputs[torch.arange(len(last), device=last.device), last, 1:]
        length, angle = answer.norm(dim=1), trials["response_angle"]
        along = answer[:, 0] * angle.cos() + answer[:, 1] * angle.sin()
        responded = (length > SUCCESS_LENGTH) & (along >= length * np.cos(SUCCESS_ANGLE))
        return torch.where(trials["responds"] == 1, responded, length < SUCCESS_LENGTH).to(run.outputs.dtype)


def _per_bin(
    phases: Float[np.ndarray, "trials phases channels"], durations: Int[np.ndarray, "trials phases"]
) -> Float[np.ndarray, "valid channels"]:
    """Each phase's values as often as it has bins: all trials, end to end."""
    return np.repeat(phases.reshape(-1, phases.shape[2]), durations.ravel(), axis=0)


def _place(
    rows: Float[np.ndarray, "valid channels"],
    inside: Bool[np.ndarray, "trials bins"],
    padded: Float[np.ndarray, "trials bins channels"],
) -> None:
    """Set the valid bins of trials to what :func:`_per_bin` gave."""
    # With all channels of a bin as one item, numpy copies whole trials at once.
    item = f"V{rows.shape[1] * rows.itemsize}"
    padded.view(item)[:, :, 0][inside] = rows.view(item)[:, 0]
