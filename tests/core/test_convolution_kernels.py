"""The kernels that convolve codes without columns, against sums over columns; all is exact."""

import pytest
import torch

from ldp_search.core import native
from ldp_search.core.backends.int8 import choice, convolution
from ldp_search.core.backends.int8.matmul import Codes
from ldp_search.core.native import convolution as kernels
from ldp_search.core.products.bilinear import ConvolutionProduct

pytestmark = pytest.mark.skipif(
    not (choice.has_integer_products("cpu") and native.status() == "on" and kernels.has_vnni()),
    reason="needs a compiler and a CPU with AVX512-VNNI",
)
SIZES = ((2, 8, 8, 16, 16), (3, 7, 9, 3, 20), (1, 5, 6, 40, 33), (2, 4, 30, 4, 64), (0, 5, 5, 4, 4))
WINDOWS = (
    ((3, 3), (1, 1), (1, 1), (1, 1)), ((3, 3), (2, 1), (1, 0), (1, 1)), ((1, 3), (1, 2), (0, 0), (1, 1)),
    ((2, 5), (1, 2), (1, 2), (2, 1)), ((4, 4), (3, 3), (2, 2), (1, 1)), ((3, 3), (2, 2), (1, 1), (1, 1)),
)  # fmt: skip


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """Small tensors take one thread, and tiles and small sizes other kernels: here all are asked for."""
    monkeypatch.setattr("ldp_search.core.native.library.SMALL", 0)
    monkeypatch.setattr(kernels.amx, "has_tiles", lambda: False)
    monkeypatch.setattr(kernels, "LEAST_CHANNELS", 1), monkeypatch.setattr(kernels, "LEAST_PLACES", 1)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def codes(*shape):
    """Of all values, the largest first, whose sums come nearest to the ends of 32 bits."""
    drawn = torch.randint(-128, 128, shape, dtype=torch.int8)
    drawn[:1] = -128
    return drawn


def weights(taps, channels, outputs):
    """In the orders of memory that forward and backward have, and in others."""
    return {
        "of the forward": codes(outputs, channels, taps).permute(2, 1, 0),
        "of dL/dx": codes(channels, outputs, taps).permute(2, 0, 1),
        "as columns": codes(taps, channels, outputs),
        "every second": codes(taps, channels, 2 * outputs)[..., ::2],
    }


def cases(size):
    """(where a window looks, places, taps, codes of the input) for each window."""
    samples, height, width, channels, _ = size
    for where in WINDOWS:
        taps = where[0][0] * where[0][1]
        yield where, convolution.output_size((height, width), *where), taps, codes(samples, height, width, channels)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums_are_those_of_columns(size, threads):
    samples, _, _, channels, outputs = size
    for where, places, taps, x in cases(size):
        for order, w in weights(taps, channels, outputs).items():
            for turned in (False, True):
                found = kernels.products(x, w, *where, places, True, turned)
                if samples == 0:
                    assert found is None
                    continue
                alone = kernels.products(x, w, *where, places, False, turned)
                columns = convolution.columns(x, *where).long()
                matrix = (w.flip(0) if turned else w).reshape(taps * channels, outputs).long()
                assert torch.equal(found[0].long(), columns @ matrix), (where, order, turned)
                assert torch.equal(found[1].long(), columns.sum(1)) and torch.equal(alone[0], found[0])
                assert turned or torch.equal(found[2].long(), w.long().sum(1).t())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_weight_gradients_are_those_of_columns(size, threads):
    samples, _, _, channels, outputs = size
    for where, places, taps, x in cases(size):
        g = codes(samples, *places, outputs)
        by, each, rest = torch.rand(outputs).double(), torch.tensor(0.5).double(), torch.rand(outputs, taps).double()
        found = kernels.weight_products(g, x, *where, by, each, rest)
        if samples == 0:
            assert found is None
            continue
        columns = convolution.columns(x, *where).double()
        products = (g.reshape(-1, outputs).double().t() @ columns) * by[:, None] + each * columns.sum(0)
        expected = products.view(outputs, taps, channels) + rest[:, :, None]
        torch.testing.assert_close(found, expected.permute(0, 2, 1).float(), rtol=1e-6, atol=0)


