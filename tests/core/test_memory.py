"""C sees only memory it owns: real, dense, on the CPU, of the type it takes; everything else takes the formulas."""

from dataclasses import dataclass

import defaults_sweep
import pytest
import tiny
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize, grad, vmap

import ldp_search
from ldp_search.core import native
from ldp_search.core.bits.policies import Policy
from ldp_search.core.native import grids
from ldp_search.core.native.library import takes
from ldp_search.core.native.memory import address, is_real
from ldp_search.core.native.shapes import grid_shape
from ldp_search.core.quantize.fake_quantize import fake_quantize
from ldp_search.core.quantize.grid import Grid, measure
from ldp_search.core.registry import build

KERNELS = pytest.mark.skipif(native.status() != "on", reason=f"native kernels {native.status()}")


class Wrapped(torch.Tensor):
    """A subclass without rules of its own."""


def freed():
    x = torch.randn(4, 4)
    x.untyped_storage().resize_(0)
    return x


def lazily_negated():
    return torch.randn(4, 4, dtype=torch.cfloat).conj().imag


WITHOUT_MEMORY = {
    "meta": lambda: torch.randn(4, 4, device="meta"),
    "subclass": lambda: torch.randn(4, 4).as_subclass(Wrapped),
    "fake": lambda: FakeTensorMode().from_tensor(torch.randn(4, 4)),
    "freed": freed,
    "lazily negated": lazily_negated,
    "zeros of autograd": lambda: torch._efficientzerotensor((4, 4)),
    "functional": lambda: torch._to_functional_tensor(torch.randn(4, 4)),
    "nested": lambda: torch.nested.nested_tensor([torch.randn(2, 3)]),
    "sparse": lambda: torch.randn(4, 4).to_sparse(),
}


@dataclass
class Careless(Policy):
    """Makes tensors as people do: without a dtype and a device."""

    def begin(self):
        return torch.zeros(self.problem.low.shape) + 4

    def step(self, signals):
        return torch.ones(self.problem.low.shape) * torch.tensor(6.003) - 0.001


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> dict[str, str]:
    """{case: "same", or what differs; "crashed" for the one that the process died in}."""
    child = tiny.Child(tmp_path_factory.mktemp("sweep") / "printed", defaults_sweep.main)
    status, found = child.wait(), dict[str, str]()
    for line in child.printed.splitlines():
        word, _, rest = line.partition(" ")
        case, _, result = rest.partition(" ")
        found[case] = result if word == "end" else f"crashed with {status}: {child.printed[-2000:]}"
    assert found, f"the sweep ended with {status} before its first case: {child.printed[-2000:]}"
    return found


def test_a_training_computes_the_same_whatever_the_default_dtype_and_device(sweep):
    assert len(sweep) == len(defaults_sweep.CASES) * len(defaults_sweep.DEFAULTS) // 2, sweep
    assert not {case: result for case, result in sweep.items() if result != "same"}


@KERNELS
@pytest.mark.parametrize("kind", WITHOUT_MEMORY)
def test_nothing_without_memory_of_its_own_reaches_c(kind):
    x = WITHOUT_MEMORY[kind]()
    assert not is_real(x) and not takes(x)
    with pytest.raises(TypeError, match="A kernel takes dense CPU memory of float32; received"):
        address(x, torch.float32)


@KERNELS
@pytest.mark.parametrize("transform", [vmap, lambda f: grad(lambda x: f(x).sum()), functionalize])
def test_nothing_within_a_transform_reaches_c(transform):
    seen = []
    transform(lambda x: (seen.append(takes(x)), x * 1)[1])(torch.randn(4, 4))
    assert seen == [False]


@KERNELS
def test_real_tensors_reach_c_only_where_fresh_ones_are_real_too():
    x = torch.randn(4, 4)
    with FakeTensorMode():
        assert not takes(x), "the kernel's own buffers would be fake"
    with torch.inference_mode():
        assert takes(x) and takes(torch.randn(3)), "inference tensors have memory"
    assert takes(x)


