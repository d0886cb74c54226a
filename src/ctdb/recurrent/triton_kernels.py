"""Recurrent loops for NVIDIA GPUs, in Triton: one launch for a whole scan, and one for its way back.

A program runs all bins of one model for a tile of 16 trials, so no program waits for another. Where a product with a
matrix needs the state, it is read back from memory in pieces of a few columns, beside as many rows of the weights, so
matrices of any size fit: what a program reads back it has written itself, with a barrier in between. Input projections
are products over all bins before the kernel, and weight gradients after it. The functions have a leading axis of
models, whose programs run side by side: K small models cost one launch, not K.

What was checked, and what was not. In Triton's interpreter, on a CPU, everything equals the definitions in `eager` and
the backward passes in `torch_kernels`. The kernels compile, ahead of time, for compute capabilities 8.0 and 9.0, with
little shared memory and few spilled registers (tests/recurrent/test_triton.py). Nothing here has run on a GPU yet. The
interpreter runs programs, and what a program does, one after another: it would not show a missing barrier. And how fast
the kernels are is unknown; first candidates to try are `ROWS`, the number of warps in `_launch`, the pieces of
`_product`, and tensor cores for it (``input_precision="tf32x3"``, almost as exact).

Products are in full precision ("ieee"), as torch's are unless told otherwise.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctdb.recurrent.eager import Generated, Linear, Scanned
from ctdb.recurrent.functions import CellGradients, CellWeights, ControlledCall, PoissonCall, ScanCall

ROWS = 16
"""Trials of a program."""

# ------------------------------------------------------------------------------------------------- having Triton at all


class constexpr:  # noqa: N801
    """Marks arguments of kernels that are fixed when they are compiled; Triton knows them by this name."""


triton: Any = None
tl: Any = None
_written: list[Callable] = []


def _kernel(function: Callable) -> Callable:
    """Mark a function that Triton compiles; it does so when the first kernel is asked for."""
    _written.append(inspect.unwrap(function))
    return function


def _load() -> None:
    """Put Triton's version of each marked function in its place.

    Raises
    ------
    ImportError
        If Triton is not installed.
    """
    if triton is not None:
        return
    try:
        import triton as found
        from triton import language
    except ImportError as error:
        raise ImportError(f"the GPU kernels need Triton: {error}; install torch for CUDA, which brings it") from error
    globals().update(triton=found, tl=language, constexpr=language.constexpr)
    unspecialised = ["n_trials", "n_bins"]  # or a last, smaller batch would be compiled for
    made = {function.__name__: found.jit(function, do_not_specialize=unspecialised) for function in _written}
    globals().update(made)


def interpreting() -> bool:
    """Whether Triton runs kernels on the CPU, operation by operation, as it does if TRITON_INTERPRET=1 at first use."""
    _load()
    return not isinstance(_scan_forward, triton.JITFunction)


def why_not() -> str | None:
    """Why the kernels cannot be had here, or None."""
    try:
        if interpreting() or torch.cuda.is_available():
            return None
    except ImportError as error:
        return str(error)
    return "torch finds no GPU"


def available() -> bool:
    """Whether the kernels can be had here."""
    return why_not() is None


# --------------------------------------------------------------------------------------------------- pieces of kernels
#
# Triton compiles these; `is None` and what depends on arguments marked constexpr alone is settled then. Rows of a tile
# are given as pointers, (ROWS, 1), `there` says which of them exist.


class _Cell(NamedTuple):
    """What of a cell is fixed when its kernel is compiled."""

    kind: str
    activation: str
    clip: float
    leak: float
    n: int
    """States."""
    block: int
    """States, up to the next power of two."""
    n_gates: int
    n_kept: int
    """Values that the way back needs, per state."""


@_kernel
def _read(rows, there, N: constexpr, BLOCK: constexpr):
    unit = tl.arange(0, BLOCK)[None, :]
    return tl.load(rows + unit, mask=there & (unit < N), other=0.0)


@_kernel
def _write(rows, value, there, N: constexpr, BLOCK: constexpr):
    unit = tl.arange(0, BLOCK)[None, :]
    tl.store(rows + unit, value, mask=there & (unit < N))


@_kernel
def _product(total, left, weights, there, N_IN: constexpr, N_OUT: constexpr, BLOCK: constexpr):
    """`total` + left @ weights, with rows `left` of N_IN values in memory and weights (N_IN, N_OUT)."""
    # a piece costs a wait for memory: longer ones where few columns leave registers for them
    PIECE: constexpr = 16 if N_IN <= 16 or BLOCK > 64 else 32
    out = tl.arange(0, BLOCK)[None, :]
    for first in range(0, N_IN, PIECE):
        unit = first + tl.arange(0, PIECE)
        a = tl.load(left + unit[None, :], mask=there & (unit < N_IN)[None, :], other=0.0)
        w = tl.load(weights + unit[:, None] * N_OUT + out, mask=(unit < N_IN)[:, None] & (out < N_OUT), other=0.0)
        total = tl.dot(a, w, total, input_precision="ieee", out_dtype=total.dtype)
    return total


@_kernel
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@_kernel
def _tanh(x):
    size = tl.abs(x)
    e = tl.exp(-2 * size)  # never overflows
    y = (1 - e) / (1 + e)
    y = tl.where(x < 0, -y, y)
    if x.dtype == tl.float32:  # where 1 - e would lose digits, by the series
        s = x * x
        series = x * (1 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835)))))
        y = tl.where(size < 0.3, series, y)
    return y


@_kernel
def _softplus(x):
    e = tl.exp(-tl.abs(x))
    u = 1 + e
    # log(1 + e) to full precision for small e (Kahan's way)
    logarithm = tl.where(u == 1, e, tl.log(u) * (e / tl.where(u == 1, 1.0, u - 1)))
    return tl.where(x < 0, logarithm, x + logarithm)


@_kernel
def _next(before, sums, x, w_x, w, b_inner, reset, gates, there, CELL: constexpr, N_X: constexpr):
    """Next state of a cell from the one at `before`; fills `reset` and `gates`.

    `sums` is what the inputs projected before the kernel give; `x`, of N_X values, are further inputs.
    """
    if CELL.kind == "rate":
        a = _read(sums, there, CELL.n, CELL.block)
        if x is not None:
            a = _product(a, x, w_x, there, N_X, CELL.n, CELL.block)
        a = _product(a, before, w, there, CELL.n, CELL.n, CELL.block)
        if CELL.activation == "tanh":
            y = _tanh(a)
            slope = 1 - y * y
        elif CELL.activation == "relu":
            y = tl.where(a < 0, 0.0, a)
            slope = tl.where(a > 0, 1.0, 0.0)
        else:
            y = _softplus(a)
            slope = _sigmoid(a)
        if gates is not None:
            _write(gates, slope, there, CELL.n, CELL.block)
        if CELL.leak != 1:
            h = _read(before, there, CELL.n, CELL.block)
            y = h + CELL.leak * (y - h)
    elif CELL.kind == "clipped_gru":
        r = _read(sums + CELL.n, there, CELL.n, CELL.block)
        if x is not None:
            r = _product(r, x, w_x + N_X * CELL.n, there, N_X, CELL.n, CELL.block)
        r = _sigmoid(_product(r, before, w + CELL.n * CELL.n, there, CELL.n, CELL.n, CELL.block))
        _write(reset, r * _read(before, there, CELL.n, CELL.block), there, CELL.n, CELL.block)
        z = _read(sums, there, CELL.n, CELL.block)
        if x is not None:
            z = _product(z, x, w_x, there, N_X, CELL.n, CELL.block)
        z = _sigmoid(_product(z, before, w, there, CELL.n, CELL.n, CELL.block))
        n = _read(sums + 2 * CELL.n, there, CELL.n, CELL.block)
        if x is not None:
            n = _product(n, x, w_x + 2 * N_X * CELL.n, there, N_X, CELL.n, CELL.block)
        tl.debug_barrier()
        n = _tanh(_product(n, reset, w + 2 * CELL.n * CELL.n, there, CELL.n, CELL.n, CELL.block))
        if gates is not None:
            _write(gates, z, there, CELL.n, CELL.block)
            _write(gates + CELL.n, r, there, CELL.n, CELL.block)
            _write(gates + 2 * CELL.n, n, there, CELL.n, CELL.block)
        y = n + z * (_read(before, there, CELL.n, CELL.block) - n)
        # not minimum and maximum, which drop NaN
        y = tl.where(y > CELL.clip, CELL.clip, tl.where(y < -CELL.clip, -CELL.clip, y))
    else:
        r = _read(sums, there, CELL.n, CELL.block)
        z = _read(sums + CELL.n, there, CELL.n, CELL.block)
        n = _read(sums + 2 * CELL.n, there, CELL.n, CELL.block)
        inner = tl.full(n.shape, 0.0, n.dtype)
        if b_inner is not None:
            unit = tl.arange(0, CELL.block)
            inner += tl.load(b_inner + unit, mask=unit < CELL.n, other=0.0)[None, :]
        if x is not None:
            r = _product(r, x, w_x, there, N_X, CELL.n, CELL.block)
            z = _product(z, x, w_x + N_X * CELL.n, there, N_X, CELL.n, CELL.block)
            n = _product(n, x, w_x + 2 * N_X * CELL.n, there, N_X, CELL.n, CELL.block)
        r = _sigmoid(_product(r, before, w, there, CELL.n, CELL.n, CELL.block))
        z = _sigmoid(_product(z, before, w + CELL.n * CELL.n, there, CELL.n, CELL.n, CELL.block))
        inner = _product(inner, before, w + 2 * CELL.n * CELL.n, there, CELL.n, CELL.n, CELL.block)
        n = _tanh(n + r * inner)
        if gates is not None:
            _write(gates, r, there, CELL.n, CELL.block)
            _write(gates + CELL.n, z, there, CELL.n, CELL.block)
            _write(gates + 2 * CELL.n, n, there, CELL.n, CELL.block)
            _write(gates + 3 * CELL.n, inner, there, CELL.n, CELL.block)
        y = n + z * (_read(before, there, CELL.n, CELL.block) - n)
    return y


@_kernel
def _previous(d, before, gates, d_sums, d_inner, w, there, CELL: constexpr):
    """Gradient of the state before from that of the next, `d`; fills `d_sums` and, for a GRU, `d_inner`.

    When it returns, all of `d_sums` can be read back.
    """
    if CELL.kind == "rate":
        _write(d_sums, CELL.leak * d * _read(gates, there, CELL.n, CELL.block), there, CELL.n, CELL.block)
        tl.debug_barrier()
        d = tl.full(d.shape, 0.0, d.dtype) if CELL.leak == 1 else (1 - CELL.leak) * d
        d = _product(d, d_sums, w, there, CELL.n, CELL.n, CELL.block)
    elif CELL.kind == "clipped_gru":
        h = _read(before, there, CELL.n, CELL.block)
        z = _read(gates, there, CELL.n, CELL.block)
        n = _read(gates + 2 * CELL.n, there, CELL.n, CELL.block)
        d = tl.where(tl.abs(n + z * (h - n)) > CELL.clip, 0.0, d)
        _write(d_sums + 2 * CELL.n, d * (1 - z) * (1 - n * n), there, CELL.n, CELL.block)
        _write(d_sums, d * (h - n) * z * (1 - z), there, CELL.n, CELL.block)
        tl.debug_barrier()
        d_reset = tl.full(d.shape, 0.0, d.dtype)
        d_reset = _product(d_reset, d_sums + 2 * CELL.n, w + 2 * CELL.n * CELL.n, there, CELL.n, CELL.n, CELL.block)
        r = _read(gates + CELL.n, there, CELL.n, CELL.block)
        _write(d_sums + CELL.n, d_reset * h * r * (1 - r), there, CELL.n, CELL.block)
        tl.debug_barrier()
        d = _product(d * z + d_reset * r, d_sums, w, there, 2 * CELL.n, CELL.n, CELL.block)
    else:
        h = _read(before, there, CELL.n, CELL.block)
        r = _read(gates, there, CELL.n, CELL.block)
        z = _read(gates + CELL.n, there, CELL.n, CELL.block)
        n = _read(gates + 2 * CELL.n, there, CELL.n, CELL.block)
        d_new = d * (1 - z) * (1 - n * n)
        _write(
            d_sums,
            d_new * _read(gates + 3 * CELL.n, there, CELL.n, CELL.block) * r * (1 - r),
            there,
            CELL.n,
            CELL.block,
        )
        _write(d_sums + CELL.n, d * (h - n) * z * (1 - z), there, CELL.n, CELL.block)
        _write(d_sums + 2 * CELL.n, d_new, there, CELL.n, CELL.block)
        _write(d_inner, d_new * r, there, CELL.n, CELL.block)
        tl.debug_barrier()
        d = _product(d * z, d_sums, w, there, 2 * CELL.n, CELL.n, CELL.block)
        d = _product(d, d_inner, w + 2 * CELL.n * CELL.n, there, CELL.n, CELL.n, CELL.block)
    return d


# ------------------------------------------------------------------------------------------------------------- kernels
#
# Data lie as (models, trials, bins, channels), and states with one bin more, for the one before the first.
# fmt: off


@_kernel
def _scan_forward(
    sums, w, b_inner, path, valid, kicks, reset, gates, clean, n_trials, n_bins, CELL: constexpr, REVERSE: constexpr,
    ROWS: constexpr,
):
    model = tl.program_id(0).to(tl.int64)
    trial = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    there = trial < n_trials
    row = model * n_trials + trial
    w += model * (CELL.n_gates * CELL.n * CELL.n)
    if b_inner is not None:
        b_inner += model * CELL.n
    for step in range(n_bins):
        at = row * n_bins + ((n_bins - 1 - step) if REVERSE else step)
        at_path = path + (at + row) * CELL.n
        before = at_path + (CELL.n if REVERSE else 0)
        after = at_path + (0 if REVERSE else CELL.n)
        at_gates = None if gates is None else gates + at * (CELL.n_kept * CELL.n)
        at_reset = None
        if reset is not None:
            at_reset = reset + (row if gates is None else at) * CELL.n
        at_sums = sums + at * (CELL.n_gates * CELL.n)
        y = _next(before, at_sums, None, None, w, b_inner, at_reset, at_gates, there, CELL, 0)
        if clean is not None:
            _write(clean + at * CELL.n, y, there, CELL.n, CELL.block)
        if kicks is not None:
            y += _read(kicks + at * CELL.n, there, CELL.n, CELL.block)
        if valid is not None:
            moves = tl.load(valid + at, mask=there, other=0) != 0
            y = tl.where(moves, y, _read(before, there, CELL.n, CELL.block))
        _write(after, y, there, CELL.n, CELL.block)
        tl.debug_barrier()


@_kernel
def _scan_backward(
    w, path, valid, gates, d_states, d_clean, d_start, d_sums, d_inner, n_trials, n_bins, CELL: constexpr,
    REVERSE: constexpr, ROWS: constexpr,
):
    model = tl.program_id(0).to(tl.int64)
    trial = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    there = trial < n_trials
    row = model * n_trials + trial
    w += model * (CELL.n_gates * CELL.n * CELL.n)
    d = _read(d_start + row * CELL.n, there, CELL.n, CELL.block)
    for step in range(n_bins):
        at = row * n_bins + (step if REVERSE else (n_bins - 1 - step))
        before = path + (at + row + (1 if REVERSE else 0)) * CELL.n
        if d_states is not None:
            d += _read(d_states + at * CELL.n, there, CELL.n, CELL.block)
        held = tl.full(d.shape, 0.0, d.dtype)
        if valid is not None:
            moves = tl.load(valid + at, mask=there, other=0) != 0
            held = tl.where(moves, 0.0, d)
            d = tl.where(moves, d, 0.0)
        if d_clean is not None:
            d += _read(d_clean + at * CELL.n, there, CELL.n, CELL.block)
        at_inner = None if d_inner is None else d_inner + at * CELL.n
        at_sums = d_sums + at * (CELL.n_gates * CELL.n)
        d = held + _previous(d, before, gates + at * (CELL.n_kept * CELL.n), at_sums, at_inner, w, there, CELL)
    _write(d_start + row * CELL.n, d, there, CELL.n, CELL.block)


@_kernel
def _controlled_forward(
    gen_sums, gen_w, gen_w_co, gen_b_inner, gen_path, gen_reset, gen_gates, con_sums, con_w, con_w_factors,
    con_b_inner, con_path, con_reset, con_gates, to_factors, to_co, co_bias, seen, shown, factors, gen_inputs,
    co_means, co_stds, co_noise, control, keep_factors, keep_states, scale, n_trials, n_bins, GEN: constexpr,
    CON: constexpr, N_FACTORS: constexpr, FACTORS: constexpr, N_CO: constexpr, CO: constexpr, N_INPUTS: constexpr,
    ROWS: constexpr,
):
    model = tl.program_id(0).to(tl.int64)
    trial = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    there = trial < n_trials
    row = model * n_trials + trial
    gen_w += model * (GEN.n_gates * GEN.n * GEN.n)
    con_w += model * (CON.n_gates * CON.n * CON.n)
    gen_w_co += model * (GEN.n_gates * N_CO * GEN.n)
    con_w_factors += model * (CON.n_gates * N_FACTORS * CON.n)
    to_factors += model * (GEN.n * N_FACTORS)
    to_co += model * (2 * N_CO * CON.n)
    co = tl.arange(0, CO)
    mean_bias = tl.load(co_bias + model * (2 * N_CO) + co, mask=co < N_CO, other=0.0)[None, :]
    variance_bias = tl.load(co_bias + model * (2 * N_CO) + N_CO + co, mask=co < N_CO, other=0.0)[None, :]
    if gen_b_inner is not None:
        gen_b_inner += model * GEN.n
    if con_b_inner is not None:
        con_b_inner += model * CON.n
    if scale is not None:
        scale = tl.load(scale + model)
    for step in range(n_bins):
        at = row * n_bins + step
        at_gen = gen_path + (at + row) * GEN.n
        at_con = con_path + (at + row) * CON.n
        # the controller, which sees the factors of the bin before
        at_gates = None if con_gates is None else con_gates + at * (CON.n_kept * CON.n)
        at_reset = None
        if con_reset is not None:
            at_reset = con_reset + (row if con_gates is None else at) * CON.n
        at_sums = con_sums + at * (CON.n_gates * CON.n)
        at_shown = shown + at * N_FACTORS
        c = _next(
            at_con, at_sums, at_shown, con_w_factors, con_w, con_b_inner, at_reset, at_gates, there, CON, N_FACTORS
        )
        _write(at_con + CON.n, c, there, CON.n, CON.block)
        tl.debug_barrier()
        # the inferred input
        zeros = tl.full([ROWS, CO], 0.0, c.dtype)
        mean = _product(zeros + mean_bias, at_con + CON.n, to_co, there, CON.n, N_CO, CO)
        variance = _product(zeros + variance_bias, at_con + CON.n, to_co + CON.n * N_CO, there, CON.n, N_CO, CO)
        std = tl.exp(0.5 * variance)
        _write(co_means + at * N_CO, mean, there, N_CO, CO)
        _write(co_stds + at * N_CO, std, there, N_CO, CO)
        if co_noise is not None:
            mean += std * _read(co_noise + at * N_CO, there, N_CO, CO)
        if control is not None:
            mean = mean * tl.load(control + model * n_bins + step)
        at_inputs = gen_inputs + at * N_INPUTS
        _write(at_inputs, mean, there, N_CO, CO)
        tl.debug_barrier()
        # the generator
        at_gates = None if gen_gates is None else gen_gates + at * (GEN.n_kept * GEN.n)
        at_reset = None
        if gen_reset is not None:
            at_reset = gen_reset + (row if gen_gates is None else at) * GEN.n
        at_sums = gen_sums + at * (GEN.n_gates * GEN.n)
        h = _next(at_gen, at_sums, at_inputs, gen_w_co, gen_w, gen_b_inner, at_reset, at_gates, there, GEN, N_CO)
        _write(at_gen + GEN.n, h, there, GEN.n, GEN.block)
        at_seen = at_gen + GEN.n
        if keep_states is not None:
            at_seen = seen + (at + row + 1) * GEN.n
            keep = _read(keep_states + at * GEN.n, there, GEN.n, GEN.block).to(h.dtype)
            _write(at_seen, h * (keep * scale), there, GEN.n, GEN.block)
        tl.debug_barrier()
        # the factors, and what the controller will see of them
        f = tl.full([ROWS, FACTORS], 0.0, h.dtype)
        f = _product(f, at_seen, to_factors, there, GEN.n, N_FACTORS, FACTORS)
        _write(factors + at * N_FACTORS, f, there, N_FACTORS, FACTORS)
        more = there & (step + 1 < n_bins)
        if keep_factors is not None:
            f = f * (_read(keep_factors + (at + 1) * N_FACTORS, more, N_FACTORS, FACTORS).to(f.dtype) * scale)
        _write(at_shown + N_FACTORS, f, more, N_FACTORS, FACTORS)
        tl.debug_barrier()


@_kernel
def _controlled_backward(
    gen_w, gen_w_co, gen_path, gen_gates, gen_d_sums, gen_d_inner, con_w, con_w_factors, con_path, con_gates,
    con_d_sums, con_d_inner, to_factors, to_co, co_stds, co_noise, control, keep_factors, keep_states, scale,
    g_states, g_factors, g_inputs, g_con, g_means, g_stds, d_start, d_con_start, d_factors, d_params, n_trials,
    n_bins, GEN: constexpr, CON: constexpr, N_FACTORS: constexpr, FACTORS: constexpr, N_CO: constexpr, CO: constexpr,
    N_INPUTS: constexpr, ROWS: constexpr,
):
    model = tl.program_id(0).to(tl.int64)
    trial = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    there = trial < n_trials
    row = model * n_trials + trial
    gen_w += model * (GEN.n_gates * GEN.n * GEN.n)
    con_w += model * (CON.n_gates * CON.n * CON.n)
    gen_w_co += model * (GEN.n_gates * GEN.n * N_CO)
    con_w_factors += model * (CON.n_gates * CON.n * N_FACTORS)
    to_factors += model * (N_FACTORS * GEN.n)
    to_co += model * (2 * N_CO * CON.n)
    if scale is not None:
        scale = tl.load(scale + model)
    d = tl.full([ROWS, GEN.block], 0.0, gen_w.dtype.element_ty)
    d_con = tl.full([ROWS, CON.block], 0.0, gen_w.dtype.element_ty)
    d_fac = tl.full([ROWS, FACTORS], 0.0, gen_w.dtype.element_ty)
    for back in range(n_bins):
        step = n_bins - 1 - back
        at = row * n_bins + step
        # the factors
        if g_factors is not None:
            d_fac += _read(g_factors + at * N_FACTORS, there, N_FACTORS, FACTORS)
        at_factors = d_factors + (at + row + 1) * N_FACTORS
        _write(at_factors, d_fac, there, N_FACTORS, FACTORS)
        tl.debug_barrier()
        if keep_states is not None:
            d_seen = tl.full(d.shape, 0.0, d.dtype)
            d_seen = _product(d_seen, at_factors, to_factors, there, N_FACTORS, GEN.n, GEN.block)
            d += d_seen * (_read(keep_states + at * GEN.n, there, GEN.n, GEN.block).to(d.dtype) * scale)
        else:
            d = _product(d, at_factors, to_factors, there, N_FACTORS, GEN.n, GEN.block)
        # the generator
        if g_states is not None:
            d += _read(g_states + at * GEN.n, there, GEN.n, GEN.block)
        at_gates = gen_gates + at * (GEN.n_kept * GEN.n)
        at_sums = gen_d_sums + at * (GEN.n_gates * GEN.n)
        at_inner = None if gen_d_inner is None else gen_d_inner + at * GEN.n
        d = _previous(d, gen_path + (at + row) * GEN.n, at_gates, at_sums, at_inner, gen_w, there, GEN)
        # the inferred input
        d_mean = tl.full([ROWS, CO], 0.0, d.dtype)
        d_mean = _product(d_mean, at_sums, gen_w_co, there, GEN.n_gates * GEN.n, N_CO, CO)
        if g_inputs is not None:
            d_mean += _read(g_inputs + at * N_INPUTS, there, N_CO, CO)
        if control is not None:
            d_mean = d_mean * tl.load(control + model * n_bins + step)
        d_std = tl.full([ROWS, CO], 0.0, d.dtype)
        if co_noise is not None:
            d_std = d_mean * _read(co_noise + at * N_CO, there, N_CO, CO)
        if g_means is not None:
            d_mean += _read(g_means + at * N_CO, there, N_CO, CO)
        if g_stds is not None:
            d_std += _read(g_stds + at * N_CO, there, N_CO, CO)
        at_params = d_params + at * (2 * N_CO)
        _write(at_params, d_mean, there, N_CO, CO)
        _write(at_params + N_CO, 0.5 * d_std * _read(co_stds + at * N_CO, there, N_CO, CO), there, N_CO, CO)
        tl.debug_barrier()
        # the controller
        d_con = _product(d_con, at_params, to_co, there, 2 * N_CO, CON.n, CON.block)
        if g_con is not None:
            d_con += _read(g_con + at * CON.n, there, CON.n, CON.block)
        at_gates = con_gates + at * (CON.n_kept * CON.n)
        at_sums = con_d_sums + at * (CON.n_gates * CON.n)
        at_inner = None if con_d_inner is None else con_d_inner + at * CON.n
        d_con = _previous(d_con, con_path + (at + row) * CON.n, at_gates, at_sums, at_inner, con_w, there, CON)
        # the factors that it saw
        d_fac = tl.full([ROWS, FACTORS], 0.0, d.dtype)
        d_fac = _product(d_fac, at_sums, con_w_factors, there, CON.n_gates * CON.n, N_FACTORS, FACTORS)
        if keep_factors is not None:
            d_fac = d_fac * (_read(keep_factors + at * N_FACTORS, there, N_FACTORS, FACTORS).to(d.dtype) * scale)
    _write(d_factors + row * (n_bins + 1) * N_FACTORS, d_fac, there, N_FACTORS, FACTORS)
    _write(d_start + row * GEN.n, d, there, GEN.n, GEN.block)
    _write(d_con_start + row * CON.n, d_con, there, CON.n, CON.block)


# fmt: on
# ------------------------------------------------------------------------------ loops of several models, around kernels


class ScanCalls(ScanCall):
    """Arguments of a scan, every tensor with a leading axis of models."""

    def __post_init__(self) -> None:
        """Check no shape: one model's is checked where it is called."""


