"""Which clusters of a spike sorting are taken as neurons, and how many each filter drops."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from ctdb.datasets.held_out import held_out_last
from ctdb.datasets.ibl.binning import bin_spikes
from ctdb.datasets.ibl.regions import region_ids
from ctdb.datasets.ibl.session import REGIONS_FILE, Sorting
from ctdb.errors import IblMissingError, IblNoUnitsError
from ctdb.settings import Count, NonEmpty, NonNegative, Settings


class UnitFilters(Settings):
    """Settings that choose units."""

    min_label: float = Field(1.0, ge=0, le=1)
    regions: NonEmpty[str | int] | None = None
    min_rate_hz: NonNegative = 0.1
    min_units: Count = 10
    n_heldout: int = Field(0, ge=0)


@dataclass(frozen=True)
class Candidates:
    """Clusters of each probe that pass the filters of label and region, and what these dropped."""

    sortings: list[Sorting]
    clusters: list[np.ndarray]
    dropped: dict[str, int]

    def count(self, edges: Float[np.ndarray, "windows edges"]) -> Float[np.ndarray, "windows bins units"]:
        """Their spikes in each bin, probe after probe."""
        pairs = zip(self.sortings, self.clusters, strict=True)
        parts = [bin_spikes(one.times, one.clusters, clusters, edges) for one, clusters in pairs]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 2)

    def span(self, where: str) -> tuple[float, float]:
        """First and last time (s) that all probes have spikes of; raises IblNoUnitsError for a probe without any."""
        for one in self.sortings:
            if len(one.times) == 0:
                raise IblNoUnitsError(f"{where}: {one.name} has no spikes; leave the probe out")
        return max(float(one.times[0]) for one in self.sortings), min(float(one.times[-1]) for one in self.sortings)

    def described(self) -> list[dict[str, Any]]:
        """Name, region and label of each."""
        return [
            {
                "name": f"{one.name} {cluster} {one.uuid[cluster]}".strip(),
                "region": None if one.region is None else int(one.region[cluster]),
                "label": None if np.isnan(one.label[cluster]) else float(one.label[cluster]),
            }
            for one, clusters in zip(self.sortings, self.clusters, strict=True)
            for cluster in clusters.tolist()
        ]


def candidates(sortings: Sequence[Sorting], filters: UnitFilters, where: str) -> Candidates:
    """Clusters whose label is at least `min_label` and that lie in one of the `regions`.

    A cluster without label passes only where `min_label` is 0.

    Raises
    ------
    IblMissingError
        If regions are asked for and a probe has none.
    IblPrepareError
        If a region is not known.
    """
    wanted = region_ids(filters.regions) if filters.regions else None
    chosen, dropped = [], {"recorded": 0, "low_label": 0, "other_region": 0}
    for one in sortings:
        good = (one.label >= filters.min_label) | (filters.min_label == 0)
        inside = np.ones(len(one.label), bool)
        if wanted is not None:
            if one.region is None:
                raise IblMissingError(
                    f"{where}: {one.name} has no {REGIONS_FILE}, so its regions are not known; fetch it, or leave out "
                    "`regions`"
                )
            inside = np.isin(one.region, wanted)
        chosen.append(np.flatnonzero(good & inside))
        dropped["recorded"] += len(good)
        dropped["low_label"] += int((~good).sum())
        dropped["other_region"] += int((good & ~inside).sum())
    return Candidates(list(sortings), chosen, dropped)


class Chosen(NamedTuple):
    """Units of a dataset in its order, held-in ones first: which of the candidates they are, and what is known of them.

    Attributes
    ----------
    order
        Places among the candidates.
    names
        Probe, cluster and uuid of each.
    provenance
        Counts per filter under `units`, and region, label and rate on the train trials (Hz) of each unit.
    """

    order: Int[np.ndarray, " units"]
    names: list[str]
    provenance: dict[str, Any]


def choose(
    found: Candidates, rate_hz: Float[np.ndarray, " candidates"], filters: UnitFilters, seed: int, where: str
) -> Chosen:
    """Units that fire at least `min_rate_hz`, `n_heldout` of them, drawn by the seed, last.

    Parameters
    ----------
    found
        What passed the other filters.
    rate_hz
        Mean rate of each of them on the train trials.
    filters, seed
        Settings.
    where
        Name of the session, for the message.

    Raises
    ------
    IblNoUnitsError
        If fewer than `min_units` are left, or none beside the held-out ones; tells what each filter dropped.
    """
    kept = np.flatnonzero(rate_hz >= filters.min_rate_hz)
    counts = found.dropped | {"too_quiet": len(rate_hz) - len(kept), "kept": len(kept)}
    if len(kept) < max(filters.min_units, filters.n_heldout + 1):
        raise IblNoUnitsError(
            f"{where}: {len(kept)} units are left, expected at least `min_units`, {filters.min_units}, and more than "
            f"`n_heldout`, {filters.n_heldout}. Of {counts['recorded']} clusters, `min_label` {filters.min_label:g} "
            f"drops {counts['low_label']}, `regions` {counts['other_region']} more and `min_rate_hz` "
            f"{filters.min_rate_hz:g} {counts['too_quiet']} more; weaken one, or leave the session out"
        )
    order = held_out_last(kept, filters.n_heldout, seed)
    described = found.described()
    facts = {key: [described[unit][key] for unit in order] for key in ("name", "region", "label")}
    return Chosen(
        order,
        facts["name"],
        {
            "units": counts,
            "unit_region": facts["region"],
            "unit_label": facts["label"],
            "unit_rate_hz": np.round(rate_hz[order], 3).tolist(),
        },
    )
