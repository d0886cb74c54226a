"""Run a network on trials of a task: its inputs given, or closed through a body that it moves and senses.

In a closed loop one bin of network and body is one pure function of their joint state. Where there is a compiler it is
compiled once and called for every bin: the many small operations of a body cost more to launch than to compute.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ctdb.networks.base import Network
from ctdb.recurrent import Noise
from ctdb.recurrent.backends import compiler
from ctdb.tasks.base import Body, Rollout


def rollout(
    network: Network,
    trials: Mapping[str, Tensor],
    body: Body | None = None,
    noise: Noise | None = None,
    states: bool = True,
    start: Tensor | None = None,
    compiled: bool = True,
) -> Rollout:
    """Run `network` on `trials`.

    Parameters
    ----------
    network
        The network.
    trials
        Tensors of the trials; `inputs` (trials, bins, channels) are the task's own.
    body
        What the network moves and senses; none in an open loop.
    noise
        Source of all noise, the body's included; None for none.
    states
        Whether the network's states are wanted.
    start
        Network state before the first bin, (trials, states), in place of its own.
    compiled
        Whether a closed loop may be compiled, which pays after some ten passes.

    Returns
    -------
    States, outputs, inputs as the network saw them and, in a closed loop, what the body did in each bin.
    """
    if body is None:
        inputs = trials["inputs"].to(network.initial_state.dtype)
        hidden, outputs = network.run(inputs, noise, states, start)
        return Rollout(hidden, outputs, inputs)
    compiled = compiled and compiler(network.initial_state.device).name != ""
    made = _closed_loop(network, trials, body, noise, start, compiled)
    return made if states else made._replace(states=None)


def _closed_loop(
    network: Network,
    trials: Mapping[str, Tensor],
    body: Body,
    noise: Noise | None,
    start: Tensor | None,
    compiled: bool,
) -> Rollout:
    if compiled and not torch.is_grad_enabled():
        # As in training, for which the step is compiled: compiling it again would cost more than the gradients do.
        with torch.inference_mode(False), torch.enable_grad(), _deterministic():
            own = {name: value.clone() for name, value in trials.items()}
            made = _closed_loop(network, own, body, noise, start, compiled)
        return Rollout(*[value.detach() for value in made])
    dtype = network.initial_state.dtype
    trials = {name: value.to(dtype) if value.is_floating_point() else value for name, value in trials.items()}
    n_trials, n_bins, _ = trials["inputs"].shape
    hidden, noisy = network.start(n_trials, noise, start), network.state_noise(noise)
    kicks = hidden.new_zeros(n_trials, n_bins, hidden.shape[1])
    if noisy is not None:
        kicks = noisy.tensor(n_bins, hidden.shape[1], hidden)
    joint, met = body.begin(trials, noise)
    # Unbound once: indexing inside the loop would make autograd fill a whole array of zeros for every bin.
    bins = [dict(zip(met, now, strict=True)) for now in zip(*[part.unbind(1) for part in met.values()], strict=True)]
    rows = []
    for own, kick, now in zip(trials["inputs"].unbind(1), kicks.unbind(1), bins, strict=True):
        # The body's first states have no gradient, for which the step would be compiled once more.
        in_play = compiled and all(value.requires_grad for value in joint.values())
        step = _compiled_step if in_play else one_bin
        hidden, joint, *row = step(network, body, hidden, joint, own, kick, now)
        rows.append((hidden, *row))
    return Rollout(*[torch.stack(column, 1) for column in zip(*rows, strict=True)])


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Torch's global state as in training, on which compiled code depends."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def one_bin(
    network: Network, body: Body, hidden: Tensor, joint: dict[str, Tensor], own: Tensor, kick: Tensor, now: Any
) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor, Tensor]:
    """One bin of network and body.

    Parameters
    ----------
    network, body
        What moves and what is moved.
    hidden, joint
        State of the network (trials, states) and of the body.
    own
        The task's own inputs (trials, channels), which follow what is sensed of the body.
    kick
        Noise that the network's state gets after its output is read.
    now
        What meets the body in this bin.

    Returns
    -------
    State of the network and of the body after the bin; outputs, inputs and behaviour of the bin.
    """
    seen = torch.cat([body.observe(joint), own], 1)
    clean = network.cell(seen, hidden)
    output = network.readout(clean)
    joint = body.step(joint, output, now)
    return clean + kick, joint, output, seen, body.behavior(joint)


@functools.cache
def _compiler() -> Callable[..., Any]:
    """The step, compiled at its first call for any number of trials; torch keeps one for each kind of network."""
    return torch.compile(one_bin, dynamic=True, fullgraph=True)


_refused: list[str] = []


def _compiled_step(*given: Any) -> Any:
    """The compiled step; the plain one, which is said once, where torch cannot compile it here."""
    if not _refused:
        try:
            return _compiler()(*given)
        except torch._dynamo.exc.TorchDynamoException as error:
            _refused.append(str(error).partition("\n")[0])
            print(f"closed loops run plainly, because torch cannot compile their step: {_refused[0]}")
    return one_bin(*given)
