"""Integer arithmetic against the formulas left to autograd, its parts by hand, and which products it takes."""

import contextlib
import itertools
from dataclasses import dataclass

import pytest
import torch
from breadth import breadth
from test_products import TABLE
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import ldp_search
from ldp_search.core import native
from ldp_search.core.backends.int8 import choice, convolution, matmul, rounding_error
from ldp_search.core.backends.int8.matmul import Codes
from ldp_search.core.native import amx
from ldp_search.core.products.bilinear import ConvolutionProduct
from ldp_search.core.quantize import gradient_quantizers
from ldp_search.core.quantize.fake_quantize import rounded
from ldp_search.core.quantize.grid import Grid, measure
from ldp_search.core.registry import build

pytestmark = pytest.mark.skipif(not choice.has_integer_products("cpu"), reason="needs a CPU with VNNI")
CONVOLUTIONS = {
    "3x3": (lambda: nn.Conv2d(3, 4, 3, padding=1), (5, 3, 6, 7), {}),
    "1x1": (lambda: nn.Conv2d(3, 4, 1), (2, 3, 6, 7), {}),
    "strided": (lambda: nn.Conv2d(3, 4, 3, padding=1, stride=2, bias=False), (2, 3, 6, 7), {}),
    "dilated": (lambda: nn.Conv2d(3, 4, (2, 3), padding=(1, 2), dilation=(2, 1)), (2, 3, 9, 7), {}),
    "padded widely": (lambda: nn.Conv2d(3, 4, 2, padding=2, dilation=(1, 2)), (2, 3, 5, 5), {}),
    "patches": (lambda: nn.Conv2d(3, 4, 4, stride=4), (2, 3, 8, 8), {}),
    "one line of one sample": (lambda: nn.Conv2d(3, 7, (1, 5), padding=(0, 2)), (1, 3, 1, 40), {}),
    "one column of one sample": (lambda: nn.Conv2d(3, 7, 3), (1, 3, 20, 3), {}),
}
MATRICES = [name for name in TABLE if "linear" in name or "Conv1D" in name]
KERNELS = {"native": contextlib.nullcontext, "formulas": native.disabled}


def outcome(name, backend, quantizer="minmax", evaluation=False, frozen=(), dtype=torch.float32, rectified=False, **options):
    """{what: value} of y, all gradients, and the controller, of a layer of the table."""
    torch.manual_seed(0)
    make, shape, _ = (TABLE | CONVOLUTIONS)[name]
    model = nn.ModuleDict({"layer": make().to(dtype)})
    x = torch.randn(shape) + 0.3
    x = (x.relu() if rectified else x).to(dtype)
    if x.dim() == 4:  # as convolutions in integers leave their results, so that the noise falls on the same elements
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_("x" not in frozen)
    for kind, parameter in model["layer"].named_parameters():
        parameter.requires_grad_(kind not in frozen)
    space = {"weight_quantizer": quantizer, "input_quantizer": quantizer, "policy": {"name": "bit_gradient", "start": "middle"}}
    ldp_search.apply(model, space | {"bits": (3, 8), "target_cost": 0.6, "backend": backend} | options)
    ldp, layer = ldp_search.controller(model), model["layer"]
    if quantizer == "clip":  # tight enough for every range to clip something
        ldp.parameters()["log_clips"].detach().fill_(-1)
    if quantizer == "mse":
        ldp.sensing = False
        ldp.tensors.x_bounds.fill_(1), ldp.tensors.w_bounds.fill_(1)
    if evaluation:
        layer((0.7 * x).detach())
        model.eval()
    y = layer(x)
    torch.manual_seed(1)
    g = torch.randn(y.shape, dtype=y.dtype)
    y.backward(g.to(memory_format=torch.channels_last) if y.dim() == 4 else g)  # the same noise in the stochastic rounding too
    parts = {"y": y.detach(), "x": x.grad, **{k: p.grad for k, p in layer.named_parameters()}}
    return parts | {k: t.grad.clone() for k, t in ldp.parameters().items()}, ldp


