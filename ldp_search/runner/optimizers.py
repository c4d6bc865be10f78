"""Optimizers by name, and the learning rate as a function of progress: nothing to save, nothing to resume."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import nn

from ..core.registry import did_you_mean
from .overlay import ConfigError, as_component

PLAIN = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}  # timm's "sgd" is Nesterov's


def create_optimizer(config: Any, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the settings `optimizer`, `lr`, `momentum` and `weight_decay`.

    Raises:
        ConfigError: unknown name with the nearest ones, or an option that the optimizer does not take.
    """
    options = as_component(config.optimizer)
    name = str(options.pop("name", ""))
    parameters = _groups(model, config)
    given = {"lr": config.lr, "weight_decay": config.weight_decay} | options
    try:
        if name in PLAIN:
            if "momentum" in inspect.signature(PLAIN[name]).parameters:
                given.setdefault("momentum", config.momentum)
            return PLAIN[name](parameters, **given)
        from timm.optim import create_optimizer_v2, list_optimizers

        known = {*PLAIN, *list_optimizers()}
        if name not in known:
            raise ConfigError(f"Unknown optimizer {name!r}.{did_you_mean(name, known)}")
        return create_optimizer_v2(parameters, opt=name, momentum=config.momentum, **given)
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"The optimizer {name!r} cannot be made with {given}: {error}") from error


def _groups(model: nn.Module, config: Any) -> list[dict[str, Any]]:
    """The trainable parameters; where `decay_norms` is off, those of one dimension (biases, norms) in a group without decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.decay_norms:
        return [{"params": parameters}]
    groups = [{"params": [p for p in parameters if p.dim() > 1]}, {"params": [p for p in parameters if p.dim() < 2]}]
    groups[1]["weight_decay"] = 0.0
    return [group for group in groups if group["params"]]


def lr_factor(config: Any, progress: float) -> float:
    """Share of `lr` that holds for a step which begins at `progress` (0 to 1)."""
    if progress < config.warmup:
        return progress / config.warmup
    rest = (progress - config.warmup) / (1 - config.warmup)
    if config.lr_schedule == "multistep":
        return config.gamma ** sum(progress >= milestone for milestone in config.milestones)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * rest)), "linear": 1 - rest, "constant": 1.0}[config.lr_schedule]
