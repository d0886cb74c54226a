"""K models at once: one loop trains models of one architecture on one dataset, each with its own seed and settings.

On a GPU a recurrent model is bound by the number of kernels that are launched, not by their work, and K models that
share every launch need hardly more of them than one. Parameters of all models are stacked along a leading axis, and
`torch.vmap` maps the loss over it; so the recurrent loops run by their definition, :mod:`ctdb.recurrent.eager`.

Gradients are those of the sum of the losses: a model's loss depends on its own parameters alone. Taking them outside
of `vmap` tells which parameters the loss does not reach, which Adam must leave alone as it does in a single fit.
"""

import contextlib
import copy
import hashlib
import io
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ctdb import interruption
from ctdb.datasets import MultiSession, SpikeDataset
from ctdb.errors import ConfigError
from ctdb.files import lock, write_bytes
from ctdb.provenance import fingerprint
from ctdb.recurrent import use_backend, without_gpu
from ctdb.seeds import derive
from ctdb.settings import TrainingSettings
from ctdb.training.batches import Batches, amount
from ctdb.training.fitting import Run, batches, write_fit
from ctdb.training.keeper import Epoch, Progress, checkpoint_seconds
from ctdb.training.loop import (
    TrainingResult,
    conclude,
    discard_checkpoint,
    identity,
    matching_checkpoint,
    old_objects_left_alone,
)

TRAINING_MAY_DIFFER = frozenset(
    {
        *("learning_rate", "weight_decay", "epsilon", "gradient_clip"),
        *("smoothing", "burn_in", "patience", "plateau"),
    }
)
"""Training settings in which models that train together may differ."""
BETAS = (0.9, 0.999)
"""Decay of Adam's two moments, torch's default."""


def fit_together(
    models: Sequence[Any],
    dataset: SpikeDataset | MultiSession,
    specs: Sequence[Mapping[str, Any]],
    outs: Sequence[Path | str],
    device: torch.device | str | None = None,
) -> list[TrainingResult]:
    """Fit K models to one dataset in one loop, and write each fit as :func:`ctdb.training.fit` does.

    Each model has its own seed, order of batches, noise, learning rate and early stop, and ends as it would alone, to
    rounding. A model that is finished or has diverged leaves the loop, and the others go on. A run that was killed
    goes on from its last checkpoint, in the first of `outs`, to the same final bytes.

    Parameters
    ----------
    models
        K models of one kind, such as :func:`ctdb.models.build` makes.
    dataset
        What to fit them to: one session, several are refused.
    specs
        Settings of each model. They may differ in what the kind's `may_differ` names, and in
        :data:`TRAINING_MAY_DIFFER`.
    outs
        Output folder of each.
    device
        Where to train; a GPU if there is one.

    Returns
    -------
    History and best epoch of each. Where a loss diverged, the result says so, and nothing is raised: see
    :meth:`TrainingResult.raise_if_diverged`.

    Raises
    ------
    ConfigError
        If the models differ in what they must share, or cannot train together at all; the message says what to do.
    WriteError
        If one of `outs` cannot be written.
    """
    outs = [Path(out) for out in outs]
    _check_numbers(models, specs, outs)
    runs = [Run.of(model, spec) for model, spec in zip(models, specs, strict=True)]
    _check_models(models, runs, dataset)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    train_data, valid_data, run = _data(models, dataset, runs, device)
    with contextlib.ExitStack() as stack:
        for out in sorted(outs):  # in one order, so that two runs cannot wait for each other
            stack.enter_context(lock(out))
        stack.enter_context(use_backend(without_gpu(runs[0].training.backend)))
        with interruption.deferred():
            progress = _train(models, runs, train_data, valid_data, outs, run, device)
        results = []
        for model, one, out in zip(models, progress, outs, strict=True):
            results.append(conclude(model, one, out))
            write_fit(model, dataset, results[-1], out)
        for out in outs:
            discard_checkpoint(out)
    return results


# What may train together


def _check_numbers(models: Sequence[Any], specs: Sequence[Any], outs: Sequence[Path]) -> None:
    numbers = len({id(model) for model in models}), len(specs), len({out.resolve() for out in outs})
    if len({*numbers, len(models), len(outs)}) > 1 or not models:
        raise ConfigError(
            f"{numbers[0]} different models, {numbers[1]} specs and {numbers[2]} different folders were given; "
            "give one of each for every model"
        )


