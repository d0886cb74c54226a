"""Positive signals."""

import torch
from torch import Tensor

from ctdb.models.observations import OBSERVATIONS
from ctdb.models.observations.base import Observation, refuse


@OBSERVATIONS.register("gamma")
class Gamma(Observation):
    r"""Gamma values with shape :math:`a = e^{x_1}` and rate :math:`b = e^{x_2}`, such as rectified EMG."""

    n_parameters = 2
    placeholder = 1.0

    def nll(self, parameters: Tensor, data: Tensor) -> Tensor:
        """Negative log-likelihood of each value."""
        return gamma_nll(*parameters.unbind(-2), data)

    def mean(self, parameters: Tensor) -> Tensor:
        """Expected values, a / b."""
        log_shape, log_rate = parameters.unbind(-2)
        return (log_shape - log_rate).exp()

    def start(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Moments: a = mean^2 / variance, b = mean / variance."""
        mean, variance = mean.clamp(min=1e-6), variance.clamp(min=1e-6)
        return torch.stack([2 * mean.log() - variance.log(), mean.log() - variance.log()])

    def check(self, data: Tensor, where: str) -> None:
        """Refuse what is not positive."""
        remedy = "observation `gamma` needs values above 0; for zeros choose `zero_inflated_gamma`"
        refuse(data, data <= 0, where, "no positive value", remedy)


def gamma_nll(log_shape: Tensor, log_rate: Tensor, data: Tensor) -> Tensor:
    """Negative log-likelihood of a gamma variable above 0."""
    shape = log_shape.exp()
    return torch.lgamma(shape) - shape * log_rate - (shape - 1) * data.log() + log_rate.exp() * data
