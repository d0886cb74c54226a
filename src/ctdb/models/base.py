"""What a model is, how it goes to disk and back.

A model sees the held-in neurons, predicts the rates of all, and has a state with a `step`, so that its dynamics can be
compared with those of the network behind the spikes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ctdb.datasets import SpikeDataset, Split
from ctdb.errors import DatasetError
from ctdb.files import read_yaml, write_bytes, write_yaml
from ctdb.models import MODELS
from ctdb.recurrent import initialise
from ctdb.seeds import derive
from ctdb.settings import Seed, Settings, TrainingSettings

FORMAT = "ctdb-fit-1"
TRIALS_PER_PASS = 250


class Sizes(Settings):
    """Shapes that a model takes from its dataset."""

    n_heldin: int
    n_neurons: int
    n_bins: int
    n_recon_bins: int
    n_inputs: int

    @classmethod
    def of(cls, dataset: SpikeDataset) -> "Sizes":
        """Sizes of a dataset."""
        return cls(**{name: int(getattr(dataset, name)) for name in cls.model_fields})


class ModelSettings(Settings):
    """Settings that every model has."""

    kind: str
    seed: Seed = 0
    training: TrainingSettings = TrainingSettings()


class Model(nn.Module, ABC):
    """A model of spikes; subclasses set `Settings` and say how they infer and what they minimise.

    Parameters
    ----------
    settings
        Settings of the subclass.
    sizes
        Shapes of the dataset.
    """

    Settings: ClassVar[type[ModelSettings]]

    def __init__(self, settings: ModelSettings, sizes: Sizes):
        super().__init__()
        self.settings, self.sizes = settings, sizes

    def start_from(self, dataset: SpikeDataset) -> None:
        """Adapt the initial weights to the train trials, such as their mean rates; nothing unless a model says so."""

    @abstractmethod
    def loss(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Mean loss over the trials of a batch (see :meth:`tensors`).

        In train mode every random draw comes from `generator`; in eval mode there is none.
        """

    @abstractmethod
    def infer_batch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inferred `rates` (trials, bins, neurons), `latents`, and whatever else the model has, per trial."""

    @abstractmethod
    def step(self, state: Float[Tensor, "n states"], input: Float[Tensor, "n inputs"]) -> Float[Tensor, "n states"]:
        """Next state: the system whose fixed points and Jacobians are analysed."""

    @abstractmethod
    def rates(self, state: Float[Tensor, "*n states"]) -> Float[Tensor, "*n neurons"]:
        """Expected spikes per bin in a state."""

    @torch.no_grad()
    def infer(self, trials: Split | Mapping[str, Any]) -> dict[str, Tensor]:
        """Infer rates and latents of new trials, in eval mode and in passes that fit memory.

        Parameters
        ----------
        trials
            A split, or arrays `encod_data` (trials, bins, held-in neurons) and, where the model has external
            input, `ext_input` (trials, bins, inputs).

        Returns
        -------
        `rates`, `latents` and further arrays of the model, each (trials, bins, channels) or (trials, channels).

        Raises
        ------
        DatasetError
            If the trials have other bins, neurons or inputs than the model was built for.
        """
        was_training = self.training
        self.eval()
        parameter = next(self.parameters())
        present = self.tensors(trials)
        batch = {
            name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)
            for name, value in present.items()
        }
        chunks = {name: value.split(TRIALS_PER_PASS) for name, value in batch.items()}
        passes = [
            self.infer_batch(dict(zip(chunks, parts, strict=True))) for parts in zip(*chunks.values(), strict=True)
        ]
        self.train(was_training)
        return {name: torch.cat([one[name] for one in passes]).cpu() for name in passes[0]}

    def save(self, directory: Path | str, **facts: Any) -> None:
        """Write weights and spec, with `facts` about the training, so that :func:`load` gives the model back."""
        spec = {
            "format": FORMAT,
            "model": self.settings.model_dump(),
            "sizes": self.sizes.model_dump(),
            **facts,
        }
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        write_bytes(Path(directory) / "weights.safetensors", safetensors.torch.save(weights))
        write_yaml(Path(directory) / "spec.yaml", spec)

    def tensors(self, trials: Split | Mapping[str, Any]) -> dict[str, Tensor]:
        """Tensors that `loss` and `infer_batch` work on, from a split or from arrays.

        Returns
        -------
        `encod_data`, 0 in padding; `recon_data` if there; `ext_input`, with no channels where there is none; and
        `weight` (trials, bins, 1), which is 1 in valid bins and 0 in padding; and `n_bins`, the valid bins that the
        model sees of each trial, where trials have padding.
        """
        arrays = trials.arrays() if isinstance(trials, Split) else dict(trials)
        self._check_sizes(arrays)
        made = {name: torch.as_tensor(arrays[name]) for name in ("encod_data", "recon_data") if name in arrays}
        encod, n_bins = made["encod_data"], self.sizes.n_recon_bins
        ext_input = arrays.get("ext_input")
        made["ext_input"] = encod.new_zeros(len(encod), n_bins, 0) if ext_input is None else torch.as_tensor(ext_input)
        made["weight"] = encod.new_ones(len(encod), n_bins, 1)
        if "n_bins" in arrays:
            made["weight"][:, :, 0] = torch.arange(n_bins) < torch.as_tensor(arrays["n_bins"])[:, None]
            made["encod_data"] = encod * made["weight"][:, : encod.shape[1]]
            made["n_bins"] = torch.as_tensor(arrays["n_bins"]).clamp(max=encod.shape[1])
        return made

    def _check_sizes(self, arrays: Mapping[str, Any]) -> None:
        expected = {"encod_data": (self.sizes.n_bins, self.sizes.n_heldin)}
        if self.sizes.n_inputs:
            expected["ext_input"] = (self.sizes.n_recon_bins, self.sizes.n_inputs)
        for name, sizes in expected.items():
            if name not in arrays or tuple(arrays[name].shape[1:]) != sizes:
                found = tuple(arrays[name].shape[1:]) if name in arrays else "nothing"
                raise DatasetError(
                    f"this model was built for {name} of (bins, channels) {sizes}, but was given {found}; "
                    "give it trials of the dataset it was built for, or build it for these"
                )


def build(spec: Mapping[str, Any], dataset: SpikeDataset) -> Model:
    """Untrained model for a dataset, its weights drawn from ``spec["seed"]``.

    Parameters
    ----------
    spec
        Settings of the model: its `kind`, its own keys, `training` and `seed`.
    dataset
        What it will be fitted to: its shapes, and what :meth:`Model.start_from` takes from its train trials.

    Raises
    ------
    ConfigError
        For an unknown kind.
    pydantic.ValidationError
        For an unknown key or a wrong type.
    """
    model = _build(spec, Sizes.of(dataset))
    model.start_from(dataset)
    return model


def _build(spec: Mapping[str, Any], sizes: Sizes) -> Model:
    kind = MODELS[spec["kind"]]
    with torch.random.fork_rng(devices=[]):  # torch's own layers draw from global state when they are made
        model = kind(kind.Settings(**spec), sizes)
    initialise(model, torch.Generator().manual_seed(derive("model weights", model.settings.seed)))
    return model


def load(directory: Path | str, dtype: torch.dtype = torch.float64) -> Model:
    """Load a fitted model, in eval mode.

    Parameters
    ----------
    directory
        Folder that holds `weights.safetensors` and `spec.yaml`.
    dtype
        Type of its weights; float64 suits the analysis of dynamics, float32 reproduces the fit's own outputs.
    """
    spec = read_yaml(Path(directory) / "spec.yaml")
    model = _build(spec["model"], Sizes(**spec["sizes"]))
    model.load_state_dict(safetensors.torch.load_file(Path(directory) / "weights.safetensors"))
    return model.to(dtype).eval()
