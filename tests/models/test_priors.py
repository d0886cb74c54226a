"""KL divergences against closed forms over whole covariance matrices, quadrature and Monte Carlo with scipy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from scipy.integrate import quad
from scipy.stats import norm
from scipy.stats import t as student

from ctdb.models.priors import CoPriorSettings, make_prior

pytestmark = pytest.mark.usefixtures("one_thread")

PRIORS = {
    "normal": {"kind": "normal", "variance": 0.4},
    "autoregressive": {"kind": "autoregressive", "tau": 3.0, "innovation_variance": 0.2},
    "student_t": {"kind": "student_t", "location": -0.5, "scale": 0.7, "degrees_of_freedom": 4.0},
}


def make(dims, **settings):
    return make_prior(TypeAdapter(CoPriorSettings).validate_python(settings), dims).double()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def posterior(*shape, seed=0):
    return draw(*shape, seed=seed), (0.5 * draw(*shape, seed=seed + 1)).exp()


def joint_kl(mean, covariance, prior_mean, prior_covariance):
    """KL divergence between two normal distributions with any covariance."""
    precision, distance = np.linalg.inv(prior_covariance), mean - prior_mean
    log_ratio = np.linalg.slogdet(prior_covariance)[1] - np.linalg.slogdet(covariance)[1]
    return 0.5 * (np.trace(precision @ covariance) + distance @ precision @ distance - len(mean) + log_ratio)


def autoregressive_covariance(tau, innovation_variance, n_bins):
    alpha = np.exp(-1 / tau)
    lags = np.abs(np.subtract.outer(np.arange(n_bins), np.arange(n_bins)))
    return innovation_variance / (1 - alpha**2) * alpha**lags


def make_autoregressive(taus, variances):
    prior = make(len(taus), kind="autoregressive")
    prior.load_state_dict({"log_tau": torch.tensor(np.log(taus)), "log_variance": torch.tensor(np.log(variances))})
    return prior


def test_normal_kl_is_the_closed_form_summed_over_dimensions_alone():
    prior, (mean, std) = make(4, kind="normal", variance=0.3), posterior(5, 7, 4)
    prior.load_state_dict({"mean": draw(4, seed=9)})
    with torch.no_grad():
        found = prior.kl(mean, std).numpy()
    assert found.shape == (5, 7)
    for trial, t in np.ndindex(5, 7):
        expected = joint_kl(
            mean[trial, t].numpy(), np.diag(std[trial, t].numpy() ** 2), draw(4, seed=9).numpy(), 0.3 * np.eye(4)
        )
        assert found[trial, t] == pytest.approx(expected, rel=1e-10)


def test_a_posterior_like_its_prior_costs_nothing():
    prior = make(3, kind="normal", variance=0.25)
    with torch.no_grad():
        assert prior.kl(torch.zeros(2, 3).double(), torch.full((2, 3), 0.5).double()).abs().max() < 1e-14
    white = make(1, kind="autoregressive", tau=1e-3, innovation_variance=0.25)  # alpha is 0: a normal prior
    with torch.no_grad():
        assert white.kl(torch.zeros(2, 6, 1).double(), torch.full((2, 6, 1), 0.5).double()).abs().max() < 1e-14


def test_a_new_prior_has_the_settings_values():
    mean, std = posterior(5, 2)
    with torch.no_grad():
        normal = make(2, **PRIORS["normal"]).kl(mean, std)
        autoregressive = make(2, **PRIORS["autoregressive"]).kl(mean, std)
        student = make(2, **PRIORS["student_t"]).kl(mean[:1], std[:1])
    expected = joint_kl(mean.flatten().numpy(), np.diag(std.flatten().numpy() ** 2), 0, 0.4 * np.eye(10))
    assert normal.sum().item() == pytest.approx(expected, rel=1e-10)
    covariance = autoregressive_covariance(3.0, 0.2, 5)
    expected = sum(
        joint_kl(m, np.diag(s**2), 0, covariance) for m, s in zip(mean.T.numpy(), std.T.numpy(), strict=True)
    )
    assert autoregressive.sum().item() == pytest.approx(expected, rel=1e-6)
    expected = sum(student_t_kl(m, s, -0.5, 0.7, 4.0) for m, s in zip(mean[0].tolist(), std[0].tolist(), strict=True))
    assert student.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n_bins", [1, 2, 9])
def test_autoregressive_kl_without_a_sample_is_that_of_the_joint_distribution(n_bins):
    taus, variances = [0.4, 5.0, 60.0], [0.3, 0.1, 0.02]
    prior, (mean, std) = make_autoregressive(taus, variances), posterior(4, n_bins, 3)
    with torch.no_grad():
        found = prior.kl(mean, std)
    assert found.shape == (4, n_bins)
    for trial in range(4):
        expected = sum(
            joint_kl(
                mean[trial, :, d].numpy(),
                np.diag(std[trial, :, d].numpy() ** 2),
                0,
                autoregressive_covariance(taus[d], variances[d], n_bins),
            )
            for d in range(3)
        )
        assert found[trial].sum().item() == pytest.approx(expected, rel=1e-9)


def test_autoregressive_kl_of_samples_averages_to_that_of_the_joint_distribution():
    prior, (mean, std), n_samples = make_autoregressive([4.0], [0.1]), posterior(3, 1), 1_000_000
    sample = mean + std * draw(n_samples, 3, 1, seed=5)
    with torch.no_grad():
        found = prior.kl(mean.expand_as(sample), std.expand_as(sample), sample).sum(1).numpy()
    expected = joint_kl(mean[:, 0].numpy(), np.diag(std[:, 0].numpy() ** 2), 0, autoregressive_covariance(4.0, 0.1, 3))
    error = found.std() / np.sqrt(n_samples)
    assert error < 0.01 * expected
    assert found.mean() == pytest.approx(expected, abs=4 * error)


def test_autoregressive_kl_is_exact_where_the_posterior_depends_on_the_past_that_was_drawn():
    # u_t = gain u_{t-1} + offset_t + std_t noise_t, as a controller that sees its own inputs could infer it
    prior, n_bins, gain, n_samples = make_autoregressive([4.0], [0.1]), 4, 0.6, 1_000_000
    (offset, std), noise = posterior(n_bins), draw(n_samples, n_bins, seed=5)
    means, samples = [], []
    for t in range(n_bins):
        means.append(offset[t] + (gain * samples[-1] if t else torch.zeros(n_samples).double()))
        samples.append(means[-1] + std[t] * noise[:, t])
    mean, sample = torch.stack(means, 1)[..., None], torch.stack(samples, 1)[..., None]
    with torch.no_grad():
        found = prior.kl(mean, std[:, None].expand_as(mean), sample).sum(1).numpy()
    spread = np.linalg.inv(np.eye(n_bins) - gain * np.eye(n_bins, k=-1))
    expected = joint_kl(
        spread @ offset.numpy(),
        spread @ np.diag(std.numpy() ** 2) @ spread.T,
        0,
        autoregressive_covariance(4.0, 0.1, n_bins),
    )
    error = found.std() / np.sqrt(n_samples)
    assert error < 0.01 * expected
    assert found.mean() == pytest.approx(expected, abs=4 * error)


def student_t_kl(mean, std, location, scale, freedom):
    """By adaptive quadrature over the posterior, cut into pieces where the prior bends."""

    def integrand(x):
        return norm.pdf(x, mean, std) * (norm.logpdf(x, mean, std) - student.logpdf(x, freedom, location, scale))

    bends = location + scale * np.array([-8, -1, 0, 1, 8])
    edges = np.unique(np.clip([*bends, mean - 12 * std, mean, mean + 12 * std], mean - 12 * std, mean + 12 * std))
    return sum(quad(integrand, *pair, epsabs=1e-11, limit=200)[0] for pair in pairwise(edges))


# 64 nodes resolve a prior down to a third of the posterior's width; beyond, its peak falls between the nodes.
@pytest.mark.parametrize(
    ("mean", "std", "location", "scale", "freedom", "tolerance"),
    [
        (0.0, 1.0, 0.0, 1.0, 5.0, 1e-6),
        (1.5, 0.2, 0.3, 2.0, 1.0, 1e-6),
        (-2.0, 0.01, 1.0, 0.3, 3.0, 1e-6),
        (8.0, 0.5, 0.0, 1.0, 30.0, 1e-6),
        (0.4, 1.5, -0.6, 0.5, 2.0, 2e-3),
        (0.3, 3.0, -0.1, 0.3, 5.0, 0.1),
        (1.0, 20.0, 0.0, 0.5, 5.0, 0.5),
    ],
)
def test_student_t_kl_equals_quadrature_and_monte_carlo(mean, std, location, scale, freedom, tolerance):
    prior = make(1, kind="student_t", location=location, scale=scale, degrees_of_freedom=freedom)
    with torch.no_grad():  # a new prior holds single-precision settings
        found = prior.kl(torch.tensor([[mean]]).double(), torch.tensor([[std]]).double()).item()
    expected = student_t_kl(mean, std, location, scale, freedom)
    assert found == pytest.approx(expected, rel=1e-6, abs=tolerance)
    sample = np.random.default_rng(0).normal(mean, std, 1_000_000)
    terms = norm.logpdf(sample, mean, std) - student.logpdf(sample, freedom, location, scale)
    assert found == pytest.approx(terms.mean(), abs=4 * terms.std() / 1000 + tolerance)


def test_student_t_kl_is_summed_over_dimensions_alone():
    mean, std = posterior(2, 3, 2)
    prior = make(2, **PRIORS["student_t"])
    prior.load_state_dict({"location": torch.tensor([0.5, -1.0]), "log_scale": torch.tensor([0.0, 1.0])})
    with torch.no_grad():
        found = prior.kl(mean, std)
    assert found.shape == (2, 3)
    for index in np.ndindex(2, 3):
        expected = sum(
            student_t_kl(mean[*index, d].item(), std[*index, d].item(), (0.5, -1.0)[d], (1.0, np.e)[d], 4.0)
            for d in range(2)
        )
        assert found[index].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_location_of_a_student_t_prior_is_where_a_posterior_costs_least(scale):
    prior = make(1, kind="student_t", location=2.0, scale=scale)
    means = torch.linspace(-4, 8, 121).double()[:, None]
    with torch.no_grad():
        cost = prior.kl(means, torch.full_like(means, 0.3))
    assert means[cost.argmin()].item() == pytest.approx(2.0, abs=1e-6)
    assert cost[0].item() == pytest.approx(cost[-1].item(), rel=1e-9)  # 6 below and 6 above


@pytest.mark.parametrize("with_sample", [False, True])
@pytest.mark.parametrize("kind", PRIORS)
def test_gradients_equal_finite_differences(kind, with_sample):
    prior, (mean, std) = make(2, **PRIORS[kind]), posterior(2, 4, 2)
    names, weights = zip(*((name, value.clone()) for name, value in prior.named_parameters()), strict=True)
    sample = mean + std * draw(2, 4, 2, seed=7) if with_sample else None

    def kl(mean, std, *weights):
        given = () if sample is None else (sample,)
        return torch.func.functional_call(prior, dict(zip(names, weights, strict=True)), (mean, std, *given))

    prior.forward = prior.kl
    leaves = [value.detach().requires_grad_() for value in (mean, std, *weights)]
    assert torch.autograd.gradcheck(kl, leaves)


def test_gradients_reach_an_autoregressive_priors_past():
    prior, (mean, std) = make(1, **PRIORS["autoregressive"]), posterior(1, 3, 1)
    sample = draw(1, 3, 1, seed=7).requires_grad_()
    assert torch.autograd.gradcheck(lambda drawn: prior.kl(mean, std, drawn), sample)
    (gradient,) = torch.autograd.grad(prior.kl(mean, std, sample).sum(), sample)
    assert gradient[0, :2].all()
    assert gradient[0, 2] == 0  # its own posterior is all that counts in the last bin


def test_no_prior_costs_nothing_and_draws_nothing():
    prior, (mean, std) = make(3, kind="none"), posterior(2, 5, 3)
    assert torch.equal(prior.kl(mean, std), torch.zeros(2, 5).double())
    assert not prior.variational
    assert not list(prior.parameters())
    assert all(make(3, **settings).variational for settings in PRIORS.values())


def test_what_is_trained_of_a_prior():
    names = {kind: [name for name, _ in make(2, **settings).named_parameters()] for kind, settings in PRIORS.items()}
    assert names == {
        "normal": ["mean"],
        "autoregressive": ["log_tau", "log_variance"],
        "student_t": ["location", "log_scale"],
    }
