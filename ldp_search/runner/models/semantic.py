"""What the families of segmentation models give: semantic logits, and the loss of those that match queries with masks.

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

from ...core.registry import did_you_mean
from ..overlay import ConfigError

UNIVERSAL = ("mask2former", "maskformer", "eomt", "eomt_dinov3")
"""Model types of mask classification that learn from (mask_labels, class_labels)."""


def auto_class(config: Any) -> str:
    """The Auto class of transformers that makes semantic segmentation of a configuration. Raises ConfigError for other types."""
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
