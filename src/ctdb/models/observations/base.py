"""What an observation model is."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ctdb.errors import DatasetError
from ctdb.recurrent import Linear
from ctdb.settings import Settings


class ObservationSettings(Settings):
    """Settings that every observation model has."""

    kind: str


class Observation(nn.Module, ABC):
    """Distribution of each neuron's value in each bin; subclasses set `Settings`, `n_parameters` and the maths.

    `parameters` are what the readout gives, (..., n_parameters, neurons), any real number.

    Parameters
    ----------
    settings
        Settings of the subclass.
    n_neurons
        Number of neurons.
    """

    Settings: ClassVar[type[ObservationSettings]] = ObservationSettings
    n_parameters: ClassVar[int]
    placeholder: ClassVar[float] = 0.0
    """A possible value, which stands where none was recorded and counts for nothing."""

    def __init__(self, settings: ObservationSettings, n_neurons: int):
        super().__init__()
        self.settings, self.n_neurons = settings, n_neurons

    @abstractmethod
    def nll(
        self, parameters: Float[Tensor, "*axes parameters neurons"], data: Float[Tensor, "*axes neurons"]
    ) -> Float[Tensor, "*axes neurons"]:
        """Negative log-likelihood of each value, in nats, with its constant terms."""

    def nll_sum(
        self,
        readout: Linear,
        factors: Float[Tensor, "trials bins factors"],
        data: Tensor,
        weight: Float[Tensor, "trials bins weights"],
        learned: UInt8[Tensor, "trials bins neurons"] | None = None,
    ) -> Float[Tensor, ""]:
        """Weighted sum of the negative log-likelihood over trials, bins and neurons.

        Parameters
        ----------
        readout
            From factors to parameters.
        factors
            What is read out.
        data
            Values (trials, bins, neurons), whole or floating; where their weight is 0 they may be anything.
        weight
            Of each bin, or of each value.
        learned
            Values whose error may teach; the others count, but have no gradient. All where not given.
        """
        target = torch.where(weight > 0, data.to(factors.dtype), self.placeholder)
        nll = self.nll(readout(factors).unflatten(-1, (self.n_parameters, -1)), target)
        if learned is not None:
            nll = torch.where(learned > 0, nll, nll.detach())
        return (weight * nll).sum()

    @abstractmethod
    def mean(self, parameters: Float[Tensor, "*axes parameters neurons"]) -> Float[Tensor, "*axes neurons"]:
        """Expected value per bin."""

    @abstractmethod
    def start(self, mean: Float[Tensor, " neurons"], variance: Float[Tensor, " neurons"]) -> Tensor:
        """Parameters (n_parameters, neurons) to start at: about this mean and variance, where these decide them."""

    def check(self, data: Float[Tensor, "samples neurons"], where: str) -> None:
        """Raise DatasetError where the data (NaN where missing) cannot come from this distribution."""

    def penalty(self) -> Tensor:
        """What the loss adds, once per batch."""
        return torch.zeros(())


def refuse(data: Tensor, bad: Tensor, where: str, what: str, remedy: str) -> None:
    """Raise DatasetError that names the first bad value; NaN is missing and never bad."""
    bad = bad & ~data.isnan()
    if bad.any():
        sample, neuron = bad.nonzero()[0].tolist()
        raise DatasetError(f"{where}: {what}, {data[sample, neuron]:g}, of neuron {neuron}; {remedy}")
