"""Changing the classes of a model's modules, so that their products are computed by the sites of a controller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ..profile.records import ACTIVATIONS, CONSTANTS, GENERATED
from .interception import FullPrecisionLayer, InterceptedForward, InterceptionPlan
from .layers import FUSED, OrdinaryPath, QuantizedLayer
from .patched import intercept
from .sites import outside, site_name
from .swap import ATTRIBUTE as RECORD
from .swap import swap

if TYPE_CHECKING:
    from ..controller.controller import Controller
    from .site import Site

ATTRIBUTE = "_ldp_controller"  # in the model's __dict__


def install(controller: Controller) -> None:
    """Swap every module that has a SiteSpec or owns products; again when a profile has found more of them."""
    model, sites = controller.model, controller.searched_sites()
    owners = plans(controller, sites)
    for name, module in model.named_modules():
        spec, plan = controller.specs.get(name), owners.get(name)
        layer = None if spec is None else spec.module
        if layer is not None and layer is module:
            _install_layer(layer, sites[name], bool(owners))
        elif plan is not None:
            own(module, plan)
        if isinstance(module, FUSED) and not isinstance(module, OrdinaryPath):
            swap(module, module.__dict__.get(RECORD) or controller, OrdinaryPath)
    _follow_call_sites(controller)


def own(module: nn.Module, plan) -> None:
    """Have the products of a module's own forward computed as the plan says, also beneath a forward that somebody patched."""
    if isinstance(module, InterceptedForward):
        module.__dict__[RECORD] = plan
    else:
        swap(module, plan, InterceptedForward)
    intercept(module, InterceptedForward.run)


def _install_layer(module: nn.Module, site, owners: bool) -> None:
    if isinstance(module, QuantizedLayer):
        module.__dict__[RECORD] = site
    elif site is not None:
        swap(module, site, QuantizedLayer)
    elif owners and not isinstance(module, FullPrecisionLayer):
        swap(module, None, FullPrecisionLayer)


def _follow_call_sites(controller: Controller) -> None:
    """Where a module runs more than once, a forward begins with its first call site, however the one before ended."""
    if "call_sites" not in controller.hooks and any(spec.call_sites > 1 for spec in controller.specs.values()):
        controller.hooks["call_sites"] = controller.model.register_forward_pre_hook(_first_call_sites)


def _first_call_sites(model: nn.Module, args: tuple) -> None:
    for site in model.__dict__[ATTRIBUTE].sites:
        site.call_site = 0


def plans(controller: Controller, sites: dict[str, Site | None]) -> dict[str, InterceptionPlan]:
    """{owner: plan} of every module that multiplies by itself; sites: {spec: its site, None where it is in full precision}."""
    modules: dict[str, nn.Module] = dict(controller.model.named_modules())
    out: dict[str, InterceptionPlan] = {}
    for owner, _, found in outside(controller.profile, controller.specs):
        site = sites.get(site_name(owner, found) or "")
        plan = out.setdefault(owner, InterceptionPlan(owner, controller))
        if found.weight == ACTIVATIONS:
            plan.activations = site
        elif found.weight == GENERATED:
            plan.generated[found.function] = site
        elif found.weight != CONSTANTS:
            if found.shape is not None:
                places = plan.computed.setdefault((found.function, found.operand, found.shape), {})
                places |= dict.fromkeys(found.places, site)
            else:
                path, _, attribute = found.weight.rpartition(".")
                plan.tensors.append((modules[path], attribute, site))
    return out
