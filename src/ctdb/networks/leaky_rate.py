"""Leaky firing-rate network, as trained on many tasks at once by Yang et al. (2019) and Driscoll et al. (2024)."""

from typing import Literal

from pydantic import Field

from ctdb.networks import NETWORKS
from ctdb.networks.base import Network, NetworkSettings
from ctdb.recurrent import LeakyRateCell
from ctdb.settings import NonNegative


class LeakyRateSettings(NetworkSettings):
    """Settings of network `leaky_rate`; `leak` is time step over time constant."""

    state_noise: NonNegative = 0.05
    leak: float = Field(0.2, gt=0, le=1)
    activation: Literal["tanh", "relu", "softplus"] = "tanh"


@NETWORKS.register("leaky_rate")
class LeakyRate(Network):
    """Rates that move by a share `leak` of the way to what their input asks for: h' = (1 - leak) h + leak f(...).

    Repairs of CtDB's `DriscollRNN`: its state leaks as (1 - leak) W h instead of (1 - leak) h, so that `leak` is no
    longer a time step over a time constant (with W = 0 the state is gone after one bin); and its output of a bin is
    read before the input of that bin has moved the state.

    References
    ----------
    Yang et al. (2019), Nature Neuroscience 22:297; Driscoll, Shenoy & Sussillo (2024), Nature Neuroscience 27:1349.
    """

    Settings = LeakyRateSettings

    def make_cell(self) -> LeakyRateCell:
        """Leaky rate cell."""
        settings = self.settings
        return LeakyRateCell(self.n_inputs, settings.hidden_size, settings.leak, settings.activation)
