"""The rows of a search: what has bits of its own. Layers, found by their class; and what the census met outside of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor, nn

from .foreign import foreign_weight
from .layers import channel_axis, kind_of
from .owners import Plan
from .patched import is_patched
from .registry import did_you_mean
from .space import FULL_PRECISION, SearchSpace
from .survey import ACTIVATIONS, CONSTANTS, GENERATED, Found, Survey

FULL = (FULL_PRECISION,) * 3
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
    for owner, found in _outside(survey, rows):
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


def _outside(survey: Survey | None, rows: dict[str, Row]):
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


def plans(controller, sites: dict) -> dict[str, Plan]:
    """{owner: plan} of every module that multiplies by itself; sites: {row: its site, None where it is in full precision}."""
    modules, out = dict(controller.model.named_modules()), {}
    for owner, found in _outside(controller.survey, controller.rows):
        site = sites.get(row_name(owner, found) or "")
        plan = out.setdefault(owner, Plan(owner, controller))
        if found.weight == ACTIVATIONS:
            plan.activations = site
        elif found.weight == GENERATED:
            plan.generated[found.function] = site
        elif found.weight != CONSTANTS:
            if found.shape is not None:
                places = plan.computed.setdefault((found.function, found.operand, found.shape), {})
                places |= dict.fromkeys(found.places, site)
            else:
                path, _, attribute = found.weight.rpartition(".")
                plan.tensors.append((modules[path], attribute, site))
    return out


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


def precisions(rows: dict[str, Row], space: SearchSpace, final: bool) -> dict[str, tuple]:
    """{row: (lowest, highest), each of weight, input and gradient bits}.

    final: all rows are known, so that a pattern that matches none is a mistake in it.
    """
    found = {name: _precision(name, space) for name in rows}
    for option, patterns in (("skip", space.skip), ("fixed", space.fixed)) if final else ():
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in rows):
                raise ValueError(f"{option}: the pattern {pattern!r} matches no layer.{did_you_mean(pattern, rows)}")
    if final and all(bounds[0][0] == FULL_PRECISION for bounds in found.values()):
        raise ValueError(f"skip={space.skip} keeps every layer in full precision, so nothing is left to quantize.")
    return found


def _precision(name: str, space: SearchSpace) -> tuple:
    if any(fnmatchcase(name, pattern) for pattern in space.skip):
        return FULL, FULL
    for pattern, (bits, _) in space.fixed.items():
        if fnmatchcase(name, pattern):
            grad = bits if bits == FULL_PRECISION else space.grad_bits[1]
            return (bits, bits, grad), (bits, bits, grad)
    return tuple(zip(space.weight_bits, space.input_bits, space.grad_bits, strict=True))
