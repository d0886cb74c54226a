"""Neural ODE: few state variables that move along a learned vector field."""

import torch
from torch import nn

from ctdb.networks import NETWORKS
from ctdb.networks.base import Network, NetworkSettings
from ctdb.recurrent import EulerMLPCell
from ctdb.settings import Count, Positive


class NODESettings(NetworkSettings):
    """Settings of network `node`: `hidden_size` counts its state variables."""

    hidden_size: Count = 3
    field_layers: Count = 3
    field_width: Count = 128
    field_gain: Positive = 0.1


class SmallLinear(nn.Linear):
    """Linear map that starts near 0: weights N(0, 0.01^2), no offset."""

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights, in place."""
        self.weight.normal_(0, 0.01, generator=generator)
        self.bias.zero_()


@NETWORKS.register("node")
class NODE(Network):
    """State that takes Euler steps, h' = h + field_gain f([h, u]), with a ReLU network f.

    The reference gives N(0, .01) for the readout's first weights, taken as a standard deviation.
    """

    Settings = NODESettings

    def __init__(self, settings: NODESettings, n_inputs: int, n_outputs: int):
        super().__init__(settings, n_inputs, n_outputs)
        self.output = SmallLinear(settings.hidden_size, n_outputs)

    def make_cell(self) -> EulerMLPCell:
        """Euler step of a ReLU network."""
        s = self.settings
        return EulerMLPCell(self.n_inputs, s.hidden_size, s.field_layers, s.field_width, s.field_gain)
