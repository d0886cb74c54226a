"""Chaotic rate network, trained on delayed matching by Miconi (2017) and by the successor of CtDB."""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ctdb.networks import NETWORKS
from ctdb.networks.base import Network, NetworkSettings
from ctdb.recurrent.rate_cells import ChaoticRateCell
from ctdb.settings import Count, Positive


class ChaoticRateSettings(NetworkSettings):
    """Settings of network `chaotic_rate`; `leak` is time step over time constant: 1 ms over 30 ms."""

    hidden_size: Count = 200
    initial_state: Literal["learned", "zero", "uniform"] = "uniform"
    gain: Positive = 1.5
    leak: float = Field(1 / 30, gt=0, le=1)


@NETWORKS.register("chaotic_rate")
class ChaoticRate(Network):
    """Rate network that is chaotic before training: recurrent weights N(0, gain^2 / units), fixed input weights.

    Its state is the units' currents x, and what is read out are the rates tanh(x). The defaults are the reference's.
    At that size, chaos above a gain of 1 is a matter of luck: without input, the largest Lyapunov exponent was clearly
    positive for one of the seeds 0 to 7 with 200 units and a gain of 1.5 (the others settled on a cycle), but for all
    eight with 400 units and a gain of 2 (0.05 to 0.10 per time constant).

    References
    ----------
    Sompolinsky, Crisanti & Sommers (1988), Physical Review Letters 61:259; Miconi (2017), Biologically plausible
    learning in recurrent neural networks reproduces neural dynamics observed during cognitive tasks, eLife 6:e20899.
    """

    Settings = ChaoticRateSettings

    def make_cell(self) -> ChaoticRateCell:
        """Chaotic rate cell."""
        settings = self.settings
        return ChaoticRateCell(self.n_inputs, settings.hidden_size, settings.gain, settings.leak)

    def firing_rates(self, state: Float[Tensor, "*n states"]) -> Float[Tensor, "*n hidden"]:
        """Rates between -1 and 1."""
        return state.tanh()
