"""Dynamical similarity of the system behind a dataset and all fits to it, as rows of the scores table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ctdb.datasets import SpikeDataset
from ctdb.dynamics.dsa import dsa
from ctdb.dynamics.input_dsa import input_dsa
from ctdb.dynamics.systems import Comparison
from ctdb.errors import ConfigError, MetricError
from ctdb.files import read_hdf5, read_yaml
from ctdb.metrics.geometry import principal_components
from ctdb.scores import CEILING, FLOOR, anchor_labels, outcome, table_of, undefined
from ctdb.seeds import numpy_generator
from ctdb.settings import DsaSettings

FORMAT = "ctdb-dsa-1"
TRUTH = "truth"
"""Name of the true system among those that are compared."""


def dsa_of(
    dataset: SpikeDataset,
    fits: Sequence[tuple[Mapping[str, Any], Path | str]],
    settings: DsaSettings,
    n_jobs: int = 1,
) -> tuple[dict[str, np.ndarray], dict[str, Any], pd.DataFrame]:
    """Distances between the true system and all fits to its dataset, on equal trials and settings.

    Parameters
    ----------
    dataset
        The dataset. Where it knows no true latents, fits are compared with each other alone.
    fits
        Labels (`dataset`, `model`, `kind`, `sweep`, `seed`) and folder of each fit.
    settings
        What to compare, and how.
    n_jobs
        Threads.

    Returns
    -------
    arrays
        `distances` and `null` of the systems that could be compared, `points` (multidimensional scaling), `order` (of
        clusters), `n_channels`, and `floor` (distance of the truth from its own bins in random order).
    facts
        `names` of the systems, the truth first where it is known, `metric`, `n_delays` and `rank`.
    rows
        `dsa_similarity`, one minus the distance from the truth in units of `floor`: 1 for the same dynamics, 0 for
        none. The ceiling is what random halves of the true trials score. None without a truth. A system that cannot be
        compared, such as one whose state never changes, is left out of the arrays, and its row says why; so do all
        rows where trials are too few or short.

    Raises
    ------
    ConfigError
        If inputs are to be compared of a dataset that has none.
    """
    split = dataset.report_split
    trials = dataset[split]
    valid = trials.valid_bins
    inputs = trials.ext_input if settings.metric == "input" else None
    if settings.metric == "input" and inputs is None:
        raise ConfigError("dsa.metric: `input` compares driven systems, but the dataset has no external input")
    states, labels_of, failures = {}, {}, {}
    if trials.latents is not None:
        states[TRUTH] = trials.latents
    for labels, fit in fits:
        name = f"{labels['model']} seed {labels['seed']}"
        labels_of[name], spec = labels, read_yaml(Path(fit) / "spec.yaml")
        if spec["status"] == "ok":
            states[name] = read_hdf5(Path(fit) / "output.h5")[0].get(f"{split}_latents")
        else:
            failures[name] = {"status": spec["status"], "reason": spec["reason"]}
    systems = {}
    # A model of the least size that the settings allow: what has none of its own must not keep others from theirs.
    least = {} if settings.rank else {"n_delays": settings.n_delays or 1, "rank": 1}
    for name, one in states.items():
        try:
            systems[name] = _components(one, valid, settings.components)
            alone = {name: systems[name]}
            _compared(alone, inputs, trials.n_bins, settings.model_copy(update=least), 0, n_jobs)
        except MetricError as why:
            systems.pop(name, None)
            failures[name] = undefined(why)
    arrays = {
        "distances": np.zeros((0, 0)),
        "null": np.zeros((0, settings.n_null)),
        "points": np.zeros((0, 2)),
        "order": np.zeros(0, np.int64),
        "n_channels": np.zeros(0, np.int64),
    }
    facts = {"format": FORMAT, "names": [], "metric": settings.metric, "n_delays": 0, "rank": 0}
    try:
        found = _compared(systems, inputs, trials.n_bins, settings, settings.n_null, n_jobs)
    except MetricError as why:
        failures |= dict.fromkeys(systems, undefined(why))
    else:
        choice = found.settings.get("choice")
        chosen = {
            "n_delays": int(found.settings["n_delays"] if choice is None else choice.n_delays),
            "rank": int(found.settings["rank"] if choice is None else choice.rank),
        }
        arrays |= {
            "distances": found.distances,
            "null": found.null,
            "points": found.points(),
            "order": np.asarray(found.order),
            "n_channels": np.array([one.shape[2] for one in systems.values()]),
        }
        facts |= {"names": list(found.names), **chosen}
    if trials.latents is None:
        return arrays, facts, table_of([])
    distances: dict[str, float] = {}
    if TRUTH not in failures:
        pair = {TRUTH: systems[TRUTH], FLOOR: _in_random_order(systems[TRUTH], valid, settings.seed)}
        try:
            between = _compared(pair, inputs, trials.n_bins, settings.model_copy(update=chosen), 0, n_jobs)
            if not between.distances[0, 1]:
                raise MetricError(
                    f"with {chosen['n_delays']} delays and rank {chosen['rank']}, the true system is no further from "
                    "its own bins in random order than from itself, so there is no unit; raise either"
                )
        except MetricError as why:
            failures[TRUTH] = undefined(why)
        else:
            arrays["floor"] = between.distances[:1, 1]
            distances = dict(zip(found.names, found.distances[0], strict=True)) | {
                FLOOR: float(between.distances[0, 1])
            }
            if settings.n_null:
                distances[CEILING] = float(np.median(found.null[0]))

    def values(name: str) -> dict[str, Any]:
        failed = failures.get(name) or failures.get(TRUTH)
        return failed or outcome(1 - float(distances[name] / distances[FLOOR]), fits[0][0]["dataset"], split)

    common = {"session": "", "split": split, "metric": "dsa_similarity", "n_trials": trials.n_trials}
    anchor = anchor_labels(fits[0][0]["dataset"]) | common
    rows = [{**anchor, "model": FLOOR, "role": "floor", **values(FLOOR)}]
    if settings.n_null:
        rows.append({**anchor, "model": CEILING, "role": "ceiling", **values(CEILING)})
    rows += [{**labels, "role": "fit", **common, **values(name)} for name, labels in labels_of.items()]
    return arrays, facts, table_of(rows)


def _in_random_order(
    states: Float[np.ndarray, "trials bins channels"], valid: Bool[np.ndarray, "trials bins"], seed: int
) -> Float[np.ndarray, "trials bins channels"]:
    """The valid bins of each trial in random order: the same states without dynamics."""
    shuffled, rng = states.copy(), numpy_generator("dsa floor", seed)
    for trial, inside in zip(shuffled, valid, strict=True):
        trial[inside] = rng.permutation(trial[inside])
    return shuffled


def _compared(
    systems: Mapping[str, np.ndarray],
    inputs: np.ndarray | None,
    n_bins: np.ndarray | None,
    settings: DsaSettings,
    n_null: int,
    n_jobs: int,
) -> Comparison:
    common = {"rank": settings.rank, "n_bins": n_bins, "n_null": n_null, "seed": settings.seed, "n_jobs": n_jobs}
    if settings.n_delays is not None:
        common["n_delays"] = settings.n_delays
    if settings.metric == "input":
        return input_dsa(systems, dict.fromkeys(systems, inputs), **common)
    return dsa(systems, settings.metric, **common)


def _components(
    states: Float[np.ndarray, "trials bins states"] | None, valid: np.ndarray, n_components: int
) -> Float[np.ndarray, "trials bins components"]:
    """States in their own leading principal components, 0 in padding."""
    if states is None:
        raise MetricError("the model infers no latents")
    seen = states[valid].astype(np.float64)
    if not np.isfinite(seen).all():
        raise MetricError("its states are not finite")
    components = principal_components(seen)[0][:, :n_components]
    made = np.zeros((*states.shape[:2], components.shape[1]))
    made[valid] = components
    return made
