"""Likelihood of spikes under rates, against a null model."""

import math

import numpy as np

from ctdb.datasets import Split
from ctdb.errors import MetricError
from ctdb.metrics.case import METRICS, Case, NotApplicableError
from ctdb.metrics.trial_sums import TrialSums, masked, trials_of

RATE_FLOOR = 1e-9
"""Smallest rate, in spikes per bin, as in the Neural Latents Benchmark: an unexpected spike stays finite."""


def log_likelihood_terms(rates: np.ndarray, spikes: np.ndarray) -> np.ndarray:
    """Poisson log-likelihood without its constant, per entry: n log(rate) - rate."""
    rates = np.maximum(rates, RATE_FLOOR)
    return spikes * np.log(rates) - rates


def check_rates(rates: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Raise MetricError for rates of no neurons and for negative ones, of `valid` (trials, bins) bins where given."""
    if np.size(rates) == 0:
        raise MetricError(
            f"rates of no neurons: shape {np.shape(rates)}. "
            "Hold out neurons (`n_heldout`) before asking for a held-out score"
        )
    negative = np.asarray(rates) < 0
    if (negative if valid is None else negative & valid[..., None]).any():
        raise MetricError("rates must be at least 0 spikes per bin; were log-rates given?")


def _without_missing(spikes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts with 0 in place of NaN, and 1 where NaN was."""
    missing = np.isnan(np.asarray(spikes, np.float64))
    return np.where(missing, 0, spikes), missing.astype(np.float64)


def _check_shapes(rates: np.ndarray, spikes: np.ndarray) -> None:
    if np.shape(rates) != np.shape(spikes):
        raise MetricError(f"rates {np.shape(rates)} and spikes {np.shape(spikes)} must have the same shape")


def bits_per_spike_sums(
    rates: np.ndarray, spikes: np.ndarray, null_rates: np.ndarray, n_bins: np.ndarray | None = None
) -> TrialSums:
    """Bits per spike as sums over trials; see :func:`bits_per_spike`. Counts that are NaN are missing and left out."""
    _check_shapes(rates, spikes)
    check_rates(null_rates)
    try:
        null = np.broadcast_to(np.asarray(null_rates, np.float64), np.shape(spikes))
    except ValueError:
        raise MetricError(
            f"null_rates {np.shape(null_rates)} do not broadcast against spikes {np.shape(spikes)}; "
            "give one rate per neuron"
        ) from None
    spikes, missing = _without_missing(spikes)
    rates, spikes, null, missing, valid = trials_of(rates, spikes, null, missing, n_bins=n_bins)
    check_rates(rates, valid)
    gain = log_likelihood_terms(rates, spikes) - log_likelihood_terms(null, spikes)
    gain = masked(np.where(missing, 0, gain), valid).sum((1, 2))
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
    trials_of(spikes, n_bins=n_bins)
    return bits_per_spike_sums(rates, spikes, null_rates, n_bins).value


def poisson_nll_sums(rates: np.ndarray, spikes: np.ndarray, n_bins: np.ndarray | None = None) -> TrialSums:
    """Poisson negative log-likelihood per bin and neuron as sums over trials; see :func:`poisson_nll`."""
    _check_shapes(rates, spikes)
    spikes, missing = _without_missing(spikes)
    rates, spikes, missing, valid = trials_of(rates, spikes, missing, n_bins=n_bins)
    check_rates(rates, valid)
    spikes = masked(spikes, valid)
    constant = np.array([math.lgamma(k + 1) for k in range(int(spikes.max(initial=0)) + 1)])
    nll = constant[spikes.astype(np.int64)] - log_likelihood_terms(rates, spikes)
    nll = masked(np.where(missing, 0, nll), valid).sum((1, 2))
    entries = masked(1 - missing, valid).sum((1, 2))
    return TrialSums(np.stack([nll, entries], axis=1), lambda sums: sums[..., 0] / sums[..., 1])


def poisson_nll(rates: np.ndarray, spikes: np.ndarray, n_bins: np.ndarray | None = None) -> float:
    """Mean Poisson negative log-likelihood per bin and neuron, in nats, with its constant log(n!).

    Parameters and errors are those of :func:`bits_per_spike`.
    """
    trials_of(spikes, n_bins=n_bins)
    return poisson_nll_sums(rates, spikes, n_bins).value


@METRICS.register("poisson_nll")
def _poisson_nll(case: Case) -> TrialSums:
    _check_counts(case)
    return poisson_nll_sums(case.inferred("rates"), case.trials.recon_data, case.trials.n_bins)


@METRICS.register("bits_per_spike_heldin")
def heldin_bits_per_spike(case: Case, rates: str = "rates") -> TrialSums:
    """Of held-in neurons, in the bins that the model saw; `rates` names what is scored."""
    return _bits_per_spike(case, slice(None, case.dataset.n_heldin), rates=rates)


@METRICS.register("bits_per_spike_heldout")
def _bits_per_spike_heldout(case: Case) -> TrialSums:
    if case.dataset.n_heldin == case.dataset.n_neurons:
        raise NotApplicableError("no neurons are held out", of_dataset=True)
    return _bits_per_spike(case, slice(case.dataset.n_heldin, None))


@METRICS.register("bits_per_spike_forward")
def _bits_per_spike_forward(case: Case) -> TrialSums:
    """Of held-in neurons, in the bins after those that the model saw."""
    if case.dataset.n_bins == case.dataset.n_recon_bins:
        raise NotApplicableError("no bins follow those that the model sees", of_dataset=True)
    return _bits_per_spike(case, slice(None, case.dataset.n_heldin), forward=True)


@METRICS.register("co_bps_ctd")
def _co_bps_ctd(case: Case) -> TrialSums:
    """CtDB's "co-bps": the neurons after the first `n_inputs` ones, mostly held-in; null is the scored split's mean."""
    _check_counts(case)
    neurons = slice(case.dataset.n_inputs, None)
    spikes = _observed(case.trials)[:, :, neurons]
    if spikes.shape[2] == 0:
        raise NotApplicableError("there are no more neurons than input channels")
    rates = case.inferred("rates")[:, :, neurons]
    return bits_per_spike_sums(rates, spikes, _mean_counts(spikes), case.trials.n_bins)


def _bits_per_spike(case: Case, neurons: slice, rates: str = "rates", forward: bool = False) -> TrialSums:
    """Bits per spike of some neurons, in the bins that the model saw or after them; null is their mean train count."""
    _check_counts(case)
    n_bins = case.dataset.n_bins
    bins = slice(n_bins, None) if forward else slice(None, n_bins)
    null = _mean_counts(_observed(case.train)[:, bins, neurons])
    spikes, lengths = _observed(case.trials)[:, bins, neurons], case.trials.n_bins
    if forward and lengths is not None:
        lengths = lengths - n_bins
    return bits_per_spike_sums(case.inferred(rates)[:, bins, neurons], spikes, null, lengths)


def _observed(trials: Split) -> np.ndarray:
    """Counts with NaN where they are padding or missing."""
    return np.where(trials.observed(), trials.recon_data, np.nan)


def _mean_counts(spikes: np.ndarray) -> np.ndarray:
    known = ~np.isnan(spikes)
    return np.where(known, spikes, 0).sum((0, 1), dtype=np.float64) / np.maximum(known.sum((0, 1)), 1)


def _check_counts(case: Case) -> None:
    if case.dataset.signal != "spikes":
        raise NotApplicableError("the dataset holds no spike counts", of_dataset=True)
