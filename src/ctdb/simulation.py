"""Spikes from a trained network: embed its states in neurons, turn them into rates, draw counts.

The pipeline is that of the computation-through-dynamics benchmark (CtDB): each neuron reads one hidden unit, which is
standardised, divided by `rate_scale`, rectified to a rate per bin, and observed through a count distribution. Its
defects are repaired; ``compatibility: ctd`` brings the two back that change published numbers.

Repairs
-------
- Standardisation is per unit. CtDB used one mean and one deviation for all units together, which leaves many neurons
  nearly constant and a few very hot. (`ctd` restores it.)
- Counts of dispersion below 1 have the exact mean and, wherever any count distribution can, the exact Fano factor.
  CtDB drew Binomial(int(rate / d), d), of a mean up to d too low and a Fano factor of 1 - d. (`ctd` restores it.)
- The states are those saved when the network ran, never simulated again with other noise, and the external inputs are
  those that the network saw in that very bin (CtDB's closed-loop inputs came one bin late, its trimmed trials lost one
  bin too many).
- Every draw is seeded; CtDB's Poisson counts came from NumPy's unseeded global state.
- Trials are split three ways, so that what selects a model is not what reports on it.
- Units without variance cannot be standardised; they get no neuron.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, model_validator

from ctdb.datasets import SPLITS, SpikeDataset, Split
from ctdb.datasets.kind import DATASETS, DatasetKind, DatasetSettings, Source
from ctdb.errors import DatasetError
from ctdb.files import read_hdf5
from ctdb.seeds import numpy_generator
from ctdb.settings import Count, Positive, Seed

SIGMOID_MAXIMUM = 2.0
HIGHEST_RATE = 1e6
"""Spikes per bin that no neuron has: counts beyond it have no exact float32."""


class SimulationSettings(DatasetSettings):
    """Settings of a dataset of kind `simulated`."""

    kind: Literal["simulated"]
    network: str
    network_seed: Seed = 0
    n_heldin: Count = 50
    n_heldout: int = Field(10, ge=0)
    rate_scale: Positive = 2.0
    rectification: Literal["exp", "sigmoid", "softplus"] = "exp"
    dispersion: Positive = 1.0
    valid_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.1, gt=0, lt=1)
    compatibility: Literal["none", "ctd"] = "none"
    seed: Seed = 0

    @model_validator(mode="after")
    def _some_trials_left(self) -> "SimulationSettings":
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction and test_fraction must leave trials for train: their sum must be below 1")
        return self


@DATASETS.register("simulated")
class Simulated(DatasetKind):
    """Spikes of a task-trained network."""

    Settings = SimulationSettings

    @staticmethod
    def sources(settings: SimulationSettings) -> list[Source]:
        """The network's activity."""
        return [("activity", settings.network, settings.network_seed)]

    @staticmethod
    def prepare(settings: SimulationSettings, files: Sequence[Path | str]) -> SpikeDataset:
        """As :func:`simulate`."""
        return simulate(files[0], settings)


def simulate(activity: Path | str, settings: SimulationSettings) -> SpikeDataset:
    """Draw a dataset from the saved activity of a network.

    Parameters
    ----------
    activity
        ``activity.h5`` of a trained network.
    settings
        How to embed, rectify, observe and split.

    Returns
    -------
    Dataset with the spikes, the true rates, and the very states and inputs behind them.

    Raises
    ------
    DatasetError
        If no unit varies, a rate is beyond reason, or a split would be empty.
    """
    recorded, facts = read_hdf5(activity)
    states = recorded["states"].astype(np.float64)
    n_neurons = settings.n_heldin + settings.n_heldout
    units = embedding(states, n_neurons, settings.seed)
    drive = standardise(states, settings.compatibility)[:, :, units] / settings.rate_scale
    truth = rectify(drive, settings.rectification)
    if not truth.max() <= HIGHEST_RATE:
        raise DatasetError(
            f"rates reach {truth.max():.3g} spikes per bin, beyond {HIGHEST_RATE:g}; raise `rate_scale`, now "
            f"{settings.rate_scale:g}"
        )
    draw = ctd_counts if settings.compatibility == "ctd" else counts
    spikes = draw(truth, settings.dispersion, numpy_generator("spike counts", settings.seed)).astype(np.float32)
    whole = Split(
        encod_data=spikes[:, :, : settings.n_heldin],
        recon_data=spikes,
        ext_input=recorded["inputs"],
        truth=truth.astype(np.float32),
        latents=recorded["states"],
        inputs_true=recorded["inputs_true"],
        condition=recorded.get("condition"),
        trial=np.arange(len(spikes)),
    )
    return SpikeDataset(
        splits=_split(whole, settings),
        bin_s=float(facts["bin_s"]),
        names={
            "neurons": [f"unit {unit}" for unit in units],
            "inputs": [str(name) for name in facts["input_names"]],
        },
        provenance=settings.model_dump(),
    )


