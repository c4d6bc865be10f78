"""The zoo: names of models, and one small instance of each with inputs for its forward, made offline from random weights."""

from __future__ import annotations

import os

import torch

from .sample import Sample

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def make(name: str) -> Sample:
    """Build one model of the zoo, reproducibly."""
    family, _, kind = name.partition(":")
    torch.manual_seed(0)
    if family == "timm":
        from .timm_models import build

        return build(kind)
    from .hf_models import build

    return build(kind)
