"""What models give back, compared: tensors in nested outputs, errors relative to the largest, predictions."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@contextmanager
def evaluating(model: nn.Module):
    """Within this context: evaluation mode and no gradients; every module then has its mode back."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            yield model.eval()
    finally:
        for module, training in modes.items():
            module.training = training


def tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of nested outputs, in order; those of a transformers output without its caches."""
    if hasattr(output, "keys"):
        output = [output[key] for key in output.keys() if key != "past_key_values"]  # noqa: SIM118 (some are no mappings)
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    return [leaf for leaf in leaves if leaf.is_floating_point()]


def difference(found: Any, expected: Any) -> float:
    """Largest difference of two outputs, relative to the largest magnitude of each expected tensor; infinite where one of them
    is not finite or of another shape.
    """
    a, b = tensors(found), tensors(expected)
    if [x.shape for x in a] != [x.shape for x in b]:
        return float("inf")
    return max((_difference(x.float(), y.float()) for x, y in zip(a, b, strict=True) if y.numel()), default=0.0)


def _difference(found: Tensor, expected: Tensor) -> float:
    error = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    return float(error) if error.isfinite() else float("inf")


def predictions(output: Any) -> Tensor | None:
    """The class that the first tensor of an output names at each place: along the last axis, of maps (N, classes, h, w) along
    the second. None where there is only one class.
    """
    logits = tensors(output)[0]
    axis = 1 if logits.dim() == 4 else -1
    return logits.argmax(axis) if logits.dim() > 1 and logits.shape[axis] > 1 else None
