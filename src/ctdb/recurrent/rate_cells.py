"""Recurrent cells after particular papers: chaotic rates, rates under Dale's law, oscillators, switching linear maps.

None has a kernel of its own, so their loops run eagerly.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ctdb.recurrent.cells import Cell


class ChaoticRateCell(Cell):
    r"""Rate network in its currents, :math:`x' = (1 - \alpha) x + \alpha (W \tanh(x) + B u)`, rates :math:`\tanh(x)`.

    The recurrent weights start as :math:`W_{ij} \sim N(0, g^2 / N)`: without input, activity dies out where g < 1 and
    is chaotic where g > 1, in large networks. The input weights :math:`B_{ij} \sim U(-1, 1)` stay as they were drawn.
    There is no offset.

    Parameters
    ----------
    n_inputs, n_states
        As in :class:`Cell`.
    gain
        g of the initial recurrent weights.
    leak
        Share :math:`\alpha` of a step, time step over time constant, in (0, 1].

    References
    ----------
    Sompolinsky, Crisanti & Sommers (1988), Chaos in random neural networks, Physical Review Letters 61:259.
    """

    def __init__(self, n_inputs: int, n_states: int, gain: float, leak: float):
        super().__init__(n_inputs, n_states)
        self.gain, self.leak = gain, leak
        self.weight_ih = nn.Parameter(torch.empty(n_states, n_inputs), requires_grad=False)
        self.weight_hh = nn.Parameter(torch.empty(n_states, n_states))

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights, in place."""
        self.weight_hh.normal_(0, self.gain / math.sqrt(self.n_states), generator=generator)
        self.weight_ih.uniform_(-1, 1, generator=generator)

    def forward(
        self, input: Float[Tensor, "trials inputs"], state: Float[Tensor, "trials states"]
    ) -> Float[Tensor, "trials states"]:
        """Next state."""
        drive = nn.functional.linear(input, self.weight_ih) + nn.functional.linear(state.tanh(), self.weight_hh)
        return torch.lerp(state, drive, self.leak)


class EIRateCell(Cell):
    r"""Rate network under Dale's law, :math:`x' = (1 - \alpha) x + \alpha (W r + B u + b)`, :math:`r = \max(x, 0)`.

    :math:`W_{ij} = |V_{ij}| s_j` off the diagonal and 0 on it, with learned V: the first `n_excitatory` units excite
    (s = 1) all units they reach and the others inhibit them (s = -1), whatever the training does. Weights start with
    gamma-distributed sizes (shape 2), scaled so that each unit gets as much inhibition as excitation, and all then by
    one factor, so that W has the wanted spectral radius. Inputs and offsets may have any sign, and start as torch
    draws those of a recurrent layer.

    Where Song et al. rectify V, its absolute value is taken here: a weight that training pushed to 0 still learns.

    Parameters
    ----------
    n_inputs, n_states
        As in :class:`Cell`.
    n_excitatory
        Number of excitatory units, which come first; at least two, and at most two less than all.
    leak
        Share :math:`\alpha` of a step, time step over time constant, in (0, 1].
    spectral_radius
        Largest absolute eigenvalue of W at the start.

    Raises
    ------
    ValueError
        If there are fewer than two units of a kind: some unit would get nothing of that kind to balance.

    References
    ----------
    Song, Yang & Wang (2016), Training excitatory-inhibitory recurrent neural networks for cognitive tasks, PLOS
    Computational Biology 12:e1004792.
    """

    def __init__(self, n_inputs: int, n_states: int, n_excitatory: int, leak: float, spectral_radius: float):
        super().__init__(n_inputs, n_states)
        if not 2 <= n_excitatory <= n_states - 2:
            raise ValueError(
                f"{n_excitatory} excitatory of {n_states} units: at least two of either kind are needed to balance them"
            )
        self.n_excitatory, self.leak, self.spectral_radius = n_excitatory, leak, spectral_radius
        self.weight_ih = nn.Parameter(torch.empty(n_states, n_inputs))
        self.weight_hh = nn.Parameter(torch.empty(n_states, n_states))
        self.bias = nn.Parameter(torch.empty(n_states))
        sign = torch.ones(n_states)
        sign[n_excitatory:] = -1
        self.register_buffer("sign", sign * (1 - torch.eye(n_states)), persistent=False)

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights, in place."""
        size = sum(torch.empty_like(self.weight_hh).exponential_(generator=generator) for _ in range(2))
        size *= self.sign.abs()
        excitation, inhibition = size.tensor_split([self.n_excitatory], 1)
        inhibition *= excitation.sum(1, keepdim=True) / inhibition.sum(1, keepdim=True)
        radius = torch.linalg.eigvals((size * self.sign).double()).abs().max()
        self.weight_hh.copy_(size * (self.spectral_radius / radius))
        bound = 1 / math.sqrt(self.n_states)
        for parameter in (self.weight_ih, self.bias):
            parameter.uniform_(-bound, bound, generator=generator)

    def recurrent_weight(self) -> Float[Tensor, "states states"]:
        """W as it acts: column j is what unit j does to the others."""
        return self.weight_hh.abs() * self.sign

    def forward(
        self, input: Float[Tensor, "trials inputs"], state: Float[Tensor, "trials states"]
    ) -> Float[Tensor, "trials states"]:
        """Next state."""
        drive = nn.functional.linear(input, self.weight_ih, self.bias)
        drive = drive + nn.functional.linear(state.relu(), self.recurrent_weight())
        return torch.lerp(state, drive, self.leak)


class OscillatorCell(Cell):
    r"""Coupled damped oscillators, :math:`\ddot y = \tanh(W y + V \dot y + U u + b) - \gamma y - \epsilon \dot y`.

    The state is :math:`[y, z]` with the velocity :math:`z = \dot y`. A step of length :math:`\tau` is implicit in the
    damping and in the velocity that moves y, and explicit in all else:

    .. math::
        z' = \frac{z + \tau (\tanh(W y + V z + U u + b) - \gamma y)}{1 + \tau \epsilon}, \quad y' = y + \tau z'

    An oscillator alone has a period of about :math:`2 \pi / (\tau \sqrt\gamma)` steps and loses its swing with a time
    constant of :math:`2 / (\tau \epsilon)` steps. All weights start as :math:`U(-k, k)`, :math:`k^{-2}` being the
    number of inputs and states.

    Parameters
    ----------
    n_inputs
        As in :class:`Cell`.
    n_oscillators
        Number of oscillators, half of the number of states.
    time_step, stiffness, damping
        :math:`\tau, \gamma, \epsilon`.

    References
    ----------
    Rusch & Mishra (2021), Coupled oscillatory recurrent neural network (coRNN), ICLR, equations 1 and 3.
    """

    def __init__(self, n_inputs: int, n_oscillators: int, time_step: float, stiffness: float, damping: float):
        super().__init__(n_inputs, 2 * n_oscillators)
        self.time_step, self.stiffness, self.damping = time_step, stiffness, damping
        self.weight_ih = nn.Parameter(torch.empty(n_oscillators, n_inputs))
        self.weight_hh = nn.Parameter(torch.empty(n_oscillators, 2 * n_oscillators))
        self.bias = nn.Parameter(torch.empty(n_oscillators))

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights, in place."""
        bound = 1 / math.sqrt(self.n_inputs + self.n_states)
        for parameter in self.parameters(recurse=False):
            parameter.uniform_(-bound, bound, generator=generator)

    def forward(
        self, input: Float[Tensor, "trials inputs"], state: Float[Tensor, "trials states"]
    ) -> Float[Tensor, "trials states"]:
        """Next state."""
        place, velocity = state.chunk(2, 1)
        force = nn.functional.linear(input, self.weight_ih, self.bias) + nn.functional.linear(state, self.weight_hh)
        force = force.tanh() - self.stiffness * place
        velocity = (velocity + self.time_step * force) / (1 + self.time_step * self.damping)
        return torch.cat([place + self.time_step * velocity, velocity], 1)


