"""The public functions on a model: apply, controller, remove."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from . import core
from .config import presets
from .core import Controller, SearchSpace
from .core.bits.policies.budget import TargetOutOfReach


def resolve_space(space: str | Path | dict | SearchSpace, **overrides: Any) -> SearchSpace:
    """A SearchSpace from a shipped name, a YAML file, a mapping or a SearchSpace, with some fields changed.

    Raises:
        ValueError: unknown name, field or component, with the nearest known ones; or a value out of its range.
    """
    if isinstance(space, str | Path):
        values = presets.load("search_spaces", presets.space_of_policy(str(space), overrides.get("policy")))
        space = {k: v for k, v in values.items() if k not in ("description", "outer")}
    if isinstance(space, dict):
        space = SearchSpace.from_dict(space)
    return space.replace(**overrides) if overrides else space


def apply(model: nn.Module, space: str | Path | dict | SearchSpace = "ldp", example_inputs=None, **overrides: Any) -> nn.Module:
    """Make `model` a search space over bit-widths, in place; returns the same object.

    Its `state_dict()` and `parameters()` stay exactly what they were; what is learned about bits lives in
    `controller(model)`. In the training loop, call `controller(model).step(progress)` once per optimizer step.

    Args:
        model: any torch module that multiplies by weights: layers, raw parameters, experts, recurrent layers.
        space: a shipped name (`ldp`, `ldp_paper`, `static`, `cyclic`, ...), a YAML path, a mapping or a SearchSpace.
        example_inputs: a tensor, a tuple of arguments or a mapping of keyword arguments, for counting multiply-accumulates and
            finding the products outside of layers; `apply` then also checks that the model with quantization off computes what
            it did before, exactly. None: counted on timm's own input size, else at the first forward.
        overrides: fields of SearchSpace, e.g. ``bits=(3, 8), target_cost=0.5, policy="cyclic", skip=["*head"]``.

    Raises:
        ValueError: a bad space, a model with nothing to quantize or one that is a search space already, a pattern that
            matches nothing, a target out of reach, or a coverage below `min_coverage`; what needs the costs of the layers at
            the first forward where there are no `example_inputs`. RuntimeError: the model does not compute the same as before
            with quantization off (then it is left unchanged).
    """
    try:
        return core.apply(model, resolve_space(space, **overrides), example_inputs)
    except TargetOutOfReach as error:
        if "target_cost" in overrides or not isinstance(space, str):
            raise
        raise error.of_space(space) from None


def controller(model: nn.Module) -> Controller:
    """The handle of a model that `apply` was called on, also through wrappers (DDP, torch.compile, Accelerate).

    Raises:
        LookupError: `apply` was never called.
    """
    found = core.find_controller(model)
    if found is None:
        raise LookupError(
            f"No search space was applied to this {type(model).__name__}: call ldp_search.apply(model, ...) before "
            "ldp_search.controller(model)."
        )
    return found


def remove(model: nn.Module) -> nn.Module:
    """The original model again, exactly: original classes, the trained weights, nothing of LDP left. Returns `model`."""
    return core.remove(model)
