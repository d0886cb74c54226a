"""Recurrent cells: each maps (input, state) to the next state and nothing else."""

from abc import abstractmethod
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn


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


class GRUCell(_GatedWeights):
    r"""Gated recurrent unit with the reset gate after the recurrent product, as in cuDNN and ``torch.nn.GRUCell``.

    With :math:`a = W_{ih} u + b_{ih}` and :math:`c = W_{hh} h + b_{hh}`, split into gates r, z, n:
    :math:`r = \sigma(a_r + c_r)`, :math:`z = \sigma(a_z + c_z)`, :math:`n = \tanh(a_n + r \odot c_n)`,
    :math:`h' = (1 - z) \odot n + z \odot h`.
    """

    def __init__(self, n_inputs: int, n_states: int):
        super().__init__(n_inputs, n_states, n_gates=3)

    def forward(
        self, input: Float[Tensor, "trials inputs"], state: Float[Tensor, "trials states"]
    ) -> Float[Tensor, "trials states"]:
        """Next state."""
        return torch.gru_cell(input, state, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)


class TanhCell(_GatedWeights):
    r"""Vanilla recurrent network, :math:`h' = \tanh(W_{ih} u + b_{ih} + W_{hh} h + b_{hh})`."""

    def __init__(self, n_inputs: int, n_states: int):
        super().__init__(n_inputs, n_states, n_gates=1)

    def forward(
        self, input: Float[Tensor, "trials inputs"], state: Float[Tensor, "trials states"]
    ) -> Float[Tensor, "trials states"]:
        """Next state."""
        return torch.rnn_tanh_cell(input, state, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)


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
