"""The recurrent loops compiled for the processor: see `kernels.cpp`."""

import collections
import ctypes
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from ctdb.recurrent.cpu.build import BuildError, library

__all__ = [
    "BuildError",
    "Workspace",
    "available",
    "call",
    "data",
    "keep",
    "masked",
    "normal",
    "query",
    "signed",
    "why_not",
]


def available() -> bool:
    """Whether the kernels can be had here."""
    return why_not() is None


def why_not() -> str | None:
    """Why the kernels cannot be had, or None."""
    global _reason
    if _reason is _UNKNOWN:
        try:
            library().use_openmp(_torch_openmp())
            _reason = None
        except BuildError as error:
            _reason = str(error)
    return _reason


def _torch_openmp() -> ctypes.c_void_p:
    """Address of the function with which torch's own OpenMP starts threads; null where torch has none (GNU, LLVM)."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p)
    except (AttributeError, OSError, TypeError):
        return ctypes.c_void_p(None)


_UNKNOWN = object()
_reason: object = _UNKNOWN


def call(
    name: str,
    dtype: torch.dtype | None,
    tensors: Sequence[Tensor | None],
    wholes: Sequence[int],
    reals: Sequence[float],
) -> None:
    """Call an entry of the library. The tensors must be contiguous, alive, and of the type that the entry expects."""
    suffix = {None: "", torch.float32: "_float", torch.float64: "_double"}[dtype]
    pointers = [data(tensor) for tensor in tensors]
    getattr(library(), name + suffix)(
        (ctypes.c_void_p * len(pointers))(*pointers),
        (ctypes.c_int64 * len(wholes))(*[int(value) for value in wholes]),
        (ctypes.c_double * len(reals))(*reals),
    )


def data(tensor: Tensor | None) -> int | None:
    """Address of a contiguous tensor on the CPU."""
    if tensor is None:
        return None
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError("the CPU kernels need contiguous tensors on the CPU")
    return tensor.data_ptr()


def query(name: str, *values: int) -> int:
    """Ask the library for a number."""
    function = getattr(library(), name)
    function.restype = ctypes.c_int64
    return function(*[ctypes.c_int64(int(value)) for value in values])


def keep(trials: Tensor, n_bins: int, n_channels: int, key: int, stream: int, threshold: int) -> Tensor:
    """1 where 16 random bits are at least `threshold`, else 0."""
    made = torch.empty(len(trials), n_bins, n_channels, dtype=torch.uint8)
    _draw("keep_masks_bytes", None, made, trials, key, stream, threshold)
    return made


def normal(trials: Tensor, n_bins: int, n_channels: int, key: int, stream: int, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers."""
    made = torch.empty(len(trials), n_bins, n_channels, dtype=dtype)
    _draw("normals", dtype, made, trials, key, stream)
    return made


def _draw(name: str, dtype: torch.dtype | None, made: Tensor, trials: Tensor, key: int, *rest: int) -> None:
    call(name, dtype, [made, trials.contiguous()], [*made.shape, torch.get_num_threads(), signed(key), *rest], [])


def signed(key: int) -> int:
    """Same 64 bits as a signed number."""
    return key - 2**64 if key >= 2**63 else key


def masked(data: Tensor, masks: Sequence[Tensor], factor: Tensor) -> Tensor:
    """Product of data (trials, bins, channels) with at most two masks and a factor for each bin, in one pass."""
    dtype = factor.dtype
    if factor.shape != data.shape[1:2] or any(mask.shape != data.shape or mask.dtype != torch.uint8 for mask in masks):
        raise ValueError(
            f"masked: data of shape {tuple(data.shape)} need byte masks of that shape and a factor for each bin, but "
            f"were given {[(tuple(mask.shape), mask.dtype) for mask in masks]} and {tuple(factor.shape)}"
        )
    made = torch.empty(data.shape, dtype=dtype)
    given = data if data.dtype in (torch.uint8, dtype) else data.to(dtype)
    tensors = [made, given, *masks, *[None] * (2 - len(masks)), factor]
    wholes = [*data.shape, torch.get_num_threads(), given.dtype == torch.uint8]
    call("masked", dtype, [None if tensor is None else tensor.contiguous() for tensor in tensors], wholes, [])
    return made


_PAGE = 2**21


def _on_huge_pages(n_bytes: int) -> Tensor:
    """Memory that begins on a huge page, and is asked to lie on such."""
    whole = torch.empty(n_bytes + _PAGE, dtype=torch.uint8)
    offset = -whole.data_ptr() % _PAGE
    made = whole[offset : offset + n_bytes]
    query("advise_huge_pages", made.data_ptr(), n_bytes)
    return made


class Workspace:
    """Memory for what a forward pass keeps: taken from those given back before, and given back when it is dropped.

    Fresh memory costs more than the arithmetic on it, because the system clears it page by page.
    """

    _free: list[Tensor] = []
    _given_back: collections.deque[Tensor] = collections.deque()
    _lock = threading.Lock()

    def __init__(self, n: int, dtype: torch.dtype):
        n_bytes = -(-n * dtype.itemsize // _PAGE) * _PAGE
        with self._lock:
            while self._given_back:
                self._free.append(self._given_back.popleft())
            most = 4 * max([n_bytes, *map(len, self._free)])
            while sum(map(len, self._free)) > most:  # sizes that have gone out of use
                del self._free[0]
            at = next((i for i, one in enumerate(self._free) if len(one) == n_bytes), None)
            found = None if at is None else self._free.pop(at)
        self._bytes = _on_huge_pages(n_bytes) if found is None else found
        self.tensor = self._bytes.view(dtype)

    def __del__(self):
        if hasattr(self, "_bytes"):  # at any moment, in any thread: only what cannot be interrupted
            self._given_back.append(self._bytes)
