"""Spike counts."""

import torch
from torch import Tensor

from ctdb.models.observations import OBSERVATIONS
from ctdb.models.observations.base import Observation, refuse
from ctdb.recurrent import Linear, poisson_nll

LOWEST_MEAN = 1e-6


@OBSERVATIONS.register("poisson")
class Poisson(Observation):
    r"""Poisson counts, :math:`n \sim Poisson(e^{x})`; the NLL includes :math:`\log n!`."""

    n_parameters = 1

    def nll(self, parameters: Tensor, data: Tensor) -> Tensor:
        """Negative log-likelihood of each count."""
        log_rate = parameters[..., 0, :]
        return log_rate.exp() - data * log_rate + torch.lgamma(data + 1)

    def nll_sum(
        self, readout: Linear, factors: Tensor, data: Tensor, weight: Tensor, learned: Tensor | None = None
    ) -> Tensor:
        """Weighted sum over trials, bins and neurons, in one pass that makes no array of rates."""
        return poisson_nll(factors, readout, data, weight, learned)

    def mean(self, parameters: Tensor) -> Tensor:
        """Expected counts."""
        return parameters[..., 0, :].exp()

    def start(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Log-rates; a silent neuron starts at a very low one."""
        return mean.clamp(min=LOWEST_MEAN).log()[None]

    def check(self, data: Tensor, where: str) -> None:
        """Refuse what is not a count."""
        bad = (data < 0) | (data != data.round())
        refuse(data, bad, where, "no spike count", "observation `poisson` needs 0, 1, 2, ...; choose `gaussian`")
