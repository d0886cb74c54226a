"""The kernels of `kernels.cpp` for single and double precision on the CPU."""

from typing import Any

import torch
from torch import Tensor

from ctdb.recurrent import cpu
from ctdb.recurrent.eager import Generated, Linear, Scanned
from ctdb.recurrent.functions import CellGradients, CellWeights, ControlledCall, PoissonCall, ScanCall

KINDS = {"clipped_gru": 0, "gru": 1, "rate": 2}
ACTIVATIONS = {"tanh": 0, "relu": 1, "softplus": 2}


class _Arguments:
    """Arguments of one entry, in the order in which it reads them. Holds the tensors alive."""

    def __init__(self) -> None:
        self.tensors: list[Tensor | None] = []
        self.wholes: list[int] = []
        self.reals: list[float] = []

    def give(self, *tensors: Tensor | None) -> None:
        self.tensors += [None if tensor is None else tensor.detach().contiguous() for tensor in tensors]

    def give_cell(self, cell: CellWeights | None) -> None:
        if cell is None:
            self.wholes += [0] * 4
            self.reals += [0.0] * 2
            self.tensors += [None] * 4
            return
        self.wholes += [KINDS[cell.kind], cell.w_in.shape[1], cell.n_states, ACTIVATIONS[cell.activation]]
        self.reals += [cell.clip, cell.leak]
        self.give(*cell.tensors)

    def call(self, name: str, dtype: torch.dtype) -> None:
        cpu.call(name, dtype, self.tensors, self.wholes, self.reals)


