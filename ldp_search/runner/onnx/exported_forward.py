"""A model's forward as exporters want it. Needs torch alone, for the formats that know nothing of ONNX."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...core.profile.sandbox import buffers_kept


@contextmanager
def ready(model: nn.Module):
    """Within this context: evaluation mode, no gradient, no cache of keys and values (transformers) among the outputs, and no
    fused path of torch's own transformer layers, which would hide their products. What forwards count in buffers is undone.
    """
    modes, fused = {module: module.training for module in model.modules()}, torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), buffers_kept(model), _without_caches(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes.items():
            module.training = training


@contextmanager
def _without_caches(model: nn.Module):
    """`use_cache` off in every configuration: parts of a model (a decoder) may hold a copy of their own."""
    caching = [config for config in _configurations(model) if getattr(config, "use_cache", None)]
    before = [(config, vars(config).get("use_cache")) for config in caching]
    try:
        for config in caching:
            config.use_cache = False
        yield
    finally:
        for config, own in before:
            if own is None:  # it was the class's
                vars(config).pop("use_cache", None)
            else:
                config.use_cache = own


def _configurations(model: nn.Module) -> list[Any]:
    """The configurations of the model, of its parts, and those nested in them, each once."""
    waiting, found = [module.config for module in model.modules() if hasattr(module, "config")], {}
    while waiting:
        config = waiting.pop()
        if id(config) not in found and hasattr(config, "to_dict") and hasattr(config, "__dict__"):
            found[id(config)] = config
            waiting += vars(config).values()
    return list(found.values())
