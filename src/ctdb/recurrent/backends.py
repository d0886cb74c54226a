"""Which backend runs a recurrent loop, and the loops as models and networks call them.

`eager` is the definition; `torch` has hand-written backward passes; `cpu` is compiled for the processor; `cuda` is
written for GPUs. All give the same numbers to rounding. A backend is chosen around a piece of work with
:func:`use_backend`, and per call falls back to `eager` for what it has no kernel for.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ctdb.errors import ConfigError, nearest
from ctdb.recurrent import cpu, eager, functions, triton_kernels
from ctdb.recurrent.cells import ClippedGRUCell, GRUCell, LeakyRateCell, TanhCell, transformed
from ctdb.recurrent.cpu.kernels import CPUKernels
from ctdb.recurrent.eager import Generated, Kept, Linear
from ctdb.recurrent.functions import CellWeights, ControlledCall, Kernels, PoissonCall, ScanCall
from ctdb.recurrent.noise import StateNoise
from ctdb.recurrent.torch_kernels import TorchKernels

Backend = Literal["auto", "eager", "torch", "cpu", "cuda"]
BACKENDS = get_args(Backend)
_wanted: ContextVar[Backend] = ContextVar("backend", default="auto")
_KERNELS: dict[str, Kernels] = {"torch": TorchKernels(), "cpu": CPUKernels()}


@functools.cache
def _triton() -> Kernels:
    return triton_kernels.TritonKernels()


class Choice(NamedTuple):
    """The backend taken, and why."""

    name: str
    reason: str


@contextlib.contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Run recurrent loops inside the block with `backend`.

    Raises
    ------
    ConfigError
        If the backend cannot run here; `auto` always can.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"backend: {backend!r} is unknown; {nearest(backend, BACKENDS)}")
    if backend == "cpu" and (why := cpu.why_not()):
        raise ConfigError(f"backend: 'cpu' cannot run here: {why}; install a C++ compiler, or choose 'auto' or 'torch'")
    if backend == "cuda" and not torch.cuda.is_available():
        raise ConfigError("backend: 'cuda' cannot run here: torch finds no GPU; choose 'auto'")
    if backend == "cuda" and (why := triton_kernels.why_not()):
        raise ConfigError(f"backend: 'cuda' cannot run here: {why}; choose 'auto'")
    token = _wanted.set(backend)
    try:
        yield
    finally:
        _wanted.reset(token)


def without_gpu(backend: Backend) -> Backend:
    """Backend for work on the CPU that belongs to a training with `backend`."""
    return "auto" if backend == "cuda" else backend


def choose(device: torch.device, dtype: torch.dtype = torch.float32) -> Choice:
    """Backend for work on a device: what was asked for with :func:`use_backend`, or the fastest that can run.

    `cuda` is for single precision on a GPU; other work, such as inference on the CPU after the training, is given to
    what `auto` takes.
    """
    wanted = _wanted.get()
    if wanted == "cuda" and device.type == "cuda" and dtype == torch.float32:
        return Choice("cuda", "chosen in the settings")
    if wanted not in ("auto", "cuda"):
        return Choice(wanted, "chosen in the settings")
    if device.type != "cpu":
        return Choice("torch", f"the work is on {device.type}")
    if dtype not in (torch.float32, torch.float64):
        return Choice("eager", f"no kernels for {dtype}")
    if why := cpu.why_not():
        return Choice("torch", f"the CPU kernels cannot be had: {why}")
    return Choice("cpu", f"kernels compiled for this processor, {8 * cpu.query('vector_bytes')}-bit vectors")


def compiler(device: torch.device) -> Choice:
    """Compiler for steps that are no recurrent loop of ours, such as a body's; an empty name where they run plainly."""
    wanted = _wanted.get()
    if wanted in ("eager", "torch"):
        return Choice("", f"backend {wanted!r} compiles nothing")
    why = triton_kernels.why_not() if device.type == "cuda" else cpu.why_not()
    return Choice("", why) if why else Choice("inductor", "compiled on first use, which takes about a minute")


