"""Gradients of what is trained besides the searched weights: embeddings, norms, biases, layers kept out of the search.

Noise in dL/dx of a layer reaches all that is trained before it, and so these too (`bits.damage`). Their gradients are not met
in any product; they are read where an optimizer finds them, between backward and the step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor, nn

from ..bits.damage import SKETCH, SKETCH_SQUARE, W_SQUARE, Sensed, sketch_of
from ..model.layers import kind_of
from ..model.sites import SiteSpec, places_of

GATHERED = 4  # sharded weights whose gradients are gathered for `factor`


class OtherGradients:
    """holders: (module, name) of each parameter, once. before: (sites, others) mask of those that lie before a site.

    shared: (others, sites) mask of the sites that multiply by the same tensor: the head that is tied to an embedding.
    known: {site: layer} of those whose weight is theirs alone, so that its gradient is what they have recorded.
    """

    def __init__(self, model: nn.Module, specs: list[SiteSpec], kept_out: Collection[str] = ()):
        searched = [[id(w) for w in spec.weights if spec.name not in kept_out] for spec in specs]
        held = Counter(key for keys in searched for key in keys)
        found: dict[int, tuple[int, nn.Module, str]] = {}
        for place, (_, module) in enumerate(model.named_modules()):
            for name, parameter in module._parameters.items():
                if parameter is not None and (id(parameter) not in held or _looks_up(module, specs)):
                    found.setdefault(id(parameter), (place, module, name))
        self.holders = [(module, name) for _, module, name in found.values()]
        sites = torch.tensor(places_of(model, [spec.name for spec in specs]), dtype=torch.long)
        self.before = torch.tensor([place for place, *_ in found.values()], dtype=torch.long) < sites[:, None]
        self.shared = torch.tensor([[key in keys for keys in searched] for key in found], dtype=torch.bool)
        self.shared = self.shared.reshape(len(found), len(specs))
        self.known = {
            site: spec.module
            for site, (spec, keys) in enumerate(zip(specs, searched, strict=True))
            if spec.module is not None and len(keys) == 1 and held[keys[0]] == 1 and keys[0] not in found
        }

    def weights(self) -> list[list[Tensor]]:
        """One each, as `effective_rates` takes them; none where a module has let go of its parameter."""
        now = (module._parameters.get(name) for module, name in self.holders)
        return [[] if parameter is None else [parameter] for parameter in now]

    @torch.no_grad()
    def measured(self, record: Sensed, factor: Tensor) -> tuple[Tensor, Tensor]:
        """(others, 2) |g|^2 and that of its sketch, (others, SKETCH): of this step; zero of what has no gradient.

        factor: as of `factor`, which gives them the units of the record, averaged over ranks. Of a tied tensor's gradient, the
        part that the products of its sites have not told of.
        """
        squares, sketches = record.scalars.new_zeros(len(self.holders), 2), record.sketch.new_zeros(len(self.holders), SKETCH)
        for row, (module, name) in enumerate(self.holders):
            g = _gradient(module, name)
            if g is None:
                continue
            sites = self.shared[row].nonzero().flatten().tolist()
            told, share = record.sketch[sites], record.scalars[sites, W_SQUARE] / record.scalars[sites, SKETCH_SQUARE]
            sketch = sketch_of(g).to(factor.device) * factor
            square = g.square().sum().to(factor.device) * factor**2 - (told.square().sum(1) * share.nan_to_num()).sum()
            sketches[row, : len(sketch)] = sketch - told[:, : len(sketch)].sum(0)
            squares[row, 0] = square.clamp_min(0.0)
            squares[row, 1] = sketches[row].square().sum()
        return squares, sketches

    @torch.no_grad()
    def factor(self, record: Sensed) -> Tensor:
        """(0-d) of what was recorded to the parameters' gradients, which may have been unscaled or clipped since.

        1 where no layer tells, 0 where there are no gradients though some were recorded.
        """
        both, own, told = record.scalars.new_zeros(3).unbind()
        gathered = 0
        for site, layer in self.known.items():
            weight = layer._parameters.get("weight")
            if weight is None or not weight.requires_grad:
                continue
            recorded = record.scalars[site, W_SQUARE] > 0
            told = told + recorded * record.sketch[site].square().sum()
            if gathered == GATHERED:
                continue
            gathered += hasattr(weight, "full_tensor")
            if (g := _gradient(layer, "weight")) is not None:
                sketch = sketch_of(g).to(own.device)
                both = both + recorded * (sketch * record.sketch[site, : len(sketch)]).sum()
                own = own + recorded * sketch.square().sum()
        return torch.where(own > 0, both / own, torch.where((told > 0) & (own == 0), 0.0, 1.0))


def _gradient(module: nn.Module, name: str) -> Tensor | None:
    """A parameter's gradient, gathered where it is sharded; None where there is none, or a sparse one."""
    g = None if (parameter := module._parameters.get(name)) is None else parameter.grad
    if g is None or g.layout != torch.strided:
        return None
    return (g.full_tensor() if hasattr(g, "full_tensor") else g).float()


def _looks_up(module: nn.Module, specs: list[SiteSpec]) -> bool:
    """Whether a module reads rows of its weight, without bits of its own."""
    return kind_of(type(module)) == "Embedding" and all(spec.module is not module for spec in specs)
