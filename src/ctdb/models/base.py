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

from ctdb.datasets import MultiSession, SpikeDataset, Split
from ctdb.errors import ConfigError, DatasetError, nearest
from ctdb.files import read_yaml, write_bytes, write_yaml
from ctdb.models import MODELS
from ctdb.recurrent import Key, initialise
from ctdb.registry import Registry
from ctdb.seeds import derive
from ctdb.settings import Seed, Settings, TrainingSettings

FORMAT = "ctdb-fit-1"
TRIALS_PER_PASS = 250


class Sizes(Settings):
    """Shapes that a model takes from its dataset; of several sessions the largest, and those of each."""

    n_heldin: int
    n_neurons: int
    n_bins: int
    n_recon_bins: int
    n_inputs: int
    n_behaviors: int = 0
    sessions: dict[str, "Sizes"] = {}

    @classmethod
    def of(cls, dataset: SpikeDataset | MultiSession) -> "Sizes":
        """Sizes of a dataset."""
        names = [name for name in cls.model_fields if name != "sessions"]
        each = {session: {name: int(getattr(one, name)) for name in names} for session, one in dataset.sessions.items()}
        largest = {name: max(sizes[name] for sizes in each.values()) for name in names}
        several = isinstance(dataset, MultiSession)
        return cls(**largest, sessions={name: cls(**sizes) for name, sizes in each.items()} if several else {})


class InitialFit(Settings):
    """A fit whose weights another one begins with."""

    dataset: str
    model: str
    seed: Seed = 0


