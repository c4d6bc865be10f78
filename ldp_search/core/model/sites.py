"""The rows of a search: what has bits of its own. Layers, found by their class; and what the census met outside of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..bits.space import SearchSpace
from ..products.foreign import foreign_weight
from ..profile.records import ACTIVATIONS, CONSTANTS, GENERATED, Found, Survey
from .layers import channel_axis, kind_of
from .patched import is_patched

PRODUCTS = "products"
"""Kind of the row of one module's products of two activations; also the end of its name."""
MOST_CALL_SITES = 4  # of a weight in one forward of its owner; more are a loop over time or experts, with one range for all


@dataclass
class Row:
    """One row. macs, input_numel: per sample; calls: products per forward; call_sites: how many input ranges it keeps.

    axis: of a layer's weight, along which output channels run; channels: how many learned clips its weight has (0 outside of
    layers). weights: the tensors that are stored in its bits. module: the layer whose class changes, None outside of layers.
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


def find_rows(model: nn.Module, space: SearchSpace, survey: Survey | None) -> dict[str, Row]:
    """{name: row} in the order of the model's modules; without a survey those of the layers alone."""
    rows, tensors = {}, dict([*model.named_buffers(), *model.named_parameters()])
    for name, module in model.named_modules():
        kind = kind_of(type(module)) if not is_patched(module) and foreign_weight(module) is None else None
        if kind and (kind != "Embedding" or space.embeddings):
            axis = channel_axis(module)
            row = rows[name] = Row(name, kind, axis, module.weight.shape[axis], [module.weight], module)
            tally = survey and survey.tallies.get(name)
            if tally:
                row.macs, row.calls, row.input_numel = sum(tally.macs.values()), tally.calls, tally.input_numel
                row.call_sites = max(1, tally.calls)
    for owner, found in outside(survey, rows):
        name = row_name(owner, found)
        if name is None or (found.weight == ACTIVATIONS and not space.attention):
            continue
        row = rows.setdefault(name, Row(name, PRODUCTS if found.weight == ACTIVATIONS else found.function))
        row.macs, row.calls, row.input_numel = (
            row.macs + found.macs,
            row.calls + found.calls,
            row.input_numel + found.input_numel,
        )
        weight = tensors.get(found.weight)
        if row.module is None and isinstance(weight, nn.Parameter) and not any(w is weight for w in row.weights):
            row.weights.append(weight)
        within = found.calls // max(1, survey.tallies[owner].calls)
        if found.weight != ACTIVATIONS and not found.stacked and within <= MOST_CALL_SITES:
            row.call_sites = max(row.call_sites, row.calls)
    return _in_order(model, rows)


def outside(survey: Survey | None, rows: dict[str, Row]):
    """(owner, what was found) of all that the census met outside of layers."""
    for owner, tally in survey.tallies.items() if survey else ():
        if owner not in rows or rows[owner].module is None:
            yield from ((owner, found) for found in tally.found)


def row_name(owner: str, found: Found) -> str | None:
    """The row of a product outside of layers: its weight's (named by the layer that it lies in), or one of its owner's own."""
    if found.weight == CONSTANTS:
        return None
    if found.weight in (ACTIVATIONS, GENERATED):
        return f"{owner}.{PRODUCTS if found.weight == ACTIVATIONS else found.function}".lstrip(".")
    plain = re.sub(r"\.?parametrizations\.(\w+)\.original\d*$", r".\1", found.weight)
    return plain.removesuffix(".weight").lstrip(".")


def _in_order(model: nn.Module, rows: dict[str, Row]) -> dict[str, Row]:
    """The rows in the order of the modules that they lie in."""
    place = {name: i for i, (name, _) in enumerate(model.named_modules())}

    def key(name: str):
        while name not in place:
            name = name.rpartition(".")[0]
        return place[name]

    return {name: rows[name] for name in sorted(rows, key=key)}


def owned_numel(rows) -> list[int]:
    """Elements of each row's weights, 0 for those whose storage an earlier one owns (ties)."""
    seen, out = set(), []
    for row in rows:
        out.append(sum(weight.numel() for weight in row.weights if id(weight) not in seen))
        seen.update(id(weight) for weight in row.weights)
    return out


def holders(rows: dict[str, Row]) -> list[str]:
    """For each row the first one with the same weight: itself, but for ties."""
    first: dict[int, str] = {}
    return [first.setdefault(id(row.weights[0]), name) if row.weights else name for name, row in rows.items()]


def check_some(model: nn.Module, rows: dict[str, Row], space: SearchSpace) -> None:
    if not rows:
        raise ValueError(
            f"{type(model).__name__} has nothing that can be quantized: no layer (Linear, convolutions"
            f"{', Embedding' if space.embeddings else '; Embedding with embeddings=True'}), and no other product with a weight "
            "among what its forward does (give example_inputs to find these; attention=True for products of two activations); "
            f"it has {sorted({type(m).__name__ for m in model.modules()})[:20]}."
        )
