"""Whether a file computes what the trained network computes, on evaluation data.

The yardstick is the trained network itself with every layer's output changed by a ten-thousandth: rounding turns any difference
into whole steps, so the predictions of two equal networks that sum in another order differ too, the more so with few bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...api import controller
from .outputs import difference, evaluating, predictions
from .peers import TRAINED, Way
from .subject import Subject

SMALL_CHANGE = 1e-4
EXACT = 1e-4  # largest relative error of what is to be exact, but for the order of sums
LEAST_AGREEMENT = 0.95
LARGEST_ERROR = 0.1  # of outputs that are no classes
YARDSTICK = "the trained network, disturbed"


@dataclass
class Parity:
    """A way beside the trained network.

    error: largest difference, relative to the largest output of a batch. equal, predicted: predictions that agree, of all;
    predicted 0: the outputs are no classes. metrics: of the task. failed: why it did not run.
    """

    error: float = 0.0
    equal: int = 0
    predicted: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    failed: str | None = None
    sums: Tensor | None = None

    @property
    def agreement(self) -> float | None:
        return self.equal / self.predicted if self.predicted else None

    def add(self, outputs: list[Any], expected: list[Any], sums: Tensor | None) -> None:
        for found, wanted in zip(outputs, expected, strict=True):
            self.error = max(self.error, difference(found, wanted))
            classes = predictions(wanted)
            if classes is not None and (own := predictions(found)).shape == classes.shape:
                self.equal, self.predicted = self.equal + int((own == classes).sum()), self.predicted + classes.numel()
        if sums is not None:
            self.sums = sums.double() if self.sums is None else self.sums + sums


def compare(subject: Subject, ways: list[Way], samples: int) -> dict[str, Parity]:
    """{way, and YARDSTICK: how it compares}, batch by batch, so that nothing is kept."""
    found = {way.name: Parity(failed=way.failed) for way in ways} | {YARDSTICK: Parity()}
    modules = {way.name: way.module for way in ways if way.module is not None}
    with evaluating(subject.model):
        for batch in subject.batches(samples):
            expected, sums = subject.run(subject.model, batch)
            found[TRAINED].add(expected, expected, sums)
            with disturbed(subject.model):
                outputs, sums = subject.run(subject.model, batch)
                found[YARDSTICK].add(outputs, expected, sums)
            for name, module in modules.items():
                if name != TRAINED and found[name].failed is None:
                    _add(found[name], subject, module, batch, expected)
    for parity in found.values():
        if parity.sums is not None:
            parity.metrics = subject.task.metrics(parity.sums.tolist())
    return found


def _add(parity: Parity, subject: Subject, module: nn.Module, batch: Any, expected: list[Any]) -> None:
    try:
        outputs, sums = subject.run(module, batch)
        parity.add(outputs, expected, sums)
    except Exception as error:  # whatever a runtime finds wrong with these inputs
        parity.failed = " ".join(str(error).split())[:160] or type(error).__name__


@contextmanager
def disturbed(model: nn.Module) -> Iterator[None]:
    """Within this context every layer's output is changed by `SMALL_CHANGE`, the same way each time."""
    generator = torch.Generator().manual_seed(0)

    def change(module, inputs, output):
        return output * (1 + SMALL_CHANGE * torch.randn(output.shape, generator=generator).to(output))

    hooks = [spec.module.register_forward_hook(change) for spec in controller(model).specs.values() if spec.module is not None]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rejection(format: str, parity: Parity, yardstick: Parity, least: float | None) -> str | None:
    """Why a file does not count as made; None: it does. least: share of equal predictions, None: by the yardstick."""
    if parity.failed is not None:
        return f"it does not run on the evaluation data: {parity.failed}"
    if parity.error == float("inf"):
        return "its outputs are not finite, or of another shape"
    if format == "packed" and parity.error > max(EXACT, yardstick.error):
        return f"its outputs differ by {parity.error:.2g} of the largest, where a packed file must give the same"
    if parity.agreement is None:
        bound = max(LARGEST_ERROR, 3 * yardstick.error)
        return (
            None
            if parity.error <= bound
            else f"its outputs differ by {parity.error:.2g} of the largest; {bound:.2g} is allowed"
        )
    own = yardstick.agreement
    bound = min(LEAST_AGREEMENT, 1 - 3 * (1 - own)) if least is None else least
    if parity.agreement >= bound:
        return None
    return (
        f"it predicts as the trained network in {parity.agreement:.1%} of {parity.predicted:,} places, and must in {bound:.1%} "
        f"(the network itself, disturbed by {SMALL_CHANGE:g}, does in {own:.1%}; agreement=SHARE sets another bound)"
    )
