"""A small session like a real one, its tuning known, written as files into a local cache of the ONE API.

Layout, names, columns and types are those of the 2024 release of the Brain-wide map, whose real data cannot be had
without an account. The same settings write the same bytes.
"""

import datetime
import hashlib
import io
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from ctdb.files import write_bytes
from ctdb.seeds import numpy_generator
from ctdb.settings import Count, Fraction, Seed, Settings

COLLECTION, REVISION = "alf/{probe}/pykilosort", "2024-05-06"
STEP_S = 0.005
N_CHANNELS = 384
REGIONS = (("MOs", 993), ("CP", 672), ("MOp", 985), ("root", 997))
"""Acronyms and Allen ids from the tip of a probe upwards."""
CREATED = "2024-05-06 00:00"


class SyntheticSettings(Settings):
    """Settings of a synthetic session; `n_units` is the number of clusters of each probe."""

    n_trials: int = Field(200, ge=10)
    n_units: int = Field(30, ge=4)
    probes: Count = 2
    good_fraction: Fraction = 0.7
    fast_fraction: Fraction = 0.03
    missing_fraction: Fraction = 0.02
    no_go_fraction: Fraction = 0.02
    subject: str = "SYN_001"
    lab: str = "syntheticlab"
    date: str = "2024-01-15"
    number: Count = 1
    seed: Seed = 0

    @property
    def path(self) -> str:
        """Of the session, relative to the cache folder."""
        return f"{self.lab}/Subjects/{self.subject}/{self.date}/{self.number:03d}"

    @property
    def eid(self) -> str:
        """Id of the session."""
        return _id(self.path, self.seed)

    def pid(self, probe: str) -> str:
        """Id of an insertion."""
        return _id(self.path, probe, self.seed)

    @property
    def probe_names(self) -> list[str]:
        """`probe00`, `probe01`, ..."""
        return [f"probe{index:02d}" for index in range(self.probes)]


class Tuning(NamedTuple):
    """What is true of the clusters of one probe.

    A unit's rate is ``base_rate_hz * exp(choice * c + stimulus * s + wheel * v)``, where c is +1 (right) or -1 (left)
    from 0.1 s before the first movement until the feedback, s is the same of the stimulus from its onset until the
    feedback, and v is the wheel's velocity in units of `SPEED`.
    """

    base_rate_hz: Float[np.ndarray, " clusters"]
    choice: Float[np.ndarray, " clusters"]
    stimulus: Float[np.ndarray, " clusters"]
    wheel: Float[np.ndarray, " clusters"]
    label: Float[np.ndarray, " clusters"]
    region: Int[np.ndarray, " clusters"]


SPEED = 2.0
"""rad/s that count as 1 in :class:`Tuning`."""


def true_tuning(settings: SyntheticSettings) -> dict[str, Tuning]:
    """Tuning of the clusters of each probe."""
    found = {}
    for probe in settings.probe_names:
        rng = numpy_generator("ibl synthetic tuning", probe, settings.seed)
        n = settings.n_units
        channel = _channels(n)
        gains = np.where(rng.random((3, n)) < 0.5, rng.choice([-1.0, 1.0], (3, n)) * rng.uniform(0.3, 0.9, (3, n)), 0.0)
        label = np.where(rng.random(n) < settings.good_fraction, 1.0, rng.choice([0.0, 1 / 3, 2 / 3], n))
        base = np.exp(rng.normal(np.log(6.0), 0.8, n))
        base[-1], label[-1] = 0.0, np.nan  # a cluster without spikes, which the table of metrics lacks
        found[probe] = Tuning(base, *gains, label, np.array([REGIONS[i][1] for i in _layer(channel)]))
    return found