class ControlledCalls(ControlledCall):
    """Arguments of a controlled scan, every tensor with a leading axis of models; so may `kept.scale` be one."""

    def __post_init__(self) -> None:
        """Check no shape: one model's is checked where it is called."""


class PoissonCalls(PoissonCall):
    """Arguments of a Poisson likelihood, every tensor with a leading axis of models."""

    def __post_init__(self) -> None:
        """Check no shape: one model's is checked where it is called."""


class _ScanKept(NamedTuple):
    """What a scan leaves for its way back."""

    path: Tensor
    """States, from before the first step to after the last in the order of time."""
    gates: Tensor
    reset: Tensor | None
    clean: Tensor | None


class _ControlledKept(NamedTuple):
    """What a controlled scan leaves for its way back: of each cell as of a scan, and what it saw."""

    gen: _ScanKept
    con: _ScanKept
    ci: Tensor
    seen: Tensor
    """States that the factors are read out of, from before the first bin on."""
    shown: Tensor
    """Factors that the controller sees in each bin."""
    gen_inputs: Tensor
    co_stds: Tensor


def scan_forward(call: ScanCalls, kicks: Tensor | None = None) -> tuple[Scanned, Any]:
    """Scan of models side by side.

    Parameters
    ----------
    call
        What to do; its noise is not looked at.
    kicks
        What is added to the states, (models, trials, bins, states).

    Returns
    -------
    made
        States, last state and outputs, each with a leading axis of models.
    kept
        What :func:`scan_backward` needs; None if the call says that it will not run.
    """
    cell, shape = call.cell, _shape(call.cell)
    n_models, n_trials, n_bins, _ = call.inputs.shape
    new = call.start.new_empty
    path = new(n_models, n_trials, n_bins + 1, shape.n)
    after = path[:, :, :-1] if call.reverse else path[:, :, 1:]
    path[:, :, -1 if call.reverse else 0] = call.start
    gates, reset = _kept(shape, call.start, n_bins, call.keeps)
    apart = call.readout is not None and (kicks is not None or call.valid is not None)
    clean = new(n_models, n_trials, n_bins, shape.n) if apart else None
    _launch(
        "_scan_forward",
        (n_models, n_trials, n_bins),
        shape,
        sums=_project(call.inputs, cell.w_in, _input_bias(cell)),
        w=_turned(cell.w_rec, shape.n_gates),
        b_inner=_inner_bias(cell),
        path=path,
        valid=None if call.valid is None else call.valid.to(torch.uint8),
        kicks=kicks,
        reset=reset,
        gates=gates,
        clean=clean,
        CELL=shape,
        REVERSE=call.reverse,
    )
    outputs = None
    if call.readout is not None:
        outputs = _project(after if clean is None else clean, call.readout.weight, call.readout.bias)
    last = path[:, :, 0 if call.reverse else -1].clone()
    # a copy: the path is for the way back, and nobody else may change it
    states = after.clone(memory_format=torch.contiguous_format) if call.states else None
    return Scanned(states, last, outputs), _ScanKept(path, gates, reset, clean) if call.keeps else None


