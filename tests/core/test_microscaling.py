"""Products of gradients with a scale a block: the kernels against the formulas and against sums in double precision."""

import contextlib

import pytest
import torch
from torch.nn.grad import conv2d_input, conv2d_weight

import ldp_search
from ldp_search.core import native
from ldp_search.core.backends.int8 import choice, convolution, microscaling
from ldp_search.core.backends.int8.matmul import Codes
from ldp_search.core.native import microscaling as kernels
from ldp_search.core.products.bilinear import ConvolutionProduct
from ldp_search.core.quantize.gradient_codes import BlockCodes
from ldp_search.core.quantize.gradient_quantizers import Blocks

HAS_KERNELS = choice.has_integer_products("cpu") and native.status() == "on" and kernels.has_vnni()
needs_kernels = pytest.mark.skipif(not HAS_KERNELS, reason="needs a compiler and a CPU with AVX512-VNNI")
SIZES = (
    (2, 8, 8, 16, 16),
    (3, 7, 12, 3, 20),
    (1, 5, 6, 40, 33),
    (5, 8, 8, 64, 64),
    (2, 4, 64, 5, 70),
    (2, 14, 14, 16, 16),
    (3, 7, 7, 20, 17),
)
"""samples, height, width, inputs, outputs"""
WINDOWS = (
    ((3, 3), (1, 1), (1, 1), (1, 1)), ((1, 1), (1, 1), (0, 0), (1, 1)), ((3, 3), (1, 1), (2, 1), (2, 1)),
    ((3, 3), (2, 2), (1, 1), (1, 1)), ((2, 5), (1, 2), (1, 2), (1, 1)), ((1, 1), (2, 2), (0, 0), (1, 1)),
)  # fmt: skip
ROWS = ((3, 64, 64, 32), (1, 5, 5, 7), (2, 197, 130, 96), (4, 1, 33, 18), (1, 70, 16, 40))
"""samples, places, inputs, outputs"""
BITS = torch.tensor(5.0)


