"""Fit a model to a dataset: train, keep the best epoch, write what it infers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ctdb.datasets import SPLITS, SpikeDataset, Split
from ctdb.errors import ConfigError
from ctdb.files import lock, write_hdf5
from ctdb.seeds import derive
from ctdb.settings import TrainingSettings
from ctdb.training.batches import Batches
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


def fit(model: Any, dataset: SpikeDataset, spec: Mapping[str, Any], out: Path | str) -> TrainingResult:
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
    built_from = getattr(model, "settings", None)
    if built_from is not None and built_from != type(built_from)(**spec):
        raise ConfigError("the model was built from another spec than it is to be fitted with; build it from this one")
    out = Path(out)
    if built_from is not None:  # they know the defaults of their kind
        training, seed = built_from.training, built_from.seed
    else:
        training, seed = TrainingSettings(**spec.get("training", {})), int(spec.get("seed", 0))
    train_data = Batches(model.tensors(dataset["train"]), training.batch_size, derive("fit batches", seed))
    valid_data = Batches(model.tensors(dataset["valid"]), training.batch_size)
    with lock(out):
        code, own = (type(model).__module__,), {key: value for key, value in spec.items() if key != "training"}
        result = train(model, train_data, valid_data, training, seed, out, code, own)
        model.save(out, **result.facts())
        inferred = {
            f"{split}_{name}": value.numpy()
            for split in SPLITS
            if split in dataset.splits
            for name, value in model.infer(dataset[split]).items()
        }
        write_hdf5(out / "output.h5", inferred, {"format": OUTPUT_FORMAT, "status": result.facts()["status"]})
        discard_checkpoint(out)
    result.raise_if_diverged()
    return result