class ModelSettings(Settings):
    """Settings that every model has."""

    kind: str
    seed: Seed = 0
    initial_fit: InitialFit | None = None
    freeze: list[str] = []
    training: TrainingSettings = TrainingSettings()
    nested: ClassVar[Mapping[str, Registry]] = {}
    """Settings that are of a kind themselves, and the registry of these kinds."""

    def modules(self) -> list[str]:
        """Modules that the settings name and the model loads, so that a change in them refits it."""
        return []


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
    takes_sessions: ClassVar[bool] = False
    """Whether one model can be fitted to several sessions at once."""
    session_layers: ClassVar[tuple[str, ...]] = ()
    """Lists of modules with one for each session, in the order of the sessions."""
    settings_buffers: ClassVar[tuple[str, ...]] = ()
    """Buffers that hold settings, which a fit that begins with another does not take over."""
    coupled_buffers: ClassVar[Mapping[str, str]] = {}
    """Buffers that are taken over together with the weight named beside them only."""
    may_differ: ClassVar[frozenset[str]] = frozenset({"seed", "initial_fit"})
    """Settings in which models that train together (:func:`ctdb.training.fit_together`) may differ. Numbers among them
    are then tensors without axes wherever the loss takes them from `settings`."""
    may_differ_above_zero: ClassVar[frozenset[str]] = frozenset()
    """Those of them that must be above 0 where they differ, because at 0 the loss has other terms."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Second names of what is inferred, in the fit's output file."""

    def __init__(self, settings: ModelSettings, sizes: Sizes):
        super().__init__()
        self.settings, self.sizes = settings, sizes
        self.sessions = sizes.sessions or {"": sizes}

    @property
    def takes_ext_input(self) -> bool:
        """Whether the model is given the external input, where the dataset has one."""
        return True

    def start_from(self, dataset: SpikeDataset) -> None:
        """Adapt the initial weights to the train trials, such as their mean rates; nothing unless a model says so."""

    def start_epoch(self, epoch: int) -> None:
        """Told before each epoch, counted from 0; for what changes over the training, such as ramps."""

    def why_alone(self) -> str | None:
        """Why the model cannot train together with others: the setting, and what to do; None where it can."""
        return None

    def finish(self, dataset: SpikeDataset | MultiSession) -> None:
        """Fit in closed form what the training leaves open; called once, with the best weights in place."""

    def warnings(self, terms: Mapping[str, float]) -> list[str]:
        """What the best epoch's terms (``train_{name}``, ``valid_{name}``) say has gone wrong, and what cures it."""
        return []

    @abstractmethod
    def loss(self, batch: Mapping[str, Tensor], generator: Key) -> Tensor:
        """Mean loss over the trials of a batch (see :meth:`tensors`), which also holds their numbers, `trial_index`.

        In train mode every random draw comes from `generator`, either directly, or through
        :class:`ctdb.recurrent.Noise`, whose numbers depend on the generator's seed, but not on how batches are cut:
        give each epoch a generator of its own. Models that train together are given a key for `Noise` in its place. In
        eval mode nothing is drawn.
        """

    def loss_and_terms(self, batch: Mapping[str, Any], generator: Key) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, and what the history is to record beside it."""
        return self.loss(batch, generator), {}

    @abstractmethod
    def infer_batch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inferred `rates` (trials, bins, neurons), `latents`, and whatever else the model has, per trial."""

    @abstractmethod
    def step(self, state: Float[Tensor, "n states"], input: Float[Tensor, "n inputs"]) -> Float[Tensor, "n states"]:
        """Next state: the system whose fixed points and Jacobians are analysed.

        A model without dynamics raises NotImplementedError, which says so: scores of dynamics are then undefined.
        """

    @abstractmethod
    def rates(self, state: Float[Tensor, "*n states"]) -> Float[Tensor, "*n neurons"]:
        """Expected spikes per bin in a state."""

    def infer(self, trials: Split | Mapping[str, Any], session: str | None = None) -> dict[str, Tensor]:
        """Infer rates and latents of new trials, in eval mode and in passes that fit memory.

        Parameters
        ----------
        trials
            A split, or arrays `encod_data` (trials, bins, held-in neurons) and, where the model has external
            input, `ext_input` (trials, bins, inputs).
        session
            Which of the model's sessions the trials are of; needed where it has several.

        Returns
        -------
        `rates`, `latents` and further arrays of the model, each (trials, bins, channels) or (trials, channels).

        Raises
        ------
        DatasetError
            If the trials have other bins, neurons or inputs than the model was built for, or the session is unknown.
        """
        return self._infer(trials, session)

    @torch.no_grad()
    def _infer(self, trials: Split | Mapping[str, Any], session: str | None, **options: Any) -> dict[str, Tensor]:
        was_training = self.training
        self.eval()
        parameter = next(self.parameters())
        batch = {
            name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)
            for name, value in self.tensors(trials, session).items()
        }
        if self.sizes.sessions:
            options["session"] = session
        chunks = {name: value.split(TRIALS_PER_PASS) for name, value in batch.items()}
        passes = [
            self.infer_batch(dict(zip(chunks, parts, strict=True)), **options)
            for parts in zip(*chunks.values(), strict=True)
        ]
        self.train(was_training)
        return {name: torch.cat([one[name] for one in passes]).cpu() for name in passes[0]}

    def ablated(self, trials: Split, session: str | None = None) -> dict[str, Tensor]:
        """What is inferred without the inferred inputs, under names ``ablated_...``; nothing for most models."""
        return {}

    def session_sizes(self, session: str | None) -> Sizes:
        """Sizes of a session, or of the only one; DatasetError for an unknown name."""
        if not self.sizes.sessions:
            return self.sizes
        if session not in self.sessions:
            raise DatasetError(f"the model has no session {session!r}; name one of {list(self.sessions)}")
        return self.sessions[session]

    def session_index(self, session: str | None) -> int:
        """Number of a session; DatasetError for an unknown name."""
        self.session_sizes(session)
        return list(self.sessions).index(session) if self.sizes.sessions else 0

    def save(self, directory: Path | str, **facts: Any) -> None:
        """Write weights and spec, with `facts` about the training, so that :func:`load` gives the model back."""
        spec = {
            "format": FORMAT,
            "model": self.settings.model_dump(),
            "sizes": self.sizes.model_dump(exclude_defaults=True),
            **facts,
        }
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        write_bytes(Path(directory) / "weights.safetensors", safetensors.torch.save(weights))
        write_yaml(Path(directory) / "spec.yaml", spec)

    def tensors(self, trials: Split | Mapping[str, Any], session: str | None = None) -> dict[str, Tensor]:
        """Tensors that `loss` and `infer_batch` work on, from a split or from arrays.

        Returns
        -------
        `encod_data`, and `recon_data` if there, 0 in padding and where they are missing (NaN); `ext_input`, 0 in
        padding, with no channels where there is none; `weight`, 1 for values that count and 0 in padding: (trials,
        bins, 1), or (trials, bins, neurons) where values are missing, and then `in_trial` (trials, bins, 1) is 0 in
        padding alone; and `n_bins`, the valid bins that the model sees of each trial, where trials have padding.
        """
        arrays = trials.arrays() if isinstance(trials, Split) else dict(trials)
        sizes = self.session_sizes(session)
        _check_sizes(arrays, sizes, self.takes_ext_input)
        made = {name: _floating(arrays[name]) for name in ("encod_data", "recon_data") if name in arrays}
        encod, n_bins = made["encod_data"], sizes.n_recon_bins
        ext_input = arrays.get("ext_input") if self.takes_ext_input else None
        made["ext_input"] = encod.new_zeros(len(encod), n_bins, 0) if ext_input is None else _floating(ext_input)
        made["weight"] = encod.new_ones(len(encod), n_bins, 1)
        if "n_bins" in arrays:
            made["weight"][:, :, 0] = torch.arange(n_bins) < torch.as_tensor(arrays["n_bins"])[:, None]
            for name in ("encod_data", "recon_data", "ext_input"):
                if name in made:
                    in_trial = made["weight"][:, : made[name].shape[1]] > 0
                    made[name] = torch.where(in_trial, made[name], 0)
            made["n_bins"] = torch.as_tensor(arrays["n_bins"]).clamp(max=encod.shape[1])
        if any(made[name].isnan().any() for name in ("encod_data", "recon_data") if name in made):
            made["in_trial"] = made["weight"]
            if "recon_data" in made:
                made["weight"] = made["weight"] * ~made["recon_data"].isnan()
                made["recon_data"] = made["recon_data"].nan_to_num()
            made["encod_data"] = made["encod_data"].nan_to_num()
        return made

    def fit_tensors(self, trials: Split, session: str | None = None) -> dict[str, Tensor]:
        """Tensors of a split that is fitted or selects epochs; those of :meth:`tensors` unless a model says more."""
        return self.tensors(trials, session)