@pytest.fixture(params=[1, 2])
def threads(request, monkeypatch):
    """Small tensors would take one."""
    monkeypatch.setattr("ldp_search.core.native.library.SMALL", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def gradient(*shape):
    """Its size differs from place to place and from channel to channel, by far more than codes could hold together."""
    return (
        torch.randn(shape)
        * torch.logspace(-3, 3, shape[1]).view(-1, *[1] * (len(shape) - 2))
        * torch.rand(shape[0], 1, *shape[2:])
    )


def inputs(*shape):
    return Codes(torch.randint(-128, 128, shape, dtype=torch.int8), torch.tensor(0.1), torch.tensor(0.7))


@pytest.fixture
def codes_of_kernels(monkeypatch):
    """Formulas instead of the products, of the same codes."""

    @contextlib.contextmanager
    def within():
        with monkeypatch.context() as patched:
            for name in ("_input_products", "_weight_products", "_sums"):
                patched.setattr(microscaling, name, without_kernel(getattr(microscaling, name)))
            yield

    return within


def without_kernel(operation):
    def formula(*args):
        with native.disabled():
            return operation(*args)

    return formula


def close(found, expected):
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def of_convolution(g, x, w, product, block=32):
    """dL/dw, and of a stride of 1 dL/dx with the weight in one plane and in two."""
    over_channels, over_places = in_codes(g, 1, block)
    yield microscaling.weight_gradient_of_convolution(over_places, x, product, tuple(w.shape[2:]))
    for number in (1, 2) if product.stride == (1, 1) else ():
        yield microscaling.input_gradient_of_convolution(over_channels, w, product, number).to_float()


def of_rows(g, x, w, transposed):
    over_channels, over_places = in_codes(g, -1, 32)
    yield microscaling.weight_gradient(over_places, x, transposed)
    for number in (1, 2):
        yield microscaling.input_gradient(over_channels, w, number).to_float()


def in_codes(g, channel_dim, block):
    """Along channels, and along places: the same each time."""
    torch.manual_seed(1)
    parts = (Blocks(block, channel_dim, channels) for channels in (True, False))
    return [microscaling.channels_last(part.codes(g, BITS), channel_dim) for part in parts]


@needs_kernels
@pytest.mark.parametrize("block", [32, 8, 20, 6])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_convolutions_are_the_formulas(size, block, threads, codes_of_kernels):
    samples, height, width, channels, outputs = size
    for where in WINDOWS:
        places = convolution.output_size((height, width), *where)
        g = gradient(samples, outputs, *places).contiguous(memory_format=torch.channels_last)
        w = torch.randn(outputs, channels, *where[0])
        case = g, inputs(samples, height, width, channels), w, ConvolutionProduct(*where[1:], 1), block
        found = list(of_convolution(*case))
        with codes_of_kernels():
            for one, expected in zip(found, of_convolution(*case), strict=True):
                close(one, expected)


@needs_kernels
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("size", ROWS, ids=str)
def test_layers_of_rows_are_the_formulas(size, transposed, threads, codes_of_kernels):
    samples, places, channels, outputs = size
    for shape in ((samples, places, outputs), (samples * places, outputs)):
        w = torch.randn(channels, outputs).t() if transposed else torch.randn(outputs, channels)
        case = gradient(*shape), inputs(samples * places, channels), w, transposed
        found = list(of_rows(*case))
        with codes_of_kernels():
            for one, expected in zip(found, of_rows(*case), strict=True):
                close(one, expected)


@pytest.mark.parametrize("arithmetic", [pytest.param("kernels", marks=needs_kernels), "formulas"])
def test_products_are_those_of_the_values_in_double_precision(arithmetic):
    torch.manual_seed(0)
    where = (3, 3), (1, 1), (1, 1), (1, 1)
    product, w = ConvolutionProduct(*where[1:], 1), torch.randn(40, 20, 3, 3)
    g, x = gradient(4, 40, 8, 8).contiguous(memory_format=torch.channels_last), inputs(4, 8, 8, 20)
    over_channels = microscaling.channels_last(Blocks(32, 1).codes(g, BITS), 1)
    over_places = microscaling.channels_last(Blocks(32, 1, channels=False).codes(g, BITS), 1)
    with native.disabled() if arithmetic == "formulas" else torch.no_grad():
        gx = microscaling.input_gradient_of_convolution(over_channels, w, product, 2).to_float()
        gw = microscaling.weight_gradient_of_convolution(over_places, x, product, (3, 3))
    exact = [t.to_float().permute(0, 3, 1, 2).double() for t in (over_channels, over_places, x)]
    step = w.abs().max() / (127 * 256 + 127)  # of the weight in 16 bits
    of_x = conv2d_input((4, 20, 8, 8), (torch.round(w / step) * step).double(), exact[0], 1, 1)
    close(gx.double(), of_x.permute(0, 2, 3, 1).reshape(-1, 20))
    close(gw.double(), conv2d_weight(exact[2], w.shape, exact[1], 1, 1).flatten(2))


@needs_kernels
@pytest.mark.parametrize("quantizer", ["minmax", "clip"])
@pytest.mark.parametrize("name", ["transposed", "one sample of an image", "permuted"])
def test_rows_in_another_order_of_memory(name, quantizer):
    """Codes are dense in the order that their input has: no kernel may take one for another."""
    x = {
        "transposed": lambda: torch.randn(33, 70).t(),
        "one sample of an image": lambda: torch.randn(1, 33, 7, 10).flatten(2).transpose(1, 2),
        "permuted": lambda: torch.randn(33, 40, 1).permute(2, 1, 0),
    }[name]
    found = []
    for backend in ("simulate", {"name": "int8", "choose": "always"}):
        torch.manual_seed(0)
        model, leaf = torch.nn.Sequential(torch.nn.Linear(33, 20)), x().requires_grad_()
        policy = {"name": "bit_gradient", "start": "middle"}
        space = {"policy": policy, "bits": (3, 8), "grad_bits": 4, "target_cost": 0.6, "backend": backend}
        quantizers = {"weight_quantizer": quantizer, "input_quantizer": quantizer, "grad_quantizer": "per_block"}
        ldp_search.apply(model, space | quantizers)
        ldp = ldp_search.controller(model)
        if quantizer == "clip":
            ldp.parameters()["log_clips"].detach().fill_(-1)
        y = model(leaf)
        torch.manual_seed(5)
        y.backward(torch.randn(y.shape))
        found.append({"x": leaf.grad} | {name: p.grad for name, p in model.named_parameters()})
        found[-1] |= {"clips": ldp.parameters()["log_clips"].grad} if quantizer == "clip" else {}
    for what, expected in found[0].items():
        allowed = 0.05 if what == "clips" else 1e-3  # of the errors in cells that are kept
        assert float((found[1][what] - expected).abs().max()) <= allowed * float(expected.abs().max()), what


@needs_kernels
def test_the_largest_sums_of_a_block():
    """Of all codes and integers of a weight at their ends, as long as a block may be."""
    size = kernels.LONGEST_BLOCK
    values, planes = torch.full((4, size), -128, dtype=torch.int8), torch.full((1, size, 2), 127, dtype=torch.int8)
    found = kernels.input_products(values, torch.ones(4, 1), size, planes, 2, torch.tensor(1.0), None)
    assert torch.equal(found, torch.full((4, 1), -128.0 * size * (127 * 256 + 127)))
    g, x = torch.full((1, 1, size, 16), -128, dtype=torch.int8), torch.full((1, 1, size, 16), -128, dtype=torch.int8)
    rest = torch.zeros(16, 1)
    found = kernels.weight_products(g, torch.ones(1, 1, 16), size, x, kernels.POINT, torch.tensor(1.0), rest)
    assert torch.equal(found, torch.full((16, 16, 1), 128.0 * 128 * size))


@needs_kernels
def test_what_the_kernels_leave_to_the_formulas():
    def of_input(size, blocks):
        values, planes = torch.zeros(4, 24, dtype=torch.int8), torch.zeros(1, 24, 8, dtype=torch.int8)
        return kernels.input_products(values, torch.ones(4, blocks), size, planes, 2, torch.tensor(1.0), None)

    def of_weight(height, width, size=32):
        g, x = (torch.zeros(2, height, width, 16, dtype=torch.int8) for _ in range(2))
        scales = torch.ones(2, -(-height * width // size), 16)
        return kernels.weight_products(g, scales, size, x, kernels.POINT, torch.tensor(1.0), torch.zeros(16, 1))

    assert of_input(8, 3) is not None and of_input(6, 4) is None  # four channels lie together
    assert of_input(kernels.LONGEST_BLOCK + 4, 1) is not None  # no longer than there are channels
    assert of_weight(4, 7, 6) is not None and of_weight(1, 3) is None
    assert of_weight(4, 8, kernels.LONGEST_BLOCK + 4) is not None and of_weight(30, 30, kernels.LONGEST_BLOCK + 4) is None
    with native.disabled():
        assert of_input(8, 3) is None and of_weight(4, 8) is None


@pytest.mark.parametrize("channels", [True, False])
@pytest.mark.parametrize("shape", [(4, 20, 6, 5), (3, 16, 1, 1), (2, 40, 9), (5, 33)], ids=str)
def test_scales_of_codes_in_every_order_of_memory(shape, channels):
    for g in (torch.randn(shape), torch.randn(shape[::-1]).permute(*range(len(shape) - 1, -1, -1))):
        for of_layer in (1, -1):
            quantizer = Blocks(8, of_layer, channels)
            codes, most = quantizer.codes(g, BITS), torch.exp2(BITS - 1) - 1
            assert isinstance(codes, BlockCodes) and codes.values.stride() == g.stride()
            assert torch.equal(codes.scale, quantizer.scales(g, most))
            step = quantizer.grid(g, BITS).scale
            assert ((codes.to_float() - g).abs() <= step * (1 + 1e-5)).all() and codes.values.abs().max() <= most


@needs_kernels
def test_the_default_search_runs_in_integers():
    """Every layer's three products, and no value of a gradient in between."""
    called = []
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.Flatten(2),
        torch.nn.Linear(64, 32),
    )  # fmt: skip
    ldp_search.apply(model, space="ldp", backend={"name": "int8", "choose": "always"}, sense_every=1000)
    ldp, x = ldp_search.controller(model), torch.randn(8, 3, 8, 8)
    with pytest.MonkeyPatch.context() as patched:
        for name in ("input_products", "weight_products"):
            operation = f"_{name}"
            before = getattr(microscaling, operation)
            patched.setattr(microscaling, operation, lambda *a, _f=before, _n=name: called.append(_n) or _f(*a))
        ldp.sensing = False
        model(x).square().mean().backward()
    assert sorted(called) == ["input_products"] * 2 + ["weight_products"] * 3
    assert "3 of 3 layers (forward and backward)" in ldp.backend.report(list(ldp.layers))