def _check_models(models: Sequence[Any], runs: Sequence[Run], dataset: SpikeDataset | MultiSession) -> None:
    """Raise ConfigError where the models cannot train together."""
    kinds = dict.fromkeys(type(model).__name__ for model in models)
    if len(kinds) > 1:
        raise ConfigError(
            f"models that train together must be of one kind, but these are {', '.join(kinds)}; fit each kind by itself"
        )
    missing = [name for name in ("loss_and_terms", "may_differ", "sizes", "why_alone") if not hasattr(models[0], name)]
    if missing:
        raise ConfigError(f"{next(iter(kinds))} has no {', '.join(missing)}; fit such models one by one")
    if isinstance(dataset, MultiSession):
        raise ConfigError("models train together on one session, but several were given; fit such models one by one")
    for model in models:
        if (why := model.why_alone()) is not None:
            raise ConfigError(f"{next(iter(kinds))} cannot train together with others: {why}, or fit them one by one")
    if any(model.sizes != models[0].sizes for model in models):
        raise ConfigError(
            "models that train together must be built for the same dataset, but their sizes differ: "
            f"{_listed([model.sizes.model_dump(exclude_defaults=True) for model in models])}; build all for this one"
        )
    if differences := _differences(models[0], [model.settings for model in models]):
        raise ConfigError(f"models that train together must agree in some settings: {'; '.join(differences)}")
    if (backend := runs[0].training.backend) not in ("auto", "eager"):
        raise ConfigError(
            f"training.backend: is {backend!r}, but models that train together run eagerly; choose 'auto' or 'eager'"
        )
    weights = [
        [(name, value.shape, value.dtype, value.requires_grad) for name, value in _tensors_of(model)]
        for model in models
    ]
    for model_weights in weights:
        for one, other in zip(weights[0], model_weights, strict=True):
            if one != other:
                raise ConfigError(
                    f"models that train together must have the same weights, but {one[0]} is {one[1:]} in one and "
                    f"{other[0]} is {other[1:]} in another (shape, type, whether it is trained); build all alike"
                )


def _differences(model: Any, settings: Sequence[Any]) -> list[str]:
    """Settings in which the models differ and must not: key, values found, remedy."""
    allowed = model.may_differ | {f"training.{name}" for name in TRAINING_MAY_DIFFER}
    each = [
        {name: getattr(one, name) for name in type(one).model_fields if name != "training"}
        | {f"training.{name}": getattr(one.training, name) for name in type(one.training).model_fields}
        for one in settings
    ]
    found = []
    for name in each[0]:
        values = [one[name] for one in each]
        if all(value == values[0] for value in values):
            continue
        if name not in allowed:
            remedy = f"give all the same, or fit them in groups (they may differ in {', '.join(sorted(allowed))})"
            found.append(f"{name} is {_listed(values)}; {remedy}")
        elif name in model.may_differ_above_zero and 0 in values:
            found.append(f"{name} is {_listed(values)}; where it differs it must be above 0: fit those with 0 apart")
    return found


def _listed(values: Sequence[Any]) -> str:
    """Different values, in their order."""
    return ", ".join(dict.fromkeys(map(repr, values)))


def _tensors_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


# Data


class _Trials:
    """Trials of a split as K models see them: most tensors are shared, such as counts; a few are each model's own.

    Parameters
    ----------
    each
        Batches of each model; a tensor that is the same object in all of them is shared.
    device
        Where they are wanted.
    """

    def __init__(self, each: Sequence[Batches], device: torch.device):
        self.each, self.device = list(each), device
        names = {name: [one.tensors[name] for one in each] for name in each[0].tensors}
        shared = {name for name, values in names.items() if all(value is values[0] for value in values)}
        self.shared = {name: values[0].to(device) for name, values in names.items() if name in shared}
        self.own = {name: torch.stack(values).to(device) for name, values in names.items() if name not in shared}
        self.totals = torch.stack([amount(one.tensors) for one in each]).to(device)

    def select(self, kept: list[int]) -> None:
        """Keep some of the models."""
        index = torch.tensor(kept, dtype=torch.int64, device=self.device)
        self.each = [self.each[i] for i in kept]
        self.own = {name: value[index] for name, value in self.own.items()}
        self.totals = self.totals[index]

    def epoch(self, number: int) -> Iterator[dict[str, Tensor]]:
        """Batches of an epoch, each model's in its own order: tensors (models, trials, ...)."""
        for one in self.each:
            one.set_epoch(number)
        orders = torch.stack([one.order() for one in self.each]).to(self.device)
        models = torch.arange(len(orders), device=self.device)[:, None]
        alike = self.each[0].shuffle_seed is None
        for part in orders.split(self.each[0].batch_size, 1):
            chosen = {name: value[models, part] for name, value in self.own.items()}
            for name, value in self.shared.items():
                chosen[name] = value[part[0]].expand(len(part), *[-1] * value.ndim) if alike else value[part]
            yield {"trial_index": part, **chosen}


