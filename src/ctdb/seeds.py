"""Random generators from named axes: every draw has its own seed, and no global state is touched.

Torch generators are made from the same integers: ``torch.Generator(device).manual_seed(derive(...))``.
A seed is a hash of what the draw is for, never ``seed + i``, so that neighbouring seeds share nothing.
"""

import hashlib

import numpy as np


def derive(*axes: str | int) -> int:
    """Seed for one purpose.

    Parameters
    ----------
    *axes
        What the draw is for, for example ``"batches", seed, epoch``.

    Returns
    -------
    An integer in [0, 2**63), the same on every machine.
    """
    digest = hashlib.sha256(repr(axes).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def numpy_generator(*axes: str | int) -> np.random.Generator:
    """NumPy generator seeded by :func:`derive`."""
    return np.random.default_rng(derive(*axes))
