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
    """The kernel's PTX, compiled without a device and assembled by ptxas, for aligned pointers and rows."""
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
            if name in ("length", "inner"):
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"enable_fp_fusion": False})
    assert len(made.asm["cubin"]) > 1000
    return made.asm["ptx"]


@pytest.fixture
def compiler_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


ARCHITECTURE = pytest.mark.parametrize("architecture", ARCHITECTURES)
TILES = {0: {"R": 1, "C": 2048}, 1: {"R": 8, "C": 64}, 2: {"R": 16, "C": 32}}  # one grid, a grid a row, a grid a column
FORMS = [("fp32", 0, "affine, clipped"), ("bf16", 0, "affine"), ("fp16", 1, "symmetric"), ("fp32", 2, "affine")]
FORM = pytest.mark.parametrize(("dtype", "each", "form"), FORMS)


def is_exact(code: str) -> bool:
    """Whether each operation rounds by itself, and none flushes small numbers but floor, where nothing hangs on it."""
    code = code.replace("cvt.rmi.ftz.f32.f32", "")
    return "div.rn.f32" in code and not re.search(r"\bfma\.|\.ftz|div\.(approx|full)", code)


@ARCHITECTURE
@FORM
def test_rounding_compiles_to_exact_operations(architecture, dtype, each, form, compiler_cache):
    code = ptx(kernels.round_kernel, architecture, dtype, {"EACH": each, **TILES[each], **dict.fromkeys(GRIDS[form])})
    assert is_exact(code) and ("min.NaN.f32" in code) == (form == "affine, clipped")
    assert {"bf16": "cvt.rn.bf16", "fp16": "cvt.rn.f16", "fp32": "st.global"}[dtype] in code
    assert each or "ld.global.v4" in code, "sixteen bytes a load"


@ARCHITECTURE
@FORM
def test_stochastic_rounding_compiles(architecture, dtype, each, form, compiler_cache):
    constants = {"EACH": each, **TILES[each], **dict.fromkeys({"offset", "variance"} if form == "symmetric" else ())}
    code = ptx(kernels.stochastic_kernel, architecture, dtype, constants)
    assert is_exact(code) and "ld.global.b64" in code, "the seed is read by the kernel"


@ARCHITECTURE
@FORM
def test_reductions_compile(architecture, dtype, each, form, compiler_cache):
    tile = {"EACH": each, "A": 1 if each == 0 else 8, "B": 512 if each == 0 else 64}
    shared = {"SPREAD": True, **tile, **({} if each == 0 else {"parts": None})}
    for code in (
        ptx(kernels.range_kernel, architecture, dtype, shared),
        ptx(kernels.grid_gradients_kernel, architecture, dtype, {**tile, **dict.fromkeys(GRIDS[form])}),
    ):
        assert "atom" not in code and "red.global" not in code, "a result repeats"
        assert not re.search(r"\bfma\.|\.ftz|div\.(approx|full)", code)


@ARCHITECTURE
def test_the_second_launch_of_a_reduction_compiles(architecture, compiler_cache):
    assert ptx(kernels.fold_range_kernel, architecture, "fp32", {"SPREAD": True, "S": 512, "C": 1})


@pytest.fixture
def on_a_device(monkeypatch):
    """CUDA tensors without a device or values, for which the Triton passes are chosen; yields the names of kernels launched."""
    launched = []
    monkeypatch.setattr(passes, "_launch", lambda kernel, *_, **constants: launched.append(kernel.fn.__name__))
    monkeypatch.setattr(cuda, "_passes", passes)
    monkeypatch.setattr(cuda, "_PLAIN", (*cuda._PLAIN, torch._subclasses.fake_tensor.FakeTensor))
    with FakeTensorMode():
        yield launched


@pytest.mark.parametrize("name", names("grad_quantizer"))
def test_nothing_waits_for_the_device(name, on_a_device):
    """A fake tensor has no values: whatever would read one on the host, and so wait for it, raises here."""
    x = torch.empty(64, 32, 8, 8, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    grid = Grid(*measure(x, 1, spread=True), *measure(x, 1)[:1])
    y, (g, (scale, low, _)) = fq.rounded(x, grid), fq.backward(torch.empty_like(x), x, grid, True)
    z = component("grad_quantizer", name)(x, torch.tensor(8.0, device="cuda"))
    assert {result.device.type for result in (*grid, y, g, scale, low, z)} == {"cuda"}
    assert y.stride() == z.stride() == x.stride() and y.dtype == torch.float32 and z.dtype == x.dtype
    assert scale.shape == low.shape == (1, 32, 1, 1)
    assert {"range_kernel", "round_kernel", "grid_gradients_kernel", "stochastic_kernel"} <= set(on_a_device)


def test_a_small_tensor_is_one_launch(on_a_device):
    x = torch.empty(256, 128, device="cuda")
    grid = Grid(torch.empty((), device="cuda"))
    for f in (lambda: measure(x), lambda: fq.rounded(x, grid), lambda: fq.backward(x, x, grid, True)):
        on_a_device.clear()
        f()
        assert len(on_a_device) == 1


def test_what_the_triton_kernels_do_not_take(on_a_device):
    x = torch.empty(4, 6, device="cuda")
    assert cuda.passes(x) is passes
    for other in (x[:, ::2], x.double(), x[:0], x.cpu(), torch.empty(1, device="cuda").expand(2**31)):
        assert cuda.passes(other) is None
    assert cuda.passes(x, x.t()) is None, "of another layout"
    assert cuda.passes(x, parameters=[None, torch.empty(())]) is None, "a grid elsewhere"
    with native.disabled():
        assert cuda.passes(x) is None and cuda.status() == "switched off by disabled()"


@pytest.mark.parametrize(
    ("environment", "words"), [({"LDP_NATIVE": "0"}, "LDP_NATIVE=0"), ({}, "no driver")], ids=["switched off", "no driver"]
)
def test_without_a_working_device_the_formulas_serve_silently(environment, words, monkeypatch, recwarn):
    def capability(device):
        raise RuntimeError("no driver\nand more")

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    monkeypatch.setattr(cuda, "_passes", None)
    monkeypatch.setattr(cuda, "_reason", None)
    assert cuda.status().startswith("not tried yet")
    with FakeTensorMode():
        assert cuda.passes(torch.empty(3, device="cuda")) is None
    assert cuda.status() == f"off: RuntimeError: {words}" and not recwarn.list
