"""What training does to the data, drawn anew for each trial and epoch."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ctdb.recurrent import Noise


def is_off(value: float | Tensor) -> bool:
    """Whether a setting is 0; one that differs between models that train together is a tensor, and not known to be."""
    return not isinstance(value, Tensor) and value == 0


def dropout(value: Tensor, rate: float | Tensor, noise: Noise | None, stream: str) -> Tensor:
    """Dropout of (trials, channels) or (trials, bins, channels), seeded; none without noise.

    `stream` names what is dropped: each has masks of its own.
    """
    if noise is None or is_off(rate):
        return value
    n_bins = value.shape[1] if value.ndim == 3 else 1
    kept = noise.keep(stream, n_bins, value.shape[-1], rate).view(value.shape)
    return value * kept.to(value.dtype).mul_(1 / (1 - rate))


def spike_jitter(
    counts: Float[Tensor, "trials bins neurons"],
    width: int,
    n_bins: Int[Tensor, " trials"] | None,
    noise: Noise,
    stream: str,
) -> Float[Tensor, "trials bins neurons"]:
    """Move every spike by a whole number of bins drawn from [-width, width], reflected at the ends of its trial.

    Missing counts (NaN) stay where they are; spikes that would land there stay where they were.

    Parameters
    ----------
    counts
        Spike counts.
    width
        Largest move, in bins.
    n_bins
        Valid bins of each trial; all where not given.
    noise, stream
        Source of the moves.
    """
    missing = counts.isnan()
    whole = torch.where(missing, 0, counts).long()
    length, n_neurons = counts.shape[1:]
    last = (torch.full((len(counts),), length, device=counts.device) if n_bins is None else n_bins)[:, None, None] - 1
    time = torch.arange(length, device=counts.device)[None, :, None]
    result = torch.zeros_like(counts)
    for spike in range(int(whole.max()) if whole.numel() else 0):  # the first spike of every bin, the second, ...
        move = noise.whole(f"{stream} {spike}", length, n_neurons, 2 * width + 1) - width
        moved = (time + move).abs()
        moved = (last - (last - moved).abs()).clamp(min=0)
        moved = torch.where(missing.gather(1, moved), time, moved)
        result.scatter_add_(1, moved, (whole > spike).to(counts.dtype))
    return torch.where(missing, counts, result)


def temporal_shift(
    data: Float[Tensor, "trials bins channels"],
    deviation: float,
    largest: int,
    n_bins: Int[Tensor, " trials"] | None,
    noise: Noise,
    stream: str,
) -> Float[Tensor, "trials bins channels"]:
    """Shift each channel of each trial as a whole, by a rounded normal number of bins; the edge values are repeated.

    Parameters
    ----------
    data
        Any signal.
    deviation, largest
        Standard deviation of the shift and its largest absolute value, in bins.
    n_bins
        Valid bins of each trial; all where not given.
    noise, stream
        Source of the shifts.

    References
    ----------
    Wimalasena et al. (2022), on EMG.
    """
    n_trials, length, n_channels = data.shape
    drawn = noise.normal(stream, 1, n_channels, data)
    shift = (deviation * drawn).round().clamp(-largest, largest).long()
    time = torch.arange(length, device=data.device)[None, :, None]
    last = torch.full((n_trials,), length, device=data.device) if n_bins is None else n_bins
    source = torch.minimum((time - shift).clamp(min=0), last[:, None, None] - 1)
    shifted = data.gather(1, source)
    return torch.where(time < last[:, None, None], shifted, data)


def hide_samples(shape: tuple[int, ...], rate: float, seed: int, like: Tensor) -> Bool[Tensor, "trials bins neurons"]:
    """Samples that a model neither sees nor is trained on, so that their likelihood validates it; fixed by the seed."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) < rate).to(like.device)
