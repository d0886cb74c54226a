"""Network of coupled oscillators."""

from jaxtyping import Float
from torch import Tensor

from ctdb.networks import NETWORKS
from ctdb.networks.base import Network, NetworkSettings
from ctdb.recurrent.rate_cells import OscillatorCell
from ctdb.settings import NonNegative, Positive


class OscillatorSettings(NetworkSettings):
    """Settings of network `oscillator`; `hidden_size` counts oscillators, each with a place and a velocity.

    An oscillator alone swings with a period of about 2 pi / (time_step sqrt(stiffness)) bins, which are 63, and dies
    away with a time constant of 2 / (time_step damping) bins, which are 200.
    """

    time_step: Positive = 0.1
    stiffness: Positive = 1.0
    damping: NonNegative = 0.1


@NETWORKS.register("oscillator")
class Oscillator(Network):
    """Oscillators that drive each other; the first half of the state are their places, which are read out.

    References
    ----------
    Rusch & Mishra (2021), Coupled oscillatory recurrent neural network (coRNN), ICLR.
    """

    Settings = OscillatorSettings

    def make_cell(self) -> OscillatorCell:
        """Implicit-explicit step of coupled oscillators."""
        s = self.settings
        return OscillatorCell(self.n_inputs, s.hidden_size, s.time_step, s.stiffness, s.damping)

    def firing_rates(self, state: Float[Tensor, "*n states"]) -> Float[Tensor, "*n hidden"]:
        """Places of the oscillators."""
        return state[..., : self.settings.hidden_size]
