"""Recurrent loops with a hand-written backward pass, as operations that autograd knows.

A :class:`Kernels` does the work, in torch, in C++ or on a GPU; this file only tells autograd about it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

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

    def __post_init__(self) -> None:
        n_trials, n_bins, n_inputs = self.inputs.shape
        n, readout = self.cell.n_states, self.readout or Linear(None, None)
        n_outputs = 0 if self.readout is None else len(readout.bias)
        wanted = {
            "inputs": (self.inputs, (n_trials, n_bins, n_inputs)),
            "state": (self.start, (n_trials, n)),
            "valid": (self.valid, (n_trials, n_bins)),
            "noise.trials": (None if self.noise is None else self.noise.noise.trials, (n_trials,)),
            "readout.weight": (readout.weight, (n_outputs, n)),
            "readout.bias": (readout.bias, (n_outputs,)),
        }
        _check("scan", self.start, wanted | _cell_shapes("cell", self.cell, n_inputs))


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

    def __post_init__(self) -> None:
        (n_trials, n_bins, n_ext), n_factors = self.ext_input.shape, len(self.to_factors)
        n, n_co, n_ci, n_con = self.generator.n_states, 0, 0, 0
        wanted = {
            "state": (self.start, (n_trials, n)),
            "ext_input": (self.ext_input, (n_trials, n_bins, n_ext)),
            "to_factors": (self.to_factors, (n_factors, n)),
            "control": (self.control, (n_bins,)),
        }
        if self.controller is not None:
            n_co, n_ci, n_con = len(self.to_co.bias) // 2, self.ci.shape[2], self.controller.n_states
            wanted |= {
                "to_co.weight": (self.to_co.weight, (2 * n_co, n_con)),
                "to_co.bias": (self.to_co.bias, (2 * n_co,)),
                "con_state": (self.con_start, (n_trials, n_con)),
                "ci": (self.ci, (n_trials, n_bins, n_ci)),
                "co_noise": (self.co_noise, (n_trials, n_bins, n_co)),
            } | _cell_shapes("controller", self.controller, n_ci + n_factors)
        if self.kept is not None:
            wanted |= {
                "kept.start": (self.kept.start, (n_trials, n)),
                "kept.ci": (self.kept.ci, (n_trials, n_bins, n_ci)),
                "kept.factors": (self.kept.factors, (n_trials, n_bins, n_factors)),
                "kept.states": (self.kept.states, (n_trials, n_bins, n)),
            }
        _check("controlled scan", self.start, wanted | _cell_shapes("generator", self.generator, n_co + n_ext))


@dataclass(frozen=True)
class PoissonCall:
    """Arguments of :func:`ctdb.recurrent.eager.poisson_nll`."""

    factors: Tensor
    readout: Linear
    counts: Tensor
    weight: Tensor
    learned: Tensor | None = None
    keeps: bool = True

    def __post_init__(self) -> None:
        n_trials, n_bins, n_factors = self.factors.shape
        n = len(self.readout.bias)
        values, per_bin = (n_trials, n_bins, n), (n_trials, n_bins, 1)
        wanted = {
            "readout.weight": (self.readout.weight, (n, n_factors)),
            "readout.bias": (self.readout.bias, (n,)),
            "weight": (self.weight, per_bin if self.weight.shape[2] == 1 else values),
            "learned": (self.learned, values),
        }
        _check("poisson_nll", self.factors, wanted)
        if self.counts.shape != values:
            raise ValueError(f"poisson_nll: counts have shape {tuple(self.counts.shape)}; expected {values}")


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
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        _refuse_second_derivative()
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
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        _refuse_second_derivative()
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        _refuse_second_derivative()
        found = [value * grad for value in ctx.grads]
        return None, None, *_needed(ctx, found)


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():  # a graph of the gradient is wanted
        raise RuntimeError(
            "the backends `torch`, `cpu` and `cuda` have no second derivative; work inside `use_backend('eager')`"
        )


def _check(call: str, like: Tensor, wanted: Mapping[str, tuple[Tensor | None, Sequence[int]]]) -> None:
    """Refuse tensors of another shape, and floating ones of another precision, device than `like`."""
    for name, (value, shape) in wanted.items():
        if value is None:
            continue
        if tuple(value.shape) != tuple(shape):
            raise ValueError(f"{call}: {name} has shape {tuple(value.shape)}; expected {tuple(shape)}")
        if value.device != like.device or (value.is_floating_point() and value.dtype != like.dtype):
            raise ValueError(
                f"{call}: {name} is {value.dtype} on {value.device}; expected {like.dtype} on {like.device}"
            )


def _cell_shapes(name: str, cell: CellWeights, n_inputs: int) -> dict[str, tuple[Tensor | None, Sequence[int]]]:
    rows = cell.n_states * (1 if cell.kind == "rate" else 3)
    return {
        f"{name}.w_in": (cell.w_in, (rows, n_inputs)),
        f"{name}.w_rec": (cell.w_rec, (rows, cell.n_states)),
        f"{name}.b_in": (cell.b_in, (rows,)),
        f"{name}.b_rec": (cell.b_rec, (rows,)),
    }


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
