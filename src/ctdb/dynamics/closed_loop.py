"""A network and the body it moves as one system, whose state is both of theirs in one row."""

import copy
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ctdb.errors import DynamicsError
from ctdb.networks.base import Network
from ctdb.networks.rollout import one_bin
from ctdb.tasks.base import Body


class ClosedLoopStep:
    """``step(state (n, d), input (n, i)) -> next state (n, d)`` of network and body; make it by `closed_loop_step`.

    The input is the task's own. Nothing else meets the body: no noise, no force.

    Attributes
    ----------
    parts
        Where in the joint state each part is: `network`, then the body's parts by their names.
    n_inputs
        Channels of the task's own inputs.
    """

    def __init__(self, network: Network, body: Body, trials: Mapping[str, Tensor]):
        if network.initial_state.dtype != torch.float64:
            raise DynamicsError(
                "the network is in single precision, too coarse for fixed points; give network.double()"
            )
        self._network, self._body = network, copy.deepcopy(body).double()
        start, met = self._begin(trials)
        self._met = {name: torch.zeros_like(value[:1, 0]) for name, value in met.items()}
        self._shapes = {name: value.shape[1:] for name, value in start.items()}
        ends = torch.tensor([0, *[shape.numel() for shape in self._shapes.values()]]).cumsum(0).tolist()
        self.parts = {name: slice(*ends[i : i + 2]) for i, name in enumerate(self._shapes)}
        self.n_inputs = trials["inputs"].shape[2]

    def __call__(self, state: Float[Tensor, "n d"], input: Float[Tensor, "n i"]) -> Float[Tensor, "n d"]:
        """Joint state after one bin."""
        parts = self.split(state)
        met = {name: value.expand(len(state), *value.shape[1:]) for name, value in self._met.items()}
        hidden, kick = parts.pop("network"), state.new_zeros(1)
        hidden, joint, *_ = one_bin(self._network, self._body, hidden, parts, input, kick, met)
        return self.join({"network": hidden, **joint})

    def split(self, state: Float[Tensor, "n d"]) -> dict[str, Tensor]:
        """Parts of a joint state in their own shapes."""
        return {name: state[:, part].reshape(-1, *self._shapes[name]) for name, part in self.parts.items()}

    def join(self, parts: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
        """Joint state of parts."""
        return torch.cat([parts[name].flatten(1) for name in self.parts], 1)

    def run(self, trials: Mapping[str, Tensor]) -> Float[Tensor, "trials bins d"]:
        """Joint states that undisturbed trials visit."""
        with torch.no_grad():
            start, _ = self._begin(trials)
            state, rows = self.join(start), []
            for input in trials["inputs"].double().unbind(1):
                state = self(state, input)
                rows.append(state)
        return torch.stack(rows, 1)

    def _begin(self, trials: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        exact = {name: value.double() if value.is_floating_point() else value for name, value in trials.items()}
        with torch.no_grad():
            joint, met = self._body.begin(exact, None)
        return {"network": self._network.start(len(exact["inputs"])), **joint}, met


def closed_loop_step(network: Network, body: Body, trials: Mapping[str, Tensor]) -> ClosedLoopStep:
    """Step of network and body together, for :func:`find_fixed_points` and all else that takes a step.

    Parameters
    ----------
    network
        The network, in double precision; it is used as it is, and not changed.
    body
        What it moves and senses, ``task.body()``; a copy in double precision is used.
    trials
        Some trials of the task (:meth:`ctdb.tasks.base.TaskTrials.tensors`), for the shapes of the body's state.

    Raises
    ------
    DynamicsError
        If the network is in single precision.
    """
    return ClosedLoopStep(network, body, trials)
