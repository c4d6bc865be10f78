"""Optimizers by name, and the learning rate as a function of progress: nothing to save, nothing to resume."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import nn

from ...config.overlay import ConfigError, as_component
from ...core.messages import did_you_mean

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
    """The trainable parameters in groups: where `decay_norms` is off, those of one dimension (biases, norms) without decay;
    where `head_lr_scale` is not 1, those of the head with `lr_scale`, by which the training loop multiplies lr.
    """
    head = _head(model) if config.head_lr_scale != 1 else set()
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = (config.decay_norms or parameter.dim() > 1, id(parameter) in head)
            groups.setdefault(key, {"params": []})["params"].append(parameter)
    for (decays, in_head), group in groups.items():
        group |= ({} if decays else {"weight_decay": 0.0}) | ({"lr_scale": config.head_lr_scale} if in_head else {})
    return [groups[key] for key in sorted(groups, key=lambda key: (not key[0], key[1]))]


BODIES = ("encoder", "backbone", "model.pixel_level_module.encoder")


def _head(model: nn.Module) -> set[int]:
    """Identities of the parameters outside of the body: what a pretrained model gets anew for its task.

    The body is a submodule of one of the names in BODIES, or what transformers calls the base model; of timm's classifiers,
    everything but the classifier. Raises ConfigError where none of these is there.
    """
    names = [name for name, _ in model.named_modules()]
    own = [name for name in (*BODIES, getattr(model, "base_model_prefix", "")) if name and name in names]
    if own:
        body = {id(p) for p in model.get_submodule(own[0]).parameters()}
        return {id(p) for p in model.parameters()} - body
    if hasattr(model, "get_classifier"):
        return {id(p) for p in model.get_classifier().parameters()}
    raise ConfigError(
        f"head_lr_scale needs a model that says what its head is; {type(model).__name__} does not: leave it at 1."
    )


def lr_factor(config: Any, progress: float) -> float:
    """Share of `lr` that holds for a step which begins at `progress` (0 to 1)."""
    if progress < config.warmup:
        return progress / config.warmup
    rest = (progress - config.warmup) / (1 - config.warmup)
    if config.lr_schedule == "multistep":
        return config.gamma ** sum(progress >= milestone for milestone in config.milestones)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * rest)), "linear": 1 - rest, "constant": 1.0}[config.lr_schedule]