def _floating(array: Any) -> Tensor:
    """Tensor of an array; whole numbers become single-precision ones."""
    tensor = torch.as_tensor(array)
    return tensor if tensor.is_floating_point() else tensor.to(torch.float32)


def _check_sizes(arrays: Mapping[str, Any], sizes: Sizes, takes_ext_input: bool) -> None:
    expected = {"encod_data": (sizes.n_bins, sizes.n_heldin)}
    if sizes.n_inputs and takes_ext_input:
        expected["ext_input"] = (sizes.n_recon_bins, sizes.n_inputs)
    for name, wanted in expected.items():
        if name not in arrays or tuple(arrays[name].shape[1:]) != wanted:
            found = tuple(arrays[name].shape[1:]) if name in arrays else "nothing"
            raise DatasetError(
                f"this model was built for {name} of (bins, channels) {wanted}, but was given {found}; "
                "give it trials of the dataset it was built for, or build it for these"
            )


def build(spec: Mapping[str, Any], dataset: SpikeDataset | MultiSession, initial: Path | str | None = None) -> Model:
    """Untrained model for a dataset, its weights drawn from ``spec["seed"]``.

    Parameters
    ----------
    spec
        Settings of the model: its `kind`, its own keys, `training` and `seed`.
    dataset
        What it will be fitted to: its shapes, and what :meth:`Model.start_from` takes from its train trials.
    initial
        Folder of a fit to begin with (fine-tuning): its weights are taken over where names and shapes agree, those of
        read-ins and readouts where the session has the same name. The others start afresh.

    Raises
    ------
    ConfigError
        For an unknown kind, where settings and dataset do not go together, where nothing can be taken over from
        `initial`, and where `freeze` names no parameter.
    DatasetError
        If the model needs what the dataset does not have, or takes one session and is given several.
    pydantic.ValidationError
        For an unknown key or a wrong type.
    """
    model = _build(spec, Sizes.of(dataset))
    if isinstance(dataset, MultiSession) and not model.takes_sessions:
        raise DatasetError(
            f"model {spec['kind']!r} takes one session, but was given {len(dataset.sessions)}; fit each alone, or "
            "choose `lfads` or `band`"
        )
    model.start_from(dataset)
    fresh = [] if initial is None else _take_over(model, Path(initial))
    for prefix in model.settings.freeze:
        chosen = [value for name, value in model.named_parameters() if f"{name}.".startswith(f"{prefix}.")]
        if not chosen:
            layers = dict.fromkeys(name.split(".")[0] for name, _ in model.named_parameters())
            raise ConfigError(f"freeze: {prefix!r} is no part of model {spec['kind']!r}; {nearest(prefix, layers)}")
        if random := [name for name in fresh if f"{name}.".startswith(f"{prefix}.")]:
            raise ConfigError(
                f"freeze: {prefix!r} cannot be frozen, because {', '.join(random)} of the initial fit do not fit "
                "into this model, and start afresh; give both models the same sizes"
            )
        for value in chosen:
            value.requires_grad_(False)
    return model


def _take_over(model: Model, directory: Path) -> list[str]:
    """Copy the weights of a fit into `model` where they have a place in it; return the names of the others."""
    spec = read_yaml(directory / "spec.yaml")
    cells = [settings.get("cell") for settings in (spec["model"], model.settings.model_dump())]
    if None not in cells and cells[0] != cells[1]:
        raise ConfigError(
            f"the fit in {directory} has cell {cells[0]!r}, this model {cells[1]!r}, whose weights mean other things; "
            "give both the same cell"
        )
    old_sessions = list(spec["sizes"].get("sessions", {})) or [""]
    found = safetensors.torch.load_file(directory / "weights.safetensors")
    old = {_of_session(name, model.session_layers, old_sessions): value for name, value in found.items()}
    taken, fresh = [], []
    with torch.no_grad():
        state = model.state_dict()
        for name in sorted(state, key=model.coupled_buffers.__contains__):  # what follows others comes last
            value = state[name]
            if name in model.settings_buffers or model.coupled_buffers.get(name) in fresh:
                continue
            source = old.get(_of_session(name, model.session_layers, list(model.sessions)))
            if source is not None and source.shape == value.shape:
                value.copy_(source)
                taken.append(name)
            else:
                fresh.append(name)
    if not taken:
        raise ConfigError(
            f"nothing of the fit in {directory} has a place in this model; begin with one of the same kind"
        )
    print(f"{len(taken)} arrays are taken over from {directory}; {len(fresh)} start afresh: {', '.join(fresh) or '-'}")
    return fresh


def _of_session(name: str, session_layers: tuple[str, ...], sessions: list[str]) -> str:
    """Name of a weight with its session's name in place of its number."""
    layer, _, rest = name.partition(".")
    if layer not in session_layers:
        return name
    number, _, rest = rest.partition(".")
    return f"{layer}.{sessions[int(number)]}.{rest}"


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
