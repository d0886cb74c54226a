"""Spikes from a trained network: embed its states in neurons, turn them into rates, draw counts.

The pipeline is that of the computation-through-dynamics benchmark (CtDB): each neuron reads one hidden unit, which is
standardised, divided by `rate_scale`, rectified to a rate per bin, and observed through a count distribution. Its
defects are repaired; ``compatibility: ctd`` brings the two back that change published numbers. In place of a unit, a
neuron may read a random non-linear function of all of them (``embedding: mlp``).

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
- Trials keep their own lengths: nothing of the padding enters a mean, and it holds no spikes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator

from ctdb.datasets import SPLITS, SpikeDataset, Split
from ctdb.datasets.kind import DATASETS, DatasetKind, DatasetSettings, Source
from ctdb.errors import DatasetError, nearest
from ctdb.files import read_hdf5
from ctdb.seeds import numpy_generator
from ctdb.settings import Count, NonNegative, Positive, Seed

SIGMOID_MAXIMUM = 2.0
MLP_UNITS, MLP_GAIN = 100, 2.0
"""Hidden units of the non-linear embedding, and the standard deviation of what each is driven by."""
HIGHEST_RATE = 1e6
"""Spikes per bin that no neuron has: counts beyond it have no exact float32."""
PER_BIN = ("states", "inputs", "inputs_true", "behavior")
"""Arrays of an activity that become part of a dataset and have bins."""


class SimulationSettings(DatasetSettings):
    """Settings of a dataset of kind `simulated`.

    `variant` names other trials of the task than its `simulate`, on which the network was run as well.
    `embedding` says what a neuron reads: one unit, or a random network of all of them.
    With `mean_rate_hz`, each neuron gets the bias that makes its mean rate that, times a factor of its own whose
    logarithm is N(0, mean_rate_spread^2), with mean 1 over neurons. `skip_bins` leaves out the first bins of each
    trial. `behavior` names the channels of the network's body to take, all where not given.
    """

    kind: Literal["simulated"]
    network: str
    network_seed: Seed = 0
    variant: str = ""
    n_heldin: Count = 50
    n_heldout: int = Field(10, ge=0)
    embedding: Literal["units", "mlp"] = "units"
    rate_scale: Positive = 2.0
    rectification: Literal["exp", "sigmoid", "softplus"] = "exp"
    dispersion: Positive = 1.0
    mean_rate_hz: Positive | None = None
    mean_rate_spread: NonNegative = 0.0
    skip_bins: int = Field(0, ge=0)
    behavior: list[str] | None = None
    valid_fraction: float = Field(0.1, gt=0, lt=1)
    test_fraction: float = Field(0.1, gt=0, lt=1)
    compatibility: Literal["none", "ctd"] = "none"
    seed: Seed = 0

    @model_validator(mode="after")
    def _some_trials_left(self) -> "SimulationSettings":
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction and test_fraction must leave trials for train: their sum must be below 1")
        if self.mean_rate_spread and self.mean_rate_hz is None:
            raise ValueError("mean_rate_spread spreads the neurons about mean_rate_hz, which is not set; set it")
        return self


@DATASETS.register("simulated")
class Simulated(DatasetKind):
    """Spikes of a task-trained network."""

    Settings = SimulationSettings

    @staticmethod
    def sources(settings: SimulationSettings) -> list[Source]:
        """The network's activity."""
        return [("activity", settings.network, settings.network_seed, settings.variant)]

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
        If no unit varies, a rate is beyond reason, a split or a trial would be empty, or a channel is unknown.
    """
    recorded, facts = read_hdf5(activity)
    recorded = {
        name: value[:, settings.skip_bins :] if name in PER_BIN and value.size else value
        for name, value in recorded.items()
    }
    states = recorded["states"].astype(np.float64)
    n_trials, n_bins, _ = states.shape
    lengths = recorded.get("n_bins")
    lengths = np.full(n_trials, n_bins) if lengths is None else lengths - settings.skip_bins
    if n_bins == 0 or lengths.min() < 1:
        raise DatasetError(f"skip_bins {settings.skip_bins} leaves no bin of the shortest trial; lower it")
    valid = np.arange(n_bins) < lengths[:, None]
    if "n_bins" in recorded:  # whatever was recorded in padding, the dataset has 0 there
        for name in PER_BIN:
            if name in recorded and recorded[name].size:
                recorded[name] = np.where(valid[..., None], recorded[name], 0)
    n_neurons = settings.n_heldin + settings.n_heldout
    if settings.embedding == "units":
        units = embedding(states[valid], n_neurons, settings.seed)
        neurons = [f"unit {unit}" for unit in units]
        drive = standardise(states, settings.compatibility, valid)[:, :, units] / settings.rate_scale
    else:
        neurons = [f"function {neuron}" for neuron in range(n_neurons)]
        drive = nonlinear_embedding(states, n_neurons, settings.seed, valid)
        drive = standardise(drive, settings.compatibility, valid) / settings.rate_scale
    drive[~valid] = 0  # a rate that overflows in padding would be no zero there, but NaN
    if settings.mean_rate_hz is not None:
        drive += biases(drive[valid], settings, float(facts["bin_s"]))
    truth = rectify(drive, settings.rectification) * valid[..., None]
    if not truth.max() <= HIGHEST_RATE:
        raise DatasetError(
            f"rates reach {truth.max():.3g} spikes per bin, beyond {HIGHEST_RATE:g}; raise `rate_scale`, now "
            f"{settings.rate_scale:g}"
        )
    draw = ctd_counts if settings.compatibility == "ctd" else counts
    spikes = draw(truth, settings.dispersion, numpy_generator("spike counts", settings.seed)).astype(np.float32)
    behavior, behavior_names = _behavior(recorded, facts, settings)
    whole = Split(
        encod_data=spikes[:, :, : settings.n_heldin],
        recon_data=spikes,
        ext_input=recorded["inputs"],
        behavior=behavior,
        truth=truth.astype(np.float32),
        latents=recorded["states"],
        inputs_true=recorded["inputs_true"],
        n_bins=lengths if "n_bins" in recorded else None,
        condition=recorded.get("condition"),
        trial=np.arange(len(spikes)),
    )
    names = {
        "neurons": neurons,
        "inputs": [str(name) for name in facts["input_names"]],
        "inputs_true": [str(name) for name in facts.get("true_input_names", [])],
        "behavior": behavior_names,
        "condition": [str(name) for name in facts.get("condition_names", [])],
    }
    return SpikeDataset(
        splits=_split(whole, settings),
        bin_s=float(facts["bin_s"]),
        names={field: own for field, own in names.items() if own},
        provenance=settings.model_dump(),
    )


def _behavior(
    recorded: Mapping[str, np.ndarray], facts: Mapping[str, Any], settings: SimulationSettings
) -> tuple[np.ndarray | None, list[str]]:
    """Channels of the network's body that the settings want, and their names."""
    there = [str(name) for name in facts.get("behavior_names", [])]
    wanted = there if settings.behavior is None else settings.behavior
    for name in wanted:
        if name not in there:
            raise DatasetError(f"behavior: the network's body has no channel {name!r}; {nearest(name, there)}")
    if not wanted:
        return None, []
    return recorded["behavior"][:, :, [there.index(name) for name in wanted]], list(wanted)


