"""Any encoder of timm with a light decoder: `model=timm:resnet18` segments.

The decoder is a small feature pyramid (Lin et al. 2017, arXiv:1612.03144; for segmentation Kirillov et al. 2019,
arXiv:1901.02446): each scale of the encoder is brought to one width, the coarser ones are enlarged and added to the finer ones,
and a 3x3 convolution smooths each sum. Encoders of one scale (plain vision transformers) are then enlarged step by step to a
quarter of the picture, as in SETR-PUP (Zheng et al. 2021, arXiv:2012.15840).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config.overlay import ConfigError

FINEST = 4
"""The decoder ends at this share (1/4) of the picture's height and width; finer features of the encoder are not used."""


class Segmenter(nn.Module):
    """(N, 3, H, W) -> (N, classes, h, w) logits at the finest scale used, about a quarter of the picture.

    Args:
        name: an architecture of timm. classes: outputs. width: channels of the decoder. options: what timm.create_model is
            given besides. `create` makes one and turns errors into messages; `made_with` is what it was made with.
    """

    def __init__(self, name: str, classes: int, width: int = 64, pretrained: bool = False, **options: Any):
        import timm

        super().__init__()
        self.made_with = {"name": name, "classes": classes, "width": width} | options
        self.encoder = timm.create_model(name, pretrained=pretrained, features_only=True, **options)
        info = list(zip(self.encoder.feature_info.channels(), self.encoder.feature_info.reduction(), strict=True))
        self.used = [i for i, (_, reduction) in enumerate(info) if reduction >= FINEST] or [len(info) - 1]
        self.channels_last = str(getattr(self.encoder, "output_fmt", "")).endswith("NHWC")
        self.lateral = nn.ModuleList(nn.Conv2d(info[i][0], width, 1) for i in self.used)
        self.smooth = nn.ModuleList(_smoothing(width) for _ in self.used)
        halvings = max(0, (int(info[self.used[0]][1]) // FINEST).bit_length() - 1)
        self.enlarge = nn.ModuleList(_smoothing(width) for _ in range(halvings))
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        found = self.encoder(pictures)
        found = [found[i].permute(0, 3, 1, 2) if self.channels_last else found[i] for i in self.used]
        x = self.smooth[-1](self.lateral[-1](found[-1]))
        for i in range(len(found) - 2, -1, -1):
            finer = self.lateral[i](found[i])
            x = self.smooth[i](finer + _resized(x, finer.shape[-2:]))
        for smooth in self.enlarge:
            x = smooth(_resized(x, (2 * x.shape[-2], 2 * x.shape[-1])))
        return self.classifier(x)


def _smoothing(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _resized(x: Tensor, size: Any) -> Tensor:
    return x if tuple(x.shape[-2:]) == tuple(size) else F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def create(name: str, pretrained: bool, classes: int, size: tuple[int, int], **options: Any) -> Segmenter:
    """The segmenter with timm's encoder `name`. size: height and width that encoders of a fixed size are built for.

    Raises:
        ConfigError: the encoder gives no features.
    """
    attempts = [options]
    if "img_size" not in options and _fixed_size(name):
        attempts = [options | {"img_size": size, "dynamic_img_size": True}, options | {"img_size": size}, options]
    for attempt in attempts:
        try:
            return Segmenter(name, classes, pretrained=pretrained, **attempt)
        except TypeError as error:  # it does not take this argument
            if attempt is attempts[-1]:
                raise _no_features(name, error) from error
        except (RuntimeError, ValueError, AttributeError, AssertionError) as error:
            raise _no_features(name, error) from error
    raise AssertionError("there is always one attempt")


def _fixed_size(name: str) -> bool:
    from timm.models import get_pretrained_cfg

    return bool(getattr(get_pretrained_cfg(name, allow_unregistered=True), "fixed_input_size", False))


def _no_features(name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"timm:{name} cannot be the encoder of a segmentation: timm makes no model of features from it "
        f"({type(error).__name__}: {error}). Encoders that do: resnet18, mobilenetv3_large_100, convnext_tiny, "
        "vit_tiny_patch16_224, ... ; whole models: segformer, upernet, dpt, mask2former."
    )


def build(made_with: dict[str, Any], device: str = "cpu") -> Segmenter:
    """The segmenter that `made_with` describes, with fresh weights."""
    from . import cifar  # noqa: F401 (the import registers our names)

    with torch.device(device):
        return Segmenter(**made_with)
