"""The fields of `dataset:` in the file of a segmentation task."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..data import DataError
from ..data.pictures import check_range

EVALUATE = ("full", "slide")


@dataclass
class SegmentationData:
    """source: a hub id, a folder, or `digit_scenes`. Of names given as lists, the first one found counts."""

    source: str = ""
    config: str | None = None  # which of the hub's configurations
    train: list[str] = field(default_factory=lambda: ["train", "training"])
    eval: list[str] = field(default_factory=lambda: ["validation", "val", "test"])
    image: list[str] = field(default_factory=lambda: ["image", "img", "pixel_values"])
    mask: list[str] = field(default_factory=lambda: ["mask", "annotation", "label", "labels", "semantic_segmentation"])
    image_suffix: str = ""  # in folders: what the names of pictures have besides the common part of a pair
    mask_suffix: str = ""
    classes: list[str] = field(default_factory=list)  # names, in order; none: FOLDER/classes.txt, or as the masks have
    ignore: list[int] = field(default_factory=lambda: [255])  # values of a mask that are left out
    ids: list[int] = field(default_factory=list)  # the value of each class, where it is not its place; others are left out
    value_range: list[float] = field(default_factory=list)  # [black, white] of grey pictures of more than 8 bits
    reduce_zero_label: bool = False  # value 0 is left out, and 1 is the first class
    streaming: bool = False  # take the first limit= and eval_limit= rows without downloading the rest
    size: int | None = None  # pixels of the shorter side that pictures are resized to first
    crop: list[int] = field(default_factory=lambda: [512, 512])  # height and width of what is trained on, and of windows
    scale: list[float] = field(default_factory=lambda: [0.5, 2.0])  # random scaling in training
    flip: bool = True  # half of the pictures mirrored in training
    color_jitter: float = 0.0  # brightness, contrast and saturation changed by up to this share in training
    evaluate: str = "full"  # the whole picture at once, or windows of the crop's size that slide over it
    stride: float = 0.667  # slide: from window to window, as a share of the crop
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])  # ImageNet's
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])

    def __post_init__(self):
        if len(self.crop) == 1:
            self.crop = self.crop * 2
        if len(self.crop) != 2 or min(self.crop) < 8:
            raise DataError(f"`crop` must be a height and a width of 8 pixels or more; received {self.crop}.")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise DataError(f"`scale` must be a smallest and a largest factor, both above 0; received {self.scale}.")
        if self.evaluate not in EVALUATE:
            raise DataError(f"`evaluate` must be one of {', '.join(EVALUATE)}; received {self.evaluate!r}.")
        if not 0 < self.stride <= 1 or not 0 <= self.color_jitter < 1:
            raise DataError(
                f"`stride` must be in (0, 1], `color_jitter` in [0, 1); received {self.stride}, {self.color_jitter}."
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise DataError(f"`mean` and `std` must have three values, of `std` above 0; received {self.mean}, {self.std}.")
        if len(self.classes) == 1 or len(set(self.classes)) < len(self.classes):
            raise DataError(f"`classes` must be two names or more, each once; received {self.classes}.")
        if len(self.ids) == 1 or (self.ids and self.classes and len(self.ids) != len(self.classes)):
            raise DataError(
                f"`ids` must have a value for each class, of which there are two or more; there are {len(self.ids)} values"
                + (f" for {len(self.classes)} `classes`." if self.classes else ".")
            )
        check_range(self.value_range)
        if len(set(self.ids)) < len(self.ids) or not all(0 <= value < 2**16 for value in self.ids):
            raise DataError(f"`ids` must be values of a mask, from 0 to 65535, each once; received {self.ids}.")
        if self.size is not None and self.size < 8:
            raise DataError(f"`size` must be 8 pixels or more; received {self.size}.")
