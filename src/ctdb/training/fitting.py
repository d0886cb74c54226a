"""Fit a model to a dataset: train, keep the best epoch, write what it infers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ctdb.datasets import SPLITS, MultiSession, SpikeDataset, Split
from ctdb.errors import ConfigError
from ctdb.files import lock, write_hdf5
from ctdb.recurrent import use_backend, without_gpu
from ctdb.seeds import derive
from ctdb.settings import TrainingSettings
from ctdb.training.batches import Batches, SessionBatches
from ctdb.training.loop import TrainingResult, discard_checkpoint, train

OUTPUT_FORMAT = "ctdb-output-1"


class Fittable(Protocol):
    """What :func:`fit` asks of a model, beside its loss; :class:`ctdb.models.base.Model` has it all."""

    def tensors(self, trials: Split) -> dict[str, Tensor]:
        """Tensors of a split that the loss works on."""

    def loss(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Mean loss of a batch."""

    def infer(self, trials: Split) -> dict[str, Tensor]:
        """Rates, latents and more, in eval mode."""

    def save(self, directory: Path, **facts: Any) -> None:
        """Write weights and spec."""


def fit(model: Any, dataset: SpikeDataset | MultiSession, spec: Mapping[str, Any], out: Path | str) -> TrainingResult:
    """Fit `model` to `dataset` and write the fit.

    The best epoch on `valid` is kept; every output is inferred from it in eval mode. A run that was killed goes on
    from its last checkpoint in `out`, to the same final bytes.

    Parameters
    ----------
    model
        A :class:`Fittable`, such as :func:`ctdb.models.build` makes from `spec`.
    dataset
        What to fit it to.
    spec
        Settings of the model; `training` and `seed` are used here.
    out
        Output folder: `weights.safetensors`, `spec.yaml`, `history.csv`, and `output.h5` with ``{split}_rates``,
        ``{split}_latents`` and whatever else the model infers.

    Returns
    -------
    History and best epoch.

    Raises
    ------
    TrainingDivergedError
        If the loss becomes NaN or infinite; by then the fit has been written from the best epoch before that, with
        ``status: diverged`` and the reason in its spec.
    ConfigError
        If the model was built from another spec.
    WriteError
        If `out` cannot be written.
    """
    out, run = Path(out), Run.of(model, spec)
    train_data, valid_data = batches(model, dataset, run)
    with lock(out), use_backend(without_gpu(run.training.backend)):
        result = train(model, train_data, valid_data, run.training, run.seed, out, run.code, run.spec)
        write_fit(model, dataset, result, out)
        discard_checkpoint(out)
    result.raise_if_diverged()
    return result


class Run(NamedTuple):
    """How a model is to be trained: what decides the outcome, beside its weights and the data.

    Attributes
    ----------
    training, seed
        Settings of the training, and the seed of its draws.
    code
        Modules that define the model.
    spec
        The model's own settings.
    """

    training: TrainingSettings
    seed: int
    code: tuple[str, ...]
    spec: dict[str, Any]

    @classmethod
    def of(cls, model: Any, spec: Mapping[str, Any]) -> "Run":
        """That of a spec; ConfigError if the model was built from another one."""
        built_from = getattr(model, "settings", None)
        own = {key: value for key, value in spec.items() if key != "training"}
        if built_from is None:
            training = TrainingSettings(**spec.get("training", {}))
            return cls(training, int(spec.get("seed", 0)), (type(model).__module__,), own)
        if built_from != type(built_from)(**spec):
            raise ConfigError(
                "the model was built from another spec than it is to be fitted with; build it from this one"
            )
        code = (type(model).__module__, *built_from.modules())
        return cls(built_from.training, built_from.seed, code, own)  # they know the defaults of their kind


def batches(model: Any, dataset: SpikeDataset | MultiSession, run: Run) -> tuple[Batches | SessionBatches, ...]:
    """Batches to train with, in an order from the run's seed, and those that select epochs."""
    train_data = _batches(model, dataset, "train", run.training.batch_size, derive("fit batches", run.seed))
    return train_data, _batches(model, dataset, "valid", run.training.batch_size)


def write_fit(model: Any, dataset: SpikeDataset | MultiSession, result: TrainingResult, out: Path) -> None:
    """Write weights, spec and outputs of a trained model, after what it fits in closed form."""
    if hasattr(model, "finish"):
        model.finish(dataset)
    model.save(out, **result.facts())
    inferred = infer_splits(model, dataset)
    names = getattr(model, "aliases", {})
    aliases = {
        key.removesuffix(name) + alias: key
        for key in inferred
        for alias, name in names.items()
        if key.endswith((f"train_{name}", f"valid_{name}", f"test_{name}"))
    }
    write_hdf5(out / "output.h5", inferred, {"format": OUTPUT_FORMAT, "status": result.facts()["status"]}, aliases)


def infer_splits(model: Any, dataset: SpikeDataset | MultiSession) -> dict[str, np.ndarray]:
    """What a model infers of every split: ``{split}_{name}``, with ``{session}/`` before it where there are several."""
    inferred = {}
    for name, session in dataset.sessions.items():
        for split in SPLITS:
            if split not in session.splits:
                continue
            where = (session[split],) if not name else (session[split], name)
            found = model.infer(*where) | (model.ablated(*where) if hasattr(model, "ablated") else {})
            prefix = f"{name}/" if name else ""
            inferred |= {f"{prefix}{split}_{key}": value.numpy() for key, value in found.items()}
    return inferred


def _batches(
    model: Any, dataset: SpikeDataset | MultiSession, split: str, batch_size: int, shuffle_seed: int | None = None
) -> Batches | SessionBatches:
    tensors = getattr(model, "fit_tensors", model.tensors)
    if isinstance(dataset, MultiSession):
        sessions = {name: tensors(session[split], name) for name, session in dataset.sessions.items()}
        return SessionBatches(sessions, batch_size, shuffle_seed)
    return Batches(tensors(dataset[split]), batch_size, shuffle_seed)
