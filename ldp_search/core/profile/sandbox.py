"""A forward on trial: what it changes in the model's buffers is undone, what it changes in its inputs happens to copies."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def copied(inputs):
    """Inputs of a forward: tensors as they are, everything else (a cache of keys and values, lists, dicts) a copy of its own.

    What cannot be copied, such as an object that holds results of autograd, is used as it is.
    """
    if isinstance(inputs, Tensor):
        return inputs
    if type(inputs) in (list, tuple):
        return type(inputs)(copied(value) for value in inputs)
    if type(inputs) is dict:
        return {key: copied(value) for key, value in inputs.items()}
    try:
        return copy.deepcopy(inputs)
    except Exception:  # whatever an object makes of being copied
        return inputs


def on_trial(model: nn.Module, run):
    """`run()` in evaluation mode, from a fixed random state; buffers, modes and random state stay as they were."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(enabled=True), buffers_kept(model):
            torch.manual_seed(0)
            return run()
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def buffers_kept(model: nn.Module):
    """Counters, running statistics, codebooks: as they were."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                if buffer.shape == value.shape:
                    buffer.copy_(value)