def write_session(cache_dir: Path | str, settings: SyntheticSettings) -> None:
    """Write one session into a cache folder and enter it into the tables that are there.

    Parameters
    ----------
    cache_dir
        Folder that ``one.api.One(cache_dir, mode="local")`` opens; sessions written before stay.
    settings
        Size, shares and seed.

    Raises
    ------
    WriteError
        If the folder cannot be written.
    """
    cache_dir = Path(cache_dir)
    for path, content in _files(settings):
        write_bytes(cache_dir / settings.path / path, content)
    _write_tables(cache_dir, settings)


# ---------------------------------------------------------------------------------------------------------- files


def _files(settings: SyntheticSettings) -> Iterator[tuple[str, bytes]]:
    """Path of each file in the session, and its bytes."""
    trials = _trials(settings)
    yield "alf/_ibl_trials.table.pqt", _parquet(trials)
    times, position, velocity = _wheel(trials, settings)
    sampled = _encoder_events(position, settings)
    yield "alf/_ibl_wheel.timestamps.npy", _npy(times[sampled] + _jitter(sampled, settings))
    yield "alf/_ibl_wheel.position.npy", _npy(position[sampled])
    drives = _drives(trials, velocity)
    for probe, tuning in true_tuning(settings).items():
        folder = f"{COLLECTION.format(probe=probe)}/#{REVISION}#"
        spike_times, clusters = _spikes(tuning, drives, numpy_generator("ibl synthetic spikes", probe, settings.seed))
        channel = _channels(settings.n_units)
        yield f"{folder}/spikes.times.npy", _npy(spike_times)
        yield f"{folder}/spikes.clusters.npy", _npy(clusters)
        yield f"{folder}/clusters.channels.npy", _npy(channel)
        yield f"{folder}/clusters.depths.npy", _npy((20.0 * channel).astype(np.float32))
        yield (
            f"{folder}/channels.brainLocationIds_ccf_2017.npy",
            _npy(np.array([REGIONS[i][1] for i in _layer(np.arange(N_CHANNELS))])),
        )
        scored = np.flatnonzero(~np.isnan(tuning.label))
        metrics = {
            "cluster_id": scored,
            "firing_rate": np.bincount(clusters, minlength=settings.n_units)[scored] / times[-1],
            "label": tuning.label[scored],
        }
        yield f"{folder}/clusters.metrics.pqt", _parquet(metrics)
        uuids = [_id(settings.path, probe, str(cluster), settings.seed) for cluster in range(settings.n_units)]
        yield f"{folder}/clusters.uuids.csv", "\n".join(["uuids", *uuids, ""]).encode()