def compare(expected, found, bits=1e-3, tolerance=1e-4):
    """To the 16 bits of a weight in dL/dx; the bits' gradient is a difference of large numbers."""
    for key, value in expected.items():
        assert (value is None) == (found[key] is None), key
        if value is not None:
            largest = float(value.abs().max())
            allowed = bits * largest + 5e-5 if key in ("bits", "log_clips") else tolerance * largest
            assert float((found[key] - value).abs().max()) <= allowed, key


ALWAYS = {"name": "int8", "choose": "always", "keep": "input"}


@pytest.mark.parametrize("kernels", KERNELS)
@breadth("quantizer", ["minmax", "symmetric", "clip", "mse"], always=["minmax", "mse"])
@pytest.mark.parametrize("name", MATRICES)
def test_integers_are_the_formulas(name, quantizer, kernels):
    with KERNELS[kernels]():
        for bits, grad_bits in (((3, 8), 8), (8, 4), (2, 32)):
            policy = {"name": "bit_gradient", "start": "middle"} if isinstance(bits, tuple) else "static"
            for case in ({}, {"evaluation": True}, {"rectified": True, "grad_quantizer": "symmetric"}):
                case = case | {"quantizer": quantizer, "bits": bits, "grad_bits": grad_bits, "policy": policy}
                (expected, _), (found, ldp) = outcome(name, "reference", **case), outcome(name, ALWAYS, **case)
                compare(expected, found)
                assert ldp.backend.choices.reasons == {"layer": None}


