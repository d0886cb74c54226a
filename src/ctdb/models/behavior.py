"""Behaviour from factors: the decoder that BAND trains with the model, and that LFADS gets afterwards."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ctdb.datasets import MultiSession, SpikeDataset, Split
from ctdb.errors import DatasetError
from ctdb.models.augmentations import dropout
from ctdb.recurrent import FanInLinear, Noise
from ctdb.regression import ridge
from ctdb.settings import Fraction, NonEmpty, NonNegative, Settings


class GroupSettings(Settings):
    """Channels, by name or number, that are weighted together."""

    channels: NonEmpty[str | int]
    weight: NonNegative = 1.0


class BehaviorSettings(Settings):
    """Settings of the behaviour decoder."""

    decoder: Literal["linear", "sequence"] = "linear"
    dropout: Fraction = 0.0
    groups: dict[str, GroupSettings] = {}


class BehaviorDecoder(nn.Module):
    r"""Behaviour y, standardised on train data, from factors f.

    `linear`: :math:`\hat y_t = W f_t + b`. `sequence`: all bins from all bins,
    :math:`vec(\hat y) = W\, drop(vec(f)) + b`, as in BAND; trials that are shorter than the longest session see zeros.

    Parameters
    ----------
    settings
        Settings of the decoder.
    n_factors, n_bins, n_behaviors
        Sizes; of the longest session.
    """

    def __init__(self, settings: BehaviorSettings, n_factors: int, n_bins: int, n_behaviors: int):
        super().__init__()
        self.settings, self.n_bins, self.n_behaviors = settings, n_bins, n_behaviors
        times = n_bins if settings.decoder == "sequence" else 1
        self.map = FanInLinear(times * n_factors, times * n_behaviors)
        for name in ("mean", "std", "channel_weight"):
            self.register_buffer(name, torch.ones(n_behaviors))

    def forward(self, factors: Float[Tensor, "trials bins factors"]) -> Float[Tensor, "trials bins behaviors"]:
        """Behaviour in the units of the data."""
        return self.standardised(factors) * self.std + self.mean

    def standardised(
        self, factors: Float[Tensor, "trials bins factors"], noise: Noise | None = None
    ) -> Float[Tensor, "trials bins behaviors"]:
        """Behaviour in standard deviations from its mean; dropout is drawn from `noise`."""
        length = factors.shape[1]
        if self.settings.decoder == "linear":
            return self.map(dropout(factors, self.settings.dropout, noise, "behavior"))
        padded = nn.functional.pad(factors, (0, 0, 0, self.n_bins - length))
        flat = dropout(padded.flatten(1), self.settings.dropout, noise, "behavior")
        return self.map(flat).unflatten(1, (self.n_bins, self.n_behaviors))[:, :length]

    def loss(
        self,
        factors: Float[Tensor, "trials bins factors"],
        behavior: Float[Tensor, "trials behavior_bins behaviors"],
        in_trial: Float[Tensor, "trials bins 1"],
        noise: Noise | None = None,
    ) -> Tensor:
        """Sum over groups of weight times the mean squared error in standard deviations, where behaviour is known."""
        n_bins = behavior.shape[1]
        known = ~behavior.isnan() & (in_trial[:, :n_bins] > 0)
        target = torch.where(known, (behavior - self.mean) / self.std, 0)
        error = torch.where(known, self.standardised(factors, noise)[:, :n_bins] - target, 0)
        per_channel = (error**2).sum((0, 1)) / known.sum((0, 1)).clamp(min=1)
        return (self.channel_weight * per_channel).sum()

    def start_from(self, dataset: SpikeDataset | MultiSession) -> None:
        """Take mean and deviation from the train trials, and resolve the channels of the groups.

        Raises
        ------
        DatasetError
            If a channel is constant or never known, or a group names one that is not there.
        """
        known = np.concatenate(
            [_known(session["train"]).reshape(-1, self.n_behaviors) for session in _with_behavior(dataset)]
        )
        names = next(iter(_with_behavior(dataset))).names.get("behavior") or list(map(str, range(self.n_behaviors)))
        for channel, name in enumerate(names):
            values = known[~np.isnan(known[:, channel]), channel]
            if len(values) == 0 or values.std() <= 1e-6 * max(1e-30, np.abs(values).max()):
                what = f"is always {values[0]:g}" if len(values) else "is never known"
                raise DatasetError(
                    f"train_behavior: channel {name!r} {what} in the train trials, so nothing can be learned from it; "
                    "leave it out of the dataset"
                )
        with torch.no_grad():
            self.mean.copy_(torch.from_numpy(np.nanmean(known, 0, dtype=np.float64)))
            self.std.copy_(torch.from_numpy(np.nanstd(known, 0, dtype=np.float64)))
            self.channel_weight.copy_(self._weights(names))

    def fit(self, dataset: SpikeDataset | MultiSession, factors: Mapping[tuple[str, str], np.ndarray]) -> None:
        """Ridge regression from settled factors, its penalty chosen on the valid trials.

        Parameters
        ----------
        dataset
            Where the behaviour comes from.
        factors
            (session, split) to factors (trials, bins, factors), of `train` and `valid`.
        """
        pairs = {}
        for split in ("train", "valid"):
            parts = [
                self._samples(factors[name, split], _known(session[split]))
                for name, session in dataset.sessions.items()
                if session[split].behavior is not None
            ]
            pairs[split] = [np.concatenate(column) for column in zip(*parts, strict=True)]
        weights, offset = ridge(*pairs["train"], *pairs["valid"])
        with torch.no_grad():
            self.map.weight.copy_(torch.from_numpy(np.nan_to_num(weights.T)))
            self.map.bias.copy_(torch.from_numpy(np.nan_to_num(offset)))

    def _samples(self, factors: np.ndarray, behavior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factors and standardised behaviour as samples of the regression."""
        mean, std = (value.double().cpu().numpy() for value in (self.mean, self.std))
        target = (behavior.astype(np.float64) - mean) / std
        if self.settings.decoder == "linear":
            n_bins = target.shape[1]
            return factors[:, :n_bins].reshape(-1, factors.shape[2]), target.reshape(-1, self.n_behaviors)
        source = np.pad(factors, ((0, 0), (0, self.n_bins - factors.shape[1]), (0, 0)))
        target = np.pad(target, ((0, 0), (0, self.n_bins - target.shape[1]), (0, 0)), constant_values=np.nan)
        return source.reshape(len(source), -1), target.reshape(len(target), -1)

    def _weights(self, names: list[str]) -> Tensor:
        groups = self.settings.groups or {"all": GroupSettings(channels=list(range(self.n_behaviors)))}
        weights = torch.zeros(self.n_behaviors)
        for group, settings in groups.items():
            for channel in settings.channels:
                index = names.index(channel) if channel in names else channel
                if not isinstance(index, int) or not 0 <= index < self.n_behaviors:
                    raise DatasetError(
                        f"behavior.groups.{group}: there is no channel {channel!r}; the dataset has {names}"
                    )
                weights[index] += settings.weight / len(settings.channels)
        return weights


def _known(trials: Split) -> np.ndarray:
    """Behaviour with NaN in padding."""
    length = trials.behavior.shape[1]
    if trials.n_bins is None:
        return trials.behavior
    return np.where((np.arange(length) < trials.n_bins[:, None])[..., None], trials.behavior, np.nan)


def _with_behavior(dataset: SpikeDataset | MultiSession) -> list[SpikeDataset]:
    return [session for session in dataset.sessions.values() if session["train"].behavior is not None]
