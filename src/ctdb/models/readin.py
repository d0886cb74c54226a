"""What joins sessions of different neurons: a linear read-in to shared channels, learned or by regression."""

from typing import Literal

import numpy as np
import torch
from torch import nn

from ctdb.datasets import MultiSession, SpikeDataset, Split
from ctdb.errors import ConfigError, DatasetError
from ctdb.settings import Count, NonNegative, Settings


class ReadinSettings(Settings):
    """How spikes enter the encoders.

    `identity`: as they are. `linear`: through a map per session, learned. `pcr`: the same, started by principal
    component regression, with the readouts.
    """

    kind: Literal["identity", "linear", "pcr"] = "identity"
    dim: Count | None = None
    freeze: bool = False
    smoothing_s: NonNegative = 0.02
    ridge: NonNegative = 1.0

    def size(self, n_heldin: int, fac_dim: int, n_sessions: int) -> int:
        """Channels that the encoders see."""
        if self.kind == "identity":
            if n_sessions > 1:
                raise ConfigError(
                    "readin.kind: is 'identity', but each session has its own neurons; choose 'linear' or 'pcr'"
                )
            return n_heldin
        return self.dim or fac_dim


def start_by_regression(
    readins: nn.ModuleList, readouts: nn.ModuleList, dataset: SpikeDataset | MultiSession, settings: ReadinSettings
) -> None:
    r"""Start read-ins and readouts so that all sessions speak of the same population components.

    Condition means of all sessions' neurons, smoothed, are joined and reduced to principal components C (conditions
    times bins, components); each session's centred means X then give the read-in :math:`W` by ridge regression
    :math:`X W \approx C`, its offset, and the readout by least squares :math:`C V \approx X / \bar x`, which is the
    deviation of the log-rate to first order.

    Raises
    ------
    DatasetError
        If a session has no `condition`, or the sessions share none.

    References
    ----------
    Pandarinath et al. (2018), "Modeling multiple datasets"; Rouse et al. and the lfads-torch tutorial for the ridge.
    """
    sessions = list(dataset.sessions.values())
    means = [condition_means(session["train"], session.bin_s, settings.smoothing_s) for session in sessions]
    shared = sorted(set.intersection(*(set(found) for found in means)))
    if not shared:
        raise DatasetError("readin.kind 'pcr' needs a `condition` that occurs in every session; choose 'linear'")
    n_bins = min(one[shared[0]].shape[0] for one in means)
    n_bins = min([n_bins, *(session.n_bins for session in sessions)])
    stacked = [np.concatenate([one[condition][:n_bins] for condition in shared]) for one in means]
    centres = [one.mean(0) for one in stacked]
    joined = np.concatenate([one - centre for one, centre in zip(stacked, centres, strict=True)], 1)
    left, singular, _ = np.linalg.svd(joined, full_matrices=False)
    for index, (values, centre) in enumerate(zip(stacked, centres, strict=True)):
        n_heldin = sessions[index].n_heldin
        n_read, n_factors = readins[index].out_features, readouts[index].in_features
        rank = int((singular > 1e-9 * singular[0]).sum())
        if n_read > rank:
            raise DatasetError(f"readin.dim is {n_read}, but the condition means have only {rank} components; lower it")
        components = left * singular
        seen = (values - centre)[:, :n_heldin]
        gram = seen.T @ seen + settings.ridge * np.eye(n_heldin)
        weight = np.linalg.solve(gram, seen.T @ components[:, :n_read])
        with torch.no_grad():
            readins[index].weight.copy_(torch.from_numpy(weight.T))
            readins[index].bias.copy_(torch.from_numpy(-centre[:n_heldin] @ weight))
            if readouts[index].out_features == values.shape[1]:  # one parameter per neuron: a log-rate
                kept = min(n_factors, rank)
                unit = components[:, :kept] / components[:, :kept].std(0)
                relative = (values - centre) / np.maximum(centre, 1e-6)
                back = np.linalg.lstsq(unit, relative, rcond=None)[0]
                readouts[index].weight[:, :kept] = torch.from_numpy(back.T).to(readouts[index].weight)


def condition_means(trials: Split, bin_s: float | None, smoothing_s: float) -> dict[int, np.ndarray]:
    """Mean counts (bins, neurons) of each condition, smoothed in time by a normal kernel of `smoothing_s`."""
    if trials.condition is None:
        raise DatasetError("readin.kind 'pcr' needs the `condition` of every trial; choose 'linear', or add it")
    counts = np.where(trials.observed(), trials.recon_data, np.nan).astype(np.float64)
    found = {}
    for condition in np.unique(trials.condition):
        own = counts[trials.condition == condition]
        known = ~np.isnan(own)
        count = known.sum(0)
        mean = np.where(known, own, 0).sum(0) / np.maximum(count, 1)
        found[int(condition)] = _smooth(mean, (count > 0).astype(float), smoothing_s / bin_s if bin_s else 0.0)
    return found


def _smooth(values: np.ndarray, known: np.ndarray, deviation: float) -> np.ndarray:
    """Weighted mean over bins that are known; a bin that is not takes the nearest ones' values."""
    if deviation == 0 and known.all():
        return values
    time = np.arange(len(values))
    kernel = np.exp(-0.5 * ((time[:, None] - time) / max(deviation, 0.1)) ** 2) + 1e-200
    return kernel @ (values * known) / np.maximum(kernel @ known, 1e-300)