def scan_backward(
    call: ScanCalls, kept: Any, grads: Scanned, wants_inputs: bool
) -> dict[str, Tensor | CellGradients | Linear | None]:
    """Gradients `inputs` (where wanted), `start`, `cell` and `readout`, each with a leading axis of models.

    Parameters
    ----------
    call, kept
        Argument and result of :func:`scan_forward`.
    grads
        Gradients of what it made; None for 0.
    wants_inputs
        Whether the gradient of the inputs is wanted.
    """
    cell, shape = call.cell, _shape(call.cell)
    n_models, n_trials, n_bins, _ = call.inputs.shape
    new = call.start.new_empty
    d_start = torch.zeros_like(call.start) if grads.last is None else grads.last.clone()
    d_sums = new(n_models, n_trials, n_bins, shape.n_gates * shape.n)
    d_inner = new(n_models, n_trials, n_bins, shape.n) if cell.kind == "gru" else None
    d_start = d_start.contiguous()
    _launch(
        "_scan_backward",
        (n_models, n_trials, n_bins),
        shape,
        w=cell.w_rec,
        path=kept.path,
        valid=None if call.valid is None else call.valid.to(torch.uint8),
        gates=kept.gates,
        d_states=grads.states,
        d_clean=None if grads.outputs is None else _times(grads.outputs, call.readout.weight),
        d_start=d_start,
        d_sums=d_sums,
        d_inner=d_inner,
        CELL=shape,
        REVERSE=call.reverse,
    )
    before, after = (slice(1, None), slice(-1)) if call.reverse else (slice(-1), slice(1, None))
    made = {
        "start": d_start,
        "cell": _cell_gradients(cell, call.inputs, kept.path[:, :, before], kept.reset, d_sums, d_inner),
    }
    if wants_inputs:
        made["inputs"] = _times(d_sums, cell.w_in)
    if call.readout is not None:
        made["readout"] = Linear(*[torch.zeros_like(value) for value in call.readout])
        if grads.outputs is not None:
            clean = kept.path[:, :, after] if kept.clean is None else kept.clean
            made["readout"] = Linear(_outer(grads.outputs, clean), grads.outputs.sum((1, 2)))
    return made


