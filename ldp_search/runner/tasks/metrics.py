"""What is measured on an evaluation set: names, which way is better, how numbers are shown; and metrics of additive sums.

Everything is computed from sums that add over batches and processes (a confusion matrix, a total of losses), so that the
result does not depend on how the evaluation set was cut.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Metric(NamedTuple):
    """title: as a heading. higher: whether more is better. percent: a share, shown times 100."""

    title: str
    higher: bool = True
    percent: bool = True

    def better(self, a: float, b: float) -> bool:
        return a > b if self.higher else a < b

    def show(self, value: float | None, places: int = 2) -> str:
        if value is None or not math.isfinite(value):
            return "–" if value is None else str(value)
        return f"{value:.{places}%}" if self.percent else f"{value:.{places + 2}g}"


METRICS = {
    "accuracy": Metric("Accuracy"),
    "accuracy_mismatched": Metric("Accuracy, mismatched"),
    "top5": Metric("Top-5 accuracy"),
    "f1": Metric("F1"),
    "matthews": Metric("Matthews correlation"),
    "pearson": Metric("Pearson correlation"),
    "spearman": Metric("Spearman correlation"),
    "mean_iou": Metric("Mean IoU"),
    "pixel_accuracy": Metric("Pixel accuracy"),
    "perplexity": Metric("Perplexity per token", higher=False, percent=False),
    "word_perplexity": Metric("Perplexity per word", higher=False, percent=False),
    "loss": Metric("Loss", higher=False, percent=False),
}


def metric(name: str) -> Metric:
    """What is known of a metric; one's own is taken for a number of which more is better."""
    return METRICS.get(name, Metric(name, percent=False))


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """(classes, classes) counts, rows: truth, columns: prediction; of integer tensors with values in [0, classes)."""
    return torch.bincount(truth.flatten() * classes + predicted.flatten(), minlength=classes**2).view(classes, classes)


def accuracy(matrix: Tensor) -> float:
    """Share on the diagonal of a confusion matrix; NaN of an empty one."""
    return float(matrix.trace() / matrix.sum())


def f1(matrix: Tensor, positive: int = 1) -> float:
    """2 TP / (2 TP + FP + FN) of one class; 0 where there is none of it, as scikit-learn has it."""
    hit, wrong = matrix[positive, positive], matrix[positive].sum() + matrix[:, positive].sum()
    return float(2 * hit / wrong) if wrong else 0.0


def matthews(matrix: Tensor) -> float:
    """Matthews correlation for any number of classes (Gorodkin 2004); 0 where one side has a single class."""
    m = matrix.double()
    truth, predicted, total = m.sum(1), m.sum(0), m.sum()
    spread = (total**2 - (truth**2).sum()) * (total**2 - (predicted**2).sum())
    return float((m.trace() * total - truth @ predicted) / spread.sqrt()) if spread > 0 else 0.0


def ious(matrix: Tensor) -> Tensor:
    """Intersection over union of each class; NaN for classes that neither truth nor prediction has."""
    m = matrix.double()
    return m.diagonal() / (m.sum(0) + m.sum(1) - m.diagonal())


def pearson(x: Tensor, y: Tensor) -> float:
    """Correlation of two vectors; NaN where one of them is constant."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return float((x @ y) / (x.norm() * y.norm()))


def spearman(x: Tensor, y: Tensor) -> float:
    """Correlation of ranks, equal values sharing their mean rank."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(x: Tensor) -> Tensor:
    _, place, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]
