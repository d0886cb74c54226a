"""What a task is: trials of inputs and targets, how well they were answered, and the body they may act through."""

import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from ctdb.errors import ConfigError
from ctdb.seeds import numpy_generator
from ctdb.settings import Count, Positive, Seed, Settings


class TrialSettings(Settings):
    """How many trials to draw, and from which seed; a task may add what differs between training and simulation."""

    n_trials: Count = 1000
    seed: Seed


class TaskSettings(Settings):
    """Settings that every task has; `variants` are other trials, by name, that its networks are run on as well."""

    kind: str
    bin_s: Positive = 0.01
    train: TrialSettings = TrialSettings(seed=0)
    valid_fraction: float = Field(0.2, gt=0, lt=1)
    simulate: TrialSettings = TrialSettings(seed=100)
    variants: dict[str, TrialSettings] = {}

    @model_validator(mode="after")
    def _trials_on_both_sides(self) -> "TaskSettings":
        if not 0 < self.n_valid < self.train.n_trials:
            raise ValueError(
                f"valid_fraction {self.valid_fraction} of train.n_trials {self.train.n_trials} leaves none to train "
                "on or none to select by; take more trials"
            )
        return self

    @property
    def n_valid(self) -> int:
        """Number of the training trials that select the best epoch."""
        return max(1, round(self.valid_fraction * self.train.n_trials))


@dataclass(frozen=True)
class TaskTrials:
    """Trials of a task, per bin; bins beyond a trial's `n_bins` are padding, in which nothing counts.

    Attributes
    ----------
    inputs, inputs_true
        What the task shows the network, and what there truly was: without noise, and with forces on the body.
    targets
        What its outputs, or its body, should do.
    loss_weight
        Weight of each squared error; 0 where the answer does not count.
    condition
        Number of each trial's condition, among the task's `conditions` if those have names.
    n_bins
        Number of valid bins of each trial; all where not given.
    extra
        What else the task's own loss, success or body needs of each trial, by name.
    """

    inputs: Float[np.ndarray, "trials bins inputs"]
    inputs_true: Float[np.ndarray, "trials bins true_inputs"]
    targets: Float[np.ndarray, "trials bins targets"]
    loss_weight: Float[np.ndarray, "trials bins targets"]
    condition: Int[np.ndarray, " trials"] | None = None
    n_bins: Int[np.ndarray, " trials"] | None = None
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays that are present, by name."""
        named = {name: getattr(self, name) for name in _STANDARD}
        return {name: value for name, value in named.items() if value is not None} | dict(self.extra)

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "TaskTrials":
        """Trials from the arrays that :meth:`arrays` gave."""
        standard = {name: value for name, value in arrays.items() if name in _STANDARD}
        return cls(**standard, extra={name: value for name, value in arrays.items() if name not in _STANDARD})

    def take(self, trials: Int[np.ndarray, " some"]) -> "TaskTrials":
        """Only the given trials, in the given order."""
        return self.of({name: value[trials] for name, value in self.arrays().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The arrays as tensors."""
        return {name: torch.from_numpy(value) for name, value in self.arrays().items()}


_STANDARD = tuple(item.name for item in fields(TaskTrials) if item.name != "extra")


class Rollout(NamedTuple):
    """What a network did on trials of a task.

    Attributes
    ----------
    states
        States (trials, bins, states); None where nobody asked for them.
    outputs
        Outputs (trials, bins, outputs).
    inputs
        What the network saw in that very bin (trials, bins, inputs).
    behavior
        What its body did (trials, bins, channels); None for tasks without a body.
    """

    states: Tensor | None
    outputs: Tensor
    inputs: Tensor
    behavior: Tensor | None = None


@runtime_checkable
class NoiseSource(Protocol):
    """Where a body's noise comes from: :class:`ctdb.recurrent.Noise`, of which tasks need not know more."""

    def normal(self, stream: str, n_bins: int, n_channels: int, like: Tensor) -> Tensor:
        """Standard normal numbers (trials, bins, channels) in the type of `like`, the same for the same stream."""


