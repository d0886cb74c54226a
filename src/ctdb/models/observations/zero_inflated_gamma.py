"""Deconvolved calcium events: often none, else of gamma-distributed size."""

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from ctdb.models.observations import OBSERVATIONS
from ctdb.models.observations.base import Observation, ObservationSettings, refuse
from ctdb.models.observations.gamma import gamma_nll
from ctdb.settings import NonNegative, Positive

MARGIN = 1e-5


class ZeroInflatedGammaSettings(ObservationSettings):
    """Settings of observation model `zero_inflated_gamma`."""

    smallest_event: NonNegative = Field(0.0)
    initial_scale: Positive = 1.0
    scale_prior: Positive = 1.0
    scale_penalty: NonNegative = 0.0


@OBSERVATIONS.register("zero_inflated_gamma")
class ZeroInflatedGamma(Observation):
    r"""An event happens with probability :math:`q = \sigma(x_3)` and is `smallest_event` plus a gamma variable.

    Shape :math:`a = s_a \sigma(x_1)` and rate :math:`b = s_b \sigma(x_2)`, with a trainable scale s per neuron, drawn
    to `scale_prior` by `scale_penalty`. The sigmoids stay 1e-5 away from 0 and 1.

    References
    ----------
    Zhu et al. (2022), "A deep learning framework for inference of single-trial neural population dynamics from
    calcium imaging with subframe temporal resolution", methods.
    """

    Settings = ZeroInflatedGammaSettings
    n_parameters = 3

    def __init__(self, settings: ZeroInflatedGammaSettings, n_neurons: int):
        super().__init__(settings, n_neurons)
        self.log_scale = nn.Parameter(torch.full((2, n_neurons), math.log(settings.initial_scale)))

    def nll(self, parameters: Tensor, data: Tensor) -> Tensor:
        """Negative log-likelihood of each value; that of 0 is of its probability, that of an event of its density."""
        shape, rate, probability = self._natural(parameters)
        event = data > 0
        size = torch.where(event, data - self.settings.smallest_event, 1.0)
        of_event = gamma_nll(shape.log(), rate.log(), size) - probability.log()
        return torch.where(event, of_event, -torch.log1p(-probability))

    def mean(self, parameters: Tensor) -> Tensor:
        """Expected values, q (a / b + smallest event)."""
        shape, rate, probability = self._natural(parameters)
        return probability * (shape / rate + self.settings.smallest_event)

    def start(self, mean: Tensor, variance: Tensor) -> Tensor:
        """All sigmoids in the middle, whatever the data: an event's size and its probability cannot be told apart."""
        return mean.new_zeros(3, len(mean))

    def check(self, data: Tensor, where: str) -> None:
        """Refuse what is neither 0 nor a possible event."""
        smallest = self.settings.smallest_event
        bad = (data < 0) | ((data > 0) & (data <= smallest))
        refuse(data, bad, where, f"neither 0 nor above `smallest_event`, {smallest:g}", "lower `smallest_event`")

    def penalty(self) -> Tensor:
        """Squared distance of the scales from their prior."""
        return self.settings.scale_penalty * ((self.log_scale.exp() - self.settings.scale_prior) ** 2).sum()

    def _natural(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        squashed = parameters.sigmoid().clamp(MARGIN, 1 - MARGIN)
        shape, rate, probability = squashed.unbind(-2)
        scale = self.log_scale.exp()
        return scale[0] * shape, scale[1] * rate, probability
