"""Image classification: pictures with one label each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import DataError, integer_labels, load_splits, pick_column, pick_split
from .pictures import MODES, augment, decode, normalize, random_bits
from .tasks import Task


@dataclass
class ImageData:
    """`dataset:` of a task's file. source: a hub id, a folder, or `digits`; of names given as lists the first found counts."""

    source: str = ""
    config: str | None = None  # which of the hub's configurations
    train: list[str] = field(default_factory=lambda: ["train"])
    eval: list[str] = field(default_factory=lambda: ["test", "validation"])
    image: list[str] = field(default_factory=lambda: ["image", "img"])
    label: list[str] = field(default_factory=lambda: ["label"])
    classes: int = 0
    channels: int = 3
    size: int | None = None  # pixels of a side to resize to
    mean: list[float] = field(default_factory=lambda: [0.5])
    std: list[float] = field(default_factory=lambda: [0.5])
    pad: int = 0  # augmentation: random crops after so many black pixels were added on each side
    flip: bool = False  # augmentation: half of the pictures mirrored

    def __post_init__(self):
        if self.classes < 2:
            raise DataError(f"`classes` of an image task must be 2 or more; received {self.classes}.")
        if self.channels not in MODES:
            raise DataError(f"`channels` must be 1 (grey) or 3 (colour); received {self.channels}.")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise DataError(f"`{name}` must have one value a channel; received {getattr(self, name)}.")
        if min(self.std) <= 0 or self.pad < 0:
            raise DataError(f"`std` must be above 0 and `pad` 0 or more; received {self.std} and {self.pad}.")


class ImageClassification(Task):
    """Everything in memory as uint8: a batch costs a gather, a crop and a subtraction."""

    Data = ImageData
    looks_at = ("data", "limit", "eval_limit", "seed")

    def __init__(self, data: ImageData, config: Any):
        self.data, self.seed = data, config.seed
        if data.source == "digits" and config.data is None:
            train, evaluation = _digits()
        else:
            splits = load_splits(data.source, data.config, config.data)
            train = self._read(splits, "train", config.limit)
            evaluation = self._read(splits, "eval", config.eval_limit)
        halves = self._subset(train, config.limit), self._subset(evaluation, config.eval_limit)
        self.pictures, self.labels = zip(*halves, strict=True)
        self.train_size, self.eval_size = (len(labels) for labels in self.labels)
        self.fingerprint = _fingerprint([*self.pictures, *self.labels])

    def _chosen(self, size: int, limit: int | None) -> Tensor:
        """Indices of a subset that the seed draws."""
        if limit is None or limit >= size:
            return torch.arange(size)
        return torch.randperm(size, generator=torch.Generator().manual_seed(self.seed))[:limit].sort().values

    def _subset(self, split: tuple[Tensor, Tensor], limit: int | None) -> tuple[Tensor, Tensor]:
        keep = self._chosen(len(split[1]), limit)
        return (split[0][keep], split[1][keep]) if len(keep) < len(split[1]) else split

    def _read(self, splits: dict[str, Any], use: str, limit: int | None) -> tuple[Tensor, Tensor]:
        """A split of the data, decoded; only as much of it as the limit asks for."""
        import datasets

        d = self.data
        name, split = pick_split(splits, getattr(d, use), use)
        image, label = pick_column(split, d.image, "image"), pick_column(split, d.label, "label")
        labels = integer_labels(split, label, d.classes, name)
        if not isinstance(split.features[image], datasets.Image):
            raise DataError(f"The column {image!r} must hold pictures; it holds {split.features[image]}.")
        rows = self._chosen(len(labels), limit)
        chosen = split.cast_column(image, datasets.Image(decode=False)).select(rows.tolist())
        pictures = decode(list(chosen[image]), rows.tolist(), d.channels, d.size, name)
        return pictures, torch.tensor(labels)[rows]

    def batch(self, indices: Tensor, epoch: int | None) -> tuple[Tensor, Tensor]:
        which = 1 if epoch is None else 0
        pictures, d = self.pictures[which][indices], self.data
        if epoch is not None and (d.pad or d.flip):
            pictures = augment(pictures, d.pad, d.flip, random_bits(self.seed, epoch, indices))
        return normalize(pictures, d.mean, d.std), self.labels[which][indices]

    def create_model(self, spec: Any, pretrained: bool) -> nn.Module:
        from .models import create_model

        return create_model(spec, num_classes=self.data.classes, in_chans=self.data.channels, pretrained=pretrained)

    def creation(self, spec: Any) -> dict[str, Any] | None:
        from .models import timm_options

        options = timm_options(spec)
        return None if options is None else {"num_classes": self.data.classes, "in_chans": self.data.channels} | options

    def example_inputs(self) -> tuple[Tensor]:
        return (torch.zeros(1, *self.pictures[0].shape[1:]),)

    def measure(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        inputs, labels = batch
        outputs = model(inputs)
        logits = getattr(outputs, "logits", outputs)  # Hugging Face models wrap them
        loss = F.cross_entropy(logits.float(), labels)
        correct = (logits.detach().argmax(-1) == labels).sum()
        return loss, torch.stack([loss.detach(), correct / len(labels), torch.ones_like(loss)]).float() * len(labels)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        loss, correct, count = sums
        return {"loss": loss / count, "accuracy": correct / count}


def _digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scikit-learn's 1,797 digits; every fifth of each class is for evaluation, which no version of any library can change."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pictures = torch.from_numpy(found.images * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(found.target).long()
    rank = torch.zeros_like(labels)
    for digit in range(10):
        rank[labels == digit] = torch.arange(int((labels == digit).sum()))
    held_out = rank % 5 == 4
    return (pictures[~held_out], labels[~held_out]), (pictures[held_out], labels[held_out])


def _fingerprint(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.numpy())
    return digest.hexdigest()[:16]
