"""Quantized layers are called as the original ones: by position, by keyword, in any order, and wrongly with the same error."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

import ldp_search
from ldp_search.core.model.swap import original_class, quantized_class


class Calls(nn.Module):
    """A layer, and how its owner calls it."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return self.call(self.layer, x)


LAYERS = {
    "Linear": (lambda: nn.Linear(6, 4), (3, 6), "input"),
    "Conv1D": (lambda: Conv1D(4, 6), (3, 6), "x"),
    "Conv1d": (lambda: nn.Conv1d(2, 4, 3), (3, 2, 6), "input"),
    "Conv2d": (lambda: nn.Conv2d(2, 4, 3, padding=1), (3, 2, 6, 6), "input"),
    "Conv3d": (lambda: nn.Conv3d(2, 4, 2), (3, 2, 4, 4, 4), "input"),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 4, 3, stride=2), (3, 2, 6), "input"),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 4, 3, stride=2), (3, 2, 5, 5), "input"),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 4, 2, stride=2), (3, 2, 3, 3, 3), "input"),
    "Embedding": (lambda: nn.Embedding(9, 4), None, "input"),
}


def result(make, call, x, **options) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(Calls(make(), call))
    if not x.is_floating_point():
        options["embeddings"] = True
    ldp_search.apply(model, "static", example_inputs=x, bits=3, **options)
    y = model(x)
    with ldp_search.controller(model).disabled():
        assert not torch.equal(model(x), y), "quantized at all"
    return y


def inputs(shape) -> torch.Tensor:
    return torch.arange(6).view(2, 3) if shape is None else torch.randn(shape)


@pytest.mark.parametrize("kind", LAYERS)
def test_by_position_and_by_keyword(kind):
    make, shape, name = LAYERS[kind]
    x = inputs(shape)
    torch.testing.assert_close(result(make, lambda f, x: f(**{name: x}), x), result(make, lambda f, x: f(x), x), rtol=0, atol=0)


SIZES = {
    "by position": lambda f, x, s: f(x, s),
    "size by keyword": lambda f, x, s: f(x, output_size=s),
    "both by keyword": lambda f, x, s: f(input=x, output_size=s),
    "the size first": lambda f, x, s: f(output_size=s, input=x),
}


@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize(("kind", "size"), [("ConvTranspose1d", [14]), ("ConvTranspose2d", [12, 12])])
def test_the_output_size_of_a_transposed_convolution(kind, size, form):
    make, shape, _ = LAYERS[kind]
    x = torch.randn(shape)
    y = result(make, lambda f, x: SIZES[form](f, x, size), x)
    assert list(y.shape[2:]) == size
    torch.testing.assert_close(y, result(make, lambda f, x: f(x, size), x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("wrong", [lambda f, x: f(), lambda f, x: f(x, nonsense=1), lambda f, x: f(x, 1, 2, 3)])
def test_a_wrong_call_says_what_the_original_layer_says(kind, wrong):
    make, shape, _ = LAYERS[kind]
    layer, x = make(), inputs(shape)
    with pytest.raises(TypeError) as original:
        wrong(layer, x)
    ldp_search.apply(nn.Sequential(layer, nn.Linear(4, 2)), "static", embeddings=True)
    with pytest.raises(TypeError) as quantized:
        wrong(layer, x)
    assert str(quantized.value) == str(original.value)


FUNCTIONS = {
    "linear": (lambda w, x: F.linear(input=x, weight=w), (5, 6), (3, 6)),
    "linear, mixed": (lambda w, x: F.linear(x, weight=w), (5, 6), (3, 6)),
    "matmul": (lambda w, x: torch.matmul(input=x, other=w), (6, 5), (3, 6)),
    "matmul of a tensor": (lambda w, x: x.matmul(other=w), (6, 5), (3, 6)),
    "mm": (lambda w, x: torch.mm(input=x, mat2=w), (6, 5), (3, 6)),
    "addmm": (lambda w, x: torch.addmm(input=x[:, :5], mat1=x, mat2=w), (6, 5), (3, 6)),
    "conv2d": (lambda w, x: F.conv2d(weight=w, input=x, padding=1), (4, 2, 3, 3), (3, 2, 6, 6)),
    "conv_transpose1d": (lambda w, x: F.conv_transpose1d(input=x, weight=w, stride=2), (2, 4, 3), (3, 2, 6)),
    "a view by keyword": (lambda w, x: x @ torch.transpose(input=w, dim0=0, dim1=1), (5, 6), (3, 6)),
}


class Function(nn.Module):
    def __init__(self, call, shape):
        super().__init__()
        torch.manual_seed(0)
        self.call, self.w = call, nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return self.call(self.w, x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_by_keyword_are_quantized_and_counted(name):
    call, weight, shape = FUNCTIONS[name]
    model, x = nn.Sequential(Function(call, weight)), torch.randn(shape)
    exact = model(x)
    ldp_search.apply(model, "static", example_inputs=x, bits=3)
    ldp = ldp_search.controller(model)
    assert ldp.coverage.share == 1 and list(ldp.bits()) == ["0.w"]
    assert not torch.equal(model(x), exact)
    with ldp.disabled():
        assert torch.equal(model(x), exact)


def test_inputs_by_keyword_are_counted_like_others():
    numbers = []
    for call in (lambda f, x: f(x), lambda f, x: f(input=x)):
        model = nn.Sequential(Calls(nn.Linear(6, 4), call))
        ldp_search.apply(model, "static", example_inputs=torch.randn(3, 6))
        numbers.append(ldp_search.controller(model).layers["0.layer"])
    assert numbers[0] == numbers[1] and numbers[0].input_numel == 6


# -- names of classes ---------------------------------------------------------------------------------------------------


class FSDPModule:
    """Stands for FSDP2's mixin, which it puts before a module's class."""


def sharded(cls: type) -> type:
    return type(f"FSDP{cls.__name__}", (FSDPModule, cls), {})


@pytest.mark.parametrize("name", ["QuantumHead", "Quant", "HeadQuantLinear", "Linear"])
def test_a_class_of_the_user_keeps_its_name_under_fsdp(name):
    mine = type(name, (nn.Module,), {"forward": lambda self, x: x})
    from ldp_search.core.model.interception import InterceptedForward

    made = sharded(quantized_class(mine, InterceptedForward))
    assert original_class(made).__name__ == f"FSDP{name}" and original_class(made).__bases__[1] is mine


def test_the_name_of_our_own_class_goes_with_it():
    from ldp_search.core.model.layers import QuantizedLayer

    found = original_class(sharded(quantized_class(nn.Linear, QuantizedLayer)))
    assert found.__name__ == "FSDPLinear" and found.__bases__ == (FSDPModule, nn.Linear)
