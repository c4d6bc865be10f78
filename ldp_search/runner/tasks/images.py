"""Image classification: pictures with one label each.

Two pipelines. `memory`: small pictures of one size, decoded once, with random crops and mirrors (CIFAR's usual recipe).
`timm`: pictures of any size through timm's transforms, at the size, mean and crop that the model was made for (ImageNet's
usual recipe, with RandAugment, random erasing, mixup and CutMix by option).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import models
from ..data import (
    BadRows,
    Classes,
    DataError,
    check_share,
    first_rows,
    hold_out,
    load_splits,
    one_class_note,
    pick_column,
    pick_split,
    picture_file,
    subset,
)
from ..data.embedded import digits
from ..data.pictures import MODES
from ..data.seeded import sample_bits, seeded
from ..data.stores import Encoded, InMemory, check_pictures, load_pictures
from .base import Task

PIPELINES = ("memory", "timm")
OFFLINE = "task=digits   real handwritten digits that come with scikit-learn"


@dataclass
class ImageData:
    """`dataset:` of a task's file. source: a hub id, a folder, or `digits`; of names given as lists the first found counts."""

    source: str = ""
    config: str | None = None  # which of the hub's configurations
    train: list[str] = field(default_factory=lambda: ["train"])
    eval: list[str] = field(default_factory=lambda: ["validation", "val", "test"])
    hold_out: float = 0.0  # share of the training rows to evaluate on, where the data has no split for it
    image: list[str] = field(default_factory=lambda: ["image", "img"])
    label: list[str] = field(default_factory=lambda: ["label", "labels"])
    classes: int = 0  # 0: as many as the data has
    channels: int = 3
    streaming: bool = False  # take the first limit= and eval_limit= rows without downloading the rest
    pipeline: str = "memory"
    size: int | None = None  # pixels of a side to resize to
    mean: list[float] = field(default_factory=lambda: [0.5])
    std: list[float] = field(default_factory=lambda: [0.5])
    pad: int = 0  # memory: random crops after so many black pixels were added on each side
    flip: bool = False  # half of the pictures mirrored
    auto_augment: str | None = None  # timm: RandAugment and its relatives, as rand-m9-mstd0.5-inc1
    random_erase: float = 0.0  # timm: probability of an erased rectangle
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])  # timm: share of the area of random crops
    color_jitter: float = 0.0  # timm
    mixup: float = 0.0  # alpha of the mixing of two pictures; 0: none
    cutmix: float = 0.0  # alpha of the pasting of one into another; 0: none
    label_smoothing: float = 0.0

    def __post_init__(self):
        check_share(self.hold_out)
        if self.classes < 0 or self.classes == 1:
            raise DataError(f"`classes` must be 2 or more, or 0 for those of the data; received {self.classes}.")
        if self.channels not in MODES:
            raise DataError(f"`channels` must be 1 (grey) or 3 (colour); received {self.channels}.")
        if self.pipeline not in PIPELINES:
            raise DataError(f"`pipeline` must be one of {', '.join(PIPELINES)}; received {self.pipeline!r}.")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise DataError(f"`{name}` must have one value a channel; received {getattr(self, name)}.")
        if min(self.std) <= 0 or self.pad < 0:
            raise DataError(f"`std` must be above 0 and `pad` 0 or more; received {self.std} and {self.pad}.")
        if min(self.mixup, self.cutmix, self.random_erase) < 0 or not 0 <= self.label_smoothing < 1:
            raise DataError("`mixup`, `cutmix` and `random_erase` must be 0 or more, `label_smoothing` in [0, 1); received "
                            f"{self.mixup}, {self.cutmix}, {self.random_erase}, {self.label_smoothing}.")  # fmt: skip
        if self.pipeline == "memory" and (self.auto_augment or self.random_erase or self.color_jitter):
            raise DataError("`auto_augment`, `random_erase` and `color_jitter` need dataset.pipeline=timm.")