def biases(
    drive: Float[np.ndarray, "samples neurons"], settings: SimulationSettings, bin_s: float
) -> Float[np.ndarray, " neurons"]:
    """What to add to each neuron's drive for the mean rate that the settings ask for.

    Raises
    ------
    DatasetError
        If a rate is beyond what the rectification can give.
    """
    spread = settings.mean_rate_spread * numpy_generator("mean rates", settings.seed).standard_normal(drive.shape[1])
    factor = np.exp(spread) / np.exp(spread).mean()
    wanted = settings.mean_rate_hz * bin_s * factor
    if settings.rectification == "exp":
        return np.log(wanted) - np.log(np.exp(drive).mean(0))
    if settings.rectification == "sigmoid" and wanted.max() >= SIGMOID_MAXIMUM:
        raise DatasetError(
            f"mean_rate_hz asks for {wanted.max():.3g} spikes per bin, but a sigmoid ends at {SIGMOID_MAXIMUM:g}; "
            "lower it, or take rectification exp"
        )
    low, high = np.full(drive.shape[1], -60.0) - drive.max(0), wanted + 60.0 - drive.min(0)
    for _ in range(80):  # bisection: the mean rises with the bias
        middle = (low + high) / 2
        above = rectify(drive[None] + middle, settings.rectification)[0].mean(0) > wanted
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2


