"""How a network is trained: one recipe for all rows, so that rows differ in their bits alone.

proxy   minutes a run: CIFAR-10 averaged to 16x16, 10 epochs
short   CIFAR-10 at 32x32, 20 epochs
full    the paper's 64,000 steps: learning rate 0.1, a tenth of it at 50 % and at 75 %, weight decay 1e-4
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """Training of one network at one size.

    data: prepared file (DATA/NAME.npz). epochs: over all training samples, unless `steps` says how many optimizer steps.
    schedule: cosine (after a linear warm-up, to 0) or steps (a tenth at 50 and 75 %). pad: pixels that a random crop may move.
    cycles: of cyclic precision. classes: of the labels, or of the vocabulary.
    """

    data: str = "cifar10-16"
    epochs: int = 10
    steps: int | None = None
    batch: int = 128
    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    nesterov: bool = True
    schedule: str = "cosine"
    warmup: float = 0.05
    pad: int = 2
    cycles: int = 8
    classes: int = 10

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of optimizer step `step` (from 0) of `steps`."""
        progress = step / steps
        if self.schedule == "steps":
            return self.lr * 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
        if progress < self.warmup:
            return self.lr * (step + 1) / (self.warmup * steps + 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


SIZES = {
    "proxy": Recipe(),
    "short": Recipe(data="cifar10-32", epochs=20, pad=4),
    "full": Recipe(
        data="cifar10-32", steps=64_000, pad=4, weight_decay=1e-4, nesterov=False, schedule="steps", warmup=0.0, cycles=32
    ),
}
_ADAM = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "schedule": "cosine", "warmup": 0.05}
_TEXT = {"data": "wikitext2", "batch": 16, "classes": 4096, "lr": 2e-3, "weight_decay": 0.1}
CHANGES = {
    "mobilenetv2": {"*": {}},
    "vit": {"*": _ADAM, "full": {"cycles": 32}},
    "gpt": {"*": _ADAM | _TEXT, "proxy": {"steps": 1000}, "short": {"steps": 8000}, "full": {"steps": 64_000}},
}
"""{network: {size, or * for all: what its recipe has otherwise}}."""


def recipe_of(network: str, size: str, **overrides) -> Recipe:
    """The recipe of a network at a size; overrides that are None are left out."""
    changes = CHANGES.get(network, {})
    given = {name: value for name, value in overrides.items() if value is not None}
    if "epochs" in given:
        given.setdefault("steps", None)
    return replace(SIZES[size], **changes.get("*", {}) | changes.get(size, {}) | given)
