"""What the families of segmentation models give: semantic logits, of whole pictures or windows, and what their losses need.

Most give logits of classes at a part of the picture's size. Mask classification (MaskFormer, arXiv:2107.06278; Mask2Former,
arXiv:2112.01527; EoMT) gives for each of its queries class logits and a mask; its own loss matches queries with the classes
present in the picture.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config.overlay import ConfigError
from ...core.messages import did_you_mean

IGNORED = -1
"""Pixels of this value count neither in the loss nor in a metric."""

UNIVERSAL = ("mask2former", "maskformer", "eomt", "eomt_dinov3")
"""Model types of mask classification that learn from (mask_labels, class_labels)."""


def auto_class(config: Any) -> str:
    """The Auto class of transformers for semantic segmentation with a configuration. Raises ConfigError for other types."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES as KNOWN

    if config.model_type in UNIVERSAL:
        return "AutoModelForUniversalSegmentation"
    if config.model_type not in KNOWN:
        raise ConfigError(
            f"transformers has no semantic segmentation with {config.model_type!r}."
            f"{did_you_mean(config.model_type, [*KNOWN, *UNIVERSAL])} Any encoder of timm does it too: model=timm:resnet18."
        )
    return "AutoModelForSemanticSegmentation"


def is_universal(model: nn.Module) -> bool:
    """Whether the model has the loss of mask classification; `model` may be wrapped (DDP)."""
    plain = getattr(model, "module", model)
    return "mask_labels" in inspect.signature(plain.forward).parameters


def semantic_logits(outputs: Any) -> Tensor:
    """(N, classes, h, w) of a model's outputs. Of mask classification: the log of sum over queries of class times mask
    probability, so that the largest is the predicted class and a softmax makes shares of the sums.
    """
    if getattr(outputs, "masks_queries_logits", None) is not None:
        classes = outputs.class_queries_logits.float().softmax(-1)[..., :-1]  # the last is "no class"
        scores = torch.einsum("nqc,nqhw->nchw", classes, outputs.masks_queries_logits.float().sigmoid())
        return scores.clamp_min(1e-6).log()
    return getattr(outputs, "logits", outputs).float()


def full_logits(outputs: Any, size: tuple[int, int]) -> Tensor:
    """The logits at a mask's own size, (N, classes, H, W)."""
    logits = semantic_logits(outputs)
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False) if logits.shape[-2:] != size else logits


def matching_targets(masks: Tensor) -> dict[str, list[Tensor]]:
    """mask_labels and class_labels of (N, H, W) class indices: one binary mask for each class present; negative: ignored."""
    classes = [mask.unique() for mask in masks]
    classes = [found[found >= 0] for found in classes]
    return {
        "mask_labels": [(mask[None] == found[:, None, None]).float() for mask, found in zip(masks, classes, strict=True)],
        "class_labels": classes,
    }


def pixel_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Sum of the cross-entropies of the pixels that count; 0 where none does. logits (N, C, H, W), masks (N, H, W)."""
    return F.cross_entropy(logits, masks, ignore_index=IGNORED, reduction="sum")


def slide(model: nn.Module, pictures: Tensor, crop: list[int], stride: float) -> Tensor:
    """(N, C, H, W) logits, averaged over the windows of `crop` pixels that cover each pixel.

    The last window of a row or column is moved back to the edge; smaller pictures are filled up with the mean colour.
    """
    n, _, height, width = pictures.shape
    pictures = F.pad(pictures, (0, max(0, crop[1] - width), 0, max(0, crop[0] - height)))
    total, count = None, pictures.new_zeros(1, 1, *pictures.shape[-2:])
    for top in _starts(pictures.shape[-2], crop[0], stride):
        for left in _starts(pictures.shape[-1], crop[1], stride):
            where = (slice(None), slice(None), slice(top, top + crop[0]), slice(left, left + crop[1]))
            logits = full_logits(model(pictures[where]), tuple(crop))
            total = logits.new_zeros(n, logits.shape[1], *pictures.shape[-2:]) if total is None else total
            total[where] += logits
            count[where] += 1
    return (total / count)[..., :height, :width]


def _starts(size: int, window: int, stride: float) -> list[int]:
    step = max(1, round(window * stride))
    return sorted({min(start, size - window) for start in range(0, size - window + step, step)})


def leaves(output: Tensor) -> set[int]:
    """Identities of the tensors whose gradients a backward from `output` would fill."""
    found, seen, stack = set(), set(), [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        stack += [following for following, _ in node.next_functions]
    return found
