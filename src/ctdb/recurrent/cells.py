"""Recurrent cells: each maps (input, state) to the next state and nothing else."""

import math
from abc import abstractmethod
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


def transformed() -> bool:
    """Whether the work is inside one of functorch's transforms, such as `vmap`."""
    return torch._C._are_functorch_transforms_active()


class Cell(nn.Module):
    """One step of a dynamical system, ``state' = F(input, state)``.

    Parameters
    ----------
    n_inputs
        Number of input channels; 0 for an autonomous system.
    n_states
        Number of state variables.
    """

    def __init__(self, n_inputs: int, n_states: int):
        super().__init__()
        self.n_inputs, self.n_states = n_inputs, n_states

    @abstractmethod
    def forward(
        self, input: Float[Tensor, "trials inputs"], state: Float[Tensor, "trials states"]
    ) -> Float[Tensor, "trials states"]:
        """Next state."""


class _GatedWeights(Cell):
    """Input and recurrent weights of `n_gates` gates, laid out as in ``torch.nn.RNNCellBase``."""

    def __init__(self, n_inputs: int, n_states: int, n_gates: int):
        super().__init__(n_inputs, n_states)
        self.weight_ih = nn.Parameter(torch.empty(n_gates * n_states, n_inputs))
        self.weight_hh = nn.Parameter(torch.empty(n_gates * n_states, n_states))
        self.bias_ih = nn.Parameter(torch.empty(n_gates * n_states))
        self.bias_hh = nn.Parameter(torch.empty(n_gates * n_states))

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights and biases as torch does, U(-1/sqrt(states), 1/sqrt(states)), in place."""
        bound = 1 / math.sqrt(self.n_states)
        for parameter in self.parameters(recurse=False):
            parameter.uniform_(-bound, bound, generator=generator)


class GRUCell(_GatedWeights):
    r"""Gated recurrent unit with the reset gate after the recurrent product, as in cuDNN and ``torch.nn.GRUCell``.

    With :math:`a = W_{ih} u + b_{ih}` and :math:`c = W_{hh} h + b_{hh}`, split into gates r, z, n:
    :math:`r = \sigma(a_r + c_r)`, :math:`z = \sigma(a_z + c_z)`, :math:`n = \tanh(a_n + r \odot c_n)`,
    :math:`h' = (1 - z) \odot n + z \odot h`.

    Parameters
    ----------
    n_inputs, n_states
        As in :class:`Cell`.
    orthogonal
        Start with orthogonal recurrent matrices, input weights of variance 1 / inputs, and an update gate that is
        inclined to keep the state, by a bias of 1; otherwise as torch does.
    """

    def __init__(self, n_inputs: int, n_states: int, orthogonal: bool = False):
        super().__init__(n_inputs, n_states, n_gates=3)
        self.orthogonal = orthogonal

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights, in place."""
        if not self.orthogonal:
            super().draw_weights(generator)
            return
        for block in self.weight_hh.split(self.n_states):
            nn.init.orthogonal_(block, generator=generator)
        self.weight_ih.normal_(0, 1 / math.sqrt(max(self.n_inputs, 1)), generator=generator)
        self.bias_hh.zero_()
        self.bias_ih.zero_()
        self.bias_ih[self.n_states : 2 * self.n_states] = 1

    def forward(
        self, input: Float[Tensor, "trials inputs"], state: Float[Tensor, "trials states"]
    ) -> Float[Tensor, "trials states"]:
        """Next state."""
        return gru_cell(input, state, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)


def gru_cell(
    input: Float[Tensor, "trials inputs"],
    state: Float[Tensor, "trials states"],
    weight_ih: Float[Tensor, "gates inputs"],
    weight_hh: Float[Tensor, "gates states"],
    bias_ih: Float[Tensor, " gates"],
    bias_hh: Float[Tensor, " gates"],
) -> Float[Tensor, "trials states"]:
    """Next state of :class:`GRUCell`, from its weights."""
    if not transformed():
        return torch.gru_cell(input, state, weight_ih, weight_hh, bias_ih, bias_hh)
    # torch's operation knows no `vmap`, which would call it for one model after another.
    a_r, a_z, a_n = nn.functional.linear(input, weight_ih, bias_ih).chunk(3, 1)
    c_r, c_z, c_n = nn.functional.linear(state, weight_hh, bias_hh).chunk(3, 1)
    reset, update = (a_r + c_r).sigmoid(), (a_z + c_z).sigmoid()
    return torch.lerp((a_n + reset * c_n).tanh(), state, update)


