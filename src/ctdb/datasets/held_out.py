"""Which neurons a model does not see, the same way for every kind of recording."""

import numpy as np
from jaxtyping import Int

from ctdb.seeds import numpy_generator


def held_out_last(neurons: Int[np.ndarray, " n"], n_heldout: int, seed: int) -> Int[np.ndarray, " n"]:
    """Neurons in the order of a dataset: held-in ones first, then `n_heldout` drawn by the seed, each part sorted."""
    order = numpy_generator("held-out neurons", seed).permutation(neurons)
    n_heldin = len(neurons) - n_heldout
    return np.concatenate([np.sort(order[:n_heldin]), np.sort(order[n_heldin:])])
