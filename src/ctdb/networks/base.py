"""What a network is, how it is run, and how it goes to disk and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ctdb.files import read_yaml, write_bytes, write_yaml
from ctdb.networks import NETWORKS
from ctdb.recurrent import Cell, Linear, Noise, StateNoise, initialise, noisy_scan
from ctdb.seeds import derive
from ctdb.settings import Count, NonNegative, Settings, TrainingSettings

FORMAT = "ctdb-network-1"


class NetworkSettings(Settings):
    """Settings that every network has."""

    kind: str
    hidden_size: Count = 64
    state_noise: NonNegative = 0.0
    initial_state_noise: NonNegative = 0.05
    training: TrainingSettings = TrainingSettings()


class Network(nn.Module):
    """A recurrent network that maps task inputs to outputs through its state.

    The state after bin t is ``F(input_t, state_{t-1}) + state_noise * N(0, 1)`` and the output of bin t is a linear
    readout of the state before that noise. The state before the first bin is learned, plus
    ``initial_state_noise * N(0, 1)``. Noise is drawn only where it is given.

    Parameters
    ----------
    settings
        Settings of the subclass.
    n_inputs, n_outputs
        Channels of the task.
    """

    Settings: ClassVar[type[NetworkSettings]]
    cell: Cell

    def __init__(self, settings: NetworkSettings, n_inputs: int, n_outputs: int):
        super().__init__()
        self.settings, self.n_inputs, self.n_outputs = settings, n_inputs, n_outputs
        self.cell = self.make_cell()
        self.output = nn.Linear(settings.hidden_size, n_outputs)
        self.initial_state = nn.Parameter(torch.zeros(settings.hidden_size))

    def make_cell(self) -> Cell:
        """Recurrent cell of this architecture."""
        raise TypeError(f"{type(self).__name__} does not say what its cell is")

    def step(self, state: Float[Tensor, "n states"], input: Float[Tensor, "n inputs"]) -> Float[Tensor, "n states"]:
        """Next state without noise: the system whose fixed points and Jacobians are analysed."""
        dtype = self.initial_state.dtype
        return self.cell(input.to(dtype), state.to(dtype))

    def readout(self, state: Float[Tensor, "*n states"]) -> Float[Tensor, "*n outputs"]:
        """Output of a state."""
        return self.output(state.to(self.initial_state.dtype))

    def run(
        self, inputs: Float[Tensor, "trials bins inputs"], noise: Noise | None = None, states: bool = True
    ) -> tuple[Float[Tensor, "trials bins states"] | None, Float[Tensor, "trials bins outputs"]]:
        """States and outputs on given inputs.

        Parameters
        ----------
        inputs
            Task inputs.
        noise
            Source of the initial-state and state noise; None for none.
        states
            Whether the states are wanted; their place may be None otherwise.
        """
        inputs = inputs.to(self.initial_state.dtype)
        state = self.initial_state.expand(len(inputs), -1)
        readout, kicks = Linear(self.output.weight, self.output.bias), None
        if noise is not None:
            first = noise.normal("initial state", 1, self.settings.hidden_size, inputs)[:, 0]
            state = state + self.settings.initial_state_noise * first
            if self.settings.state_noise:
                kicks = StateNoise(noise, "state", self.settings.state_noise)
        return noisy_scan(self.cell, state, inputs, readout, kicks, states)

    def save(self, directory: Path | str, **facts: Any) -> None:
        """Write weights and spec, with `facts` about the training, so that :func:`load` gives the network back."""
        shapes = {"n_inputs": self.n_inputs, "n_outputs": self.n_outputs}
        spec = {"format": FORMAT, "network": self.settings.model_dump(), **shapes, **facts}
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        write_bytes(Path(directory) / "weights.safetensors", safetensors.torch.save(weights))
        write_yaml(Path(directory) / "spec.yaml", spec)


def build(spec: Mapping[str, Any], n_inputs: int, n_outputs: int, seed: int) -> Network:
    """Untrained network of the kind named in `spec`, its weights drawn from `seed`.

    Raises
    ------
    ConfigError
        For an unknown kind.
    """
    kind = NETWORKS[spec["kind"]]
    with torch.random.fork_rng(devices=[]):  # torch's own layers draw from global state when they are made
        network = kind(kind.Settings(**spec), n_inputs, n_outputs)
    initialise(network, torch.Generator().manual_seed(derive("network weights", seed)))
    return network


def load(directory: Path | str, dtype: torch.dtype = torch.float64) -> Network:
    """Load a trained network, in eval mode.

    Parameters
    ----------
    directory
        Folder that holds `weights.safetensors` and `spec.yaml`.
    dtype
        Type of its weights; float64 suits the analysis of dynamics, float32 reproduces the training run.
    """
    spec = read_yaml(Path(directory) / "spec.yaml")
    network = build(spec["network"], spec["n_inputs"], spec["n_outputs"], seed=0)
    network.load_state_dict(safetensors.torch.load_file(Path(directory) / "weights.safetensors"))
    return network.to(dtype).eval()
