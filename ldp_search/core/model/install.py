"""Changing the classes of a model's modules, so that their products are computed by the sites of a controller."""

from __future__ import annotations

from torch import nn

from ..profile.records import ACTIVATIONS, CONSTANTS, GENERATED
from .interception import FullPrecisionLayer, InterceptedForward, InterceptionPlan
from .layers import FUSED, OrdinaryPath, QuantizedLayer
from .sites import outside, site_name
from .swap import ATTRIBUTE as RECORD
from .swap import swap

ATTRIBUTE = "_ldp_controller"  # in the model's __dict__


def install(controller) -> None:
    """Swap every module that has a SiteSpec or owns products; again when a profile has found more of them."""
    model, sites = controller.model, controller.searched_sites()
    owners = plans(controller, sites)
    for name, module in model.named_modules():
        spec, plan = controller.specs.get(name), owners.get(name)
        if spec is not None and spec.module is module:
            _install_layer(module, sites[name], bool(owners))
        elif plan is not None and isinstance(module, InterceptedForward):
            module.__dict__[RECORD] = plan
        elif plan is not None:
            swap(module, plan, InterceptedForward)
        if isinstance(module, FUSED) and not isinstance(module, OrdinaryPath):
            swap(module, module.__dict__.get(RECORD) or controller, OrdinaryPath)
    _follow_call_sites(controller)


def _install_layer(module: nn.Module, site, owners: bool) -> None:
    if isinstance(module, QuantizedLayer):
        module.__dict__[RECORD] = site
    elif site is not None:
        swap(module, site, QuantizedLayer)
    elif owners and not isinstance(module, FullPrecisionLayer):
        swap(module, None, FullPrecisionLayer)


def _follow_call_sites(controller) -> None:
    """Where a module runs more than once, a forward begins with its first call site, however the one before ended."""
    if "call_sites" not in controller.hooks and any(spec.call_sites > 1 for spec in controller.specs.values()):
        controller.hooks["call_sites"] = controller.model.register_forward_pre_hook(_first_call_sites)


def _first_call_sites(model: nn.Module, args: tuple) -> None:
    for site in model.__dict__[ATTRIBUTE].sites:
        site.call_site = 0


def plans(controller, sites: dict) -> dict[str, InterceptionPlan]:
    """{owner: plan} of every module that multiplies by itself; sites: {spec: its site, None where it is in full precision}."""
    modules, out = dict(controller.model.named_modules()), {}
    for owner, found in outside(controller.profile, controller.specs):
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
