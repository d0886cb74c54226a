"""Cycle consistency without a linear readout: can any smooth function read the latents back from the rates?"""

import copy
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from ctdb.errors import MetricError
from ctdb.metrics.bits_per_spike import RATE_FLOOR, check_rates
from ctdb.metrics.case import METRICS, Case
from ctdb.metrics.r2 import check_channels, r2_sums
from ctdb.metrics.trial_sums import TrialSums, trials_of
from ctdb.recurrent import initialise
from ctdb.seeds import derive, numpy_generator

HIDDEN = (64, 64)
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-4
MAX_EPOCHS, PATIENCE, LEAST_GAIN = 1000, 50, 1e-5
MAX_SAMPLES = 10_000
"""Samples that train: more add little to a network of this size, and time to every pass."""
STOPPING_SHARE = 0.2
"""Share of the train trials that say when to stop; CtDToolkit stops by the trials that it scores."""


@dataclass(frozen=True)
class NonlinearCycle:
    """Scores of one decoder.

    Attributes
    ----------
    noise
        Noise added to the log-rates of the scored trials, in standard deviations of each neuron's log-rate.
    r2
        Variance-weighted R2 of the latents at each noise.
    n_epochs
        Passes of training until the best decoder.
    """

    noise: tuple[float, ...]
    r2: tuple[float, ...]
    n_epochs: int


def nonlinear_cycle_consistency(
    latents_train: np.ndarray,
    rates_train: np.ndarray,
    latents_eval: np.ndarray,
    rates_eval: np.ndarray,
    noise: tuple[float, ...] = (0.0,),
    n_bins_train: np.ndarray | None = None,
    n_bins_eval: np.ndarray | None = None,
    seed: int = 0,
) -> NonlinearCycle:
    """R2 of a fit's latents read back from its log-rates by a network with two hidden layers of 64 units.

    Latents that leave no trace in the rates cannot be read back, so extra dimensions lower the score; a curved readout
    does not, unlike in :func:`ctdb.metrics.cycle_consistency`. Noise lowers the score of latents whose trace is faint.

    Parameters
    ----------
    latents_train, rates_train, latents_eval, rates_eval
        Inferred latents and rates (not log-rates), (trials, bins, channels).
    noise
        Noise levels at which to score; the decoder is trained without noise.
    n_bins_train, n_bins_eval
        Valid bins of each trial.
    seed
        Seed of the weights, the stopping trials, the training samples and the noise.

    Raises
    ------
    MetricError
        If shapes disagree, values are not finite, rates are negative, latents do not vary, or there are fewer than two
        train trials.

    References
    ----------
    Versteeg et al., CtDToolkit, "non-linear cycle consistency": Adam at 1e-3, weight decay 1e-4, at most 1000 passes,
    patience 50.
    """
    sums, n_epochs = nonlinear_cycle_sums(
        latents_train, rates_train, latents_eval, rates_eval, noise, n_bins_train, n_bins_eval, seed
    )
    return NonlinearCycle(tuple(noise), tuple(score.value for score in sums), n_epochs)


def nonlinear_cycle_sums(
    latents_train: np.ndarray,
    rates_train: np.ndarray,
    latents_eval: np.ndarray,
    rates_eval: np.ndarray,
    noise: tuple[float, ...] = (0.0,),
    n_bins_train: np.ndarray | None = None,
    n_bins_eval: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[list[TrialSums], int]:
    """Scores at each noise level as sums over trials, and the passes; see :func:`nonlinear_cycle_consistency`."""
    latents, rates, valid = trials_of(latents_train, rates_train, n_bins=n_bins_train)
    latents_eval, rates_eval, valid_eval = trials_of(latents_eval, rates_eval, n_bins=n_bins_eval)
    check_rates(rates, valid)
    check_rates(rates_eval, valid_eval)
    check_channels(latents_eval, latents[0].T)
    check_channels(rates_eval, rates[0].T)
    if len(latents) < 2:
        raise MetricError("non-linear cycle consistency needs two train trials or more, one to say when to stop")
    rng = numpy_generator("nonlinear cycle", seed)
    stopping = np.zeros(len(latents), bool)
    stopping[rng.permutation(len(latents))[: max(1, round(STOPPING_SHARE * len(latents)))]] = True
    source, target = _Scaler.of(_log(rates[valid])), _Scaler.of(latents[valid])

    def samples(trials: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        kept = valid & trials[:, None]
        chosen = np.flatnonzero(kept.ravel())
        if len(chosen) > MAX_SAMPLES:
            chosen = np.sort(rng.choice(chosen, MAX_SAMPLES, replace=False))
        pairs = source(_log(rates)), target(latents)
        return tuple(torch.from_numpy(a.reshape(-1, a.shape[-1])[chosen]).to(torch.float32) for a in pairs)

    decoder, n_epochs = _trained(samples(~stopping), samples(stopping), derive("nonlinear cycle weights", seed))
    scores = []
    for level in noise:
        draw = numpy_generator("nonlinear cycle noise", seed).normal(size=rates_eval.shape)
        noisy = source(_log(np.where(valid_eval[..., None], rates_eval, 1.0))) + level * draw
        with torch.no_grad():
            decoded = decoder(torch.from_numpy(noisy).to(torch.float32)).to(torch.float64).numpy()
        scores.append(r2_sums(latents_eval, target.inverse(decoded), n_bins_eval))
    return scores, n_epochs


@METRICS.register("nonlinear_cycle_consistency")
def _nonlinear_cycle_consistency(case: Case) -> TrialSums:
    sums, _ = nonlinear_cycle_sums(
        case.inferred("latents", "train"),
        case.inferred("rates", "train"),
        case.inferred("latents"),
        case.inferred("rates"),
        n_bins_train=case.train.n_bins,
        n_bins_eval=case.trials.n_bins,
    )
    return sums[0]


@dataclass(frozen=True)
class _Scaler:
    mean: Float[np.ndarray, " channels"]
    deviation: Float[np.ndarray, " channels"]

    @classmethod
    def of(cls, samples: np.ndarray) -> "_Scaler":
        deviation = samples.std(0)
        return cls(samples.mean(0), np.where(deviation > 1e-8, deviation, 1.0))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) / self.deviation

    def inverse(self, values: np.ndarray) -> np.ndarray:
        return values * self.deviation + self.mean


def _log(rates: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(rates, RATE_FLOOR))


def _trained(
    train: tuple[torch.Tensor, torch.Tensor], stopping: tuple[torch.Tensor, torch.Tensor], seed: int
) -> tuple[nn.Module, int]:
    sizes = [train[0].shape[1], *HIDDEN]
    with torch.random.fork_rng(devices=[]):  # torch's own layers draw from global state when they are made
        hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        decoder = nn.Sequential(*hidden, nn.Linear(sizes[-1], train[1].shape[1]))
    initialise(decoder, torch.Generator().manual_seed(seed))
    optimiser = torch.optim.Adam(decoder.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best, lowest, n_epochs = copy.deepcopy(decoder.state_dict()), float("inf"), 0
    for epoch in range(1, MAX_EPOCHS + 1):
        optimiser.zero_grad()
        nn.functional.mse_loss(decoder(train[0]), train[1]).backward()
        optimiser.step()
        with torch.no_grad():
            loss = nn.functional.mse_loss(decoder(stopping[0]), stopping[1]).item()
        if loss < lowest - LEAST_GAIN:
            best, lowest, n_epochs = copy.deepcopy(decoder.state_dict()), loss, epoch
        elif epoch - n_epochs >= PATIENCE:
            break
    decoder.load_state_dict(best)
    return decoder, n_epochs
