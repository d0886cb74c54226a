"""The algorithms of our two peers, written anew from their equations, for our speed to be measured against.

`LfadsTorchPeer` is LFADS in the way of lfads-torch, `CtdTaskPeer` the task-trained network in the way of CtDB. Both do
what the peer does in the order in which it does it, under current torch and without Lightning: a Python loop over time,
every projection of every bin by itself, and all that does not depend on the weights drawn or computed anew in every
step. Nothing is cleverer and nothing slower; where the peer does a little more, it is left out in its favour:

- lfads-torch: the trainer's own time per step (about 0.3 ms, and 2.7 ms for its 14 logged metrics), the concatenation
  and splitting of sessions (no-ops for one session that copy the batch), the ramps. Its bits per spike of every step
  are left out too unless `with_bps` asks for them (10 to 12 % of its step).
- CtDB: the trainer's own time per step, the environment that the loop asks for its length.

Facts: Sussillo et al. (2016); Pandarinath et al. (2018), Nature Methods 15:805; Keshtkaran & Pandarinath (2019),
coordinated dropout; Sedler & Pandarinath (2023), arXiv 2309.01230, for lfads-torch; Versteeg et al. (2025), bioRxiv
2025.02.07.637062, for CtDB. What their public code does in each step was read in BAND-torch (Apache-2.0), in
lfads-torch while it was under that licence (up to 2024-09-14), and in CtDB (BSD-3); no code is taken from them.

As in the peers, weights, noise and masks come from torch's global generator: seed it with ``torch.manual_seed``. To
compare results with another implementation, all that a step draws can be injected.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, Bernoulli, Independent, Normal, StudentT, kl_divergence
from torch.nn import functional


class Batch(NamedTuple):
    """Spike counts (trials, bins, neurons) that are seen and that are predicted, and external input for all bins."""

    encod: Tensor
    recon: Tensor
    ext: Tensor


@dataclass(frozen=True)
class Injected:
    """What a step draws, given beforehand; what is None is drawn. Masks are 0 or 1, without the 1 / (1 - rate).

    Bins of `con_ci` to `ext_input` are those that are predicted. `con_factors` at a bin acts on the factors of the bin
    before it; it and `con_ci` are given together. Noise is (sample - mean) / scale of the posterior: standard normal,
    or standard Student-t where the prior is Student-t, since lfads-torch then has such a posterior.
    """

    cd_keep: Tensor | None = None
    """(trials, seen bins, held-in neurons): 1 where the encoders see the sample."""
    encoder_input: Tensor | None = None
    """(trials, seen bins, held-in neurons)."""
    ic_summary: Tensor | None = None
    """(trials, 2 ic_enc): last forward, then last backward state."""
    con_ci: Tensor | None = None
    """(trials, bins, 2 ci_enc)."""
    con_factors: Tensor | None = None
    """(trials, bins, fac)."""
    gen_states: Tensor | None = None
    """(trials, bins, gen)."""
    gen_init: Tensor | None = None
    """(trials, gen)."""
    ext_input: Tensor | None = None
    """(trials, bins, ext)."""
    ic_noise: Tensor | None = None
    """(trials, ic)."""
    co_noise: Tensor | None = None
    """(trials, bins, co)."""

    @classmethod
    def of(cls, given: "Injected | Mapping[str, Tensor] | None") -> "Injected":
        """The same from a mapping of names, or from nothing."""
        return given if isinstance(given, cls) else cls(**(given or {}))

    def at(self, t: int) -> "StepInjected":
        """What a step of the decoder needs at bin `t`."""
        con = None if self.con_ci is None else torch.cat([self.con_ci[:, t], self.con_factors[:, t]], 1)
        gen_states, co_noise = (None if x is None else x[:, t] for x in (self.gen_states, self.co_noise))
        return StepInjected(con, gen_states, co_noise)


class StepInjected(NamedTuple):
    """Injected masks of the controller's input and of the generator's state, and noise, of one bin."""

    con: Tensor | None = None
    gen_state: Tensor | None = None
    co_noise: Tensor | None = None


NOTHING = StepInjected()


class Output(NamedTuple):
    """What one run of the model gives, as lfads-torch returns it; (trials, bins, channels) but for initial values."""

    rates: Tensor
    """Log-rates with a last axis of length 1, or expected counts per bin where the means are asked for."""
    factors: Tensor
    ic_mean: Tensor
    ic_std: Tensor
    co_means: Tensor
    co_stds: Tensor
    gen_states: Tensor
    gen_init: Tensor
    gen_inputs: Tensor
    con_states: Tensor


# Priors, with the posteriors that belong to them


class NormalPrior(nn.Module):
    """Normal prior of trainable mean and fixed variance; KL exact, summed over dimensions, mean over all else."""

    def __init__(self, n_dims: int, variance: float = 0.1):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(n_dims))
        self.logvar = nn.Parameter(torch.full((n_dims,), math.log(variance)), requires_grad=False)

    def posterior(self, mean: Tensor, std: Tensor) -> Independent:
        """Posterior of this mean and standard deviation."""
        return Independent(Normal(mean, std), 1)

    def forward(self, mean: Tensor, std: Tensor, sample: Tensor | None = None) -> Tensor:
        """KL in nats; needs no sample."""
        prior = Independent(Normal(self.mean, torch.exp(0.5 * self.logvar)), 1)
        return kl_divergence(self.posterior(mean, std), prior).mean()


class AutoregressivePrior(nn.Module):
    """First-order autoregressive prior over bins; KL summed over bins and dimensions, mean over trials.

    Estimated as log q - log p at one fresh sample, as lfads-torch does it; with a given sample, the exact KL of every
    bin conditional on that sample's past.
    """

    def __init__(self, n_dims: int, tau: float = 10.0, innovation_variance: float = 0.1):
        super().__init__()
        self.logtaus = nn.Parameter(torch.full((n_dims,), math.log(tau)))
        self.lognvars = nn.Parameter(torch.full((n_dims,), math.log(innovation_variance)))

    def posterior(self, mean: Tensor, std: Tensor) -> Independent:
        """Posterior of this mean and standard deviation."""
        return Independent(Normal(mean, std), 2)

    def given_past(self, sample: Tensor) -> Normal:
        """Prior of every bin, conditional on the sample of the bin before it."""
        alpha = torch.exp(-1 / torch.exp(self.logtaus))
        log_stationary = self.lognvars - torch.log(1 - alpha**2)
        mean = AffineTransform(loc=0, scale=alpha)(torch.roll(sample, 1, 1))
        std = torch.ones_like(mean) * torch.exp(0.5 * self.lognvars)
        mean[:, 0] = 0
        std[:, 0] = torch.exp(0.5 * log_stationary)
        return Normal(mean, std)

    def forward(self, mean: Tensor, std: Tensor, sample: Tensor | None = None) -> Tensor:
        """KL in nats."""
        posterior = self.posterior(mean, std)
        if sample is not None:
            return kl_divergence(posterior.base_dist, self.given_past(sample)).sum((1, 2)).mean()
        sample = posterior.rsample()
        prior = Independent(self.given_past(sample), 2)
        return (posterior.log_prob(sample) - prior.log_prob(sample)).mean()


class StudentTPrior(nn.Module):
    """Independent Student-t variables, posterior included; KL as log q - log p at one sample, mean over all axes.

    It starts at the location that is asked for; in lfads-torch, by a slip, at its scale.
    """

    def __init__(self, n_dims: int, location: float = 0.0, scale: float = 1.0, degrees_of_freedom: float = 5.0):
        super().__init__()
        self.loc = nn.Parameter(torch.full((n_dims,), float(location)))
        self.logscale = nn.Parameter(torch.full((n_dims,), math.log(scale)))
        self.freedom = degrees_of_freedom

    def posterior(self, mean: Tensor, std: Tensor) -> Independent:
        """Posterior of this location and scale."""
        return Independent(StudentT(self.freedom, mean, std), 1)

    def forward(self, mean: Tensor, std: Tensor, sample: Tensor | None = None) -> Tensor:
        """KL in nats, at a fresh sample where none is given."""
        posterior = self.posterior(mean, std)
        sample = posterior.rsample() if sample is None else sample
        prior = Independent(StudentT(self.freedom, self.loc, torch.exp(self.logscale)), 1)
        return (posterior.log_prob(sample) - prior.log_prob(sample)).mean()


class NoPrior(nn.Module):
    """No prior: the posterior mean acts."""

    def __init__(self, n_dims: int):
        super().__init__()

    def posterior(self, mean: Tensor, std: Tensor) -> None:
        """None."""

    def forward(self, mean: Tensor, std: Tensor, sample: Tensor | None = None) -> float:
        """0."""
        return 0.0


PRIORS = {
    "normal": NormalPrior,
    "autoregressive": AutoregressivePrior,
    "student_t": StudentTPrior,
    "none": NoPrior,
}


def make_prior(settings: Mapping[str, Any], n_dims: int) -> nn.Module:
    """Prior from its kind and what else its class takes, the names being those of `ctdb.models.priors`."""
    own = dict(settings)
    return PRIORS[own.pop("kind")](n_dims, **own)


def draw(prior: nn.Module, mean: Tensor, std: Tensor, sample: bool, noise: Tensor | None) -> Tensor:
    """Sample of the posterior: with given noise, else drawn through a distribution object; or its mean."""
    posterior = prior.posterior(mean, std)
    if not sample or posterior is None:
        return mean
    return posterior.rsample() if noise is None else mean + std * noise


def dropped(value: Tensor, rate: float, training: bool, mask: Tensor | None) -> Tensor:
    """Dropout by torch's own function, or by a given mask."""
    if mask is None or not training:
        return functional.dropout(value, rate, training)
    return value * mask / (1 - rate)


