"""Counting at the first real inputs, where `apply` was given none.

Imported where it is needed: `torch.compiler.disable` loads the compiler, which takes half of the time of importing torch.
"""

from __future__ import annotations

import torch
from torch import nn

from ..model.install import ATTRIBUTE
from ..profile import profiler
from ..profile.records import ModelProfile
from .distributed import agree


@torch.compiler.disable
def count_at_first_forward(model: nn.Module, args: tuple, kwargs: dict) -> None:
    """Forward pre-hook. It asks the model for its controller, and so serves copies and pickles of the model too."""
    controller = model.__dict__[ATTRIBUTE]
    if controller.counting:
        return
    controller.counting = True
    try:
        with controller.disabled(), torch.inference_mode(False):
            profile = agree(profiler.profile(model, args, kwargs).to_dict())
            controller.adopt_profile(ModelProfile.from_dict(profile))
    finally:
        controller.counting = False
