"""Sequential autoencoder with vanilla RNN dynamics."""

from ctdb.models import MODELS
from ctdb.models.autoencoder import AutoencoderSettings, SequentialAutoencoder
from ctdb.recurrent import TanhCell


@MODELS.register("sae_rnn")
class SaeRNN(SequentialAutoencoder):
    """Sequential autoencoder whose latent state follows a tanh RNN."""

    Settings = AutoencoderSettings

    def make_cell(self) -> TanhCell:
        """Tanh cell."""
        return TanhCell(self.sizes.n_inputs, self.settings.latent_size)
