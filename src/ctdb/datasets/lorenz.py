"""Spikes of the Lorenz system: the classic test of LFADS, with everything known behind the spikes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator

from ctdb.datasets.dataset import SPLITS, SpikeDataset, Split
from ctdb.datasets.kind import DATASETS, DatasetKind, DatasetSettings
from ctdb.seeds import numpy_generator
from ctdb.settings import Count, Fraction, NonNegative, Positive, Seed

SIGMA, RHO, BETA = 10.0, 28.0, 8 / 3
SUBSTEPS = 4
MEAN, DEVIATION = np.array([0.0, 0.0, 23.5]), np.array([7.9, 9.0, 8.6])
"""Centre and deviation of each variable on the attractor, by which states are standardised."""


class LorenzSettings(DatasetSettings):
    """Settings of a dataset of kind `lorenz`; the defaults have the shape of the canonical file, and a test split."""

    kind: Literal["lorenz"]
    n_conditions: Count = 20
    n_trials_per_condition: int = Field(50, ge=3)
    n_bins: Count = 100
    bin_s: Positive = 0.01
    time_per_bin: Positive = 0.02
    n_heldin: Count = 60
    n_heldout: int = Field(0, ge=0)
    base_rate_hz: Positive = 1.0
    pulse_probability: Fraction = 0.0
    pulse_size: NonNegative = 1.0
    pulse_bins: Count = 1
    valid_fraction: float = Field(0.16, gt=0, lt=1)
    test_fraction: float = Field(0.2, gt=0, lt=1)
    seed: Seed = 0

    @model_validator(mode="after")
    def _some_trials_left(self) -> "LorenzSettings":
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction and test_fraction must leave trials for train: their sum must be below 1")
        return self


@DATASETS.register("lorenz")
class Lorenz(DatasetKind):
    r"""Standardised Lorenz states z, log-linear rates, Poisson counts.

    :math:`\dot x = \sigma (y - x)`, :math:`\dot y = x (\rho - z) - y`, :math:`\dot z = x y - \beta z` with
    :math:`\sigma = 10, \rho = 28, \beta = 8/3`, by fourth-order Runge-Kutta; rates :math:`r_0 e^{W z}` with W uniform
    on [-1, 1]. Trials of a condition begin at the same point of the attractor. With `pulse_probability`, pulses at
    random bins push each state variable by `pulse_size` deviations, up or down, spread over `pulse_bins`: these are
    the known inputs, different in every trial, that a model must infer.

    References
    ----------
    Lorenz (1963); Pandarinath et al. (2018), "Lorenz system".
    """

    Settings = LorenzSettings

    @staticmethod
    def prepare(settings: LorenzSettings, files: Sequence[Path | str] = ()) -> SpikeDataset:
        """Draw the dataset; every draw comes from the seed."""
        seed, per_condition = settings.seed, settings.n_trials_per_condition
        starts = _points_on_attractor(settings.n_conditions, numpy_generator("lorenz starts", seed))
        condition = np.repeat(np.arange(settings.n_conditions), per_condition)
        pulses = _pulses(settings, len(condition), numpy_generator("lorenz pulses", seed))
        states = integrate(starts[condition], settings.n_bins, settings.time_per_bin, pulses * DEVIATION)
        latents = (states - MEAN) / DEVIATION
        n_neurons = settings.n_heldin + settings.n_heldout
        readout = numpy_generator("lorenz readout", seed).uniform(-1, 1, (3, n_neurons))
        truth = settings.base_rate_hz * settings.bin_s * np.exp(latents @ readout)
        counts = numpy_generator("lorenz spikes", seed).poisson(truth).astype(np.float32)
        whole = Split(
            encod_data=counts[:, :, : settings.n_heldin],
            recon_data=counts,
            truth=truth.astype(np.float32),
            latents=latents.astype(np.float32),
            inputs_true=pulses.astype(np.float32) if settings.pulse_probability else None,
            condition=condition,
            trial=np.arange(len(condition)),
        )
        n_valid, n_test = (
            max(1, round(share * per_condition)) for share in (settings.valid_fraction, settings.test_fraction)
        )
        rng = numpy_generator("lorenz split", seed)
        place = np.concatenate([rng.permutation(per_condition) for _ in range(settings.n_conditions)])
        member = {"test": place < n_test, "valid": (place >= n_test) & (place < n_test + n_valid)}
        member["train"] = ~(member["test"] | member["valid"])
        names = {"neurons": [f"neuron {i}" for i in range(n_neurons)]}
        if settings.pulse_probability:
            names["inputs_true"] = ["x", "y", "z"]
        splits = {split: whole.take(np.flatnonzero(member[split])) for split in SPLITS}
        return SpikeDataset(splits, settings.bin_s, names, settings.model_dump())


def integrate(
    start: Float[np.ndarray, "trials 3"],
    n_bins: int,
    time_per_bin: float,
    pulses: Float[np.ndarray, "trials bins 3"],
) -> Float[np.ndarray, "trials bins 3"]:
    """States of the Lorenz system at the start of each bin, pushed by `pulses` as bins begin."""
    state, states = start.astype(np.float64), []
    step = time_per_bin / SUBSTEPS
    for t in range(n_bins):
        state = state + pulses[:, t]
        states.append(state)
        for _ in range(SUBSTEPS):
            k1 = _flow(state)
            k2 = _flow(state + step / 2 * k1)
            k3 = _flow(state + step / 2 * k2)
            k4 = _flow(state + step * k3)
            state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return np.stack(states, 1)


def _flow(state: np.ndarray) -> np.ndarray:
    x, y, z = state.T
    return np.stack([SIGMA * (y - x), x * (RHO - z) - y, x * y - BETA * z], 1)


def _points_on_attractor(n_points: int, rng: np.random.Generator) -> np.ndarray:
    n_bins = 1000
    start = MEAN + DEVIATION * rng.normal(size=(n_points, 3))
    return integrate(start, n_bins, 0.02, np.zeros((n_points, n_bins, 3)))[:, -1]


def _pulses(settings: LorenzSettings, n_trials: int, rng: np.random.Generator) -> np.ndarray:
    shape = (n_trials, settings.n_bins, 3)
    onset = (rng.random(shape) < settings.pulse_probability) * rng.choice([-1.0, 1.0], size=shape)
    spread = np.zeros(shape)
    for lag in range(min(settings.pulse_bins, settings.n_bins)):
        spread[:, lag:] += onset[:, : settings.n_bins - lag] / settings.pulse_bins
    return settings.pulse_size * spread
