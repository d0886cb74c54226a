"""One recorded session as arrays: spike sortings of its probes, trials and wheel, checked to go together."""

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer

from ctdb.datasets.ibl.manifest import FileRecord, Probe, SessionFiles, verified
from ctdb.errors import IblMissingError, IblPrepareError

REGIONS_FILE = "channels.brainLocationIds_ccf_2017.npy"


@dataclass(frozen=True)
class Sorting:
    """Spikes of one probe, and its clusters in the order of their ids.

    Attributes
    ----------
    times, clusters
        Time (s) and cluster of each spike, sorted by time.
    label
        Share of the quality metrics that a cluster passes; NaN where none are known.
    region
        Allen id of the region; None where the probe has not been traced.
    uuid
        Of each cluster; empty strings where none are known.
    """

    pid: str
    name: str
    times: Float[np.ndarray, " spikes"]
    clusters: Integer[np.ndarray, " spikes"]
    label: Float[np.ndarray, " clusters"]
    region: Int[np.ndarray, " clusters"] | None
    uuid: list[str]


class SessionReader:
    """Reads the files of one session, each verified by size and md5 when it is read.

    Parameters
    ----------
    files
        Their records.
    cache_dir
        Folder that their paths are relative to.
    """

    def __init__(self, files: SessionFiles, cache_dir: Path | str):
        self.files, self._cache_dir = files, Path(cache_dir)
        self.where = f"session {self.name} ({files.eid})"

    @property
    def name(self) -> str:
        """Subject, date and number, as in the reference of the session."""
        return f"{self.files.subject}_{self.files.date}_{self.files.number:03d}"

    @property
    def _probes(self) -> list[Probe]:
        """In the order of their names, whatever the manifest's."""
        return sorted(self.files.probes, key=lambda probe: probe.name)

    def sortings(self) -> list[Sorting]:
        """Spike sorting of each probe.

        Raises
        ------
        IblMissingError
            If there is no probe, or a file is not there.
        IblChecksumError
            If a file is not the one that was recorded.
        IblPrepareError
            If files of a probe do not go together.
        """
        if not self.files.probes:
            raise IblMissingError(f"{self.where}: there is no probe in the manifest; choose another session")
        return [self._sorting(probe.pid, probe.name) for probe in self._probes]

    def trials(self, columns: Collection[str]) -> dict[str, Float[np.ndarray, " trials"]]:
        """Columns of the trials table.

        Raises
        ------
        IblMissingError, IblChecksumError
            As :meth:`sortings`.
        IblPrepareError
            If a column is missing.
        """
        return self._table(self._record("_ibl_trials.table.pqt"), columns)

    def wheel(self) -> tuple[Float[np.ndarray, " times"], Float[np.ndarray, " positions"]]:
        """Times (s) and positions (rad) of the wheel; raises IblMissingError and IblChecksumError."""
        times, position = (self._array(self._record(f"_ibl_wheel.{name}.npy")) for name in ("timestamps", "position"))
        return times.astype(np.float64), position.astype(np.float64)

    def provenance(self) -> dict[str, Any]:
        """Session, insertions, and the files with their checksums."""
        return {
            "eid": self.files.eid,
            "session": self.name,
            "lab": self.files.lab,
            "pids": [probe.pid for probe in self._probes],
            "files": {file.path: file.md5 for file in self.files.files},
        }

    def _sorting(self, pid: str, probe: str) -> Sorting:
        spikes = [self._record(f"spikes.{name}.npy", probe) for name in ("times", "clusters")]
        channels = self._record("clusters.channels.npy", probe)
        if len({record.revision for record in (*spikes, channels)}) > 1:
            raise IblPrepareError(
                f"{self.where}: {probe}: spikes.times, spikes.clusters and clusters.channels are of the revisions "
                f"{[record.revision for record in (*spikes, channels)]}; all must be of one: fetch that one"
            )
        times, clusters = (self._array(record) for record in spikes)
        if times.shape != clusters.shape or times.ndim != 1:
            raise IblPrepareError(
                f"{self.where}: {probe}: {times.shape} spike times but {clusters.shape} spike clusters; expected one "
                "cluster for each time: fetch the probe again"
            )
        if times.dtype.kind != "f" or clusters.dtype.kind not in "iu":
            raise IblPrepareError(
                f"{self.where}: {probe}: spike times are {times.dtype} and clusters {clusters.dtype}; expected floats "
                "and whole numbers"
            )
        if not np.isfinite(times).all():
            raise IblPrepareError(f"{self.where}: {probe}: spikes.times holds times that are not finite; leave it out")
        if (times[1:] < times[:-1]).any():
            order = np.argsort(times, kind="stable")
            times, clusters = times[order], clusters[order]
        channel = self._array(channels)
        if len(clusters) and not (clusters.min() >= 0 and clusters.max() < len(channel)):
            raise IblPrepareError(
                f"{self.where}: {probe}: spikes are of clusters {clusters.min()} to {clusters.max()}, but "
                f"clusters.channels has {len(channel)} clusters; fetch the probe again"
            )
        return Sorting(
            pid=pid,
            name=probe,
            times=times.astype(np.float64, copy=False),
            clusters=clusters,
            label=self._labels(probe, len(channel)),
            region=self._regions(probe, channel),
            uuid=self._uuids(probe, len(channel)),
        )

    def _labels(self, probe: str, n_clusters: int) -> Float[np.ndarray, " clusters"]:
        """Label of each cluster; the table may lack clusters, and is not in their order."""
        record = self._record("clusters.metrics.pqt", probe)
        table = self._table(record, ("cluster_id", "label"))
        cluster = table["cluster_id"].astype(np.int64)
        if len(np.unique(cluster)) < len(cluster) or not ((cluster >= 0) & (cluster < n_clusters)).all():
            raise IblPrepareError(
                f"{self.where}: {record.path}: cluster_id must name each of the {n_clusters} clusters at most once; "
                "fetch the probe again"
            )
        label = np.full(n_clusters, np.nan)
        label[cluster] = table["label"]
        return label

    def _regions(self, probe: str, channel: np.ndarray) -> Int[np.ndarray, " clusters"] | None:
        if not self._records(REGIONS_FILE, probe):
            return None
        of_channel = self._array(self._record(REGIONS_FILE, probe))
        if channel.min() < 0 or channel.max() >= len(of_channel):
            raise IblPrepareError(
                f"{self.where}: {probe}: clusters.channels names channel {channel.max()}, but {REGIONS_FILE} has "
                f"{len(of_channel)}; fetch the probe again"
            )
        return of_channel[channel].astype(np.int64)

    def _uuids(self, probe: str, n_clusters: int) -> list[str]:
        if not self._records("clusters.uuids.csv", probe):
            return [""] * n_clusters
        record = self._record("clusters.uuids.csv", probe)
        with verified(record, self._cache_dir).open(newline="") as file:
            uuids = [row["uuids"] for row in csv.DictReader(file)]
        if len(uuids) != n_clusters:
            raise IblPrepareError(
                f"{self.where}: {record.path}: has {len(uuids)} uuids for {n_clusters} clusters; fetch it again"
            )
        return uuids

    def _records(self, dataset: str, probe: str = "") -> list[FileRecord]:
        below = f"alf/{probe}" if probe else "alf"
        return [
            record
            for record in self.files.files
            if record.dataset == dataset
            and (record.collection == below or (probe and record.collection.startswith(f"{below}/")))
        ]

    def _record(self, dataset: str, probe: str = "") -> FileRecord:
        """The one record of a dataset of the session, or of a probe."""
        found = self._records(dataset, probe)
        place = f"alf/{probe}" if probe else "alf"
        if not found:
            raise IblMissingError(
                f"{self.where}: the manifest has no {dataset} in {place}; fetch it with the recording"
            )
        if len(found) > 1:
            raise IblPrepareError(
                f"{self.where}: the manifest has {len(found)} files {dataset} in {place}: "
                f"{sorted(record.path for record in found)}; expected one sorter and one revision: fetch only that"
            )
        return found[0]

    def _array(self, record: FileRecord) -> np.ndarray:
        path = verified(record, self._cache_dir)
        try:
            return np.load(path, allow_pickle=False)
        except ValueError as error:
            raise IblPrepareError(f"{path}: not an array of numbers ({error}); fetch it again") from None

    def _table(self, record: FileRecord, columns: Collection[str]) -> dict[str, np.ndarray]:
        """Some columns of a parquet table, as float64."""
        import pyarrow
        from pyarrow import parquet

        path = verified(record, self._cache_dir)
        try:
            table = parquet.read_table(path)
        except pyarrow.ArrowInvalid as error:
            raise IblPrepareError(f"{path}: not a parquet table ({error}); fetch it again") from None
        if missing := sorted(set(columns) - set(table.column_names)):
            raise IblPrepareError(
                f"{path}: lacks the columns {missing}, has {table.column_names}; fetch another revision"
            )
        return {name: np.asarray(table[name].to_numpy(), np.float64) for name in columns}
