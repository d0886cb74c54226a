"""Names of brain regions to the ids of the Allen atlas."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from ctdb.errors import IblPrepareError, nearest


def region_ids(regions: Sequence[str | int]) -> Int[np.ndarray, " ids"]:
    """Allen ids of the regions: those of an acronym are its own and those of all its parts; a number is itself.

    The ontology is the Allen Institute's, whose terms keep us from shipping it; acronyms are looked up through the
    optional package `iblatlas`.

    Raises
    ------
    IblPrepareError
        If acronyms are used without `iblatlas`, or one is not known.
    """
    ids = {region for region in regions if isinstance(region, int)}
    if acronyms := [region for region in regions if isinstance(region, str)]:
        try:
            from iblatlas.regions import BrainRegions
        except ImportError:
            raise IblPrepareError(
                f"regions: {acronyms} need the package iblatlas to become ids: pip install iblatlas, or give Allen ids "
                "(whole numbers, each with the ids of its parts), such as 993 for MOs"
            ) from None
        atlas = BrainRegions()
        right = atlas.id > 0  # the left hemisphere repeats all regions with negative ids
        known = dict(zip(atlas.acronym[right].tolist(), atlas.id[right].tolist(), strict=True))
        if unknown := [acronym for acronym in acronyms if acronym not in known]:
            raise IblPrepareError(f"regions: {unknown[0]!r} is no acronym of the atlas: {nearest(unknown[0], known)}")
        wanted = {known[acronym] for acronym in acronyms}
        parent = dict(zip(atlas.id[right].tolist(), atlas.parent[right].tolist(), strict=True))
        ids |= {region for region in parent if wanted & _upwards(region, parent)}
    return np.array(sorted(ids), np.int64)


def _upwards(region: int, parent: dict[int, float]) -> set[int]:
    """A region and all that it is part of."""
    above = set()
    while region in parent:
        above.add(region)
        region = parent[region]
    return above
