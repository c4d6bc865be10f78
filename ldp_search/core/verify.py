"""The check that `apply` makes of itself: with quantization off, the model computes what it did before, exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .trial import copied, on_trial


def outputs(model: nn.Module, args: tuple, kwargs: dict) -> list[Tensor]:
    """The tensors that the model returns in evaluation mode, from a fixed random state; modes and random state stay."""
    return on_trial(model, lambda: [x.clone() for x in tensors(model(*copied(args), **copied(kwargs)))])


def tensors(tree) -> list[Tensor]:
    """The tensors of a nested output; also those in objects that pytree does not know but that are mappings."""
    if hasattr(tree, "items") and not isinstance(tree, dict):
        tree = dict(tree.items())
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two outputs are bitwise the same; a NaN equals a NaN. Of meta tensors there is only the shape."""
    return len(one) == len(other) and all(
        a.shape == b.shape and (a.is_meta or torch.equal(a.isnan(), b.isnan()) and torch.equal(a[~a.isnan()], b[~b.isnan()]))
        for a, b in zip(one, other, strict=True)
    )


def trace(model: nn.Module, args: tuple, kwargs: dict) -> list[tuple[str, list[Tensor]]]:
    """(module, its outputs) of every call of a forward, in the order in which they end."""
    seen, hooks = [], []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks
            continue
        hook = lambda module, inputs, output, name=name: seen.append((name, [x.clone() for x in tensors(output)]))  # noqa: E731
        hooks.append(module.register_forward_hook(hook))
    try:
        outputs(model, args, kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def first_difference(before: list, after: list) -> str:
    """The first module whose output changed."""
    for (name, one), (_, other) in zip(before, after, strict=False):
        if not equal(one, other):
            return name or "the model itself"
    return "a part that no module holds"