class CPUKernels:
    """See :class:`ctdb.recurrent.functions.Kernels`."""

    def scan(self, call: ScanCall) -> tuple[Scanned, Any]:
        """Forward."""
        n_trials, n_bins, _ = call.inputs.shape
        n = call.cell.n_states
        made = call.start.new_empty
        states = made(n_trials, n_bins, n) if call.states else None
        outputs = None if call.readout is None else made(n_trials, n_bins, len(call.readout.bias))
        last = made(n_trials, n)
        size = (KINDS[call.cell.kind], n, n_trials, n_bins, call.keeps, call.start.element_size())
        workspace = cpu.Workspace(cpu.query("scan_memory", *size), call.start.dtype)
        arguments = self._scan_arguments(call, workspace)
        arguments.give(states, last, outputs)
        arguments.call("scan_forward", call.start.dtype)
        return Scanned(states, last, outputs), workspace if call.keeps else None

    def _scan_arguments(self, call: ScanCall, workspace: cpu.Workspace, wants_inputs: bool | None = None) -> _Arguments:
        a = _Arguments()
        if wants_inputs is not None:
            a.wholes.append(wants_inputs)
        a.give_cell(call.cell)
        noise = call.noise
        n_outputs = 0 if call.readout is None else len(call.readout.bias)
        a.wholes += [
            len(call.start),
            call.inputs.shape[1],
            torch.get_num_threads(),
            call.reverse,
            call.keeps,
            n_outputs,
        ]
        key, stream = (0, 0) if noise is None else (cpu.signed(noise.noise.key), noise.noise.stream(noise.stream))
        a.wholes += [noise is not None, key, stream]
        a.reals.append(0.0 if noise is None else noise.scale)
        a.give(call.inputs, call.start)
        a.give(
            None if call.valid is None else call.valid.to(torch.uint8), None if noise is None else noise.noise.trials
        )
        a.give(*(call.readout or (None, None)), workspace.tensor)
        return a

    def scan_backward(self, call: ScanCall, kept: Any, grads: Scanned, wants_inputs: bool) -> dict[str, Any]:
        """Gradients of a scan."""
        a = self._scan_arguments(call, kept, wants_inputs)
        outputs = grads.outputs
        if call.readout is not None and outputs is None:
            outputs = call.start.new_zeros(*call.inputs.shape[:2], len(call.readout.bias))
        a.give(grads.states, grads.last, outputs)
        inputs = torch.empty_like(call.inputs, memory_format=torch.contiguous_format) if wants_inputs else None
        start = torch.empty_like(call.start, memory_format=torch.contiguous_format)
        cell, readout = _empty_cell(call.cell), None if call.readout is None else [_empty(t) for t in call.readout]
        a.give(inputs, start, *cell, *(readout or (None, None)))
        a.call("scan_backward", call.start.dtype)
        return {"inputs": inputs, "start": start, "cell": cell, "readout": readout}

    def controlled(self, call: ControlledCall) -> tuple[Generated, Any]:
        """Forward."""
        n_trials, n_bins, n_ext = call.ext_input.shape
        made = call.start.new_empty
        gen, con = call.generator, call.controller
        n_co = 0 if con is None else len(call.to_co.bias) // 2
        sizes = (gen.n_states, n_co + n_ext, 0 if con is None else con.n_states, n_co, len(call.to_factors))
        kinds = (KINDS[gen.kind], 0 if con is None else KINDS[con.kind])
        need = (*kinds, *sizes, n_trials, n_bins, call.keeps, call.start.element_size())
        workspace = cpu.Workspace(cpu.query("controlled_memory", *need), call.start.dtype)
        full = call.states
        result = Generated(
            gen_states=made(n_trials, n_bins, gen.n_states) if full else None,
            factors=made(n_trials, n_bins, len(call.to_factors)),
            gen_inputs=made(n_trials, n_bins, n_co + n_ext) if full else None,
            con_states=made(n_trials, n_bins, con.n_states if con else 0) if full else None,
            co_means=made(n_trials, n_bins, n_co),
            co_stds=made(n_trials, n_bins, n_co),
        )
        a = self._controlled_arguments(call, workspace)
        a.give(*result)
        a.call("controlled_forward", call.start.dtype)
        return result, workspace if call.keeps else None

    def _controlled_arguments(self, call: ControlledCall, workspace: cpu.Workspace) -> _Arguments:
        a = _Arguments()
        a.give_cell(call.generator)
        a.give_cell(call.controller)
        n_co = 0 if call.controller is None else len(call.to_co.bias) // 2
        n_ci = 0 if call.ci is None or not n_co else call.ci.shape[2]
        a.wholes += [*call.ext_input.shape[:2], torch.get_num_threads(), call.keeps]
        a.wholes += [n_ci, n_co, call.ext_input.shape[2], len(call.to_factors)]
        kept = call.kept
        a.reals.append(1.0 if kept is None else kept.scale)
        a.give(call.start, call.con_start, call.ci, call.ext_input, *(call.to_co or (None, None)), call.to_factors)
        a.give(call.co_noise, call.control, *(kept[:4] if kept is not None else [None] * 4), workspace.tensor)
        return a

    def controlled_backward(self, call: ControlledCall, kept: Any, grads: Generated, wants: set[str]) -> dict[str, Any]:
        """Gradients of a controlled scan."""
        a = self._controlled_arguments(call, kept)
        a.give(*[grads[i] for i in (0, 1, 2, 3, 4, 5)])
        made: dict[str, Any] = {"start": _empty(call.start), "to_factors": _empty(call.to_factors)}
        made |= {name: _empty(getattr(call, name)) for name in wants}
        made["generator"] = _empty_cell(call.generator)
        if call.controller is not None:
            made |= {"con_start": _empty(call.con_start), "controller": _empty_cell(call.controller)}
            made["to_co"] = Linear(*[_empty(value) for value in call.to_co])
        a.give(made["start"], made.get("con_start"), made.get("ci"), made.get("ext_input"))
        a.give(*made.get("to_co", (None, None)), made["to_factors"], *made["generator"])
        a.give(*made.get("controller", [None] * 4))
        a.call("controlled_backward", call.start.dtype)
        return made

    def poisson(self, call: PoissonCall) -> tuple[Tensor, Any]:
        """Sum, and its gradients."""
        n_trials, n_bins, n_factors = call.factors.shape
        n = len(call.readout.bias)
        dtype = call.factors.dtype
        counts = call.counts if call.counts.dtype == torch.uint8 else call.counts.to(dtype)
        wide = call.weight.shape[2] > 1
        grads = [_empty(value) for value in (call.factors, *call.readout)] if call.keeps else [None] * 3
        total = call.factors.new_empty(())
        a = _Arguments()
        a.wholes += [n_trials, n_bins, torch.get_num_threads(), n_factors, n, counts.dtype == torch.uint8, wide]
        a.give(call.factors, *call.readout, counts, call.weight.to(dtype), call.learned, total, *grads)
        a.call("poisson", dtype)
        return total, grads


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _empty_cell(cell: CellWeights) -> CellGradients:
    return CellGradients(*[None if tensor is None else _empty(tensor) for tensor in cell.tensors])