def test_sums_of_many_samples_do_not_overflow(threads):
    """128 * 128 * 200 * 1024 is more than 32 bits hold."""
    where = (3, 3), (1, 1), (1, 1), (1, 1)
    g = x = torch.full((200, 32, 32, 4), -128, dtype=torch.int8)
    places = convolution.inside((32, 32), *where).sum(0).double()  # that a tap lies inside at
    one, none = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for by, each, expected in ((one, none, 200 * 128 * 128 * places), (none, one, -128 * 200 * places)):
        found = kernels.weight_products(g, x, *where, by, each, torch.zeros(4, 9, dtype=torch.float64))
        assert torch.equal(found, expected.float().expand(4, 4, 9))


def test_calls_that_are_not_served():
    where = (3, 3), (1, 1), (1, 1), (1, 1)
    x, w = codes(2, 6, 6, 8), codes(9, 8, 8)
    for wrong in (x[:, :, ::2], x.float(), x.permute(0, 3, 1, 2)):
        assert kernels.products(wrong, w, *where, (6, 6), True, False) is None
    for kernel, stride, places in (((1, 1), (1, 1), (6, 6)), ((1, 1), (2, 2), (3, 3)), ((2, 2), (2, 2), (3, 3))):
        some = codes(kernel[0] * kernel[1], 8, 8)  # columns are no larger than the input
        assert kernels.products(x, some, kernel, stride, (0, 0), (1, 1), places, True, False) is None
    long, factors = torch.zeros(1, 1, kernels.LONGEST + 1, 4, dtype=torch.int8), [torch.ones(4).double()] * 3
    assert kernels.weight_products(long, long, (1, 3), (1, 1), (0, 1), (1, 1), *factors) is None
    with native.disabled():
        assert kernels.products(x, w, *where, (6, 6), True, False) is None


def test_few_channels_and_few_places_are_left_to_columns(monkeypatch):
    monkeypatch.undo()
    where, factors = (
        ((3, 3), (1, 1), (1, 1), (1, 1)),
        [torch.ones(4).double(), torch.ones(()).double(), torch.ones(4, 9).double()],
    )
    for width, channels, served in ((6, 16, True), (3, 16, False), (6, 3, False)):
        x, g = codes(2, 6, width, channels), codes(2, 6, width, 4)
        if kernels.amx.has_tiles() and channels > kernels.FEW:
            continue
        assert (kernels.weight_products(g, x, *where, *factors) is not None) == served


def test_tiles_are_given_what_has_many_channels(monkeypatch):
    monkeypatch.setattr(kernels.amx, "has_tiles", lambda: True)
    where = (3, 3), (1, 1), (1, 1), (1, 1)
    for channels, served in ((kernels.FEW, True), (kernels.FEW + 1, False)):
        found = kernels.products(codes(1, 4, 4, channels), codes(9, channels, 4), *where, (4, 4), False, False)
        assert (found is not None) == served


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 3), (1, 2)])
def test_the_gradient_of_a_pointwise_convolution_is_that_of_autograd(stride):
    """For sizes that leave rows over, and for a gradient whose grid has an offset."""
    for size in [(8, 9), (7, 8), (10, 11)]:
        places = convolution.output_size(size, (1, 1), stride, (0, 0), (1, 1))
        g, w = codes(2, *places, 5), torch.randn(5, 4, 1, 1)
        scale, offset = torch.tensor(0.01), torch.tensor(0.3)
        product = ConvolutionProduct(stride, (0, 0), (1, 1), 1)
        assert convolution.turns(product, (1, 1))
        found = convolution.input_gradient(Codes(g, scale, offset), w, product, size, 2).to_float().view(2, *size, 4)
        values = (g.float() * scale + offset).permute(0, 3, 1, 2)
        expected = torch.nn.grad.conv2d_input((2, 4, *size), w, values, stride=stride).permute(0, 2, 3, 1)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