def scan(
    cell: Callable[[Tensor, Tensor], Tensor],
    state: Float[Tensor, "trials states"],
    inputs: Float[Tensor, "trials bins inputs"],
    valid: Bool[Tensor, "trials bins"] | None = None,
) -> Float[Tensor, "trials bins states"]:
    """States after each input: ``state_t = cell(input_t, state_{t-1})``.

    Parameters
    ----------
    cell
        Maps (input, state) to the next state.
    state
        State before the first bin.
    inputs
        Input of each bin; its channel axis may be empty, its length sets the number of steps.
    valid
        Bins in which the state moves on; in the others it stays. All where not given.
    """
    return _scan(cell, state, inputs, valid=valid).states


def scan_both_ways(
    cells: tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]],
    starts: Float[Tensor, "2 states"],
    inputs: Float[Tensor, "trials bins inputs"],
    valid: Bool[Tensor, "trials bins"] | None = None,
    states: bool = True,
) -> tuple[eager.Scanned, eager.Scanned]:
    """Scan from the first bin to the last, and from the last to the first; states in the order of time.

    Parameters
    ----------
    cells
        Cell of each direction.
    starts
        Initial state of each direction, the same for all trials.
    inputs, valid
        As for :func:`scan`.
    states
        Whether all states are wanted; their place may be None otherwise.
    """
    found = []
    for cell, start, reverse in zip(cells, starts, (False, True), strict=True):
        found.append(_scan(cell, start.expand(len(inputs), -1), inputs, valid=valid, reverse=reverse, states=states))
    return found[0], found[1]


def noisy_scan(
    cell: Callable[[Tensor, Tensor], Tensor],
    state: Float[Tensor, "trials states"],
    inputs: Float[Tensor, "trials bins inputs"],
    readout: Callable[[Tensor], Tensor],
    noise: StateNoise | None,
    states: bool = True,
) -> tuple[Float[Tensor, "trials bins states"] | None, Float[Tensor, "trials bins outputs"]]:
    """States with noise added in every bin, and outputs read out before it.

    Parameters
    ----------
    cell, state, inputs
        As for :func:`scan`.
    readout
        Map from states to outputs; the kernels know linear ones.
    noise
        What is added to the states; nothing where not given.
    states
        Whether the states are wanted; their place may be None otherwise.
    """
    made = _scan(cell, state, inputs, noise=noise, readout=readout, states=states)
    return made.states, made.outputs


def _scan(cell: Any, state: Tensor, inputs: Tensor, reverse: bool = False, states: bool = True, **more: Any) -> Any:
    weights = weights_of(cell) if isinstance(more.get("readout"), Linear | None) else None
    kernels = _kernels_for(state) if weights is not None and len(state) else None
    if kernels is None:
        if reverse and (more.get("noise") or more.get("readout")):
            raise ValueError("noise and readout are for scans from the first bin to the last")
        if not reverse:
            return eager.scan(cell, state, inputs, **more)
        flipped = {
            name: value.flip(1) if name == "valid" and value is not None else value for name, value in more.items()
        }
        made = eager.scan(cell, state, inputs.flip(1), **flipped)
        return made._replace(states=made.states.flip(1))
    tensors = [inputs, state, *weights.tensors, *(more.get("readout") or ())]
    call = ScanCall(
        weights, inputs.to(state.dtype), state, reverse=reverse, states=states, keeps=_keeps(tensors), **more
    )
    return functions.scan(kernels, call)


