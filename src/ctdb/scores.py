"""The scores table: one tidy row per (fit, split, metric), between a floor and a ceiling."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter1d

from ctdb.datasets import SPLITS, MultiSession, SpikeDataset
from ctdb.errors import MetricError
from ctdb.files import read_hdf5, read_yaml
from ctdb.metrics import COSTLY, METRICS, Case, NotApplicableError, TrialSums
from ctdb.metrics.behavior import decode, known_behavior
from ctdb.seeds import numpy_generator

COLUMNS = {
    "dataset": "string",
    "session": "string",
    "model": "string",
    "kind": "string",
    "sweep": "string",
    "role": "string",
    "seed": "Int64",
    "split": "string",
    "metric": "string",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "n_trials": "Int64",
    "status": "string",
    "reason": "string",
}
"""Columns of the table. `low` and `high` bound the 95 % bootstrap interval over trials, where the score is a ratio of
sums over them; `sweep` is a JSON mapping; `session` is empty for a dataset of one."""

FLOOR, CEILING = "floor_mean_rate", "ceiling_true_rates"
BASELINE, SMOOTHED = "baseline_ridge_on_spikes", "baseline_smoothed_spikes"
SMOOTHING_S = 0.05
"""Standard deviation of the Gaussian that smooths spikes, in seconds."""


def score_fit(
    dataset: SpikeDataset | MultiSession,
    fit: Path | str,
    metrics: Sequence[str] | None,
    labels: Mapping[str, Any],
    also: Sequence[str] = (),
) -> pd.DataFrame:
    """Score a fit on the splits that its training did not use.

    Parameters
    ----------
    dataset
        What it was fitted to.
    fit
        Folder of the fit.
    metrics
        Names of metrics; None for all that apply, but for those in :data:`ctdb.metrics.case.COSTLY`.
    labels
        Values of the columns `dataset`, `model`, `kind`, `sweep` and `seed`.
    also
        Costly metrics that are wanted beside those that apply.

    Returns
    -------
    Rows of the scores table. A fit that diverged has rows too, without values, with its status and reason.

    Raises
    ------
    MetricError
        If a metric that was asked for by name cannot be had from this dataset.
    """
    spec = read_yaml(Path(fit) / "spec.yaml")
    arrays, _ = read_hdf5(Path(fit) / "output.h5")
    failure = None if spec["status"] == "ok" else {"status": spec["status"], "reason": spec["reason"]}
    tables = []
    for name, session in dataset.sessions.items():
        prefixes = {split: f"{name}/{split}_".lstrip("/") for split in session.splits}
        outputs = {
            split: {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
            for split, prefix in prefixes.items()
        }
        own = {"role": "fit", "session": name, **labels}
        tables.append(_rows(session, outputs, metrics, own, also, failure))
    return pd.concat(tables, ignore_index=True)


def score_anchors(
    dataset: SpikeDataset | MultiSession, metrics: Sequence[str] | None, name: str, also: Sequence[str] = ()
) -> pd.DataFrame:
    """Score what no fit should fall below, each neuron's mean train rate, and what none can pass, the true rates.

    Where there is behaviour, a ridge regression from the spikes themselves is a baseline for what a model decodes; and
    smoothed spikes are one for what is decoded from its factors.

    The mean is over the bins that a model sees, as is the null model of bits per spike, so that the floor scores 0
    there. Parameters are those of :func:`score_fit`; `name` fills the column `dataset`. The ceiling has rows where the
    dataset knows the true rates.
    """
    labels = anchor_labels(name)
    tables = []
    for session_name, session in dataset.sessions.items():
        for anchor, role, outputs in _anchors(session):
            own = labels | {"session": session_name, "model": anchor, "role": role}
            tables.append(_rows(session, outputs, metrics, own, also))
    return pd.concat(tables, ignore_index=True)


def anchor_labels(dataset: str) -> dict[str, Any]:
    """Columns that the anchors of a dataset share."""
    return {"dataset": dataset, "kind": "anchor", "sweep": "{}", "seed": pd.NA}


def _anchors(dataset: SpikeDataset) -> list[tuple[str, str, dict[str, dict[str, np.ndarray]]]]:
    """Anchor, role, and what it predicts of each split."""
    mean = Case(dataset, {}, "train").mean_rates
    floor, ceiling = {}, {}
    for split, trials in dataset.splits.items():
        floor[split] = {"rates": np.broadcast_to(mean, trials.recon_data.shape)}
        if trials.truth is not None:
            ceiling[split] = {"rates": trials.truth}
            if trials.latents is not None:
                ceiling[split]["latents"] = trials.latents
    anchors = [(FLOOR, "floor", floor)]
    if ceiling:
        anchors.append((CEILING, "ceiling", ceiling))
    if dataset.n_behaviors:
        anchors.append((BASELINE, "baseline", _decoded_from_spikes(dataset)))
    anchors.append((SMOOTHED, "baseline", {split: {"factors": one} for split, one in _smoothed(dataset).items()}))
    return anchors


def _heldin_spikes(dataset: SpikeDataset) -> dict[str, np.ndarray]:
    return {
        split: np.where(trials.observed()[:, : dataset.n_bins, : dataset.n_heldin], trials.encod_data, 0)
        for split, trials in dataset.splits.items()
    }


def _smoothed(dataset: SpikeDataset) -> dict[str, np.ndarray]:
    """Held-in spikes smoothed by a Gaussian, in place of factors: what needs no model either."""
    width, unseen = SMOOTHING_S / dataset.bin_s, dataset.n_recon_bins - dataset.n_bins
    return {
        split: np.pad(
            gaussian_filter1d(spikes.astype(np.float64), width, axis=1, mode="constant"), ((0, 0), (0, unseen), (0, 0))
        )
        for split, spikes in _heldin_spikes(dataset).items()
    }


def _decoded_from_spikes(dataset: SpikeDataset) -> dict[str, dict[str, np.ndarray]]:
    """Behaviour by ridge regression from the held-in spikes of all bins: what needs no model of dynamics."""
    spikes = _heldin_spikes(dataset)
    behavior = {split: known_behavior(Case(dataset, {}, split), split) for split in dataset.splits}
    return {split: {"behavior": value} for split, value in decode(spikes, behavior, "sequence").items()}


def gather(tables: Iterable[Path | str]) -> pd.DataFrame:
    """Join the tables of fits and anchors, in a fixed order."""
    parts = [pd.read_csv(table, dtype=COLUMNS, keep_default_na=False, na_values=[""]) for table in tables]
    whole = pd.concat(parts, ignore_index=True).fillna({"reason": "", "sweep": "{}", "session": ""})
    return whole.sort_values(["dataset", "session", "role", "model", "seed", "split", "metric"], ignore_index=True)


def _rows(
    dataset: SpikeDataset,
    outputs: Mapping[str, Mapping[str, np.ndarray]],
    metrics: Sequence[str] | None,
    labels: Mapping[str, Any],
    also: Sequence[str],
    failure: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Rows of one fit or anchor; with `failure`, without values, for the scores that it would have had."""
    wanted = sorted(({*METRICS.modules} - COSTLY) | {*also}) if metrics is None else metrics
    rows = []
    for split in _scored_splits(dataset):
        for metric in wanted:
            row = {**labels, "split": split, "metric": metric, "n_trials": dataset[split].n_trials}
            try:
                score = METRICS[metric](Case(dataset, outputs, split))
            except NotApplicableError as error:
                if metrics is not None and (labels["role"] == "fit" or error.of_dataset):
                    raise MetricError(
                        f"dataset {labels['dataset']!r}: score {metric!r} was asked for, but {error}. Take it out of "
                        "`scores.metrics`, or give the dataset what it needs (`n_heldout`, `truth`, `latents`)"
                    ) from None
                continue
            except MetricError as error:
                rows.append({**row, **(failure or undefined(error))})
                continue
            if failure is not None:
                rows.append({**row, **failure})
                continue
            rows.append({**row, **outcome(score, labels["dataset"], split)})
    return table_of(rows)


def undefined(why: Exception) -> dict[str, str]:
    """Columns of a score that cannot be had here."""
    return {"status": "undefined", "reason": str(why)}


def outcome(score: TrialSums | float, dataset: str, split: str) -> dict[str, Any]:
    """Columns of a score: its value, the interval where it has one, and whether it is a number at all."""
    value, low, high = float(score), np.nan, np.nan
    if not np.isfinite(value):
        return {"status": "undefined", "reason": "not a finite number on these trials"}
    if isinstance(score, TrialSums):
        low, high = score.interval(numpy_generator("bootstrap", dataset, split))
    return {"value": value, "low": low, "high": high, "status": "ok", "reason": ""}


def _scored_splits(dataset: SpikeDataset) -> list[str]:
    return [split for split in SPLITS[1:] if split in dataset.splits]


def table_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table with all columns, in their types."""
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