@pytest.mark.parametrize("kernels", KERNELS)
@breadth("quantizer", ["minmax", "symmetric", "clip", "mse"], always=["symmetric", "clip"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_in_integers_are_the_formulas(name, quantizer, kernels, monkeypatch):
    monkeypatch.setattr(convolution, "CHUNK", 1000)  # bytes: several chunks, the last one shorter
    # torch draws in the order of dimensions, which differs, not in that of memory
    monkeypatch.setattr(gradient_quantizers, "round_stochastically_", lambda x: x.round_())
    with KERNELS[kernels]():
        for case in ({}, {"evaluation": True, "grad_bits": 32}, {"rectified": True, "grad_quantizer": "symmetric"}):
            (expected, _), (found, ldp) = (outcome(name, b, quantizer, **case) for b in ("reference", ALWAYS))
            compare(expected, found)
            kept, _ = outcome(name, ALWAYS | {"keep": "codes"}, quantizer, **case)
            compare({k: v for k, v in found.items() if k not in ("bits", "log_clips")}, kept, tolerance=1e-6)
            assert ldp.backend.choices.reasons == {"layer": None}


@pytest.mark.parametrize("kernels", KERNELS)
@breadth("keep", ["input", "codes"], always=["codes"])
@pytest.mark.parametrize(
    "grad_quantizer", ["per_sample", "per_sample_channel", {"name": "per_sample_channel", "rows": True}, "per_block"]
)
@pytest.mark.parametrize("name", [*MATRICES, *CONVOLUTIONS])
def test_gradients_with_a_scale_a_sample_or_a_channel(name, grad_quantizer, keep, kernels, monkeypatch):
    monkeypatch.setattr(convolution, "CHUNK", 1000)
    monkeypatch.setattr(gradient_quantizers, "round_stochastically_", lambda x: x.round_())
    case = {"grad_quantizer": grad_quantizer, "grad_bits": 4}
    with KERNELS[kernels]():
        expected, _ = outcome(name, "simulate", **case)
        found, ldp = outcome(name, ALWAYS | {"keep": keep}, **case)
    if keep == "codes":  # whose bits have a gradient with noise of its own
        del expected["bits"]
    compare(expected, found)
    assert ldp.backend.choices.reasons == {"layer": None}


@pytest.mark.parametrize(
    "case", [{"grad_quantizer": "per_sample"}, {"grad_quantizer": "per_sample_channel"}, {"grad_bits": 32}]
)
@pytest.mark.parametrize("name", ["linear", "3x3", "strided"])
def test_the_first_layer_at_bits_that_are_not_learned(name, case):
    """Nobody asks for dL/dx, nor for a gradient of the weight's grid."""
    case = {"policy": "static", "bits": 8, "frozen": ("x",)} | case
    (expected, _), (found, _) = (outcome(name, backend, **case) for backend in ("simulate", ALWAYS))
    compare(expected, found)


def test_a_convolution_gives_a_tensor_that_may_be_added_to():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True))
    x = torch.randn(2, 4, 6, 6)
    ldp_search.apply(model, "bit_gradient", x, backend=ALWAYS)
    y = model(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()


@pytest.mark.parametrize("keep", ["input", "codes"])
@pytest.mark.parametrize("frozen", [("x",), ("weight",), ("x", "weight"), ("x", "bias"), ("weight", "bias")])
@pytest.mark.parametrize("name", ["linear", "Conv1D of transformers"])
def test_something_is_frozen(name, frozen, keep):
    backend = ALWAYS | {"keep": keep}
    (expected, _), (found, _) = (outcome(name, b, "clip", frozen=frozen) for b in ("reference", backend))
    compare(expected, found, bits=0.2)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize("quantizer", ["minmax", "symmetric", "clip", "mse"])
def test_codes_and_cells_are_enough_for_backward(quantizer, evaluation, kernels):
    """Everything but the gradient of bits and clips is the same; that one is off by a fifteenth of its own noise."""
    torch.manual_seed(0)
    layer, x, g = nn.Linear(65, 8), torch.randn(301, 65), torch.randn(301, 8)  # an odd number of elements
    found = []
    with KERNELS[kernels]():
        for keep in ("input", "codes"):
            options = {"weight_quantizer": quantizer, "input_quantizer": quantizer, "bits": (3, 8), "target_cost": 0.6}
            model = nn.Sequential(nn.Linear(65, 8))
            model[0].load_state_dict(layer.state_dict())
            ldp_search.apply(model, options, x, backend=ALWAYS | {"keep": keep})
            ldp = ldp_search.controller(model)
            torch.manual_seed(1)
            model(x.clone()).backward(g)
            model.train(not evaluation)
            leaf = (1.3 * x).requires_grad_()
            torch.manual_seed(1)
            model(leaf).backward(g + leaf.detach()[:, :8])
            found.append([leaf.grad, model[0].weight.grad, *(t.grad.clone() for t in ldp.parameters().values())])
    for one, other in zip(found[0][:2], found[1][:2], strict=True):
        assert torch.equal(one, other)
    step = 1.3 * float(x.max() - x.min()) / (2 ** ldp.bits()["0"].input - 1)
    noise = step * float(found[0][0].norm()) / 12**0.5  # of the sum of g times the rounding error, were both independent
    for one, other in zip(found[0][2:], found[1][2:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=4 * noise / 15)


def test_the_largest_codes_do_not_overflow():
    ends = torch.tensor([0.0, 255.0]).repeat(4, 300)
    grid = Grid(torch.ones(()), torch.zeros(()))
    codes, _ = matmul.quantize(ends, grid, torch.tensor(8.0))
    assert codes.values.unique().tolist() == [-128, 127] and torch.equal(codes.to_float(), ends)
    assert torch.equal(matmul.product(codes.values, codes.values.t()), (codes.values.long() @ codes.values.long().t()).int())
    torch.testing.assert_close(matmul.forward(codes, codes, None, torch.float32), ends @ ends.t(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_sample_of_more_places_than_32_bits_hold_the_sum_of(kernels, kernel):
    """Codes of -128 everywhere but in one place, as of a rectified input: 160,000 times 16,384."""
    product = ConvolutionProduct((1, 1), (kernel // 2,) * 2, (1, 1), 1)
    g, x = (torch.full((1, 400, 400, 1), -128, dtype=torch.int8) for _ in range(2))
    g[0, 5, 5], x[0, 5, 5] = 127, 127
    codes = [Codes(v, torch.tensor(1 / 255), torch.tensor(128 / 255, dtype=torch.float64)) for v in (g, x)]
    with KERNELS[kernels]():
        found = convolution.weight_gradient(*codes, product, (kernel, kernel)).view(-1)
    expected = torch.zeros(kernel * kernel)
    expected[kernel * kernel // 2] = 1
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)  # of terms of 40,000 in fp32


@dataclass
class ByRow(gradient_quantizers.SymmetricStochastic):
    """One scale for each row of an image, which no product of a convolution can take out of its sums."""

    def axes(self, g):
        return (2,)


@pytest.mark.parametrize("batch", [5, 6, 7])
def test_a_scale_of_another_kind_is_no_scale_a_sample(batch):
    """Also where there are as many samples as scales: an image has 6 rows."""
    found = []
    for backend in ("simulate", {"name": "int8", "choose": "always"}):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), torch.randn(batch, 4, 6, 8)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        ldp_search.apply(model, policy="static", bits=8, grad_bits=8, grad_quantizer=ByRow(), backend=backend)
        g = torch.randn(batch, 4, 6, 8) * torch.logspace(-2, 0, 6)[:, None]
        torch.manual_seed(1)  # the same noise
        model(x).backward(g.to(memory_format=torch.channels_last))
        found.append(x.grad)
    torch.testing.assert_close(*found, rtol=0, atol=1e-3 * float(found[0].abs().max()))


def test_a_kernel_larger_than_its_input_is_told_as_torch_tells_it():
    model = nn.Sequential(nn.Conv2d(17, 17, (7, 17), stride=(7, 1)))
    ldp_search.apply(model, policy="static", bits=8, backend={"name": "int8", "choose": "always"})
    with pytest.raises(RuntimeError, match="can't be greater than"):
        model(torch.randn(2, 17, 5, 8))


def test_products_of_single_rows_and_columns():
    for sizes in itertools.product((1, 2, 5), repeat=3):
        (m, k, n), draw = sizes, lambda *shape: torch.randint(-128, 128, shape, dtype=torch.int8)
        for a, b in itertools.product((draw(m, k), draw(k, m).t()), (draw(k, n), draw(n, k).t())):
            assert torch.equal(matmul.product(a, b).long(), a.long() @ b.long()), (sizes, a.stride(), b.stride())


@pytest.mark.parametrize("threads", [1, 2])
def test_the_product_of_tiles_is_exact(threads):
    """Ends of rows, of columns and of the sum, in all four orders of memory; the largest codes."""
    if not (native.status() == "on" and amx.has_tiles()):
        pytest.skip("needs a CPU with AMX")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for m, k, n in ((1, 1, 1), (16, 64, 16), (17, 65, 33), (31, 7, 20), (33, 128, 48), (100, 130, 70), (300, 200, 150)):
            draw = lambda *shape: torch.randint(-128, 128, shape, dtype=torch.int8)  # noqa: E731
            for a, b in itertools.product((draw(m, k), draw(k, m).t()), (draw(k, n), draw(n, k).t(), draw(k, 2 * n)[:, ::2])):
                a[0], b[:, 0] = -128, -128
                assert torch.equal(amx.multiply(a, b).long(), a.long() @ b.long()), (m, k, n, a.stride(), b.stride())
    finally:
        torch.set_num_threads(before)


def test_a_rectified_input_uses_all_codes():
    x = torch.linspace(0, 1, 64).view(8, 8)
    grid = build("quantizer", "symmetric").grid(measure(x), torch.tensor(8.0), True)
    assert matmul.quantize(x, grid, torch.tensor(8.0))[0].values.float().aminmax() == (-128, 127)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_planes_hold_the_weight(kernels, number, transposed):
    w = torch.randn(5, 7).t() if transposed else torch.randn(7, 5)
    w[0, 0] = -w.abs().max() * 2  # the end of the range, in either plane
    with KERNELS[kernels]():
        values, scale = matmul.planes(w, number)
    assert values.shape == (7, 5 * number) and values.dtype == torch.int8
    high, low = (values.float().chunk(2, 1)) if number == 2 else (values.float(), 0)
    back = high * 256 + low if number == 2 else high
    assert float((back * scale - w).abs().max()) <= float(scale) * 0.501
    assert float(scale) == pytest.approx(float(w.abs().max()) / matmul.LARGEST[number])


def test_an_input_gradient_in_one_plane_is_off_by_half_a_step_of_the_weight():
    (exact, _), (found, _) = (outcome("linear, sequences", ALWAYS | {"input_gradient": way}) for way in ("exact", "rounded"))
    error, largest = (found["x"] - exact["x"]).abs().max(), exact["x"].abs().max()
    assert 0 < error < 0.02 * largest
    assert all(torch.equal(found[k], exact[k]) for k in ("y", "weight", "bias"))


@pytest.mark.parametrize("kernels", KERNELS)
def test_cells_are_unbiased(kernels):
    """sum(g * error) from cells: the mean of both agrees for errors spread evenly, and their mean squares to 1 / 225."""
    x = torch.rand(200, 1001) * 31
    grid = Grid(torch.ones(()), torch.zeros(()))
    with KERNELS[kernels]():
        codes, packed = matmul.quantize(x, grid, torch.tensor(5.0), cells=True)
    error = x - rounded(x, grid)
    found = (rounding_error.unpack(packed, x.shape).float() - 7) / 15
    assert packed.numel() == (x.numel() + 1) // 2 and float((found - error).abs().max()) < 1 / 30 + 1e-4
    assert abs(float((found - error).mean())) < 3e-4
    assert float((found * error).mean() / (error * error).mean()) == pytest.approx(1 - 1 / 225, abs=1e-3)


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.bfloat16, False), (torch.float32, True), (torch.float16, False)])
def test_types(dtype, autocast):
    def results(backend):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return outcome("linear, sequences", backend, dtype=dtype)

    (expected, _), (found, ldp) = results("simulate"), results({"name": "int8", "choose": "always"})
    assert ldp.backend.choices.reasons == {"layer": None}
    assert all(found[k].dtype == expected[k].dtype for k in expected)
    compare({k: v.float() for k, v in expected.items()}, {k: v.float() for k, v in found.items()}, 0.5, 0.03)


def test_less_is_saved_for_backward():
    from ldp_search.runner.bench.timing import saved_bytes

    x = torch.randn(256, 512)
    found = {}
    for keep in ("input", "codes"):
        model = nn.Sequential(nn.Linear(512, 8), nn.Tanh())
        ldp_search.apply(model, "bit_gradient", x[:1], backend={"name": "int8", "choose": "always", "keep": keep})
        found[keep] = saved_bytes(model, lambda model=model: model(x * 2).sum())
    assert found["codes"] < 0.42 * found["input"]  # 1.5 bytes an element instead of 4


CASES = {
    "not a convolution in two dimensions": (lambda: nn.Conv1d(4, 4, 1), {}),
    "a grouped convolution": (lambda: nn.Conv2d(4, 4, 1, groups=2), {}),
    "weights of up to 9 bits": (lambda: nn.Linear(4, 4), {"weight_bits": (3, 9)}),
    "inputs of up to 12 bits": (lambda: nn.Linear(4, 4), {"input_bits": (4, 12)}),
    "gradients of up to 10 bits": (lambda: nn.Linear(4, 4), {"grad_bits": 10}),
    "computed in float64": (lambda: nn.Linear(4, 4).double(), {}),
    "backend.choose=never": (lambda: nn.Linear(4, 4), {"backend": {"name": "int8", "choose": "never"}}),
    "no 8-bit products on this cpu": (lambda: nn.Linear(4, 4), {}),
}


@pytest.mark.parametrize("reason", CASES)
def test_what_does_not_fit_is_simulated_and_named(reason, monkeypatch):
    if "no 8-bit" in reason:
        monkeypatch.setattr(choice, "has_integer_products", lambda device: False)
    make, options = CASES[reason]
    results = []
    for backend in ({"name": "int8", "choose": "always"}, "simulate"):
        torch.manual_seed(0)
        model = nn.Sequential(make())
        x = torch.randn(2, 4, 4, 4, dtype=model[0].weight.dtype)
        x = x[0] if isinstance(model[0], nn.Conv1d) else x
        ldp_search.apply(
            model,
            {"policy": "bit_gradient", "backend": backend} | ({} if backend == "simulate" else options),
            x,
            target_cost=0.6,
        )
        results.append((model(x), ldp_search.controller(model)))
    assert f"0 of 1 layers; simulated: 0 ({reason})" in results[0][1].summary()
    assert "integer arithmetic" not in results[1][1].summary()


def test_the_choice_is_measured_once_kept_and_reported(monkeypatch):
    seconds = iter([[1.0, 2.0], [3.0, 2.0]])
    monkeypatch.setattr(choice, "_measure", lambda call, ways: next(seconds))
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(32, 8)
    ldp_search.apply(model, "bit_gradient", x, backend="int8")
    ldp = ldp_search.controller(model)
    for rows in (32, 20):  # the next power of two is the same
        model(x[:rows]).sum().backward()
    line = "integer arithmetic: 1 of 2 layers (forward and backward); simulated: 2 (slower in integers)"
    assert line in ldp.summary()
    other = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    ldp_search.apply(other, "bit_gradient", x, backend="int8")
    ldp_search.controller(other).load_state_dict(ldp.state_dict())
    other(x).sum().backward()  # measures nothing: the iterator is at its end
    assert line in ldp_search.controller(other).summary()


def test_a_layer_that_did_both_is_reported_so_whatever_came_last(monkeypatch):
    seconds = iter([[3.0, 2.0], [1.0, 2.0], [3.0, 2.0]])
    monkeypatch.setattr(choice, "_measure", lambda call, ways: next(seconds))
    model = nn.Sequential(nn.Linear(8, 4))
    ldp_search.apply(model, "bit_gradient", torch.randn(2, 8), backend="int8")
    for rows in (8, 64, 256):
        model(torch.randn(rows, 8)).sum().backward()
    assert "integer arithmetic: 1 of 1 layers (forward and backward; 0 not at every call)" in (
        ldp_search.controller(model).summary()
    )


def test_measuring_leaves_no_trace():
    found = []
    for choose in ("always", "measure"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64))
        x = torch.randn(256, 64, requires_grad=True)
        ldp_search.apply(model, "bit_gradient", x.detach(), backend={"name": "int8", "choose": choose})
        ldp = ldp_search.controller(model)
        if choose == "measure":
            measured = ldp.backend.choices.slower
            # Measured, but integers whatever comes out.
            ldp.backend.choices.slower = lambda *given, measured=measured: measured(*given) and None
        y = model(x)
        y.sum().backward()
        found.append([y, x.grad, model[0].weight.grad, ldp.parameters()["bits"].grad.clone(), torch.rand(1)])
        assert len(ldp.backend.choices.seconds) == (choose == "measure")
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("fake_first", [True, False], ids=["fake first", "real first"])
def test_what_a_mode_computes_serves_nobody_else(fake_first):
    """Neither a tensor nor an answer: fake tensors have no values, and a mode takes no real ones among them."""
    for kept in (convolution._inside, choice.has_integer_products):
        kept.cache_clear()
    results = []
    for fake in (fake_first, not fake_first) * 2:
        with FakeTensorMode() if fake else contextlib.nullcontext():
            y = torch.ones(2, 4, 4, 3, dtype=torch.int8)
            codes = Codes(y, torch.ones(()), torch.ones(()))
            w = Codes(torch.ones(5, 27, dtype=torch.int8), torch.ones(5, 1), torch.zeros(5, 1))
            product = ConvolutionProduct((1, 1), (1, 1), (1, 1), 1)
            y = convolution.forward(codes, w, None, product, (3, 3), torch.float32)
            assert isinstance(y, FakeTensor) == fake and choice.has_integer_products("cpu")
        if not fake:
            results.append(y)
    assert float(results[0][0, 1, 1, 0]) == 54 and float(results[0][0, 0, 0, 0]) == 24, "2 a tap that lies inside"
    assert torch.equal(*results)


def test_a_mode_is_neither_measured_nor_reported():
    model = nn.Sequential(nn.Linear(32, 32))
    ldp_search.apply(model, "static", torch.zeros(1, 32), backend="int8")
    choices = ldp_search.controller(model).backend.choices
    with FlopCounterMode(display=False):
        model(torch.randn(64, 32))
    assert not choices.seconds and "no layer has run yet" in ldp_search.controller(model).summary()
    model(torch.randn(64, 32))
    assert len(choices.seconds) == 1 and list(choices.reasons) == ["0"]


def test_an_evaluation_in_inference_mode_leaves_a_training_what_it_kept():
    convolution._inside.cache_clear()
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    ldp_search.apply(model, "bit_gradient", torch.zeros(1, 3, 8, 8), backend=ALWAYS)
    with torch.inference_mode():
        model(torch.randn(2, 3, 8, 8))
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    where = (8, 8), (3, 3), (1, 1), (1, 1), (1, 1)
    assert convolution._inside.cache_info().currsize == 1 and not convolution.inside(*where).is_inference()


def test_full_precision_gradients_are_forward_only():
    _, ldp = outcome("linear", {"name": "int8", "choose": "always"}, grad_bits=32)
    assert "1 of 1 layers (forward)" in ldp.backend.report(["layer"])


def test_an_instance_is_shared_by_no_two_models():
    from ldp_search.core.backends import Int8

    given = Int8(choose="always")
    one, other = build("backend", given), build("backend", given)
    assert one.choices is not other.choices and one == other == given


@pytest.mark.parametrize(("option", "value"), [("choose", "alwys"), ("keep", "code"), ("input_gradient", "exacte")])
def test_unknown_words(option, value):
    with pytest.raises(ValueError, match=f"Unknown {option} '{value}' of the backend 'int8'. Did you mean"):
        ldp_search.SearchSpace(backend={"name": "int8", option: value})


def test_codes_know_their_sums():
    for values in (
        torch.randint(-128, 128, (33, 70), dtype=torch.int8),
        torch.randint(-128, 128, (9, 5), dtype=torch.int8).t(),
    ):
        for make in KERNELS.values():
            with make():
                codes = Codes(values, torch.ones(()), torch.zeros(()))
                assert all(torch.equal(codes.sum(d), values.sum(d, dtype=torch.int32)) for d in (0, 1))


@pytest.mark.parametrize("scale", [(), (6, 1, 1, 1), (1, 1, 1, 3)], ids=["one", "a sample", "a channel"])
@pytest.mark.parametrize("strided", [False, True])
def test_codes_know_their_values(scale, strided):
    values = torch.randint(-128, 128, (6, 4, 5, 3), dtype=torch.int8)
    values = values.transpose(1, 2) if strided else values
    codes = Codes(values, torch.rand(scale), torch.tensor(0.5))
    for make in KERNELS.values():
        with make():
            torch.testing.assert_close(codes.to_float(), values * codes.scale + 0.5, rtol=0, atol=1e-6)
