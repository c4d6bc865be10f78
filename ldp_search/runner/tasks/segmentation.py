"""Semantic segmentation: pictures with a mask that names the class of each pixel.

Loss and metrics are computed at the mask's own size, with ignored pixels left out; the mean IoU comes from one confusion matrix
over the whole evaluation set. Models: encoders of timm with a light decoder, and those of transformers (`models/semantic.py`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...config.overlay import ConfigError
from .. import models
from ..data import BadRows, DataError, first_rows, load_splits, pick_column, pick_split, shared_split, subset
from ..data.mask_folders import LAYOUTS, names_in, paired_folders
from ..data.masks import MaskValues, open_mask
from ..data.paired_augmentation import moved
from ..data.pairs import Pair, PairReader, Pairs, checked_pairs
from ..data.pictures import normalize
from ..data.seeded import sample_bits
from ..models import segmenter
from ..models.hugging_face import processor_values
from ..models.semantic import (
    IGNORED,
    auto_class,
    full_logits,
    is_universal,
    leaves,
    matching_targets,
    pixel_loss,
    semantic_logits,
    slide,
)
from .base import Task
from .metrics import accuracy, confusion, ious
from .segmentation_data import SegmentationData

OFFLINE = "task=digit_scenes   scenes of real handwritten digits that come with scikit-learn"
Group = tuple[Tensor, Tensor]
"""Pictures (N, 3, H, W) fp32, normalized, and masks (N, h, w) int64 of one size; in evaluation h, w may differ from H, W."""


class Segmentation(Task):
    Data = SegmentationData
    metric = "mean_iou"
    looks_at = ("data", "limit", "eval_limit", "seed", "bad_rows")

    def __init__(self, data: SegmentationData, config: Any):
        self.data, self.seed, self.bad_rows, self.notes = data, config.seed, config.bad_rows, ()
        self.mean, self.std = data.mean, data.std
        limits = (config.limit, config.eval_limit)
        if data.source == "digit_scenes" and config.data is None:
            from ..data.scenes import NAMES, SCENES, scenes

            self.names = NAMES
            chosen = [subset(size, limit, self.seed) for size, limit in zip(SCENES, limits, strict=True)]
            self.pairs = [Pairs(scenes(half, rows)) for half, rows in enumerate(chosen)]
        else:
            splits = self._splits(config.data)
            self.notes += shared_split(splits, data.train, data.eval)
            self.pairs = [self._read(splits, use, limit) for use, limit in zip(("train", "eval"), limits, strict=True)]
        self.train_size, self.eval_size = map(len, self.pairs)
        digest = hashlib.sha256(json.dumps(self.names).encode())
        for pairs in self.pairs:
            digest.update(pairs.digest())
        self.fingerprint = digest.hexdigest()[:16]

    # -- the data -----------------------------------------------------------------------------------------------------

    def _splits(self, given: str | None) -> dict[str, Any]:
        d, place = self.data, Path(given or self.data.source).expanduser()
        self.names = list(d.classes)
        if (given or d.source) and place.is_dir():
            self.names = self.names or names_in(place)
            found = paired_folders(place, [*d.train, *d.eval], d.image_suffix, d.mask_suffix)
            if found is not None:
                return found
        return load_splits(d.source, d.config, given, OFFLINE, d.streaming)

    def _read(self, splits: dict[str, Any], use: str, limit: int | None) -> Pairs:
        """The pairs of a split; only as much of it as the limit asks for is looked at."""
        import datasets

        d = self.data
        name, split = pick_split(splits, getattr(d, use), use)
        split = first_rows(split, limit, use)
        image = pick_column(split, d.image, "image")
        try:
            mask = pick_column(split, d.mask, "mask")
        except DataError as error:
            raise DataError(f"{error}\nA folder of one's own has {LAYOUTS}.") from error
        for column in (image, mask):
            if not isinstance(split.features[column], datasets.Image):
                holds = f"The column {column!r} must hold pictures; it holds {split.features[column]}."
                raise DataError(f"{holds}\nA folder of one's own has {LAYOUTS}.")
            split = split.cast_column(column, datasets.Image(decode=False))
        rows = subset(len(split), limit, self.seed)
        self.names = self.names or self._counted(split.select_columns([mask]), mask, rows)
        taken = set(d.ids or range(len(self.names) + d.reduce_zero_label)) & set(d.ignore)
        if taken:
            raise DataError(
                f"A value is a class or left out, not both; {sorted(taken)} of `ignore` are classes: dataset.ignore=[]."
            )
        values = MaskValues(len(self.names), d.ignore, d.ids, d.reduce_zero_label)
        reader = PairReader(split, image, mask, values, d.size, use == "train")
        faults = BadRows(name, self.bad_rows, reader.file)
        pairs = checked_pairs(reader, rows, faults)
        self.notes += (faults.note,) if faults.note else ()
        return pairs

    def _counted(self, split: Any, column: str, rows: list[int]) -> list[str]:
        """Numbers as names, up to the largest value in the masks. What cannot be decoded is told later."""
        largest = 0
        for row in rows:
            try:
                found = set(np.unique(open_mask(split[row][column])).tolist()) - set(self.data.ignore)
            except Exception:
                continue
            largest = max([largest, *found])
        first = 1 if self.data.reduce_zero_label else 0
        if largest - first < 1:
            raise DataError(
                f"Two classes or more are needed; the largest value of the masks in column {column!r} is {largest}."
            )
        return [str(i) for i in range(first, largest + 1)]

    def batch(self, indices: Tensor, epoch: int | None) -> list[Group]:
        """One group of crops in training; in evaluation, a group for each size of pictures and masks."""
        pairs, d = self.pairs[1 if epoch is None else 0], self.data
        if epoch is None:
            found = [pairs[i] for i in indices.tolist()]
        else:
            bits = sample_bits(self.seed, epoch, indices)
            found = [
                moved(pairs[i], d.crop, d.scale, d.flip, d.color_jitter, b) for i, b in zip(indices.tolist(), bits, strict=True)
            ]
        groups: dict[Any, list[Pair]] = {}
        for pair in found:
            groups.setdefault((pair.picture.shape, pair.mask.shape), []).append(pair)
        return [self._group(group) for group in groups.values()]

    def _group(self, pairs: list[Pair]) -> Group:
        pictures = torch.stack([pair.picture for pair in pairs])
        return normalize(pictures, self.mean, self.std), torch.stack([pair.mask for pair in pairs]).long()

    # -- the model ----------------------------------------------------------------------------------------------------

    def create_model(self, spec: Any, pretrained: bool) -> nn.Module:
        names = {"id2label": dict(enumerate(self.names)), "label2id": {name: i for i, name in enumerate(self.names)}}
        fields = {"num_labels": len(self.names), "use_auxiliary_head": False} | names  # one loss for all: the main head's
        size = tuple(self.data.crop)
        model = models.create_model(
            spec, pretrained, timm={"classes": len(self.names), "size": size}, hf=(auto_class, fields),
            own={"classes": len(self.names), "num_classes": len(self.names), "in_chans": 3}, wrap_timm=segmenter.create,
        )  # fmt: skip
        if pretrained:
            self._take_statistics(model, models.source_of(spec)[2])
        self._probe(model)
        return model

    def _take_statistics(self, model: nn.Module, name: str) -> None:
        """Mean and deviation that the pretrained model had."""
        cfg = getattr(getattr(model, "encoder", None), "pretrained_cfg", None) or {}
        found = {"mean": cfg.get("mean"), "std": cfg.get("std")} if cfg else processor_values(name)
        if found.get("mean"):
            self.mean, self.std = list(found["mean"]), list(found["std"])

    def _probe(self, model: nn.Module) -> None:
        """Freezes parameters that the loss does not reach: DDP would wait for their gradients.

        Raises:
            ConfigError: the model takes crops, but no whole pictures, on which it is to be evaluated.
        """
        model.eval()
        crop, picture = torch.zeros(1, 3, *self.data.crop), self.pairs[1][0].picture
        try:
            targets = matching_targets(torch.zeros_like(crop[:, 0]).long()) if is_universal(model) else {}
            outputs = model(crop, **targets)
        except Exception:
            return  # it does not even take crops, of which the caller speaks
        loss = outputs.loss if targets else semantic_logits(outputs)
        reached = leaves(loss)
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in reached)
        if self.data.evaluate == "slide":
            return
        try:
            with torch.no_grad():
                model(torch.zeros(1, *picture.shape))
        except Exception as error:
            height, width = picture.shape[1:]
            raise ConfigError(
                f"The model takes crops of {self.data.crop}, but no whole picture of {height}x{width}: {error}\n"
                "Let windows of the crop's size slide over the pictures: dataset.evaluate=slide."
            ) from error

    def example_inputs(self) -> tuple[Tensor]:
        return (torch.zeros(1, 3, *self.data.crop),)

    # -- what is measured ---------------------------------------------------------------------------------------------

    def measure(self, model: nn.Module, batch: list[Group]) -> tuple[Tensor, Tensor]:
        if not model.training:
            return self._evaluated(model, batch)
        ((pictures, masks),) = batch
        if is_universal(model):
            outputs = model(pictures, **matching_targets(masks))
            logits, loss = full_logits(outputs, masks.shape[-2:]).detach(), outputs.loss.reshape(())
        else:
            logits = full_logits(model(pictures), masks.shape[-2:])
            loss = pixel_loss(logits, masks) / (masks != IGNORED).sum().clamp_min(1)
        valid = masks != IGNORED
        correct = ((logits.detach().argmax(1) == masks) & valid).sum()
        return loss, torch.stack([_exact(loss) * valid.sum(), valid.sum(), correct])

    def _evaluated(self, model: nn.Module, batch: list[Group]) -> tuple[Tensor, Tensor]:
        """(loss, [sum of the pixels' losses, pixels, confusion matrix]); pictures one by one at full size, to spare memory."""
        sums = None
        for pictures, masks in batch:
            found = self._outputs(model, pictures)
            for logits, mask in zip(found, masks, strict=True):
                logits = full_logits(logits[None], mask.shape)
                valid = mask != IGNORED
                matrix = confusion(mask[valid], logits[0].argmax(0)[valid], len(self.names))
                one = torch.cat([torch.stack([_exact(pixel_loss(logits, mask[None])), valid.sum()]), matrix.flatten()])
                sums = one if sums is None else sums + one
        return (sums[0] / sums[1].clamp_min(1)).float(), sums

    def _outputs(self, model: nn.Module, pictures: Tensor) -> Tensor:
        """Semantic logits (N, classes, h, w): of whole pictures at the model's own scale, of windows at the pictures'."""
        if self.data.evaluate == "full":
            return semantic_logits(model(pictures))
        return slide(model, pictures, self.data.crop, self.data.stride)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        loss, count, *rest = sums
        out = {"loss": loss / max(count, 1)}
        if len(rest) == 1:  # of training
            return out | {"pixel_accuracy": rest[0] / max(count, 1)}
        matrix = torch.tensor(rest, dtype=torch.float64).view(len(self.names), -1)
        return out | {"mean_iou": float(ious(matrix).nanmean()), "pixel_accuracy": accuracy(matrix)}

    def examples(self, model: nn.Module) -> dict[str, tuple[bytes, str]]:
        from ..report.segmentation_examples import draw_examples

        device, rows = next(model.parameters()).device, []
        was_training = model.training
        model.eval()
        places = [i * self.eval_size // min(4, self.eval_size) for i in range(min(4, self.eval_size))]
        with torch.no_grad():
            for place in places:
                pair = self.pairs[1][place]
                pictures, masks = self._group([pair])
                logits = full_logits(self._outputs(model, pictures.to(device)), masks.shape[-2:])
                rows.append((pair.picture, masks[0], logits[0].argmax(0).cpu()))
        model.train(was_training)
        caption = f"{len(rows)} pictures of the evaluation set: the picture, its true mask, the predicted one."
        return {"examples.png": (draw_examples(rows, self.names), caption)}


def _exact(value: Tensor) -> Tensor:
    """Counts of pixels pass the 2^24 that fp32 can count; only Apple's GPUs have no fp64."""
    return value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
