"""CIFAR ResNets and a CIFAR MobileNetV2 as plain modules; `cifar_models` describes them and gives them timm's names.

Names in the state dict are those of torchvision and timm: `conv1.weight`, `layer1.0.bn2.bias`, `fc.weight`,
`layer2.0.downsample.0.weight`. Every product with weights is an `nn.Conv2d` or an `nn.Linear`: all of the cost can be
quantized.
"""

from __future__ import annotations

import torch
from timm.layers import create_classifier
from torch import nn
from torch.nn import functional as F

SHORTCUTS = ("A", "B")

# (expansion, channels, blocks, stride of the first block); ImageNet's version has stride 2 in the second row.
MOBILENETV2_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv(in_chans: int, out_chans: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_chans, out_chans, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def _projection(in_chans: int, out_chans: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_conv(in_chans, out_chans, 1, stride), nn.BatchNorm2d(out_chans))


def _init_weights(module: nn.Module) -> None:
    """Kaiming-normal convolutions (He et al. 2015), as in the paper; a depthwise one has the fan-out of one channel."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


class PadShortcut(nn.Module):
    """Option A: keeps every second pixel and fills the new channels, half before and half after, with zeros."""

    def __init__(self, in_chans: int, out_chans: int, stride: int):
        super().__init__()
        self.stride = stride
        self.before = (out_chans - in_chans) // 2
        self.after = out_chans - in_chans - self.before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = _conv(in_chans, out_chans, 3, stride)
        self.bn1 = nn.BatchNorm2d(out_chans)
        self.conv2 = _conv(out_chans, out_chans, 3)
        self.bn2 = nn.BatchNorm2d(out_chans)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_chans != out_chans:
            change_shape = PadShortcut if shortcut == "A" else _projection
            self.downsample = change_shape(in_chans, out_chans, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation; a shortcut wherever the stride is 1."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, expansion: int):
        super().__init__()
        width = in_chans * expansion
        self.conv1 = _conv(in_chans, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride, groups=width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, out_chans, 1)
        self.bn3 = nn.BatchNorm2d(out_chans)
        self.has_shortcut = stride == 1
        changes = self.has_shortcut and in_chans != out_chans
        self.downsample = _projection(in_chans, out_chans, 1) if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return y + self.downsample(x) if self.has_shortcut else y


class _Classifier(nn.Module):
    """What timm expects around the features: pooling, dropout and a linear head `fc` that can be replaced."""

    num_features: int

    def _make_head(self, num_classes: int, global_pool: str, drop_rate: float) -> None:
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        _init_weights(self.fc)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The linear head, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head with `num_classes` outputs, where the old one was; 0 leaves the pooled features."""
        like = next(self.parameters())
        self._make_head(num_classes, self.global_pool.pool_type if global_pool is None else global_pool, self.drop_rate)
        self.fc.to(device=like.device, dtype=like.dtype).train(self.training)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Features (N, C, H, W) -> logits (N, classes), or -> pooled features (N, C)."""
        x = self.global_pool(x)
        x = F.dropout(x, self.drop_rate, self.training) if self.drop_rate else x
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


class CifarResNet(_Classifier):
    """He et al. 2016 for CIFAR: `conv1`, `bn1`, `layer1` to `layer3`, `fc`."""

    num_features = 64

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        in_chans: int = 3,
        shortcut: str = "B",
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"A CIFAR ResNet has depth 6n + 2 with n >= 1, not {depth}. Use e.g. 20, 32, 44, 56 or 110.")
        if shortcut not in SHORTCUTS:
            raise ValueError(
                f"shortcut must be 'A' (subsampling and zero padding) or 'B' (1x1 convolution), not {shortcut!r}."
                " Use 'B' for the published costs, 'A' for the published parameter counts."
            )
        blocks = (depth - 2) // 6
        self.conv1 = _conv(in_chans, 16, 3)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1, shortcut)
        self.layer2 = self._stage(16, 32, blocks, 2, shortcut)
        self.layer3 = self._stage(32, 64, blocks, 2, shortcut)
        self._make_head(num_classes, global_pool, drop_rate)
        self.apply(_init_weights)

    @staticmethod
    def _stage(in_chans: int, out_chans: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
        first = BasicBlock(in_chans, out_chans, stride, shortcut)
        return nn.Sequential(first, *(BasicBlock(out_chans, out_chans, 1, shortcut) for _ in range(blocks - 1)))

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """timm's grouping of parameters by depth (layer-wise learning rates)."""
        return {"stem": r"^(?:conv1|bn1)\.", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures (N, C, H, W) -> features (N, 64, H/4, W/4)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))


class CifarMobileNetV2(_Classifier):
    """MobileNetV2 for 32x32 pixels: `conv1`, `bn1`, `stages.STAGE.BLOCK`, `conv2`, `bn2`, `fc`."""

    num_features = 1280

    def __init__(self, num_classes: int = 10, in_chans: int = 3, global_pool: str = "avg", drop_rate: float = 0.0):
        super().__init__()
        self.conv1 = _conv(in_chans, 32, 3)
        self.bn1 = nn.BatchNorm2d(32)
        stages, width = [], 32
        for expansion, out_chans, blocks, stride in MOBILENETV2_STAGES:
            first = InvertedResidual(width, out_chans, stride, expansion)
            rest = (InvertedResidual(out_chans, out_chans, 1, expansion) for _ in range(blocks - 1))
            stages.append(nn.Sequential(first, *rest))
            width = out_chans
        self.stages = nn.Sequential(*stages)
        self.conv2 = _conv(width, self.num_features, 1)
        self.bn2 = nn.BatchNorm2d(self.num_features)
        self._make_head(num_classes, global_pool, drop_rate)
        self.apply(_init_weights)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """timm's grouping of parameters by depth (layer-wise learning rates)."""
        return {"stem": r"^(?:conv1|bn1)\.", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures (N, C, H, W) -> features (N, 1280, H/8, W/8)."""
        x = self.stages(F.relu(self.bn1(self.conv1(x))))
        return F.relu(self.bn2(self.conv2(x)))
