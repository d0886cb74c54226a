"""Sequential autoencoder with GRU dynamics."""

from ctdb.models import MODELS
from ctdb.models.autoencoder import AutoencoderSettings, SequentialAutoencoder
from ctdb.recurrent import GRUCell


@MODELS.register("sae_gru")
class SaeGRU(SequentialAutoencoder):
    """Sequential autoencoder whose latent state follows a GRU."""

    Settings = AutoencoderSettings

    def make_cell(self) -> GRUCell:
        """GRU cell."""
        return GRUCell(self.sizes.n_inputs, self.settings.latent_size)
