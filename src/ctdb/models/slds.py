"""Switching linear dynamical system, inferred by the same encoder as the autoencoders."""

from ctdb.models import MODELS
from ctdb.models.autoencoder import AutoencoderSettings, SequentialAutoencoder
from ctdb.recurrent.rate_cells import SwitchingLinearCell
from ctdb.settings import Count


class SLDSSettings(AutoencoderSettings):
    """Settings of model `slds`: `n_modes` is the number of linear systems that it switches between."""

    n_modes: Count = 3


@MODELS.register("slds")
class SLDS(SequentialAutoencoder):
    """Sequential autoencoder whose latent state is moved on by linear maps, in shares that depend on it.

    The least that a linear system lacks to hold a memory: each map may have a stable point of its own.
    """

    Settings = SLDSSettings

    def make_cell(self) -> SwitchingLinearCell:
        """Switching linear cell."""
        return SwitchingLinearCell(self.sizes.n_inputs, self.settings.latent_size, self.settings.n_modes)
