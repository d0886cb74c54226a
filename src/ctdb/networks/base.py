"""What a network is, how it is run, and how it goes to disk and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ctdb.files import read_yaml, write_bytes, write_yaml
from ctdb.networks import NETWORKS
from ctdb.recurrent import Cell, Linear, Noise, StateNoise, initialise, noisy_scan
from ctdb.seeds import derive
from ctdb.settings import Count, NonNegative, Positive, Settings, TrainingSettings

FORMAT = "ctdb-network-1"


class NetworkSettings(Settings):
    """Settings that every network has.

    `initial_state` is the state before the first bin: `learned` from 0, kept at 0 (`zero`), or drawn from the seed,
    uniform between plus and minus `initial_state_range`, and kept (`uniform`). `latent_l2` weighs the mean over trials
    of the norm of all of a trial's states, which the training adds to the task's loss.
    """

    kind: str
    hidden_size: Count = 64
    state_noise: NonNegative = 0.0
    initial_state_noise: NonNegative = 0.05
    initial_state: Literal["learned", "zero", "uniform"] = "learned"
    initial_state_range: Positive = 0.1
    latent_l2: NonNegative = 0.0
    training: TrainingSettings = TrainingSettings()


class Network(nn.Module):
    """A recurrent network that maps task inputs to outputs through its state.

    The state after bin t is ``F(input_t, state_{t-1}) + state_noise * N(0, 1)`` and the output of bin t is a linear
    readout of the rates in the state before that noise; the rates are the state itself unless the architecture says
    otherwise. The state before the first bin is that of the settings, or one that is given, plus
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
        learned = settings.initial_state == "learned"
        self.initial_state = nn.Parameter(torch.zeros(self.cell.n_states), requires_grad=learned)

    def make_cell(self) -> Cell:
        """Recurrent cell of this architecture."""
        raise TypeError(f"{type(self).__name__} does not say what its cell is")

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw the initial state where the settings want it drawn, in place."""
        if self.settings.initial_state == "uniform":
            bound = self.settings.initial_state_range
            self.initial_state.uniform_(-bound, bound, generator=generator)

    def firing_rates(self, state: Float[Tensor, "*n states"]) -> Float[Tensor, "*n hidden"]:
        """Rates that the readout reads: the state itself."""
        return state

    def step(self, state: Float[Tensor, "n states"], input: Float[Tensor, "n inputs"]) -> Float[Tensor, "n states"]:
        """Next state without noise: the system whose fixed points and Jacobians are analysed."""
        dtype = self.initial_state.dtype
        return self.cell(input.to(dtype), state.to(dtype))

    def readout(self, state: Float[Tensor, "*n states"]) -> Float[Tensor, "*n outputs"]:
        """Output of a state."""
        return self.output(self.firing_rates(state.to(self.initial_state.dtype)))

    def start(
        self, n_trials: int, noise: Noise | None = None, given: Float[Tensor, "trials states"] | None = None
    ) -> Float[Tensor, "trials states"]:
        """State before the first bin: the settings' or the `given` one, with noise where there is a source of it."""
        state = self.initial_state.expand(n_trials, -1) if given is None else given.to(self.initial_state)
        if noise is None:
            return state
        kick = noise.normal("initial state", 1, state.shape[1], state)[:, 0]
        return state + self.settings.initial_state_noise * kick

    def state_noise(self, noise: Noise | None) -> StateNoise | None:
        """Noise of the states, where there is a source of it and the settings want it."""
        if noise is None or not self.settings.state_noise:
            return None
        return StateNoise(noise, "state", self.settings.state_noise)

    def run(
        self,
        inputs: Float[Tensor, "trials bins inputs"],
        noise: Noise | None = None,
        states: bool = True,
        start: Float[Tensor, "trials states"] | None = None,
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
        start
            State before the first bin, in place of the network's own.
        """
        inputs = inputs.to(self.initial_state.dtype)
        plain = type(self).firing_rates is Network.firing_rates
        readout = Linear(self.output.weight, self.output.bias) if plain else self.readout
        first = self.start(len(inputs), noise, start)
        return noisy_scan(self.cell, first, inputs, readout, self.state_noise(noise), states)

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
