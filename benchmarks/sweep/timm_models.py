"""One small instance of every module of timm that registers models."""

from __future__ import annotations

import functools
import importlib
import re

import timm
import torch
from timm.models._registry import _module_to_models
from torch import nn

from .sample import Sample, wake
from .timm_small import TIMM

SIZES = (64, 96, 128, 160, 224, 256, 299, 331)
CANDIDATES = 8  # of a module, by name, whose parameters are counted
_SMALL = (
    "test_", "_atto", "_femto", "_pico", "_nano", "xxxs", "xxs", "xxt", "_tiny", "_t0", "_micro", "_mini", "_035", "_050",
    "_xs", "_xt", "_x", "_small", "lite", "_b0", "_a0", "_s0", "_m0", "_t1", "_18", "18", "_10", "_s", "_m1", "_b1", "_l1",
    "11", "_002", "26",
)  # fmt: skip


def modules() -> list[str]:
    """Every module of timm.models that registers a model."""
    return sorted(_module_to_models)


@functools.cache
def smallest(module: str) -> str:
    """The model of a module with the fewest parameters, among those whose names sound the smallest."""
    ordered = sorted(_module_to_models[module], key=lambda name: (_rank(name), len(name), name))
    sizes = {}
    for name in ordered[:CANDIDATES]:
        with torch.device("meta"):
            sizes[name] = sum(p.numel() for p in timm.create_model(name, num_classes=10).parameters())
    return min(sizes, key=lambda name: (sizes[name], name))


SMALLER = (
    {"embed_dim": 64, "depth": 2, "num_heads": 2}, {"embed_dim": 64, "depth": 2}, {"depths": (1, 1, 1, 1), "embed_dim": 32},
    {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128)}, {"depths": (1, 1, 1, 1)}, {"layers": (1, 1, 1, 1)}, {"num_blocks": 2},
)  # fmt: skip
"""Arguments of create_model that make a model smaller, where it takes them."""


@functools.cache
def _arguments(name: str) -> dict:
    """Those of SMALLER with which the model has the fewest parameters."""
    sizes = []
    for options in ({}, *SMALLER):
        try:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=10, **options)
        except Exception:  # whatever a constructor makes of an argument that it does not take
            continue
        sizes.append((sum(p.numel() for p in model.parameters()), options))
    return min(sizes, key=lambda pair: pair[0])[1] if sizes else {}


def _rank(name: str) -> int:
    return next((i for i, word in enumerate(_SMALL) if re.search(re.escape(word) + r"(_|$|\d)?", name)), len(_SMALL))


def build(module: str) -> Sample:
    """The smallest model of a module at the smallest picture that it takes."""
    options = dict(TIMM.get(module, {}))
    name = options.pop("class", None) or options.pop("model", None) or smallest(module)
    sizes = [options.pop("size")] if "size" in options else SIZES
    options = options or _arguments(name)
    for size in sizes:
        try:
            torch.manual_seed(0)
            return _at(module, name, size, options)
        except Exception as failed:
            error = failed
    raise error


def _at(module: str, name: str, size: int, options: dict) -> Sample:
    model = _create(module, name, size, options)
    wake(model)
    x = torch.randn(2, getattr(model, "in_chans", 3), size, size, generator=torch.Generator().manual_seed(0)) * 0.5
    for training in (False, True):
        _try(model.train(training), x)
    return Sample(f"timm:{module}", model.eval(), (x,), name)


def _create(module: str, name: str, size: int, options: dict) -> nn.Module:
    """By create_model, or by the class where entry points fix what has to be small; for the size where it asks for one."""
    if name in _module_to_models[module]:
        create = functools.partial(timm.create_model, name)
    else:
        namespace = vars(importlib.import_module(f"timm.models.{module}"))
        create = namespace[name]
        options = {key: _named(value, namespace) for key, value in options.items()}
    try:
        return create(num_classes=10, img_size=size, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return create(num_classes=10, **options)


def _named(value, namespace: dict):
    """Names of classes by the classes."""
    if isinstance(value, list):
        return [_named(v, namespace) for v in value]
    return namespace[value[1:]] if isinstance(value, str) and value.startswith("@") else value


def _try(model: nn.Module, x) -> None:
    """A forward that leaves no trace in the batch norms' statistics."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model(x)
    model.load_state_dict(state)
