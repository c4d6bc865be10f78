"""Running a model of the zoo: seeded, its buffers kept; its outputs as a flat list; a loss that reaches them all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch
from torch import Tensor, nn


def seed(number: int = 0) -> None:
    """Some models draw layer drop or masks from Python's or numpy's generator."""
    random.seed(number)
    numpy.random.seed(number)
    torch.manual_seed(number)


def call(model: nn.Module, inputs):
    """The forward on a mapping of keyword arguments or a tuple of arguments."""
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def tensors(output) -> Iterator[Tensor]:
    """The floating-point tensors of any structure of outputs, in order."""
    if isinstance(output, Tensor):
        if output.is_complex():
            output = torch.view_as_real(output)
        if output.is_floating_point() and output.numel():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors(value)


@contextmanager
def buffers_kept(model: nn.Module):
    """What a forward in training does to buffers (batch norms' statistics, ...) is undone."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


@torch.no_grad()
def outputs(model: nn.Module, inputs, training: bool = False) -> list[Tensor]:
    """The outputs in one mode, from seed 0."""
    modes = {module: module.training for module in model.modules()}
    try:
        with buffers_kept(model):
            model.train(training)
            seed()
            return [x.detach().clone() for x in tensors(call(model, inputs))]
    finally:
        for module, mode in modes.items():
            module.training = mode


def backward(model: nn.Module, inputs) -> None:
    """Forward and backward in training mode; the loss weighs every output element by a fixed random number.

    A sum of squares would not do: it is constant where a model ends in a normalization.
    """
    with buffers_kept(model):
        model.train()
        seed()
        found = [x for x in tensors(call(model, inputs)) if x.requires_grad]
        if not found:
            raise RuntimeError("no output has a gradient")
        weights = torch.Generator().manual_seed(7)
        loss = sum((x.float() * torch.randn(x.shape, generator=weights)).mean() for x in found)
        loss.backward()
    model.eval()


def same(one: list[Tensor], other: list[Tensor]) -> str:
    """Empty where two lists of outputs are equal to the last bit, else what differs."""
    if len(one) != len(other):
        return f"{len(one)} outputs against {len(other)}"
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        if a.shape != b.shape:
            return f"output {i} has shape {tuple(a.shape)} against {tuple(b.shape)}"
        if not torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0)):
            return f"output {i} differs by up to {float((a - b).abs().max()):.2g} (magnitude {float(b.abs().max()):.2g})"
    return ""


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest relative difference of an output: |a - b| / |b| in the Euclidean norm."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape:
            return float("inf")  # as many boxes or tokens as the values say
        a, b = a.double(), b.double()
        both = a.isfinite() & b.isfinite()  # masked scores are -inf on purpose
        if (a.isfinite() != b.isfinite()).any():
            return float("inf")
        a, b = a[both], b[both]
        large = b.abs() > 1e30  # "minus infinity" of masks
        a, b = a[~large], b[~large]
        norm = float(b.norm())
        worst = max(worst, float((a - b).norm()) / max(norm, 1e-12 * max(1, b.numel())))
    return worst
