"""Which passes over whole tensors serve a CUDA tensor: the Triton kernels, where there are a device and triton, else none.

Nothing here touches a device before a CUDA tensor asks, and triton is imported then. The first use compiles and runs a kernel,
which tells of everything that could be missing (triton itself, its C compiler, a device that is too old).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from types import ModuleType

import torch
from torch import Tensor

from .library import switched_off
from .memory import PLAIN, intercepted, is_dense

OLDEST = (8, 0)  # compute capability: the first with bf16

_passes: ModuleType | None = None
_reason: str | None = None  # why there are none; None: not tried yet


def status() -> str:
    """'on', or why not."""
    if switched_off():
        return "switched off by disabled()"
    if _passes is None and _reason is None:
        return "not tried yet: no CUDA tensor has asked"
    return "on" if _reason is None else f"off: {_reason}"


def passes(*tensors: Tensor, parameters: Iterable[Tensor | None] = ()) -> ModuleType | None:
    """`triton_passes` where it serves these tensors (of the same memory layout), else None: the torch formulas do.

    In a mode, a transform or a trace the formulas serve; of them Inductor makes Triton kernels itself, fused with what stands
    around.

    Args:
        parameters: of the grid, which must lie on the same device.
    """
    first = tensors[0]
    if not first.is_cuda or switched_off() or intercepted():
        return None
    known = _passes or _load(first.device)
    if known is None or not 0 < first.numel() <= known.LARGEST:
        return None
    for x in tensors:
        if type(x) not in PLAIN or x.dtype not in known.FLOATS or x.stride() != first.stride():
            return None
    if any(p is not None and p.device != first.device for p in (*tensors, *parameters)):
        return None
    return known if is_dense(first) else None


def _load(device: torch.device) -> ModuleType | None:
    global _passes, _reason
    if _reason is None:
        try:
            _passes = _tried(device)
        except Exception as error:  # whatever a compiler or a driver raises: the formulas do the same, more slowly
            _reason = f"{type(error).__name__}: {error}".partition("\n")[0][:500]
    return _passes


def _tried(device: torch.device) -> ModuleType:
    """The kernels, once they have found the range of a few numbers on the device."""
    if os.environ.get("LDP_NATIVE", "1") == "0":
        raise RuntimeError("LDP_NATIVE=0")
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < OLDEST:
        raise RuntimeError(f"not a CUDA device of compute capability {OLDEST[0]}.{OLDEST[1]} or later")
    module = importlib.import_module(".triton_passes", __package__)
    module.measure(torch.zeros(4, device=device), (1, 1, 4), True)
    return module
