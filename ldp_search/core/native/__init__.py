"""C: the CPU's fast path, the passes over whole tensors as a few kernels (`passes.c`), each of which reads memory once.

Fake quantization is bound by memory. torch makes six passes of what is one: subtract, divide, round, multiply, add, and a
minimum and maximum. Here a pass is one function, equal to the formula that it stands for: `measure` (quantize.grid.measure),
`rounded` and `grid_gradients` (fake_quantize.rounded and .backward), `pack` and `unpack` (backends/saved_activations.py),
codes instead of values, what stands around integer products (`int8.py`, `int8.c`), the small arithmetic of built-in grids
(`grids.py`, `grids.c`), and gradients by stochastic rounding (`gradients.py`, `gradients.c`). `compile.py` compiles the
sources, `library.py` loads them.

Who calls asks first: `takes(x)` says whether the kernels serve a tensor. They do not where there is no compiler, on other
devices, for other types than fp32 and bf16, for strided and wrapped tensors, while compiling or tracing, and within
`disabled()` or with LDP_NATIVE=0; the torch formulas then do. `status()` tells why.

CUDA tensors have the same passes in Triton: `cuda.passes(x)` is the module that serves a tensor (`triton_passes.py`), or None.
"""

from .library import FLOATS, axes_of, disabled, grid_shape, is_dense, shape_along, status, takes, takes_codes
from .passes import BLOCK, codes, grid_gradients, measure, pack, rounded, unpack

__all__ = [
    "BLOCK",
    "FLOATS",
    "axes_of",
    "codes",
    "disabled",
    "grid_shape",
    "is_dense",
    "measure",
    "pack",
    "rounded",
    "shape_along",
    "status",
    "grid_gradients",
    "takes",
    "takes_codes",
    "unpack",
]
