"""Weights of LFADS and BAND under the names of lfads-torch, there and back, so that its checkpoints can be used.

Both have the same layers (gates in the order update, reset, new). Theirs stack the mean and the log-variance of a
posterior in one layer, and carry recurrent biases that are frozen at 0.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ctdb.errors import ConfigError
from ctdb.models.lfads import LFADS
from ctdb.models.priors import NormalPrior

_PRIORS = {"log_tau": "logtaus", "log_variance": "lognvars", "mean": "mean", "location": "loc", "log_scale": "logscale"}


def to_lfads_torch(model: LFADS) -> dict[str, Tensor]:
    """Weights of a model of clipped GRU cells, under lfads-torch's names."""
    return {name: value.detach().clone() for name, value in _theirs(model).items()}


def load_lfads_torch(model: LFADS, weights: Mapping[str, Tensor] | Path | str) -> None:
    """Copy the weights of an lfads-torch model of the same sizes into `model`.

    Parameters
    ----------
    model
        Made by :func:`ctdb.models.build`; its ``cell`` must be ``clipped_gru``. A behaviour decoder keeps its weights.
    weights
        State dict, or a file that ``torch.save`` made of one. A Lightning checkpoint of lfads-torch also holds pickled
        objects, which are not loaded here: in its own environment, write
        ``torch.save(torch.load(checkpoint)["state_dict"], file)``.

    Raises
    ------
    ConfigError
        If the file holds more than tensors, a weight is missing, there is one too many, one has another shape, or
        recurrent biases are not 0, which the cell does not have.
    """
    where = "the state dict"
    if not isinstance(weights, Mapping):
        where = str(weights)
        try:
            weights = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ConfigError(
                f"{where} cannot be loaded safely ({str(error).splitlines()[0]}); in lfads-torch's environment write "
                "its weights alone: torch.save(torch.load(checkpoint)['state_dict'], file)"
            ) from None
        weights = weights.get("state_dict", weights)
    wanted = _theirs(model)
    empty = {name for name, value in weights.items() if value.numel() == 0}
    found = {name: value for name, value in weights.items() if name not in empty}
    missing, surplus = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or surplus:
        raise ConfigError(
            f"{where} does not fit: missing {missing[:5] or 'nothing'}, not known {surplus[:5] or 'nothing'}; give the "
            "model the same parts (controller, priors, read-in)"
        )
    for name, ours in wanted.items():
        if found[name].shape != ours.shape:
            raise ConfigError(
                f"{where}: {name} has shape {tuple(found[name].shape)}, the model {tuple(ours.shape)}; "
                "give it the same sizes"
            )
        if name.endswith("bias_hh") and found[name].abs().max() > 0:
            raise ConfigError(f"{where}: {name} is not 0, but the cell has no recurrent bias; it is not of lfads-torch")
        if name.endswith("prior.logvar") and not torch.allclose(found[name], ours.to(found[name]), atol=1e-5):
            variance = float(found[name].exp().flatten()[0])
            raise ConfigError(f"{where}: set {name.split('.')[0]}.variance to {variance:g}, as it was there")
    with torch.no_grad():
        _copy(model, found)


def _theirs(model: LFADS) -> dict[str, Tensor]:
    s, named = model.settings, {}
    if s.cell != "clipped_gru":
        raise ConfigError(f"cell is {s.cell!r}; lfads-torch has 'clipped_gru' alone")
    for theirs, encoder in _encoders(model):
        named[f"encoder.{theirs}_h0"] = encoder.initial[:, None]
        for direction, cell in (("fwd", encoder.ahead), ("bwd", encoder.back)):
            named |= _cell(f"encoder.{theirs}.{direction}_gru.cell", cell)
    named |= _joined("encoder.ic_linear", model.ic_mean, model.ic_logvar)
    named |= _layer("decoder.ic_to_g0", model.ic_to_g0)
    named |= _cell("decoder.rnn.cell.gen_cell", model.generator)
    named["decoder.rnn.cell.fac_linear.weight"] = model.to_factors.weight
    if s.co_dim:
        named["decoder.con_h0"] = model.con_initial[None]
        named |= _cell("decoder.rnn.cell.con_cell", model.controller)
        named |= _joined("decoder.rnn.cell.co_linear", model.co_mean, model.co_logvar)
    for index, (readin, readout) in enumerate(zip(model.readin, model.readout, strict=True)):
        if hasattr(readin, "weight"):
            named |= _layer(f"readin.{index}", readin)
        named |= _layer(f"readout.{index}", readout)
    for prior in ("ic_prior", "co_prior"):
        if hasattr(model, prior):
            own = getattr(model, prior)
            named |= {f"{prior}.{_PRIORS[name]}": value for name, value in own.named_parameters()}
            if isinstance(own, NormalPrior):
                named[f"{prior}.logvar"] = torch.full_like(own.mean, math.log(own.variance))
    return named


def _copy(model: LFADS, found: Mapping[str, Tensor]) -> None:
    """Copy into the parameters; `_theirs` gives views of them, but for the joined layers and the biases of 0."""
    halves = {"encoder.ic_linear": (model.ic_mean, model.ic_logvar)}
    if model.settings.co_dim:
        halves["decoder.rnn.cell.co_linear"] = (model.co_mean, model.co_logvar)
    for name, ours in _theirs(model).items():
        layer, _, part = name.rpartition(".")
        if layer in halves:
            for own, value in zip(halves[layer], found[name].chunk(2), strict=True):
                getattr(own, part).copy_(value)
        elif not name.endswith(("bias_hh", "prior.logvar")):
            ours.copy_(found[name])


def _encoders(model: LFADS) -> list[tuple[str, torch.nn.Module]]:
    own = [("ic_enc", model.ic_encoder)]
    return [*own, ("ci_enc", model.ci_encoder)] if model.settings.co_dim else own


def _cell(name: str, cell: torch.nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.weight_ih": cell.weight_ih,
        f"{name}.weight_hh": cell.weight_hh,
        f"{name}.bias_ih": cell.bias,
        f"{name}.bias_hh": torch.zeros_like(cell.bias),
    }


def _layer(name: str, layer: torch.nn.Module) -> dict[str, Tensor]:
    return {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}


def _joined(name: str, first: torch.nn.Module, second: torch.nn.Module) -> dict[str, Tensor]:
    weight = torch.cat([first.weight, second.weight])
    return {f"{name}.weight": weight, f"{name}.bias": torch.cat([first.bias, second.bias])}
