"""Whole recordings of the International Brain Laboratory as windows without trials, as python-lfads has them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ctdb.datasets.continuous import BlockedWindows, blocked_starts
from ctdb.datasets.dataset import SPLITS, SpikeDataset, Split
from ctdb.datasets.ibl.prepare import of_each_session
from ctdb.datasets.ibl.session import SessionReader
from ctdb.datasets.ibl.units import UnitFilters, candidates, choose
from ctdb.datasets.kind import DATASETS, DatasetKind, DatasetSettings, Source
from ctdb.datasets.multi_session import MultiSession
from ctdb.errors import DatasetError, IblNoTrialsError
from ctdb.settings import Count, Positive


class IblContinuousSettings(BlockedWindows, UnitFilters, DatasetSettings):
    """Settings of a dataset of kind `ibl_continuous`; the defaults are python-lfads' windows."""

    kind: Literal["ibl_continuous"]
    recording: str
    bin_s: Positive = 0.005
    window_bins: Count = 160
    block_bins: Count = 4800


@DATASETS.register("ibl_continuous")
class IblContinuous(DatasetKind):
    """Windows over the whole recording, from 0 s to the last spike that all probes have, whatever the mouse did.

    As kind `continuous`, of the spikes of a recording: whole blocks go to a split, and `start` tells where a window
    lies. Other than python-lfads', every window holds the same units, and a bin as many spikes as there were.
    """

    Settings = IblContinuousSettings

    @staticmethod
    def sources(settings: IblContinuousSettings) -> list[Source]:
        """The recording: its manifest, and the folder that the manifest's paths are relative to."""
        return [("recording", settings.recording)]

    @staticmethod
    def prepare(settings: IblContinuousSettings, files: Sequence[Path | str]) -> SpikeDataset | MultiSession:
        """Cut the windows of each session and deal its blocks to the splits."""
        return of_each_session(files, lambda reader: _windows(reader, settings))


def _windows(reader: SessionReader, settings: IblContinuousSettings) -> SpikeDataset:
    found = candidates(reader.sortings(), settings, reader.where)
    n_bins = int(found.span(reader.where)[1] / settings.bin_s)
    try:
        starts = blocked_starts(settings, n_bins, reader.where)
    except DatasetError as error:
        raise IblNoTrialsError(str(error)) from None
    counts = {  # bins are counted from 0 s, so an edge is the same number in every window
        split: found.count((first[:, None] + np.arange(settings.window_bins + 1)) * settings.bin_s)
        for split, first in starts.items()
    }
    rate_hz = counts["train"].mean((0, 1), dtype=np.float64) / settings.bin_s
    units = choose(found, rate_hz, settings, settings.seed, reader.where)
    n_heldin = len(units.order) - settings.n_heldout
    splits = {}
    for split in SPLITS:
        recon = counts.pop(split)[:, :, units.order]
        splits[split] = Split(encod_data=recon[:, :, :n_heldin].copy(), recon_data=recon, start=starts[split])
    provenance = settings.model_dump() | reader.provenance() | units.provenance | {"n_bins": n_bins}
    return SpikeDataset(splits, settings.bin_s, {"neurons": units.names}, provenance)