def controlled_scan(
    generator: Callable[[Tensor, Tensor], Tensor],
    controller: Callable[[Tensor, Tensor], Tensor] | None,
    to_factors: Float[Tensor, "factors states"],
    state: Float[Tensor, "trials states"],
    ext_input: Float[Tensor, "trials bins inputs"],
    to_co: Linear | None = None,
    con_state: Float[Tensor, "trials con_states"] | None = None,
    ci: Float[Tensor, "trials bins ci"] | None = None,
    kept: Kept | None = None,
    co_noise: Float[Tensor, "trials bins co"] | None = None,
    control: Float[Tensor, " bins"] | None = None,
    states: bool = True,
) -> Generated:
    """Run LFADS's generator and controller: see :func:`ctdb.recurrent.eager.controlled_scan`, the definition.

    Without `states`, those and the generator's inputs may be None in what is returned.
    """
    cells = [weights_of(cell) for cell in (generator, controller) if cell is not None]
    fixed = all(one is None or not one.requires_grad for one in (co_noise, control))  # to the kernels
    kernels = _kernels_for(state) if None not in cells and fixed and len(state) else None
    if kernels is None:
        return eager.controlled_scan(
            generator, controller, to_factors, state, ext_input, to_co, con_state, ci, kept, co_noise, control
        )
    given = [to_factors, state, ext_input, con_state, ci, *(to_co or ()), *[t for cell in cells for t in cell.tensors]]
    call = ControlledCall(
        generator=cells[0],
        controller=None if controller is None else cells[1],
        to_factors=to_factors,
        start=state,
        ext_input=ext_input,
        to_co=to_co,
        con_start=con_state,
        ci=ci if controller is not None else None,
        kept=kept,
        co_noise=co_noise,
        control=control,
        keeps=_keeps(given),
        states=states,
    )
    return functions.controlled_scan(kernels, call)


def masked(
    data: Tensor, masks: Sequence[UInt8[Tensor, "trials bins channels"]], factor: Float[Tensor, " bins"]
) -> Float[Tensor, "trials bins channels"]:
    """Product with masks and a factor for each bin: see :func:`ctdb.recurrent.eager.masked`."""
    if _kernels_for(factor) is _KERNELS["cpu"] and not (data.requires_grad or factor.requires_grad) and len(masks) <= 2:
        return cpu.masked(data, masks, factor)
    return eager.masked(data, masks, factor)


def poisson_nll(
    factors: Float[Tensor, "trials bins factors"],
    readout: Linear,
    counts: Tensor,
    weight: Float[Tensor, "trials bins weights"],
    learned: UInt8[Tensor, "trials bins neurons"] | None = None,
) -> Float[Tensor, ""]:
    """Weighted sum of Poisson negative log-likelihoods: see :func:`ctdb.recurrent.eager.poisson_nll`."""
    kernels = None if weight.requires_grad or not len(factors) else _kernels_for(factors)
    if kernels is None:
        return eager.poisson_nll(factors, readout, counts, weight, learned)
    return functions.poisson_nll(
        kernels, PoissonCall(factors, readout, counts, weight, learned, _keeps([factors, *readout]))
    )


def weights_of(cell: Any) -> CellWeights | None:
    """A cell as kernels see it, or None where there is no kernel for it; a subclass is another cell."""
    if type(cell) is ClippedGRUCell:
        return CellWeights("clipped_gru", cell.weight_ih, cell.weight_hh, cell.bias, clip=cell.clip)
    if type(cell) is GRUCell:
        return CellWeights("gru", cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    if type(cell) is TanhCell:
        return CellWeights("rate", cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    if type(cell) is LeakyRateCell:
        return CellWeights(
            "rate",
            cell.weight_ih,
            cell.weight_hh,
            cell.bias_ih,
            cell.bias_hh,
            leak=cell.leak,
            activation=cell.activation,
        )
    return None


def _kernels_for(value: Tensor) -> Kernels | None:
    """Kernels of the backend that is to run, None for `eager`; functorch's transforms see through eager code alone."""
    if transformed():
        return None
    name = choose(value.device, value.dtype).name
    if name == "cpu" and (value.device.type != "cpu" or value.dtype not in (torch.float32, torch.float64)):
        return None
    return _triton() if name == "cuda" else _KERNELS.get(name)


def _keeps(tensors: list[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
