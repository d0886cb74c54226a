"""The GPU kernels against the definitions and against the backward passes in torch.

Where torch finds a GPU they run there. Elsewhere they run in Triton's interpreter, on the CPU, and are compiled ahead of
time for GPUs, which needs none.
"""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are first asked for

from ctdb.recurrent import (  # noqa: E402
    ClippedGRUCell,
    GRUCell,
    Kept,
    LeakyRateCell,
    Linear,
    Noise,
    StateNoise,
    TanhCell,
    eager,
    functions,
)
from ctdb.recurrent import triton_kernels as tk  # noqa: E402
from ctdb.recurrent.backends import weights_of  # noqa: E402
from ctdb.recurrent.functions import ControlledCall, PoissonCall, ScanCall  # noqa: E402
from ctdb.recurrent.torch_kernels import TorchKernels  # noqa: E402

# sigmoid(x) as 1 / (1 + exp(-x)) is right where exp overflows
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

CELLS = {
    "clipped_gru": lambda i, n: ClippedGRUCell(i, n, clip=0.6),  # low, so that it clips some states
    "gru": GRUCell,
    "tanh": TanhCell,
    "leaky_tanh": lambda i, n: LeakyRateCell(i, n, 0.3),
    "relu": lambda i, n: LeakyRateCell(i, n, 0.4, "relu"),
    "softplus": lambda i, n: LeakyRateCell(i, n, 0.4, "softplus"),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def poisoned_memory(request):
    """NaN in all memory that is handed out uninitialised: whatever is read before it is written shows."""
    if DEVICE != "cpu":  # cuBLAS would ask for settings of its own
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


class Draw:
    """Random tensors, all different, the same in every run."""

    def __init__(self, dtype=torch.float32, seed=0):
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(seed)

    def __call__(self, *shape, leaf=True, scale=1.0):
        made = torch.randn(shape, generator=self.generator, dtype=torch.float64).to(DEVICE, self.dtype)
        return (scale * made).requires_grad_(leaf)

    def keep(self, *shape):
        return (torch.rand(shape, generator=self.generator) < 0.7).to(DEVICE, torch.uint8)

    def cell(self, kind, n_inputs, n_states):
        cell = CELLS[kind](n_inputs, n_states).to(DEVICE, self.dtype)
        with torch.no_grad():
            for parameter in cell.parameters():
                scale = 1 if parameter.dim() == 1 else 0.5 * max(parameter.shape[1], 1) ** -0.5
                parameter.copy_(scale * self(*parameter.shape, leaf=False))
        return cell

    def linear(self, n_inputs, n_outputs):
        return Linear(self(n_outputs, n_inputs, scale=0.5 * n_inputs**-0.5), self(n_outputs))


def gradients(made, leaves):
    """Of a weighted sum of all that was made."""
    weigh = Draw(seed=9)
    total = sum((one * weigh(*one.shape, leaf=False)).sum() for one in made if one is not None and one.requires_grad)
    return torch.autograd.grad(total, leaves, allow_unused=True)


def assert_equal(found, expected, tolerance):
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one is None or other is None:
            assert other is None or (other == 0).all(), i  # eager code may not touch what the kernels give 0 for
            assert one is None or (one == 0).all(), i
            continue
        assert one.shape == other.shape, i
        assert one.isfinite().all(), i
        if one.numel():
            assert (one - other).abs().max() <= tolerance * other.abs().max(), i


def by_definition(cell, inputs, start, valid=None, noise=None, readout=None, reverse=False):
    if not reverse:
        return eager.scan(cell, start, inputs, valid, noise, readout)
    flipped = None if valid is None else valid.flip(1)
    made = eager.scan(cell, start, inputs.flip(1), flipped, noise, readout)
    return made._replace(states=made.states.flip(1), outputs=None if made.outputs is None else made.outputs.flip(1))


def check_scan(
    kind, n_trials, n_bins, n, n_inputs, dtype=torch.float32, valid=False, noise=False, readout=False, reverse=False
):
    draw = Draw(dtype)
    cell, inputs, start = draw.cell(kind, n_inputs, n), draw(n_trials, n_bins, n_inputs), draw(n_trials, n)
    more = {"reverse": reverse}
    if valid:
        more["valid"] = draw.keep(n_trials, n_bins) > 0
    if noise:
        trials = torch.arange(n_trials, device=DEVICE)
        more["noise"] = StateNoise(Noise(torch.Generator().manual_seed(3), trials), "states", 0.3)
    if readout:
        more["readout"] = draw.linear(n, 2)
    leaves = [inputs, start, *cell.parameters(), *more.get("readout", ())]
    call = ScanCall(weights_of(cell), inputs, start, **more)
    found = functions.scan(tk.TritonKernels(), call)
    results = [[*found, *gradients(found, leaves)]]
    other_noise = noise and reverse  # eager's is in the order of the steps
    for other in (
        None if other_noise else by_definition(cell, inputs, start, **more),
        functions.scan(TorchKernels(), call),
    ):
        if other is not None:
            results.append([*other, *gradients(other, leaves)])
    for expected in results[1:]:
        assert_equal(results[0], expected, TOLERANCE[dtype])


@needs_triton
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize(
    "sizes",
    [(19, 4, 20, 3), (16, 3, 32, 16), (1, 1, 1, 1), (3, 2, 37, 0), (17, 1, 16, 2)],
    ids=["ragged", "whole tiles", "one of each", "two pieces, no inputs", "one bin"],
)
def test_scan_equals_its_definition(kind, sizes):
    check_scan(kind, *sizes)


@needs_triton
@pytest.mark.parametrize("kind", ["clipped_gru", "gru", "softplus"])
@pytest.mark.parametrize(
    "options",
    [
        "valid",
        "valid reverse",
        "noise",
        "readout reverse",
        "noise readout",
        "valid readout reverse",
        "valid noise readout",
        "valid noise readout reverse",
    ],
)
def test_scan_with_masks_noise_and_readout_equals_its_definition(kind, options):
    check_scan(kind, 18, 4, 18, 3, **dict.fromkeys(options.split(), True))


@needs_triton
@pytest.mark.parametrize("kind", CELLS)
def test_scan_in_double_precision(kind):
    check_scan(kind, 18, 4, 18, 3, torch.float64, valid=True, noise=True, readout=True)


@needs_triton
@pytest.mark.parametrize("which", ["states", "last", "outputs"])
def test_scan_where_one_result_is_used(which):
    draw = Draw()
    cell, inputs, start, readout = draw.cell("clipped_gru", 3, 20), draw(5, 3, 3), draw(5, 20), draw.linear(20, 2)
    leaves = [inputs, start, *cell.parameters(), *readout]
    made = functions.scan(tk.TritonKernels(), ScanCall(weights_of(cell), inputs, start, readout=readout))
    expected = eager.scan(cell, start, inputs, readout=readout)
    pairs = [gradients([getattr(one, which)], leaves) for one in (made, expected)]
    assert_equal(*pairs, 1e-5)


@needs_triton
@pytest.mark.parametrize("kind", ["clipped_gru", "gru", "relu"])
def test_scan_that_keeps_nothing_gives_the_same(kind):
    draw = Draw()
    cell, inputs, start = draw.cell(kind, 3, 20), draw(18, 4, 3), draw(18, 20)
    call = ScanCall(weights_of(cell), inputs, start)
    made, kept = tk.TritonKernels().scan(replace(call, keeps=False, states=False))
    expected, _ = tk.TritonKernels().scan(call)
    assert kept is None
    assert made.states is None
    assert torch.equal(made.last, expected.last)


@needs_triton
@pytest.mark.parametrize("kind", CELLS)
def test_a_trial_that_is_not_a_number_stays_so_and_alone(kind):
    draw = Draw()
    cell, inputs, start = draw.cell(kind, 3, 20), draw(18, 4, 3, leaf=False), draw(18, 20, leaf=False)
    call = ScanCall(weights_of(cell), inputs, start)
    expected, _ = tk.TritonKernels().scan(call)
    broken = inputs.clone()
    broken[4, 1] = torch.nan
    made, _ = tk.TritonKernels().scan(replace(call, inputs=broken))
    assert made.states[4, 1:].isnan().all()
    others = torch.arange(18, device=DEVICE) != 4
    assert torch.equal(made.states[others], expected.states[others])
    assert torch.equal(made.states[4, 0], expected.states[4, 0])


@needs_triton
def test_what_the_caller_changes_does_not_change_the_way_back():
    draw = Draw()
    cell, inputs, start = draw.cell("clipped_gru", 3, 20), draw(5, 3, 3), draw(5, 20)
    call = ScanCall(weights_of(cell), inputs, start)
    grads = eager.Scanned(draw(5, 3, 20, leaf=False), None, None)
    found = []
    for changes in (False, True):
        made, kept = tk.TritonKernels().scan(call)
        if changes:
            made.states.zero_()
            made.last.zero_()
        found.append(tk.TritonKernels().scan_backward(call, kept, grads, True))
    for name in ("start", "inputs"):
        assert torch.equal(found[0][name], found[1][name])


class Controlled:
    """A controlled scan, with everything that it can have unless told otherwise."""

    def __init__(self, sizes, kinds=("clipped_gru", "clipped_gru"), dtype=torch.float32, seed=0, **without):
        self.n_trials, n_bins, n_gen, n_con, n_factors, n_co, n_ci, n_ext = sizes
        draw = Draw(dtype, seed)
        self.controlled = without.get("controller", True)
        n_inputs = n_ext + (n_co if self.controlled else 0)
        self.generator = draw.cell(kinds[0], n_inputs, n_gen)
        self.controller = draw.cell(kinds[1], n_ci + n_factors, n_con) if self.controlled else None
        each = self.n_trials, n_bins
        self.to_factors, self.state = draw(n_factors, n_gen, scale=0.5 * n_gen**-0.5), draw(self.n_trials, n_gen)
        self.ext_input, self.ci = draw(*each, n_ext), draw(*each, n_ci)
        self.to_co, self.con_state = draw.linear(n_con, 2 * n_co), draw(self.n_trials, n_con)
        self.co_noise = draw(*each, n_co, leaf=False) if without.get("noise", True) else None
        self.control = draw(n_bins, leaf=False) if without.get("control", True) else None
        masks = (
            draw.keep(self.n_trials, n_gen),
            draw.keep(*each, n_ci),
            draw.keep(*each, n_factors),
            draw.keep(*each, n_gen),
        )
        self.kept = {
            "all": Kept(*masks, 1 / 0.7),
            "states": Kept(None, None, None, masks[3], 1 / 0.7),
            "none": None,
        }[without.get("kept", "all")]

    @property
    def leaves(self):
        made = [self.state, self.ext_input, self.to_factors, *self.generator.parameters()]
        if self.controlled:
            made += [self.con_state, self.ci, *self.controller.parameters(), *self.to_co]
        return [one for one in made if one.numel()]

    def by_definition(self):
        return eager.controlled_scan(
            self.generator,
            self.controller,
            self.to_factors,
            self.state,
            self.ext_input,
            self.to_co,
            self.con_state,
            self.ci,
            self.kept,
            self.co_noise,
            self.control,
        )

    @property
    def call(self):
        return ControlledCall(
            weights_of(self.generator),
            weights_of(self.controller) if self.controlled else None,
            self.to_factors,
            self.state,
            self.ext_input,
            self.to_co,
            self.con_state,
            self.ci if self.controlled else None,
            self.kept,
            self.co_noise,
            self.control,
        )


def check_controlled(case, dtype=torch.float32):
    found = functions.controlled_scan(tk.TritonKernels(), case.call)
    results = [*found, *gradients(found, case.leaves)]
    for expected in (case.by_definition(), functions.controlled_scan(TorchKernels(), case.call)):
        assert_equal(results, [*expected, *gradients(expected, case.leaves)], TOLERANCE[dtype])


SMALL = (18, 3, 20, 18, 5, 2, 7, 3)


@needs_triton
@pytest.mark.parametrize(
    "sizes",
    [SMALL, (1, 1, 1, 1, 1, 1, 1, 0), (16, 3, 32, 16, 16, 16, 16, 16), (3, 2, 37, 35, 21, 3, 1, 0)],
    ids=["ragged", "one of each", "whole tiles", "two pieces, no external input"],
)
def test_controlled_scan_equals_its_definition(sizes):
    check_controlled(Controlled(sizes))


@needs_triton
@pytest.mark.parametrize("kinds", [("gru", "gru"), ("leaky_tanh", "clipped_gru"), ("clipped_gru", "softplus")])
def test_controlled_scan_of_other_cells_equals_its_definition(kinds):
    check_controlled(Controlled(SMALL, kinds))


@needs_triton
@pytest.mark.parametrize(
    "without",
    [
        {"kept": "none"},
        {"kept": "states"},
        {"noise": False},
        {"control": False},
        {"kept": "none", "noise": False, "control": False},
    ],
    ids=str,
)
def test_controlled_scan_with_less_equals_its_definition(without):
    check_controlled(Controlled(SMALL, **without))


@needs_triton
@pytest.mark.parametrize("kind", ["clipped_gru", "gru", "relu"])
@pytest.mark.parametrize("kept", ["none", "states"])
def test_generator_alone_equals_its_definition(kind, kept):
    check_controlled(Controlled(SMALL, (kind, kind), controller=False, kept=kept))


@needs_triton
def test_controlled_scan_in_double_precision():
    check_controlled(Controlled(SMALL, dtype=torch.float64), torch.float64)
    check_controlled(Controlled(SMALL, ("gru", "softplus"), dtype=torch.float64), torch.float64)


@needs_triton
@pytest.mark.parametrize("which", range(6), ids=eager.Generated._fields)
def test_controlled_scan_where_one_result_is_used(which):
    case = Controlled(SMALL)
    made = functions.controlled_scan(tk.TritonKernels(), case.call)
    pairs = [gradients([one[which]], case.leaves) for one in (made, case.by_definition())]
    assert_equal(*pairs, 1e-5)


@needs_triton
def test_controlled_scan_that_keeps_nothing_gives_the_same():
    case = Controlled(SMALL)
    made, kept = tk.TritonKernels().controlled(replace(case.call, keeps=False, states=False))
    expected, _ = tk.TritonKernels().controlled(case.call)
    assert kept is None
    assert made.gen_states is None
    for name in ("factors", "co_means", "co_stds"):
        assert torch.equal(getattr(made, name), getattr(expected, name))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_poisson_equals_its_definition(dtype, wide, learned):
    draw = Draw(dtype)
    factors, readout = draw(5, 3, 4), draw.linear(4, 6)
    counts = torch.arange(5 * 3 * 6, device=DEVICE).remainder(7).view(5, 3, 6).to(torch.uint8)
    weight, mask = draw(5, 3, 6 if wide else 1, leaf=False).abs(), draw.keep(5, 3, 6) if learned else None
    leaves = [factors, *readout]
    found = functions.poisson_nll(tk.TritonKernels(), PoissonCall(factors, readout, counts, weight, mask))
    expected = eager.poisson_nll(factors, readout, counts, weight, mask)
    assert_equal([found, *gradients([found], leaves)], [expected, *gradients([expected], leaves)], TOLERANCE[dtype])
    alone, none = tk.TritonKernels().poisson(PoissonCall(factors, readout, counts, weight, mask, keeps=False))
    assert none == [None] * 3
    assert torch.equal(alone, found)


@needs_triton
def test_rates_beyond_all_numbers_change_nothing_where_nothing_weighs():
    draw = Draw(torch.float32)
    factors, readout, weight = draw(5, 3, 4), draw.linear(4, 6), torch.ones(5, 3, 1, device=DEVICE)
    weight[:, 2] = 0
    found = []
    for scale in (1.0, 1e6):
        with torch.no_grad():
            factors[:, 2] *= scale
        sums, grads = tk.TritonKernels().poisson(
            PoissonCall(factors, readout, torch.ones(5, 3, 6, device=DEVICE), weight, None)
        )
        found.append([sums, *grads])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def side_by_side(values):
    """The same calls, or results, of several models as one with a leading axis."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.stack([value.detach() for value in values])
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*[side_by_side(column) for column in zip(*values, strict=True)])
    if isinstance(first, ScanCall | ControlledCall | PoissonCall):
        fields = {name: [getattr(value, name) for value in values] for name in vars(first)}
        kind = {ScanCall: tk.ScanCalls, ControlledCall: tk.ControlledCalls, PoissonCall: tk.PoissonCalls}[type(first)]
        return kind(**{name: side_by_side(column) for name, column in fields.items()})
    if isinstance(first, dict):
        return {name: side_by_side([value[name] for value in values]) for name in first}
    if isinstance(first, list):
        return [side_by_side(column) for column in zip(*values, strict=True)]
    return first


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def assert_models_agree(together, apart):
    """To rounding: torch's products of several models may add in another order than those of one."""
    found, expected = tensors(together), tensors(side_by_side(apart))
    assert len(found) == len(expected) > 0
    assert_equal(found, expected, 1e-6)


@needs_triton
@pytest.mark.parametrize("kind", ["clipped_gru", "gru", "softplus"])
def test_models_scanned_side_by_side_equal_those_scanned_alone(kind):
    kernels, calls, kicks, apart, back, grads = tk.TritonKernels(), [], [], [], [], []
    for model in range(3):
        draw = Draw(seed=model)
        noise = StateNoise(Noise(torch.Generator().manual_seed(model), torch.arange(19, device=DEVICE)), "states", 0.3)
        valid, readout = draw.keep(19, 4) > 0, draw.linear(18, 2)
        calls.append(
            ScanCall(weights_of(draw.cell(kind, 3, 18)), draw(19, 4, 3), draw(19, 18), valid, noise, readout, model > 3)
        )
        kicks.append(noise.tensor(4, 18, calls[-1].start))
        made, kept = kernels.scan(calls[-1])
        grads.append(eager.Scanned(*[draw(*one.shape, leaf=False) for one in made]))
        apart.append(made)
        back.append(kernels.scan_backward(calls[-1], kept, grads[-1], True))
    together = side_by_side(calls)
    made, kept = tk.scan_forward(together, torch.stack(kicks))
    assert made.states.shape == (3, 19, 4, 18)
    assert_models_agree(made, apart)
    assert_models_agree(tk.scan_backward(together, kept, side_by_side(grads), True), back)


@needs_triton
@pytest.mark.parametrize("controller", [False, True])
def test_controlled_models_side_by_side_equal_those_run_alone(controller):
    kernels, calls, apart, back, grads = tk.TritonKernels(), [], [], [], []
    wants = {"ci", "ext_input"} if controller else {"ext_input"}
    for model in range(3):
        kept = "all" if controller else "states"
        calls.append(Controlled(SMALL, seed=model, controller=controller, kept=kept).call)
        drop = calls[-1].kept._replace(scale=1 + model / 2)  # a rate of dropout for each model
        calls[-1] = replace(calls[-1], kept=drop)
        made, kept = kernels.controlled(calls[-1])
        grads.append(eager.Generated(*[Draw(seed=10 + model)(*one.shape, leaf=False) for one in made]))
        apart.append(made)
        back.append(kernels.controlled_backward(calls[-1], kept, grads[-1], wants))
    together = side_by_side(calls)
    scales = torch.tensor([1.0, 1.5, 2.0], device=DEVICE)
    together = replace(together, kept=together.kept._replace(scale=scales))
    made, kept = tk.controlled_forward(together)
    assert_models_agree(made, apart)
    assert_models_agree(tk.controlled_backward(together, kept, side_by_side(grads), wants), back)


@needs_triton
def test_poisson_of_models_side_by_side_equals_that_of_each():
    calls = []
    for model in range(3):
        draw = Draw(seed=model)
        counts = draw(5, 3, 6, leaf=False).abs().round()
        calls.append(
            PoissonCall(draw(5, 3, 4), draw.linear(4, 6), counts, draw(5, 3, 1, leaf=False), draw.keep(5, 3, 6))
        )
    apart = [tk.TritonKernels().poisson(call) for call in calls]
    total, grads = tk.poisson(side_by_side(calls))
    assert_models_agree([total, *grads], [[one, *others] for one, others in apart])


@needs_triton
def test_models_may_share_data():
    draw = Draw()
    cells = [weights_of(draw.cell("gru", 3, 18)) for _ in range(2)]
    inputs, start = draw(5, 3, 3, leaf=False), draw(5, 18, leaf=False)
    shared = tk.ScanCalls(side_by_side(cells), inputs.expand(2, -1, -1, -1), start.expand(2, -1, -1))
    made, _ = tk.scan_forward(shared)
    apart = [tk.TritonKernels().scan(ScanCall(cell, inputs, start))[0] for cell in cells]
    assert_models_agree([made.states, made.last], [[one.states, one.last] for one in apart])


# --------------------------------------------------------------------------------------------- without a GPU, without Triton


def run(script, **environment):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_triton_the_module_can_be_imported_and_says_what_is_missing():
    script = """
import sys
sys.modules["triton"] = None
from ctdb.recurrent import triton_kernels as tk
print(tk.available(), tk.why_not())
try:
    tk.TritonKernels()
except ImportError as error:
    print(error)
"""
    first, second = run(script).splitlines()
    assert first.startswith("False the GPU kernels need Triton")
    assert second.startswith("the GPU kernels need Triton")


def test_importing_the_module_does_not_import_triton():
    script = "import sys; from ctdb.recurrent import triton_kernels; print('triton' in sys.modules)"
    assert run(script).strip() == "False"


@needs_triton
@pytest.mark.skipif(DEVICE == "cuda", reason="torch finds a GPU")
def test_kernels_refuse_tensors_on_the_cpu_outside_the_interpreter():
    script = """
import torch
from ctdb.recurrent import triton_kernels as tk
from ctdb.recurrent.functions import CellWeights, ScanCall
print(tk.available(), tk.why_not())
cell = CellWeights("rate", torch.ones(2, 1), torch.ones(2, 2), torch.ones(2))
try:
    tk.TritonKernels().scan(ScanCall(cell, torch.ones(1, 1, 1), torch.ones(1, 2)))
except ValueError as error:
    print(error)
"""
    assert run(script).splitlines() == [
        "False torch finds no GPU",
        "the GPU kernels need tensors on a GPU, not on cpu",
    ]


COMPILE = r'''
"""Compile what would be launched, with Triton's compiler and ptxas; tensors have shapes and types, and no values."""
import json, pathlib, re, subprocess, sys, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ctdb.recurrent import triton_kernels as tk
from ctdb.recurrent.eager import Generated, Kept, Linear, Scanned
from ctdb.recurrent.functions import CellWeights

CUOBJDUMP = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.uint8: "*u8"}
found = []

class Compiled:
    def __init__(self, kernel, title, capability):
        self.kernel, self.title, self.capability = kernel, title, capability

    def __getitem__(self, grid):
        return self.compile

    def compile(self, num_warps, num_stages, **given):
        signature, constants, attributes = {}, {}, {}
        for i, name in enumerate(self.kernel.arg_names):
            value = given.pop(name)
            if isinstance(value, torch.Tensor):
                assert value.is_contiguous()
                signature[name], attributes[i,] = TYPES[value.dtype], [["tt.divisibility", 16]]
            elif self.kernel.params[i].is_constexpr or value is None:
                signature[name], constants[name] = "constexpr", value
            else:
                signature[name] = "i32"
        assert not given
        source = ASTSource(self.kernel, signature, constants, attributes)
        options = {"num_warps": num_warps, "num_stages": num_stages}
        made = triton.compile(source, target=GPUTarget("cuda", self.capability, 32), options=options)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "kernel.cubin")
            path.write_bytes(made.asm["cubin"])
            told = subprocess.run([CUOBJDUMP, "-res-usage", path], capture_output=True, text=True, check=True).stdout
        found.append({
            "kernel": self.kernel.__name__, "title": self.title, "capability": self.capability, "warps": num_warps,
            "shared": made.metadata.shared, "registers": int(re.search(r"REG:(\d+)", told)[1]),
            "stack": int(re.search(r"STACK:(\d+)", told)[1]),
            "barriers": made.asm["ttgir"].count("ttg.barrier all"), "unordered": made.asm["ptx"].count("ld.global.nc"),
        })

def each(*shape, dtype=torch.float32):
    return torch.empty(1, *shape, device="meta", dtype=dtype)

def cell(kind, n_inputs, n, dtype, **more):
    gates = 1 if kind == "rate" else 3
    rec = None if kind == "clipped_gru" else each(gates * n, dtype=dtype)
    weights = each(gates * n, n_inputs, dtype=dtype), each(gates * n, n, dtype=dtype), each(gates * n, dtype=dtype)
    return CellWeights(kind, *weights, rec, **more)

def scan(kind, n, full, dtype=torch.float32, reverse=False, **more):
    b, t = 256, 45
    call = tk.ScanCalls(cell(kind, 3, n, dtype, **more), each(b, t, 3, dtype=dtype), each(b, n, dtype=dtype), reverse=reverse)
    kicks, outputs = None, None
    if full:
        readout = Linear(each(2, n, dtype=dtype), each(2, dtype=dtype))
        call = tk.ScanCalls(call.cell, call.inputs, call.start, each(b, t, dtype=torch.bool), None, readout, reverse)
        kicks, outputs = each(b, t, n, dtype=dtype), each(b, t, 2, dtype=dtype)
    _, kept = tk.scan_forward(call, kicks)
    states = each(b, t, n, dtype=dtype) if full else None
    tk.scan_backward(call, kept, Scanned(states, each(b, n, dtype=dtype), outputs), True)

def controlled(n, n_con, n_factors, full, kinds=("clipped_gru", "clipped_gru"), n_co=4, n_ci=128, n_ext=0, keeps=True):
    b, t, f = 256, 45, torch.float32
    gen, con = cell(kinds[0], n_co + n_ext, n, f, clip=5.0), cell(kinds[1], n_ci + n_factors, n_con, f, clip=5.0)
    byte = torch.uint8
    kept = Kept(*[each(b, *s, dtype=byte) for s in ((n,), (t, n_ci), (t, n_factors), (t, n))], 1.4) if full else None
    call = tk.ControlledCalls(
        gen, con, each(n_factors, n), each(b, n), each(b, t, n_ext), Linear(each(2 * n_co, n_con), each(2 * n_co)),
        each(b, n_con), each(b, t, n_ci), kept, each(b, t, n_co) if full else None, each(t) if full else None, keeps,
    )
    made, left = tk.controlled_forward(call)
    if keeps:
        none = Generated(None, made.factors, None, None, None, None)
        tk.controlled_backward(call, left, made if full else none, {"ci", "ext_input"})

tk._load()
tk.interpreting = lambda: True  # or the tensors would have to be on a GPU
kernels = {name: getattr(tk, name) for name in dir(tk) if name.endswith(("_forward", "_backward")) and name[0] == "_"}
kernels = {name: kernel for name, kernel in kernels.items() if isinstance(kernel, triton.JITFunction)}
for capability, title, run in [(c, title, run) for title, run, capabilities in JOBS for c in capabilities]:
    for name, kernel in kernels.items():
        setattr(tk, name, Compiled(kernel, title, capability))
    run()
print(json.dumps(found))
'''

JOBS = """
JOBS = [
    ("LFADS", lambda: controlled(200, 64, 100, True), (80, 90)),
    ("least", lambda: controlled(20, 16, 10, False), (90,)),
    ("sampling", lambda: controlled(20, 16, 10, True, keeps=False), (90,)),
    ("other cells", lambda: controlled(20, 16, 10, True, ("gru", "rate"), n_ext=3), (90,)),
    ("encoder", lambda: scan("clipped_gru", 64, True, reverse=True, clip=5.0), (90,)),
    ("no clip", lambda: scan("clipped_gru", 100, False), (90,)),
    ("largest", lambda: scan("clipped_gru", 256, True, clip=5.0), (80, 90)),
    ("largest GRU", lambda: scan("gru", 256, True), (80, 90)),
    ("GRU", lambda: scan("gru", 128, False, reverse=True), (90,)),
    ("tanh", lambda: scan("rate", 64, False), (90,)),
    ("relu", lambda: scan("rate", 50, True, leak=0.2, activation="relu"), (90,)),
    ("softplus", lambda: scan("rate", 256, True, leak=0.2, activation="softplus"), (90,)),
    ("double", lambda: scan("clipped_gru", 20, True, torch.float64, clip=5.0), (90,)),
]
"""


@needs_triton
def test_kernels_compile_for_gpus_and_fit(tmp_path):
    found = json.loads(run(JOBS + COMPILE, TRITON_CACHE_DIR=str(tmp_path)).splitlines()[-1])
    assert {one["kernel"] for one in found} == {
        "_scan_forward",
        "_scan_backward",
        "_controlled_forward",
        "_controlled_backward",
    }
    for one in found:
        print(one)  # pytest shows it with -s
        assert one["shared"] <= 99 * 1024, one  # what any GPU of capability 8.0 or higher has
        assert one["stack"] <= 512, one  # bytes of each thread that do not fit its registers
        assert one["unordered"] == 0, one  # such loads may miss what the program itself has written
    kept = {(one["kernel"], one["title"]): one["barriers"] for one in found}
    assert kept["_scan_forward", "largest"] == 2  # for the reset state, and for the state
    assert kept["_scan_backward", "largest"] == 2
    assert kept["_controlled_forward", "LFADS"] == 6  # two more, for the inferred inputs and for the factors
    assert kept["_controlled_backward", "LFADS"] == 6
