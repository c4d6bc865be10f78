"""The parts that random models are made of. A part maps a tensor of one layout to one of the same layout."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

WIDTH = 16


class Net(nn.Module):
    """A stem, parts one after another, and a head over the mean of all places. token: inputs are indices of an embedding."""

    def __init__(self, stem: nn.Module, parts: list[nn.Module], head: nn.Module, spatial: int, autocast: bool):
        super().__init__()
        self.stem, self.parts, self.head, self.spatial, self.autocast = stem, nn.ModuleList(parts), head, spatial, autocast

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            x = self.stem(x)
            for part in self.parts:
                x = part(x)
            return self.head(x.flatten(2).mean(2) if self.spatial else x.mean(1))


class Residual(nn.Module):
    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return x + self.part(x)


class Twice(Residual):
    """A module that is used twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.part(torch.tanh(self.part(x)))


class ByKeyword(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.part(input=x)


class ByForward(Residual):
    """Calls `forward` itself, so that no hook runs."""

    def forward(self, x: Tensor) -> Tensor:
        return self.part.forward(x)


class Checkpointed(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.part, x, use_reentrant=False)


class Mapped(Residual):
    """One sample at a time, by vmap."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(self.part)(x)


class OwnWeight(nn.Module):
    """A product with a parameter of its own, written out."""

    def __init__(self, how: str):
        super().__init__()
        self.weight, self.how = nn.Parameter(torch.randn(WIDTH, WIDTH) / 4), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "linear":
            return F.linear(x, self.weight)
        if self.how == "einsum":
            return torch.einsum("...i,oi->...o", x, self.weight)
        if self.how == "matmul":
            return x @ self.weight.t()
        return torch.addmm(self.weight.new_zeros(WIDTH), x.reshape(-1, WIDTH), self.weight).reshape(x.shape)


class Attention(nn.Module):
    """Attention by hand, by torch's function, or by its module."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.project = how, nn.Linear(WIDTH, 3 * WIDTH)
        self.module = nn.MultiheadAttention(WIDTH, 2, batch_first=True) if how == "module" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.module is not None:
            return self.module(x, x, x, need_weights=False)[0]
        q, k, v = self.project(x).chunk(3, -1)
        if self.how == "function":
            return F.scaled_dot_product_attention(q, k, v)
        return (q @ k.transpose(-1, -2) / WIDTH**0.5).softmax(-1) @ v


class First(nn.Module):
    """The first of what a recurrent network gives."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)[0]


class OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _sequence_parts(draw: random.Random) -> dict[str, Callable[[], nn.Module]]:
    return {
        "linear": lambda: nn.Linear(WIDTH, WIDTH, bias=draw.random() < 0.5),
        "own_linear": lambda: OwnLinear(WIDTH, WIDTH),
        "mlp": lambda: nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Dropout(0.1), nn.Linear(24, WIDTH)),
        "norm": lambda: nn.LayerNorm(WIDTH),
        "own_weight": lambda: OwnWeight(draw.choice(["linear", "einsum", "matmul", "addmm"])),
        "attention": lambda: Attention(draw.choice(["hand", "function", "module"])),
        "encoder": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 24, batch_first=True, norm_first=draw.random() < 0.5),
        "recurrent": lambda: First(draw.choice([nn.GRU, nn.LSTM, nn.RNN])(WIDTH, WIDTH, batch_first=True)),
        "bilinear": lambda: _Bilinear(),
    }


class _Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = nn.Bilinear(WIDTH, WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, x.flip(1))


def _spatial_parts(draw: random.Random, dims: int) -> dict[str, Callable[[], nn.Module]]:
    convolution, transposed = getattr(nn, f"Conv{dims}d"), getattr(nn, f"ConvTranspose{dims}d")
    padding = draw.choice(["zeros", "reflect", "circular", "replicate"]) if dims < 3 else "zeros"
    return {
        "conv": lambda: convolution(WIDTH, WIDTH, 3, padding=1, padding_mode=padding, bias=draw.random() < 0.5),
        "grouped": lambda: convolution(WIDTH, WIDTH, 3, padding=1, groups=draw.choice([2, 4, WIDTH])),
        "dilated": lambda: convolution(WIDTH, WIDTH, 3, padding=2, dilation=2),
        "strided": lambda: convolution(WIDTH, WIDTH, 3, stride=2, padding=1),
        "even": lambda: convolution(WIDTH, WIDTH, 2, padding="same"),
        "pointwise": lambda: convolution(WIDTH, WIDTH, 1),
        "transposed": lambda: transposed(WIDTH, WIDTH, 3, padding=1, groups=draw.choice([1, 2])),
        "norm": lambda: draw.choice([getattr(nn, f"BatchNorm{dims}d")(WIDTH), nn.GroupNorm(4, WIDTH)]),
    }


def _wrapped(draw: random.Random, part: nn.Module, name: str) -> tuple[nn.Module, str]:
    """A part in one of the ways in which people use modules."""
    single = name in ("linear", "conv", "grouped", "dilated", "pointwise", "even")
    way = draw.choice(["plain"] * 6 + ["residual", "twice", "keyword", "forward", "checkpoint", "vmap", "weight_norm",
                      "spectral_norm", "orthogonal", "hook", "patched", "partial", "frozen", "script"])  # fmt: skip
    simple = {"residual": Residual, "twice": Twice, "forward": ByForward, "checkpoint": Checkpointed}
    if way in simple and (name != "strided" or way != "residual"):
        return simple[way](part), f"{way}({name})"
    if way == "frozen":
        return part.requires_grad_(False), f"{way}({name})"
    if not single:
        return part, name
    if way == "keyword":
        return ByKeyword(part), f"{way}({name})"
    if way == "vmap" and name == "linear":
        return Mapped(part), f"{way}({name})"
    if way in ("weight_norm", "spectral_norm") or (way == "orthogonal" and name == "linear"):
        return getattr(parametrizations, way)(part), f"{way}({name})"
    if way == "hook":
        part.register_forward_hook(lambda module, args, output: output * 1.5)
        part.register_forward_pre_hook(lambda module, args: (args[0] + 0.1,))
        return part, f"{way}({name})"
    if way == "patched":
        part.forward = functools.partial(_patched, type(part), part) if draw.random() < 0.5 else _Patched(part)
        return part, f"{way}({name})"
    if way == "script":
        return torch.jit.script(part), f"{way}({name})"
    return part, name


def _patched(cls: type, module: nn.Module, x: Tensor) -> Tensor:
    return cls.forward(module, x)


class _Patched:
    """What offloading hooks do: the instance's forward is replaced by one that calls the class's."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        return type(self.module).forward(self.module, x)


def random_net(draw: random.Random) -> tuple[Net, tuple, str]:
    """(model, inputs, a description)."""
    kind, batch = draw.choice(["vectors", "tokens", "maps1", "maps2", "maps2", "maps3"]), draw.choice([2, 2, 3, 5])
    spatial = int(kind[-1]) if kind.startswith("maps") else 0
    makers = _spatial_parts(draw, spatial) if spatial else _sequence_parts(draw)
    parts, names = [], []
    for _ in range(draw.randint(1, 4)):
        name = draw.choice(sorted(makers))
        part, name = _wrapped(draw, makers[name](), name)
        parts += [part, nn.ReLU()] if draw.random() < 0.5 else [part]
        names.append(name)
    if spatial:
        stem, x = getattr(nn, f"Conv{spatial}d")(3, WIDTH, 3, padding=1), torch.randn(batch, 3, *[8] * spatial)
    elif kind == "tokens":
        stem, x = nn.Embedding(11, WIDTH), torch.randint(11, (batch, 6))
    else:
        stem, x = nn.Linear(7, WIDTH), torch.randn(batch, 6, 7)
    dtype = draw.choice([torch.float32] * 5 + [torch.bfloat16, torch.float64])
    net = Net(stem, parts, nn.Linear(WIDTH, 4), spatial, autocast=dtype == torch.float32 and draw.random() < 0.15).to(dtype)
    if kind == "tokens" and draw.random() < 0.3:
        net.head = nn.Linear(WIDTH, 11, bias=False).to(dtype)
        net.head.weight = stem.weight  # tied
    x = x.to(dtype) if x.is_floating_point() else x
    if spatial == 2 and draw.random() < 0.3:
        x, net = x.to(memory_format=torch.channels_last), net.to(memory_format=torch.channels_last)
    if draw.random() < 0.1:
        torch.set_default_dtype(torch.bfloat16)
    about = f"{kind} x{batch} {str(dtype)[6:]}{' autocast' if net.autocast else ''}: {', '.join(names)}"
    return net, (x,), about + f", default {str(torch.get_default_dtype())[6:]}"
