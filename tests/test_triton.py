"""What can be known of the Triton kernels without a device: interpreted, compiled ahead, and when they are chosen.

Nothing here has run on a device; `benchmarks/step_cuda.py` repeats the comparisons on one.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ldp_search.core import native
from ldp_search.core.native import cuda
from ldp_search.core.quantize import fake_quantize as fq
from ldp_search.core.quantize.grid import Grid, measure
from ldp_search.core.registry import build as component
from ldp_search.core.registry import names

triton = pytest.importorskip("triton", reason="triton comes with torch for CUDA")
from triton.backends.compiler import GPUTarget  # noqa: E402

from ldp_search.core.native import triton_kernels as kernels  # noqa: E402
from ldp_search.core.native import triton_passes as passes  # noqa: E402

HERE = Path(__file__).parent
ARCHITECTURES = (80, 90)  # A100, H100
GRIDS = {"symmetric": {"offset", "low", "high"}, "affine": {"low", "high"}, "affine, clipped": set()}  # name: what is None


def test_interpreted_kernels_equal_the_formulas():
    """In a process of its own: triton reads TRITON_INTERPRET as it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "interpreted_triton.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-5000:] + done.stderr[-2000:]


def ptx(kernel, architecture: int, dtype: str, constants: dict) -> str:
    """The kernel's PTX, compiled without a device and assembled by ptxas, for pointers aligned to 16 bytes."""
    pointers = {"x": dtype, "y": dtype, "g": dtype, "seed": "i64", "parts": "i32"}
    signature, values, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(i,)] = "constexpr", constants[name]
        elif name == "count":
            signature[name] = "fp32"
        elif name in ("x", "y", "g", "seed", "scale", "offset", "low", "high", "most", "variance", "out", "parts"):
            signature[name], attributes[(i,)] = "*" + pointers.get(name, "fp32"), [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"enable_fp_fusion": False})
    assert len(made.asm["cubin"]) > 1000
    return made.asm["ptx"]


@pytest.fixture
def compiler_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)
DTYPE = pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
EACH = pytest.mark.parametrize("each", [0, 1, 2], ids=["one grid", "a grid a row", "a grid a column"])


def tile(each: int) -> dict:
    return {"EACH": each, "R": 1, "C": 512} if each == 0 else {"EACH": each, "R": 8, "C": 64}


def exact(code: str) -> bool:
    """Whether each operation rounds by itself, and none flushes small numbers."""
    return not re.search(r"\bfma\.|\.ftz|div\.(approx|full)", code)


@ARCHITECTURE
@DTYPE
@EACH
def test_rounding_compiles_to_what_is_bitwise_the_formula(architecture, dtype, each, compiler_cache):
    for absent in GRIDS.values() if dtype == "bf16" else [set()]:
        code = ptx(kernels.round_kernel, architecture, dtype, {**tile(each), **dict.fromkeys(absent)})
        assert exact(code) and "div.rn.f32" in code and "min.NaN.f32" in code or absent
        assert {"bf16": "cvt.rn.bf16", "fp16": "cvt.rn.f16", "fp32": "st.global"}[dtype] in code
        assert each or "ld.global.v" in code, "several values a load"