def controlled_forward(call: ControlledCalls) -> tuple[Generated, Any]:
    """Controlled scan of models side by side.

    Parameters
    ----------
    call
        What to do.

    Returns
    -------
    made
        What the generators do, each with a leading axis of models.
    kept
        What :func:`controlled_backward` needs; None if the call says that it will not run.
    """
    if call.controller is None:
        made, kept = scan_forward(_uncontrolled(call))
        seen = made.states if call.kept is None else _dropped(made.states, call.kept.states, call.kept.scale)
        none = [made.states.new_empty(*made.states.shape[:3], 0) for _ in range(3)]
        # what autograd gets must not be what it was given
        found = Generated(made.states, _project(seen, call.to_factors), call.ext_input.clone(), *none)
        return found, (kept, seen if call.kept else seen.clone()) if call.keeps else None
    gen, con, drop = call.generator, call.controller, call.kept
    gen_shape, con_shape = _shape(gen), _shape(con)
    n_models, n_trials, n_bins, _ = call.ext_input.shape
    n_factors, n_co, n_ci = call.to_factors.shape[1], call.to_co.bias.shape[1] // 2, call.ci.shape[3]
    each, new = (n_models, n_trials, n_bins), call.start.new_empty
    ci = call.ci if drop is None or drop.ci is None else _dropped(call.ci, drop.ci, drop.scale)
    start = call.start if drop is None or drop.start is None else _dropped(call.start, drop.start, drop.scale)
    gen_path, con_path = (
        new(n_models, n_trials, n_bins + 1, gen_shape.n),
        new(n_models, n_trials, n_bins + 1, con_shape.n),
    )
    gen_path[:, :, 0], con_path[:, :, 0] = call.start, call.con_start
    seen = gen_path
    if drop is not None:
        seen = torch.empty_like(gen_path)
        seen[:, :, 0] = start
    shown = new(*each, n_factors)
    if n_bins:
        first = _project(start[:, :, None], call.to_factors)
        unseen = drop is None or drop.factors is None
        shown[:, :, :1] = first if unseen else _dropped(first, drop.factors[:, :, :1], drop.scale)
    gen_gates, gen_reset = _kept(gen_shape, call.start, n_bins, call.keeps)
    con_gates, con_reset = _kept(con_shape, call.start, n_bins, call.keeps)
    factors, co_means, co_stds = new(*each, n_factors), new(*each, n_co), new(*each, n_co)
    gen_inputs = torch.cat([new(*each, n_co), call.ext_input], 3)
    _launch(
        "_controlled_forward",
        each,
        gen_shape,
        gen_sums=_project(call.ext_input, gen.w_in[:, :, n_co:], _input_bias(gen)),
        gen_w=_turned(gen.w_rec, gen_shape.n_gates),
        gen_w_co=_turned(gen.w_in[:, :, :n_co], gen_shape.n_gates),
        gen_b_inner=_inner_bias(gen),
        gen_path=gen_path,
        gen_reset=gen_reset,
        gen_gates=gen_gates,
        con_sums=_project(ci, con.w_in[:, :, :n_ci], _input_bias(con)),
        con_w=_turned(con.w_rec, con_shape.n_gates),
        con_w_factors=_turned(con.w_in[:, :, n_ci:], con_shape.n_gates),
        con_b_inner=_inner_bias(con),
        con_path=con_path,
        con_reset=con_reset,
        con_gates=con_gates,
        to_factors=_turned(call.to_factors, 1),
        to_co=_turned(call.to_co.weight, 2),
        co_bias=call.to_co.bias,
        seen=seen,
        shown=shown,
        factors=factors,
        gen_inputs=gen_inputs,
        co_means=co_means,
        co_stds=co_stds,
        **_controls(call),
    )
    whole = {"memory_format": torch.contiguous_format}
    made = Generated(
        gen_states=gen_path[:, :, 1:].clone(**whole) if call.states else None,
        factors=factors,
        gen_inputs=gen_inputs.clone() if call.states else None,
        con_states=con_path[:, :, 1:].clone(**whole) if call.states else None,
        co_means=co_means,
        co_stds=co_stds,
    )
    if not call.keeps:
        return made, None
    gen_kept, con_kept = (
        _ScanKept(gen_path, gen_gates, gen_reset, None),
        _ScanKept(con_path, con_gates, con_reset, None),
    )
    return made, _ControlledKept(gen_kept, con_kept, ci, seen, shown, gen_inputs, co_stds.clone())


