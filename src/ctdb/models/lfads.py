"""LFADS: latent factor analysis via dynamical systems. The whole model, top to bottom.

Written from the papers (references below). Where lfads-torch differs in the numbers, it is said here:

- One normalisation of the penalties. The loss is the evidence lower bound divided by the number of predicted values
  (valid bins times neurons), so a scale of 1 is the true bound for every prior and trial length.
  ``kl_normalisation: lfads_torch`` restores its weighting.
- The KL of an inferred input is exact given the past that was drawn, and of the very sample that drove the generator.
- Trials may end early, values may be missing (NaN), and several sessions may share the model.

References
----------
Sussillo et al. (2016), LFADS. Pandarinath et al. (2018), Nature Methods 15:805. Keshtkaran & Pandarinath (2019),
coordinated dropout. Zhu et al. (2021), selective backpropagation through time. Keshtkaran, Sedler et al. (2022),
AutoLFADS, Nature Methods 19:1572.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from ctdb.datasets import MultiSession, SpikeDataset, Split
from ctdb.errors import ConfigError, DatasetError
from ctdb.models import MODELS
from ctdb.models.augmentations import dropout, hide_samples, is_off, spike_jitter, temporal_shift
from ctdb.models.base import Model, ModelSettings, Sizes
from ctdb.models.behavior import BehaviorDecoder, BehaviorSettings
from ctdb.models.observations import OBSERVATIONS
from ctdb.models.priors import (
    AutoregressivePriorSettings,
    CoPriorSettings,
    IcPriorSettings,
    NormalPriorSettings,
    make_prior,
)
from ctdb.models.readin import ReadinSettings, start_by_regression
from ctdb.recurrent import (
    Bidirectional,
    Cell,
    ClippedGRUCell,
    FanInLinear,
    Generated,
    GRUCell,
    Kept,
    Key,
    Linear,
    Noise,
    UnitRowLinear,
    controlled_scan,
    masked,
)
from ctdb.registry import Registry
from ctdb.seeds import derive
from ctdb.settings import Count, Fraction, NonNegative, Positive

DEAD_KL = 1e-3
"""Nats per trial below which a posterior carries nothing."""
BINS_PER_PASS = 200_000
"""Trials times posterior samples times bins that are decoded at once."""


class LFADSSettings(ModelSettings):
    """Settings of LFADS, under the names of lfads-torch where it has one. `config/README.md` explains each."""

    cell: Literal["clipped_gru", "gru"] = "clipped_gru"
    cell_clip: Positive = 5.0
    ic_enc_dim: Count = 64
    ic_dim: Count = 64
    ic_enc_seq_len: int = Field(0, ge=0)
    ic_post_var_min: Positive = 1e-4
    ic_prior: IcPriorSettings = NormalPriorSettings()
    ci_enc_dim: int = Field(64, ge=0)
    ci_lag: int = Field(1, ge=0)
    con_dim: int = Field(64, ge=0)
    causal_con: bool = False
    co_dim: int = Field(4, ge=0)
    co_prior: CoPriorSettings = AutoregressivePriorSettings()
    gen_dim: Count = 100
    fac_dim: Count = 40
    use_ext_input: bool = True
    dropout_rate: Fraction = 0.3
    observation: dict[str, Any] = {"kind": "poisson"}
    readin: ReadinSettings = ReadinSettings()

    cd_rate: Fraction = 0.3
    cd_pass_rate: Fraction = 0.0
    cd_heldout: bool = False
    sv_rate: Fraction = 0.0
    spike_jitter: int = Field(0, ge=0)
    temporal_shift: NonNegative = 0.0
    temporal_shift_max: Count = 6

    kl_normalisation: Literal["per_value", "lfads_torch"] = "per_value"
    kl_ic_scale: NonNegative = 1.0
    kl_co_scale: NonNegative = 1.0
    kl_ic_target: NonNegative = 0.0
    kl_co_target: NonNegative = 0.0
    kl_start_epoch: int = Field(0, ge=0)
    kl_increase_epoch: int = Field(80, ge=0)
    l2_ic_enc_scale: NonNegative = 0.0
    l2_ci_enc_scale: NonNegative = 0.0
    l2_gen_scale: NonNegative = 0.0
    l2_con_scale: NonNegative = 0.0
    l2_start_epoch: int = Field(0, ge=0)
    l2_increase_epoch: int = Field(80, ge=0)

    behavior: BehaviorSettings = BehaviorSettings()
    n_samples: Count = 50

    nested: ClassVar[Mapping[str, Registry]] = {"observation": OBSERVATIONS}

    @field_validator("observation", mode="after")
    @classmethod
    def _complete_observation(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            return OBSERVATIONS[value.get("kind", "poisson")].Settings(**value).model_dump()
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _controller_whole_or_absent(self) -> "LFADSSettings":
        if len({size == 0 for size in (self.ci_enc_dim, self.con_dim, self.co_dim)}) == 2:
            raise ValueError("ci_enc_dim, con_dim and co_dim must all be above 0, or all 0 for no controller")
        return self

    def modules(self) -> list[str]:
        """Modules that the settings name, beside that of the model's kind."""
        return [OBSERVATIONS.module(self.observation["kind"])]


