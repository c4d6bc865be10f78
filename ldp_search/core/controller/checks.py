"""What a controller refuses, each with its remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..bits.policies import Policy, Problem
from ..bits.space import FINAL_BUDGETS, SearchSpace
from ..bits.specs import Coverage
from ..messages import warn
from .distributed import local_part

if TYPE_CHECKING:
    from ..model.sites import SiteSpec
    from .controller import Controller

NEARLY_ALL = 0.99  # of a training: a few steps that a loop leaves out at its end are no matter


def check_learnable(policy: Policy, problem: Problem, space: SearchSpace) -> None:
    """Raises ValueError where a policy that learns by dL/dbits finds nothing that has one."""
    if not policy.needs_gradients:
        return
    if not problem.searched.any():
        raise ValueError(
            f"The policy {policy.name!r} learns bits, but every range is a single number "
            f"(bits={space.bits}, grad_bits={space.grad_bits}). Give a range such as bits=(3, 8), or policy='static'."
        )
    if problem.searched[:, 2:].any():
        raise ValueError(
            f"The loss has no gradient with respect to the gradient bits, so {policy.name!r} cannot learn them; "
            f"received grad_bits={space.grad_bits}. Give one number, e.g. grad_bits=8, or policy='learned'."
        )


def check_budgets(policy: Policy, space: SearchSpace) -> None:
    """Raises ValueError where a policy does not look at what a space demands of the bits."""
    asked = [name for name in FINAL_BUDGETS if getattr(space, name) is not None]
    if asked and not policy.keeps_limits:
        raise ValueError(
            f"The policy {policy.name!r} does not look at {' and '.join(asked)}; give {asked[0]}=None, or policy='learned'."
        )
    if space.containers is not None and not policy.takes_containers:
        raise ValueError(
            f"The policy {policy.name!r} moves bits by less than a container; give containers=None, or policy='learned'."
        )


def finite_loss(loss: Tensor, before: Tensor | None) -> Tensor:
    """A loss as policies read it: the last finite one where it is not finite itself; 1 where there is none yet."""
    return torch.where(loss.isfinite(), loss, torch.ones_like(loss) if before is None else before.to(loss))


def check_present(controller: Controller) -> None:
    """Raises RuntimeError where the controller was taken off its model."""
    if controller.removed:
        raise RuntimeError(
            "This controller was removed from its model and moves nothing: take the one of today, ldp_search.controller(model)."
        )


def warn_where_nothing_was_learned(controller: Controller) -> None:
    """Where bits that should have been searched are final as they began, were chosen without any measurement, or too early."""
    if controller.frozen or controller.policy.name == "static" or not controller.problem.searched.any():
        return
    progress = controller.spent[1]
    if progress == 0:
        what = "no ldp.step() was called, so they are those of the beginning. Call it once per optimizer step, after backward"
    elif controller.trajectory.seen and controller.sensor is not None and not controller.sensor.ready:
        what = "nothing was measured of what rounding costs. Train in training mode, with loss.backward() before ldp.step()"
    elif progress < NEARLY_ALL:
        warn(
            f"These bits are final at {progress:.0%} of the training: its last part, in which they come to rest and the budget "
            "is met, never ran. Let progress rise to 1, ldp.step((step + 1) / total_steps), with the steps that will be taken.",
        )
        return
    else:
        return
    warn(f"These bits were not learned; {what}.")


def not_finite(controller: Controller) -> list[str]:
    """Layers and products whose weights or input ranges are infinite or not a number. Waits for the device."""
    both = zip(controller.sites, controller.specs.values(), strict=True)
    return [s.name for s, spec in both if not all(bool(t.isfinite().all()) for t in (s.ranges, *_at_hand(spec)))]


def _at_hand(spec: SiteSpec) -> list[Tensor]:
    """What this process has of a site's weights; sharding leaves tensors behind whose memory is given back."""
    found = [local_part(w.detach()) for w in spec.held if not w.is_meta]
    return [w for w in found if w.untyped_storage().nbytes()]


def warn_where_diverged(controller: Controller) -> None:
    """At the end of a training, whose bits and weights are of no use where it diverged."""
    if broken := not_finite(controller):
        warn(
            f"The training diverged: weights or ranges of {len(broken)} of {len(controller.specs)} layers are infinite or "
            f"not a number ({', '.join(broken[:3])}{' ...' * (len(broken) > 3)}), so the bits mean nothing. Train again "
            "with a smaller learning rate, or with more bits.",
        )


def check_step(controller: Controller, progress: float, before: float, loss: Tensor | float | None) -> None:
    """Raises ValueError where a step comes out of order, or lacks what the policy reads. before: the progress so far."""
    check_present(controller)
    try:
        in_order = before < progress <= 1 + 1e-9
    except TypeError:  # no number at all
        in_order = False
    if not in_order:
        raise ValueError(
            f"progress must rise from 0 to 1, once per optimizer step; received {progress!r} after {before}. "
            "Pass (step + 1) / total_steps."
        )
    if controller.policy.needs_loss and loss is None and not controller.frozen:
        raise ValueError(
            f"The policy {controller.policy.name!r} reads the training loss: call ldp.step(progress, loss=loss.detach())."
        )
    if before > 0 and controller.trajectory.seen == 0 and not controller.frozen:
        warn(
            f"This training goes on at {before:.0%} without what it had measured and recorded until then: a folder of "
            "save_pretrained is for using and exporting a model. To go on with a training, save and load "
            "ldp_search.controller(model).state_dict().",
        )
    if not controller.profiled and before == 0:
        warn(
            "The first step comes before any operation was counted: costs take all layers alike, and products outside of "
            "layers are not quantized. Call the model itself (no part or method of it), or give apply() example_inputs.",
        )


def check_coverage(controller: Controller, found: Coverage | None = None) -> None:
    """Raises ValueError where less than the space's `min_coverage` is quantized. found: None: as the model is now."""
    space = controller.space
    if not controller.profiled or not space.min_coverage:
        return
    found = found or controller.coverage
    if found.share < space.min_coverage:
        listed = "\n".join(f"  {item.name}: {item.macs:,} MACs, {item.reason}" for item in found.left_out[:20])
        raise ValueError(
            f"min_coverage={space.min_coverage} of the MACs must be quantized, but only {found.share:.3f} is. "
            f"Left out:\n{listed}\nLower min_coverage, or take these layers out of `skip`."
        )
