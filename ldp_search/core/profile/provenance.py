"""Where tensors come from: while a model is profiled, which are parameters or buffers, or made of such alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from ..products.torch_functions import ATTENTION, trailing
from .records import ACTIVATIONS, CONSTANTS, GENERATED, ProductProfile


class Source(NamedTuple):
    """name: of the parameter or buffer. direct: the tensor is it, or a view. multiplied: a product made the tensor."""

    name: str
    direct: bool
    multiplied: bool


class Provenance:
    """Which tensors are parameters or buffers, or were computed from them alone, and from which one."""

    def __init__(self, model: nn.Module):
        tensors = dict([*model.named_buffers(), *model.named_parameters()])
        self.names = {id(t): name for name, t in tensors.items()}
        self.held: list[Tensor] = []
        self.sizes = {name: t.numel() for name, t in tensors.items()}
        self.stacks = {name for name, t in tensors.items() if t.dim() > 2}
        self.computed: dict[int, tuple[Callable[[], Tensor | None], str, bool]] = {}  # id -> tensor, its source, by a product

    def enter_module(self, module: nn.Module, prefix: str) -> None:
        """A module begins: whoever shards a model (FSDP) has put gathered tensors in the place of its parameters by now."""
        for name, tensor in module.named_parameters(prefix=prefix):
            if id(tensor) not in self.names and name in self.sizes:
                self.names[id(tensor)] = name
                self.held.append(tensor)  # so that no other tensor gets its identity

    def source(self, tensor: Tensor) -> Source | None:
        """What a tensor comes from; None: it depends on more than parameters and buffers."""
        for candidate in (tensor, tensor._base):
            if candidate is not None and id(candidate) in self.names:
                return Source(self.names[id(candidate)], True, False)
        held, name, multiplied = self.computed.get(id(tensor), (lambda: None, "", False))
        return Source(name, False, multiplied) if held() is tensor else None

    def record(self, function, args: tuple, kwargs: dict, out, product: bool) -> None:
        """Note what a function made of constants alone; forget what it changed."""
        if is_written(function, args):
            return self._written(args[0], [*args[1:], *kwargs.values()])
        found = [self.source(x) for x in tensors_of([*args, *kwargs.values()])]
        sources = [source for source in found if source is not None]
        constant = 0 < len(sources) == len(found)
        for tensor in tensors_of([out]):
            if constant and self.source(tensor) is None:
                largest = max((source.name for source in sources), key=self.sizes.__getitem__)
                multiplied = product or any(source.multiplied for source in sources)
                self.computed[id(tensor)] = weakref.ref(tensor), largest, multiplied
            elif not constant:
                self.computed.pop(id(tensor), None)

    def _written(self, target: Tensor, values: list) -> None:
        """What takes a value that depends on the input, such as a cache in a buffer, is a constant no more."""
        if any(self.source(value) is None for value in tensors_of(values)):
            for tensor in (target, target._base):
                self.names.pop(id(tensor), None)
                self.computed.pop(id(tensor), None)

    def classify(self, product, pair) -> ProductProfile:
        """A product with nothing counted yet."""
        sources = [self._weight(product, which, x) for which, x in enumerate(pair)]
        if None not in sources:
            return ProductProfile(product.name, CONSTANTS)
        operand = 1 if sources[1] is not None else 0
        if (source := sources[operand]) is None:
            return (
                ProductProfile(product.name, GENERATED, 1)
                if product.second_is_weight
                else ProductProfile(product.name, ACTIVATIONS)
            )
        name, direct, _ = source
        stacked = direct and name in self.stacks and pair[operand].numel() < self.sizes[name]
        return ProductProfile(product.name, name, operand, None if direct else trailing(product, pair[operand]), stacked)

    def _weight(self, product, which: int, tensor: Tensor) -> Source | None:
        """The source of an operand that is a weight: where its role does not say so, a projected constant (a learned query)
        is an activation like those that it meets; and where it does, the other one is an input even if it is a table.
        """
        source = self.source(tensor)
        if product.second_is_weight:
            return source if which == 1 else None
        return None if source is None or source.multiplied or product is ATTENTION else source


def is_written(function, args: tuple) -> bool:
    """Whether a function writes into its first argument."""
    name = getattr(function, "__name__", "")
    in_place = name == "__setitem__" or name.endswith("_") and not name.endswith("__")
    return bool(args) and isinstance(args[0], Tensor) and in_place


def tensors_of(values) -> list[Tensor]:
    """The tensors among arguments, and in lists and tuples among them."""
    out = []
    for value in values:
        if isinstance(value, Tensor):
            out.append(value)
        elif isinstance(value, list | tuple):
            out += [x for x in value if isinstance(x, Tensor)]
    return out
