"""GRU with noise in its state, the standard ground truth of the benchmark."""

from ctdb.networks import NETWORKS
from ctdb.networks.base import Network, NetworkSettings
from ctdb.recurrent import GRUCell
from ctdb.settings import NonNegative


class NoisyGRUSettings(NetworkSettings):
    """Settings of network `noisy_gru`."""

    state_noise: NonNegative = 0.01


@NETWORKS.register("noisy_gru")
class NoisyGRU(Network):
    """GRU whose state gets N(0, state_noise^2) after every step, in training and in simulation.

    As in the computation-through-dynamics benchmark, `state_noise` is a standard deviation and the output of a bin is
    read before its noise is added.
    """

    Settings = NoisyGRUSettings

    def make_cell(self) -> GRUCell:
        """GRU cell."""
        return GRUCell(self.n_inputs, self.settings.hidden_size)
