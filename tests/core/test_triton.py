"""What can be known of the Triton kernels without a device: interpreted, compiled ahead, and when they are chosen.

Nothing here has run on a device; `benchmarks/step_cuda.py` repeats the comparisons on one.
"""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from breadth import breadth
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import ldp_search
from ldp_search.core import native
from ldp_search.core.native import cuda
from ldp_search.core.native import kernels as seam
from ldp_search.core.quantize import fake_quantize as fq
from ldp_search.core.quantize.grid import Grid, measure
from ldp_search.core.registry import build as component
from ldp_search.core.registry import names

triton = pytest.importorskip("triton", reason="triton comes with torch for CUDA")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import driver  # noqa: E402

from ldp_search.core.native import triton_kernels as kernels  # noqa: E402
from ldp_search.core.native import triton_passes as passes  # noqa: E402

HERE = Path(__file__).parent
ARCHITECTURES = (80, 90)  # A100, H100
OLD = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)


@pytest.mark.slow(reason="the interpreter runs thousands of programs; that they compile, and to what, is always shown below")
@pytest.mark.skipif(OLD, reason="the interpreter of triton before 3.8 (3.6 was tried) fails with NumPy 2.4")
@pytest.mark.timeout(900)  # thousands of programs, one after the other: half a minute alone on a core
def test_interpreted_kernels_equal_the_formulas():
    """In a process of its own: triton reads TRITON_INTERPRET as it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "interpreted_triton.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-5000:] + done.stderr[-2000:]


class Compiling:
    """Stands in for triton's driver where there is no device: what a launch would compile for this architecture."""

    def __init__(self, architecture: int):
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self.target


@pytest.fixture
def compiled(request, tmp_path, monkeypatch):
    """Calls of the passes compile instead of launching; {(kernel, number of the call): its PTX}, assembled by ptxas."""
    made = {}

    def compile_it(kernel, x, programs, elements, *arguments, **constants):
        result = kernel.warmup(*arguments, grid=programs, **constants, **passes.options(elements))
        assert len(result.asm["cubin"]) > 1000
        made[kernel.fn.__name__, len(made)] = result.asm["ptx"]

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(passes, "_launch", compile_it)
    for kernel in [value for value in vars(kernels).values() if isinstance(value, triton.JITFunction)]:
        monkeypatch.setattr(kernel, "device_caches", copy.copy(kernel.device_caches))
        kernel.device_caches.clear()
    monkeypatch.setattr(driver, "_active", Compiling(request.param))
    return made


def is_exact(code: str) -> bool:
    """Whether each operation rounds by itself, and none flushes small numbers but floor, where nothing hangs on it, and powers
    of two, which are of the fraction of bits.
    """
    code = code.replace("cvt.rmi.ftz.f32.f32", "").replace("ex2.approx.ftz.f32", "")
    return "div.rn.f32" in code and not re.search(r"\bfma\.|\.ftz|div\.(approx|full)", code)


ONE, MANY = torch.zeros(()), torch.zeros(64)
WHOLE, ROWS, COLUMNS = (1, 1, 2**14), (4, 64, 64), (256, 64, 1)  # shapes of 2^14 elements


@breadth(
    "compiled, dtype, shape, grid",
    [
        (80, torch.float32, WHOLE, Grid(ONE, None, ONE, ONE)),
        (90, torch.bfloat16, WHOLE, Grid(ONE, ONE)),
        (80, torch.float16, ROWS, Grid(MANY)),
        (90, torch.float32, COLUMNS, Grid(MANY, MANY, MANY, MANY)),
    ],
    always=2,
    ids=["fp32, clipped", "bf16, affine", "fp16, a grid a row", "fp32, a grid a column"],
    indirect=["compiled"],
)
def test_passes_compile_to_exact_operations(dtype, shape, grid, compiled):
    x = torch.zeros(2**14, dtype=dtype)
    passes.rounded(x, grid, shape, dtype)
    passes.stochastic(x, grid.scale, grid.offset, ONE, torch.tensor(1), dtype, shape, variance=grid.low is not None)
    passes.measure(x, shape, True)
    passes.grid_gradients(x.clone(), x, grid, shape)
    rounding, stochastic, ranges, sums = compiled.values()
    assert all(map(is_exact, (rounding, stochastic, sums)))
    assert ("min.NaN.f32" in rounding) == (grid.low is not None)
    assert {torch.bfloat16: "cvt.rn.bf16", torch.float16: "cvt.rn.f16", torch.float32: "st.global"}[dtype] in rounding
    assert "ld.global.v4" in rounding, "sixteen bytes a load"
    assert "ld.global.b64" in stochastic, "the seed is read by the kernel"
    assert not re.search(r"\batom\.|\bred\.", ranges + sums), "a result repeats"


