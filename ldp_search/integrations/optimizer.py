"""LDP in a loop that one would rather not touch: its step rides on the optimizer's, its state in the optimizer's state dict."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from ..api import controller
from ..core.controller.controller import Controller
from ..core.messages import warn
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
    _Hooks(ldp, total_steps).register(optimizer)


class _Hooks:
    """Of one optimizer. total_steps: as in `attach_to_optimizer`.

    loaded: a controller's state, to be taken over when the optimizer has its own. stand: where that training stood, to be
    checked at the next step.
    """

    def __init__(self, ldp: Controller, total_steps: int | Callable[[], int]):
        self.ldp, self.total_steps = ldp, total_steps
        self.loaded: dict | None = None
        self.stand: Stand | None = None

    def register(self, optimizer: Optimizer) -> None:
        optimizer.register_step_pre_hook(self.before_step)
        optimizer.register_state_dict_post_hook(self.add_state)
        optimizer.register_load_state_dict_pre_hook(self.take_state)
        optimizer.register_load_state_dict_post_hook(self.both_taken)

    def before_step(self, optimizer, args, kwargs) -> None:
        total, seen = self.total_steps() if callable(self.total_steps) else self.total_steps, self.ldp.trajectory.seen
        if self.stand is not None:
            saved, self.stand = self.stand, None
            _check_length(saved, total)
        if seen >= total:
            raise ValueError(
                f"The training was to take total_steps={total} optimizer steps, but another one follows: give the steps of "
                "the whole training, all epochs together."
            )
        self.ldp.step((seen + 1) / total, optimizer=optimizer)

    def add_state(self, optimizer, state: dict) -> dict:
        return {**state, KEY: self.ldp.state_dict()}

    def take_state(self, optimizer, state: dict) -> dict:
        if KEY not in state:
            raise ValueError(
                "The optimizer's state must carry the LDP state; this one was saved without attach_to_optimizer. Start the "
                "search anew without loading it, or load it before attaching."
            )
        saved, before = stand_of(state[KEY]), self.ldp.state_dict()
        if not callable(self.total_steps):  # else the loop may not know it yet
            _check_length(saved, self.total_steps)
        self.ldp.load_state_dict(state[KEY])  # on trial: the optimizer may still refuse its part, and then neither is loaded
        self.ldp.load_state_dict(before)
        self.loaded, self.stand = state[KEY], saved
        return {key: value for key, value in state.items() if key != KEY}

    def both_taken(self, optimizer) -> None:
        loaded, self.loaded = self.loaded, None
        if loaded is not None:
            self.ldp.load_state_dict(loaded)


def _warn_of_second(ldp) -> None:
    warn(
        f"The bits of this model took {ldp.trajectory.seen} steps with another optimizer, and go on from there. For a "
        "training from the start (a retry with a smaller batch, say) call ldp_search.remove(model) and "
        "ldp_search.apply(model, ...) before.",
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
        warn(
            f"The loaded optimizer state stands at {saved}, but {here}: the bits jump ahead to there, and the mean cost may "
            f"miss its target. To go on without a jump give total_steps={saved.total}.",
        )
