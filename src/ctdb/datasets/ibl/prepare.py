"""Trials of recorded sessions of the International Brain Laboratory's task, aligned on an event."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from pydantic import model_validator

from ctdb.datasets.dataset import SPLITS, SpikeDataset, Split, check
from ctdb.datasets.ibl.manifest import read_manifest
from ctdb.datasets.ibl.session import SessionReader
from ctdb.datasets.ibl.splits import Shares, deal, without_overlap
from ctdb.datasets.ibl.trials import CONDITIONS, TrialFilters, choose_trials, condition, facts, needed_columns
from ctdb.datasets.ibl.units import UnitFilters, candidates, choose
from ctdb.datasets.ibl.wheel import bin_means, movement
from ctdb.datasets.kind import DATASETS, DatasetKind, DatasetSettings, Source
from ctdb.datasets.multi_session import MultiSession, check_sessions
from ctdb.errors import IblMissingError, IblNoTrialsError
from ctdb.settings import Count

WheelBehavior = Literal["wheel_velocity", "wheel_speed", "wheel_position"]
TrialBehavior = Literal["choice", "stim_side", "contrast", "block", "feedback", "reaction_time"]


class IblSettings(Shares, TrialFilters, UnitFilters, DatasetSettings):
    """Settings of a dataset of kind `ibl`."""

    kind: Literal["ibl"]
    recording: str
    behavior: list[WheelBehavior | TrialBehavior] = ["wheel_velocity"]
    condition: Literal["choice", "stim_side", "feedback", "block", "stim_side_choice"] = "choice"
    split: Literal["blocked", "random"] = "blocked"
    block_trials: Count = 10

    @model_validator(mode="after")
    def _each_channel_once(self) -> "IblSettings":
        if len(set(self.behavior)) < len(self.behavior):
            raise ValueError(f"behavior {self.behavior} names a channel twice")
        return self


@DATASETS.register("ibl")
class Ibl(DatasetKind):
    """Windows around an event of each trial; units of all probes of a session side by side.

    Units pass `min_label`, `regions` and, on the train trials, `min_rate_hz`. Whole blocks of `block_trials`
    neighbouring trials go to one split (``split: random`` deals single trials), and trials whose window reaches into
    one of another split are left out, train ones first. Behaviour has mean 0 and deviation 1 over the train trials;
    `behavior_mean` and `behavior_std` in the provenance undo it. What holds for a whole trial is repeated in its bins.
    What each filter dropped is counted in the provenance. Several sessions are the sessions of one model.
    """

    Settings = IblSettings

    @staticmethod
    def sources(settings: IblSettings) -> list[Source]:
        """The recording: its manifest, and the folder that the manifest's paths are relative to."""
        return [("recording", settings.recording)]

    @staticmethod
    def prepare(settings: IblSettings, files: Sequence[Path | str]) -> SpikeDataset | MultiSession:
        """Cut the windows of each session and split its trials."""
        return of_each_session(files, lambda reader: _aligned(reader, settings))


def of_each_session(
    files: Sequence[Path | str], prepare: Callable[[SessionReader], SpikeDataset]
) -> SpikeDataset | MultiSession:
    """The dataset of a recording of one session, or of several by subject, date and number.

    Parameters
    ----------
    files
        Manifest and cache folder.
    prepare
        Makes the dataset of one session.

    Raises
    ------
    IblError
        Whatever is wrong with a session, by its name.
    """
    manifest_path, cache_dir = files
    manifest = read_manifest(manifest_path)
    readers = [SessionReader(session, cache_dir) for session in manifest.sessions]
    if not readers:
        raise IblMissingError(f"{manifest_path}: names no session; choose some in `recordings`")
    if len(readers) == 1:
        return check(prepare(readers[0]), readers[0].where)
    return check_sessions(MultiSession({reader.name: prepare(reader) for reader in readers}), str(manifest_path))


def _aligned(reader: SessionReader, settings: IblSettings) -> SpikeDataset:
    sortings = reader.sortings()
    found = candidates(sortings, settings, reader.where)
    span = found.span(reader.where)
    wheel = None
    if set(settings.behavior) & set(get_args(WheelBehavior)):
        wheel = movement(*reader.wheel(), f"{reader.where}: wheel")
        span = (max(span[0], wheel.times[0]), min(span[1], wheel.times[-1]))
    trials = reader.trials(needed_columns(settings, "reaction_time" in settings.behavior))
    kept, n_trials = choose_trials(trials, settings, span, reader.where)
    trial = np.flatnonzero(kept)
    trials = {column: values[trial] for column, values in trials.items()}
    align, known = trials[settings.align], facts(trials)
    edges = settings.edges(align)

    block = trial // settings.block_trials if settings.split == "blocked" else trial
    dealt = deal(block, settings, reader.where)
    member = without_overlap(dealt, align, settings.window_s[1] - settings.window_s[0])
    n_trials["overlap"] = len(trial) - int(np.any(list(member.values()), 0).sum())
    n_trials["kept"] -= n_trials["overlap"]
    sizes = {split: int(one.sum()) for split, one in member.items()}
    if n_trials["kept"] < settings.min_trials or not all(sizes.values()):
        raise IblNoTrialsError(
            f"{reader.where}: beside the windows of other splits, {sizes} trials are left, expected some in each and "
            f"`min_trials`, {settings.min_trials}, together; shorten `window_s`, or deal larger blocks"
        )

    counts = found.count(edges)
    rate_hz = counts.mean(1, dtype=np.float64)[member["train"]].mean(0) / settings.bin_s
    units = choose(found, rate_hz, settings, settings.seed, reader.where)
    signals = dict(known)
    if wheel is not None:
        position = bin_means(wheel.times, wheel.position, edges)
        signals["wheel_position"] = position - position[:, :1]
        signals["wheel_velocity"] = bin_means(wheel.times, wheel.velocity, edges)
        signals["wheel_speed"] = bin_means(wheel.times, np.abs(wheel.velocity), edges)
    behavior, scale = _standardised([signals[name] for name in settings.behavior], settings.n_bins, member["train"])
    recon = counts[:, :, units.order]
    whole = Split(
        encod_data=recon[:, :, : len(units.order) - settings.n_heldout],
        recon_data=recon,
        behavior=behavior,
        condition=condition(known, settings.condition),
        trial=trial,
    )
    names = {"neurons": units.names, "condition": list(CONDITIONS[settings.condition])}
    if settings.behavior:
        names["behavior"] = list(settings.behavior)
    provenance = settings.model_dump() | reader.provenance() | {"trials": n_trials} | scale | units.provenance
    splits = {split: whole.take(np.flatnonzero(member[split])) for split in SPLITS}
    return SpikeDataset(splits, settings.bin_s, names, provenance)


def _standardised(
    signals: Sequence[np.ndarray], n_bins: int, train: np.ndarray
) -> tuple[Float[np.ndarray, "trials bins channels"] | None, dict[str, Any]]:
    """Signals (trials,) or (trials, bins) with mean 0 and deviation 1 over the train trials, and what undoes it."""
    if not signals:
        return None, {}
    per_bin = [one if one.ndim == 2 else np.repeat(one[:, None], n_bins, 1) for one in signals]
    stacked = np.stack(per_bin, 2)
    mean, std = stacked[train].mean((0, 1)), stacked[train].std((0, 1))
    std = np.where(std > 1e-9 * np.maximum(np.abs(mean), 1), std, 1.0)  # a channel that does not vary stays 0
    scaled = ((stacked - mean) / std).astype(np.float32)
    return scaled, {"behavior_mean": mean.tolist(), "behavior_std": std.tolist()}
