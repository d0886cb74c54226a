"""What figures may be drawn from: what a configuration makes of it, and the files of one figure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ctdb.errors import MissingError

Need = tuple[str | int, ...]
"""A file that a figure is drawn from, by what it is:

- ("activity", network, seed, variant), and ("network_history", network, seed), the losses of its training;
- ("dataset", name);
- ("fit", dataset, model, seed), and ("history", ...) and ("dynamics", ...) of the same. The file of dynamics is
  `dynamics.h5`; `fixed_points.h5` lies beside it. ("dynamics", dataset) is that of the true system;
- ("dsa", dataset);
- ("scores", dataset, model, seed), and ("dynamics_scores", ...) of the same: scores of a fit; without model and seed,
  of the floor and ceiling of the data set. :meth:`Planned.scores` lists them.
"""
SCORES = ("scores", "dynamics_scores", "dsa_scores")
"""Needs that are tables of scores."""


@dataclass(frozen=True)
class Planned:
    """What a configuration makes, for a figure to choose from.

    Attributes
    ----------
    fits
        Data set, model and seed of every fit, in the order of the configuration. A point of a sweep has a model of its
        own, such as ``sae_node@latent_size=8``.
    dynamics
        Data sets whose dynamics are analysed, and whether by dynamical similarity analysis too.
    """

    fits: tuple[tuple[str, str, int], ...] = ()
    dynamics: Mapping[str, bool] = field(default_factory=dict)

    def fits_of(self, dataset: str, models: Iterable[str] | None = None) -> list[tuple[str, str, int]]:
        """Fits to a data set; of some models only, each with the points of its sweeps, where these are given."""
        own = [fit for fit in self.fits if fit[0] == dataset]
        if models is None:
            return own
        wanted = set(models)
        return [fit for fit in own if fit[1] in wanted or fit[1].partition("@")[0] in wanted]

    def scores(self, dataset: str, models: Iterable[str] | None = None) -> list[Need]:
        """Scores of those fits, and of the floor and ceiling of their data set."""
        fits = [(dataset,), *self.fits_of(dataset, models)]
        needs = [("scores", *fit) for fit in fits]
        if dataset in self.dynamics:
            needs += [("dynamics_scores", *fit) for fit in fits]
        if self.dynamics.get(dataset) and models is None:
            needs.append(("dsa_scores", dataset))
        return needs


class Files(Mapping[Need, str]):
    """Files of a figure by what they are; one that this configuration does not make raises MissingError."""

    def __init__(self, paths: Mapping[Need, str], missing: Mapping[Need, str] = MappingProxyType({})):
        self._paths, self.missing = dict(paths), dict(missing)

    @classmethod
    def of(cls, needs: Iterable[list], paths: Iterable[str], missing: Iterable[list]) -> "Files":
        """From what a plan says of a figure, and the paths of its needs in the same order."""
        named = {tuple(need): path for need, path in zip(needs, paths, strict=True)}
        return cls(named, {tuple(need): reason for need, reason in missing})

    def __getitem__(self, need: Need) -> str:
        if need in self.missing:
            raise MissingError(self.missing[need])
        return self._paths[need]

    def __iter__(self) -> Iterator[Need]:
        return iter({**self._paths, **self.missing})

    def __len__(self) -> int:
        return len(self._paths | self.missing)