class Seen(NamedTuple):
    """What of the data the encoders see: where all masks are 1, times the factor of the bin."""

    masks: list[Tensor]
    factor: Tensor


class Encoded(NamedTuple):
    """What the encoders say of a batch: the posterior of the initial condition, and the controller's input."""

    ic_mean: Tensor
    ic_std: Tensor
    ci: Tensor


@MODELS.register("lfads")
class LFADS(Model):
    r"""Spikes x in; initial condition, inferred inputs, factors and rates out.

    .. math::
        q(s) &= N(\mu_s, \sigma_s^2), \quad [\mu_s, \log(\sigma_s^2 - v_{min})] = W_s\, drop(E^{ic}(x)), \quad
                g_0 = W_g s + b_g \\
        c_t &= G^{con}([\overrightarrow{E}^{ci}_{t-l}, \overleftarrow{E}^{ci}_{t+l}, f_{t-1}], c_{t-1}), \quad
                q(u_t) = N(\mu_t, \sigma_t^2), \quad [\mu_t, \log \sigma_t^2] = W_u c_t + b_u \\
        g_t &= G^{gen}([u_t, a_t], g_{t-1}), \quad f_t = \hat W_f\, drop(g_t), \quad y_t \sim p(y \mid W_y f_t + b_y)

    with encoders E, external input a, lag l, and rows of :math:`\hat W_f` of norm 1. The loss per predicted value is

    .. math::
        L = \frac{1}{TN} \Big( NLL + r_{kl} (\beta_{ic} |KL_{ic} - k_{ic}| + \beta_{co} |KL_{co} - k_{co}|) \Big)
            + r_{l2} \frac{\sum_k \lambda_k \frac12 \|W_k\|^2}{\sum_k |W_k|}

    with ramps r over epochs and KL in nats per trial. In eval mode the posterior means are used, nothing is hidden or
    dropped, and the loss is the NLL alone (of hidden samples where `sv_rate` is above 0), so that epochs compare.
    """

    Settings = LFADSSettings
    takes_sessions: ClassVar[bool] = True
    session_layers: ClassVar[tuple[str, ...]] = ("readin", "readout", "observation")
    coupled_buffers: ClassVar[Mapping[str, str]] = {
        "behavior.mean": "behavior.map.weight",
        "behavior.std": "behavior.map.weight",
    }
    settings_buffers: ClassVar[tuple[str, ...]] = ("behavior.channel_weight",)
    may_differ: ClassVar[frozenset[str]] = Model.may_differ | {
        *("dropout_rate", "cd_rate", "cd_pass_rate", "kl_ic_scale", "kl_co_scale", "kl_ic_target", "kl_co_target"),
        *("l2_ic_enc_scale", "l2_ci_enc_scale", "l2_gen_scale", "l2_con_scale"),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "output_params": "rates",
        "gen_states": "latents",
        "output_behavior_params": "behavior",
    }
    settings: LFADSSettings

    def __init__(self, settings: LFADSSettings, sizes: Sizes):
        super().__init__(settings, sizes)
        s, widest = settings, self.sizes
        if s.ic_enc_seq_len >= min(one.n_bins for one in self.sessions.values()):
            raise ConfigError(f"ic_enc_seq_len is {s.ic_enc_seq_len}, which leaves the controller no bins; lower it")
        if s.co_dim and s.ci_lag > min(one.n_bins for one in self.sessions.values()) - s.ic_enc_seq_len:
            raise ConfigError(f"ci_lag is {s.ci_lag}, longer than what the controller's encoder sees; lower it")
        self.epoch = 0
        self.n_ext = widest.n_inputs if s.use_ext_input else 0
        n_read = s.readin.size(widest.n_heldin, s.fac_dim, len(self.sessions))

        self.readin = nn.ModuleList(
            nn.Identity() if s.readin.kind == "identity" else FanInLinear(one.n_heldin, n_read)
            for one in self.sessions.values()
        )
        self.ic_encoder = Bidirectional(lambda: self._cell(n_read, s.ic_enc_dim, encoder=True))
        self.ic_mean = FanInLinear(2 * s.ic_enc_dim, s.ic_dim)
        self.ic_logvar = FanInLinear(2 * s.ic_enc_dim, s.ic_dim)
        self.ic_prior = make_prior(s.ic_prior, s.ic_dim)
        self.ic_to_g0 = FanInLinear(s.ic_dim, s.gen_dim)
        if s.co_dim:
            self.ci_encoder = Bidirectional(lambda: self._cell(n_read, s.ci_enc_dim, encoder=True))
            self.controller = self._cell(2 * s.ci_enc_dim + s.fac_dim, s.con_dim)
            self.con_initial = nn.Parameter(torch.zeros(s.con_dim))
            self.co_mean = FanInLinear(s.con_dim, s.co_dim)
            self.co_logvar = FanInLinear(s.con_dim, s.co_dim)
            self.co_prior = make_prior(s.co_prior, s.co_dim)
        self.generator = self._cell(s.co_dim + self.n_ext, s.gen_dim)
        self.to_factors = UnitRowLinear(s.gen_dim, s.fac_dim)

        kind = OBSERVATIONS[s.observation["kind"]]
        self.observation = nn.ModuleList(
            kind(kind.Settings(**s.observation), one.n_neurons) for one in self.sessions.values()
        )
        self.readout = nn.ModuleList(
            FanInLinear(s.fac_dim, kind.n_parameters * one.n_neurons) for one in self.sessions.values()
        )
        self.behavior = None
        if widest.n_behaviors:
            self.behavior = BehaviorDecoder(s.behavior, s.fac_dim, widest.n_recon_bins, widest.n_behaviors)

    def _cell(self, n_inputs: int, n_states: int, encoder: bool = False) -> Cell:
        if self.settings.cell == "gru":
            return GRUCell(n_inputs, n_states, orthogonal=True)
        return ClippedGRUCell(n_inputs, n_states, self.settings.cell_clip, joint_fan=encoder)

    def start_from(self, dataset: SpikeDataset | MultiSession) -> None:
        """Start the readout at each neuron's train mean, the read-in where the settings say, behaviour standardised."""
        with torch.no_grad():
            for index, (name, session) in enumerate(dataset.sessions.items()):
                if self.settings.spike_jitter and session.signal != "spikes":
                    raise DatasetError(
                        "spike_jitter moves spikes, but the dataset holds a continuous signal; set it to 0"
                    )
                observed = {
                    split: torch.from_numpy(np.where(trials.observed(), trials.recon_data, np.nan)).flatten(0, 1)
                    for split, trials in session.splits.items()
                }
                for split, values in observed.items():
                    self.observation[index].check(values, f"{name + ': ' if name else ''}{split}_recon_data")
                mean = observed["train"].nanmean(0).nan_to_num()
                variance = ((observed["train"] - mean) ** 2).nanmean(0).nan_to_num()
                self.readout[index].bias.copy_(self.observation[index].start(mean, variance).flatten())
            if self.settings.readin.kind == "pcr":
                start_by_regression(self.readin, self.readout, dataset, self.settings.readin)
        if self.settings.readin.freeze:
            for layer in self.readin:
                layer.requires_grad_(False)
        if self.behavior is not None:
            self.behavior.start_from(dataset)

    @property
    def takes_ext_input(self) -> bool:
        """Whether the generator is given the external input."""
        return self.settings.use_ext_input

    def start_epoch(self, epoch: int) -> None:
        """Place of the ramps."""
        self.epoch = epoch

    def why_alone(self) -> str | None:
        """Spikes are jittered one after another, as many as a bin of the batch holds."""
        return "spike_jitter takes as many steps as the data say; set it to 0" if self.settings.spike_jitter else None

    # What the model is given

    def tensors(self, trials: Split | Mapping[str, Any], session: str | None = None) -> dict[str, Tensor]:
        """As in :class:`Model`, with `behavior` where it is known; NaN in it is missing."""
        made = super().tensors(trials, session)
        arrays = trials.arrays() if isinstance(trials, Split) else trials
        if "behavior" in arrays and self.behavior is not None:
            made["behavior"] = torch.as_tensor(arrays["behavior"])
        return made

    def fit_tensors(self, trials: Split, session: str | None = None) -> dict[str, Tensor]:
        """Tensors of a split that is fitted or selects: counts as bytes; with `sv_rate`, what validates is marked."""
        made = self.tensors(trials, session)
        made |= {name: _as_bytes(made[name]) for name in ("encod_data", "recon_data")}
        if self.settings.sv_rate:
            seed = derive("sample validation", self.settings.seed, session or "", len(trials.recon_data))
            made["sv_mask"] = hide_samples(made["encod_data"].shape, self.settings.sv_rate, seed, made["encod_data"])
            made["sv_mask"][:, : self.settings.ic_enc_seq_len] = False
        return made

    # Encoders

    def encode(
        self,
        encod_data: Shaped[Tensor, "trials bins heldin"],
        index: int,
        n_bins: Tensor | None = None,
        n_recon_bins: int | None = None,
        noise: Noise | None = None,
        seen: Seen | None = None,
    ) -> Encoded:
        """Posterior of the initial condition, and the controller's input in every bin; 0 beyond the bins seen.

        `noise` draws dropout; `seen` says what of the data is hidden.
        """
        s = self.settings
        n_trials, length, _ = encod_data.shape
        n_recon_bins = n_recon_bins or length
        read = self._read(encod_data, index, noise, seen)
        start = s.ic_enc_seq_len
        ic_bins = None if n_bins is None else (n_bins.clamp(max=start) if start else n_bins)
        summary = self.ic_encoder.summary(read[:, :start] if start else read, ic_bins)
        summary = dropout(summary, s.dropout_rate, noise, "ic summary")
        ic_std = (self.ic_logvar(summary).exp() + s.ic_post_var_min).sqrt()
        if not s.co_dim:
            return Encoded(self.ic_mean(summary), ic_std, read.new_zeros(n_trials, n_recon_bins, 0))
        ahead, back = self.ci_encoder(read[:, start:], None if n_bins is None else (n_bins - start).clamp(min=0))
        if s.causal_con:
            back = torch.zeros_like(back)
        if n_bins is not None:  # states stay as they were beyond a trial's end, where nothing was seen
            seen = torch.arange(start, length, device=read.device) < n_bins[:, None]
            ahead, back = ahead * seen[..., None], back * seen[..., None]
        after = n_recon_bins - length
        ahead = _placed(ahead[:, : length - start - s.ci_lag], start + s.ci_lag, after)
        back = _placed(back[:, s.ci_lag :], start, after + s.ci_lag)
        return Encoded(self.ic_mean(summary), ic_std, torch.cat([ahead, back], 2))

    def _read(self, data: Tensor, index: int, noise: Noise | None, seen: Seen | None) -> Tensor:
        """Data as the encoders read it: partly hidden, through the read-in, dropped out."""
        s, like = self.settings, self.ic_to_g0.weight
        masks, factor = seen or Seen([], like.new_ones(data.shape[1]))
        if not isinstance(self.readin[index], nn.Identity):
            return dropout(self.readin[index](masked(data, masks, factor)), s.dropout_rate, noise, "encoder input")
        if noise is not None and not is_off(s.dropout_rate):
            masks = [*masks, noise.keep("encoder input", *data.shape[1:], s.dropout_rate)]
            factor = factor / (1 - s.dropout_rate)
        return masked(data, masks, factor) if masks else data.to(like.dtype)

    # Controller and generator

    def decode(
        self,
        ic: Float[Tensor, "trials ic"],
        ci: Float[Tensor, "trials recon_bins ci"],
        ext_input: Float[Tensor, "trials recon_bins inputs"],
        co_noise: Float[Tensor, "trials recon_bins co"] | None = None,
        noise: Noise | None = None,
        control: Float[Tensor, " recon_bins"] | None = None,
        states: bool = True,
    ) -> Generated:
        """Run the generator from an initial condition; the loop itself is :func:`ctdb.recurrent.controlled_scan`.

        `co_noise` (standard normal) makes samples of the inferred inputs, which are their means without it; `noise`
        draws dropout; `control` multiplies the inferred input of each bin. Without `states`, only factors and inferred
        inputs are sure to be there.
        """
        ext_input = dropout(ext_input[:, :, : self.n_ext], self.settings.dropout_rate, noise, "external input")
        own: dict[str, Any] = {}
        if self.settings.co_dim:
            co_weight = torch.cat([self.co_mean.weight, self.co_logvar.weight])
            own["to_co"] = Linear(co_weight, torch.cat([self.co_mean.bias, self.co_logvar.bias]))
            own["con_state"] = self.con_initial.expand(len(ic), -1)
        return controlled_scan(
            self.generator,
            self.controller if self.settings.co_dim else None,
            self.to_factors.unit_weight(),
            self.ic_to_g0(ic),
            ext_input,
            ci=ci,
            kept=self._decoder_dropout(ext_input.shape[1], noise),
            co_noise=co_noise,
            control=control,
            states=states,
            **own,
        )

    def _decoder_dropout(self, length: int, noise: Noise | None) -> Kept | None:
        """Dropout of the controller's two inputs and of the generator state."""
        s = self.settings
        if noise is None or is_off(s.dropout_rate):
            return None
        start = ci = factors = None
        if s.co_dim:
            start = noise.keep("generator start", 1, s.gen_dim, s.dropout_rate)[:, 0]
            ci = noise.keep("controller input", length, 2 * s.ci_enc_dim, s.dropout_rate)
            factors = noise.keep("controller factors", length, s.fac_dim, s.dropout_rate)
        states = noise.keep("generator states", length, s.gen_dim, s.dropout_rate)
        return Kept(start, ci, factors, states, 1 / (1 - s.dropout_rate))

    # Loss

    def loss(self, batch: Mapping[str, Any], generator: Key) -> Tensor:
        """Loss of a batch: see the class. A batch of several sessions maps each to its own batch."""
        return self.loss_and_terms(batch, generator)[0]

    def loss_and_terms(self, batch: Mapping[str, Any], generator: Key) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, and its parts: `nll` per value, `kl_ic` and `kl_co` in nats per trial, `l2`, and what there is more."""
        parts = {None: batch} if "encod_data" in batch else batch
        amounts = {session: one["weight"].mean(2).sum() for session, one in parts.items()}
        total, terms = 0.0, {}
        for session, one in parts.items():
            share = amounts[session] / sum(amounts.values()).clamp(min=1e-30)
            loss, own = self._session_terms(one, session, generator if self.training else None)
            total = total + share * loss
            terms = {name: terms.get(name, 0.0) + share * value for name, value in own.items()}
        if self.training:
            terms["l2"] = self._l2()
            total = (
                total + _ramp(self.epoch, self.settings.l2_start_epoch, self.settings.l2_increase_epoch) * terms["l2"]
            )
        return total, terms

    def _session_terms(
        self, batch: Mapping[str, Tensor], session: str | None, generator: Key | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        index = self.session_index(session)
        noise = None if generator is None else Noise.of(batch, generator, session or "")
        length = batch["recon_data"].shape[1]
        encod_data, recon_data, weight = self._augmented(batch, noise)
        seen, learned = self._coordinated_dropout(batch, noise)
        encoded = self.encode(encod_data, index, batch.get("n_bins"), length, noise, seen)
        ic, co_noise = self._draw(encoded, length, noise)
        decoded = self.decode(ic, encoded.ci, batch["ext_input"], co_noise, noise, states=False)

        hidden = None
        if "sv_mask" in batch:
            hidden = weight * _padded(batch["sv_mask"], recon_data)
            weight = weight - hidden
        n_values = _n_values(weight, recon_data)
        nll = self._nll_sum(decoded.factors, index, recon_data, weight, learned)
        terms = {"nll": nll / n_values}
        terms |= self._kl_terms(encoded, decoded, co_noise, ic, batch.get("in_trial", batch["weight"]))
        if hidden is not None:
            with torch.no_grad():
                hidden_nll = self._nll_sum(decoded.factors, index, recon_data, hidden, None)
            terms["sv_nll"] = hidden_nll / hidden.sum().clamp(min=1)
        loss = terms["nll"]
        if self.training:
            penalty = self._kl_penalty(terms, n_values / len(recon_data), length)
            loss = loss + self.observation[index].penalty().to(loss) + penalty
        else:
            loss = terms.get("sv_nll", loss)
        return self._add_behavior(loss, terms, batch, decoded.factors, noise)

    def _nll_sum(self, factors: Tensor, index: int, data: Tensor, weight: Tensor, learned: Tensor | None) -> Tensor:
        readout = Linear(self.readout[index].weight, self.readout[index].bias)
        return self.observation[index].nll_sum(readout, factors, data, weight, learned)

    def _add_behavior(
        self,
        loss: Tensor,
        terms: dict[str, Tensor],
        batch: Mapping[str, Tensor],
        factors: Tensor,
        noise: Noise | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """LFADS learns from spikes alone: its behaviour decoder is fitted afterwards, to factors that are settled."""
        return loss, terms

    def _augmented(self, batch: Mapping[str, Tensor], noise: Noise | None) -> tuple[Tensor, Tensor, Tensor]:
        """Data to see, data to predict, and the weight of each bin or value of these.

        In training, both are jittered or shifted independently where the settings say so. What is missing or hidden
        stays out of sight wherever it moves.
        """
        s, encod_data, recon_data = self.settings, batch["encod_data"], batch["recon_data"]
        weight = batch["weight"]
        if noise is None or not (s.spike_jitter or s.temporal_shift):
            return encod_data, recon_data, weight
        encod_data, recon_data = encod_data.to(weight), recon_data.to(weight)
        weight = weight.expand_as(recon_data)
        in_trial = batch.get("in_trial", batch["weight"])
        hidden = _padded(batch["sv_mask"], weight) if "sv_mask" in batch else torch.zeros_like(weight)
        absent = ((weight == 0) & (in_trial > 0)) | (hidden > 0)
        moved = []
        sides = {"seen": (encod_data, batch.get("n_bins")), "told": (recon_data, in_trial[..., 0].sum(1).long())}
        for side, (data, n_bins) in sides.items():
            place = (slice(None), slice(data.shape[1]), slice(data.shape[2]))
            changed = (data * in_trial[:, : data.shape[1]]).masked_fill(absent[place], torch.nan)
            if s.spike_jitter:
                changed = spike_jitter(changed, s.spike_jitter, n_bins, noise, f"{side} jitter")
            if s.temporal_shift:
                shift = (s.temporal_shift, s.temporal_shift_max)
                changed = temporal_shift(changed, *shift, n_bins, noise, f"{side} shift")
            moved.append(changed)
        encod_data, recon_moved = moved
        weight = weight * (~recon_moved.isnan() | (hidden > 0))
        recon_moved = torch.where(hidden > 0, recon_data, recon_moved.nan_to_num())
        return encod_data.nan_to_num(), recon_moved, weight

    def _coordinated_dropout(
        self, batch: Mapping[str, Tensor], noise: Noise | None
    ) -> tuple[Seen | None, Tensor | None]:
        """What the encoders see, and where the loss may teach: only at samples that they did not see.

        Held-out neurons and later bins always teach (unless `cd_heldout`); the initial-condition segment is never
        hidden. Samples that validate are hidden in eval mode too.
        """
        s, shape = self.settings, batch["encod_data"].shape
        masks, learned = [], None
        factor = self.ic_to_g0.weight.new_ones(shape[1])
        if noise is not None and not is_off(s.cd_rate):
            _, n_bins, n_neurons = batch["recon_data"].shape if s.cd_heldout else shape
            whole = noise.keep("coordinated dropout", n_bins, n_neurons, s.cd_rate)
            learned = whole.new_ones(batch["recon_data"].shape)
            teaches = learned[:, :n_bins, :n_neurons]
            teaches.sub_(whole * (s.cd_rate > 0))
            if not is_off(s.cd_pass_rate):
                teaches.bitwise_or_(1 - noise.keep("coordinated dropout pass", n_bins, n_neurons, s.cd_pass_rate))
            learned[:, : s.ic_enc_seq_len] = 1
            masks.append(whole[:, : shape[1], : shape[2]])
            factor = factor / (1 - s.cd_rate)
        if "sv_mask" in batch:
            masks.append(1 - batch["sv_mask"].to(torch.uint8))
            factor = factor / (1 - s.sv_rate)
        if s.ic_enc_seq_len:
            for mask in masks:
                mask[:, : s.ic_enc_seq_len] = 1
            factor[: s.ic_enc_seq_len] = 1
        return (Seen(masks, factor) if masks else None), learned

    def _draw(self, encoded: Encoded, length: int, noise: Noise | None) -> tuple[Tensor, Tensor | None]:
        """Initial condition, and noise of the inferred inputs: drawn where there is noise, at their means without."""
        ic, co_noise = encoded.ic_mean, None
        if noise is not None and self.ic_prior.variational:
            ic = ic + encoded.ic_std * noise.normal("ic", 1, self.settings.ic_dim, ic)[:, 0]
        if noise is not None and self.settings.co_dim and self.co_prior.variational:
            co_noise = noise.normal("inferred inputs", length, self.settings.co_dim, ic)
        return ic, co_noise

    def _kl_terms(
        self, encoded: Encoded, decoded: Generated, co_noise: Tensor | None, ic: Tensor, in_trial: Tensor
    ) -> dict[str, Tensor]:
        """KL in nats per trial, mean over trials; that of inferred inputs summed over the trial's valid bins."""
        terms = {"kl_ic": self.ic_prior.kl(encoded.ic_mean, encoded.ic_std, ic).mean()}
        if self.settings.co_dim:
            sample = None if co_noise is None else decoded.co_means + decoded.co_stds * co_noise
            per_bin = self.co_prior.kl(decoded.co_means, decoded.co_stds, sample)
            terms["kl_co"] = (per_bin * in_trial[..., 0]).sum(1).mean()
        return terms

    def _kl_penalty(self, terms: Mapping[str, Tensor], values_per_trial: Tensor, n_bins: int) -> Tensor:
        s = self.settings
        per_value = s.kl_normalisation == "per_value"
        penalty = 0.0
        for name, scale, target in (("ic", s.kl_ic_scale, s.kl_ic_target), ("co", s.kl_co_scale, s.kl_co_target)):
            if f"kl_{name}" in terms:
                kl = terms[f"kl_{name}"]
                if not per_value and name == "co" and s.co_prior.kind != "autoregressive":
                    kl = kl / n_bins  # lfads-torch averages these over bins
                penalty = penalty + scale * (kl - target).abs()
        ramp = _ramp(self.epoch, s.kl_start_epoch, s.kl_increase_epoch)
        return ramp * penalty / (values_per_trial if per_value else 1)

    def _l2(self) -> Tensor:
        s = self.settings
        groups = [(s.l2_ic_enc_scale, self.ic_encoder), (s.l2_gen_scale, self.generator)]
        if s.co_dim:
            groups += [(s.l2_ci_enc_scale, self.ci_encoder), (s.l2_con_scale, self.controller)]
        kernels = [
            (scale, cell.weight_hh)
            for scale, part in groups
            if not is_off(scale)
            for cell in part.modules()
            if isinstance(cell, Cell)
        ]
        if not kernels:
            return self.ic_to_g0.bias.new_zeros(())
        norms = sum(scale * 0.5 * (kernel**2).sum() for scale, kernel in kernels)
        n_values = sum(kernel.numel() * (scale > 0) for scale, kernel in kernels)
        return norms / (n_values + (n_values == 0))

    # Inference

    def infer(
        self,
        trials: Split | Mapping[str, Any],
        session: str | None = None,
        control_bins: Iterable[int] | None = None,
    ) -> dict[str, Tensor]:
        """Posterior means over `n_samples` samples, in eval mode and in passes that fit memory.

        The noise is antithetic, fixed by the seed and the same for every trial, so what is inferred of a trial does
        not depend on its neighbours.

        Parameters
        ----------
        trials
            A split, or arrays `encod_data` (trials, bins, held-in neurons), NaN where missing, and, where the model
            has external input, `ext_input` (trials, bins, inputs).
        session
            Which of the model's sessions the trials are of; needed where it has several.
        control_bins
            Bins in which the inferred inputs act; ``()`` ablates them, as BAND does; all where not given.

        Returns
        -------
        `rates` (expected values per bin), `factors`, `latents` (generator states), `gen_inputs` (trials, bins,
        channels), `gen_init`, `ic_mean`, `ic_std` (trials, channels); `co_means`, `co_stds`, `con_states` with a
        controller; `behavior` with a decoder, in the units of the data.

        Raises
        ------
        DatasetError
            If the trials have other bins, neurons or inputs than the model was built for, or the session is unknown.
        """
        control = None
        if control_bins is not None:
            length = self.session_sizes(session).n_recon_bins
            control = torch.zeros(length)
            control[list(control_bins)] = 1
        return self._infer(trials, session, control=control)

    def infer_batch(
        self, batch: Mapping[str, Tensor], session: str | None = None, control: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As :meth:`infer`, of trials that fit memory."""
        index = self.session_index(session)
        n_trials, length = len(batch["encod_data"]), batch["ext_input"].shape[1]
        encoded = self.encode(batch["encod_data"], index, batch.get("n_bins"), length)
        ic_noise, co_noise = self._sample_noise(length, encoded.ic_mean)
        n_samples = len(ic_noise)
        sums: dict[str, Tensor] = {}
        for chosen in torch.arange(n_samples).split(max(1, BINS_PER_PASS // max(1, n_trials * length))):
            n = len(chosen)
            repeated = [value.repeat(n, *[1] * (value.ndim - 1)) for value in (*encoded, batch["ext_input"])]
            ic_mean, ic_std, ci, ext_input = repeated
            ic = ic_mean + ic_std * ic_noise[chosen].repeat_interleave(n_trials, 0)
            noise = None if co_noise is None else co_noise[chosen].repeat_interleave(n_trials, 0)
            decoded = self.decode(ic, ci, ext_input, noise, control=None if control is None else control.to(ic))
            rates = self.observation[index].mean(self._distribution(decoded.factors, index))
            for name, value in {"rates": rates, "gen_init": self.ic_to_g0(ic), **decoded._asdict()}.items():
                summed = value.unflatten(0, (n, n_trials)).sum(0)
                sums[name] = sums[name] + summed if name in sums else summed
        means = {name: value / n_samples for name, value in sums.items()}
        inferred = {
            "rates": means.pop("rates"),
            "factors": means.pop("factors"),
            "latents": means.pop("gen_states"),
            "ic_mean": encoded.ic_mean,
            "ic_std": encoded.ic_std,
            **{name: value for name, value in means.items() if value.shape[-1]},
        }
        if self.behavior is not None:
            inferred["behavior"] = self.behavior(inferred["factors"])
        return inferred

    def _sample_noise(self, length: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Antithetic standard normal noise, (samples, ic) and (samples, bins, co); a single sample is 0."""
        s = self.settings
        draws_ic = self.ic_prior.variational
        draws_co = bool(s.co_dim) and self.co_prior.variational
        n_samples = s.n_samples if draws_ic or draws_co else 1
        generator = torch.Generator().manual_seed(derive("posterior samples", s.seed))
        half = (n_samples + 1) // 2

        def antithetic(n_dims: int) -> Tensor:
            drawn = torch.randn(half, n_dims, generator=generator, dtype=torch.float64)
            if n_samples == 1:
                return torch.zeros_like(drawn).to(like)
            return torch.cat([drawn, -drawn])[:n_samples].to(like)

        ic_noise = antithetic(s.ic_dim) if draws_ic else like.new_zeros(n_samples, s.ic_dim)
        # Bin by bin, so that a bin's noise does not depend on how many follow.
        co_noise = torch.stack([antithetic(s.co_dim) for _ in range(length)], 1) if draws_co else None
        return ic_noise, co_noise

    def ablated(self, trials: Split, session: str | None = None) -> dict[str, Tensor]:
        """Rates, factors and behaviour without the inferred inputs, where the model has a controller."""
        if not self.settings.co_dim:
            return {}
        inferred = self.infer(trials, session, control_bins=())
        return {f"ablated_{name}": inferred[name] for name in ("rates", "factors", "behavior") if name in inferred}

    def step(self, state: Float[Tensor, "n states"], input: Float[Tensor, "n inputs"]) -> Float[Tensor, "n states"]:
        """Next generator state.

        `input` is the generator's whole input as in `gen_inputs`, inferred inputs first (n, co + ext), or, for a model
        that takes external input, that alone (n, ext), with inferred inputs at 0. DatasetError for any other width.
        """
        dtype = self.to_factors.weight.dtype
        input, n_inputs = input.to(dtype), self.settings.co_dim + self.n_ext
        if input.shape[1] == self.n_ext:
            input = nn.functional.pad(input, (self.settings.co_dim, 0))
        elif input.shape[1] != n_inputs:
            raise DatasetError(
                f"an input of {input.shape[1]} channels was given; expected {n_inputs} (inferred, then external), or "
                f"the {self.n_ext} external ones alone"
            )
        return self.generator(input, state.to(dtype))

    def rates(self, state: Float[Tensor, "*n states"], session: str | None = None) -> Float[Tensor, "*n neurons"]:
        """Expected values per bin in a generator state."""
        index = self.session_index(session)
        factors = self.to_factors(state.to(self.to_factors.weight.dtype))
        return self.observation[index].mean(self._distribution(factors, index))

    def finish(self, dataset: SpikeDataset | MultiSession) -> None:
        """Fit the behaviour decoder to the factors of the finished model, unless it is frozen."""
        if self.behavior is not None and self.behavior.map.weight.requires_grad:
            self._fit_decoder(dataset)

    def _fit_decoder(self, dataset: SpikeDataset | MultiSession) -> None:
        factors = {
            (name, split): self._infer(session[split], name or None)["factors"].double().numpy()
            for name, session in dataset.sessions.items()
            for split in ("train", "valid")
        }
        self.behavior.fit(dataset, factors)

    def warnings(self, terms: Mapping[str, float]) -> list[str]:
        """What the last epoch's terms say has gone wrong without stopping the training."""
        found = []
        for name, what in (("kl_ic", "initial condition"), ("kl_co", "inferred inputs")):
            prior = self.ic_prior if name == "kl_ic" else getattr(self, "co_prior", None)
            target = getattr(self.settings, f"{name}_target")
            if prior is not None and prior.variational and not target and terms.get(f"train_{name}", 1.0) < DEAD_KL:
                found.append(
                    f"{name} is dead ({terms[f'train_{name}']:.2g} nats per trial): the {what} carry nothing. "
                    f"A lower {name}_scale or a longer kl_increase_epoch usually cures it"
                )
        return found

    def _distribution(self, factors: Tensor, index: int) -> Tensor:
        """Parameters of the observation model, (..., parameters, neurons)."""
        return self.readout[index](factors).unflatten(-1, (self.observation[index].n_parameters, -1))


def _ramp(epoch: int, start: int, increase: int) -> float:
    """From 1 / (increase + 1) in epoch `start` to 1 in epoch ``start + increase``; 0 before."""
    return min(max((epoch + 1 - start) / (increase + 1), 0.0), 1.0)


def _placed(states: Tensor, before: int, after: int) -> Tensor:
    """States with bins of 0 before and after them."""
    zeros = [states.new_zeros(len(states), n, states.shape[2]) for n in (before, after)]
    return torch.cat([zeros[0], states, zeros[1]], 1)


def _padded(mask: Tensor, like: Tensor) -> Tensor:
    """Mask of held-in values among all values that are predicted, 0 for the others."""
    whole = torch.zeros_like(like)
    whole[:, : mask.shape[1], : mask.shape[2]] = mask
    return whole


def _as_bytes(values: Tensor) -> Tensor:
    """Counts that fit into bytes, as such; other values as they are."""
    made = values.to(torch.uint8)
    return made if torch.equal(made.to(values.dtype), values) else values


def _n_values(weight: Tensor, data: Tensor) -> Tensor:
    """Sum of the weights of all values, at least 1."""
    return (weight.sum() * (data.shape[2] // weight.shape[2])).clamp(min=1)
