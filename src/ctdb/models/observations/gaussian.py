"""Continuous signals."""

import math

import torch
from torch import Tensor

from ctdb.models.observations import OBSERVATIONS
from ctdb.models.observations.base import Observation


@OBSERVATIONS.register("gaussian")
class Gaussian(Observation):
    r"""Normal values, :math:`y \sim N(x_1, e^{x_2})`."""

    n_parameters = 2

    def nll(self, parameters: Tensor, data: Tensor) -> Tensor:
        """Negative log-likelihood of each value."""
        mean, log_variance = parameters.unbind(-2)
        return 0.5 * (log_variance + (data - mean) ** 2 * (-log_variance).exp() + math.log(2 * math.pi))

    def mean(self, parameters: Tensor) -> Tensor:
        """Expected values."""
        return parameters[..., 0, :]

    def start(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Mean and log-variance."""
        return torch.stack([mean, variance.clamp(min=1e-6).log()])