class SwitchingLinearCell(Cell):
    r"""Soft switching linear system, :math:`h' = \sum_k p_k (A_k h + B_k u + b_k)` with :math:`p = softmax(W h + v)`.

    The state itself says which linear systems move it on, and in what shares: one alone far from the borders between
    them, several near these. With one mode it is a linear system; two can have two stable points. Matrices :math:`A_k`
    start near the identity, scaled to a norm of 0.95, so that the state is remembered for tens of bins and cannot
    explode; :math:`B_k \sim U(-a, a)` with :math:`a^{-2}` inputs, and :math:`b_k` and v likewise with states.
    :math:`W \sim N(0, 16 / N)` is so large that states apart by their own spread are moved by different systems:
    otherwise all systems begin as one, and stay so for long.

    Parameters
    ----------
    n_inputs, n_states
        As in :class:`Cell`.
    n_modes
        Number of linear systems.

    References
    ----------
    Linderman et al. (2017), Bayesian learning and inference in recurrent switching linear dynamical systems, AISTATS,
    whose modes are drawn from p, in place of mixed by it.
    """

    def __init__(self, n_inputs: int, n_states: int, n_modes: int):
        super().__init__(n_inputs, n_states)
        self.n_modes = n_modes
        self.weight_ih = nn.Parameter(torch.empty(n_modes, n_states, n_inputs))
        self.weight_hh = nn.Parameter(torch.empty(n_modes, n_states, n_states))
        self.bias = nn.Parameter(torch.empty(n_modes, n_states))
        self.mode_weight = nn.Parameter(torch.empty(n_modes, n_states))
        self.mode_bias = nn.Parameter(torch.empty(n_modes))

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights, in place."""
        bound = 1 / math.sqrt(self.n_states)
        for parameter in (self.weight_hh, self.bias, self.mode_bias):
            parameter.uniform_(-bound, bound, generator=generator)
        self.mode_weight.normal_(0, 4 / math.sqrt(self.n_states), generator=generator)
        bound = 1 / math.sqrt(max(self.n_inputs, 1))
        self.weight_ih.uniform_(-bound, bound, generator=generator)
        self.weight_hh.mul_(0.1).add_(torch.eye(self.n_states))
        self.weight_hh.mul_(0.95 / torch.linalg.matrix_norm(self.weight_hh, 2)[:, None, None])

    def mode_shares(self, state: Float[Tensor, "trials states"]) -> Float[Tensor, "trials modes"]:
        """Share p of each linear system in what moves the state on."""
        return nn.functional.linear(state, self.mode_weight, self.mode_bias).softmax(1)

    def moved_by_each(
        self, input: Float[Tensor, "trials inputs"], state: Float[Tensor, "trials states"]
    ) -> Float[Tensor, "trials modes states"]:
        """Where each linear system alone would move the state."""
        following = nn.functional.linear(state, self.weight_hh.flatten(0, 1), self.bias.flatten())
        following = following + nn.functional.linear(input, self.weight_ih.flatten(0, 1))
        return following.unflatten(1, (self.n_modes, self.n_states))

    def forward(
        self, input: Float[Tensor, "trials inputs"], state: Float[Tensor, "trials states"]
    ) -> Float[Tensor, "trials states"]:
        """Next state."""
        return (self.mode_shares(state)[:, :, None] * self.moved_by_each(input, state)).sum(1)
