"""Coverage: which share of the multiply-accumulates is quantized, and why the rest is not. Nothing is skipped silently."""

from __future__ import annotations

from ..bits.specs import Coverage, LeftOut
from ..profile.records import ACTIVATIONS, CONSTANTS, ModelProfile, ProductProfile
from .sites import SiteSpec, site_name

SKIPPED = "kept in full precision (skip)"
THE_MODEL = "(the model itself)"  # its name among its own modules is empty


def coverage(profile: ModelProfile | None, specs: dict[str, SiteSpec], sites: dict, apart: dict[str, str]) -> Coverage:
    """sites: {spec: None where it stays in full precision}. apart: {spec or module: why it is in floating point}."""
    left: list[LeftOut] = []
    for name, module_profile in profile.modules.items() if profile else ():
        label, spec = name or THE_MODEL, specs.get(name)
        if spec is not None and spec.module is not None:
            if sites[name] is None or name in apart:
                left.append(LeftOut(label, sum(module_profile.macs.values()), SKIPPED if sites[name] is None else apart[name]))
            continue
        left += [
            LeftOut(label, macs, apart.get(name) or f"{op}: no product that can be quantized where it is called")
            for op, macs in module_profile.other_macs.items()
        ]
        for found in module_profile.products:
            reason = _reason(found, site_name(name, found), sites, apart)
            if reason is not None:
                left.append(LeftOut(label, found.macs, reason))
    total = sum(sum(t.macs.values()) for t in profile.modules.values()) if profile else 0
    left = [item for item in left if item.macs]
    missing = sum(item.macs for item in left)
    return Coverage(1 - missing / total if total else 0.0, sorted(left, key=lambda item: -item.macs))


def _reason(found: ProductProfile, spec: str | None, sites: dict, apart: dict[str, str]) -> str | None:
    """Why products are left out; None: they are not."""
    if found.weight == CONSTANTS:
        return f"{found.function} of two weights: nothing of a sample is in it"
    if spec is None or spec not in sites:
        if found.weight == ACTIVATIONS:
            return f"{found.function} of two activations; attention=True quantizes it"
        return f"{found.function}: met only after the training had begun"
    return SKIPPED if sites[spec] is None else apart.get(spec)
