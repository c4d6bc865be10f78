"""The networks, of torch alone: CIFAR ResNets and MobileNetV2 of the papers, a small ViT and a small GPT.

`ldp_search.runner` has the CIFAR networks for timm; these compute the same, where neither timm nor transformers is at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Kaiming-normal by fan-out; a depthwise one has the fan-out of one channel."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.normal_(conv.weight, std=(2 * groups / (kernel * kernel * outputs)) ** 0.5)
    return conv


def _project(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, by a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.downsample = nn.Identity() if same else _project(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet(nn.Module):
    """He et al. 2016 for CIFAR, depth 6n + 2: 16, 32 and 64 channels."""

    def __init__(self, depth: int, classes: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 16, 3), nn.BatchNorm2d(16)
        blocks, width = [], 16
        for channels in (16, 32, 64):
            for index in range((depth - 2) // 6):
                blocks.append(BasicBlock(width, channels, 2 if channels > 16 and index == 0 else 1))
                width = channels
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection; a shortcut wherever the stride is 1."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        width = inputs * expansion
        self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride, width), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.has_shortcut = stride == 1
        self.downsample = _project(inputs, outputs, 1) if self.has_shortcut and inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(y))
        return y + self.downsample(x) if self.has_shortcut else y


class MobileNetV2(nn.Module):
    """Sandler et al. 2018 in the common variant for CIFAR: the stem and the second stage keep the pixels."""

    STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, classes: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 32, 3), nn.BatchNorm2d(32)
        blocks, width = [], 32
        for expansion, channels, count, stride in self.STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(width, channels, stride if index == 0 else 1, expansion))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.conv2, self.bn2, self.fc = _conv(width, 1280, 1), nn.BatchNorm2d(1280), nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class TransformerBlock(nn.Module):
    """Pre-norm block of GPT-2 and ViT: attention and a GELU network four times as wide."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        heads = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def _init_transformer(model: nn.Module, depth: int) -> None:
    """GPT-2's: normal of 0.02, less where a residual ends."""
    for name, p in model.named_parameters():
        if p.dim() >= 2:
            nn.init.normal_(p, std=0.02 / (2 * depth) ** 0.5 if name.endswith(("out.weight", "down.weight")) else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(p)


class ViT(nn.Module):
    """A vision transformer with patches of 4 x 4 pixels; the mean of the tokens is classified."""

    def __init__(self, pixels: int, classes: int, width: int = 96, depth: int = 4, heads: int = 3):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(torch.zeros(1, (pixels // 4) ** 2, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, False) for _ in range(depth)))
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, classes)
        _init_transformer(self, depth)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.fc(self.norm(self.blocks(tokens)).mean(1))


class GPT(nn.Module):
    """A small GPT-2: learned positions, pre-norm blocks, the output tied to the embedding."""

    def __init__(self, vocabulary: int, context: int = 128, width: int = 128, depth: int = 4, heads: int = 4):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        _init_transformer(self, depth)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.blocks(x)))


@dataclass(frozen=True)
class Network:
    """build: from pixels a side and classes. space: fields that every row's search space has on this network."""

    build: Callable[[int, int], nn.Module]
    space: dict = field(default_factory=dict)


NETWORKS = {
    "resnet20": Network(lambda pixels, classes: ResNet(20, classes)),
    "resnet38": Network(lambda pixels, classes: ResNet(38, classes)),
    "mobilenetv2": Network(lambda pixels, classes: MobileNetV2(classes)),
    "vit": Network(ViT, {"attention": True}),
    "gpt": Network(lambda pixels, classes: GPT(classes), {"attention": True}),
}