def embedding(states: Float[np.ndarray, "trials bins units"], n_neurons: int, seed: int) -> Int[np.ndarray, " neurons"]:
    """Unit that each neuron reads: as many random permutations of the varying units as it takes, one after another.

    Raises
    ------
    DatasetError
        If no unit varies.
    """
    deviation = states.std((0, 1))
    varying = np.flatnonzero(deviation > 1e-6 * max(deviation.max(), np.finfo(float).tiny))
    if len(varying) == 0:
        raise DatasetError("the network's states never vary, so no spikes can carry them; train it longer or reseed it")
    rng = numpy_generator("embedding", seed)
    n_permutations = -(-n_neurons // len(varying))
    return np.concatenate([rng.permutation(varying) for _ in range(n_permutations)])[:n_neurons]


def standardise(states: Float[np.ndarray, "trials bins units"], compatibility: str) -> Float[np.ndarray, "..."]:
    """Zero mean and unit deviation over trials and bins: per unit, or over all units together (`ctd`)."""
    axes = (0, 1, 2) if compatibility == "ctd" else (0, 1)
    deviation = states.std(axes, keepdims=True)
    return (states - states.mean(axes, keepdims=True)) / np.where(deviation > 0, deviation, 1)


def rectify(drive: Float[np.ndarray, "trials bins neurons"], kind: str) -> Float[np.ndarray, "trials bins neurons"]:
    """Rates per bin from standardised drive.

    `exp`; `softplus`; or `sigmoid` with a maximum of 2 and slopes from 10^0.2 to 10 across neurons.
    """
    if kind == "exp":
        return np.exp(drive)
    if kind == "softplus":
        return np.logaddexp(0, drive)
    slopes = np.logspace(0.2, 1, drive.shape[2])
    return SIGMOID_MAXIMUM / (1 + np.exp(-slopes * drive))


def counts(
    rates: Float[np.ndarray, "*shape"], dispersion: float, rng: np.random.Generator
) -> Int[np.ndarray, "*shape"]:
    r"""Draw counts with mean `rates` and Fano factor (variance over mean) `dispersion`.

    Poisson for 1. Above 1, the negative binomial with :math:`r = \lambda / (d - 1)` successes of probability
    :math:`1 / d`. Below 1, a mixture of two counts of the same mean, with shares that make the variance exactly
    :math:`d \lambda`: binomials with the two whole numbers of trials around :math:`\lambda / (1 - d)`; where the lower
    one is too few for the spikes, the two whole numbers around :math:`\lambda` take its place. No count varies less
    than those, so they are the limit for :math:`d \to 0`; a mean :math:`\lambda < 1` cannot have a Fano factor below
    :math:`1 - \lambda`.

    Parameters
    ----------
    rates
        Expected spikes per bin, at least 0.
    dispersion
        Fano factor, above 0.
    rng
        Source of the draws.
    """
    if dispersion == 1:
        return rng.poisson(rates)
    if dispersion > 1:
        return rng.poisson(rng.gamma(rates / (dispersion - 1), dispersion - 1))
    ideal = rates / (1 - dispersion)
    upper, lower = np.maximum(np.ceil(ideal), 1), np.floor(ideal)
    whole, rest = np.floor(rates), rates - np.floor(rates)
    narrowest = lower < np.maximum(rates, 1)
    wide = rates * (1 - rates / upper)
    narrow = np.where(narrowest, rest * (1 - rest), rates * (1 - rates / np.maximum(lower, 1)))
    # Share w of the narrow count with w * narrow + (1 - w) * wide = dispersion * rates; 0 where the two are the same.
    differ = wide > narrow
    share = np.where(differ, (wide - dispersion * rates) / np.where(differ, wide - narrow, 1), 0)
    is_narrow = rng.random(rates.shape) < share
    trials = np.where(is_narrow & ~narrowest, lower, upper)
    binomial = rng.binomial(trials.astype(np.int64), rates / trials)
    return np.where(is_narrow & narrowest, whole.astype(np.int64) + (rng.random(rates.shape) < rest), binomial)


def ctd_counts(
    rates: Float[np.ndarray, "*shape"], dispersion: float, rng: np.random.Generator
) -> Int[np.ndarray, "*shape"]:
    """Counts as CtDB draws them: below dispersion 1, Binomial(int(rate / d), d); otherwise as :func:`counts`."""
    if dispersion >= 1:
        return counts(rates, dispersion, rng)
    return rng.binomial((rates / dispersion).astype(np.int64), dispersion)


def _split(whole: Split, settings: SimulationSettings) -> Mapping[str, Any]:
    order = numpy_generator("trial split", settings.seed).permutation(whole.n_trials)
    n_valid = round(settings.valid_fraction * whole.n_trials)
    n_test = round(settings.test_fraction * whole.n_trials)
    sizes = {"train": whole.n_trials - n_valid - n_test, "valid": n_valid, "test": n_test}
    if min(sizes.values()) < 1:
        raise DatasetError(
            f"{whole.n_trials} simulated trials split into {sizes}: no split may be empty. "
            "Simulate more trials, or raise `valid_fraction` and `test_fraction`"
        )
    ends = np.cumsum([sizes[name] for name in SPLITS])
    parts = np.split(order, ends[:-1])
    return {name: whole.take(np.sort(part)) for name, part in zip(SPLITS, parts, strict=True)}
