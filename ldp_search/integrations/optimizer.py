"""LDP in a loop that one would rather not touch: its step rides on the optimizer's, its state in the optimizer's state dict."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from ..api import controller
from .length import Stand, stand_of

KEY = "ldp"  # in the optimizer's state dict
_attached: weakref.WeakSet = weakref.WeakSet()  # controllers that ride on an optimizer, or did


def attach_to_optimizer(model: nn.Module, optimizer: Optimizer, total_steps: int | Callable[[], int]) -> None:
    """Take the LDP step of `model` at every `optimizer.step()`, before the optimizer's own; call it once, after `apply`.

    The optimizer's state dict then carries the LDP state, so whatever saves and loads the one saves and loads the other.
    For policies that do not read the training loss. Steps that a GradScaler skips are not counted; the gradients of the
    bits come with its scale, which 'learned' with a target cost does not mind.

    Args:
        total_steps: optimizer steps of the whole training; a function where the loop learns it later than its optimizer.

    Raises:
        LookupError: `apply` was never called. ValueError: the policy reads the loss, or the optimizer is taken already.
        While training, ValueError: more steps than `total_steps`, or a loaded optimizer state that has no LDP state or is of a
        shorter training.
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
    if ldp in _attached and ldp.trajectory.seen:
        _warn_of_second(ldp)
    optimizer._ldp_attached = True
    _attached.add(ldp)
    loaded: dict = {}  # "state": to be taken over when the optimizer has its own; "stand": to be checked at the next step

    def before_step(optimizer, args, kwargs):
        total = total_steps() if callable(total_steps) else total_steps
        if "stand" in loaded:
            _check_length(loaded.pop("stand"), total)
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
        saved, before = stand_of(state[KEY]), ldp.state_dict()
        if not callable(total_steps):  # else the loop may not know it yet
            _check_length(saved, total_steps)
        ldp.load_state_dict(state[KEY])  # on trial: the optimizer may still refuse its part, and then neither is loaded
        ldp.load_state_dict(before)
        loaded.update(state=state[KEY], stand=saved)
        return {key: value for key, value in state.items() if key != KEY}

    def both_taken(optimizer):
        ldp.load_state_dict(loaded.pop("state"))

    optimizer.register_step_pre_hook(before_step)
    optimizer.register_state_dict_post_hook(add_state)
    optimizer.register_load_state_dict_pre_hook(take_state)
    optimizer.register_load_state_dict_post_hook(both_taken)


def _warn_of_second(ldp) -> None:
    warnings.warn(
        f"The bits of this model took {ldp.trajectory.seen} steps with another optimizer, and go on from there. For a "
        "training from the start (a retry with a smaller batch, say) call ldp_search.remove(model) and "
        "ldp_search.apply(model, ...) before.",
        stacklevel=3,
    )


def _check_length(saved: Stand, total: int) -> None:
    """A loaded training has the length of the one that was saved: longer is refused, much shorter is warned of."""
    here = f"this training has total_steps={total}, of which step {saved.step} is {saved.step / total:.0%}"
    if saved.too_far_for(saved.step + 1, total):
        raise ValueError(
            "Bits follow the share of the training that is done, which cannot go back: the loaded optimizer state stands at "
            f"{saved}, but {here}. Give attach_to_optimizer total_steps={saved.total} (the epochs and the batch size of the "
            "first training). For a longer training start the search anew, without loading the optimizer's state."
        )
    if saved.jumps_in(saved.step + 1, total):
        warnings.warn(
            f"The loaded optimizer state stands at {saved}, but {here}: the bits jump ahead to there, and the mean cost may "
            f"miss its target. To go on without a jump give total_steps={saved.total}.",
            stacklevel=3,
        )
