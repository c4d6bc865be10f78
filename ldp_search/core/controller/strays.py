"""No silent float: what of a search is no longer, or was never, reached by the model's forward, and what came in beside it.

Layers are replaced (`reset_classifier`), classes changed back, forwards patched after `apply`, layers added. Each is found by
looking at the model as it is now and at what its forwards have reached, and is named: in the coverage, in `ldp.summary()`,
and as a warning at the first step (what was not reached, some steps later), at `finalize`, when a model is saved and when it is
exported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from ..messages import warn
from ..model.interception import InterceptionPlan
from ..model.layers import kind_of
from ..model.patched import is_patched
from ..model.site import Site
from ..model.sites import trained_weights
from ..model.swap import ATTRIBUTE, Swapped
from ..products.foreign import foreign_weight

if TYPE_CHECKING:
    from .controller import Controller

MOST_NAMES = 8
PATIENCE = 10  # steps of a process after which a layer that no forward has reached is named: models skip layers at random


class Strays(NamedTuple):
    """lost: {site: why its products are in floating point}. unreached: sites that no forward with quantization on has reached,
    though others were. newcomers: layers that came in after `apply` and are in floating point.
    """

    lost: dict[str, str]
    unreached: list[str]
    newcomers: list[str]


def find_strays(controller: Controller) -> Strays:
    """Look at the model as it is now."""
    searched = {name: site for name, site in controller.searched_sites().items() if site is not None}
    places, lost, unreached = _places(controller.model), dict(controller.bypassed), []
    ran = any(site.seen for site in searched.values())
    for name, site in searched.items():
        reason = _lost(name, controller, places.get(name, []), ran and not site.seen)
        if reason is not None:
            lost[name] = reason
        elif ran and not site.seen and name not in lost:
            unreached.append(name)
    return Strays(lost, unreached, _newcomers(controller))


def apart(controller: Controller) -> dict[str, str]:
    """{site or module: why its products are in floating point, as the model is now}, for the coverage."""
    others = [(name, m) for name, m in controller.model.named_modules() if name not in controller.specs and kind_of(type(m))]
    foreign = {name: foreign_weight(module) for name, module in others}
    return {name: reason for name, reason in foreign.items() if reason} | find_strays(controller).lost


def _places(model: nn.Module) -> dict[str, list[nn.Module]]:
    """{site: the modules in the model whose forward asks its site}."""
    places: dict[str, list[nn.Module]] = {}
    for module in model.modules():
        for name in names_of(module.__dict__.get(ATTRIBUTE)):
            places.setdefault(name, []).append(module)
    return places


def names_of(record) -> set[str]:
    """The sites that a module's record (a site, a plan) leads to."""
    if isinstance(record, InterceptionPlan):
        return {site.name for site in record.sites()}
    return {record.name} if isinstance(record, Site) else set()


def _lost(name: str, controller: Controller, modules: list[nn.Module], unseen: bool) -> str | None:
    if not modules:
        held = dict(controller.model.named_modules()).get(name)
        now = "it is no longer in the model" if held is None else f"a {type(held).__name__} has taken its place"
        return f"since apply() {now}"
    changed = [module for module in modules if not isinstance(module, Swapped)]
    if len(changed) == len(modules):
        return f"since apply() its class was changed to {type(changed[0]).__name__}"
    if unseen and all(is_patched(module) for module in modules):
        return "since apply() its forward was replaced by one that does not call it"
    return None


def _newcomers(controller: Controller) -> list[str]:
    if not controller.profiled:
        return []  # what stands under a patched forward is found by counting
    known, new = {id(row.module) for row in controller.specs.values()}, []
    for name, module in controller.model.named_modules():
        kind = None if isinstance(module, Swapped) or id(module) in known or name in controller.specs else kind_of(type(module))
        if kind is not None and (kind != "Embedding" or controller.space.embeddings) and foreign_weight(module) is None:
            new.append(name)
    return new


def warn_of_strays(controller: Controller) -> None:
    """Name them, where there are any."""
    warn_of_changes(controller)
    warn_of_unreached(controller)


def warn_of_unreached(controller: Controller) -> None:
    """Name the layers that no forward has reached."""
    used = [name for name in find_strays(controller).unreached if controller.specs[name].macs]
    if used:
        warn(
            f"Layers of the model are reached by no forward so far, though their operations were counted: {some(used)}. Where "
            "the model skips layers at random there is nothing to do. Otherwise train by the forward that was counted, or call "
            "ldp_search.remove(model) and ldp_search.apply(model, ..., example_inputs=...) with inputs as in training."
        )


def warn_of_changes(controller: Controller) -> None:
    """Name what was taken out of the search since `apply`, and what came in beside it."""
    found = find_strays(controller)
    parts = [f"{name} ({reason})" for name, reason in found.lost.items()]
    if parts:
        _warn(f"in floating point, though they are part of the search: {some(parts)}")
    if found.newcomers:
        _warn(f"in floating point, since they came in after apply(): {some(found.newcomers)}")


def refrozen(controller: Controller) -> list[str]:
    """The sites whose weights were frozen or unfrozen since operations were counted, where the costs depend on it."""
    if not controller.profiled or controller.space.accounting != "exact":
        return []
    now = trained_weights(controller.specs.values())
    return [name for name, flags in now.items() if controller.trained.get(name, flags) != flags]


def warn_where_frozen(controller: Controller) -> None:
    """Name, each once, the sites that `refrozen` finds: the costs do not know it."""
    changed = refrozen(controller)
    new, controller.named_refrozen = set(changed) - controller.named_refrozen, set(changed)
    if new:
        warn(
            f"Weights were frozen or unfrozen after apply(); their costs are those of before: {some(sorted(new))}. "
            "Freeze first, then apply: ldp_search.remove(model), ldp_search.apply(model, ...).",
        )


def _warn(what: str) -> None:
    warn(
        f"Layers of the model are {what}. Call ldp_search.remove(model) and ldp_search.apply(model, ...) after the last change "
        "of the model, or ldp_search.controller(model).summary() to see all.",
    )


def some(parts: list[str]) -> str:
    """Names in a line, the first few of many."""
    more = f" and {len(parts) - MOST_NAMES} more" if len(parts) > MOST_NAMES else ""
    return ", ".join(part or "(the model itself)" for part in parts[:MOST_NAMES]) + more
