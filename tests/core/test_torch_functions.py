"""The functions that are products: their operands, however they are given; over which axes they sum; as a layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldp_search.core.products.torch_functions import PRODUCTS, find
from ldp_search.core.quantize.grid import measure

X, W = torch.randn(2, 3, 4), torch.randn(4, 5)
CALLS = {  # name: (function, arguments, keyword arguments, axes of the weight that the sum leaves, which operand is the weight)
    "matmul": (torch.matmul, (X, W), {}, (1,), 1),
    "matmul by keyword": (torch.matmul, (X,), {"other": W}, (1,), 1),
    "@": (Tensor.__matmul__, (X, W), {}, (1,), 1),
    "weight first": (torch.matmul, (W.t(), X.transpose(1, 2)), {}, (0,), 0),
    "experts": (torch.bmm, (X, torch.randn(2, 4, 6)), {}, (0, 2), 1),
    "addmm": (torch.addmm, (torch.zeros(5), X[0], W), {}, (1,), 1),
    "baddbmm": (torch.baddbmm, (torch.zeros(1), X, torch.randn(2, 4, 6)), {}, (0, 2), 1),
    "linear": (F.linear, (X, W.t()), {"bias": torch.zeros(5)}, (0,), 1),
    "conv2d": (F.conv2d, (torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)), {"padding": 1}, (0,), 1),
    "conv1d by keyword": (F.conv1d, (), {"input": torch.randn(1, 2, 5), "weight": torch.randn(4, 1, 3), "groups": 2}, (0,), 1),
    "conv, same": (F.conv1d, (torch.randn(1, 2, 5), torch.randn(3, 2, 4)), {"padding": "same"}, (0,), 1),
    "transposed": (F.conv_transpose2d, (torch.randn(1, 2, 3, 3), torch.randn(2, 4, 3, 3), None, 2), {}, (1,), 1),
    "einsum": (torch.einsum, ("bij,jk->bik", X, W), {}, (1,), 1),
    "einsum of a list": (torch.einsum, ("ibh,hnd->ibnd", [X, torch.randn(4, 2, 3)]), {}, (1, 2), 1),
    "einsum with dots": (torch.einsum, ("...j,jk->...k", X, W), {}, (1,), 1),
    "einsum without arrow": (torch.einsum, ("ij,jk", X[0], W), {}, (1,), 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_operands_axes_and_replacement(name):
    function, args, kwargs, axes, which = CALLS[name]
    product = find(function, args, kwargs)
    pair = product.operands(args, kwargs)
    assert all(isinstance(x, Tensor) for x in pair)
    assert product.channel_axes(which, pair[which], args) == axes
    doubled = product.with_operands(args, kwargs, [x * 2 for x in pair])
    bias = 3 * kwargs["bias"] if kwargs.get("bias") is not None else 0
    base = function(*args, **kwargs)
    torch.testing.assert_close(function(*doubled[0], **doubled[1]) + bias, 4 * base + 0)
    layer = product.as_layer_call(args, kwargs)
    if layer is not None:
        x, w, bias, form = layer
        torch.testing.assert_close(form.forward(x, w, bias), base)


@pytest.mark.parametrize("name", CALLS)
def test_a_channel_of_a_weight_is_scaled_by_itself(name):
    """Scaling what the kept axes resolve scales the output alone: ranges along them lose nothing."""
    function, args, kwargs, axes, which = CALLS[name]
    product = find(function, args, kwargs)
    weight = product.operands(args, kwargs)[which]
    stats = measure(weight, axes)
    assert stats.low.shape == tuple(n if d in axes else 1 for d, n in enumerate(weight.shape))


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (torch.matmul, (torch.ones(3, 1), torch.ones(1, 4))),  # an outer product: nothing is summed (rotary frequencies)
        (torch.einsum, ("i,j->ij", torch.ones(3), torch.ones(4))),
        (torch.einsum, ("bn,bn->bn", torch.ones(2, 3), torch.ones(2, 3))),
        (torch.matmul, (torch.ones(2, 2, dtype=torch.long), torch.ones(2, 2, dtype=torch.long))),
        (torch.einsum, ("ij,jk,kl->il", torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2))),
        (torch.add, (X, X)),
    ],
)
def test_what_is_no_product_of_two(function, args):
    assert find(function, args, {}) is None


def test_torchs_conv_functions_are_those_that_layers_call():
    assert {torch.conv2d, torch.conv_transpose1d, F.conv3d} <= set(PRODUCTS)