class Body(nn.Module, ABC):
    """What a network moves and senses in a closed loop. Its state is a mapping of tensors with one row per trial."""

    @abstractmethod
    def begin(
        self, trials: Mapping[str, Tensor], noise: NoiseSource | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """State before the first bin, and what meets the body in each bin, (trials, bins, ...), such as forces."""

    @abstractmethod
    def observe(self, state: dict[str, Tensor]) -> Tensor:
        """What the network senses in the next bin, (trials, channels)."""

    @abstractmethod
    def step(self, state: dict[str, Tensor], output: Tensor, now: dict[str, Tensor]) -> dict[str, Tensor]:
        """State after a bin, given the network's output and what meets the body in that bin."""

    @abstractmethod
    def behavior(self, state: dict[str, Tensor]) -> Tensor:
        """What is recorded of the body in a state, (trials, channels)."""


class Task(ABC):
    """A task; subclasses set `Settings` and the names of their channels, draw trials and judge the answers.

    Parameters
    ----------
    settings
        Settings of the subclass.

    Attributes
    ----------
    input_names
        Channels that the network sees; in a closed loop what it senses of its body, then the task's own inputs.
    output_names
        Channels of the network's output.
    true_input_names, target_names, behavior_names
        Channels of `inputs_true`, `targets` and of the body; the first two as inputs and outputs unless told.
    conditions
        Names of the conditions; none where a condition is a mere number.
    """

    Settings: ClassVar[type[TaskSettings]]
    requires: ClassVar[tuple[str, ...]] = ()
    """Packages beyond ctdb's own that the task imports when it is built."""
    install: ClassVar[str] = ""
    """How to install them, and why they are no requirement of ctdb."""
    input_names: list[str]
    output_names: list[str]
    behavior_names: list[str] = []
    conditions: list[str] = []

    def __init__(self, settings: TaskSettings):
        self.settings = settings

    @classmethod
    def missing(cls) -> str | None:
        """What the task needs and is not installed, and how to install it, in words; None where nothing is missing."""
        absent = [name for name in cls.requires if importlib.util.find_spec(name) is None]
        return f"needs {', '.join(absent)}; {cls.install}" if absent else None

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Versions of what the task requires: they are part of what it does."""
        return {name: importlib.metadata.version(name) for name in cls.requires}

    @property
    def true_input_names(self) -> list[str]:
        """Channels of `inputs_true`."""
        return self.input_names

    @property
    def target_names(self) -> list[str]:
        """Channels of `targets`."""
        return self.output_names

    @abstractmethod
    def generate(self, drawn: TrialSettings, rng: np.random.Generator) -> TaskTrials:
        """Draw ``drawn.n_trials`` trials from `rng`; `drawn` is `settings.train` or `settings.simulate`."""

    def body(self) -> Body | None:
        """Body that the network acts through; None where its outputs are the answer."""
        return None

    def loss(self, run: Rollout, trials: Mapping[str, Tensor], epoch: int | None = None) -> Tensor:
        """Mean over all entries of the weighted squared error of the outputs.

        Entries of weight 0 count in the mean, as in the reference implementation.

        Parameters
        ----------
        run
            What the network did.
        trials
            Arrays of the trials.
        epoch
            Epoch of the training, for losses that change over it; None where epochs are to be compared.
        """
        return (trials["loss_weight"] * (run.outputs - trials["targets"]) ** 2).mean()

    @abstractmethod
    def success(self, run: Rollout, trials: Mapping[str, Tensor]) -> Float[Tensor, " trials"]:
        """How well each trial was done as behaviour, from 0 to 1; the task says what it means."""

    def chance(self, trials: Mapping[str, Tensor]) -> Rollout | None:
        """Run of a network that always answers each output's mean target; None where that means nothing."""
        counts = trials["loss_weight"] > 0
        total = counts.sum((0, 1)).clamp(min=1)
        mean = (trials["targets"] * counts).sum((0, 1)) / total
        return Rollout(None, mean.expand_as(trials["targets"]), trials["inputs"])


def training_trials(task: Task) -> dict[str, TaskTrials]:
    """Draw the trials that train a network, split into `train` and `valid` by the same seed."""
    settings = task.settings
    rng = numpy_generator("task trials", "train", settings.train.seed)
    trials = task.generate(settings.train, rng)
    order = rng.permutation(settings.train.n_trials)
    valid, train = np.split(order, [settings.n_valid])
    return {"train": trials.take(np.sort(train)), "valid": trials.take(np.sort(valid))}


def simulation_trials(task: Task) -> TaskTrials:
    """Draw the trials that a trained network is run on; no training saw them."""
    settings = task.settings.simulate
    return task.generate(settings, numpy_generator("task trials", "simulate", settings.seed))


def build(settings: Mapping[str, Any]) -> Task:
    """Task of the kind named in `settings`; raises ConfigError for an unknown kind, or where a package is missing."""
    from ctdb.tasks import TASKS

    task = TASKS[settings["kind"]]
    checked = task.Settings(**settings)
    if (missing := task.missing()) is not None:
        raise ConfigError(f"task {settings['kind']} {missing}")
    return task(checked)