def controlled_backward(call: ControlledCalls, kept: Any, grads: Generated, wants: set[str]) -> dict[str, Any]:
    """Gradients of :func:`controlled_forward`, each with a leading axis of models.

    They are `start`, `generator`, `to_factors` and, where there is a controller, `con_start`, `controller` and `to_co`;
    `ext_input` and `ci` if wanted.

    Parameters
    ----------
    call, kept
        Argument and result of :func:`controlled_forward`.
    grads
        Gradients of what it made; None for 0.
    wants
        Which of `ext_input` and `ci` have their gradient computed.
    """
    if call.controller is None:
        return _uncontrolled_backward(call, kept, grads, wants)
    gen, con, drop = call.generator, call.controller, call.kept
    gen_shape, con_shape = _shape(gen), _shape(con)
    n_models, n_trials, n_bins, _ = call.ext_input.shape
    n_factors, n_co, n_ci = call.to_factors.shape[1], call.to_co.bias.shape[1] // 2, call.ci.shape[3]
    each, new = (n_models, n_trials, n_bins), call.start.new_empty
    gen_d, con_d = new(*each, gen_shape.n_gates * gen_shape.n), new(*each, con_shape.n_gates * con_shape.n)
    gen_d_inner = new(*each, gen_shape.n) if gen.kind == "gru" else None
    con_d_inner = new(*each, con_shape.n) if con.kind == "gru" else None
    d_start, d_con_start = new(n_models, n_trials, gen_shape.n), new(n_models, n_trials, con_shape.n)
    d_factors, d_params = new(n_models, n_trials, n_bins + 1, n_factors), new(*each, 2 * n_co)
    _launch(
        "_controlled_backward",
        each,
        gen_shape,
        gen_w=gen.w_rec,
        gen_w_co=gen.w_in[:, :, :n_co],
        gen_path=kept.gen.path,
        gen_gates=kept.gen.gates,
        gen_d_sums=gen_d,
        gen_d_inner=gen_d_inner,
        con_w=con.w_rec,
        con_w_factors=con.w_in[:, :, n_ci:],
        con_path=kept.con.path,
        con_gates=kept.con.gates,
        con_d_sums=con_d,
        con_d_inner=con_d_inner,
        to_factors=call.to_factors,
        to_co=call.to_co.weight,
        co_stds=kept.co_stds,
        g_states=grads.gen_states,
        g_factors=grads.factors,
        g_inputs=grads.gen_inputs,
        g_con=grads.con_states,
        g_means=grads.co_means,
        g_stds=grads.co_stds,
        d_start=d_start,
        d_con_start=d_con_start,
        d_factors=d_factors,
        d_params=d_params,
        **_controls(call),
    )
    through_factors = torch.bmm(d_factors[:, :, 0], call.to_factors)
    if drop is not None and drop.start is not None:
        through_factors = _dropped(through_factors, drop.start, drop.scale)
    x = torch.cat([kept.ci, kept.shown], 3)
    con_states = kept.con.path[:, :, 1:]
    made = {
        "start": d_start + through_factors,
        "con_start": d_con_start,
        "to_factors": _outer(d_factors, kept.seen),
        "generator": _cell_gradients(
            gen, kept.gen_inputs, kept.gen.path[:, :, :-1], kept.gen.reset, gen_d, gen_d_inner
        ),
        "controller": _cell_gradients(con, x, kept.con.path[:, :, :-1], kept.con.reset, con_d, con_d_inner),
        "to_co": Linear(_outer(d_params, con_states), d_params.sum((1, 2))),
    }
    if "ext_input" in wants:
        made["ext_input"] = _times(gen_d, gen.w_in[:, :, n_co:])
        if grads.gen_inputs is not None:
            made["ext_input"] += grads.gen_inputs[..., n_co:]
    if "ci" in wants:
        made["ci"] = _times(con_d, con.w_in[:, :, :n_ci])
        if drop is not None and drop.ci is not None:
            made["ci"] = _dropped(made["ci"], drop.ci, drop.scale)
    return made


