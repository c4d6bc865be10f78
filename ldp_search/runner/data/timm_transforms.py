"""timm's own transforms, at the size, mean, deviation and crop that a model was made for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def data_config(model: nn.Module, data: Any, name: str, pretrained: bool) -> dict[str, Any]:
    """input_size, mean, std, interpolation, crop_pct of a model: timm's own record of it, a transformers model's image
    processor, else what the task says. `dataset.size=PIXELS` goes before all of them.
    """
    from timm.data import resolve_model_data_config

    from ..models.hugging_face import image_size, processor_values

    if getattr(model, "pretrained_cfg", None):
        found = resolve_model_data_config(model)
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)  # as built: model.img_size=... may differ
        found["input_size"] = (data.channels, *(size or found["input_size"][-2:]))
    else:
        size = image_size(getattr(model, "config", None)) or data.size or 224
        found = {"input_size": (data.channels, size, size), "interpolation": "bicubic", "crop_pct": 0.9}
        found |= {"mean": tuple(data.mean), "std": tuple(data.std)}
        found |= processor_values(name) if pretrained and hasattr(model, "config") else {}
    if data.size is not None:
        found["input_size"] = (data.channels, data.size, data.size)
    if len(found["mean"]) != data.channels:
        found["mean"], found["std"] = (tuple(values * data.channels)[: data.channels] for values in (data.mean, data.std))
    return found


def transforms(model: nn.Module, data: Any, name: str, pretrained: bool) -> dict[bool, Callable]:
    """{in training?: PIL picture -> (C, H, W) fp32}."""
    from timm.data import create_transform

    config = data_config(model, data, name, pretrained)
    common = {k: config[k] for k in ("input_size", "mean", "std", "interpolation", "crop_pct")}
    training = create_transform(
        **common, is_training=True, hflip=0.5 if data.flip else 0.0, auto_augment=data.auto_augment, re_prob=data.random_erase,
        re_mode="pixel", scale=tuple(data.crop_scale), color_jitter=data.color_jitter or None,
    )  # fmt: skip
    return {True: training, False: create_transform(**common, is_training=False)}
