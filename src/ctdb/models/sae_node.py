"""Sequential autoencoder with neural-ODE dynamics, which stay low-dimensional."""

from ctdb.models import MODELS
from ctdb.models.autoencoder import AutoencoderSettings, SequentialAutoencoder
from ctdb.recurrent import EulerMLPCell
from ctdb.settings import Count, Fraction, Positive


class SaeNODESettings(AutoencoderSettings):
    """Settings of model `sae_node`; its initial state is not dropped out, as in the reference."""

    latent_size: Count = 10
    initial_state_dropout: Fraction = 0.0
    field_layers: Count = 6
    field_width: Count = 128
    field_gain: Positive = 0.1


@MODELS.register("sae_node")
class SaeNODE(SequentialAutoencoder):
    """Sequential autoencoder whose latent state takes Euler steps along a learned vector field."""

    Settings = SaeNODESettings

    def make_cell(self) -> EulerMLPCell:
        """Euler step of a ReLU network."""
        settings = self.settings
        return EulerMLPCell(
            self.sizes.n_inputs,
            settings.latent_size,
            settings.field_layers,
            settings.field_width,
            settings.field_gain,
        )
