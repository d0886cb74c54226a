"""Every backend against the readable definition: values, gradients, bytes, failures and memory."""

import itertools
import subprocess
import sys
import threading
import warnings
import zlib
from functools import cache
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import torch

from ctdb.errors import ConfigError
from ctdb.recurrent import (
    ClippedGRUCell,
    EulerMLPCell,
    GRUCell,
    Kept,
    LeakyRateCell,
    Linear,
    LinearCell,
    Noise,
    StateNoise,
    TanhCell,
    backends,
    choose,
    controlled_scan,
    cpu,
    eager,
    initialise,
    masked,
    noisy_scan,
    poisson_nll,
    scan,
    use_backend,
)
from ctdb.recurrent.backends import _scan, scan_both_ways, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")  # the work is small, and the tests that want more set more

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
CLIP = 0.35  # low, so that it acts on some states and not on others

CELLS = {
    "clipped": lambda i, n: ClippedGRUCell(i, n, clip=CLIP),
    "gru": GRUCell,
    "tanh": TanhCell,
    "leaky_tanh": lambda i, n: LeakyRateCell(i, n, 0.3),
    "leaky_relu": lambda i, n: LeakyRateCell(i, n, 0.2, "relu"),
    "leaky_softplus": lambda i, n: LeakyRateCell(i, n, 0.15, "softplus"),
    "relu": lambda i, n: LeakyRateCell(i, n, 1.0, "relu"),
    "softplus": lambda i, n: LeakyRateCell(i, n, 1.0, "softplus"),
}


@pytest.fixture(params=["torch", "cpu"])
def backend(request):
    if request.param == "cpu" and (why := cpu.why_not()):
        pytest.skip(why)
    return request.param


@pytest.fixture(params=[torch.float64, torch.float32], ids=["double", "single"])
def dtype(request):
    return request.param


@pytest.fixture
def compiled():
    if why := cpu.why_not():
        pytest.skip(why)


@pytest.fixture
def threads():
    """Sets the number of threads; the test's end restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class Draw:
    """Random tensors that single precision holds exactly, so that both precisions start from the same numbers."""

    def __init__(self, name, dtype=torch.float64):
        self.generator, self.dtype = torch.Generator().manual_seed(zlib.crc32(repr(name).encode())), dtype

    def normal(self, *shape, scale=1.0):
        return (scale * torch.randn(shape, generator=self.generator)).to(self.dtype)

    def bits(self, *shape, share=0.7):
        return (torch.rand(*shape, generator=self.generator) < share).to(torch.uint8)

    def bits_or_none(self, wanted, *shape):
        return self.bits(*shape) if wanted else None

    def cell(self, kind, n_inputs, n_states):
        cell = CELLS[kind](n_inputs, n_states)
        initialise(cell, self.generator)
        with torch.no_grad():  # offsets that start equal would not show if they were exchanged
            for name, value in cell.named_parameters():
                if "bias" in name:
                    value += 0.3 * torch.randn(value.shape, generator=self.generator)
        return cell.to(self.dtype)


def wants(*tensors):
    """Leaves that want a gradient."""
    return [tensor.clone().requires_grad_() for tensor in tensors]


def gradients(outputs, leaves, draw):
    """Gradients of a random weighted sum of the outputs that are there, by the leaves' names."""
    loss = sum((value * (1 + draw.normal(*value.shape))).sum() for value in outputs.values() if value is not None)
    found = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True)
    return {f"d_{name}": value for name, value in zip(leaves, found, strict=True)}


def values(outputs):
    return {name: None if value is None else value.detach() for name, value in outputs.items()}


def assert_close(found, expected, tolerance):
    """Equal up to a share of the largest value, tensor by tensor."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None or found[name] is None:
            assert value is found[name], name
            continue
        assert found[name].shape == value.shape, name
        if value.numel():
            error = (found[name].double() - value.double()).abs().max() / value.double().abs().max().clamp(min=1e-30)
            assert error < tolerance, f"{name}: {error:.1e}"


def assert_same(found, expected):
    """Equal to the last bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# ------------------------------------------------------------------------------------------------------------ plain scans


class ScanCase(NamedTuple):
    kind: str
    mode: str
    trials: int = 5
    bins: int = 7
    inputs: tuple[int, str] = (3, "dense")
    states: int = 17


MODES = ("plain", "reverse", "valid", "valid reverse", "noise readout", "valid noise readout")
INPUTS = [
    (0, "dense"),
    (1, "dense"),
    (3, "dense"),
    (20, "zero"),
    (20, "few"),
    (20, "dense"),
    (20, "mixed"),
    (37, "mixed"),
]


def _covering():
    """Each kind of cell in each mode, at sizes dealt out like cards."""
    pairs = list(itertools.product(CELLS, MODES))
    columns = []
    for number, sizes in enumerate(
        (
            (1, 7, 31, 32, 33, 65, 128, 129, 200, 500),
            (1, 2, 7, 9, 70),
            range(len(INPUTS)),
            (1, 15, 16, 17, 33, 64, 100),
        )
    ):
        cards = np.resize(sizes, len(pairs))
        columns.append(np.random.default_rng(number).permutation(cards).tolist())
    return [ScanCase(*pair, b, t, INPUTS[i], n) for pair, b, t, i, n in zip(pairs, *columns, strict=True)]


SCANS = [
    *_covering(),
    # several chunks of deferred weight gradients and a ragged last one, by the number of rows of a block
    ScanCase("clipped", "valid noise readout", 1, 70, (3, "dense"), 5),
    ScanCase("gru", "valid", 12, 70, (20, "mixed"), 17),
    ScanCase("clipped", "plain", 33, 70, (20, "mixed"), 16),
    ScanCase("leaky_relu", "reverse", 129, 9, (20, "mixed"), 15),
    ScanCase("gru", "noise readout", 200, 7, (37, "mixed"), 33),
    ScanCase("tanh", "plain", 500, 2, (20, "few"), 100),
    ScanCase("gru", "plain", 1, 1, (1, "dense"), 1),
    ScanCase("clipped", "plain", 1, 1, (0, "dense"), 1),
    ScanCase("leaky_tanh", "noise readout", 1, 1, (0, "dense"), 1),
]


