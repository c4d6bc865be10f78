"""The networks of the CIFAR experiments, by timm's names: `cifar_resnet20` ... `cifar_resnet110`, `cifar_mobilenetv2`.

timm's own ResNets are made for ImageNet: a stem of stride 2 and a pooling leave 8x8 pixels of a 32x32 picture. The
papers on low-precision training (CPT, FracTrain, LDP) report on the family of He et al. 2016, section 4.2, instead:

    3x3 conv, 16 channels -> 3 stages of n basic blocks: 16, 32, 64 channels at 32x32, 16x16, 8x8 -> mean -> linear

with depth = 6n + 2. Where a stage starts, the shortcut has to change its shape, in one of two ways:

* `shortcut="A"`: every second pixel, new channels filled with zeros; no parameters (ResNet-20: 0.27 M). The paper's.
* `shortcut="B"` (default): a strided 1x1 convolution with batch-norm. The published costs count it: 40.81 M MACs for
  ResNet-20, 83.28 M for 38, 168.2 M for 74, 253.1 M for 110; with "A" ResNet-20 has 40.55 M.

MobileNetV2 (Sandler et al. 2018) is the variant in common use on CIFAR: stem and second stage keep the 32x32 pixels,
ReLU instead of ReLU6, and a 1x1 projection where a block of stride 1 changes the number of channels: 2.30 M parameters.

    import timm, ldp_search.runner.models.cifar          # the import registers the names
    model = timm.create_model("cifar_resnet20", num_classes=10, shortcut="A")
"""

from __future__ import annotations

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn

from .cifar_nets import CifarMobileNetV2, CifarResNet

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)

# timm's register_model looks for a variable of this name in the module of the registered function.
default_cfgs = generate_default_cfgs(
    {
        name: {
            "input_size": (3, 32, 32),
            "num_classes": 10,
            "mean": CIFAR_MEAN,
            "std": CIFAR_STD,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "first_conv": "conv1",
            "classifier": "fc",
        }
        for name in (*(f"cifar_resnet{depth}" for depth in (20, 32, 38, 44, 56, 74, 110)), "cifar_mobilenetv2")
    }
)


def _create(model_class: type[nn.Module], name: str, pretrained: bool, **kwargs) -> nn.Module:
    if kwargs.pop("features_only", False):
        raise ValueError(f"{name} has no features_only mode. Call model.forward_features(x) for its last features.")
    cfg = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        raise ValueError(
            f"No pretrained weights are published for {name}, but pretrained=True was asked. Leave it out to train from"
            " scratch, or name a file of your own: pretrained_cfg_overlay={'file': 'weights.safetensors'}."
        )
    return build_model_with_cfg(model_class, name, pretrained, **kwargs)


@register_model
def cifar_resnet20(pretrained: bool = False, **kwargs) -> CifarResNet:
    return _create(CifarResNet, "cifar_resnet20", pretrained, depth=20, **kwargs)


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs) -> CifarResNet:
    return _create(CifarResNet, "cifar_resnet32", pretrained, depth=32, **kwargs)


@register_model
def cifar_resnet38(pretrained: bool = False, **kwargs) -> CifarResNet:
    return _create(CifarResNet, "cifar_resnet38", pretrained, depth=38, **kwargs)


@register_model
def cifar_resnet44(pretrained: bool = False, **kwargs) -> CifarResNet:
    return _create(CifarResNet, "cifar_resnet44", pretrained, depth=44, **kwargs)


@register_model
def cifar_resnet56(pretrained: bool = False, **kwargs) -> CifarResNet:
    return _create(CifarResNet, "cifar_resnet56", pretrained, depth=56, **kwargs)


@register_model
def cifar_resnet74(pretrained: bool = False, **kwargs) -> CifarResNet:
    return _create(CifarResNet, "cifar_resnet74", pretrained, depth=74, **kwargs)


@register_model
def cifar_resnet110(pretrained: bool = False, **kwargs) -> CifarResNet:
    return _create(CifarResNet, "cifar_resnet110", pretrained, depth=110, **kwargs)


@register_model
def cifar_mobilenetv2(pretrained: bool = False, **kwargs) -> CifarMobileNetV2:
    return _create(CifarMobileNetV2, "cifar_mobilenetv2", pretrained, **kwargs)
