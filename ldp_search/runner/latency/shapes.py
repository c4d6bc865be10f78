"""The layers of a network, each kind and shape once, with an input that each had in a forward."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import ldp_search

from ...core.bits.latency import shape_of
from ...core.bits.space import SearchSpace
from ..exports.outputs import evaluating


@dataclass
class Shape:
    """A kind and shape of layer. reads_input: of the network itself, which is in floating point. names: of all that have it."""

    shape: str
    kind: str
    layer: nn.Module
    inputs: Tensor
    reads_input: bool
    names: list[str] = field(default_factory=list)


class Apart(nn.Module):
    """Layers side by side, each with an input and an output of its own."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))


def at_bits(model: nn.Module, bits: int, space: SearchSpace, args: tuple, kwargs: dict[str, Any]) -> nn.Module:
    """A copy of a plain model, frozen at the same bits everywhere, its ranges those of one forward of the inputs."""
    values = {
        "bits": bits, "grad_bits": 8, "policy": "static", "weight_quantizer": space.weight_quantizer,
        "input_quantizer": space.input_quantizer, "embeddings": space.embeddings,
    }  # fmt: skip
    searched = ldp_search.apply(copy.deepcopy(model), space=values, example_inputs=kwargs or args)
    ldp_search.controller(searched).finalize([(args, kwargs)], forward=lambda batch: searched(*batch[0], **batch[1]))
    return searched


@torch.no_grad()
def distinct_shapes(model: nn.Module, searched: nn.Module, args: tuple, kwargs: dict[str, Any]) -> list[Shape]:
    """The shapes of `searched`, whose plain form is `model`, as they come in a forward of the inputs."""
    specs = {name: spec for name, spec in ldp_search.controller(searched).specs.items() if spec.module is not None}
    given = {x.data_ptr() for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
    seen: dict[str, Tensor] = {}
    own: set[str] = set()

    def watch(name: str):
        def hook(module: nn.Module, inputs: tuple, named: dict) -> None:
            x = inputs[0] if inputs else next(iter(named.values()))
            if name not in seen:
                seen[name] = x.detach().clone()
                own.update([name] if x.data_ptr() in given else [])

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name), with_kwargs=True) for name in specs]
    try:
        with evaluating(model):
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    out: dict[str, Shape] = {}
    for name, spec in specs.items():
        if name in seen:
            shape = shape_of(spec)
            layer = copy.deepcopy(model.get_submodule(name)).eval()
            out.setdefault(shape, Shape(shape, spec.kind, layer, seen[name], name in own)).names.append(name)
    return list(out.values())
