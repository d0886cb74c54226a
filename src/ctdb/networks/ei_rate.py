"""Rate network of excitatory and inhibitory units, under Dale's law."""

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from ctdb.networks import NETWORKS
from ctdb.networks.base import Network, NetworkSettings
from ctdb.recurrent.rate_cells import EIRateCell
from ctdb.settings import Positive


class EIRateSettings(NetworkSettings):
    """Settings of network `ei_rate`; `leak` is time step over time constant, the spectral radius is that at the start.

    The first `n_excitatory` units excite, the others inhibit.
    """

    excitatory_fraction: float = Field(0.8, gt=0, lt=1)
    leak: float = Field(0.2, gt=0, le=1)
    spectral_radius: Positive = 1.5

    @property
    def n_excitatory(self) -> int:
        """Number of excitatory units."""
        return round(self.excitatory_fraction * self.hidden_size)

    @model_validator(mode="after")
    def _two_of_either_kind(self) -> "EIRateSettings":
        if not 2 <= self.n_excitatory <= self.hidden_size - 2:
            raise ValueError(
                f"excitatory_fraction {self.excitatory_fraction} of hidden_size {self.hidden_size} makes "
                f"{self.n_excitatory} excitatory and {self.hidden_size - self.n_excitatory} inhibitory units; at least "
                "two of either kind are needed, so take more units or another fraction"
            )
        return self


class FirstUnitsLinear(nn.Linear):
    """Linear map of the first `n_read` of its inputs; the weights of the others are 0 and stay so.

    Parameters
    ----------
    n_inputs, n_outputs
        Shape.
    n_read
        Number of inputs that are read.
    """

    def __init__(self, n_inputs: int, n_outputs: int, n_read: int):
        super().__init__(n_inputs, n_outputs)
        self.n_read = n_read

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights as torch does for that many inputs, in place."""
        bound = self.n_read**-0.5
        self.weight.zero_()
        for part in (self.weight[:, : self.n_read], self.bias):
            part.uniform_(-bound, bound, generator=generator)

    def forward(self, input: Tensor) -> Tensor:
        """Map the last axis."""
        return nn.functional.linear(input[..., : self.n_read], self.weight[:, : self.n_read], self.bias)


@NETWORKS.register("ei_rate")
class EIRate(Network):
    """Rate network of which each unit either excites or inhibits, and only excitatory units are read out.

    Its state is the units' currents x, its rates are max(x, 0). Unlike in Song et al., readout weights may have any
    sign: the tasks' targets have.

    References
    ----------
    Song, Yang & Wang (2016), PLOS Computational Biology 12:e1004792.
    """

    Settings = EIRateSettings

    def __init__(self, settings: EIRateSettings, n_inputs: int, n_outputs: int):
        super().__init__(settings, n_inputs, n_outputs)
        self.output = FirstUnitsLinear(settings.hidden_size, n_outputs, settings.n_excitatory)

    def make_cell(self) -> EIRateCell:
        """Rate cell under Dale's law."""
        s = self.settings
        return EIRateCell(self.n_inputs, s.hidden_size, s.n_excitatory, s.leak, s.spectral_radius)

    def firing_rates(self, state: Float[Tensor, "*n states"]) -> Float[Tensor, "*n hidden"]:
        """Rates from 0 up."""
        return state.relu()
