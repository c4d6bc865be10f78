"""What a controller holds, as plain data: for checkpoints from which a training goes on bitwise."""

from __future__ import annotations

import copy

from ..profile.records import ModelProfile

TENSORS = ("_bits", "_grads", "_ranges", "_clips", "_clip_grads", "_spent")


def of(controller) -> dict:
    """The state: tensors on the CPU and plain data."""
    return {
        "layers": list(controller.specs),
        "profile": controller.profile and controller.profile.to_dict(),
        "tensors": {name: getattr(controller, name).detach().cpu().clone() for name in TENSORS},
        "clip_optimizer": copy.deepcopy(controller._clip_optimizer.state_dict()),
        "policy": controller.policy.state_dict(),
        "trajectory": controller.trajectory.state_dict(),
        "generator": controller.generator.get_state(),
        "progress": controller._progress,
        "frozen": controller.frozen,
    } | ({"backend": controller.backend.state_dict()} if hasattr(controller.backend, "state_dict") else {})


def load(controller, state: dict) -> None:
    """Take over what `of` gave; a ValueError where it is of another model or space."""
    missing = {"layers", "profile", "tensors", "policy", "trajectory", "progress"} - set(state)
    if missing:
        raise ValueError(f"The state must be what state_dict() gave; it lacks {sorted(missing)}.")
    if not controller.profiled and state["profile"] is not None:
        controller.adopt_profile(ModelProfile.from_dict(state["profile"]))
    names = list(controller.specs)
    if state["layers"] != names:
        other = sorted(set(state["layers"]) ^ set(names))
        raise ValueError(f"The state must be of the same quantized layers; these differ: {other[:10] or 'their order'}.")
    if state["tensors"]["_clips"].shape != controller._clips.shape:
        raise ValueError("The state must be of the same search space: one of the two has learned clips, the other has not.")
    for name, value in state["tensors"].items():
        if getattr(controller, name).shape != value.shape:
            raise ValueError(
                f"The state must be of the same layers, counted on inputs that use them alike; {name} is of shape "
                f"{tuple(value.shape)} there and {tuple(getattr(controller, name).shape)} here."
            )
    for name, value in state["tensors"].items():
        getattr(controller, name).copy_(value)
    controller._clip_optimizer.load_state_dict(copy.deepcopy(state["clip_optimizer"]))  # it would keep the very tensors
    controller.policy.load_state_dict(state["policy"])
    controller.trajectory.load_state_dict(state["trajectory"])
    controller.generator.set_state(state["generator"])
    if "backend" in state and hasattr(controller.backend, "load_state_dict"):
        controller.backend.load_state_dict(state["backend"])
    controller._progress, controller.frozen = state["progress"], state["frozen"]
    controller._bind_views()
