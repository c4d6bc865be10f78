"""The sites of a search: what has bits of its own. Layers, found by their class; and what the profiler met outside of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..bits.space import SearchSpace
from ..products.foreign import foreign_weight
from ..profile.records import ACTIVATIONS, CONSTANTS, GENERATED, ModelProfile, ProductProfile
from .layers import channel_axis, kind_of
from .patched import is_patched

PRODUCTS = "products"
"""Kind of the site of one module's products of two activations; also the end of its name."""
MOST_CALL_SITES = 4  # of a weight in one forward of its owner; more are a loop over time or experts, with one range for all


@dataclass
class SiteSpec:
    """What a site is. macs, input_numel: per sample; calls: products per forward; call_sites: how many input ranges it keeps.

    axis: of a layer's weight, along which output channels run; channels: how many learned clips its weight has (0 outside of
    layers). weights: the tensors that are stored in its bits. module: the layer whose class changes, None outside of layers.
    uncomputed: MACs of dL/dx and of dL/dw that training leaves out.
    """

    name: str
    kind: str
    axis: int = 0
    channels: int = 0
    weights: list[Tensor] = field(default_factory=list)
    module: nn.Module | None = None
    macs: int = 0
    calls: int = 0
    call_sites: int = 1
    input_numel: int = 0
    uncomputed: tuple[int, int] = (0, 0)

    def leave_out(self, found: ProductProfile) -> None:
        """Take in what of a product's gradients is never computed."""
        weight = 1 if found.operand is None else found.operand
        of_input, of_weight = self.uncomputed
        self.uncomputed = of_input + found.uncomputed[1 - weight], of_weight + found.uncomputed[weight]

    @property
    def held(self) -> list[Tensor]:
        """The tensors that an optimizer may hold for it: its own, and what sharding has put in a layer's place for it."""
        now = None if self.module is None else self.module._parameters.get("weight")
        return [*self.weights, *([] if now is None else [now])]

    @property
    def backward_macs(self) -> tuple[int, int]:
        """MACs of dL/dx and of dL/dw that training computes."""
        return self.macs - self.uncomputed[0], self.macs - self.uncomputed[1]


def find_sites(model: nn.Module, space: SearchSpace, profile: ModelProfile | None) -> dict[str, SiteSpec]:
    """{name: spec} in the order of the model's modules; without a profile those of the layers alone."""
    specs: dict[str, SiteSpec] = {}
    tensors = dict([*model.named_buffers(), *model.named_parameters()])
    for name, module in model.named_modules():
        kind = kind_of(type(module)) if not is_patched(module) and foreign_weight(module) is None else None
        if kind and (kind != "Embedding" or space.embeddings):
            axis = channel_axis(module)
            spec = specs[name] = SiteSpec(name, kind, axis, module.weight.shape[axis], [module.weight], module)
            counts = profile and profile.modules.get(name)
            if counts:
                spec.macs, spec.calls, spec.input_numel = sum(counts.macs.values()), counts.calls, counts.input_numel
                spec.call_sites = max(1, counts.calls)
                for found in counts.products:
                    spec.leave_out(found)
    for owner, calls, found in outside(profile, specs):
        name = site_name(owner, found)
        if name is None or (found.weight == ACTIVATIONS and not space.attention):
            continue
        spec = specs.setdefault(name, SiteSpec(name, PRODUCTS if found.weight == ACTIVATIONS else found.function))
        spec.macs += found.macs
        spec.leave_out(found)
        spec.calls += found.calls
        spec.input_numel += found.input_numel
        weight = tensors.get(found.weight)
        if spec.module is None and isinstance(weight, nn.Parameter) and not any(w is weight for w in spec.weights):
            spec.weights.append(weight)
        within = found.calls // max(1, calls)
        if found.weight != ACTIVATIONS and not found.stacked and within <= MOST_CALL_SITES:
            spec.call_sites = max(spec.call_sites, spec.calls)
    return _in_order(model, specs)


def outside(profile: ModelProfile | None, specs: dict[str, SiteSpec]) -> Iterator[tuple[str, int, ProductProfile]]:
    """(owner, its calls, what was found) of all that the profiler met outside of layers."""
    for owner, counts in profile.modules.items() if profile else ():
        if owner not in specs or specs[owner].module is None:
            yield from ((owner, counts.calls, found) for found in counts.products)


def site_name(owner: str, found: ProductProfile) -> str | None:
    """The spec of a product outside of layers: its weight's (named by the layer that it lies in), or one of its owner's own."""
    if found.weight == CONSTANTS:
        return None
    if found.weight in (ACTIVATIONS, GENERATED):
        return f"{owner}.{PRODUCTS if found.weight == ACTIVATIONS else found.function}".lstrip(".")
    plain = re.sub(r"\.?parametrizations\.(\w+)\.original\d*$", r".\1", found.weight)
    return plain.removesuffix(".weight").lstrip(".")


def places_of(model: nn.Module, names: Iterable[str]) -> list[int]:
    """Where the module that each site lies in comes among the model's modules."""
    place = {name: i for i, (name, _) in enumerate(model.named_modules())}

    def of(name: str) -> int:
        while name not in place:
            name = name.rpartition(".")[0]
        return place[name]

    return [of(name) for name in names]


def _in_order(model: nn.Module, specs: dict[str, SiteSpec]) -> dict[str, SiteSpec]:
    """The specs in the order of the modules that they lie in."""
    places = dict(zip(specs, places_of(model, specs), strict=True))
    return {name: specs[name] for name in sorted(specs, key=places.__getitem__)}


def owned_numel(specs: Iterable[SiteSpec]) -> list[int]:
    """Elements of each spec's weights, 0 for those whose storage an earlier one owns (ties)."""
    seen: set[int] = set()
    out = []
    for spec in specs:
        out.append(sum(weight.numel() for weight in spec.weights if id(weight) not in seen))
        seen.update(id(weight) for weight in spec.weights)
    return out


def trained_weights(specs: Iterable[SiteSpec]) -> dict[str, tuple[bool, ...]]:
    """{site: whether each of its weights asks for a gradient}."""
    return {spec.name: tuple(weight.requires_grad for weight in spec.weights) for spec in specs}


def holders(specs: dict[str, SiteSpec]) -> list[str]:
    """For each spec the first one with the same weight: itself, but for ties."""
    first: dict[int, str] = {}
    return [first.setdefault(id(spec.weights[0]), name) if spec.weights else name for name, spec in specs.items()]


def check_some(model: nn.Module, specs: dict[str, SiteSpec], space: SearchSpace) -> None:
    if not specs:
        raise ValueError(
            f"{type(model).__name__} has nothing that can be quantized: no layer (Linear, convolutions"
            f"{', Embedding' if space.embeddings else '; Embedding with embeddings=True'}), and no other product with a weight "
            "among what its forward does (give example_inputs to find these; attention=True for products of two activations); "
            f"it has {sorted({type(m).__name__ for m in model.modules()})[:20]}."
        )
