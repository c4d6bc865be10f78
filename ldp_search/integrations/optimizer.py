"""LDP in a loop that one would rather not touch: its step rides on the optimizer's, its state in the optimizer's state dict."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from ..api import controller

KEY = "ldp"  # in the optimizer's state dict


def attach_to_optimizer(model: nn.Module, optimizer: Optimizer, total_steps: int | Callable[[], int]) -> None:
    """Take the LDP step of `model` at every `optimizer.step()`, before the optimizer's own; call it once, after `apply`.

    The optimizer's state dict then carries the LDP state, so whatever saves and loads the one saves and loads the other.
    For policies that do not read the training loss. Steps that a GradScaler skips are not counted; the gradients of the
    bits come with its scale, which 'learned' with a target cost does not mind.

    Args:
        total_steps: optimizer steps of the whole training; a function where the loop learns it later than its optimizer.

    Raises:
        LookupError: `apply` was never called. ValueError: the policy reads the loss, or the optimizer is taken already.
        While training, ValueError: more steps than `total_steps`, or a loaded optimizer state that has no LDP state.
    """
    ldp = controller(model)
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper
    if ldp.policy.needs_loss:
        raise ValueError(
            f"The policy {ldp.policy.name!r} reads the training loss, which an optimizer does not know: call "
            "ldp.step(progress, loss=loss.detach()) in the loop instead, or take another policy."
        )
    if getattr(optimizer, "_ldp_attached", False):
        raise ValueError("LDP is attached to this optimizer already: call attach_to_optimizer once.")
    optimizer._ldp_attached = True

    def before_step(optimizer, args, kwargs):
        total = total_steps() if callable(total_steps) else total_steps
        if ldp.trajectory.seen >= total:
            raise ValueError(
                f"The training was to take total_steps={total} optimizer steps, but another one follows: give the steps of "
                "the whole training, all epochs together."
            )
        ldp.step((ldp.trajectory.seen + 1) / total, optimizer=optimizer)

    def add_state(optimizer, state):
        return {**state, KEY: ldp.state_dict()}

    def take_state(optimizer, state):
        if KEY not in state:
            raise ValueError(
                "The optimizer's state must carry the LDP state; this one was saved without attach_to_optimizer. Start the "
                "search anew without loading it, or load it before attaching."
            )
        ldp.load_state_dict(state[KEY])
        return {key: value for key, value in state.items() if key != KEY}

    optimizer.register_step_pre_hook(before_step)
    optimizer.register_state_dict_post_hook(add_state)
    optimizer.register_load_state_dict_pre_hook(take_state)