def embedding(states: Float[np.ndarray, "*samples units"], n_neurons: int, seed: int) -> Int[np.ndarray, " neurons"]:
    """Unit that each neuron reads: as many random permutations of the varying units as it takes, one after another.

    Raises
    ------
    DatasetError
        If no unit varies.
    """
    varying = _varying(states.reshape(-1, states.shape[-1]))
    rng = numpy_generator("embedding", seed)
    n_permutations = -(-n_neurons // len(varying))
    return np.concatenate([rng.permutation(varying) for _ in range(n_permutations)])[:n_neurons]


def nonlinear_embedding(
    states: Float[np.ndarray, "trials bins units"],
    n_neurons: int,
    seed: int,
    valid: Bool[np.ndarray, "trials bins"] | None = None,
) -> Float[np.ndarray, "trials bins neurons"]:
    r"""What neurons read from a random network of two layers, :math:`V \tanh(W z + b)`, of the standardised states z.

    :math:`W_{ij} \sim N(0, g^2 / D)` with D varying units and g = 2, so that many hidden units saturate;
    :math:`b_i \sim N(0, 1)` and :math:`V_{ij}` standard normal over the root of the number of hidden units.

    Raises
    ------
    DatasetError
        If no unit varies.
    """
    samples = states.reshape(-1, states.shape[2]) if valid is None else states[valid]
    units = standardise(states, "none", valid)[:, :, _varying(samples)]
    rng = numpy_generator("nonlinear embedding", seed)
    weights = rng.normal(0, MLP_GAIN / np.sqrt(units.shape[2]), (units.shape[2], MLP_UNITS))
    offsets = rng.normal(size=MLP_UNITS)
    readout = rng.normal(0, 1 / np.sqrt(MLP_UNITS), (MLP_UNITS, n_neurons))
    return np.tanh(units @ weights + offsets) @ readout


def _varying(states: Float[np.ndarray, "samples units"]) -> Int[np.ndarray, " varying"]:
    """Units that vary; raises DatasetError if none does."""
    deviation = states.std(0)
    varying = np.flatnonzero(deviation > 1e-6 * max(deviation.max(), np.finfo(float).tiny))
    if len(varying) == 0:
        raise DatasetError("the network's states never vary, so no spikes can carry them; train it longer or reseed it")
    return varying


def standardise(
    states: Float[np.ndarray, "trials bins units"],
    compatibility: str,
    valid: Bool[np.ndarray, "trials bins"] | None = None,
) -> Float[np.ndarray, "trials bins units"]:
    """Zero mean and unit deviation over trials and valid bins: per unit, or over all units together (`ctd`)."""
    samples = states.reshape(-1, states.shape[2]) if valid is None else states[valid]
    axes = (0, 1) if compatibility == "ctd" else (0,)
    deviation = samples.std(axes, keepdims=True)
    return (states - samples.mean(axes, keepdims=True)) / np.where(deviation > 0, deviation, 1)


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
