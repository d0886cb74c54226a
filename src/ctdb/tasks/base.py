"""What a task is: trials of inputs and targets, and the loss that says how well they were answered."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, model_validator

from ctdb.seeds import numpy_generator
from ctdb.settings import Count, Positive, Seed, Settings


class TrialSettings(Settings):
    """How many trials to draw, and from which seed."""

    n_trials: Count = 1000
    seed: Seed


class TaskSettings(Settings):
    """Settings that every task has."""

    kind: str
    bin_s: Positive = 0.01
    train: TrialSettings = TrialSettings(seed=0)
    valid_fraction: float = Field(0.2, gt=0, lt=1)
    simulate: TrialSettings = TrialSettings(seed=100)

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
    """Trials of a task, per bin.

    Attributes
    ----------
    inputs, inputs_true
        What the network sees, and the same without noise.
    targets
        What its outputs should be.
    loss_weight
        Weight of each output's squared error; 0 where the answer does not count.
    condition
        Condition of each trial.
    """

    inputs: Float[np.ndarray, "trials bins inputs"]
    inputs_true: Float[np.ndarray, "trials bins inputs"]
    targets: Float[np.ndarray, "trials bins outputs"]
    loss_weight: Float[np.ndarray, "trials bins outputs"]
    condition: Int[np.ndarray, " trials"] | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays that are present, by name."""
        named = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    def take(self, trials: Int[np.ndarray, " some"]) -> "TaskTrials":
        """Only the given trials, in the given order."""
        return TaskTrials(**{name: value[trials] for name, value in self.arrays().items()})


class Task(ABC):
    """A task; subclasses set `Settings` and the names of their channels, and draw trials.

    Parameters
    ----------
    settings
        Settings of the subclass.
    """

    Settings: ClassVar[type[TaskSettings]]
    input_names: list[str]
    output_names: list[str]

    def __init__(self, settings: TaskSettings):
        self.settings = settings

    @abstractmethod
    def generate(self, n_trials: int, rng: np.random.Generator) -> TaskTrials:
        """Draw `n_trials` trials from `rng`."""

    @staticmethod
    def loss(outputs: Any, targets: Any, loss_weight: Any) -> Any:
        """Mean over all entries of the weighted squared error; for arrays and tensors alike.

        Entries of weight 0 count in the mean, as in the reference implementation.
        """
        return (loss_weight * (outputs - targets) ** 2).mean()


def training_trials(task: Task) -> dict[str, TaskTrials]:
    """Draw the trials that train a network, split into `train` and `valid` by the same seed."""
    settings = task.settings
    rng = numpy_generator("task trials", settings.train.seed)
    trials = task.generate(settings.train.n_trials, rng)
    order = rng.permutation(settings.train.n_trials)
    valid, train = np.split(order, [settings.n_valid])
    return {"train": trials.take(np.sort(train)), "valid": trials.take(np.sort(valid))}


def simulation_trials(task: Task) -> TaskTrials:
    """Draw the trials that a trained network is run on; no training saw them."""
    settings = task.settings.simulate
    return task.generate(settings.n_trials, numpy_generator("task trials", settings.seed))


def build(settings: Mapping[str, Any]) -> Task:
    """Task of the kind named in `settings`; raises ConfigError for an unknown kind or key."""
    from ctdb.tasks import TASKS

    task = TASKS[settings["kind"]]
    return task(task.Settings(**settings))