def poisson(call: PoissonCalls) -> tuple[Tensor, list[Tensor | None]]:
    """Sums of weighted Poisson negative log-likelihoods, (models,), and their gradients (factors, weight, bias).

    In torch: three products and a few passes over (trials, bins, neurons), which are some percent of the time that the
    scans before it take. A fused kernel would save some of the passes but not the products, and the sum of the weights'
    gradient over programs would need atomics, whose order, and so the last digits, would vary from run to run.

    Parameters
    ----------
    call
        What to do.
    """
    log_rates = _project(call.factors, call.readout.weight, call.readout.bias)
    # Where nothing weighs, a rate may be beyond all numbers: 0 times that would be NaN.
    log_rates = log_rates.masked_fill_(call.weight == 0, 0)
    counts = call.counts.to(log_rates.dtype)
    error = log_rates.exp()
    nll = (error + torch.lgamma(counts + 1)).sub_(log_rates.mul_(counts)).mul_(call.weight)
    total = nll.sum((1, 2, 3))
    if not call.keeps:
        return total, [None] * 3
    error = error.sub_(counts).mul_(call.weight)
    if call.learned is not None:
        error = error.mul_(call.learned)
    return total, [_times(error, call.readout.weight), _outer(error, call.factors), error.sum((1, 2))]


