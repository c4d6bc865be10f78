"""What torch's counter does not know is charged by its shapes and named; inputs of any form count per sample."""

import pytest
import torch
from torch import nn

import ldp_search
from ldp_search.core.profile.profiler import profile
from ldp_search.core.profile.samples import batch_size, shapes


@torch.library.custom_op("ldp_tests::gemv_4bit", mutates_args=())
def gemv_4bit(x: torch.Tensor, packed: torch.Tensor, features: int) -> torch.Tensor:
    """A kernel of another package: codes of four bits, two a byte."""
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten().float().view(features, -1) - 8
    return (x[:, None] * codes).sum(-1)


@torch.library.custom_op("ldp_tests::deform", mutates_args=())
def deform(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """An operation whose name tells nothing."""
    return (x[:, None] * w).sum(-1)


class Linear4bit(nn.Linear):
    """As bitsandbytes has it: a subclass of Linear whose weight is packed bytes in one column."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)
        self.weight = nn.Parameter(torch.randint(0, 255, (inputs * outputs // 2, 1), dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        return gemv_4bit(x, self.weight.flatten(), self.out_features)


class OwnKernel(torch.autograd.Function):
    """As a kernel called through ctypes: no operation of torch is seen to multiply."""

    @staticmethod
    def forward(ctx, x, w):
        out = x.new_empty(len(x), len(w))
        out.copy_(torch.from_numpy(x.detach().numpy() @ w.detach().numpy().T))
        return out

    @staticmethod
    def backward(ctx, g):
        return g, None


class HandMade(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.register_buffer("w", torch.randn(outputs, inputs))

    def forward(self, x):
        return OwnKernel.apply(x, self.w)


class Deformed(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.w = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x):
        return deform(x, self.w)


UNKNOWN = {
    Linear4bit: "ldp_tests::gemv_4bit (by its shapes): no product that can be quantized where it is called",
    HandMade: "a HandMade's own kernel (by its shapes): no product that can be quantized where it is called",
    Deformed: "ldp_tests::deform (by its shapes): no product that can be quantized where it is called",
}


@pytest.mark.parametrize("layer", UNKNOWN)
def test_a_layer_whose_kernel_nothing_knows_is_charged_by_its_shapes_and_named(layer):
    model = nn.Sequential(nn.Linear(8, 16), layer(16, 64), nn.Linear(64, 2))
    ldp_search.apply(model, "static", example_inputs=torch.randn(3, 8))
    found = ldp_search.controller(model).coverage
    assert [tuple(item) for item in found.left_out] == [("1", 16 * 64, UNKNOWN[layer])]
    assert found.share == pytest.approx((8 * 16 + 64 * 2) / (8 * 16 + 16 * 64 + 64 * 2))
    with pytest.raises(ValueError, match="0.200 is"):
        ldp_search.apply(ldp_search.remove(model), "static", example_inputs=torch.randn(3, 8), min_coverage=0.5)


def test_torchvisions_deformable_convolution_is_named():
    from torchvision.ops import DeformConv2d

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset, self.conv = nn.Conv2d(3, 18, 3, padding=1), DeformConv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(x, self.offset(x))

    tally = profile(Net(), (torch.randn(2, 3, 6, 6),), {}).modules["conv"]
    assert dict(tally.other_macs) == {"torchvision::deform_conv2d (by its shapes)": 36 * 4 * 3 * 9}


class Position(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.scale = nn.Parameter(torch.randn(1, 5, 8)), nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return x + self.table


@pytest.mark.parametrize("make", [Position, lambda: nn.LayerNorm([5, 8]), lambda: nn.PReLU(5), nn.Identity])
def test_what_only_adds_or_scales_is_charged_nothing(make):
    survey = profile(nn.Sequential(make(), nn.Linear(8, 2)), (torch.randn(3, 5, 8),), {})
    assert not survey.modules["0"].macs and not survey.modules[""].macs


def test_integer_products_of_torch_are_counted():
    class Integers(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("w", torch.randint(-9, 9, (32, 16), dtype=torch.int8))

        def forward(self, x):
            return torch._int_mm(x.to(torch.int8), self.w).float()

    tally = profile(nn.Sequential(Integers()), (torch.randn(32, 32),), {}).modules["0"]
    assert dict(tally.other_macs) == {"_int_mm": 32 * 16}


# -- foreign tensors ----------------------------------------------------------------------------------------------------


class Int8Tensor(torch.Tensor):
    """As torchao has them: codes and a scale that show themselves as a float tensor, with a few operations of their own."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32, device=codes.device)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], None

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            x, w, *bias = args
            return nn.functional.linear(x, w.codes.float() * w.scale, *bias)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        raise NotImplementedError(f"{func} of an Int8Tensor")


def quantized_already():
    layer = nn.Linear(16, 64)
    weight = Int8Tensor(torch.randint(-9, 9, (64, 16), dtype=torch.int8), torch.full((), 0.1))
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def of_bytes():
    layer = nn.Linear(16, 64)
    layer.weight = nn.Parameter(torch.randint(-9, 9, (64, 16), dtype=torch.int8), requires_grad=False)
    layer.forward = lambda x: nn.functional.linear(x, layer.weight.float(), layer.bias)
    return layer


def test_a_layer_whose_weight_is_of_a_foreign_type_is_left_out_with_the_reason():
    model, x = nn.Sequential(nn.Linear(8, 16), quantized_already(), nn.Linear(64, 2)), torch.randn(3, 8)
    ldp_search.apply(model, "static", example_inputs=x)
    ldp = ldp_search.controller(model)
    [left] = ldp.coverage.left_out
    assert left == ("1", 16 * 64, "its weight is a Int8Tensor, which computes by rules of its own")
    model(x).sum().backward()
    ldp.step(0.5)
    assert ldp.coverage.share == pytest.approx(0.2) and list(ldp.bits()) == ["0", "2"]


def test_a_foreign_weight_is_left_out_where_nothing_was_counted_before():
    model, x = nn.Sequential(nn.Linear(8, 16), quantized_already()), torch.randn(3, 8)
    ldp_search.apply(model, "static")
    model(x).sum().backward()
    assert "Int8Tensor" in ldp_search.controller(model).summary()


def test_a_layer_of_codes_is_quantized_as_the_floats_that_it_makes_of_them():
    model = nn.Sequential(nn.Linear(8, 16), of_bytes(), nn.Linear(64, 2))
    ldp_search.apply(model, "static", example_inputs=torch.randn(3, 8), bits=3)
    assert ldp_search.controller(model).coverage.share == 1


# -- samples ------------------------------------------------------------------------------------------------------------

PICTURES = [torch.zeros(3, 5, 6), torch.zeros(3, 7, 4)]
DETECTED = [{"boxes": torch.zeros(9, 4)}, {"boxes": torch.zeros(2, 4)}]


class Nested:
    """As DETR's NestedTensor: an object that holds its tensors somewhere."""


@pytest.mark.parametrize(
    ("args", "kwargs", "output", "expected"),
    [
        ((PICTURES,), {}, DETECTED, 2),
        ((PICTURES,), {}, {"loss": torch.zeros(())}, 2),
        (([torch.zeros(3, 5, 6)] * 4,), {}, DETECTED * 2, 4),
        (([{"image": torch.zeros(3, 5, 6)}] * 2,), {}, DETECTED, 2),
        (([torch.zeros(5, dtype=torch.long), torch.zeros(9, dtype=torch.long)],), {}, torch.zeros(2, 7), 2),
        (([torch.zeros(5, 3), torch.zeros(5, 4)],), {}, torch.zeros(5, 7), 5),
        (((torch.zeros(5, 3), torch.zeros(5, 4)),), {}, torch.zeros(5, 7), 5),
        (([torch.zeros(3, 5, 6), torch.zeros(3, 5, 6)],), {}, torch.zeros(3, 7), 3),
        ((Nested(),), {}, {"logits": torch.zeros(6, 10)}, 6),
        ((torch.zeros(5, 2),), {}, torch.zeros(10, 3), 5),
    ],
)
def test_samples(args, kwargs, output, expected):
    assert batch_size(args, kwargs, output=output) == expected


def test_a_detection_model_is_counted_per_picture():
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn as build

    torch.manual_seed(0)
    model = build(weights=None, weights_backbone=None, min_size=64, max_size=64, num_classes=3).eval()
    one, several = (profile(model, ([torch.rand(3, 64, 64) for _ in range(n)],), {}) for n in (1, 4))
    whole = [survey.modules["backbone.body.0.0"].macs["convolution"] for survey in (one, several)]
    assert whole[0] == whole[1] == 32 * 32 * 16 * 27
    assert several.inputs == "4 of (3, 64, 64)"


def test_inputs_in_words():
    assert shapes((PICTURES, torch.zeros(2)), {"mask": torch.zeros(4)}) == "[(3, 5, 6), (3, 7, 4)], (2,), mask (4,)"


def test_a_gradient_penalty_is_computed_with_quantization_off():
    """Rounded products have no second derivative; that ends in an error, never in a wrong number."""
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(4, 6, requires_grad=True)
    ldp = ldp_search.controller(ldp_search.apply(model, example_inputs=x.detach()))

    def penalty():
        return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0].square().sum()

    with pytest.raises(RuntimeError, match="differentiate twice"):
        penalty().backward()
    model.zero_grad()
    with ldp.disabled():
        penalty().backward()
    assert model[0].weight.grad.abs().sum() > 0
