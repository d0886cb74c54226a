"""GRU without noise in its state."""

from ctdb.networks import NETWORKS
from ctdb.networks.base import Network, NetworkSettings
from ctdb.recurrent import GRUCell


@NETWORKS.register("gru")
class GRU(Network):
    """GRU with a learned initial state; what is noisy are its inputs and its start alone."""

    Settings = NetworkSettings

    def make_cell(self) -> GRUCell:
        """GRU cell."""
        return GRUCell(self.n_inputs, self.settings.hidden_size)
