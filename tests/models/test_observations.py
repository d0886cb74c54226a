"""Observation models against scipy's distributions, and how one is added from outside."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import expit

from ctdb import models
from ctdb.errors import DatasetError
from ctdb.models.observations import OBSERVATIONS

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ["gamma", "gaussian", "poisson", "zero_inflated_gamma"]
SMALLEST = 0.3
N = 5

BERNOULLI = """
import torch
from ctdb.models.observations import OBSERVATIONS
from ctdb.models.observations.base import Observation, ObservationSettings


class BernoulliSettings(ObservationSettings):
    certainty: float = 1.0


@OBSERVATIONS.register("bernoulli")
class Bernoulli(Observation):
    Settings = BernoulliSettings
    n_parameters = 1

    def nll(self, parameters, data):
        return torch.nn.functional.softplus(parameters[..., 0, :]) - data * parameters[..., 0, :]

    def mean(self, parameters):
        return parameters[..., 0, :].sigmoid()

    def start(self, mean, variance):
        return (self.settings.certainty * mean).logit(1e-3)[None]
"""


def make(kind, **settings):
    if kind == "zero_inflated_gamma":
        settings = {"smallest_event": SMALLEST} | settings
    found = OBSERVATIONS[kind]
    made = found(found.Settings(kind=kind, **settings), N).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for log_scale in made.parameters():
            log_scale.uniform_(-0.7, 1.1, generator=generator)
    return made


def draw_parameters(observation, *axes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*axes, observation.n_parameters, N, generator=generator, dtype=torch.float64)


def distribution(observation, parameters):
    """The same in scipy: `mean`, `variance`, `logpdf`, and `draw`, from the documented meaning of the parameters."""
    x = np.moveaxis(parameters.numpy(), -2, 0)
    if isinstance(observation, OBSERVATIONS["poisson"]):
        frozen = stats.poisson(np.exp(x[0]))
        return SimpleNamespace(mean=frozen.mean(), variance=frozen.var(), logpdf=frozen.logpmf, draw=frozen.rvs)
    if isinstance(observation, OBSERVATIONS["gaussian"]):
        frozen = stats.norm(x[0], np.exp(x[1] / 2))
    elif isinstance(observation, OBSERVATIONS["gamma"]):
        frozen = stats.gamma(np.exp(x[0]), scale=np.exp(-x[1]))
    else:
        scale = observation.log_scale.exp().detach().numpy()
        size = stats.gamma(scale[0] * expit(x[0]), loc=SMALLEST, scale=1 / (scale[1] * expit(x[1])))
        q = expit(x[2])

        def logpdf(data):
            return np.where(data == 0, np.log(1 - q), np.log(q) + size.logpdf(np.where(data == 0, 1, data)))

        def draw(random_state):
            generator = np.random.default_rng(random_state)
            return size.rvs(random_state=generator) * (generator.random(q.shape) < q)

        variance = q * size.var() + q * (1 - q) * size.mean() ** 2
        return SimpleNamespace(mean=q * size.mean(), variance=variance, logpdf=logpdf, draw=draw)
    return SimpleNamespace(mean=frozen.mean(), variance=frozen.var(), logpdf=frozen.logpdf, draw=frozen.rvs)


@pytest.mark.parametrize("kind", KINDS)
def test_nll_is_minus_the_log_density_with_its_constants(kind):
    observation = make(kind)
    parameters = draw_parameters(observation, 40, 7)
    reference = distribution(observation, parameters)
    data = np.asarray(reference.draw(random_state=1), dtype=float)
    found = observation.nll(parameters, torch.from_numpy(data)).detach()
    assert found.shape == (40, 7, N)
    assert len(np.unique(data)) > 5
    np.testing.assert_allclose(found.numpy(), -reference.logpdf(data), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_mean_is_the_expected_value(kind):
    observation = make(kind)
    parameters = draw_parameters(observation, 6, 7)
    np.testing.assert_allclose(
        observation.mean(parameters).detach().numpy(), distribution(observation, parameters).mean, rtol=1e-12
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_finite_differences(kind):
    observation = make(kind)
    parameters = draw_parameters(observation, 4)
    data = torch.from_numpy(np.asarray(distribution(observation, parameters).draw(random_state=1), dtype=float))
    scales = list(observation.parameters())
    leaves = [parameters.requires_grad_(), *scales]
    assert torch.autograd.gradcheck(lambda given, *_: observation.nll(given, data), leaves)
    assert torch.autograd.gradcheck(lambda given, *_: observation.mean(given), leaves)


@pytest.mark.parametrize(("kind", "of_variance"), [("poisson", False), ("gaussian", True), ("gamma", True)])
def test_a_model_starts_at_the_wanted_moments(kind, of_variance):
    observation = make(kind)
    mean = torch.tensor([0.02, 0.4, 1.0, 3.0, 25.0]).double()
    variance = torch.tensor([0.001, 0.5, 3.0, 0.2, 100.0]).double()
    start = observation.start(mean, variance)
    assert start.shape == (observation.n_parameters, N)
    reference = distribution(observation, start)
    np.testing.assert_allclose(reference.mean, mean.numpy(), rtol=1e-9)
    if of_variance:
        np.testing.assert_allclose(reference.variance, variance.numpy(), rtol=1e-9)


def test_zero_inflated_gamma_starts_in_the_middle_of_what_its_parameters_can_say():
    observation = make("zero_inflated_gamma")
    reference = distribution(observation, observation.start(torch.ones(N).double(), torch.ones(N).double()))
    scale = observation.log_scale.exp().detach().numpy()
    np.testing.assert_allclose(reference.mean, 0.5 * (scale[0] / scale[1] + SMALLEST), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_neuron_that_never_changes_starts_at_finite_parameters(kind):
    observation = make(kind)
    start = observation.start(torch.zeros(N).double(), torch.zeros(N).double())
    assert start.isfinite().all()
    data = torch.full((N,), observation.placeholder).double()
    assert observation.nll(start, data).isfinite().all()
    assert (observation.mean(start) < 4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_placeholder_is_a_possible_value_with_finite_gradient(kind):
    observation = make(kind)
    data = torch.full((3, N), observation.placeholder).double()
    observation.check(data, "train_recon_data")
    parameters = draw_parameters(observation, 3).requires_grad_()
    observation.nll(parameters, data).sum().backward()
    assert parameters.grad.isfinite().all()
    assert np.isfinite(distribution(observation, parameters.detach()).logpdf(data.numpy())).all()


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("poisson", 0.5, r"no spike count, 0.5, of neuron 3; .*choose `gaussian`"),
        ("poisson", -1.0, r"no spike count, -1, of neuron 3"),
        ("gamma", 0.0, r"no positive value, 0, of neuron 3; .*choose `zero_inflated_gamma`"),
        ("gamma", -2.0, r"no positive value, -2, of neuron 3"),
        ("zero_inflated_gamma", 0.3, r"neither 0 nor above `smallest_event`, 0.3, 0.3, of neuron 3; lower"),
        ("zero_inflated_gamma", -0.1, r"neither 0 nor above `smallest_event`, 0.3, -0.1, of neuron 3"),
    ],
)
def test_values_that_cannot_be_are_refused_by_place_and_neuron(kind, value, message):
    observation = make(kind)
    data = torch.ones(4, N).double()
    data[0, 1] = torch.nan  # missing, and never refused
    observation.check(data, "train_recon_data")
    data[2, 3] = value
    with pytest.raises(DatasetError, match=f"^train_recon_data: {message}"):
        observation.check(data, "train_recon_data")


def test_any_number_can_be_gaussian():
    make("gaussian").check(torch.tensor([[-3.5, 0.0, math.pi, 1e9, torch.nan]]).double(), "train_recon_data")


def test_the_penalty_draws_the_scales_of_a_zero_inflated_gamma_to_their_prior():
    observation = make("zero_inflated_gamma", scale_penalty=0.2, scale_prior=1.5)
    expected = 0.2 * ((observation.log_scale.exp().detach().numpy() - 1.5) ** 2).sum()
    assert observation.penalty().item() == pytest.approx(expected, rel=1e-12)
    assert make("zero_inflated_gamma").penalty().item() == 0
    for kind in ("gamma", "gaussian", "poisson"):
        assert make(kind).penalty().item() == 0


def test_the_scales_of_a_zero_inflated_gamma_start_where_the_settings_say():
    kind = OBSERVATIONS["zero_inflated_gamma"]
    made = kind(kind.Settings(kind="zero_inflated_gamma", initial_scale=2.5), N)
    assert torch.equal(made.log_scale.exp(), torch.full((2, N), 2.5))


def test_extreme_parameters_of_a_zero_inflated_gamma_stay_finite():
    observation = make("zero_inflated_gamma")
    data = torch.tensor([0.0, 0.5, 1.0, 0.0, 50.0]).double()
    for value in (-1000.0, 1000.0):
        parameters = torch.full((3, N), value).double().requires_grad_()
        loss = observation.nll(parameters, data)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert parameters.grad.isfinite().all()


@pytest.fixture
def bernoulli(tmp_path, monkeypatch):
    """A distribution that a plugin adds, as pip would leave it on the path."""
    (tmp_path / "plugin-1.0.dist-info").mkdir()
    (tmp_path / "plugin-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (tmp_path / "plugin-1.0.dist-info" / "entry_points.txt").write_text(
        "[ctdb.models.observations]\nbernoulli = bernoulli_of_test\n"
    )
    (tmp_path / "bernoulli_of_test.py").write_text(BERNOULLI)
    monkeypatch.syspath_prepend(tmp_path)
    known = vars(OBSERVATIONS).pop("modules", None)  # found once and kept
    yield
    vars(OBSERVATIONS).pop("modules", None)
    if known is not None:
        OBSERVATIONS.modules = known


def test_an_observation_model_is_added_by_registering_it(bernoulli, make_dataset):
    data = make_dataset(truth=False)
    for split in data.splits.values():
        for counts in (split.encod_data, split.recon_data):
            np.minimum(counts, 1, out=counts)
    small = {"ic_enc_dim": 3, "ic_dim": 2, "gen_dim": 4, "fac_dim": 2, "ci_enc_dim": 0, "con_dim": 0, "co_dim": 0}
    spec = {"kind": "lfads", "observation": {"kind": "bernoulli"}, **small}
    model = models.build(spec, data)
    assert model.settings.observation == {"kind": "bernoulli", "certainty": 1.0}
    assert model.settings.modules() == ["bernoulli_of_test"]
    inferred = model.infer(data["valid"])
    assert ((inferred["rates"] > 0) & (inferred["rates"] < 1)).all()
    rates = model.rates(torch.zeros(1, 4))[0].detach().numpy()
    np.testing.assert_allclose(rates, data["train"].recon_data.mean((0, 1)).clip(1e-3, 1 - 1e-3), rtol=1e-5)
    loss = model.eval().loss(model.tensors(data["valid"]), torch.Generator()).item()
    exact = models.build(spec | {"ic_prior": {"kind": "none"}}, data)
    p, y = exact.infer(data["valid"])["rates"].double().numpy(), data["valid"].recon_data
    assert loss == pytest.approx(-stats.bernoulli.logpmf(y, p).mean(), rel=1e-5)
