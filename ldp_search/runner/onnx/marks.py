"""Marks on the operands of products outside of layers, in a traced graph: whose they are, in which call, which operand.

A mark is a node of no operator set, which passes its input on. What it becomes is written by `own_products`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from onnxscript import ir
from torch import Tensor
from torch._subclasses import FakeTensor

from ...core.model.interception import InterceptedForward
from ...core.model.layers import has_no_range
from ...core.model.swap import ATTRIBUTE
from ...core.products.torch_functions import TorchProduct

DOMAIN, OPERATOR = "ldp_search", "Operand"


class Mark(NamedTuple):
    """call: of the site, in the forward. operand: 0 or 1. weight: which operand is the weight; None: neither.

    axes: of the output channels in the weight.
    """

    site: str
    call: int
    operand: int
    weight: int | None
    axes: tuple[int, ...]


class Fixed(NamedTuple):
    """A weight, and the bias that a product of the form of a layer adds; None: it adds none."""

    weight: Tensor
    bias: Tensor | None


class Marker:
    """In the place of a site while a model is traced: it marks the operands of the site's products.

    weights: {call: its weight}, of the last forward that was not traced.
    """

    def __init__(self, site):
        self.site, self.call_number = site, 0
        self.weights: dict[int, Fixed] = {}

    def call(self, product: TorchProduct, function: Callable, args: tuple, kwargs: dict, weight: int | None, training: bool):
        """As `Site.call`, without any rounding."""
        pair = product.operands(args, kwargs)
        traced = pair is not None and isinstance(pair[0], FakeTensor)
        if pair is None or (not traced and any(map(has_no_range, pair))):
            return function(*args, **kwargs)
        number, self.call_number = self.call_number, self.call_number + 1
        if not traced:
            if weight is not None:
                layer = product.as_layer_call(args, kwargs) if weight == 1 else None
                self.weights[number] = Fixed(pair[weight].detach(), None if layer is None else layer[2])
            return function(*args, **kwargs)
        axes = () if weight is None else product.channel_axes(weight, pair[weight], args)
        marked = [_marked(x, Mark(self.site.name, number, which, weight, axes)) for which, x in enumerate(pair)]
        args, kwargs = product.with_operands(args, kwargs, marked)
        return function(*args, **kwargs)


def _marked(x: Tensor, mark: Mark) -> Tensor:
    words = {"mark": json.dumps(mark)}
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{OPERATOR}", (x,), words, dtype=x.dtype, shape=x.shape, version=1)


@contextmanager
def marked(ldp):
    """Within this context what is traced of the model has marks. Quantization has to be off.

    Yields:
        {site: its marker}, filled by the forwards.
    """
    markers: dict[str, Marker] = {}
    if not hasattr(torch.onnx, "ops"):  # torch before 2.8: no products outside of layers in the file
        yield markers
        return

    def marker(site) -> Marker:
        return markers.setdefault(site.name, Marker(site))

    def begin(*_: Any) -> None:
        for each in markers.values():
            each.call_number = 0

    owners = [module for module in ldp.model.modules() if isinstance(module, InterceptedForward)]
    before = [(module, module.__dict__[ATTRIBUTE]) for module in owners]
    hook = ldp.model.register_forward_pre_hook(begin)
    try:
        for module, plan in before:
            module.__dict__[ATTRIBUTE] = plan.with_sites(marker)
        yield markers
    finally:
        hook.remove()
        for module, plan in before:
            module.__dict__[ATTRIBUTE] = plan


def found(graph: ir.Graph) -> list[tuple[ir.Node, Mark]]:
    """The marks of a graph, in its order."""
    nodes = [node for node in graph if node.domain == DOMAIN and node.op_type == OPERATOR]
    return [(node, _read(node.attributes["mark"].value)) for node in nodes]


def _read(words: str) -> Mark:
    *others, axes = json.loads(words)
    return Mark(*others, axes=tuple(axes))


def take_out(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let the readers of a marked operand read `value`."""
    node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
