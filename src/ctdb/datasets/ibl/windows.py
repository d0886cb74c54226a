"""The windows that python-lfads published: spikes of mouse motor cortex, one file per window of 160 bins."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, model_validator

from ctdb.datasets.dataset import SPLITS, SpikeDataset, Split, check
from ctdb.datasets.held_out import held_out_last
from ctdb.datasets.ibl.splits import Shares, deal
from ctdb.datasets.kind import DATASETS, DatasetKind, FileBased, Source
from ctdb.errors import IblMissingError, IblNoTrialsError, IblNoUnitsError, IblPrepareError
from ctdb.settings import BinRange, Count, Positive

NAME = re.compile(r"(?P<pid>[0-9a-f-]{36})_(?P<start>\d+)-(?P<stop>\d+)_(?P<first>\d+)-(?P<last>\d+)\.parquet")
"""``{pid}_{i}-{j}_{k}-{l}.parquet``: bins i to j, unit rows k to l, so that row r is unit k + r."""


class IblWindowsSettings(Shares, FileBased):
    """Settings of a dataset of kind `ibl_windows`; `path` is the folder of the files."""

    kind: Literal["ibl_windows"]
    pid: str | None = None
    units: BinRange | None = None
    bin_s: Positive = 0.005
    merge_bins: Count = 1
    block_windows: Count = 4
    n_heldout: int = Field(0, ge=0)
    valid_fraction: float = Field(0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def _some_held_in(self) -> "IblWindowsSettings":
        if self.units is not None and self.units[1] - self.units[0] <= self.n_heldout:
            raise ValueError(f"units {self.units} leave no held-in neuron beside n_heldout {self.n_heldout}")
        return self


@DATASETS.register("ibl_windows")
class IblWindows(DatasetKind):
    """The windows that hold the wanted units, stacked by unit: in each file, a row is another unit.

    Windows that adjoin in the recording go to the same split, by blocks of up to `block_windows`.
    """

    Settings = IblWindowsSettings

    @staticmethod
    def sources(settings: IblWindowsSettings) -> list[Source]:
        """The folder."""
        return [("file", settings.path)]

    @staticmethod
    def prepare(settings: IblWindowsSettings, files: Sequence[Path | str]) -> SpikeDataset:
        """Stack the windows and deal them to the splits."""
        folder = Path(files[0])
        found = _of_one_probe(folder, settings.pid)
        low, high = settings.units or (max(item["first"] for item in found), min(item["last"] for item in found))
        if high - low <= settings.n_heldout:
            raise IblNoUnitsError(
                f"{folder}: the {len(found)} windows share {max(0, high - low)} units, expected more than `n_heldout`, "
                f"{settings.n_heldout}; name a range in `units` that some of the windows hold"
            )
        holding = [item for item in found if item["first"] <= low and high <= item["last"]]
        if not holding:
            raise IblNoTrialsError(
                f"{folder}: none of the {len(found)} windows holds units {low} to {high - 1}; choose fewer `units`"
            )
        if clash := {item["stop"] - item["start"] for item in holding} - {holding[0]["stop"] - holding[0]["start"]}:
            raise IblPrepareError(f"{folder}: windows have different lengths, such as {min(clash)} bins; keep one")
        start = np.array([item["start"] for item in holding])
        if len(np.unique(start)) < len(start):
            raise IblPrepareError(f"{folder}: two files hold the same bins of the same units; remove one of them")
        counts = np.stack([_window(folder, item)[low - item["first"] : high - item["first"]] for item in holding])
        counts = _merged(counts.transpose(0, 2, 1), settings.merge_bins, folder)
        length = holding[0]["stop"] - holding[0]["start"]
        member = deal(_blocks(start, length, settings.block_windows), settings, str(folder))
        order = held_out_last(np.arange(high - low), settings.n_heldout, settings.seed)
        n_heldin = len(order) - settings.n_heldout
        recon = counts[:, :, order]
        whole = Split(encod_data=recon[:, :, :n_heldin], recon_data=recon, trial=start)
        splits = {name: whole.take(np.flatnonzero(member[name])) for name in SPLITS}
        provenance = settings.model_dump(exclude={"path", "optional"}) | {
            "source": folder.name,
            "pid": holding[0]["pid"],
            "n_windows_without_the_units": len(found) - len(holding),
        }
        names = {"neurons": [f"unit {low + row}" for row in order]}
        return check(SpikeDataset(splits, settings.bin_s * settings.merge_bins, names, provenance), str(folder))


def _of_one_probe(folder: Path, pid: str | None) -> list[dict]:
    """What the names of the files tell, in the order of the recording."""
    if not folder.is_dir():
        raise IblMissingError(f"{folder}: there is no such folder; `path` is the folder of the windows")
    matches = [(path.name, NAME.fullmatch(path.name)) for path in sorted(folder.glob("*.parquet"))]
    named = [(name, match.groupdict()) for name, match in matches if match]
    found = [
        {"name": name, "pid": parts["pid"]} | {key: int(parts[key]) for key in ("start", "stop", "first", "last")}
        for name, parts in named
        if pid is None or parts["pid"] == pid
    ]
    if not found:
        raise IblMissingError(
            f"{folder}: no file of {pid or 'any insertion'} is named {{pid}}_{{bins}}_{{units}}.parquet, as those of "
            "python-lfads are; correct `path` or `pid`"
        )
    if len(pids := {item["pid"] for item in found}) > 1:
        raise IblPrepareError(f"{folder}: holds windows of {len(pids)} insertions; choose one in `pid`: {sorted(pids)}")
    return sorted(found, key=lambda item: item["start"])


def _window(folder: Path, item: dict) -> Float[np.ndarray, "units bins"]:
    from pyarrow import parquet

    table = parquet.read_table(folder / item["name"])
    values = np.stack([column.to_numpy() for column in table.columns], 1)
    expected = (item["last"] - item["first"], item["stop"] - item["start"])
    if values.shape != expected:
        raise IblPrepareError(
            f"{folder / item['name']}: holds (units, bins) {values.shape}, expected {expected} from its name; copy it "
            "again"
        )
    return values.astype(np.float32)


def _merged(
    counts: Float[np.ndarray, "windows bins units"], n: int, folder: Path
) -> Float[np.ndarray, "windows merged units"]:
    """Sums of `n` bins each."""
    if counts.shape[1] % n:
        raise IblPrepareError(f"{folder}: `merge_bins` is {n}, which does not divide the {counts.shape[1]} bins")
    return counts.reshape(len(counts), -1, n, counts.shape[2]).sum(2)


def _blocks(start: Int[np.ndarray, " windows"], length: int, most: int) -> Int[np.ndarray, " windows"]:
    """Block of each window: runs of windows that adjoin, cut where they are longer than `most`."""
    block, in_block = [0], 1
    for before, here in pairwise(start):
        adjoins = here - before <= length and in_block < most
        in_block = in_block + 1 if adjoins else 1
        block.append(block[-1] if adjoins else block[-1] + 1)
    return np.array(block)
