"""Gradients of what is trained besides the searched weights: embeddings, norms, biases, layers kept out of the search.

Noise in dL/dx of a layer reaches all that is trained before it, and so these too (`bits.damage`). Their gradients are not met
in any product; they are read where an optimizer finds them, between backward and the step.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from ..bits.damage import SKETCH, W_SQUARE, Sensed, sketch_of
from ..model.layers import kind_of
from ..model.sites import SiteSpec, places_of


class OtherGradients:
    """holders: (module, name) of each parameter. before: (sites, others) mask of those that lie before a site.

    shared: (others, sites) mask of the sites that multiply by the same tensor: the head that is tied to an embedding.
    """

    def __init__(self, model: nn.Module, specs: list[SiteSpec], kept_out: Collection[str] = ()):
        searched = [[id(w) for w in spec.weights if spec.name not in kept_out] for spec in specs]
        held = {key for keys in searched for key in keys}
        found = [
            (place, module, name, id(parameter))
            for place, (_, module) in enumerate(model.named_modules())
            for name, parameter in module._parameters.items()
            if parameter is not None and (id(parameter) not in held or _looks_up(module, specs))
        ]
        self.holders = [(module, name) for _, module, name, _ in found]
        sites = torch.tensor(places_of(model, [spec.name for spec in specs]), dtype=torch.long)
        self.before = torch.tensor([place for place, *_ in found], dtype=torch.long) < sites[:, None]
        self.shared = torch.tensor([[key in keys for keys in searched] for *_, key in found], dtype=torch.bool)
        self.shared = self.shared.reshape(len(found), len(specs))

    def weights(self) -> list[list[Tensor]]:
        """One each, as `effective_rates` takes them."""
        return [[module._parameters[name]] for module, name in self.holders]

    @torch.no_grad()
    def measured(self, record: Sensed) -> tuple[Tensor, Tensor]:
        """(others, 2) |g|^2 and that of its sketch, (others, SKETCH): of this step; zero of what has no gradient.

        Of a tied tensor's gradient, the part that the products of its sites have not told of.
        """
        squares, sketches = record.scalars.new_zeros(len(self.holders), 2), record.sketch.new_zeros(len(self.holders), SKETCH)
        for row, (module, name) in enumerate(self.holders):
            parameter = module._parameters[name]
            g = None if parameter is None else parameter.grad
            if g is None or g.layout != torch.strided or hasattr(g, "to_local"):  # sharded: each process has its own part
                continue
            sketch, sites = sketch_of(g.float()), self.shared[row].nonzero().flatten().tolist()
            square = g.float().square().sum() - record.scalars[sites, W_SQUARE].sum()
            sketches[row, : len(sketch)] = sketch - record.sketch[sites, : len(sketch)].sum(0)
            squares[row, 0] = square.clamp_min(0.0)
            squares[row, 1] = sketches[row].square().sum()
        return squares, sketches


def _looks_up(module: nn.Module, specs: list[SiteSpec]) -> bool:
    """Whether a module reads rows of its weight, without bits of its own."""
    return kind_of(type(module)) == "Embedding" and all(spec.module is not module for spec in specs)