class ImageClassification(Task):
    Data = ImageData
    looks_at = ("data", "limit", "eval_limit", "seed", "bad_rows")

    def __init__(self, data: ImageData, config: Any):
        self.data, self.seed, self.bad_rows, self.notes = data, config.seed, config.bad_rows, ()
        limits = {"train": config.limit, "eval": config.eval_limit}
        if data.source == "digits" and config.data is None:
            self.names = [str(i) for i in range(10)]
            halves = [self._subset(*half, limit) for half, limit in zip(digits(), limits.values(), strict=True)]
        else:
            splits = load_splits(data.source, data.config, config.data, OFFLINE, data.streaming)
            splits, self.origins, self.notes = hold_out(splits, data, config.limit)
            self.classes = Classes(data.classes)
            halves = [self._read(splits, use, limit) for use, limit in limits.items()]
            self.names = self.classes.names
        self.stores, self.labels = zip(*halves, strict=True)
        self.train_size, self.eval_size = (len(labels) for labels in self.labels)
        self.fingerprint = _fingerprint(self.stores, self.labels)
        self._mix = _Mixing(data, len(self.names), self.seed) if data.mixup or data.cutmix else None

    # -- the data -----------------------------------------------------------------------------------------------------

    def _subset(self, pictures: Tensor, labels: Tensor, limit: int | None) -> tuple[InMemory, Tensor]:
        keep = torch.tensor(subset(len(labels), limit, self.seed))
        return InMemory(pictures[keep]), labels[keep]

    def _read(self, splits: dict[str, Any], use: str, limit: int | None) -> tuple[Any, Tensor]:
        """(store, labels) of a split; only as much of it as the limit asks for is looked at."""
        import datasets

        d = self.data
        name, split = pick_split(splits, getattr(d, use), use, can_hold_out=True)
        split = first_rows(split, limit, use)
        image, label = pick_column(split, d.image, "image"), pick_column(split, d.label, "label")
        if not isinstance(split.features[image], datasets.Image):
            raise DataError(f"The column {image!r} must hold pictures; it holds {split.features[image]}.")
        split = split.cast_column(image, datasets.Image(decode=False))
        rows = subset(len(split), limit, self.seed)
        faults = BadRows(name, self.bad_rows, lambda row: picture_file(split[row][image]), self.origins.get(name))
        found = self.classes.labels(split.select_columns([label]), label, name, faults)
        if d.pipeline == "memory":
            store, rows = load_pictures(split, image, rows, d.channels, d.size, faults)
        else:
            check_pictures(split, image, rows, d.channels, faults)
            rows = faults.kept(rows)
            store = Encoded(split, image, rows, d.channels)
        labels = [found[row] for row in rows]
        self.notes += (faults.note,) if faults.note else ()
        self.notes += one_class_note(labels, self.classes.names, name) if use == "eval" else ()
        return store, torch.tensor(labels)

    def batch(self, indices: Tensor, epoch: int | None) -> tuple[Tensor, Tensor]:
        which = 1 if epoch is None else 0
        pictures, places = self.stores[which].batch(indices, epoch, self.data, self.seed)
        labels = self.labels[which][places]
        return self._mix(pictures, labels, epoch, indices) if self._mix and epoch is not None else (pictures, labels)

    # -- the model ----------------------------------------------------------------------------------------------------

    def create_model(self, spec: Any, pretrained: bool) -> nn.Module:
        basic = {"num_classes": len(self.names), "in_chans": self.data.channels}
        names = {"id2label": dict(enumerate(self.names)), "label2id": {name: i for i, name in enumerate(self.names)}}
        hf = ("AutoModelForImageClassification", {"num_labels": len(self.names), "num_channels": self.data.channels} | names)
        model = models.create_model(spec, pretrained, timm=basic, hf=hf, own=basic)
        if self.data.pipeline == "timm":
            from ..data.timm_transforms import transforms

            made = transforms(model, self.data, models.source_of(spec)[2], pretrained)
            for store in self.stores:
                store.transforms = made
        return model

    def creation(self, spec: Any) -> dict[str, Any] | None:
        options = models.timm_options(spec)
        return None if options is None else {"num_classes": len(self.names), "in_chans": self.data.channels} | options

    def example_inputs(self) -> tuple[Tensor]:
        return (torch.zeros_like(self.batch(torch.zeros(1, dtype=torch.long), None)[0]),)

    # -- what is measured ---------------------------------------------------------------------------------------------

    def measure(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        inputs, labels = batch
        outputs = model(inputs)
        logits = getattr(outputs, "logits", outputs)  # Hugging Face models wrap them
        smoothing = self.data.label_smoothing if model.training and labels.dim() == 1 else 0.0
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        truth = labels if labels.dim() == 1 else labels.argmax(-1)  # of mixed pictures, the larger share
        best = logits.detach().topk(min(5, logits.shape[-1]), -1).indices == truth[:, None]
        return loss, torch.stack([loss.detach() * len(truth), best[:, 0].sum(), best.any(1).sum(), loss.new_tensor(len(truth))])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        loss, correct, among_five, count = sums
        top5 = {"top5": among_five / count} if len(self.names) > 10 else {}
        return {"loss": loss / count, "accuracy": correct / count} | top5


class _Mixing:
    """timm's mixup and CutMix of a batch, drawn by (seed, epoch, first sample) alone."""

    def __init__(self, data: ImageData, classes: int, seed: int):
        from timm.data import Mixup

        self.classes, self.seed = classes, seed
        self.mixup = Mixup(data.mixup, data.cutmix, label_smoothing=data.label_smoothing, num_classes=classes)

    def __call__(self, pictures: Tensor, labels: Tensor, epoch: int, indices: Tensor) -> tuple[Tensor, Tensor]:
        even = len(labels) // 2 * 2  # timm mixes a batch with its reverse: of an odd one, the last stays as it is
        smoothing = self.mixup.label_smoothing
        targets = F.one_hot(labels, self.classes) * (1 - smoothing) + smoothing / self.classes
        if even:
            with seeded() as seed_all:
                seed_all(sample_bits(self.seed + 1, epoch, indices[:1])[0])
                pictures, targets = pictures.clone(), targets.to(pictures.dtype)
                pictures[:even], targets[:even] = self.mixup(pictures[:even].clone(), labels[:even])
        return pictures, targets


def _fingerprint(stores, labels) -> str:
    digest = hashlib.sha256()
    for store, label in zip(stores, labels, strict=True):
        digest.update(store.digest())
        digest.update(label.numpy())
    return digest.hexdigest()[:16]
