"""The CPU's kernels against the torch formulas that they stand for."""

from concurrent.futures import ThreadPoolExecutor

import layouts
import pytest
import torch

from ldp_search.core import native
from ldp_search.core.backends import saved_activations
from ldp_search.core.native import compile as build
from ldp_search.core.native import passes
from ldp_search.core.native.library import takes
from ldp_search.core.native.shapes import grid_shape
from ldp_search.core.quantize import fake_quantize as fq
from ldp_search.core.quantize.grid import Grid, measure
from ldp_search.core.registry import build as component
from ldp_search.core.registry import names

pytestmark = pytest.mark.skipif(native.status() != "on", reason=f"native kernels {native.status()}")

LAYOUTS = layouts.LAYOUTS | {  # name: (tensor, axis of its channels or None)
    "more than a block": (lambda: torch.randn(3, 5000), None),
    "long channels": (lambda: torch.randn(2, 9001), 0),
    "channels innermost": (lambda: torch.randn(11, 300), 1),
}
LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)
DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def both(f):
    """(by the kernels, by the formulas), from the same random state."""
    torch.manual_seed(1)
    fast = f()
    torch.manual_seed(1)
    with native.disabled():
        return fast, f()


@pytest.fixture
def called(monkeypatch):
    """Names of the kernels that ran: a test that fell back to the formulas would compare them with themselves."""
    ran = []
    for name in ("measure", "rounded", "grid_gradients"):
        f = getattr(passes, name)
        monkeypatch.setattr(passes, name, lambda *a, f=f, name=name: (ran.append(name), f(*a))[1])
    return ran


