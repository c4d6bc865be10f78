"""The functions of torch that multiply two tensors: where their operands stand, and over which axes they are summed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .bilinear import ConvolutionProduct, LinearProduct, padded
from .foreign import foreign


@dataclass(frozen=True)
class TorchProduct:
    """A function that multiplies the arguments `operand_names` (for calls by keyword; the first one at position `first`).

    second_is_weight: its second operand is a weight whatever it was computed from, as a generated kernel is.
    """

    name: str
    operand_names: tuple[str, str]
    first: int = 0
    second_is_weight = False

    def operands(self, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor] | None:
        """The two operands; None where they are not two dense floating-point tensors."""
        first, second = (self._one(args, kwargs, i) for i in (0, 1))
        return (first, second) if _is_dense(first) and _is_dense(second) else None

    def _one(self, args, kwargs, which):
        place = self.first + which
        return args[place] if len(args) > place else kwargs.get(self.operand_names[which])

    def with_operands(self, args: tuple, kwargs: dict, pair) -> tuple[tuple, dict]:
        """The arguments with other operands."""
        placed, named = list(args), dict(kwargs)
        for which, value in enumerate(pair):
            if len(placed) > self.first + which:
                placed[self.first + which] = value
            else:
                named[self.operand_names[which]] = value
        return tuple(placed), named

    def channel_axes(self, which: int, operand: Tensor, args: tuple) -> tuple[int, ...]:
        """Axes of an operand that the sum leaves: its output channels, where it is a weight."""
        raise TypeError(f"{type(self).__name__} must define channel_axes(which, operand, args).")

    def reduction_length(self, pair, args: tuple) -> int:
        """How many products a sum has (one: an outer product)."""
        return pair[0].shape[-1]

    def as_layer_call(self, args: tuple, kwargs: dict) -> tuple | None:
        """(x, weight, bias, product of `bilinear.py`) where the call is that of a layer; None: it has no such form."""
        return None


def _is_dense(x) -> bool:
    return isinstance(x, Tensor) and foreign(x) is None


class Matmul(TorchProduct):
    """Sums over the last axis of the first operand and the last but one of the second."""

    def channel_axes(self, which, operand, args):
        summed = operand.dim() - 1 if which == 0 or operand.dim() == 1 else operand.dim() - 2
        return tuple(d for d in range(operand.dim()) if d != summed)


class Linear(TorchProduct):
    second_is_weight = True

    def channel_axes(self, which, operand, args):
        return tuple(range(operand.dim() - 1))

    def as_layer_call(self, args, kwargs):
        if (pair := self.operands(args, kwargs)) is None:
            return None
        x, w = pair
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        return (x, w, bias, LinearProduct()) if w.dim() == 2 else None


@dataclass(frozen=True)
class Convolution(TorchProduct):
    dims: int = 2
    transposed: bool = False
    second_is_weight = True

    _OPTIONS = {False: ("bias", "stride", "padding", "dilation", "groups"),
                True: ("bias", "stride", "padding", "output_padding", "groups", "dilation")}  # fmt: skip
    _DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}

    def channel_axes(self, which, operand, args):
        return (1 if self.transposed else 0,)

    def reduction_length(self, pair, args):
        return 2  # a convolution of one channel with a kernel of one element would be an odd way to scale

    def as_layer_call(self, args, kwargs):
        if (pair := self.operands(args, kwargs)) is None:
            return None
        x, w = pair
        if x.dim() != self.dims + 2:
            return None
        given = dict(zip(self._OPTIONS[self.transposed], args[2:], strict=False)) | kwargs
        given = {name: given.get(name, default) for name, default in self._DEFAULTS.items()}
        each = {name: _each(given[name], self.dims) for name in ("stride", "padding", "dilation", "output_padding")}
        if not self.transposed:
            x, each["padding"] = padded(x, each["padding"], w.shape[2:], each["dilation"])
        return x, w, given["bias"], ConvolutionProduct(**each, groups=given["groups"], transposed=self.transposed)


def _each(value, dims: int):
    """One value a dimension; a padding by name stays."""
    if isinstance(value, str):
        return value
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * dims if len(value) == 1 else value


class Einsum(TorchProduct):
    """Of an equation and two tensors, given one by one or as a list."""

    def operands(self, args, kwargs):
        tensors = self._tensors(args)
        return tensors if not kwargs and tensors is not None and all(map(_is_dense, tensors)) else None

    @staticmethod
    def _tensors(args):
        tensors = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
        return tuple(tensors) if len(tensors) == 2 and isinstance(args[0], str) else None

    def with_operands(self, args, kwargs, pair):
        return (args[0], *pair), kwargs

    @staticmethod
    def _letters(args) -> tuple:
        """The letters of both operands and those of the result, where that is left out the ones that occur once."""
        inputs, arrow, result = args[0].replace(" ", "").partition("->")
        if not arrow:
            every = inputs.replace(",", "")
            result = "".join(sorted(c for c in set(every) if every.count(c) == 1))
        return *inputs.split(","), result

    def channel_axes(self, which, operand, args):
        *inputs, result = self._letters(args)
        letters = _aligned(inputs[which], operand.dim())
        return tuple(d for d, letter in enumerate(letters) if letter in result or letter == ".")

    def reduction_length(self, pair, args):
        *inputs, result = self._letters(args)
        length, seen = 1, result + "."
        for letters, operand in zip(inputs, pair, strict=True):
            for letter, size in zip(_aligned(letters, operand.dim()), operand.shape, strict=True):
                length *= 1 if letter in seen else size
            seen += letters
        return length


def _aligned(letters: str, dims: int) -> str:
    """One letter an axis; those under an ellipsis are dots."""
    before, dots, after = letters.partition("...")
    return before + "." * (dims - len(before) - len(after)) + after if dots else letters


_MATMUL, _MM = Matmul("matmul", ("input", "other")), Matmul("mm", ("input", "mat2"))
_BMM = Matmul("bmm", ("input", "mat2"))
_ADDMM = Matmul("addmm", ("mat1", "mat2"), first=1)
_BADDBMM = Matmul("baddbmm", ("batch1", "batch2"), first=1)
_GROUPED = Matmul("grouped_mm", ("self", "mat2"))
ATTENTION = TorchProduct("scaled_dot_product_attention", ("query", "key"))
"""Two products in one function: counted as it is, opened (`unfused.py`) where it is quantized."""

PRODUCTS = {
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _MATMUL),
    **dict.fromkeys((torch.mm, Tensor.mm), _MM),
    **dict.fromkeys((torch.bmm, Tensor.bmm), _BMM),
    **dict.fromkeys((torch.addmm, Tensor.addmm), _ADDMM),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm), _BADDBMM),
    F.linear: Linear("linear", ("input", "weight")),
    torch.einsum: Einsum("einsum", ("", "")),
    F.scaled_dot_product_attention: ATTENTION,
    **{
        getattr(F, name): Convolution(name, ("input", "weight"), 0, dims, transposed)
        for dims in (1, 2, 3)
        for name, transposed in ((f"conv{dims}d", False), (f"conv_transpose{dims}d", True))
    },
    **({torch._grouped_mm: _GROUPED} if hasattr(torch, "_grouped_mm") else {}),
}
"""torch function -> what it multiplies."""

_BY_NAME = {"transformers.grouped_mm_fallback": Matmul("grouped_mm", ("input", "weight"))}
"""Operations that other packages add to torch.ops when they are imported."""


def find(function, args: tuple, kwargs: dict) -> TorchProduct | None:
    """What `function` multiplies in this call; None: it is no product of two tensors, or sums over nothing."""
    product = PRODUCTS.get(function)
    if product is None:
        product = _BY_NAME.get(str(function)) if isinstance(function, torch._ops.OpOverloadPacket) else None
    if product is None:
        return None
    pair = product.operands(args, kwargs)
    return product if pair is not None and product.reduction_length(pair, args) > 1 else None


def trailing(product: TorchProduct, tensor: Tensor) -> tuple[int, ...]:
    """What of its shape tells a computed weight again: the leading dimensions of a matrix product may count tokens."""
    return tuple(tensor.shape if product.second_is_weight else tensor.shape[-2:])