# LFADS


class ClippedGRUCell(nn.Module):
    """GRU with the reset gate before the recurrent product, gates in the order z, r, n, state clipped.

    Its recurrent bias exists, is 0 and is not trained.
    """

    def __init__(self, n_inputs: int, n_states: int, clip: float, encoder: bool):
        super().__init__()
        self.n_states, self.clip = n_states, clip
        self.weight_ih = nn.Parameter(torch.empty(3 * n_states, n_inputs))
        self.weight_hh = nn.Parameter(torch.empty(3 * n_states, n_states))
        self.bias_ih = nn.Parameter(torch.ones(3 * n_states))
        self.bias_hh = nn.Parameter(torch.zeros(3 * n_states), requires_grad=False)
        with torch.no_grad():
            for weight in (self.weight_ih, self.weight_hh):
                weight.normal_(0, 1 / math.sqrt(max(1, n_inputs + n_states if encoder else weight.shape[1])))
            self.bias_ih[2 * n_states :] = 0

    def forward(self, input: Tensor, state: Tensor) -> Tensor:
        """Next state."""
        sizes = [2 * self.n_states, self.n_states]
        from_input = input @ self.weight_ih.T + self.bias_ih
        input_z, input_r, input_n = torch.chunk(from_input, 3, 1)
        weight_zr, weight_n = torch.split(self.weight_hh, sizes)
        bias_zr, bias_n = torch.split(self.bias_hh, sizes)
        state_z, state_r = torch.chunk(state @ weight_zr.T + bias_zr, 2, 1)
        z = torch.sigmoid(input_z + state_z)
        r = torch.sigmoid(input_r + state_r)
        n = torch.tanh(input_n + ((r * state) @ weight_n.T + bias_n))
        return torch.clamp(z * state + (1 - z) * n, -self.clip, self.clip)


