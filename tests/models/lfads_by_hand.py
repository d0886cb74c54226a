"""LFADS in float64 numpy, from its published equations, and the small models and data that its tests share.

Trials of one call have the same length; `encod` (trials, bins, neurons) ends with the trial, `ext` has all bins.
"""

from types import SimpleNamespace

import numpy as np
import torch

from ctdb import models

SIZES = {
    **{"ic_enc_dim": 4, "ic_dim": 3, "gen_dim": 6, "fac_dim": 3},
    **{"ci_enc_dim": 3, "con_dim": 4, "co_dim": 2},
}
NO_CONTROLLER = {"ci_enc_dim": 0, "con_dim": 0, "co_dim": 0}
NO_DROPOUT = {"dropout_rate": 0.0, "cd_rate": 0.0}
NO_POSTERIOR = {"ic_prior": {"kind": "none"}, "co_prior": {"kind": "none"}}


def make_model(dataset, kind="lfads", **changed):
    """Model in float64 whose every weight, bias and initial state is random."""
    model = models.build({"kind": kind} | SIZES | NO_DROPOUT | {"n_samples": 1} | changed, dataset)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.double()


def make_batch(model, split, session=None, fitted=False):
    """Batch in float64, as a fit gives it or as inference does."""
    made = (model.fit_tensors if fitted else model.tensors)(split, session)
    return {name: value.double() if value.is_floating_point() else value for name, value in made.items()}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weights_of(model):
    return {name: value.detach().double().numpy() for name, value in model.state_dict().items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def next_state(w, cell, settings, u, h):
    if settings.cell == "gru":  # the reset gate after the recurrent product
        a, c = (
            u @ w[f"{cell}.weight_ih"].T + w[f"{cell}.bias_ih"],
            h @ w[f"{cell}.weight_hh"].T + w[f"{cell}.bias_hh"],
        )
        (a_r, a_z, a_n), (c_r, c_z, c_n) = np.split(a, 3, 1), np.split(c, 3, 1)
        z = sigmoid(a_z + c_z)
        return (1 - z) * np.tanh(a_n + sigmoid(a_r + c_r) * c_n) + z * h
    x_z, x_r, x_n = np.split(u @ w[f"{cell}.weight_ih"].T + w[f"{cell}.bias"], 3, 1)
    w_z, w_r, w_n = np.split(w[f"{cell}.weight_hh"], 3)
    z, r = sigmoid(x_z + h @ w_z.T), sigmoid(x_r + h @ w_r.T)
    n = np.tanh(x_n + (r * h) @ w_n.T)
    return np.clip(z * h + (1 - z) * n, -settings.cell_clip, settings.cell_clip)


def linear(w, layer, x):
    return x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]


def read_both_ways(w, encoder, settings, x):
    """States (bins, trials, states) of both directions, each in the order of time."""
    directions = {}
    for index, (name, order) in enumerate({"ahead": range(x.shape[1]), "back": range(x.shape[1])[::-1]}.items()):
        state, states = np.repeat(w[f"{encoder}.initial"][index][None], len(x), 0), {}
        for t in order:
            state = states[t] = next_state(w, f"{encoder}.{name}", settings, x[:, t], state)
        directions[name] = [states[t] for t in range(x.shape[1])]
    return directions["ahead"], directions["back"]


def encode(w, s, encod, n_recon_bins, session=0):
    """Posterior of the initial condition, and the controller's input per bin."""
    n_trials, n_bins, _ = encod.shape
    x = linear(w, f"readin.{session}", encod) if f"readin.{session}.weight" in w else encod
    k = min(s.ic_enc_seq_len, n_bins)
    ahead, back = read_both_ways(w, "ic_encoder", s, x[:, :k] if k else x)
    summary = np.concatenate([ahead[-1], back[0]], 1)
    ic_mean = linear(w, "ic_mean", summary)
    ic_std = np.sqrt(np.exp(linear(w, "ic_logvar", summary)) + s.ic_post_var_min)
    ci = np.zeros((n_trials, n_recon_bins, 2 * s.ci_enc_dim))
    if s.co_dim and n_bins > k:
        ahead, back = read_both_ways(w, "ci_encoder", s, x[:, k:])
        for t in range(k, n_bins):  # 0 in the bins that are predicted unseen
            if t - k - s.ci_lag >= 0:
                ci[:, t, : s.ci_enc_dim] = ahead[t - k - s.ci_lag]
            if t - k + s.ci_lag < n_bins - k and not s.causal_con:
                ci[:, t, s.ci_enc_dim :] = back[t - k + s.ci_lag]
    return ic_mean, ic_std, ci


def forward(model, encod, ext, n_recon_bins, session=0, ic_noise=0.0, co_noise=None, control=None):
    """Everything the model infers from one draw of its noise; posterior means without."""
    w, s = weights_of(model), model.settings
    encod, ext = np.asarray(encod, float), np.asarray(ext, float)
    ic_mean, ic_std, ci = encode(w, s, encod, n_recon_bins, session)
    g = gen_init = linear(w, "ic_to_g0", ic_mean + ic_std * ic_noise)
    to_factors = w["to_factors.weight"] / np.linalg.norm(w["to_factors.weight"], axis=1, keepdims=True)
    f = g @ to_factors.T
    rows = {name: [] for name in ("latents", "factors", "gen_inputs", "con_states", "co_means", "co_stds")}
    if s.co_dim:
        c = np.repeat(w["con_initial"][None], len(encod), 0)
    for t in range(n_recon_bins):
        external = ext[:, t] if s.use_ext_input else ext[:, t, :0]
        u = external[:, :0]
        if s.co_dim:
            c = next_state(w, "controller", s, np.concatenate([ci[:, t], f], 1), c)
            co_mean, co_std = linear(w, "co_mean", c), np.exp(0.5 * linear(w, "co_logvar", c))
            u = co_mean if co_noise is None else co_mean + co_std * co_noise[:, t]
            u = u if control is None else u * control[t]
            for name, value in (("con_states", c), ("co_means", co_mean), ("co_stds", co_std)):
                rows[name].append(value)
        inputs = np.concatenate([u, external], 1)
        g = next_state(w, "generator", s, inputs, g)
        f = g @ to_factors.T
        for name, value in (("latents", g), ("factors", f), ("gen_inputs", inputs)):
            rows[name].append(value)
    stacked = {name: np.stack(values, 1) for name, values in rows.items() if values}
    log_rates = linear(w, f"readout.{session}", stacked["factors"])
    return SimpleNamespace(
        ic_mean=ic_mean, ic_std=ic_std, gen_init=gen_init, log_rates=log_rates, rates=np.exp(log_rates), **stacked
    )


def normal_kl(mean, std, prior_mean, prior_variance):
    """KL between normal distributions of one dimension."""
    return 0.5 * (np.log(prior_variance / std**2) + (std**2 + (mean - prior_mean) ** 2) / prior_variance - 1)
