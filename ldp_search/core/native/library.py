"""The compiled library: loaded at its first use, which tensors its kernels take, and how one is called."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .compile import Unavailable, load
from .memory import PLAIN, address, intercepted, is_dense, is_real

SMALL = 1 << 15  # elements below which one thread is faster than waking others
FLOATS = (torch.float32, torch.bfloat16)
FP32, INT8, INT16, INT32, UINT8 = (torch.float32,), (torch.int8,), (torch.int16,), (torch.int32,), (torch.uint8,)
"""What an argument may be that is a tensor: None, or dense CPU memory of one of these types."""
INT, LONG, FLOAT, SEED, POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_uint64, ctypes.c_void_p
"""And one that is a number."""

_library: ctypes.CDLL | None = None
_reason: str | None = None  # why there is none; None: not tried yet
_off = 0


class SHAPE(ctypes.Structure):
    """(outer, channels, inner)."""

    _fields_ = [(name, ctypes.c_int64) for name in ("outer", "channels", "inner")]


class GRID(ctypes.Structure):
    """Where scale, offset, low and high of a grid lie."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("scale", "offset", "low", "high")]


_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.int32: 3}


def status() -> str:
    """'on', or why not."""
    if _off:
        return "switched off by disabled()"
    return "on" if ready() else f"off: {_reason}"


@contextlib.contextmanager
def disabled():
    """Within this context the torch formulas serve."""
    global _off
    _off += 1
    try:
        yield
    finally:
        _off -= 1


def switched_off() -> bool:
    """Whether within `disabled()`."""
    return _off > 0


def ready() -> bool:
    """Whether there is a library, which the first question compiles or loads."""
    global _library, _reason
    if _library is None and _reason is None:
        try:
            if os.environ.get("LDP_NATIVE", "1") == "0":
                raise Unavailable("LDP_NATIVE=0")
            _library = load()
        except Unavailable as error:
            _reason = str(error)
    return _library is not None


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels serve these tensors (of the same memory layout)."""
    if _off or intercepted() or not (_library or ready()):
        return False
    first = tensors[0]
    for x in tensors:
        if x.dtype not in FLOATS or not is_real(x) or (x is not first and x.stride() != first.stride()):
            return False
    return first.numel() > 0 and (first.is_contiguous() or is_dense(first))


def serves(x: Tensor) -> bool:
    """The same of a dense tensor of whole numbers."""
    return not _off and not intercepted() and x.numel() > 0 and is_real(x) and (_library is not None or ready())


class Kernel:
    """A function of the library, called with tensors.

    arguments: what C takes but for the number of threads, which comes last: types of a tensor's memory, of which C is told the
        address (and, where several are allowed, which it is); or of a number; or SHAPE or GRID.
    threads: whether it takes their number.
    """

    def __init__(self, name: str, *arguments: Any, threads: bool = True):
        self.name, self.arguments, self.threads = name, arguments, threads
        self.function: Callable[..., None] | None = None

    def __call__(self, numel: int, *given: Any) -> None:
        """numel: elements to work on, by which the threads are counted."""
        passed = _passed(self.arguments, given)
        if self.threads:
            passed.append(1 if numel < SMALL else torch.get_num_threads())
        (self.function or self._load())(*passed)

    def _load(self) -> Callable[..., None]:
        if _library is None:
            raise Unavailable(f"The kernels are not there ({_reason}); ask takes() before one is called.")
        function = getattr(_library, self.name)
        types: list[Any] = []
        for kind in self.arguments:
            types += [kind] if type(kind) is not tuple else [POINTER, INT][: 1 + (len(kind) > 1)]
        function.argtypes, function.restype = types + [INT] * self.threads, None
        self.function = function
        return function


def _passed(kinds: tuple, given: tuple) -> list[Any]:
    """What C is given. The usual tensor is looked at here, in few questions: a step asks them some twenty times a layer."""
    passed: list[Any] = []
    for kind, value in zip(kinds, given, strict=True):
        if type(kind) is tuple and value is None:
            passed.append(None)
        elif type(kind) is tuple:
            at = None
            if type(value) in PLAIN and value.dtype in kind and value.is_cpu and not value.is_nested and not value.is_neg():
                at = value.data_ptr() if value.is_contiguous() else None
            passed.append(at or address(value, *kind))
            if len(kind) > 1:
                passed.append(_TYPES[value.dtype])
        elif kind is GRID:
            passed.append(GRID(*_passed(_OF_GRID, value)))
        else:
            passed.append(SHAPE(*value) if kind is SHAPE else value)
    return passed


_OF_GRID = (FP32,) * 4