def drawn_inputs(draw, trials, bins, width, fill):
    made = draw.normal(trials, bins, width)
    if fill in ("few", "mixed"):
        few = draw.bits(trials, bins, width, share=0.05)
        if fill == "mixed":  # by blocks of trials too
            few |= draw.bits(-(-trials // 16), bins, 1, share=0.4).repeat_interleave(16, 0)[:trials]
        made = made * few
    return made * 0 if fill == "zero" else made


def scan_arguments(case, dtype):
    draw = Draw(case, dtype)
    (width, fill), trials = case.inputs, case.trials
    cell = draw.cell(case.kind, width, case.states)
    inputs, start = wants(
        drawn_inputs(draw, trials, case.bins, width, fill), draw.normal(trials, case.states, scale=0.3)
    )
    weight, bias = wants(draw.normal(3, case.states), draw.normal(3))
    valid = draw.bits(trials, case.bins).bool()
    valid[trials // 2] = trials > 1
    valid[trials - 1] = False
    noise = StateNoise(Noise(torch.Generator().manual_seed(5), torch.arange(trials) * 3), "state", 0.1)
    more = {}
    if "valid" in case.mode:
        more["valid"] = valid
    if "noise" in case.mode:
        more["noise"] = noise
    if "readout" in case.mode:
        more["readout"] = Linear(weight, bias)
    if "reverse" in case.mode:
        more["reverse"] = True
    leaves = {"inputs": inputs, "start": start, **dict(cell.named_parameters())}
    if "readout" in case.mode:
        leaves |= {"weight": weight, "bias": bias}
    return cell, start, inputs, more, leaves, draw


def scan_result(backend, case, dtype):
    cell, start, inputs, more, leaves, draw = scan_arguments(case, dtype)
    with use_backend(backend):
        outputs = _scan(cell, start, inputs, **more)._asdict()
    return values(outputs) | gradients(outputs, leaves, draw)


@cache
def scan_reference(case):
    return scan_result("eager", case, torch.float64)


def identity(case):
    return "-".join(str(part).replace(" ", "_") for part in case)


@pytest.mark.parametrize("case", SCANS, ids=identity)
def test_scan_equals_the_definition(backend, dtype, case):
    assert_close(scan_result(backend, case, dtype), scan_reference(case), TOLERANCE[dtype])


def test_the_clip_and_the_masks_of_these_cases_act():
    case = ScanCase("clipped", "valid", 33, 9, (3, "dense"), 17)
    clipped = scan_reference(case)["states"].abs() == CLIP
    assert 0.02 < clipped.double().mean() < 0.98
    _, start, _, more, _, _ = scan_arguments(case, torch.float64)
    assert torch.equal(scan_reference(case)["states"][-1], start[-1].expand(9, -1))
    assert not more["valid"][-1].any()


def test_a_wide_sparse_bin_beside_dense_ones_in_every_order(backend, dtype):
    """Chunks that are all sparse, all dense, and begin or end with either; rows 32, so 8 bins a chunk."""
    patterns = ("SSSSSSSSDDDDDDDD", "DDDDDDDDSSSSSSSS", "SDSDSDSDDDSSDDSS", "DSSSSSSSSSSSSSSD", "SSSSSSSDDSSSSSSSSD")
    for pattern in patterns:

        def result(backend, dtype, pattern=pattern):
            draw = Draw(pattern, dtype)
            cell = draw.cell("gru", 24, 9)
            data = draw.normal(32, len(pattern), 24)
            few = torch.tensor([one == "S" for one in pattern])[None, :, None]
            inputs, start = wants(torch.where(few, data * draw.bits(*data.shape, share=0.06), data), draw.normal(32, 9))
            with use_backend(backend):
                outputs = _scan(cell, start, inputs)._asdict()
            leaves = {"inputs": inputs, "start": start, **dict(cell.named_parameters())}
            return values(outputs) | gradients(outputs, leaves, draw)

        assert_close(result(backend, dtype), result("eager", torch.float64), TOLERANCE[dtype])


def test_sparse_inputs_without_a_gradient_of_their_own(backend, dtype):
    """As in training on spike counts."""

    def result(backend, dtype):
        draw = Draw("counts", dtype)
        cell = draw.cell("clipped", 50, 20)
        rates = 0.3 * torch.rand(40, 11, 50, generator=draw.generator)
        counts = torch.poisson(rates, generator=draw.generator).to(dtype)
        with use_backend(backend):
            outputs = _scan(cell, draw.normal(40, 20), counts)._asdict()
        return values(outputs) | gradients(outputs, dict(cell.named_parameters()), draw)

    assert_close(result(backend, dtype), result("eager", torch.float64), TOLERANCE[dtype])


@pytest.mark.parametrize("only", ["states", "last", "outputs"])
@pytest.mark.parametrize("mode", ["noise readout", "valid noise readout"])
@pytest.mark.parametrize("kind", ["clipped", "gru", "leaky_relu", "relu"])
def test_gradient_of_one_output_alone(backend, dtype, kind, mode, only):
    case = ScanCase(kind, mode, 9, 40, (3, "dense"), 5)

    def result(backend, dtype):
        cell, start, inputs, more, leaves, draw = scan_arguments(case, dtype)
        with use_backend(backend):
            made = _scan(cell, start, inputs, **more)
        found = gradients({only: getattr(made, only)}, leaves, draw)
        # a readout that the loss does not see may have the gradient None, or 0
        return {name: torch.zeros_like(leaves[name[2:]]) if value is None else value for name, value in found.items()}

    assert_close(result(backend, dtype), result("eager", torch.float64), TOLERANCE[dtype])


@pytest.mark.parametrize("free", ["inputs", "start", "weight_ih", "weight_hh", "bias", "none"])
@pytest.mark.parametrize("kind", ["clipped", "gru", "leaky_tanh"])
def test_frozen_tensors_get_no_gradient_and_the_others_theirs(backend, kind, free):
    draw = Draw((kind, free))
    cell = draw.cell(kind, 3, 17)
    inputs, start = wants(draw.normal(6, 9, 3), draw.normal(6, 17, scale=0.3))
    leaves = {"inputs": inputs, "start": start, **dict(cell.named_parameters())}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name == free or (free == "bias" and name in ("bias", "bias_hh")))
    found = {}
    for which in ("eager", backend):
        with use_backend(which):
            states = scan(cell, start, inputs)
        assert states.requires_grad == (free != "none")
        if free == "none":
            return
        for leaf in leaves.values():
            leaf.grad = None
        (states**2).sum().backward()
        found[which] = {name: None if leaf.grad is None else leaf.grad.clone() for name, leaf in leaves.items()}
    assert_close(found[backend], found["eager"], 1e-12)


def test_non_contiguous_inputs_and_expanded_states(backend, dtype):
    draw = Draw("views", dtype)
    cell = draw.cell("gru", 3, 9)
    base, single, row = wants(draw.normal(14, 3, 12), draw.normal(9), draw.normal(3))
    valid = draw.bits(7, 6).bool().T  # (6, 7)
    found = {}
    for which in ("eager", backend):
        with use_backend(which):
            made = [
                scan(cell, single.expand(6, -1), base.permute(2, 0, 1)[::2, ::2], valid=valid),
                scan(cell, single.expand(6, -1), row.expand(6, 7, 3)),
                _scan(cell, single.expand(6, -1), base.permute(2, 0, 1)[1::2, 1::2], reverse=True).states,
            ]
        weights = Draw("cotangent", dtype).normal(9, 7, 6).permute(2, 1, 0)  # not contiguous either
        loss = sum((one * weights).sum() for one in made)
        leaves = {"base": base, "single": single, "row": row, **dict(cell.named_parameters())}
        grads = torch.autograd.grad(loss, [*leaves.values()])
        found[which] = dict(enumerate(made)) | dict(zip(leaves, grads, strict=True))
    assert_close(found[backend], found["eager"], max(TOLERANCE[dtype], 1e-12))


def test_inputs_of_another_precision_are_taken(backend):
    draw = Draw("mixed precision")
    cell, start = draw.cell("gru", 3, 5), draw.normal(4, 5)
    inputs = draw.normal(4, 6, 3)
    with use_backend(backend):
        assert torch.equal(scan(cell, start, inputs.float()), scan(cell, start, inputs))


def test_backward_twice(backend):
    case = ScanCase("clipped", "valid noise readout", 33, 9, (20, "mixed"), 17)
    cell, start, inputs, more, leaves, _ = scan_arguments(case, torch.float64)
    with use_backend(backend):
        made = _scan(cell, start, inputs, **more)
    loss = (made.states**2).sum() + (made.outputs**2).sum()
    first = torch.autograd.grad(loss, [*leaves.values()], retain_graph=True)
    second = torch.autograd.grad(loss, [*leaves.values()])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, [*leaves.values()])


def test_two_passes_alive_at_once_keep_their_own_memory(backend):
    """What is kept for the way back is memory that is used again."""
    cases = [ScanCase("gru", "plain", trials, 9, (3, "dense"), 17) for trials in (6, 7, 8, 6, 6, 6, 6)]
    made = []
    with use_backend(backend):
        for _ in range(2):  # the second round meets the memory of the first
            made = [(arguments := scan_arguments(case, torch.float64), _scan(*arguments[:3])) for case in cases]
    found = [gradients(out._asdict(), arguments[4], arguments[5]) for arguments, out in reversed(made)]
    for case, one in zip(reversed(cases), found, strict=True):
        assert_close(one, {name: scan_reference(case)[name] for name in one}, 1e-12)


def test_weights_changed_before_the_way_back_are_noticed(backend):
    draw = Draw("changed")
    cell = draw.cell("gru", 3, 5)
    with use_backend(backend):
        states = scan(cell, draw.normal(4, 5), draw.normal(4, 6, 3))
    with torch.no_grad():
        cell.weight_hh += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        states.sum().backward()


def test_a_second_derivative_is_refused_or_right(backend):
    draw = Draw("twice")
    cell, start, inputs = draw.cell("gru", 3, 5), draw.normal(4, 5), draw.normal(4, 6, 3)

    def hessian(which):
        with use_backend(which):
            return torch.autograd.functional.hessian(lambda state: (scan(cell, state, inputs) ** 2).sum(), start)

    expected = hessian("eager")
    try:
        found = hessian(backend)
    except RuntimeError:
        return
    assert_close({"hessian": found}, {"hessian": expected}, 1e-12)


def test_forward_derivatives_and_batched_gradients_are_refused_not_wrong(backend):
    draw = Draw("forward")
    cell, (start,), inputs = draw.cell("gru", 3, 5), wants(draw.normal(4, 5)), draw.normal(4, 6, 3)
    with use_backend(backend):
        states = scan(cell, start, inputs)
        with pytest.raises(RuntimeError), warnings.catch_warnings(action="ignore"):
            torch.autograd.grad(states, start, draw.normal(7, *states.shape), is_grads_batched=True)
        with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
            scan(cell, torch.autograd.forward_ad.make_dual(start.detach(), start.detach()), inputs)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("case", SCANS[::7], ids=identity)
def test_values_without_a_way_back_are_the_same_bytes(backend, case, mode):
    cell, start, inputs, more, _, _ = scan_arguments(case, torch.float64)
    with use_backend(backend):
        made = _scan(cell, start, inputs, **more)
        with mode():
            plain = _scan(cell, start, inputs, **more)
    for name, value in made._asdict().items():
        other = getattr(plain, name)
        assert (value is None and other is None) or (torch.equal(value, other) and not other.requires_grad), name


def test_states_are_left_out_where_not_wanted(backend):
    for case in (
        ScanCase("clipped", "noise readout", 7, 9, (3, "dense"), 17),
        ScanCase("gru", "plain", 7, 9, (20, "few"), 5),
    ):
        cell, start, inputs, more, leaves, draw = scan_arguments(case, torch.float64)
        with use_backend(backend):
            made = _scan(cell, start, inputs, states=False, **more)._asdict()
        full = scan_reference(case)
        assert made.pop("states") is None
        assert_close(values(made), {name: full[name] for name in made}, 1e-12)
        found = gradients(made, leaves, draw)
        assert all(value.isfinite().all() for value in found.values())
        with use_backend("eager"):
            made = _scan(cell, start, inputs, **more)._asdict()
        del made["states"]
        _, _, _, _, _, again = scan_arguments(case, torch.float64)
        assert_close(found, gradients(made, leaves, again), 1e-12)


def test_both_ways_and_noisy_scans_as_models_call_them(backend, dtype):
    def result(backend, dtype):
        draw = Draw("both", dtype)
        cells = draw.cell("clipped", 20, 9), draw.cell("clipped", 20, 9)
        starts, inputs, weight, bias = wants(
            draw.normal(2, 9), drawn_inputs(draw, 5, 8, 20, "few"), draw.normal(2, 9), draw.normal(2)
        )
        noise = StateNoise(Noise(torch.Generator().manual_seed(1), torch.arange(5)), "kick", 0.2)
        with use_backend(backend):
            there, back = scan_both_ways(cells, starts, inputs, valid=draw.bits(5, 8).bool())
            states, outputs = noisy_scan(cells[0], starts[0].expand(5, -1), inputs, Linear(weight, bias), noise)
            quiet, _ = noisy_scan(cells[0], starts[0].expand(5, -1), inputs, Linear(weight, bias), None)
        outputs = {"there": there.states, "back": back.states, "first": back.last, "noisy": states, "out": outputs}
        outputs["quiet"] = quiet
        parameters = {f"{i}{name}": value for i, cell in enumerate(cells) for name, value in cell.named_parameters()}
        leaves = {"starts": starts, "inputs": inputs, "weight": weight, "bias": bias, **parameters}
        return values(outputs) | gradients(outputs, leaves, draw)

    assert_close(result(backend, dtype), result("eager", torch.float64), TOLERANCE[dtype])


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("mode", ["valid noise readout", "reverse"])
def test_gradcheck_of_a_scan(backend, kind, mode):
    case = ScanCase(kind, mode, 2, 3, (2, "dense"), 3)
    cell, start, inputs, more, leaves, _ = scan_arguments(case, torch.float64)

    def function(*_):
        with use_backend(backend):
            return tuple(value for value in _scan(cell, start, inputs, **more) if value is not None)

    assert torch.autograd.gradcheck(function, [*leaves.values()])


# ------------------------------------------------------------------------------------------------------ controlled scans


class ControlledCase(NamedTuple):
    kind: str
    trials: int = 5
    bins: int = 7
    ci: int = 4
    co: int = 2
    ext: int = 0
    factors: int = 6
    gen: int = 17
    con: int = 9
    masks: bool = False
    noise: bool = True
    control: bool = False
    controller: bool = True


CONTROLLED = [
    ControlledCase("clipped", 1, 1, 1, 1, 0, 1, 1, 1),
    ControlledCase("gru", 1, 1, 1, 1, 1, 1, 1, 1, masks=True, control=True),
    ControlledCase("tanh", 1, 2, 2, 1, 0, 3, 5, 4),
    ControlledCase("clipped", 1, 70, 6, 2, 3, 10, 20, 9, masks=True),
    ControlledCase("clipped", 31, 9, 8, 1, 0, 12, 33, 16, masks=True),
    ControlledCase("clipped", 32, 9, 5, 3, 2, 16, 16, 17, noise=False),
    ControlledCase("clipped", 33, 9, 5, 3, 20, 7, 15, 33, masks=True, control=True),
    ControlledCase("clipped", 65, 7, 3, 4, 0, 40, 64, 48, masks=True),
    ControlledCase("clipped", 128, 2, 32, 4, 1, 33, 100, 64),
    ControlledCase("clipped", 129, 9, 8, 1, 2, 12, 33, 16, masks=True, control=True),
    ControlledCase("clipped", 200, 7, 8, 2, 1, 9, 17, 15, masks=True, noise=False, control=True),
    ControlledCase("clipped", 500, 2, 8, 1, 3, 12, 16, 7, masks=True),
    ControlledCase("gru", 33, 70, 6, 2, 3, 5, 15, 9, masks=True),
    ControlledCase("gru", 7, 9, 6, 2, 0, 17, 33, 16, control=True),
    ControlledCase("leaky_softplus", 65, 9, 6, 2, 3, 5, 15, 9, masks=True, control=True),
    ControlledCase("relu", 7, 9, 6, 2, 1, 5, 15, 9, masks=True),
    *[
        ControlledCase(kind, *sizes, masks=masks, controller=False)
        for kind, sizes, masks in (
            ("clipped", (1, 1, 0, 0, 0, 1, 1), False),
            ("clipped", (1, 1, 0, 0, 1, 1, 1), True),
            ("clipped", (7, 70, 0, 0, 3, 10, 33), True),
            ("clipped", (129, 9, 0, 0, 20, 40, 64), True),
            ("clipped", (500, 7, 0, 0, 0, 12, 16), False),
            ("gru", (33, 9, 0, 0, 2, 5, 17), True),
            ("gru", (65, 9, 0, 0, 0, 5, 100), True),
            ("leaky_tanh", (32, 9, 0, 0, 2, 5, 15), True),
        )
    ],
]


def controlled_arguments(case, dtype):
    draw, c = Draw(case, dtype), case
    b, t = c.trials, c.bins
    generator = draw.cell(c.kind, c.co + c.ext, c.gen)
    to_factors, state, ext = wants(
        draw.normal(c.factors, c.gen, scale=c.gen**-0.5), draw.normal(b, c.gen, scale=0.5), draw.normal(b, t, c.ext)
    )
    leaves = {"to_factors": to_factors, "state": state, "ext": ext}
    leaves |= {f"gen_{name}": value for name, value in generator.named_parameters()}
    more, masks = {}, {}
    if c.controller:
        more["controller"] = draw.cell(c.kind, c.ci + c.factors, c.con)
        weight, bias, con_state, ci = wants(
            draw.normal(2 * c.co, c.con, scale=c.con**-0.5),
            draw.normal(2 * c.co, scale=0.3),
            draw.normal(b, c.con, scale=0.5),
            draw.normal(b, t, c.ci),
        )
        more |= {"to_co": Linear(weight, bias), "con_state": con_state, "ci": ci}
        leaves |= {"co_weight": weight, "co_bias": bias, "con_state": con_state, "ci": ci}
        leaves |= {f"con_{name}": value for name, value in more["controller"].named_parameters()}
        more["co_noise"] = draw.normal(b, t, c.co) if c.noise else None
        more["control"] = draw.normal(t) if c.control else None
        masks = {"start": (b, c.gen), "ci": (b, t, c.ci), "factors": (b, t, c.factors)}
    if c.masks:
        found = {name: draw.bits(*masks[name]) if name in masks else None for name in ("start", "ci", "factors")}
        more["kept"] = Kept(**found, states=draw.bits(b, t, c.gen), scale=1.25)
    required = {"generator": generator, "to_factors": to_factors, "state": state, "ext_input": ext}
    return {**required, "controller": None, **more}, leaves, draw


def controlled_result(backend, case, dtype, only=None, **more):
    arguments, leaves, draw = controlled_arguments(case, dtype)
    with use_backend(backend):
        outputs = controlled_scan(**arguments, **more)._asdict()
    chosen = outputs if only is None else {name: outputs[name] for name in only}
    found = gradients(chosen, leaves, draw)
    if only is not None:  # what the loss does not see may have the gradient None, or 0
        found = {name: torch.zeros_like(leaves[name[2:]]) if value is None else value for name, value in found.items()}
    if case.ext == 0:
        found.pop("d_ext")
    return values(outputs) | found


@cache
def controlled_reference(case, only=None):
    return controlled_result("eager", case, torch.float64, only)


@pytest.mark.parametrize("case", CONTROLLED, ids=identity)
def test_controlled_scan_equals_the_definition(backend, dtype, case):
    assert_close(controlled_result(backend, case, dtype), controlled_reference(case), TOLERANCE[dtype])


@pytest.mark.parametrize("only", list(eager.Generated._fields))
def test_gradient_of_one_output_of_a_controlled_scan(backend, dtype, only):
    for case in (
        ControlledCase("clipped", 9, 20, ext=2, masks=True, control=True),
        ControlledCase("gru", 3, 40, ext=1, noise=False),
        ControlledCase("gru", 9, 5, 0, 0, 3, masks=True, controller=False),
    ):
        if not case.controller and only not in ("gen_states", "factors", "gen_inputs"):
            continue
        found, expected = controlled_result(backend, case, dtype, (only,)), controlled_reference(case, (only,))
        assert_close(found, expected, TOLERANCE[dtype])


def test_controlled_scan_without_the_states(backend, dtype):
    names = ("factors", "co_means", "co_stds")
    for case in (
        ControlledCase("clipped", 33, 9, ext=2, masks=True),
        ControlledCase("clipped", 33, 9, 0, 0, 2, controller=False),
    ):
        found = controlled_result(backend, case, dtype, names, states=False)
        expected = controlled_reference(case, names)
        kept = [name for name in expected if name in names or name.startswith("d_")]
        assert_close({n: found[n] for n in kept}, {n: expected[n] for n in kept}, TOLERANCE[dtype])
        arguments, _, _ = controlled_arguments(case, dtype)
        with use_backend(backend), torch.no_grad():
            plain = controlled_scan(**arguments, states=False)
        assert_same({n: getattr(plain, n) for n in names}, {n: found[n] for n in names})


def test_controlled_scan_of_views_and_frozen_weights(backend):
    case = ControlledCase("clipped", 6, 8, ext=2, masks=True)
    found = {}
    for which in ("eager", backend):
        arguments, leaves, draw = controlled_arguments(case, torch.float64)
        single, wide = wants(draw.normal(case.con), draw.normal(case.ci, case.bins, case.trials))
        for name in ("to_factors", "gen_weight_hh", "con_bias", "co_bias", "ext", "con_state", "ci"):
            leaves.pop(name).requires_grad_(False)
        arguments |= {"con_state": single.expand(case.trials, -1), "ci": wide.permute(2, 1, 0)}
        arguments["kept"] = arguments["kept"]._replace(states=draw.bits(case.gen, 8, 6).permute(2, 1, 0))
        arguments["co_noise"] = draw.normal(case.co, 8, 6).permute(2, 1, 0)
        with use_backend(which):
            outputs = controlled_scan(**arguments)._asdict()
        found[which] = values(outputs) | gradients(outputs, leaves | {"single": single, "wide": wide}, draw)
    assert_close(found[backend], found["eager"], 1e-12)


@pytest.mark.parametrize(
    "case",
    [
        ControlledCase("clipped", 2, 3, 2, 1, 1, 2, 3, 2, masks=True, control=True),
        ControlledCase("gru", 2, 3, 2, 1, 0, 2, 3, 2),
        ControlledCase("leaky_softplus", 2, 3, 2, 1, 1, 2, 3, 2, masks=True),
        ControlledCase("clipped", 2, 3, 0, 0, 2, 2, 3, masks=True, controller=False),
    ],
    ids=identity,
)
def test_gradcheck_of_a_controlled_scan(backend, case):
    arguments, leaves, _ = controlled_arguments(case, torch.float64)

    def function(*_):
        with use_backend(backend):
            return tuple(value for value in controlled_scan(**arguments) if value.numel())

    assert torch.autograd.gradcheck(function, [leaf for leaf in leaves.values() if leaf.numel()])


# ------------------------------------------------------------------------------------------------- likelihood and masking


class PoissonCase(NamedTuple):
    trials: int
    bins: int
    factors: int
    neurons: int
    counts: str = "bytes"
    weight: str = "bin"
    learned: bool = False


POISSON = [
    PoissonCase(1, 1, 1, 1),
    PoissonCase(1, 1, 1, 1, "float", "value", True),
    PoissonCase(1, 70, 3, 1, "large"),
    PoissonCase(7, 9, 16, 15, "parts", "value", True),
    PoissonCase(31, 7, 17, 16, "bytes", "value", True),
    PoissonCase(32, 2, 40, 17, "float", "expanded"),
    PoissonCase(33, 9, 5, 100, "bytes", "bin", True),
    PoissonCase(65, 3, 100, 33, "large", "value"),
    PoissonCase(128, 1, 12, 64, "bytes", "value"),
    PoissonCase(129, 7, 12, 137, "float", "value", True),
    PoissonCase(200, 2, 1, 20, "parts", "bin", True),
    PoissonCase(500, 1, 9, 20, "bytes", "bin"),
    PoissonCase(33, 9, 5, 20, "garbage", "value", True),
    PoissonCase(5, 9, 5, 20, "garbage float", "value"),
]


def poisson_arguments(case, dtype):
    draw, c = Draw(case, dtype), case
    shape = c.trials, c.bins, c.neurons
    factors, weight, bias = wants(
        draw.normal(c.trials, c.bins, c.factors), draw.normal(c.neurons, c.factors, scale=0.3), draw.normal(c.neurons)
    )
    counts = torch.poisson(3 * torch.rand(shape, generator=draw.generator), generator=draw.generator)
    if c.counts == "large":
        counts = counts * 200
    if c.counts == "parts":
        counts = counts * 0.75 + 0.125
    each = draw.bits(*shape, share=0.8).to(dtype) * (1 + draw.bits(*shape)).to(dtype)
    if c.counts.startswith("garbage"):
        counts[each == 0] = 1e5 if "float" in c.counts else 255
    counts = counts.to(torch.uint8) if c.counts in ("bytes", "garbage") else counts.to(dtype)
    scale = {"bin": each[:, :, :1], "value": each, "expanded": each[:1, :, :1].expand(c.trials, -1, -1)}[c.weight]
    learned = draw.bits(*shape, share=0.4) if c.learned else None
    arguments = factors, Linear(weight, bias), counts, scale, learned
    return arguments, {"factors": factors, "weight": weight, "bias": bias}, draw


def poisson_result(backend, case, dtype):
    arguments, leaves, draw = poisson_arguments(case, dtype)
    with use_backend(backend):
        outputs = {"sum": poisson_nll(*arguments)}
    return values(outputs) | gradients(outputs, leaves, draw)


@cache
def poisson_reference(case):
    return poisson_result("eager", case, torch.float64)


@pytest.mark.parametrize("case", POISSON, ids=identity)
def test_poisson_equals_the_definition(backend, dtype, case):
    assert_close(poisson_result(backend, case, dtype), poisson_reference(case), TOLERANCE[dtype])


def test_counts_hidden_by_a_weight_of_0_change_nothing(backend, dtype):
    case = POISSON[-1]
    (factors, readout, counts, weight, _), leaves, _ = poisson_arguments(case, dtype)
    found = []
    for hidden in (1e5, 0.0):
        with use_backend(backend):
            total = poisson_nll(factors, readout, counts.masked_fill(weight == 0, hidden), weight)
        found.append({"sum": total.detach(), **gradients({"sum": total}, leaves, Draw(1, dtype))})
    assert_same(*found)


@pytest.mark.parametrize("wide", ["bin", "value"])
def test_rates_beyond_all_numbers_change_nothing_where_nothing_weighs(backend, dtype, wide):
    """As those of a model without bounds, some bins after a trial's end."""
    case = PoissonCase(5, 9, 5, 20, "float", wide)
    (factors, readout, counts, weight, _), leaves, _ = poisson_arguments(case, dtype)
    with torch.no_grad():
        weight[:, 6:] = 0
    found = []
    for scale in (1.0, 1e6):
        with torch.no_grad():
            factors[:, 6:] *= scale
        with use_backend(backend):
            total = poisson_nll(factors, readout, counts, weight)
        found.append({"sum": total.detach(), **gradients({"sum": total}, leaves, Draw(1, dtype))})
    assert_same(*found)


def test_counts_of_any_type_give_the_same_likelihood(backend):
    case = PoissonCase(5, 9, 5, 20)
    (factors, readout, counts, weight, _), _, _ = poisson_arguments(case, torch.float64)
    with use_backend(backend):
        sums = [
            poisson_nll(factors, readout, counts.to(kind), weight).item()
            for kind in (torch.uint8, torch.int64, torch.float32, torch.float64)
        ]
    np.testing.assert_allclose(sums, sums[0], rtol=1e-13)


def test_poisson_without_a_way_back_and_with_frozen_parts(backend):
    arguments, leaves, _ = poisson_arguments(POISSON[4], torch.float64)
    with use_backend(backend):
        with torch.no_grad():
            plain = poisson_nll(*arguments)
        leaves["weight"].requires_grad_(False)
        total = poisson_nll(*arguments)
        total.backward()
    assert not plain.requires_grad
    assert torch.equal(plain, total.detach())
    assert leaves["weight"].grad is None
    factors, readout, counts, weight, learned = arguments
    loss = eager.poisson_nll(factors, readout, counts, weight, learned)
    expected = torch.autograd.grad(loss, [leaves["factors"], leaves["bias"]])
    found = {"factors": leaves["factors"].grad, "bias": leaves["bias"].grad}
    assert_close(found, dict(zip(found, expected, strict=True)), 1e-12)


@pytest.mark.parametrize("counts", ["bytes", "float"])
def test_gradcheck_of_poisson(backend, counts):
    arguments, leaves, _ = poisson_arguments(PoissonCase(2, 3, 2, 3, counts, "value"), torch.float64)

    def function(*_):
        with use_backend(backend):
            return poisson_nll(*arguments)

    assert torch.autograd.gradcheck(function, [*leaves.values()])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n_masks", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 7, 19), (20, 70, 137)], ids=str)
def test_masked_equals_the_definition(backend, dtype, kind, n_masks, shape):
    draw = Draw((shape, n_masks), dtype)
    data = (40 * torch.rand(shape, generator=draw.generator)).to(kind)
    masks, factor = [draw.bits(*shape) for _ in range(n_masks)], draw.normal(shape[1])
    with use_backend(backend):
        made = masked(data, masks, factor)
        views = masked(data.mT.contiguous().mT, [mask.mT.contiguous().mT for mask in masks], factor)
    expected = eager.masked(data, masks, factor)
    assert made.dtype == dtype
    assert torch.equal(made, views)
    torch.testing.assert_close(made, expected, rtol=1e-15 if dtype == torch.float64 else 1e-6, atol=0)


def test_masked_data_that_want_a_gradient_get_it(backend):
    draw = Draw("masked")
    (data,) = wants(draw.normal(3, 4, 5))
    mask, factor = draw.bits(3, 4, 5), draw.normal(4)
    with use_backend(backend):
        masked(data, [mask], factor).sum().backward()
    assert torch.equal(data.grad, factor[:, None] * mask)


# --------------------------------------------------------------------------------------- what kernels must not do silently


@pytest.mark.parametrize("name", ["weight", "co_noise", "control"])
def test_a_gradient_that_eager_gives_is_not_dropped(backend, name):
    found = {}
    for which in ("eager", backend):
        if name == "weight":
            (factors, readout, counts, weight, _), _, _ = poisson_arguments(POISSON[3], torch.float64)
            (leaf,) = wants(weight)
            with use_backend(which):
                loss = poisson_nll(factors, readout, counts, leaf)
        else:
            arguments, _, _ = controlled_arguments(ControlledCase("clipped", control=True), torch.float64)
            (leaf,) = wants(arguments[name])
            with use_backend(which):
                loss = (controlled_scan(**arguments | {name: leaf}).factors ** 2).sum()
        found[which] = {"leaf": torch.autograd.grad(loss, leaf, allow_unused=True)[0]}
    assert_close(found[backend], found["eager"], 1e-12)


def test_the_factor_of_masked_data_gets_its_gradient(compiled):
    draw = Draw("factor")
    (factor,) = wants(draw.normal(4))
    data, mask = draw.normal(3, 4, 5), draw.bits(3, 4, 5)
    with use_backend("cpu"):
        masked(data, [mask], factor).sum().backward()
    assert torch.equal(factor.grad, (data * mask).sum((0, 2)))


WRONG = {  # nothing here is smaller than what is expected: where nobody checks, no memory beyond the end is read
    "input channels": lambda d: scan(d.cell("gru", 3, 5), d.normal(4, 5), d.normal(4, 6, 4)),
    "states": lambda d: scan(d.cell("gru", 3, 5), d.normal(4, 7), d.normal(4, 6, 3)),
    "trials": lambda d: scan(d.cell("gru", 3, 5), d.normal(4, 5), d.normal(9, 6, 3)),
    "precision": lambda d: scan(d.cell("gru", 3, 5), d.normal(4, 5).float(), d.normal(4, 6, 3).float()),
    "valid": lambda d: scan(d.cell("gru", 3, 5), d.normal(4, 5), d.normal(4, 6, 3), valid=d.bits(9, 9).bool()),
    "readout": lambda d: noisy_scan(
        d.cell("gru", 3, 5), d.normal(4, 5), d.normal(4, 6, 3), Linear(d.normal(2, 8), d.normal(2)), None
    ),
    "noise": lambda d: noisy_scan(
        d.cell("gru", 3, 5),
        d.normal(4, 5),
        d.normal(4, 6, 3),
        Linear(d.normal(2, 5), d.normal(2)),
        StateNoise(Noise(torch.Generator(), torch.arange(9)), "x", 1.0),
    ),
    "counts": lambda d: poisson_nll(
        d.normal(4, 6, 3), Linear(d.normal(7, 3), d.normal(7)), d.bits(4, 6, 9), d.normal(4, 6, 1)
    ),
    "factors": lambda d: poisson_nll(
        d.normal(4, 6, 5), Linear(d.normal(7, 3), d.normal(7)), d.bits(4, 6, 7), d.normal(4, 6, 1)
    ),
    "controller's input": lambda d: controlled_scan(
        **_replaced("ci", lambda value: torch.cat([value, value], 2))
    ),
    "factors' weight": lambda d: controlled_scan(**_replaced("to_factors", lambda value: torch.cat([value, value], 1))),
    "mask": lambda d: masked(d.normal(3, 4, 5), [d.bits(4, 4, 5)], d.normal(4)),
    "factor": lambda d: masked(d.normal(3, 4, 5), [], d.normal(9)),
}  # fmt: skip


def _replaced(name, change):
    arguments, _, _ = controlled_arguments(ControlledCase("gru", ext=1), torch.float64)
    return arguments | {name: change(arguments[name])}


@pytest.mark.parametrize("name", WRONG)
def test_shapes_that_do_not_fit_are_refused(backend, name):
    with use_backend(backend), pytest.raises((RuntimeError, ValueError, TypeError)):
        WRONG[name](Draw(name))


@pytest.mark.parametrize("name", ["control", "co_noise", "ci"])
def test_arguments_of_another_precision_are_refused_or_joined(compiled, name):
    found = {}
    for which in ("eager", "cpu"):
        arguments, _, _ = controlled_arguments(ControlledCase("leaky_tanh", control=True), torch.float32)
        with use_backend(which):
            try:
                found[which] = controlled_scan(**arguments | {name: arguments[name].double()}).factors
            except (RuntimeError, TypeError, ValueError):
                found[which] = None
    assert found["cpu"] is None or found["eager"] is not None
    if found["cpu"] is not None:
        assert_close({"factors": found["cpu"]}, {"factors": found["eager"]}, 1e-5)


EMPTY = """
import torch
from ctdb.recurrent import GRUCell, scan, use_backend
cell = GRUCell(3, 5)
with use_backend("cpu"):
    states = scan(cell, torch.zeros(0, 5), torch.zeros(0, 6, 3))
states.sum().backward()
assert states.shape == (0, 6, 5) and not cell.weight_ih.grad.any()
"""


def test_an_empty_batch_has_empty_states_and_gradients_of_0(compiled):
    run = subprocess.run([sys.executable, "-c", EMPTY], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr


class Guarded(cpu.Workspace):
    """Workspace full of NaN with a fence behind it: nothing is read before it is written, nothing written beyond."""

    made: list["Guarded"] = []

    def __init__(self, n, dtype):
        self.whole = torch.full((3 * n + 1024,), 7.25, dtype=dtype)
        self.tensor, self.fence = self.whole[:n], self.whole[n:]
        self.tensor.fill_(torch.nan)
        self.made.append(self)


@pytest.fixture
def guarded(compiled, monkeypatch):
    monkeypatch.setattr(cpu, "Workspace", Guarded)
    monkeypatch.setattr(Guarded, "made", [])
    yield
    assert Guarded.made
    assert all((one.fence == 7.25).all() for one in Guarded.made)


@pytest.mark.parametrize("case", SCANS, ids=identity)
def test_a_scan_stays_in_its_memory(guarded, dtype, case):
    assert_close(scan_result("cpu", case, dtype), scan_reference(case), TOLERANCE[dtype])
    cell, start, inputs, more, _, _ = scan_arguments(case, dtype)
    with use_backend("cpu"), torch.no_grad():
        last = _scan(cell, start, inputs, **more).last
    assert_close({"last": last}, {"last": scan_reference(case)["last"]}, TOLERANCE[dtype])


@pytest.mark.parametrize("case", CONTROLLED, ids=identity)
def test_a_controlled_scan_stays_in_its_memory(guarded, dtype, case):
    assert_close(controlled_result("cpu", case, dtype), controlled_reference(case), TOLERANCE[dtype])
    arguments, _, _ = controlled_arguments(case, dtype)
    with use_backend("cpu"), torch.no_grad():
        factors = controlled_scan(**arguments, states=False).factors
    assert_close({"factors": factors}, {"factors": controlled_reference(case)["factors"]}, TOLERANCE[dtype])


@pytest.mark.parametrize("kinds", [*itertools.permutations(["clipped", "gru", "leaky_tanh"], 2)], ids="-".join)
def test_a_controller_of_another_kind_than_the_generator(guarded, kinds):
    found, case = {}, ControlledCase(kinds[0], 9, 8, gen=16, con=64)
    for which in ("eager", "cpu"):
        arguments, leaves, draw = controlled_arguments(case, torch.float64)
        arguments["controller"] = con = Draw(kinds).cell(kinds[1], case.ci + case.factors, case.con)
        leaves = {name: leaf for name, leaf in leaves.items() if not name.startswith("con_") and name != "ext"}
        leaves |= {f"con_{name}": value for name, value in con.named_parameters()}
        with use_backend(which):
            outputs = controlled_scan(**arguments)._asdict()
        found[which] = values(outputs) | gradients(outputs, leaves, draw)
    assert_close(found["cpu"], found["eager"], 1e-12)
    assert all((one.fence == 7.25).all() for one in Guarded.made)


# ------------------------------------------------------------------------------------------------------- bytes and threads


def everything(backend):
    """Values and gradients of every loop, at sizes with several blocks and a ragged last one."""
    made = {}
    for case in (
        ScanCase("clipped", "valid noise readout", 129, 9, (20, "mixed"), 33),
        ScanCase("gru", "reverse", 70, 9, (3, "dense"), 17),
        ScanCase("leaky_softplus", "noise readout", 200, 7, (37, "few"), 17),
    ):
        made |= {(case, name): value for name, value in scan_result(backend, case, torch.float32).items()}
    for case in (
        ControlledCase("clipped", 129, 9, 8, 1, 2, 12, 33, 16, masks=True, control=True),
        ControlledCase("gru", 70, 9, 0, 0, 2, 12, 33, masks=True, controller=False),
    ):
        made |= {(case, name): value for name, value in controlled_result(backend, case, torch.float32).items()}
    case = PoissonCase(129, 30, 12, 40, "bytes", "value", True)
    made |= {("poisson", name): value for name, value in poisson_result(backend, case, torch.float32).items()}
    draw = Draw("masked", torch.float32)
    with use_backend(backend):
        made["masked"] = masked(draw.bits(50, 40, 70), [draw.bits(50, 40, 70)], draw.normal(40))
    return {name: value for name, value in made.items() if value is not None}


def test_two_runs_are_equal_in_every_byte(backend):
    assert_same(everything(backend), everything(backend))


def test_one_two_and_three_threads_are_equal_in_every_byte(compiled, threads):
    threads(1)
    expected = everything("cpu")
    for number in (2, 3):
        threads(number)
        assert_same(everything("cpu"), expected)


def test_a_trial_does_not_depend_on_its_batch(compiled):
    """Where blocks of trials are cut differently, and in another order."""
    draw = Draw("batches", torch.float32)
    cell, inputs, start = draw.cell("clipped", 3, 17), draw.normal(200, 9, 3), draw.normal(200, 17)
    order = torch.randperm(200, generator=draw.generator)
    with use_backend("cpu"):
        whole = scan(cell, start, inputs)
        parts = [scan(cell, start[some], inputs[some]) for some in order.split([1, 31, 33, 135])]
    assert torch.equal(torch.cat(parts), whole[order])


def test_loops_in_several_threads_of_the_user(compiled):
    cases = [ScanCase("clipped", "noise readout", 33, 9, (3, "dense"), n) for n in (5, 16, 17, 33)]
    expected = {case: scan_result("cpu", case, torch.float64) for case in cases}
    wrong = []

    def work(case):
        for _ in range(20):
            found = scan_result("cpu", case, torch.float64)
            if not all(torch.equal(found[name], value) for name, value in expected[case].items()):
                wrong.append(case)

    users = [threading.Thread(target=work, args=[case]) for case in cases]
    for one in users:
        one.start()
    for one in users:
        one.join()
    assert not wrong


# ---------------------------------------------------------------------------------------------------------- NaN, infinity


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("width", [3, 20])
@pytest.mark.parametrize("kind", CELLS)
def test_a_spoilt_trial_spoils_itself_and_the_gradients(backend, dtype, kind, width, value):
    draw = Draw((kind, width), dtype)
    cell, start = draw.cell(kind, width, 17), draw.normal(40, 17)
    clean = drawn_inputs(draw, 40, 9, width, "few" if width == 20 else "dense")
    clean[35, 4, 1] = 1
    inputs = clean.clone()
    inputs[35, 4, 1] = value
    states, reference = {}, {}
    for made, which in ((states, backend), (reference, "eager")):
        with use_backend(which):
            made |= {name: scan(cell, start, x) for name, x in (("clean", clean), ("spoilt", inputs))}
    others = torch.arange(40) != 35
    assert torch.equal(states["spoilt"][others], states["clean"][others])
    assert torch.equal(states["spoilt"][35, :4], states["clean"][35, :4])
    expected = reference["spoilt"][35, 4:]
    assert torch.equal(states["spoilt"][35, 4:].isnan(), expected.isnan())
    assert torch.equal(states["spoilt"][35, 4:].isinf(), expected.isinf())
    if value != value:
        assert states["spoilt"][35, 4:].isnan().all()
    found, wanted = [
        torch.autograd.grad((made["spoilt"] ** 2).sum(), [*cell.parameters()]) for made in (states, reference)
    ]
    for name, one, other in zip(dict(cell.named_parameters()), found, wanted, strict=True):
        assert other.isfinite().all() or not one.isfinite().all(), name


def test_gradients_stay_finite_where_those_of_eager_do(compiled):
    """17 states leave padding; an infinite input saturates the units, and no gradient goes through them."""
    found = {}
    for which in ("eager", "cpu"):
        draw = Draw("saturated")
        cell, (start,), inputs = draw.cell("tanh", 3, 17), wants(draw.normal(4, 17)), draw.normal(4, 6, 3)
        inputs[2, 4, 0] = torch.inf
        with use_backend(which):
            found[which] = torch.autograd.grad((scan(cell, start, inputs) ** 2).sum(), start)[0]
    assert found["eager"].isfinite().all()
    assert_close({"start": found["cpu"]}, {"start": found["eager"]}, 1e-12)


def test_a_weight_that_is_not_finite_shows_through_inputs_of_0(compiled):
    draw = Draw("weights")
    cell = draw.cell("gru", 20, 5)
    with torch.no_grad():
        cell.weight_ih[:, 3] = torch.nan
    with use_backend("cpu"):
        assert scan(cell, draw.normal(4, 5), torch.zeros(4, 6, 20, dtype=torch.float64)).isnan().all()


@pytest.mark.parametrize("part", ["w_in", "w_rec", "bias", "start"])
@pytest.mark.parametrize("kind", ["clipped", "gru", "leaky_relu"])
def test_weights_and_starts_that_are_not_finite_show(backend, dtype, kind, part):
    draw = Draw((kind, part), dtype)
    cell, (start,), inputs = draw.cell(kind, 3, 17), wants(draw.normal(9, 17)), draw.normal(9, 5, 3)
    names = {"w_in": "weight_ih", "w_rec": "weight_hh", "bias": "bias" if kind == "clipped" else "bias_ih"}
    with torch.no_grad():
        if part == "start":
            start[4, 2] = torch.nan
        else:
            getattr(cell, names[part])[0] = torch.nan
    with use_backend(backend):
        states = scan(cell, start, inputs)
    bad = torch.arange(9) == 4 if part == "start" else torch.ones(9, dtype=torch.bool)
    assert states[bad].isnan().any((1, 2)).all()
    assert states[~bad].isfinite().all()
    grads = torch.autograd.grad((states**2).sum(), [start, *cell.parameters()])
    assert all(grad.isnan().any() for grad in grads)


def test_a_spoilt_trial_of_a_controlled_scan(backend, dtype):
    for case, name in (
        (ControlledCase("clipped", 40, 9, masks=True, control=True), "ci"),
        (ControlledCase("gru", 40, 9, ext=2), "ext_input"),
        (ControlledCase("clipped", 40, 9, 0, 0, 2, controller=False), "ext_input"),
    ):
        made = []
        for value in (None, torch.nan):
            arguments, leaves, draw = controlled_arguments(case, dtype)
            if value is not None:
                with torch.no_grad():
                    arguments[name][35, 4, 0] = value
                if arguments.get("kept") is not None:
                    arguments["kept"].ci[35, 4, 0] = 1
            elif arguments.get("kept") is not None:
                arguments["kept"].ci[35, 4, 0] = 1
            with use_backend(backend):
                made.append(controlled_scan(**arguments))
        others = torch.arange(40) != 35
        for clean, spoilt in zip(*made, strict=True):
            assert torch.equal(spoilt[others], clean[others])
            assert torch.equal(spoilt[35, :4], clean[35, :4])
        assert made[1].factors[35, 4:].isnan().all()
        found = gradients({"factors": made[1].factors}, leaves, draw)
        shown = [found[f"d_{one}"] for one in leaves if "weight_hh" in one or one == "to_factors"]
        assert all(grad.isnan().any() for grad in shown)


def test_log_rates_that_overflow_give_an_infinite_loss(backend, dtype):
    (factors, readout, counts, weight, _), leaves, _ = poisson_arguments(PoissonCase(40, 3, 5, 20), dtype)
    weight = torch.ones_like(weight)
    for bias, expected in ((1e4, torch.inf), (89.0 if dtype == torch.float32 else 710.0, torch.inf), (torch.nan, None)):
        with torch.no_grad():
            leaves["bias"][7] = bias
            leaves["weight"][7] = 0
        with use_backend(backend):
            total = poisson_nll(factors, readout, torch.zeros_like(counts), weight)
        assert total == expected if expected else total.isnan()
        grads = torch.autograd.grad(total, [*leaves.values()])
        assert not any(grad.isfinite().all() for grad in grads)
    with torch.no_grad():
        leaves["bias"][7] = 80.0  # near the last that single precision holds
    with use_backend(backend):
        total = poisson_nll(factors, readout, counts, weight)
    expected = eager.poisson_nll(factors.double(), Linear(*[one.double() for one in readout]), counts, weight.double())
    torch.testing.assert_close(total.double(), expected, rtol=TOLERANCE[dtype], atol=0)
    with torch.no_grad():
        leaves["bias"][7] = -1e4  # a rate of 0, which no count of 0 minds
    with use_backend(backend):
        total = poisson_nll(factors, readout, torch.zeros_like(counts), weight)
    assert total.isfinite()


def test_a_spoilt_factor_or_count_reaches_the_loss(backend, dtype):
    for where in ("factors", "counts", "weight"):
        case = PoissonCase(40, 3, 5, 20, "float", "value")
        (factors, readout, counts, weight, _), leaves, _ = poisson_arguments(case, dtype)
        weight = weight.clamp(min=1)
        with torch.no_grad():
            {"factors": factors, "counts": counts, "weight": weight}[where][35, 1, 0] = torch.nan
        with use_backend(backend):
            total = poisson_nll(factors, readout, counts, weight)
        assert total.isnan()
        assert all(grad.isnan().any() for grad in torch.autograd.grad(total, [*leaves.values()])), where


# --------------------------------------------------------------------------------------------------- choice of the backend


class DoubledGRUCell(GRUCell):
    """A user's cell, of another forward than its parent."""

    def forward(self, input, state):
        return 2 * super().forward(input, state)


@pytest.mark.parametrize(
    "make",
    [LinearCell, DoubledGRUCell, lambda i, n: EulerMLPCell(i, n, n_layers=1, width=7)],
    ids=["linear", "own", "mlp"],
)
def test_cells_without_a_kernel_run_eagerly(backend, make):
    draw = Draw("others")
    cell = make(2, 5)
    initialise(cell, draw.generator)
    cell = cell.double()
    controller, ext = draw.cell("gru", 9, 4), draw.normal(3, 6, 2)
    inputs, start = draw.normal(3, 6, 2), draw.normal(3, 5)
    readout, to_co = Linear(draw.normal(2, 5), draw.normal(2)), Linear(draw.normal(4, 4), draw.normal(4))
    to_factors, con_state, ci = draw.normal(5, 5), draw.normal(3, 4), draw.normal(3, 6, 4)
    valid = draw.bits(3, 6).bool()
    noise = StateNoise(Noise(torch.Generator().manual_seed(1), torch.arange(3)), "x", 0.1)
    assert weights_of(cell) is None
    found = []
    for which in ("eager", backend):
        with use_backend(which):
            plain = scan(cell, start, inputs, valid=valid)
            there, back = scan_both_ways((cell, cell), start[:2], inputs, valid=valid)
            states, outputs = noisy_scan(cell, start, inputs, readout, noise)
            alone = controlled_scan(cell, None, to_factors, start, ext)
            driven = controlled_scan(cell, controller, to_factors, start, ext[..., :0], to_co, con_state, ci)
        found.append([plain, there.states, back.states, back.last, states, outputs, *alone, *driven])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    h, by_hand = start, []
    for t in range(6):
        h = torch.where(valid[:, t, None], cell(inputs[:, t], h), h)
        by_hand.append(h)
    torch.testing.assert_close(found[1][0], torch.stack(by_hand, 1))


def test_a_plain_function_is_a_cell_too(backend):
    draw = Draw("function")
    with use_backend(backend):
        states = scan(lambda u, h: h + u, torch.zeros(3, 2, dtype=torch.float64), inputs := draw.normal(3, 6, 2))
    torch.testing.assert_close(states, inputs.cumsum(1))


def test_functorch_sees_through(backend):
    draw = Draw("functorch")
    cell, inputs, starts = draw.cell("gru", 3, 5), draw.normal(1, 6, 3), draw.normal(4, 5)

    def last(start):
        return scan(cell, start[None], inputs)[0, -1]

    def one_by_one(function):
        return torch.stack([function(start) for start in starts])

    with use_backend("eager"):
        expected = one_by_one(lambda start: torch.autograd.functional.jacobian(last, start))
        values = one_by_one(last)
    with use_backend(backend):
        torch.testing.assert_close(torch.func.vmap(last)(starts), values)
        for jacobian in (torch.func.jacrev, torch.func.jacfwd):
            torch.testing.assert_close(torch.func.vmap(jacobian(last))(starts), expected)
        torch.testing.assert_close(one_by_one(lambda start: torch.autograd.functional.jacobian(last, start)), expected)
        nll = poisson_arguments(PoissonCase(3, 4, 2, 5), torch.float64)[0]
        torch.testing.assert_close(
            torch.func.grad(lambda factors: poisson_nll(factors, *nll[1:]))(nll[0]),
            torch.autograd.grad(eager.poisson_nll(*nll), nll[0])[0],
        )


def test_a_backend_that_cannot_run_is_refused(monkeypatch):
    monkeypatch.setattr(cpu, "_reason", "no C++ compiler found (nonsense++)")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    because = r"no C\+\+ compiler found \(nonsense\+\+\); install"
    with pytest.raises(ConfigError, match=rf"'cpu' cannot run here: {because}"), use_backend("cpu"):
        pass
    with pytest.raises(ConfigError, match=r"'cuda' cannot run here: .*GPU.*choose 'auto'"), use_backend("cuda"):
        pass
    name, reason = choose(torch.device("cpu"))
    assert name == "torch"
    assert "no C++ compiler found (nonsense++)" in reason
    with use_backend("auto"):
        assert choose(torch.device("cpu")).name == "torch"


def test_an_unknown_backend_is_refused(shapes_unchecked):
    with pytest.raises(ConfigError, match="tortch"), use_backend("tortch"):
        pass


def test_the_choice_and_its_reason(compiled, monkeypatch):
    device = torch.device("cpu")
    assert choose(device).name == "cpu"
    assert "bit vectors" in choose(device).reason
    assert choose(device, torch.bfloat16).name == "eager"
    assert "bfloat16" in choose(device, torch.bfloat16).reason
    with use_backend("torch"):
        assert choose(device) == ("torch", "chosen in the settings")
        with use_backend("eager"):
            assert choose(device).name == "eager"
        assert choose(device).name == "torch"
        with pytest.raises(KeyError), use_backend("cpu"):
            raise KeyError
        assert choose(device).name == "torch"
        elsewhere = []
        other = threading.Thread(target=lambda: elsewhere.append(choose(device).name))
        other.start()
        other.join()
        assert elsewhere == ["cpu"]
    assert choose(device).name == "cpu"


def test_the_chosen_backend_runs(monkeypatch, compiled):
    """The other one would raise."""
    draw = Draw("chosen")
    cell, start, inputs = draw.cell("gru", 3, 5), draw.normal(4, 5), draw.normal(4, 6, 3)
    for name, other in (("torch", "cpu"), ("cpu", "torch"), ("auto", "torch"), ("eager", None)):
        with monkeypatch.context() as patch:
            for forbidden in ("torch", "cpu") if other is None else (other,):
                patch.setitem(backends._KERNELS, forbidden, None if other is None else object())
            with use_backend(name):
                scan(cell, start, inputs)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_runs_in_every_backend(backend, kind):
    draw = Draw("half")
    cell, start, inputs = draw.cell("clipped", 3, 5), draw.normal(4, 5), draw.normal(4, 6, 3)
    expected = eager.scan(cell, start, inputs).states
    with use_backend(backend):
        found = scan(cell.to(kind), start.to(kind), inputs.to(kind))
    assert found.dtype == kind
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.05)


# ----------------------------------------------------------------------------------------------------------------- memory


def growth(work, rounds):
    """Megabytes that the process gains by `rounds` calls, beyond those of the first 30."""
    for _ in range(30):
        work(0)
    before = psutil.Process().memory_info().rss
    for number in range(rounds):
        work(number)
    return (psutil.Process().memory_info().rss - before) / 2**20


def test_memory_does_not_grow(backend):
    cases = ScanCase("clipped", "valid noise readout", 33, 9, (20, "few"), 33), ControlledCase("clipped", 33, 9)
    poisson = PoissonCase(33, 20, 12, 40)

    def work(_):
        scan_result(backend, cases[0], torch.float32)
        controlled_result(backend, cases[1], torch.float32)
        poisson_result(backend, poisson, torch.float32)
        with use_backend(backend):  # a pass that is never taken back
            arguments = scan_arguments(cases[0], torch.float32)
            _scan(*arguments[:3], **arguments[3])

    assert growth(work, 200) < 8


def test_memory_is_bounded_where_every_batch_has_another_length(compiled):
    draw = Draw("lengths", torch.float32)
    cell = draw.cell("clipped", 3, 64)

    def work(number):
        with use_backend("cpu"):
            states = scan(cell, draw.normal(33, 64), draw.normal(33, 20 + 10 * number, 3))
        states.sum().backward()

    n_lengths = 60
    largest = 64 * (20 + 10 * n_lengths) * 64 * (1 + 3) * 4 / 2**20  # two blocks of 32; states and three gates
    assert growth(work, n_lengths) < 5 * largest
