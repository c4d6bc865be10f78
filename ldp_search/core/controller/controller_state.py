"""What a controller holds, as plain data: for checkpoints from which a training goes on bitwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..messages import warn
from ..profile.records import ModelProfile
from . import counting

if TYPE_CHECKING:
    from .controller import Controller


def of(controller: Controller) -> dict:
    """The state: tensors on the CPU and plain data."""
    return {
        "layers": list(controller.specs),
        "weights": dict(zip(controller.specs, controller._weights, strict=True)),
        "trained": {name: list(flags) for name, flags in controller.trained.items()},
        "profile": controller.profile and controller.profile.to_dict(),
        "tensors": controller.tensors.state_dict(),
        "clip_optimizer": controller.tensors.optimizer_state(),
        "damage": None if controller.sensor is None else controller.sensor.state_dict(),
        "steps": controller._steps,
        "policy": controller.policy.state_dict(),
        "trajectory": controller.trajectory.state_dict(),
        "generator": controller.generator.get_state(),
        "progress": controller._progress,
        "loss": None if controller._loss is None else controller._loss.cpu().clone(),
        "frozen": controller.frozen,
        "backend": controller.backend.state_dict(),
    }


def load(controller: Controller, state: dict) -> None:
    """Take over what `of` gave; a ValueError where it is of another model or space (`controller_kept` undoes the rest).

    What has been counted stays counted: a state from before is taken as if the operations had been counted then.
    """
    missing = {"layers", "profile", "tensors", "policy", "trajectory", "progress"} - set(state)
    if missing:
        raise ValueError(f"The state must be what state_dict() gave; it lacks {sorted(missing)}.")
    _check_sizes(controller, state.get("weights", {}))  # before anything is adopted
    profile, flags = controller.profile, {name: tuple(each) for name, each in state.get("trained", {}).items()}
    if state["profile"] is None and profile is not None:
        counting.forget(controller)
        _take(controller, state)
        controller.adopt_profile(profile)
        return
    if profile is None and state["profile"] is not None:
        controller.adopt_profile(ModelProfile.from_dict(state["profile"]))
        controller.trained |= flags  # of these counts
    elif any(controller.trained.get(name, each) != each for name, each in flags.items()):
        warn(
            "The state is of a training in which other weights were frozen: what it has spent so far was counted by that.",
        )
    _take(controller, state)


def _check_sizes(controller: Controller, weights: dict[str, int]) -> None:
    """Raises ValueError where layers of the same names have other weights. weights: {site: elements} of a state."""
    here = dict(zip(controller.specs, controller._weights, strict=True))
    differing = [name for name, size in weights.items() if here.get(name, size) != size]
    other = [f"{name} ({weights[name]:,} weights, here {here[name]:,})" for name in differing]
    if other:
        names = sorted(set(here) ^ set(weights))[:10]
        what = f"these differ: {names}" if names else f"these have other sizes: {', '.join(other[:10])}"
        raise ValueError(f"The state must be of the same quantized layers; {what}.")


def _take(controller: Controller, state: dict) -> None:
    """Check a state against the layers as they are now, then copy it in."""
    names = list(controller.specs)
    if state["layers"] != names:
        other = sorted(set(state["layers"]) ^ set(names))
        raise ValueError(f"The state must be of the same quantized layers; these differ: {other[:10] or 'their order'}.")
    controller.tensors.load_state_dict(state["tensors"], state.get("clip_optimizer"))
    if controller.sensor is not None and state.get("damage"):
        controller.sensor.load_state_dict(state["damage"])
    controller.policy.load_state_dict(state["policy"])
    controller.trajectory.load_state_dict(state["trajectory"])
    controller.generator.set_state(state["generator"])
    if state.get("backend"):
        controller.backend.load_state_dict(state["backend"])
    controller._progress, controller.frozen = state["progress"], state["frozen"]
    controller._steps, loss = state.get("steps", 0), state.get("loss")  # a state from before may lack either
    controller._loss = None if loss is None else loss.to(controller.tensors.bits.device, copy=True)
    controller.sensing = controller.senses_at(controller._steps)
    controller.bind_views()