class ClippedGRUCell(Cell):
    r"""Gated recurrent unit of LFADS: reset gate before the recurrent product, state clipped.

    With :math:`a = W_{ih} u + b`, split into gates z, r, n, and :math:`W_{hh}` into :math:`W_z, W_r, W_n`:
    :math:`z = \sigma(a_z + W_z h)`, :math:`r = \sigma(a_r + W_r h)`, :math:`n = \tanh(a_n + W_n (r \odot h))`,
    :math:`h' = clip(z \odot h + (1 - z) \odot n, \pm c)`. The biases of both gates start at 1, so that the state is
    carried on at first; weights start normal with variance 1 / fan.

    Parameters
    ----------
    n_inputs, n_states
        As in :class:`Cell`.
    clip
        Largest absolute value c of a state.
    joint_fan
        Whether the fan of the initial weights is inputs and states together, as in LFADS's encoders, or that of each
        matrix alone, as in its generator and controller.

    References
    ----------
    Cho et al. (2014), equations 5-8; Pandarinath et al. (2018), methods.
    """

    def __init__(self, n_inputs: int, n_states: int, clip: float = 5.0, joint_fan: bool = False):
        super().__init__(n_inputs, n_states)
        self.clip, self.joint_fan = clip, joint_fan
        self.weight_ih = nn.Parameter(torch.empty(3 * n_states, n_inputs))
        self.weight_hh = nn.Parameter(torch.empty(3 * n_states, n_states))
        self.bias = nn.Parameter(torch.empty(3 * n_states))

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights, in place."""
        fans = (self.n_inputs + self.n_states,) * 2 if self.joint_fan else (max(self.n_inputs, 1), self.n_states)
        for weight, fan in zip((self.weight_ih, self.weight_hh), fans, strict=True):
            weight.normal_(0, 1 / math.sqrt(fan), generator=generator)
        self.bias.fill_(1)
        self.bias[2 * self.n_states :] = 0

    def forward(
        self, input: Float[Tensor, "trials inputs"], state: Float[Tensor, "trials states"]
    ) -> Float[Tensor, "trials states"]:
        """Next state."""
        sizes = (2 * self.n_states, self.n_states)
        input_gates, input_new = nn.functional.linear(input, self.weight_ih, self.bias).split(sizes, 1)
        weight_gates, weight_new = self.weight_hh.split(sizes)
        update, reset = torch.addmm(input_gates, state, weight_gates.T).sigmoid().chunk(2, 1)
        new = torch.addmm(input_new, reset * state, weight_new.T).tanh()
        return torch.lerp(new, state, update).clamp(-self.clip, self.clip)


class TanhCell(_GatedWeights):
    r"""Vanilla recurrent network, :math:`h' = \tanh(W_{ih} u + b_{ih} + W_{hh} h + b_{hh})`."""

    def __init__(self, n_inputs: int, n_states: int):
        super().__init__(n_inputs, n_states, n_gates=1)

    def forward(
        self, input: Float[Tensor, "trials inputs"], state: Float[Tensor, "trials states"]
    ) -> Float[Tensor, "trials states"]:
        """Next state."""
        drive = nn.functional.linear(input, self.weight_ih, self.bias_ih)
        return (drive + nn.functional.linear(state, self.weight_hh, self.bias_hh)).tanh()


class LeakyRateCell(_GatedWeights):
    r"""Leaky firing-rate network, :math:`h' = (1 - \gamma) h + \gamma f(W_{ih} u + b_{ih} + W_{hh} h + b_{hh})`.

    Parameters
    ----------
    n_inputs, n_states
        As in :class:`Cell`.
    leak
        Share :math:`\gamma` of a step, time step over time constant, in (0, 1].
    activation
        Nonlinearity f.

    References
    ----------
    Driscoll, Shenoy & Sussillo (2024), Nature Neuroscience 27:1349.
    """

    def __init__(
        self, n_inputs: int, n_states: int, leak: float, activation: Literal["tanh", "relu", "softplus"] = "tanh"
    ):
        super().__init__(n_inputs, n_states, n_gates=1)
        self.leak, self.activation = leak, activation

    def forward(
        self, input: Float[Tensor, "trials inputs"], state: Float[Tensor, "trials states"]
    ) -> Float[Tensor, "trials states"]:
        """Next state."""
        drive = nn.functional.linear(input, self.weight_ih, self.bias_ih)
        drive = drive + nn.functional.linear(state, self.weight_hh, self.bias_hh)
        rate = {"tanh": torch.tanh, "relu": torch.relu, "softplus": nn.functional.softplus}[self.activation](drive)
        return state + self.leak * (rate - state)


class LinearCell(Cell):
    r"""Linear dynamical system, :math:`h' = A h + B u + b`."""

    def __init__(self, n_inputs: int, n_states: int):
        super().__init__(n_inputs, n_states)
        self.recurrent = nn.Linear(n_states, n_states)
        self.input = nn.Linear(n_inputs, n_states, bias=False) if n_inputs else None

    def forward(
        self, input: Float[Tensor, "trials inputs"], state: Float[Tensor, "trials states"]
    ) -> Float[Tensor, "trials states"]:
        """Next state."""
        following = self.recurrent(state)
        return following if self.input is None else following + self.input(input)


class EulerMLPCell(Cell):
    r"""Neural ODE by Euler steps, :math:`h' = h + \gamma f([h, u])`, with `f` a ReLU network.

    Parameters
    ----------
    n_inputs, n_states
        As in :class:`Cell`.
    n_layers, width
        Number of hidden layers of `f` and units in each.
    gain
        Step length :math:`\gamma`.
    """

    def __init__(self, n_inputs: int, n_states: int, n_layers: int, width: int, gain: float = 0.1):
        super().__init__(n_inputs, n_states)
        self.gain = gain
        sizes = [n_states + n_inputs, *[width] * n_layers]
        hidden = [layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
        self.field = nn.Sequential(*hidden, nn.Linear(sizes[-1], n_states))

    def forward(
        self, input: Float[Tensor, "trials inputs"], state: Float[Tensor, "trials states"]
    ) -> Float[Tensor, "trials states"]:
        """Next state."""
        return state + self.gain * self.field(torch.cat([state, input], dim=1))
