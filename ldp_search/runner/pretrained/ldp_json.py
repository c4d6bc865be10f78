"""ldp.json: what a saved model's bits are, in plain data.

Numbers are written as JSON's shortest exact decimals, so that ranges and clips come back bitwise.
"""

from __future__ import annotations

import json
import math
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import __version__
from ...api import controller
from ...core import Controller, SearchSpace, apply
from ...core.bits.space import current_words
from ...core.controller.finalize import allocation
from ...core.messages import warn
from ...core.profile.records import ModelProfile

FORMAT_VERSION = 3
RECORD = "ldp.json"
_TRANSIENT = ("grads", "clip_grads")  # tensors of a controller that mean nothing between two steps


def make_record(ldp: Controller, how: dict[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """The record of a model. how: its recipe. weights: size and digest of their file."""
    result, state = allocation(ldp), ldp.state_dict()
    return {
        "format_version": FORMAT_VERSION,
        "made_with": {"ldp_search": __version__} | {name: _version(name) for name in ("torch", "timm", "transformers")},
        "model": how,
        "weights": weights,
        "space": ldp.space.to_dict(),
        "layers": {name: bits._asdict() | result.details[name] for name, bits in result.layers.items()},
        "summary": result.summary,
        "frozen": state["frozen"],
        "progress": state["progress"],
        "profile": ldp.profile.to_dict() if ldp.profiled else None,
        "trained": state["trained"],
        "state": {name: _plain(value) for name, value in state["tensors"].items() if name not in _TRANSIENT},
    }


def to_text(record: dict[str, Any]) -> str:
    """JSON, a line for every layer or tensor."""
    rows = []
    for key, value in record.items():
        if isinstance(value, dict):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            rows.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            rows.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(rows) + "\n}\n"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _plain(values: Tensor) -> Any:
    """Nested lists of numbers, which JSON keeps exactly."""
    if not torch.isfinite(values).all():
        warn("Some ranges are not finite: the training diverged.")
    return values.tolist()


def read_record(folder: Path) -> dict[str, Any]:
    """The record in `folder`; FileNotFoundError or ValueError where there is none that is whole and of this version."""
    path = folder / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"No {RECORD} in {folder}: give a folder that ldp_search.save_pretrained wrote.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = record["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a whole record of save_pretrained ({error}): copy it again.") from error
    if found == 2:
        record = _from_version_2(record)
    elif found != FORMAT_VERSION:
        raise ValueError(
            f"{path} must be of format version {FORMAT_VERSION}; it is of {found!r}, made with ldp_search "
            f"{record.get('made_with', {}).get('ldp_search')}. Load it with that version, or save it again with this one."
        )
    missing = {"model", "weights", "space", "layers", "frozen", "progress", "profile", "state"} - set(record)
    if missing:
        raise ValueError(f"{path} is not a whole record of save_pretrained: it lacks {sorted(missing)}. Copy it again.")
    return record


def _from_version_2(record: dict[str, Any]) -> dict[str, Any]:
    """The record in the words of today; what it lacks it lacks."""
    if not {"survey", "space", "state"} <= set(record):
        return record
    record = dict(record)
    counts = record.pop("survey")
    if counts is not None:
        modules = {
            name: {{"rest": "other_macs", "found": "products"}.get(key, key): value for key, value in module.items()}
            for name, module in counts["tallies"].items()
        }
        counts = {"modules": modules, "inputs": counts["inputs"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nobody typed these words
        space = current_words(record["space"])
    state = {name.removeprefix("_"): value for name, value in record["state"].items()}
    return record | {"format_version": FORMAT_VERSION, "profile": counts, "space": space, "state": state}


def restore(model: nn.Module, record: dict[str, Any]) -> None:
    """Apply the recorded space to `model`, then the recorded counts and state; ValueError where its layers are others."""
    space, profile = record["space"], record["profile"] and ModelProfile.from_dict(record["profile"])
    try:
        apply(model, SearchSpace.from_dict(space), profile=profile)
    except (ValueError, OSError):
        if not record["frozen"] or space["policy"] == "static":
            raise
        # The policy (a recorded schedule, a module of one's own) may be out of reach here; frozen bits do not need it.
        warn(f"The policy {space['policy']!r} cannot be made here; the bits are frozen and stay.")
        apply(model, SearchSpace.from_dict(space | {"policy": "static"}), profile=profile)
    ldp = controller(model)
    state = ldp.state_dict()
    if state["layers"] != list(record["layers"]):
        differing = sorted(set(state["layers"]) ^ set(record["layers"]))
        raise ValueError(
            f"The model must have the quantized layers of the record, but {differing[:5] or 'their order'} differ."
        )
    for name, values in record["state"].items():
        own = state["tensors"][name]
        if math.prod(own.shape) != torch.tensor(values).numel():
            raise ValueError(f"{name} of the record must have the shape {tuple(own.shape)}: the model has other layers.")
        own.copy_(torch.tensor(values, dtype=own.dtype).view(own.shape))
    ldp.load_state_dict(state | {"frozen": record["frozen"], "progress": record["progress"]})
    ldp.trained |= {name: tuple(flags) for name, flags in record.get("trained", {}).items()}
