"""C: the CPU's fast path, the passes over whole tensors as a few kernels (`passes.c`), each of which reads memory once.

Fake quantization is bound by memory. torch makes six passes of what is one: subtract, divide, round, multiply, add, and a
minimum and maximum. Here a pass is one function, equal to the formula that it stands for: ranges, rounding and its gradients,
16-bit codes (`passes.py`, `passes.c`), what stands around integer products (`int8.py`, `int8.c`), the small arithmetic of
built-in grids (`grids.py`, `grids.c`), and gradients by stochastic rounding (`gradients.py`, `gradients.c`). `triton_passes`
has them on CUDA. `compile.py` compiles the sources, `library.py` loads and calls them. `operators.py` makes operators of torch
of them, for what torch.compile compiles.

The seam is one word over a formula, `@with_kernel(kernels.rounded)`: where a kernel serves a call, its result is the
function's. Nobody else asks. None serves where there is no compiler, on other devices, for other types than fp32 and bf16, for
strided and wrapped tensors, while something traces, and within `disabled()` or with LDP_NATIVE=0. `status()` tells why.
"""

from .library import disabled, status
from .memory import is_dense
from .passes import BLOCK
from .seam import with_kernel

__all__ = ["BLOCK", "disabled", "is_dense", "status", "with_kernel"]