class OneWay(nn.Module):
    """A cell stepped over the bins."""

    def __init__(self, *sizes_and_clip: Any):
        super().__init__()
        self.cell = ClippedGRUCell(*sizes_and_clip, encoder=True)

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """All states (trials, bins, states) and the last."""
        states = []
        for input in torch.transpose(inputs, 0, 1):
            state = self.cell(input, state)
            states.append(state)
        return torch.stack(states, 1), state


class BothWays(nn.Module):
    """Two cells, one forward and one backward, one loop after the other."""

    def __init__(self, *sizes_and_clip: Any):
        super().__init__()
        self.fwd_gru = OneWay(*sizes_and_clip)
        self.bwd_gru = OneWay(*sizes_and_clip)

    def forward(self, inputs: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """States of both in the order of time (trials, bins, 2 states), and their last (2, trials, states)."""
        ahead, last_ahead = self.fwd_gru(inputs, starts[0])
        back, last_back = self.bwd_gru(torch.flip(inputs, [1]), starts[1])
        return torch.cat([ahead, torch.flip(back, [1])], 2), torch.stack([last_ahead, last_back])


def normal_linear(n_inputs: int, n_outputs: int, bias: bool = True, cls: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """Linear map of weights N(0, 1 / inputs) and offset 0."""
    layer = cls(n_inputs, n_outputs, bias=bias)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(n_inputs))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class UnitRowLinear(nn.Linear):
    """Linear map whose rows are brought to norm 1 every time it is used."""

    def forward(self, input: Tensor) -> Tensor:
        """Map the last axis."""
        return functional.linear(input, functional.normalize(self.weight, p=2, dim=1), self.bias)


class Encoder(nn.Module):
    """Posterior of the initial condition, and the controller's input."""

    def __init__(self, peer: "LfadsTorchPeer"):
        super().__init__()
        s = self.sizes = peer.sizes
        self.ic_enc_h0 = nn.Parameter(torch.zeros(2, 1, s.ic_enc_dim))
        self.ic_enc = BothWays(s.n_encod, s.ic_enc_dim, s.cell_clip)
        self.ic_linear = normal_linear(2 * s.ic_enc_dim, 2 * s.ic_dim)
        if s.co_dim:
            self.ci_enc_h0 = nn.Parameter(torch.zeros(2, 1, s.ci_enc_dim))
            self.ci_enc = BothWays(s.n_encod, s.ci_enc_dim, s.cell_clip)

    def forward(self, encod: Tensor, injected: Injected) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior mean and standard deviation (trials, ic), and the controller's input (trials, bins, 2 ci)."""
        s, n_trials = self.sizes, len(encod)
        seen = dropped(encod, s.dropout_rate, self.training, injected.encoder_input)
        _, last = self.ic_enc(seen, torch.tile(self.ic_enc_h0, (1, n_trials, 1)))
        summary = dropped(torch.cat([*last], 1), s.dropout_rate, self.training, injected.ic_summary)
        ic_mean, ic_logvar = torch.split(self.ic_linear(summary), s.ic_dim, 1)
        ic_std = torch.sqrt(torch.exp(ic_logvar) + s.ic_post_var_min)
        if not s.co_dim:
            return ic_mean, ic_std, encod.new_zeros(n_trials, s.t_recon, 0)
        states, _ = self.ci_enc(seen, torch.tile(self.ci_enc_h0, (1, n_trials, 1)))
        ahead, back = torch.split(states, s.ci_enc_dim, 2)
        ahead = functional.pad(ahead, (0, 0, s.ci_lag, 0))[:, : s.t_encod]
        back = functional.pad(back, (0, 0, 0, s.ci_lag))[:, -s.t_encod :]
        return ic_mean, ic_std, functional.pad(torch.cat([ahead, back], 2), (0, 0, 0, s.t_recon - s.t_encod))


class DecoderCell(nn.Module):
    """One bin of controller and generator; all that it yields is one wide vector, which the next bin takes apart."""

    def __init__(self, peer: "LfadsTorchPeer"):
        super().__init__()
        s = self.sizes = peer.sizes
        self.gen_cell = ClippedGRUCell(s.co_dim + s.ext_input_dim, s.gen_dim, s.cell_clip, encoder=False)
        self.fac_linear = normal_linear(s.gen_dim, s.fac_dim, bias=False, cls=UnitRowLinear)
        if s.co_dim:
            self.con_cell = ClippedGRUCell(2 * s.ci_enc_dim + s.fac_dim, s.con_dim, s.cell_clip, encoder=False)
            self.co_linear = normal_linear(s.con_dim, 2 * s.co_dim)
        self.input_widths = [2 * s.ci_enc_dim, s.ext_input_dim]
        self.widths = [s.gen_dim, s.con_dim, s.co_dim, s.co_dim, s.co_dim + s.ext_input_dim, s.fac_dim]

    def forward(self, input: Tensor, hidden: Tensor, prior: nn.Module, sample: bool, injected: StepInjected) -> Tensor:
        """Generator, controller, mean, standard deviation, generator input and factors of the bin, side by side."""
        s = self.sizes
        gen_state, con_state, co_mean, co_std, gen_input, factors = torch.split(hidden, self.widths, 1)
        if s.co_dim:
            ci, ext = torch.split(input, self.input_widths, 1)
            con_input = dropped(torch.cat([ci, factors], 1), s.dropout_rate, self.training, injected.con)
            con_state = self.con_cell(con_input, con_state)
            co_mean, co_logvar = torch.split(self.co_linear(con_state), s.co_dim, 1)
            co_std = torch.sqrt(torch.exp(co_logvar))
            gen_input = torch.cat([draw(prior, co_mean, co_std, sample, injected.co_noise), ext], 1)
        else:
            gen_input = input
        gen_state = self.gen_cell(gen_input, gen_state)
        factors = self.fac_linear(dropped(gen_state, s.dropout_rate, self.training, injected.gen_state))
        return torch.cat([gen_state, con_state, co_mean, co_std, gen_input, factors], 1)


class DecoderLoop(nn.Module):
    """The loop over bins."""

    def __init__(self, peer: "LfadsTorchPeer"):
        super().__init__()
        self.cell = DecoderCell(peer)

    def forward(self, inputs: Tensor, hidden: Tensor, prior: nn.Module, sample: bool, injected: Injected) -> Tensor:
        """Wide vectors of all bins (trials, bins, widths)."""
        anything = any(getattr(injected, name) is not None for name in ("con_ci", "gen_states", "co_noise"))
        rows = []
        for t, input in enumerate(torch.transpose(inputs, 0, 1)):
            hidden = self.cell(input, hidden, prior, sample, injected.at(t) if anything else NOTHING)
            rows.append(hidden)
        return torch.stack(rows, 1)


class Decoder(nn.Module):
    """From an initial condition and the controller's input to generator states and factors."""

    def __init__(self, peer: "LfadsTorchPeer"):
        super().__init__()
        s = self.sizes = peer.sizes
        self.ic_to_g0 = normal_linear(s.ic_dim, s.gen_dim)
        self.rnn = DecoderLoop(peer)
        self.con_h0 = nn.Parameter(torch.zeros(1, s.con_dim))

    def forward(
        self, ic: Tensor, ci: Tensor, ext: Tensor, prior: nn.Module, sample: bool, injected: Injected
    ) -> tuple[Tensor, ...]:
        """Initial generator state; then the six parts of the wide vectors, each (trials, bins, channels)."""
        s, n_trials, cell = self.sizes, len(ic), self.rnn.cell
        gen_init = self.ic_to_g0(ic)
        gen_dropped = dropped(gen_init, s.dropout_rate, self.training, injected.gen_init)
        ext = functional.pad(ext, (0, 0, 0, s.t_recon - ext.shape[1])) if ext.shape[1] < s.t_recon else ext
        ext = dropped(ext, s.dropout_rate, self.training, injected.ext_input)
        hidden = [
            gen_init,
            torch.tile(self.con_h0, (n_trials, 1)),
            ic.new_zeros(n_trials, s.co_dim),
            ic.new_ones(n_trials, s.co_dim),
            ic.new_zeros(n_trials, s.co_dim + s.ext_input_dim),
            cell.fac_linear(gen_dropped),
        ]
        rows = self.rnn(torch.cat([ci, ext], 2), torch.cat(hidden, 1), prior, sample, injected)
        return gen_init, *torch.split(rows, cell.widths, 2)


@dataclass(frozen=True)
class LfadsSizes:
    """Sizes and settings of the model, under the names of lfads-torch where it has one."""

    n_encod: int
    n_recon: int
    t_encod: int
    t_recon: int
    ext_input_dim: int = 0
    ic_enc_dim: int = 64
    ci_enc_dim: int = 64
    con_dim: int = 64
    co_dim: int = 4
    ic_dim: int = 64
    gen_dim: int = 200
    fac_dim: int = 100
    ci_lag: int = 1
    cell_clip: float = 5.0
    dropout_rate: float = 0.3
    cd_rate: float = 0.3
    ic_post_var_min: float = 1e-4
    loss_scale: float = 1.0
    kl_ic_scale: float = 0.0
    kl_co_scale: float = 0.0
    l2_ic_enc_scale: float = 0.0
    l2_ci_enc_scale: float = 0.0
    l2_gen_scale: float = 0.0
    l2_con_scale: float = 0.0


class LfadsTorchPeer(nn.Module):
    """LFADS for one session of spikes, as lfads-torch computes it; its state dict has that package's names.

    Left out of lfads-torch: several sessions and read-ins, the segment for the initial condition alone
    (`ic_enc_seq_len`), missing values, sample validation, shifts and jitter, other observation models. The facts are
    those of the module's docstring.

    Parameters
    ----------
    ic_prior, co_prior
        Kind (`normal`, `autoregressive`, `student_t`, `none`) and settings, under the names of `ctdb.models.priors`.
    with_bps
        Whether each step also computes the bits per spike that lfads-torch logs in every step.
    **sizes
        The fields of :class:`LfadsSizes`. No controller where any of `ci_enc_dim`, `con_dim` and `co_dim` is 0.
    """

    def __init__(
        self,
        *,
        ic_prior: Mapping[str, Any] = {"kind": "normal"},
        co_prior: Mapping[str, Any] = {"kind": "autoregressive"},
        with_bps: bool = False,
        **sizes: Any,
    ):
        super().__init__()
        defaults = {field.name: field.default for field in fields(LfadsSizes)}
        if 0 in [(defaults | sizes)[name] for name in ("ci_enc_dim", "con_dim", "co_dim")]:
            sizes |= {"ci_enc_dim": 0, "con_dim": 0, "co_dim": 0}
        s = self.sizes = LfadsSizes(**sizes)
        self.with_bps = with_bps
        self.encoder = Encoder(self)
        self.decoder = Decoder(self)
        self.readout = nn.ModuleList([normal_linear(s.fac_dim, s.n_recon)])
        self.ic_prior = make_prior(ic_prior, s.ic_dim)
        self.co_prior = make_prior(co_prior, s.co_dim)
        # Kept on the host, as the peer keeps them: on a GPU its masks are drawn on the CPU and copied in every step.
        self.cd_keep = Bernoulli(1 - s.cd_rate)
        self.cd_pass = Bernoulli(0.0)

    def forward(
        self,
        encod: Tensor,
        ext: Tensor,
        injected: Injected | Mapping[str, Tensor] | None = None,
        sample: bool = True,
        means: bool = True,
    ) -> Output:
        """Run the whole model once, from one sample of the posteriors or from their means.

        Parameters
        ----------
        encod, ext
            Counts that are seen, and external input; of the latter, bins that lack at the end are 0.
        injected
            What would be drawn.
        sample
            Whether samples act, or the posterior means.
        means
            Whether `rates` are expected counts; log-rates with a last axis of length 1 otherwise.
        """
        injected = Injected.of(injected)
        ic_mean, ic_std, ci = self.encoder(encod, injected)
        ic = draw(self.ic_prior, ic_mean, ic_std, sample, injected.ic_noise)
        decoded = self.decoder(ic, ci, ext, self.co_prior, sample, injected)
        gen_init, gen_states, con_states, co_means, co_stds, gen_inputs, factors = decoded
        rates = torch.unsqueeze(self.readout[0](factors), -1)
        rates = torch.exp(rates[..., 0]) if means else rates
        return Output(
            *(rates, factors, ic_mean, ic_std, co_means, co_stds), *(gen_states, gen_init, gen_inputs, con_states)
        )

    def training_loss(
        self,
        encod: Tensor,
        recon: Tensor,
        ext: Tensor,
        injected: Injected | Mapping[str, Tensor] | None = None,
        fresh_kl_sample: bool = True,
    ) -> Tensor:
        """Loss of a batch; in eval mode nothing is hidden or dropped. See :meth:`loss_and_terms`."""
        return self.loss_and_terms(encod, recon, ext, injected, fresh_kl_sample)[0]

    def loss_and_terms(
        self,
        encod: Tensor,
        recon: Tensor,
        ext: Tensor,
        injected: Injected | Mapping[str, Tensor] | None = None,
        fresh_kl_sample: bool = True,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Loss and its parts.

        ``loss_scale * (NLL + L2 + kl_ic_scale * KL_ic + kl_co_scale * KL_co)``, the NLL a mean over trials, bins and
        neurons with Stirling's term for log n! (0 for n of 0 and 1), the KL of a trial's initial condition, and that
        of inferred inputs summed over bins for the autoregressive prior and a mean over bins for the others.

        Parameters
        ----------
        encod, recon, ext
            As in :class:`Batch`.
        injected
            What would be drawn.
        fresh_kl_sample
            Whether the KL of an autoregressive or Student-t prior is estimated at a sample of its own, as lfads-torch
            does it. Otherwise it is that of the sample which drove the generator: for the autoregressive prior the
            exact KL of each bin given this sample's past, which is what `ctdb` has, for Student-t log q - log p.

        Returns
        -------
        Loss, and `nll`, `kl_ic`, `kl_co`, `l2`, and `bps`, `co_bps`, `fp_bps` where they are asked for.
        """
        s, injected = self.sizes, Injected.of(injected)
        learned = None
        if self.training:
            encod, learned = self._hide(encod, injected.cd_keep)
        output = self(encod, ext, injected, means=False)
        nll = functional.poisson_nll_loss(output.rates[..., 0], recon, full=True, reduction="none")
        if learned is not None:
            padding = (0, recon.shape[2] - learned.shape[2], 0, recon.shape[1] - learned.shape[1])
            learned = functional.pad(learned, padding, value=1.0)
            nll = nll * learned + (nll * (1 - learned)).detach()
        terms: dict[str, Any] = {}
        if self.with_bps:
            terms = self._bits_per_spike(output.rates[..., 0], recon)
        terms["nll"] = nll.mean()
        terms["l2"] = self._l2()
        drove = None if fresh_kl_sample else output.gen_inputs[..., : s.co_dim]
        terms["kl_ic"] = self.ic_prior(output.ic_mean, output.ic_std)
        terms["kl_co"] = self.co_prior(output.co_means, output.co_stds, drove)
        penalty = s.kl_ic_scale * terms["kl_ic"] + s.kl_co_scale * terms["kl_co"]
        return s.loss_scale * (terms["nll"] + terms["l2"] + penalty), terms

    def _hide(self, encod: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Coordinated dropout: what is left to see, and where the loss may teach. Two draws, one of them of zeros."""
        if keep is None:
            keep = self.cd_keep.sample(encod.shape).to(encod.device)
        passes = self.cd_pass.sample(encod.shape).to(encod.device)
        if self.sizes.cd_rate > 0:
            learned = torch.logical_or(torch.logical_not(keep), passes).to(encod.dtype)
        else:
            learned = torch.ones_like(encod)
        return encod * keep / (1 - self.sizes.cd_rate), learned

    def _l2(self) -> Tensor | float:
        s, encoder, cell = self.sizes, self.encoder, self.decoder.rnn.cell
        kernels = [
            (s.l2_ic_enc_scale, encoder.ic_enc.fwd_gru.cell.weight_hh),
            (s.l2_ic_enc_scale, encoder.ic_enc.bwd_gru.cell.weight_hh),
            (s.l2_gen_scale, cell.gen_cell.weight_hh),
        ]
        if s.co_dim:
            kernels += [
                (s.l2_ci_enc_scale, encoder.ci_enc.fwd_gru.cell.weight_hh),
                (s.l2_ci_enc_scale, encoder.ci_enc.bwd_gru.cell.weight_hh),
                (s.l2_con_scale, cell.con_cell.weight_hh),
            ]
        penalised = [(scale, kernel) for scale, kernel in kernels if scale > 0]
        total = sum(scale * 0.5 * torch.norm(kernel, 2) ** 2 for scale, kernel in penalised)
        return total / (sum(kernel.numel() for _, kernel in penalised) + 1e-8)

    def _bits_per_spike(self, log_rates: Tensor, recon: Tensor) -> dict[str, Any]:
        """Bits per spike of held-in neurons, held-out neurons and later bins, at least -1; the null is the batch's."""
        t, n = self.sizes.t_encod, self.sizes.n_encod
        regions = {
            "bps": (log_rates[:, :t, :n], recon[:, :t, :n]),
            "co_bps": (log_rates[:, :t, n:], recon[:, :t, n:]),
            "fp_bps": (log_rates[:, t:], recon[:, t:]),
        }
        return {name: max(bits_per_spike(*region), -1.0) for name, region in regions.items()}


def bits_per_spike(log_rates: Tensor, counts: Tensor) -> Tensor:
    """Bits per spike over the mean count of each neuron in the batch; NaN for an empty region, as in lfads-torch."""
    fitted = functional.poisson_nll_loss(log_rates, counts, full=True, reduction="sum")
    mean = torch.mean(counts, (0, 1), keepdim=True)
    null = functional.poisson_nll_loss(mean, counts, log_input=False, full=True, reduction="sum")
    return (null - fitted) / torch.nansum(counts) / math.log(2)


def lfads_torch_optimizer(
    model: nn.Module, lr: float = 4e-3, eps: float = 1e-8, weight_decay: float = 0.0
) -> torch.optim.AdamW:
    """Optimiser as lfads-torch sets it up, with the numbers of its configuration for MC_Maze."""
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=eps, weight_decay=weight_decay)


def lfads_torch_step(
    model: LfadsTorchPeer,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[Tensor],
    clip: float = 200.0,
    injected: Injected | Mapping[str, Tensor] | None = None,
) -> Tensor:
    """One training step, in the order in which Lightning drives it; returns the loss, detached.

    Parameters
    ----------
    model, optimizer
        Model in training mode, and its optimiser.
    batch
        `encod`, `recon` and `ext`, as in :class:`Batch`.
    clip
        Largest norm of the gradient.
    injected
        What would be drawn.
    """
    loss = model.training_loss(*batch, injected=injected)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def posterior_sample(
    model: LfadsTorchPeer,
    batch: Sequence[Tensor],
    n_samples: int = 50,
    injected: Sequence[Injected | Mapping[str, Tensor]] | None = None,
) -> Output:
    """Means over posterior samples as lfads-torch takes them: the whole model, encoders included, once per sample.

    Parameters
    ----------
    model
        Left in the mode in which it was.
    batch
        `encod`, `recon` and `ext`, as in :class:`Batch`; nothing is read of `recon`.
    n_samples
        Number of samples.
    injected
        Noise of each sample, where it is not to be drawn.
    """
    encod, _, ext = batch
    training = model.training
    model.eval()
    sums: list[Tensor] = []
    for index in range(n_samples):
        output = model(encod, ext, injected[index] if injected else None)
        sums = [total + one for total, one in zip(sums, output, strict=True)] if sums else list(output)
    model.train(training)
    return Output(*(total / n_samples for total in sums))


# Task training


class CtdTaskPeer(nn.Module):
    r"""NoisyGRU on the flip-flop task, as CtDB's task-trained wrapper runs and trains it.

    :math:`h_t = GRU(u_t, \tilde h_{t-1})`, output :math:`W h_t + b`, :math:`\tilde h_t = h_t + \sigma \epsilon_t`, from
    a learned initial state plus noise, in a Python loop that draws the noise of each bin. The facts are those of the
    module's docstring; the GRU is torch's.

    Parameters
    ----------
    n_inputs, n_outputs, n_states
        Channels of the task, 3 and 3 for 3 bits, and states.
    state_noise, initial_state_noise
        Standard deviations. CtDB's constructor has had 0.01 and 0.05 for the first in the course of time.
    blind_after_change, blind_start
        Bins after a change of target, and at the start, that the loss leaves out.
    """

    def __init__(
        self,
        n_inputs: int = 3,
        n_outputs: int = 3,
        n_states: int = 128,
        state_noise: float = 0.01,
        initial_state_noise: float = 0.05,
        blind_after_change: int = 4,
        blind_start: int = 5,
    ):
        super().__init__()
        self.state_noise, self.initial_state_noise = state_noise, initial_state_noise
        self.blind_after_change, self.blind_start = blind_after_change, blind_start
        self.latent_ics = nn.Parameter(torch.zeros(n_states))
        self.cell = nn.GRUCell(n_inputs, n_states)
        self.readout = nn.Linear(n_states, n_outputs)

    def step(self, input: Tensor, state: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output of a bin, and the state after it with its noise."""
        state = self.cell(input, state)
        noise = (torch.randn_like(state) if noise is None else noise) * self.state_noise
        return self.readout(state), state + noise

    def forward(
        self, inputs: Tensor, noise: Tensor | None = None, initial_noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Run all bins.

        Parameters
        ----------
        inputs
            Task inputs (trials, bins, inputs).
        noise, initial_noise
            Standard normal noise (trials, bins, states) and (trials, states); drawn where not given.

        Returns
        -------
        `controlled` (trials, bins, outputs), `latents` (trials, bins, states) and `actions`, which for a task without
        an environment are the outputs again; the peer stacks all three.
        """
        start = self.latent_ics.unsqueeze(0).expand(len(inputs), -1)
        first = torch.randn_like(start) if initial_noise is None else initial_noise
        state = start + first * self.initial_state_noise
        controlled, latents, actions = [], [], []
        while len(controlled) < inputs.shape[1]:
            t = len(controlled)
            output, state = self.step(inputs[:, t, :], state, None if noise is None else noise[:, t])
            controlled.append(output)
            actions.append(output)
            latents.append(state)
        stacked = {"controlled": controlled, "latents": latents, "actions": actions}
        return {name: torch.stack(rows, 1) for name, rows in stacked.items()}

    def training_loss(
        self, inputs: Tensor, targets: Tensor, noise: Tensor | None = None, initial_noise: Tensor | None = None
    ) -> Tensor:
        """Mean over all entries of the masked squared error; the mask is made from the targets in every step."""
        outputs = self.forward(inputs, noise, initial_noise)["controlled"]
        return (functional.mse_loss(outputs, targets, reduction="none") * self.loss_mask(targets)).mean()

    def loss_mask(self, targets: Tensor) -> Tensor:
        """1 where the loss counts: not in the first bins, and per bit not in the bins that follow a change."""
        changed = torch.diff(targets, dim=1) != 0
        mask = torch.ones_like(changed, dtype=torch.float)
        for delay in range(1, self.blind_after_change + 1):
            delayed = torch.cat([torch.zeros_like(changed[:, :delay]), changed[:, :-delay]], 1)
            mask = mask * (1 - delayed.float())
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
        mask[:, : self.blind_start] = 0
        return mask


def ctd_task_optimizer(model: nn.Module, lr: float = 1e-3, weight_decay: float = 1e-8) -> torch.optim.Adam:
    """Optimiser of CtDB's task training."""
    return torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)


def ctd_task_step(
    model: CtdTaskPeer,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[Tensor],
    clip: float = 1.0,
    noise: Tensor | None = None,
    initial_noise: Tensor | None = None,
) -> Tensor:
    """One training step, in the order in which Lightning drives it; returns the loss, detached.

    Parameters
    ----------
    model, optimizer
        Model and its optimiser.
    batch
        `inputs` and `targets`, each (trials, bins, channels).
    clip
        Largest norm of the gradient.
    noise, initial_noise
        As in :meth:`CtdTaskPeer.forward`.
    """
    inputs, targets = batch
    loss = model.training_loss(inputs, targets, noise, initial_noise)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach()