def _trials(settings: SyntheticSettings) -> dict[str, np.ndarray]:
    """Columns of the trials table, all float64, in the order of the real one."""
    n, rng = settings.n_trials, numpy_generator("ibl synthetic trials", settings.seed)
    prior = np.full(n, 0.5)
    begin, likely = min(90, n // 5), rng.choice([0.2, 0.8])
    while begin < n:  # blocks of 20 to 60 trials after an even one
        end = begin + int(rng.integers(20, 61))
        prior[begin:end], begin, likely = likely, end, 1 - likely
    prior = np.round(prior, 1)
    left = rng.random(n) < prior
    contrast = rng.choice([0.0, 0.0625, 0.125, 0.25, 1.0], n)
    correct = rng.random(n) < 0.5 + 0.45 * np.tanh(6 * contrast + 0.15)
    choice = np.where(left == correct, 1.0, -1.0)
    reaction = 0.12 + rng.gamma(2.0, 0.07, n)
    duration = 0.12 + rng.gamma(2.0, 0.06, n)
    fast = rng.random(n) < settings.fast_fraction
    reaction[fast] = rng.uniform(0.01, 0.07, fast.sum())
    no_go = (rng.random(n) < settings.no_go_fraction) & ~fast
    choice[no_go], correct = 0.0, correct & ~no_go
    gap = rng.uniform(0.5, 1.2, (2, n))  # quiescence before, and time after the feedback
    length = np.where(no_go, 60.0, reaction + duration)
    start = 5.0 + np.cumsum(np.concatenate([[0.0], (gap[0] + length + gap[1] + np.where(correct, 1.0, 2.0))[:-1]]))
    shown = start + gap[0]
    responded = shown + length
    moved = np.where(no_go, np.nan, shown + reaction)
    missing = (rng.random(n) < settings.missing_fraction) & ~no_go
    feedback = responded + rng.uniform(0.0001, 0.002, n)
    return {
        "intervals_0": start,
        "intervals_1": responded + np.where(correct, 1.0, 2.0) + gap[1] / 2,
        "goCue_times": shown + rng.uniform(0.0005, 0.0015, n),
        "response_times": responded,
        "choice": choice,
        "stimOn_times": np.where(missing, np.nan, shown),
        "contrastLeft": np.where(left, contrast, np.nan),
        "contrastRight": np.where(left, np.nan, contrast),
        "feedback_times": feedback,
        "feedbackType": np.where(correct, 1.0, -1.0),
        "rewardVolume": np.where(correct, 1.5, 0.0),
        "probabilityLeft": prior,
        "firstMovement_times": moved,
    }


def _wheel(
    trials: dict[str, np.ndarray], settings: SyntheticSettings
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Times (s), position (rad) and velocity (rad/s) of the wheel every millisecond.

    The wheel turns counter-clockwise, which is positive, for choices of the right; small movements come between.
    """
    rng = numpy_generator("ibl synthetic wheel", settings.seed)
    times = np.arange(0, trials["intervals_1"][-1] + 5, 0.001)
    velocity = np.zeros(len(times))
    onset, turn = trials["firstMovement_times"], -trials["choice"]
    moves = [
        (begin, max(0.1, end - begin), 0.35 * way * rng.uniform(0.8, 1.4))
        for begin, end, way in zip(onset, trials["response_times"], turn, strict=True)
        if np.isfinite(begin)
    ]
    for begin in rng.uniform(0, times[-1] - 1, len(onset)):
        moves.append((begin, rng.uniform(0.1, 0.4), rng.normal(0, 0.05)))
    for begin, length, angle in moves:
        first, last = np.searchsorted(times, (begin, begin + length))
        phase = (times[first:last] - begin) / length
        velocity[first:last] += angle / length * (1 - np.cos(2 * np.pi * phase))
    return times, np.cumsum(velocity) * 0.001, velocity


def _encoder_events(position: Float[np.ndarray, " n"], settings: SyntheticSettings) -> Int[np.ndarray, " events"]:
    """Samples that an encoder of 1024 lines, read fourfold, writes: where a step is completed; and some at rest."""
    steps = np.floor(position / (2 * np.pi / 4096))
    rest = numpy_generator("ibl synthetic encoder", settings.seed).random(len(position)) < 0.002
    rest[[0, -1]] = True
    return np.flatnonzero((np.diff(steps, prepend=steps[0]) != 0) | rest)


def _jitter(sampled: Int[np.ndarray, " events"], settings: SyntheticSettings) -> Float[np.ndarray, " events"]:
    """Up to 0.3 ms, so that samples keep their order."""
    return numpy_generator("ibl synthetic jitter", settings.seed).uniform(0, 3e-4, len(sampled))


def _drives(trials: dict[str, np.ndarray], velocity: Float[np.ndarray, " n"]) -> Float[np.ndarray, "steps 3"]:
    """Choice, stimulus and wheel in steps of `STEP_S`."""
    per_step = round(STEP_S / 0.001)
    n_steps = len(velocity) // per_step
    drives = np.zeros((n_steps, 3))
    drives[:, 2] = velocity[: n_steps * per_step].reshape(n_steps, per_step).mean(1) / SPEED
    shown = trials["goCue_times"]  # known also where the onset is not
    side = np.where(np.isnan(trials["contrastLeft"]), 1.0, -1.0)
    for at in range(len(shown)):
        end = int(trials["feedback_times"][at] / STEP_S)
        if trials["choice"][at]:
            drives[int((trials["firstMovement_times"][at] - 0.1) / STEP_S) : end, 0] = -trials["choice"][at]
        drives[int(shown[at] / STEP_S) : end, 1] = side[at]
    return drives


def _spikes(
    tuning: Tuning, drives: Float[np.ndarray, "steps 3"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, " spikes"], Int[np.ndarray, " spikes"]]:
    """Times (s) and clusters of Poisson spikes, sorted by time."""
    gains = np.stack([tuning.choice, tuning.stimulus, tuning.wheel])
    times, clusters = [], []
    for cluster, base in enumerate(tuning.base_rate_hz):
        steps = np.repeat(np.arange(len(drives)), rng.poisson(base * STEP_S * np.exp(drives @ gains[:, cluster])))
        times.append((steps + rng.random(len(steps))) * STEP_S)
        clusters.append(np.full(len(steps), cluster, np.int32))
    together = np.concatenate(times)
    order = np.argsort(together, kind="stable")
    return together[order], np.concatenate(clusters)[order]


def _channels(n_units: int) -> Int[np.ndarray, " clusters"]:
    """Channels of the clusters, spread along the probe."""
    return np.linspace(0, N_CHANNELS - 1, n_units).astype(np.int64)


def _layer(channel: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Place of each channel's region in `REGIONS`."""
    return channel * len(REGIONS) // N_CHANNELS


# ---------------------------------------------------------------------------------------------------------- bytes


def _id(*parts: str | int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(map(str, ("ctdb synthetic", *parts)))))


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _parquet(columns: dict[str, np.ndarray]) -> bytes:
    import pandas as pd

    return pd.DataFrame(columns).to_parquet()


# --------------------------------------------------------------------------------------------------------- tables


def _write_tables(cache_dir: Path, settings: SyntheticSettings) -> None:
    """Sessions, datasets and insertions, under ids that do not change from one writing to the next."""
    import pandas as pd
    from one.alf.cache import QC_TYPE

    session = {
        "id": settings.eid,
        "lab": settings.lab,
        "subject": settings.subject,
        "date": datetime.date.fromisoformat(settings.date),
        "number": np.uint16(settings.number),
        "task_protocol": "_iblrig_tasks_ephysChoiceWorld6.4.2",
        "projects": "ibl_neuropixel_brainwide_01",
    }
    folder = cache_dir / settings.path
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.is_file())
    datasets = [_dataset_row(folder, path, settings) for path in files]
    insertions = [{"eid": settings.eid, "id": settings.pid(probe), "name": probe} for probe in settings.probe_names]
    frames = {
        "sessions": pd.DataFrame([session]).set_index("id"),
        "datasets": pd.DataFrame(datasets).astype({"file_size": "UInt64", "qc": QC_TYPE}).set_index(["eid", "id"]),
        "insertions": pd.DataFrame(insertions).set_index(["eid", "id"]),
    }
    for name, frame in frames.items():
        path = cache_dir / f"{name}.pqt"
        if path.exists():
            before = pd.read_parquet(path)
            frame = pd.concat([before[before.index.get_level_values(0) != settings.eid], frame])
        write_bytes(path, _one_table(frame.sort_index()))


def _dataset_row(folder: Path, path: str, settings: SyntheticSettings) -> dict[str, Any]:
    content = (folder / path).read_bytes()
    return {
        "eid": settings.eid,
        "id": _id(settings.path, path, settings.seed),
        "rel_path": path,
        "file_size": len(content),
        "hash": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        "exists": True,
        "qc": "PASS",
        "default_revision": True,
    }


def _one_table(frame: Any) -> bytes:
    """Bytes of a table that the ONE API reads: its date is what tells it from any other parquet file."""
    import json

    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pandas(frame)
    about = json.dumps({"date_created": CREATED, "origin": "ctdb synthetic"}).encode()
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table.replace_schema_metadata({**table.schema.metadata, "one_metadata": about}), sink)
    return sink.getvalue().to_pybytes()