@breadth("compiled", ARCHITECTURES, always=[90], indirect=True)
def test_grids_in_closed_form_compile(compiled):
    x, averages, seed = torch.zeros(2**17), torch.zeros(4), torch.tensor(1)
    passes.grid(x, (1, 1, 2**17), [], 0, MANY, 1, averages, 0.1)
    passes.grid(x[: 2**14], ROWS, [64], 1, MANY, 0)
    passes.affine(x, ONE, seed, x.dtype)
    passes.symmetric(x[: 2**14], ROWS, ONE, seed, x.dtype)
    passes.bits_gradient(MANY, MANY, ONE, ONE)
    assert [name for name, _ in compiled] == [
        "range_kernel", "fold_range_kernel", "range_kernel", "range_kernel", "fold_range_kernel", "stochastic_kernel",
        "range_kernel", "stochastic_kernel", "bits_gradient_kernel",
    ]  # fmt: skip


@breadth("compiled, dtype, shape", [
    (80, torch.float32, (4, 64, 64)), (90, torch.bfloat16, (4, 64, 64)), (90, torch.float32, (4, 4096, 1)),
    (80, torch.float16, (4, 4096, 1)),
], always=[(90, torch.float32, (4, 4096, 1))], ids=["fp32, across", "bf16, across", "fp32, along", "fp16, along"],
    indirect=["compiled"])  # fmt: skip
def test_blocks_compile_to_exact_operations(dtype, shape, compiled):
    passes.blocks(torch.zeros(2**14, dtype=dtype), shape, 32, ONE, torch.tensor(1), dtype)
    (name, _), code = *compiled, *compiled.values()
    assert name == "blocks_kernel" and is_exact(code) and "ld.global.b64" in code


@pytest.fixture
def on_a_device(monkeypatch):
    """CUDA tensors without a device or values, for which the Triton passes are chosen; yields the names of kernels launched."""
    launched = []
    monkeypatch.setattr(passes, "_launch", lambda kernel, *_, **constants: launched.append(kernel.fn.__name__))
    monkeypatch.setattr(cuda, "_passes", passes)
    monkeypatch.setattr(cuda, "PLAIN", (*cuda.PLAIN, torch._subclasses.fake_tensor.FakeTensor))
    monkeypatch.setattr(cuda, "intercepted", lambda: False)
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


def test_a_gradient_in_blocks_is_one_launch(on_a_device):
    """Whatever its memory; but not where a block is larger than a tile."""
    x, bits = torch.empty(8, 64, 8, 8, device="cuda"), torch.tensor(8.0, device="cuda")
    for g in (x, x.to(memory_format=torch.channels_last)):
        for part in component("grad_quantizer", "per_block").parts(1):
            on_a_device.clear()
            y = part(g, bits)
            assert on_a_device == ["blocks_kernel"] and y.stride() == g.stride()
    assert passes.blocks(torch.empty(1, 9000, 1), (1, 9000, 1), 9000, bits, bits, x.dtype) is None


def test_a_small_tensor_is_one_launch(on_a_device):
    x = torch.empty(256, 128, device="cuda")
    grid = Grid(torch.empty((), device="cuda"))
    for f in (lambda: measure(x), lambda: fq.rounded(x, grid), lambda: fq.backward(x, x, grid, True)):
        on_a_device.clear()
        f()
        assert len(on_a_device) == 1


class CountOperations(TorchDispatchMode):
    """How many operations ran that a device would launch; views and allocations are none."""

    NONE = ("view", "unbind", "select", "detach", "slice", "t.", "transpose", "empty", "expand", "promote_types")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        self.count += not operation.__name__.startswith(self.NONE)
        return operation(*arguments, **(options or {}))


def test_a_learned_layer_takes_far_fewer_launches(monkeypatch):
    """Forward and backward of layers on the CPU, for which the passes are chosen and launch nothing: only counted."""
    launched, found = [], {}
    monkeypatch.setattr(passes, "_launch", lambda kernel, *_, **constants: launched.append(kernel))
    monkeypatch.setattr(seam, "takes", lambda *tensors: False)
    for chosen in (None, passes):
        totals = []
        for layers in (2, 4):
            monkeypatch.setattr(cuda, "passes", lambda *tensors, parameters=(): None)
            model, x = nn.Sequential(*[nn.Linear(256, 256) for _ in range(layers)]), torch.randn(256, 256)
            ldp_search.apply(model, {"policy": "bit_gradient", "target_cost": 0.5}, x[:1])
            monkeypatch.setattr(cuda, "passes", lambda *tensors, parameters=(), chosen=chosen: chosen)
            launched.clear()
            with CountOperations() as operations:
                model(x).sum().backward()
            totals.append(operations.count + len(launched))
        found[chosen] = (totals[1] - totals[0]) / 2
    assert found[passes] <= 20 and found[None] >= 60


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
        x = torch.empty(3, device="cuda")
        assert cuda.passes(x) is None and cuda.status().startswith("not tried yet"), "what a mode shows is of no device"
    assert cuda.passes(x) is None
    assert cuda.status() == f"off: RuntimeError: {words}" and not recwarn.list
