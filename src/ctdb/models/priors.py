r"""Priors of the initial condition and of the inferred inputs, and the KL divergence of a posterior from each.

A posterior is normal with a diagonal covariance. `kl` gives nats per trial, or per trial and bin, summed over
dimensions and over nothing else: the model sums bins, so a scale means the same for every prior and trial length.
Given the sample that drove the generator, the KL of an inferred input is that of its posterior at this bin,
conditional on the past that was drawn: the exact integrand of the evidence lower bound. (lfads-torch averages the
normal prior's KL over bins, sums the autoregressive one's, and evaluates it at a sample that drove nothing.)
"""

import math
from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from ctdb.settings import Positive, Settings

N_NODES = 64


class NormalPriorSettings(Settings):
    """Normal prior: trainable mean, fixed variance."""

    kind: Literal["normal"] = "normal"
    variance: Positive = 0.1


class AutoregressivePriorSettings(Settings):
    """First-order autoregressive prior over time: trainable time constant (bins) and innovation variance."""

    kind: Literal["autoregressive"] = "autoregressive"
    tau: Positive = 10.0
    innovation_variance: Positive = 0.1


class StudentTPriorSettings(Settings):
    """Student-t prior, heavy-tailed: trainable location and scale, fixed degrees of freedom."""

    kind: Literal["student_t"] = "student_t"
    location: float = 0.0
    scale: Positive = 1.0
    degrees_of_freedom: Positive = 5.0


class NoPriorSettings(Settings):
    """No prior: the posterior mean is used as it is and nothing is drawn or penalised."""

    kind: Literal["none"] = "none"


IcPriorSettings = Annotated[NormalPriorSettings | StudentTPriorSettings | NoPriorSettings, Field(discriminator="kind")]
CoPriorSettings = Annotated[
    NormalPriorSettings | AutoregressivePriorSettings | StudentTPriorSettings | NoPriorSettings,
    Field(discriminator="kind"),
]


class Prior(nn.Module):
    """Prior over the last axis."""

    variational = True

    @abstractmethod
    def kl(
        self,
        mean: Float[Tensor, "*axes dims"],
        std: Float[Tensor, "*axes dims"],
        sample: Float[Tensor, "*axes dims"] | None = None,
    ) -> Float[Tensor, "*axes"]:
        """KL divergence in nats, summed over dimensions.

        Parameters
        ----------
        mean, std
            Posterior.
        sample
            What was drawn from it and acted; None where the mean acted, and then bins are taken as independent.
        """


class NormalPrior(Prior):
    r""":math:`KL = \frac12 \sum_d \log(v / \sigma_d^2) + (\sigma_d^2 + (\mu_d - m_d)^2) / v - 1`."""

    def __init__(self, settings: NormalPriorSettings, n_dims: int):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(n_dims))
        self.variance = settings.variance

    def kl(self, mean: Tensor, std: Tensor, sample: Tensor | None = None) -> Tensor:
        """KL divergence in nats, summed over dimensions."""
        variance = torch.as_tensor(self.variance, dtype=mean.dtype, device=mean.device)
        return _normal_kl(mean, std, self.mean, variance)


class AutoregressivePrior(Prior):
    r""":math:`u_t \sim N(\alpha u_{t-1}, v)`, :math:`u_1 \sim N(0, v / (1 - \alpha^2))`, :math:`\alpha = e^{-1/\tau}`.

    The last axis but one is time.
    """

    def __init__(self, settings: AutoregressivePriorSettings, n_dims: int):
        super().__init__()
        self.log_tau = nn.Parameter(torch.full((n_dims,), math.log(settings.tau)))
        self.log_variance = nn.Parameter(torch.full((n_dims,), math.log(settings.innovation_variance)))

    def kl(self, mean: Tensor, std: Tensor, sample: Tensor | None = None) -> Tensor:
        """KL divergence of each bin in nats, summed over dimensions."""
        alpha, variance = torch.exp(-torch.exp(-self.log_tau)), self.log_variance.exp()
        before = (mean if sample is None else sample)[..., :-1, :]
        # Without a sample, the past is uncertain too: its posterior variance adds to the expected squared distance.
        spread = alpha**2 * std[..., :-1, :] ** 2 if sample is None else torch.zeros_like(before)
        stationary = variance / -torch.expm1(-2 * torch.exp(-self.log_tau))
        first = _normal_kl(mean[..., :1, :], std[..., :1, :], torch.zeros_like(alpha), stationary)
        later = _normal_kl(mean[..., 1:, :], std[..., 1:, :], alpha * before, variance, spread)
        return torch.cat([first, later], -1)


class StudentTPrior(Prior):
    """Independent Student-t variables; the expectation under the posterior by Gauss-Hermite quadrature, not a sample.

    Its relative error is below 1e-3 where the posterior is at most twice as wide as the prior's scale (a trained one is
    narrower), and with 5 degrees of freedom below 1 % at ten times.
    """

    def __init__(self, settings: StudentTPriorSettings, n_dims: int):
        super().__init__()
        self.location = nn.Parameter(torch.full((n_dims,), settings.location))
        self.log_scale = nn.Parameter(torch.full((n_dims,), math.log(settings.scale)))
        self.freedom = settings.degrees_of_freedom
        nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
        self.register_buffer("nodes", torch.tensor(nodes), persistent=False)
        self.register_buffer("node_weights", torch.tensor(weights / weights.sum()), persistent=False)

    def kl(self, mean: Tensor, std: Tensor, sample: Tensor | None = None) -> Tensor:
        """KL divergence in nats, summed over dimensions."""
        freedom, scale = self.freedom, self.log_scale.exp()
        points = mean[..., None] + std[..., None] * self.nodes.to(mean.dtype)
        distance = (points - self.location[:, None]) / scale[:, None]
        tail = torch.log1p(distance**2 / freedom) @ self.node_weights.to(mean.dtype)
        constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
        log_prior = constant - self.log_scale - (freedom + 1) / 2 * tail
        entropy = std.log() + 0.5 * math.log(2 * math.pi * math.e)
        return (-entropy - log_prior).sum(-1)


class NoPrior(Prior):
    """No penalty, nothing drawn."""

    variational = False

    def __init__(self, settings: NoPriorSettings, n_dims: int):
        super().__init__()

    def kl(self, mean: Tensor, std: Tensor, sample: Tensor | None = None) -> Tensor:
        """0."""
        return mean.new_zeros(mean.shape[:-1])


def make_prior(settings: Settings, n_dims: int) -> Prior:
    """Prior over `n_dims` dimensions."""
    kinds = {
        "normal": NormalPrior,
        "autoregressive": AutoregressivePrior,
        "student_t": StudentTPrior,
        "none": NoPrior,
    }
    return kinds[settings.kind](settings, n_dims)


def _normal_kl(
    mean: Tensor, std: Tensor, prior_mean: Tensor, prior_variance: Tensor, spread: Tensor | float = 0.0
) -> Tensor:
    """KL between diagonal normals, summed over the last axis; `spread` is the variance of `prior_mean` itself."""
    squares = (std**2 + (mean - prior_mean) ** 2 + spread) / prior_variance
    return 0.5 * (prior_variance.log() - 2 * std.log() + squares - 1).sum(-1)