@LAYOUT
@DTYPE
@pytest.mark.parametrize("spread", [True, False])
def test_ranges(layout, dtype, spread, called):
    x, axis = LAYOUTS[layout][0]().to(dtype), LAYOUTS[layout][1]
    fast, slow = both(lambda: measure(x, axis, spread))
    assert called == ["measure"]
    for one, other in zip(fast[: 2 + spread], slow, strict=False):
        assert one.shape == other.shape and one.dtype == other.dtype == torch.float32
    assert torch.equal(fast.low, slow.low) and torch.equal(fast.high, slow.high)
    if spread:
        torch.testing.assert_close(fast.spread, slow.spread, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", layouts.ODD_VALUES)
def test_ranges_of_odd_values(value):
    x = torch.linspace(-1, 1, 5000)
    x[3777] = value
    fast, slow = both(lambda: measure(x))
    assert torch.equal(torch.stack(fast[:2]).nan_to_num(7.0), torch.stack(slow[:2]).nan_to_num(7.0))


@LAYOUT
@DTYPE
@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("quantizer", names("quantizer"))
def test_rounding_is_bitwise_the_formula(layout, dtype, quantizer, live, called):
    x, axis = LAYOUTS[layout][0]().to(dtype), LAYOUTS[layout][1]
    stats = measure(x, axis, True)
    stats = stats if live else type(stats)(*(s * 0.6 for s in stats))
    for bits in (2, 5, 8, 16):
        grid = component("quantizer", quantizer).grid(stats, torch.tensor(float(bits)), live, torch.full_like(stats.low, 0.7))
        fast, slow = both(lambda grid=grid: fq.rounded(x, grid, dtype))
        assert torch.equal(fast, slow) and fast.stride() == x.stride()
    assert called.count("rounded") == 4


@LAYOUT
@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("quantizer", names("quantizer"))
def test_gradients_of_the_grid(layout, quantizer, live, called):
    x, axis = LAYOUTS[layout][0](), LAYOUTS[layout][1]
    stats = measure(x, axis, True)
    stats = stats if live else type(stats)(*(s * 0.6 for s in stats))
    grid = component("quantizer", quantizer).grid(stats, torch.tensor(3.0), live, torch.full_like(stats.low, 0.7))
    g = torch.randn(x.shape).as_strided(x.shape, x.stride())
    (fast_x, fast), (slow_x, slow) = both(lambda: fq.backward(g.clone(), x, grid, True))
    assert called[-1] == "grid_gradients" and torch.equal(fast_x, slow_x)
    for one, other in zip(fast, slow, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("numel", [1, 2047, 2048, 5001])
def test_packing_is_the_formula(numel):
    x = torch.randn(numel) * 3
    (codes, ranges), (slow_codes, slow_ranges) = passes.pack(x), saved_activations.pack.__wrapped__(x)
    assert torch.equal(codes, slow_codes) and torch.equal(ranges, slow_ranges)
    back = passes.unpack(codes, ranges)
    torch.testing.assert_close(back, saved_activations.unpack.__wrapped__(codes, ranges), rtol=0, atol=1e-6)
    assert (back - x).abs().max() <= float(x.max() - x.min()) / 65535 * 0.51


def test_integer_codes_are_those_of_the_values():
    x = torch.randn(40, 50)
    stats = measure(x, 0)
    grid = component("quantizer", "minmax").grid(stats, torch.tensor(8.0), True)
    codes = passes.codes(x, grid, grid_shape(x, grid), torch.tensor(128.0))
    assert codes.dtype == torch.int8 and codes.min() == -128 and codes.max() == 127
    torch.testing.assert_close((codes.float() + 128) * grid.scale + grid.offset, fq.rounded(x, grid), rtol=0, atol=0)


@pytest.mark.parametrize(
    "x",
    [torch.randn(4, 6)[:, ::2], torch.randn(4, 1).expand(4, 5), torch.randn(3, dtype=torch.float64), torch.empty(0),
     torch.randn(4, device="meta")],
    ids=["strided", "expanded", "float64", "empty", "meta"],
)  # fmt: skip
def test_what_the_kernels_do_not_take(x):
    assert not takes(x)


def test_grids_that_the_kernels_do_not_take():
    x = torch.randn(4, 5, 6)
    assert grid_shape(x, Grid(torch.ones(4, 5, 1))) is None, "channels along two axes"
    assert grid_shape(x, Grid(torch.ones(6))) is None, "another way to broadcast"
    assert grid_shape(x, Grid(torch.ones((), dtype=torch.float64))) is None


def test_threads_do_not_change_values():
    x, before = torch.randn(16, 9999), torch.get_num_threads()
    grid = component("quantizer", "minmax").grid(measure(x), torch.tensor(5.0), True)
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(5)
            g_q = component("grad_quantizer", "stochastic")(x, torch.tensor(8.0))
            results.append([*measure(x)[:2], fq.rounded(x, grid), g_q])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("environment", "words"),
    [({"CC": "/no/compiler"}, "could not run"), ({"CC": "false"}, "false failed"), ({"LDP_NATIVE": "0"}, "LDP_NATIVE=0")],
)
def test_without_a_working_compiler_the_formulas_serve_silently(environment, words, tmp_path, monkeypatch, recwarn, capfd):
    monkeypatch.setenv("LDP_CACHE", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(native.library, "_library", None)
    monkeypatch.setattr(native.library, "_reason", None)
    assert native.status().startswith("off: ") and words in native.status()
    assert not takes(torch.randn(3)) and float(measure(torch.arange(4.0)).high) == 3
    assert not list(tmp_path.iterdir()) and not recwarn.list and capfd.readouterr() == ("", "")


def test_several_that_compile_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setenv("LDP_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))  # no kernel is run: a tenth of the time
    with ThreadPoolExecutor(2) as pool:  # what they share is the folder, as processes do
        libraries = [future.result() for future in [pool.submit(build.load) for _ in range(2)]]
    assert all(library.ldp_measure for library in libraries)
    assert len(list(tmp_path.iterdir())) == 1, "one library, nothing half-written"
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("a later process finds it"))
    assert build.load().ldp_measure