def _data(
    models: Sequence[Any], dataset: SpikeDataset, runs: Sequence[Run], device: torch.device
) -> tuple[_Trials, _Trials, str]:
    """Train and valid trials, and the identity of the whole run: that of each fit, and the device."""
    digest = hashlib.sha256(repr([device.type, len(models)]).encode())
    code = fingerprint(__file__, *runs[0].code)
    splits: list[tuple[Batches, Batches]] = []
    for model, run in zip(models, runs, strict=True):
        made = batches(model, dataset, run)
        digest.update(identity(model, *made, run.training, run.seed, code, run.spec).encode())
        for mine, first in zip(made, splits[0] if splits else made, strict=True):
            for name, value in first.tensors.items():
                if mine.tensors[name] is not value and _same(mine.tensors[name], value):
                    mine.tensors[name] = value
        splits.append(made)
    train_data, valid_data = (_Trials(column, device) for column in zip(*splits, strict=True))
    return train_data, valid_data, digest.hexdigest()


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same; NaN, which is missing, equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


# Training


class _Loss(nn.Module):
    """Loss of one model as a function: of its weights by `functional_call`, and of the settings that differ."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self._settings = copy.deepcopy(model), model.settings

    def forward(
        self, values: Mapping[str, Tensor], total: Float[Tensor, ""], batch: Mapping[str, Tensor], key: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss; its terms and itself, for the history; share of the batch in an epoch's means."""
        try:
            self.model.settings = self._settings.model_copy(update=dict(values))
            loss, terms = self.model.loss_and_terms(batch, key)
        finally:
            self.model.settings = self._settings
        return loss, {name: value.detach() for name, value in {**terms, "loss": loss}.items()}, amount(batch) / total


class Adam:
    r"""Adam and AdamW of K models at once, as in torch, each with its own rate, decay and epsilon.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        \Delta &= -\eta\, \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Weight decay adds :math:`\lambda w` to g in Adam, and :math:`-\eta \lambda w` to the change in AdamW.

    Parameters
    ----------
    settings
        Of each model; all have the same `optimizer`.
    gradients
        Shape, type and device of the gradients, (models, values).

    References
    ----------
    Kingma & Ba (2015), algorithm 1; Loshchilov & Hutter (2019), algorithm 2.
    """

    def __init__(self, settings: Sequence[TrainingSettings], gradients: Float[Tensor, "models values"]):
        self.apart = settings[0].optimizer == "adamw"
        self.mean, self.square = torch.zeros_like(gradients), torch.zeros_like(gradients)
        self.epsilon = _column([one.epsilon for one in settings], gradients)
        self.decay = _column([one.weight_decay for one in settings], gradients)
        self.decays = any(one.weight_decay for one in settings)

    def change(
        self,
        step: int,
        rates: Float[Tensor, "models 1"],
        weights: Float[Tensor, "models values"],
        gradients: Float[Tensor, "models values"],
    ) -> Float[Tensor, "models values"]:
        """What is added to the weights in step 1, 2, ..., at each model's learning rate; the moments move on."""
        if self.decays and not self.apart:
            gradients = gradients + self.decay * weights
        self.mean.lerp_(gradients, 1 - BETAS[0])
        self.square.mul_(BETAS[1]).addcmul_(gradients, gradients, value=1 - BETAS[1])
        root = self.square.sqrt() / math.sqrt(1 - BETAS[1] ** step)
        change = -rates / (1 - BETAS[0] ** step) * self.mean / (root + self.epsilon)
        if self.decays and self.apart:
            change = change - rates * self.decay * weights
        return change

    def select(self, index: Int[Tensor, " kept"]) -> None:
        """Keep some of the models."""
        for name in ("mean", "square", "epsilon", "decay"):
            setattr(self, name, getattr(self, name)[index])


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """One value for each model, (models, 1)."""
    return torch.tensor(values, dtype=torch.float64).to(like)[:, None]