def _shape(cell: CellWeights) -> _Cell:
    n = cell.w_rec.shape[-1]
    n_gates, n_kept = {"clipped_gru": (3, 3), "gru": (3, 4), "rate": (1, 1)}[cell.kind]
    return _Cell(cell.kind, cell.activation, float(cell.clip), float(cell.leak), n, _block(n), n_gates, n_kept)


def _block(n: int) -> int:
    """Columns of a tile that holds `n`: a power of two, at least the 16 that Triton's products need."""
    return max(16, 1 << (n - 1).bit_length())


def _kept(shape: _Cell, like: Tensor, n_bins: int, keeps: bool) -> tuple[Tensor | None, Tensor | None]:
    """Room for gates and for reset states; without a way back, one row per trial is enough for the latter."""
    new, each = like.new_empty, like.shape[:2]
    gates = new(*each, n_bins, shape.n_kept * shape.n) if keeps else None
    reset = new(*each, n_bins if keeps else 1, shape.n) if shape.kind == "clipped_gru" else None
    return gates, reset


def _controls(call: ControlledCalls) -> dict[str, Any]:
    """Arguments that both directions of a controlled scan share."""
    drop, gen, con = call.kept, _shape(call.generator), _shape(call.controller)
    scale = None if drop is None else drop.scale
    if isinstance(scale, float | int):
        scale = call.start.new_full((len(call.start),), scale)
    n_factors, n_co = call.to_factors.shape[1], call.to_co.bias.shape[1] // 2
    return {
        "co_noise": call.co_noise,
        "control": call.control,
        "keep_factors": None if drop is None else drop.factors,
        "keep_states": None if drop is None else drop.states,
        "scale": scale,
        "GEN": gen,
        "CON": con,
        "N_FACTORS": n_factors,
        "FACTORS": _block(n_factors),
        "N_CO": n_co,
        "CO": _block(n_co),
        "N_INPUTS": n_co + call.ext_input.shape[3],
    }


def _uncontrolled(call: ControlledCalls) -> ScanCalls:
    return ScanCalls(call.generator, call.ext_input, call.start, keeps=call.keeps)


def _uncontrolled_backward(call: ControlledCalls, kept: Any, grads: Generated, wants: set[str]) -> dict[str, Any]:
    scan_kept, seen = kept
    d_states = grads.gen_states
    if grads.factors is not None:
        d_seen = _times(grads.factors, call.to_factors)
        if call.kept is not None:
            d_seen = _dropped(d_seen, call.kept.states, call.kept.scale)
        d_states = d_seen if d_states is None else d_states + d_seen
    found = scan_backward(_uncontrolled(call), scan_kept, Scanned(d_states, None, None), "ext_input" in wants)
    made = {"start": found["start"], "generator": found["cell"]}
    none = grads.factors is None
    made["to_factors"] = torch.zeros_like(call.to_factors) if none else _outer(grads.factors, seen)
    if "ext_input" in wants:
        made["ext_input"] = found["inputs"] if grads.gen_inputs is None else found["inputs"] + grads.gen_inputs
    return made