@KERNELS
@pytest.mark.parametrize(
    ("x", "dtype"),
    [(torch.zeros(3, dtype=torch.bfloat16), torch.float32), (torch.zeros(3), torch.int8), (torch.zeros(6)[::2], torch.float32)],
    ids=["type", "integers", "strides"],
)
def test_an_address_is_of_what_the_kernel_takes(x, dtype):
    with pytest.raises(TypeError, match="Make it with an explicit dtype and device"):
        address(x, dtype)


@KERNELS
def test_moving_averages_of_another_type_are_refused_instead_of_overwritten():
    bits, ranges = torch.full((3,), 4.0), torch.zeros(4, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="float32; received Tensor of torch.bfloat16"):
        grids.grid(torch.randn(8), (1, 1, 8), [], grids.MINMAX, bits, 0, ranges, 0.1)
    assert torch.equal(ranges, torch.zeros_like(ranges))


@pytest.mark.parametrize("kind", ["lazily negated", "subclass"])
def test_tensors_with_values_but_without_memory_are_quantized_by_the_formulas(kind):
    torch.manual_seed(3)
    x = WITHOUT_MEMORY[kind]()
    plain = torch.zeros(4, 4) + x.as_subclass(torch.Tensor)
    grid = build("quantizer", "symmetric").grid(measure(plain), torch.tensor(3.0), True)
    torch.testing.assert_close(fake_quantize(x, grid).as_subclass(torch.Tensor), fake_quantize(plain, grid))
    assert torch.equal(measure(x).high, measure(plain).high)


def test_grids_without_memory_take_the_formulas():
    x = torch.randn(4, 4)
    negated = (torch.full((), 0.5, dtype=torch.cfloat) * -1j).conj().imag
    assert negated.is_neg() and grid_shape(x, Grid(negated)) is None
    torch.testing.assert_close(fake_quantize(x, Grid(negated)), fake_quantize(x, Grid(negated.clone())))


def test_evaluation_within_vmap_is_that_of_the_batch(mlp):
    model = ldp_search.apply(mlp(), "static", example_inputs=torch.zeros(1, 8), bits=4)
    x = torch.randn(6, 8)
    model(x)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(vmap(model)(x), model(x))


def test_a_space_applied_in_inference_mode_trains_like_any_other(mlp):
    def trained(context):
        model = mlp()
        with context:
            ldp_search.apply(model, target_cost=0.5)
            model(torch.ones(2, 8))
            ldp_search.controller(model).to("cpu")
        ldp = ldp_search.controller(model)
        torch.manual_seed(2)
        for step in range(3):
            model(torch.randn(4, 8)).sum().backward()
            ldp.step((step + 1) / 3)
        return ldp.parameters()["bits"].detach(), ldp.ranges

    for one, other in zip(trained(torch.inference_mode()), trained(torch.no_grad()), strict=True):
        assert torch.equal(one, other) and not one.is_inference()


def test_ones_own_policy_sees_the_defaults_of_torch(mlp):
    model = ldp_search.apply(mlp(), policy="test_memory:Careless", example_inputs=torch.zeros(1, 8))
    ldp, before = ldp_search.controller(model), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("meta")
    try:
        model(torch.zeros(1, 8, device="cpu", dtype=torch.float32)).sum().backward()
        ldp.step(0.5)
        assert torch.get_default_dtype() == torch.bfloat16 and torch.get_default_device().type == "meta", "as they were"
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
    assert {bits.weight for bits in ldp.bits().values()} == {6}


def test_modules_keep_their_type_when_defaults_change():
    layer = ldp_search.apply(nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 64)), "static", example_inputs=torch.zeros(2, 64))
    x = torch.randn(8, 64)
    expected = layer(x)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = layer(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected) and found.dtype == torch.float32
