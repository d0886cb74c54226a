"""Likelihood of spikes under rates, against a null model."""

import math

import numpy as np

from ctdb.errors import MetricError
from ctdb.metrics.case import METRICS, Case, NotApplicableError
from ctdb.metrics.trial_sums import TrialSums, masked, trials_of

RATE_FLOOR = 1e-9
"""Smallest rate, in spikes per bin, as in the Neural Latents Benchmark: an unexpected spike stays finite."""


def log_likelihood_terms(rates: np.ndarray, spikes: np.ndarray) -> np.ndarray:
    """Poisson log-likelihood without its constant, per entry: n log(rate) - rate."""
    rates = np.maximum(rates, RATE_FLOOR)
    return spikes * np.log(rates) - rates


def check_rates(rates: np.ndarray) -> None:
    """Raise MetricError for rates of no neurons and for negative ones."""
    if np.size(rates) == 0:
        raise MetricError(
            f"rates of no neurons: shape {np.shape(rates)}. "
            "Hold out neurons (`n_heldout`) before asking for a held-out score"
        )
    if (np.asarray(rates) < 0).any():
        raise MetricError("rates must be at least 0 spikes per bin; were log-rates given?")


def _check_rates_of_spikes(rates: np.ndarray, spikes: np.ndarray) -> None:
    check_rates(rates)
    if np.shape(rates) != np.shape(spikes):
        raise MetricError(f"rates {np.shape(rates)} and spikes {np.shape(spikes)} must have the same shape")


def bits_per_spike_sums(
    rates: np.ndarray, spikes: np.ndarray, null_rates: np.ndarray, n_bins: np.ndarray | None = None
) -> TrialSums:
    """Bits per spike as sums over trials; see :func:`bits_per_spike`."""
    _check_rates_of_spikes(rates, spikes)
    check_rates(null_rates)
    try:
        null = np.broadcast_to(np.asarray(null_rates, np.float64), np.shape(spikes))
    except ValueError:
        raise MetricError(
            f"null_rates {np.shape(null_rates)} do not broadcast against spikes {np.shape(spikes)}; "
            "give one rate per neuron"
        ) from None
    rates, spikes, null, valid = trials_of(rates, spikes, null, n_bins=n_bins)
    gain = masked(log_likelihood_terms(rates, spikes) - log_likelihood_terms(null, spikes), valid).sum((1, 2))
    n_spikes = masked(spikes, valid).sum((1, 2))

    def combine(sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], np.nan) / math.log(2)

    return TrialSums(np.stack([gain, n_spikes], axis=1), combine)


def bits_per_spike(
    rates: np.ndarray, spikes: np.ndarray, null_rates: np.ndarray, n_bins: np.ndarray | None = None
) -> float:
    r"""Poisson log-likelihood gained over a null model, in bits per spike.

    :math:`(\log L(rates) - \log L(null)) / (n_{spikes} \ln 2)`. Over held-out neurons this is co-smoothing.

    Parameters
    ----------
    rates
        Expected spikes per bin, (trials, bins, neurons) or (samples, neurons).
    spikes
        Counts of the same shape.
    null_rates
        Rates of the null model, broadcast against `spikes`: usually each neuron's mean count in the train trials.
    n_bins
        Valid bins of each trial.

    Returns
    -------
    0 for the null model itself; NaN if there is no spike.

    Raises
    ------
    MetricError
        If shapes differ, there are no neurons, rates are negative, or values are not finite.

    References
    ----------
    Pei et al. (2021), Neural Latents Benchmark, equation 1.
    """
    return bits_per_spike_sums(rates, spikes, null_rates, n_bins).value


def poisson_nll_sums(rates: np.ndarray, spikes: np.ndarray, n_bins: np.ndarray | None = None) -> TrialSums:
    """Poisson negative log-likelihood per bin and neuron as sums over trials; see :func:`poisson_nll`."""
    _check_rates_of_spikes(rates, spikes)
    rates, spikes, valid = trials_of(rates, spikes, n_bins=n_bins)
    spikes = masked(spikes, valid)
    constant = np.array([math.lgamma(k + 1) for k in range(int(spikes.max(initial=0)) + 1)])
    nll = masked(constant[spikes.astype(np.int64)] - log_likelihood_terms(rates, spikes), valid).sum((1, 2))
    entries = valid.sum(1) * float(spikes.shape[2])
    return TrialSums(np.stack([nll, entries], axis=1), lambda sums: sums[..., 0] / sums[..., 1])


def poisson_nll(rates: np.ndarray, spikes: np.ndarray, n_bins: np.ndarray | None = None) -> float:
    """Mean Poisson negative log-likelihood per bin and neuron, in nats, with its constant log(n!).

    Parameters and errors are those of :func:`bits_per_spike`.
    """
    return poisson_nll_sums(rates, spikes, n_bins).value


@METRICS.register("poisson_nll")
def _poisson_nll(case: Case) -> TrialSums:
    return poisson_nll_sums(case.inferred("rates"), case.trials.recon_data, case.trials.n_bins)


@METRICS.register("bits_per_spike_heldin")
def _bits_per_spike_heldin(case: Case) -> TrialSums:
    return _bits_per_spike(case, slice(None, case.dataset.n_heldin))


@METRICS.register("bits_per_spike_heldout")
def _bits_per_spike_heldout(case: Case) -> TrialSums:
    if case.dataset.n_heldin == case.dataset.n_neurons:
        raise NotApplicableError("no neurons are held out", of_dataset=True)
    return _bits_per_spike(case, slice(case.dataset.n_heldin, None))


@METRICS.register("co_bps_ctd")
def _co_bps_ctd(case: Case) -> TrialSums:
    """CtDB's "co-bps": the neurons after the first `n_inputs` ones, mostly held-in; null is the scored split's mean."""
    neurons = slice(case.dataset.n_inputs, None)
    spikes = case.trials.recon_data[:, :, neurons]
    if spikes.shape[2] == 0:
        raise NotApplicableError("there are no more neurons than input channels")
    null = _mean_counts(spikes, case.trials.n_bins)
    return bits_per_spike_sums(case.inferred("rates")[:, :, neurons], spikes, null, case.trials.n_bins)


def _bits_per_spike(case: Case, neurons: slice) -> TrialSums:
    """Bits per spike of some neurons in the bins that the model saw; null is their mean count in the train trials."""
    bins = slice(None, case.dataset.n_bins)
    null = _mean_counts(case.train.recon_data[:, bins, neurons], case.train.n_bins)
    spikes = case.trials.recon_data[:, bins, neurons]
    return bits_per_spike_sums(case.inferred("rates")[:, bins, neurons], spikes, null, case.trials.n_bins)


def _mean_counts(spikes: np.ndarray, n_bins: np.ndarray | None) -> np.ndarray:
    spikes, valid = trials_of(spikes, n_bins=n_bins)
    return spikes[valid].mean(0)
