"""Predicted masks beside pictures and truth, with a legend of the classes, as one PNG."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from torch import Tensor

SHOWN = 24  # classes in the legend, those with most pixels


def colours(classes: int) -> np.ndarray:
    """(classes + 1, 3) in [0, 1]: hues by the golden ratio from blue on; the last is black, for what is ignored."""
    made = [
        colorsys.hsv_to_rgb((0.58 + i * 0.61803) % 1, (0.75, 0.5, 0.95)[i % 3], (0.95, 0.75, 0.55)[i // 3 % 3])
        for i in range(classes)
    ]
    return np.array([*made, (0, 0, 0)])


def draw_examples(rows: Sequence[tuple[Tensor, Tensor, Tensor]], names: Sequence[str]) -> bytes:
    """PNG of rows of (picture (3, H, W) uint8, true mask (h, w), predicted mask (h, w)); negative classes are ignored ones."""
    from matplotlib.patches import Patch

    from .style import WIDTH, drawing

    table = colours(len(names))
    shape = rows[0][0].shape
    counts = np.zeros(len(names), int)
    with drawing(WIDTH, min(14.0, 0.8 + len(rows) * (WIDTH * 0.8 / 3) * shape[1] / shape[2])) as (figure, png):
        axes = figure.subplots(len(rows), 3, squeeze=False)
        for axis, title in zip(axes[0], ("picture", "truth", "prediction"), strict=True):
            axis.set_title(title)
        for line, (picture, truth, predicted) in zip(axes, rows, strict=True):
            line[0].imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            for axis, mask in zip(line[1:], (truth, predicted), strict=True):
                axis.imshow(table[mask.numpy()], interpolation="nearest")
                counts += np.bincount(mask[mask >= 0].numpy(), minlength=len(names))
            for axis in line:
                axis.set_axis_off()
        shown = [int(i) for i in np.argsort(-counts, kind="stable")[:SHOWN] if counts[i]]
        patches = [Patch(color=table[i], label=names[i]) for i in sorted(shown)]
        patches += [Patch(color="black", label="ignored")] if any((truth < 0).any() for _, truth, _ in rows) else []
        figure.legend(handles=patches, loc="outside right center")
    return bytes(png)
