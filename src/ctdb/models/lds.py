"""Linear dynamical system, inferred by the same encoder as the autoencoders."""

from ctdb.models import MODELS
from ctdb.models.autoencoder import AutoencoderSettings, SequentialAutoencoder
from ctdb.recurrent import LinearCell


@MODELS.register("lds")
class LDS(SequentialAutoencoder):
    """Sequential autoencoder whose latent state follows a linear map: the model that cannot hold several memories."""

    Settings = AutoencoderSettings

    def make_cell(self) -> LinearCell:
        """Linear cell."""
        return LinearCell(self.sizes.n_inputs, self.settings.latent_size)
