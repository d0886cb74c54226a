"""Sequential autoencoder: a bidirectional GRU reads the spikes into an initial state, a cell runs on from there.

The data-trained models of the computation-through-dynamics benchmark (Versteeg et al. 2025) are this one with
different cells: GRU, vanilla RNN, neural ODE, linear dynamical system. Two of its habits are dropped: the encoder sees
all bins (theirs left out the last one), and inference is in eval mode.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ctdb.datasets import SpikeDataset
from ctdb.models.augmentations import dropout
from ctdb.models.base import Model, ModelSettings, Sizes
from ctdb.recurrent import Cell, Key, Linear, Noise, gru_summary, poisson_nll, scan
from ctdb.settings import Count, Fraction


class AutoencoderSettings(ModelSettings):
    """Settings of every sequential autoencoder."""

    latent_size: Count = 64
    encoder_size: Count = 100
    dropout: Fraction = 0.05
    initial_state_dropout: Fraction = 0.05


class SequentialAutoencoder(Model):
    r"""Spikes x of the held-in neurons in, log-rates of all neurons out.

    .. math::
        e &= [\overrightarrow{GRU}(x)_T, \overleftarrow{GRU}(x)_1], \quad z_0 = W_e\, drop(e) + b_e \\
        z_t &= F(u_t, z_{t-1}), \quad z_0 \leftarrow drop(z_0) \\
        \log \lambda_t &= W z_t + b, \quad n_t \sim Poisson(\lambda_t)

    with external input u, and the mean Poisson negative log-likelihood over valid bins and all neurons as loss.
    """

    may_differ: ClassVar[frozenset[str]] = Model.may_differ | {"dropout", "initial_state_dropout"}
    settings: AutoencoderSettings

    def __init__(self, settings: AutoencoderSettings, sizes: Sizes):
        super().__init__(settings, sizes)
        self.encoder = nn.GRU(sizes.n_heldin, settings.encoder_size, batch_first=True, bidirectional=True)
        self.to_initial_state = nn.Linear(2 * settings.encoder_size, settings.latent_size)
        self.cell = self.make_cell()
        self.to_log_rates = nn.Linear(settings.latent_size, sizes.n_neurons)

    def start_from(self, dataset: SpikeDataset) -> None:
        """Start the readout at each neuron's mean rate, so that training need not look for it."""
        train = self.tensors(dataset["train"])
        weight = train["weight"].expand_as(train["recon_data"])
        n_values = weight.sum((0, 1)).clamp(min=1)
        mean = (weight * train["recon_data"]).sum((0, 1)) / n_values
        with torch.no_grad():
            self.to_log_rates.bias.copy_(torch.maximum(mean, 1 / n_values).log())

    @abstractmethod
    def make_cell(self) -> Cell:
        """Cell that carries the latent state on."""

    def forward(
        self,
        encod_data: Float[Tensor, "trials bins heldin"],
        ext_input: Float[Tensor, "trials recon_bins inputs"],
        noise: Noise | None = None,
        n_bins: Int[Tensor, " trials"] | None = None,
    ) -> tuple[Float[Tensor, "trials recon_bins neurons"], Float[Tensor, "trials recon_bins states"]]:
        """Log-rates and latents; dropout is drawn from `noise`, and there is none without.

        The encoder reads the first `n_bins` bins of each trial, all of them where that is not given.
        """
        latents = self._latents(encod_data, ext_input, noise, n_bins)
        return self.to_log_rates(latents), latents

    def _latents(self, encod_data: Tensor, ext_input: Tensor, noise: Noise | None, n_bins: Tensor | None) -> Tensor:
        summary = gru_summary(self.encoder, encod_data, n_bins)
        summary = dropout(summary, self.settings.dropout, noise, "summary")
        state = dropout(self.to_initial_state(summary), self.settings.initial_state_dropout, noise, "initial state")
        return scan(self.cell, state, ext_input)

    def loss(self, batch: Mapping[str, Tensor], generator: Key) -> Tensor:
        """Poisson negative log-likelihood per valid bin and neuron, with its constant (Stirling) term."""
        noise = Noise.of(batch, generator) if self.training else None
        latents = self._latents(batch["encod_data"], batch["ext_input"], noise, batch.get("n_bins"))
        weight, counts = batch["weight"], batch["recon_data"]
        n_values = weight.sum() * (counts.shape[2] // weight.shape[2])
        return poisson_nll(latents, self._readout, counts, weight) / n_values.clamp(min=1)

    @property
    def _readout(self) -> Linear:
        return Linear(self.to_log_rates.weight, self.to_log_rates.bias)

    def infer_batch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rates and latents of a batch."""
        log_rates, latents = self(batch["encod_data"], batch["ext_input"], n_bins=batch.get("n_bins"))
        return {"rates": log_rates.exp(), "latents": latents}

    def step(self, state: Float[Tensor, "n states"], input: Float[Tensor, "n inputs"]) -> Float[Tensor, "n states"]:
        """Next latent state."""
        dtype = self.to_log_rates.weight.dtype
        return self.cell(input.to(dtype), state.to(dtype))

    def rates(self, state: Float[Tensor, "*n states"]) -> Float[Tensor, "*n neurons"]:
        """Expected spikes per bin in a latent state."""
        return self.to_log_rates(state.to(self.to_log_rates.weight.dtype)).exp()
