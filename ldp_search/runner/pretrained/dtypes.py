"""The types of a model's floating tensors, also of those that are in no file: one for most, and the others by name."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn


def dtypes_of(model: nn.Module, state: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """{"dtype": that of most elements, "other_dtypes": {name: dtype}}, for the recipe.

    state: tensors that are saved in place of the model's own.
    """
    found = {name: value for name, value in (_tensors(model) | (state or {})).items() if value.is_floating_point()}
    count: Counter = Counter()
    for value in found.values():
        count[value.dtype] += value.numel()
    most = max(count, key=count.__getitem__, default=torch.float32)
    return {"dtype": _name(most), "other_dtypes": {k: _name(v.dtype) for k, v in found.items() if v.dtype != most}}


def recorded_dtypes(model: nn.Module, recipe: dict[str, Any]) -> dict[str, torch.dtype]:
    """{name: recorded dtype} of the floating tensors that are of another one now; empty where the recipe tells none."""
    if "dtype" not in recipe:
        return {}
    expected = {
        name: getattr(torch, recipe["other_dtypes"].get(name, recipe["dtype"]))
        for name, value in _tensors(model).items()
        if value.is_floating_point()
    }
    return {name: dtype for name, dtype in expected.items() if _tensors(model)[name].dtype != dtype}


def take_dtypes(model: nn.Module, recipe: dict[str, Any], exact: nn.Module | None = None) -> None:
    """Give every floating tensor its recorded type. exact: the same model in wider types, from which the values come."""
    own, wide = _tensors(model), {} if exact is None else exact.state_dict()
    for name, dtype in recorded_dtypes(model, recipe).items():
        own[name].data = wide.get(name, own[name].data).to(dtype)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