class _Stack:
    """The models that still train, side by side: the first axis of every tensor is the model.

    Parameters
    ----------
    models
        All models.
    runs
        How each is to be trained.
    progress
        What is kept of each.
    train_data, valid_data
        Trials.
    device
        Where to train.
    """

    def __init__(
        self,
        models: Sequence[Any],
        runs: Sequence[Run],
        progress: Sequence[Progress],
        train_data: _Trials,
        valid_data: _Trials,
        device: torch.device,
    ):
        self.device, self.train_data, self.valid_data = device, train_data, valid_data
        self.active = list(range(len(models)))
        self.runs, self.progress = list(runs), list(progress)
        self.kept_names = list(models[0].state_dict())
        self.loss = _Loss(models[0]).to(device)
        stacked = [
            {f"model.{name}": torch.stack(values).detach().to(device) for name, values in one.items()}
            for one in (_side_by_side(models, "named_parameters"), _side_by_side(models, "named_buffers"))
        ]
        self.weights, self.buffers = stacked
        self.trained = [f"model.{name}" for name, value in models[0].named_parameters() if value.requires_grad]
        self.values = _values_that_differ(models, device)
        # A plateau schedule lowers the rate of an optimizer; these have nothing else.
        self.rates = [torch.optim.SGD([torch.zeros(())], lr=run.training.learning_rate) for run in runs]
        clips = [math.inf if run.training.gradient_clip is None else run.training.gradient_clip for run in runs]
        self.clips = _column(clips, self.weights[self.trained[0]])
        self.adam: Adam | None = None
        self.step = 0
        for place, one in enumerate(self.progress):
            one.start(self.rates[place], lambda place=place: self.weights_of(place))

    def weights_of(self, place: int) -> dict[str, Tensor]:
        """Copies of the weights of one of the models."""
        both = self.weights | self.buffers
        return {name: both[f"model.{name}"][place].detach().cpu().clone() for name in self.kept_names}

    def run_epoch(self, number: int) -> None:
        """One pass over the train and valid trials; what it has shown is recorded, and some models may leave."""
        measured = _Measured(len(self.active), self.device)
        self.loss.model.start_epoch(number)
        self.loss.train()
        seeds = [derive("training noise", run.seed, number) for run in self.runs]
        keys = torch.tensor(seeds, device=self.device)
        rates = _column([rate.param_groups[0]["lr"] for rate in self.rates], self.weights[self.trained[0]])
        for batch in self.train_data.epoch(number):
            norms = self._training_step(batch, keys, rates, measured)
            measured.add_gradients(self.step, norms)
            self.step += 1
        self.loss.eval()
        with torch.no_grad():
            for batch in self.valid_data.epoch(number):
                _, terms, share = self._losses(self.weights, self.valid_data.totals, batch, keys)
                measured.add("valid", terms, share)
        goes_on = [
            one.add(epoch, lambda place=place: self.weights_of(place))
            for place, (one, epoch) in enumerate(zip(self.progress, self._shown(number, measured), strict=True))
        ]
        self.select([place for place, going in enumerate(goes_on) if going])

    def _losses(
        self, weights: dict[str, Tensor], totals: Tensor, batch: dict[str, Tensor], keys: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss, terms and share of each model, (models,)."""

        def one(own: Any, buffers: Any, *given: Any) -> Any:
            return torch.func.functional_call(self.loss, (own, buffers), given)

        return torch.vmap(one)(weights, self.buffers, self.values, totals, batch, keys)

    def _training_step(
        self, batch: dict[str, Tensor], keys: Tensor, rates: Tensor, measured: "_Measured"
    ) -> Float[Tensor, " models"]:
        """Move the weights; norms of the gradients before they were clipped."""
        for name in self.trained:
            self.weights[name].requires_grad_(True)
        losses, terms, share = self._losses(self.weights, self.train_data.totals, batch, keys)
        measured.add("train", terms, share, self.step)
        found = torch.autograd.grad(losses.sum(), [self.weights[name] for name in self.trained], allow_unused=True)
        for name in self.trained:
            self.weights[name].requires_grad_(False)
        if self.adam is None:  # what the loss does not reach stays as it is, also under weight decay
            self.trained = [name for name, value in zip(self.trained, found, strict=True) if value is not None]
            found = [value for value in found if value is not None]
        gradients = torch.cat([value.flatten(1) for value in found], 1)
        norms = torch.linalg.vector_norm(gradients, dim=1)
        scale = (self.clips / (norms[:, None] + 1e-6)).clamp(max=1)
        gradients = gradients * torch.where(self.clips.isinf(), 1, scale)
        weights = [self.weights[name] for name in self.trained]
        if self.adam is None:
            self.adam = Adam([run.training for run in self.runs], gradients)
        flat = torch.cat([value.flatten(1) for value in weights], 1)
        change = self.adam.change(self.step + 1, rates, flat, gradients)
        for value, part in zip(weights, change.split([value[0].numel() for value in weights], 1), strict=True):
            value.add_(part.view_as(value))
        return norms

    def _shown(self, number: int, measured: "_Measured") -> list[Epoch]:
        """What an epoch has shown of each model."""
        means, first_bad, norms, first_bad_gradients = measured.read()
        return [
            Epoch(
                number=number,
                means={name: values[place] for name, values in means.items()},
                learning_rate=rate.param_groups[0]["lr"],
                gradient_norm=norms[place],
                last_step=self.step - 1,
                first_bad_step=first_bad["train_loss"][place],
                first_bad_gradient=first_bad_gradients[place],
                first_bad_term={name: values[place] for name, values in first_bad.items() if name != "train_loss"},
            )
            for place, rate in enumerate(self.rates)
        ]

    def select(self, kept: list[int]) -> None:
        """Keep some of the models; the others leave with what they have."""
        if len(kept) == len(self.active):
            return
        index = torch.tensor(kept, dtype=torch.int64, device=self.device)
        for name in ("weights", "buffers", "values"):
            setattr(self, name, {key: value[index] for key, value in getattr(self, name).items()})
        for name in ("active", "runs", "progress", "rates"):
            setattr(self, name, [getattr(self, name)[place] for place in kept])
        self.clips = self.clips[index]
        if self.adam is not None:
            self.adam.select(index)
        for data in (self.train_data, self.valid_data):
            data.select(kept)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: plain values and tensors only."""
        return {
            "active": self.active,
            "step": self.step,
            "trained": self.trained,
            "weights": {name: value.cpu() for name, value in self.weights.items()},
            "adam": None if self.adam is None else (self.adam.mean.cpu(), self.adam.square.cpu()),
            "rates": [rate.param_groups[0]["lr"] for rate in self.rates],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """State from a checkpoint; that of each model's progress is there already."""
        self.select(state_dict["active"])
        self.step, self.trained = state_dict["step"], state_dict["trained"]
        self.weights = {name: value.to(self.device) for name, value in state_dict["weights"].items()}
        if state_dict["adam"] is not None:
            mean, square = (value.to(self.device) for value in state_dict["adam"])
            self.adam = Adam([run.training for run in self.runs], mean)
            self.adam.mean, self.adam.square = mean, square
        for rate, value in zip(self.rates, state_dict["rates"], strict=True):
            rate.param_groups[0]["lr"] = value


class _Measured:
    """What the batches of an epoch show of each model. Kept on the device and read once, so that no GPU waits."""

    def __init__(self, n_models: int, device: torch.device):
        self.means: dict[str, Tensor] = {}
        self.never = torch.full((n_models,), math.inf, device=device)
        self.first_bad_term: dict[str, Tensor] = {}
        self.first_bad_gradient = self.never
        self.gradient_norm = torch.zeros_like(self.never)

    def add(self, phase: str, terms: Mapping[str, Tensor], share: Tensor, step: int = 0) -> None:
        """Terms of a batch, the loss among them, and the share of the batch."""
        for name, value in terms.items():
            key = f"{phase}_{name}"
            self.means[key] = self.means.get(key, 0.0) + value * share
            if phase == "train":
                self.first_bad_term[key] = _first_bad(self.first_bad_term.get(key, self.never), value, step)

    def add_gradients(self, step: int, norms: Tensor) -> None:
        """Norms of a step's gradients."""
        self.gradient_norm = torch.maximum(self.gradient_norm, norms)
        self.first_bad_gradient = _first_bad(self.first_bad_gradient, norms, step)

    def read(self) -> tuple[dict[str, list[float]], dict[str, list[float]], list[float], list[float]]:
        """Means, first bad steps, largest gradient norms, and first steps of a bad gradient, of each model."""
        means, first_bad = (
            {name: value.tolist() for name, value in one.items()} for one in (self.means, self.first_bad_term)
        )
        return means, first_bad, self.gradient_norm.tolist(), self.first_bad_gradient.tolist()


def _first_bad(before: Tensor, value: Tensor, step: int) -> Tensor:
    """First step at which a value was not finite, given that of the steps before; infinite for none."""
    return torch.where(value.isfinite(), before, before.clamp(max=step))


def _side_by_side(models: Sequence[nn.Module], method: str) -> dict[str, list[Tensor]]:
    """Name to the tensor of each model."""
    each = [dict(getattr(model, method)()) for model in models]
    return {name: [one[name] for one in each] for name in each[0]}


def _values_that_differ(models: Sequence[Any], device: torch.device) -> dict[str, Float[Tensor, " models"]]:
    """Numbers among the models' settings that differ; in double precision, as Python's own."""
    found = {}
    for name in sorted(models[0].may_differ - {"seed", "initial_fit"}):
        values = [getattr(model.settings, name) for model in models if hasattr(model.settings, name)]
        if any(value != values[0] for value in values):
            found[name] = torch.tensor(values, dtype=torch.float64, device=device)
    return found


def _train(
    models: Sequence[Any],
    runs: Sequence[Run],
    train_data: _Trials,
    valid_data: _Trials,
    outs: Sequence[Path],
    run: str,
    device: torch.device,
) -> list[Progress]:
    """Train all models, or go on where a killed run had come to; what is kept of each."""
    checkpoint = outs[0] / "checkpoint" / "together.ckpt"
    progress = [Progress(one.training) for one in runs]
    saved = matching_checkpoint(checkpoint, run)
    if saved is not None:
        for one, state in zip(progress, saved["models"], strict=True):
            one.load_state_dict(state)
            one.diverged = state["diverged"]
        if saved["finished"]:
            return progress

    def write(epoch: int, finished: bool) -> None:
        states = [one.state_dict() | {"diverged": one.diverged} for one in progress]
        state = {"run": run, "finished": finished, "epoch": epoch, "models": states, "stack": stack.state_dict()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(checkpoint, buffer.getvalue())

    print(f"{len(models)} models train together on {device}; recurrent loops run eagerly under vmap")
    max_epochs = runs[0].training.max_epochs
    with _deterministic(), old_objects_left_alone():
        stack = _Stack(models, runs, progress, train_data, valid_data, device)
        if saved is not None:
            stack.load_state_dict(saved["stack"])
        last_write = last_line = time.monotonic()
        for epoch in range(0 if saved is None else saved["epoch"], max_epochs):
            before = stack.active
            stack.run_epoch(epoch)
            for left in sorted(set(before) - set(stack.active)):
                print(f"{outs[left]}: {progress[left].diverged or f'stopped early after epoch {epoch + 1}'}")
            now = time.monotonic()
            if not stack.active or epoch + 1 == max_epochs or epoch == 0 or now - last_line >= 5:
                last_line = now
                best = ", ".join(f"{one.best_loss:.6g} at {one.best_epoch + 1}" for one in progress)
                print(f"epoch {epoch + 1}/{max_epochs}: {len(stack.active)} of {len(models)} go on (best {best})")
            if not stack.active:
                break
            if interruption.is_asked() or now - last_write >= checkpoint_seconds():
                write(epoch + 1, finished=False)
                last_write = time.monotonic()
            if interruption.is_asked():
                interruption.stop()
        write(max_epochs, finished=True)
    return progress


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic algorithms, as in a single fit, so that a run that goes on ends in the same bytes."""
    before, filling = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filling
