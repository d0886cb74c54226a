"""Recurrent loops with a hand-written backward pass, as operations that autograd knows.

A :class:`Kernels` does the work, in torch, in C++ or on a GPU; this file only tells autograd about it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ctdb.recurrent.eager import Generated, Kept, Linear, Scanned
from ctdb.recurrent.noise import StateNoise


class CellWeights(NamedTuple):
    """A cell that kernels know: its kind and its weights in torch's layout, (gates * states, inputs)."""

    kind: str
    w_in: Tensor
    w_rec: Tensor
    b_in: Tensor | None
    b_rec: Tensor | None = None
    clip: float = float("inf")
    leak: float = 1.0
    activation: str = "tanh"

    @property
    def n_states(self) -> int:
        """Number of states."""
        return self.w_rec.shape[1]

    @property
    def tensors(self) -> list[Tensor | None]:
        """Weights."""
        return [self.w_in, self.w_rec, self.b_in, self.b_rec]


class CellGradients(NamedTuple):
    """Gradients of a cell's weights."""

    w_in: Tensor
    w_rec: Tensor
    b_in: Tensor | None
    b_rec: Tensor | None


@dataclass(frozen=True)
class ScanCall:
    """Arguments of :func:`ctdb.recurrent.eager.scan`, with `reverse` for a scan from the last bin to the first."""

    cell: CellWeights
    inputs: Tensor
    start: Tensor
    valid: Tensor | None = None
    noise: StateNoise | None = None
    readout: Linear | None = None
    reverse: bool = False
    keeps: bool = True
    """Whether a backward pass may follow."""
    states: bool = True
    """Whether all states are wanted."""


@dataclass(frozen=True)
class ControlledCall:
    """Arguments of :func:`ctdb.recurrent.eager.controlled_scan`."""

    generator: CellWeights
    controller: CellWeights | None
    to_factors: Tensor
    start: Tensor
    ext_input: Tensor
    to_co: Linear | None = None
    con_start: Tensor | None = None
    ci: Tensor | None = None
    kept: Kept | None = None
    co_noise: Tensor | None = None
    control: Tensor | None = None
    keeps: bool = True
    states: bool = True
    """Whether states and generator inputs are wanted, beside factors and inferred inputs."""


@dataclass(frozen=True)
class PoissonCall:
    """Arguments of :func:`ctdb.recurrent.eager.poisson_nll`."""

    factors: Tensor
    readout: Linear
    counts: Tensor
    weight: Tensor
    learned: Tensor | None = None
    keeps: bool = True


@runtime_checkable
class Kernels(Protocol):
    """What a backend computes. `kept` is whatever its forward pass leaves for its backward pass."""

    def scan(self, call: ScanCall) -> tuple[Scanned, Any]:
        """Forward."""

    def scan_backward(self, call: ScanCall, kept: Any, grads: Scanned, wants_inputs: bool) -> dict[str, Any]:
        """Gradients `inputs` (where wanted), `start`, `cell` and `readout`."""

    def controlled(self, call: ControlledCall) -> tuple[Generated, Any]:
        """Forward."""

    def controlled_backward(self, call: ControlledCall, kept: Any, grads: Generated, wants: set[str]) -> dict[str, Any]:
        """Gradients `start`, `generator`, `to_factors`, `con_start`, `controller`, `to_co`; those of `wants` too."""

    def poisson(self, call: PoissonCall) -> tuple[Tensor, Any]:
        """Sum, and the gradients for a gradient of 1, (factors, weight, bias)."""


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, call: ScanCall, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        made, ctx.kept = kernels.scan(call)
        ctx.kernels, ctx.call = kernels, call
        ctx.save_for_backward(*tensors)
        return tuple(made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        call, _ = ctx.call, ctx.saved_tensors
        contiguous = Scanned(*[None if grad is None else grad.contiguous() for grad in grads])
        made = ctx.kernels.scan_backward(call, ctx.kept, contiguous, ctx.needs_input_grad[2])
        readout = made.get("readout") or (None, None)
        found = [made.get("inputs"), made["start"], *made["cell"], *readout]
        return None, None, *_needed(ctx, found)


class _Controlled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, call: ControlledCall, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        made, ctx.kept = kernels.controlled(call)
        ctx.kernels, ctx.call = kernels, call
        ctx.save_for_backward(*tensors)
        return tuple(made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        call, _ = ctx.call, ctx.saved_tensors
        contiguous = Generated(*[None if grad is None else grad.contiguous() for grad in grads])
        wants = {name for name, needed in zip(("ext_input", "ci"), ctx.needs_input_grad[2:4], strict=True) if needed}
        made = ctx.kernels.controlled_backward(call, ctx.kept, contiguous, wants)
        found = [made.get("ext_input"), made.get("ci"), made["start"], made["to_factors"], *made["generator"]]
        found += [made.get("con_start"), *(made.get("controller") or [None] * 4), *(made.get("to_co") or [None] * 2)]
        return None, None, *_needed(ctx, found)


class _Poisson(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Kernels, call: PoissonCall, *tensors: Tensor | None) -> Tensor:
        total, ctx.grads = kernels.poisson(call)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        found = [value * grad for value in ctx.grads]
        return None, None, *_needed(ctx, found)


def _needed(ctx: Any, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad[2:], strict=True)]


def scan(kernels: Kernels, call: ScanCall) -> Scanned:
    """Scan whose gradient the kernels compute."""
    readout = call.readout or Linear(None, None)
    return Scanned(*_Scan.apply(kernels, call, call.inputs, call.start, *call.cell.tensors, *readout))


def controlled_scan(kernels: Kernels, call: ControlledCall) -> Generated:
    """Controlled scan whose gradient the kernels compute."""
    controller = [None] * 4 if call.controller is None else call.controller.tensors
    tensors = [call.ext_input, call.ci, call.start, call.to_factors, *call.generator.tensors]
    made = _Controlled.apply(kernels, call, *tensors, call.con_start, *controller, *(call.to_co or (None, None)))
    return Generated(*made)


def poisson_nll(kernels: Kernels, call: PoissonCall) -> Tensor:
    """Poisson negative log-likelihood whose gradient the kernels compute."""
    return _Poisson.apply(kernels, call, call.factors, *call.readout)