def _input_bias(cell: CellWeights) -> Tensor | None:
    """Offset of the sums before the loop: all but the inner part of a GRU, which its reset gate multiplies."""
    if cell.b_rec is None:
        return cell.b_in
    outer = cell.b_rec
    if cell.kind == "gru":
        n = cell.w_rec.shape[-1]
        outer = torch.cat([outer[:, : 2 * n], torch.zeros_like(outer[:, 2 * n :])], 1)
    return outer if cell.b_in is None else cell.b_in + outer


def _inner_bias(cell: CellWeights) -> Tensor | None:
    return cell.b_rec[:, 2 * cell.w_rec.shape[-1] :] if cell.kind == "gru" and cell.b_rec is not None else None


def _cell_gradients(
    cell: CellWeights, inputs: Tensor, before: Tensor, reset: Tensor | None, d_sums: Tensor, d_inner: Tensor | None
) -> CellGradients:
    """Gradients of a cell's weights, each one product over trials and bins."""
    n, bias = cell.w_rec.shape[-1], d_sums.sum((1, 2))
    rec_bias = bias
    if cell.kind == "rate":
        w_rec = _outer(d_sums, before)
    else:
        last, seen = (d_sums[..., 2 * n :], reset) if d_inner is None else (d_inner, before)
        w_rec = torch.cat([_outer(d_sums[..., : 2 * n], before), _outer(last, seen)], 1)
        if d_inner is not None:
            rec_bias = torch.cat([bias[:, : 2 * n], d_inner.sum((1, 2))], 1)
    b_in, b_rec = None if cell.b_in is None else bias, None if cell.b_rec is None else rec_bias
    return CellGradients(_outer(d_sums, inputs), w_rec, b_in, b_rec)


def _project(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Map the last axis of values (models, trials, bins, inputs) by weights (models, outputs, inputs)."""
    n_models, n_trials, n_bins, n_in = values.shape
    n_out = weight.shape[1]
    if not n_in:
        made = weight.new_zeros(n_models, n_trials * n_bins, n_out)
        made = made if bias is None else made + bias[:, None]
    else:
        made = torch.bmm(values.flatten(1, 2), weight.mT)
        made = made if bias is None else made.add_(bias[:, None])
    return made.view(n_models, n_trials, n_bins, n_out)


def _times(values: Tensor, weight: Tensor) -> Tensor:
    """`values` (models, trials, bins, outputs) @ `weight` (models, outputs, inputs)."""
    return torch.bmm(values.flatten(1, 2), weight).view(*values.shape[:3], weight.shape[2])


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Sum over trials and bins of the products of each two channels, (models, left, right)."""
    return torch.bmm(left.flatten(1, 2).mT, right.flatten(1, 2))


def _turned(weight: Tensor, n_blocks: int) -> Tensor:
    """Transpose each block of rows: (models, blocks * outputs, inputs) to (models, blocks, inputs, outputs)."""
    return weight.unflatten(1, (n_blocks, -1)).mT.contiguous()


def _dropped(values: Tensor, keep: Tensor, scale: float | Tensor) -> Tensor:
    if isinstance(scale, Tensor):
        scale = scale.view(-1, *[1] * (values.dim() - 1))
    return values * (keep.to(values.dtype) * scale)


def _launch(kernel: str, each: tuple[int, int, int], largest: _Cell, **arguments: Any) -> None:
    """Run a kernel over models, trials and bins. What it reads is made contiguous; what it writes must be so.

    Raises
    ------
    ImportError
        If Triton is not installed.
    ValueError
        If the tensors are not on a GPU, or not of a type that the kernels know.
    """
    _load()
    some = arguments["path"] if "path" in arguments else arguments["gen_path"]
    if some.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the GPU kernels need float32 or float64, not {some.dtype}")
    if some.device.type != "cuda" and not interpreting():
        raise ValueError(f"the GPU kernels need tensors on a GPU, not on {some.device}")
    n_models, n_trials, n_bins = each
    arguments |= {"n_trials": n_trials, "n_bins": n_bins, "ROWS": ROWS}
    given = {name: value.contiguous() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    given |= {"num_warps": 8 if largest.block >= 128 else 4, "num_stages": 4 if largest.block <= 256 else 3}
    with torch.cuda.device_of(some):
        globals()[kernel][(n_models, -(-n_trials // ROWS))](**given)


class TritonKernels:
    """See :class:`ctdb.recurrent.functions.Kernels`: the functions above, for one model.

    Raises
    ------
    ImportError
        If Triton is not installed.
    """

    def __init__(self) -> None:
        _load()

    def scan(self, call: ScanCall) -> tuple[Scanned, Any]:
        """Forward."""
        kicks = None
        if call.noise is not None:
            kicks = call.noise.tensor(call.inputs.shape[1], call.cell.n_states, call.start)[None]
        made, kept = scan_forward(_as_models(call), kicks)
        return _each(made, _only_model), kept

    def scan_backward(self, call: ScanCall, kept: Any, grads: Scanned, wants_inputs: bool) -> dict[str, Any]:
        """Gradients `inputs` (where wanted), `start`, `cell` and `readout`."""
        made = scan_backward(_as_models(call), kept, _each(grads, _one_model), wants_inputs)
        return {name: _each(value, _only_model) for name, value in made.items()}

    def controlled(self, call: ControlledCall) -> tuple[Generated, Any]:
        """Forward."""
        made, kept = controlled_forward(_as_models(call))
        return _each(made, _only_model), kept

    def controlled_backward(self, call: ControlledCall, kept: Any, grads: Generated, wants: set[str]) -> dict[str, Any]:
        """Gradients, as the protocol lists them."""
        made = controlled_backward(_as_models(call), kept, _each(grads, _one_model), wants)
        return {name: _each(value, _only_model) for name, value in made.items()}

    def poisson(self, call: PoissonCall) -> tuple[Tensor, Any]:
        """Sum, and the gradients for a gradient of 1, (factors, weight, bias)."""
        total, grads = poisson(_as_models(call))
        return total[0], [_each(value, _only_model) for value in grads]


def _only_model(tensor: Tensor) -> Tensor:
    return tensor[0]


def _one_model(tensor: Tensor) -> Tensor:
    return tensor.detach()[None]


def _as_models(call: ScanCall | ControlledCall | PoissonCall) -> Any:
    """The same call of one model as one of several."""
    kind = {ScanCall: ScanCalls, ControlledCall: ControlledCalls, PoissonCall: PoissonCalls}[type(call)]
    return kind(**{field.name: _each(getattr(call, field.name), _one_model) for field in fields(call)})


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_each(one, change) for one in value])
    return value
