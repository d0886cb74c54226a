"""Vanilla recurrent network."""

from ctdb.networks import NETWORKS
from ctdb.networks.base import Network, NetworkSettings
from ctdb.recurrent import TanhCell


@NETWORKS.register("vanilla")
class Vanilla(Network):
    """Elman's network: tanh units that forget their state in every step but for what they tell each other."""

    Settings = NetworkSettings

    def make_cell(self) -> TanhCell:
        """Tanh cell."""
        return TanhCell(self.n_inputs, self.settings.hidden_size)
