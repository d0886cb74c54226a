"""What training does to the data, drawn anew for each batch from the generator it is given."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def dropout(value: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Dropout from a seeded generator (torch's own draws from global state); none without a generator."""
    if generator is None or rate == 0:
        return value
    return value * keep_mask(value.shape, rate, generator, value) / (1 - rate)


def keep_mask(shape: tuple[int, ...], rate: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """1 with probability 1 - `rate`, else 0, in the type and on the device of `like`."""
    drawn = torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)
    return (drawn >= rate).to(like.dtype)


def spike_jitter(
    counts: Float[Tensor, "trials bins neurons"],
    width: int,
    n_bins: Int[Tensor, " trials"] | None,
    generator: torch.Generator,
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
    generator
        Source of the moves.
    """
    missing = counts.isnan()
    whole = torch.where(missing, 0, counts).long()
    trial, time, neuron = whole.nonzero(as_tuple=True)
    times = whole[trial, time, neuron]
    trial, time, neuron = (index.repeat_interleave(times) for index in (trial, time, neuron))
    last = (torch.full_like(trial, counts.shape[1]) if n_bins is None else n_bins[trial]) - 1
    move = torch.randint(-width, width + 1, time.shape, generator=generator, device=counts.device)
    moved = (time + move).abs()
    moved = (last - (last - moved).abs()).clamp(min=0)
    moved = torch.where(missing[trial, moved, neuron], time, moved)
    result = torch.zeros_like(counts).index_put((trial, moved, neuron), counts.new_ones(()), accumulate=True)
    return torch.where(missing, counts, result)


def temporal_shift(
    data: Float[Tensor, "trials bins channels"],
    deviation: float,
    largest: int,
    n_bins: Int[Tensor, " trials"] | None,
    generator: torch.Generator,
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
    generator
        Source of the shifts.

    References
    ----------
    Wimalasena et al. (2022), on EMG.
    """
    n_trials, length, n_channels = data.shape
    drawn = torch.randn(n_trials, 1, n_channels, generator=generator, dtype=data.dtype, device=data.device)
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
