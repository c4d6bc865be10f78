"""Coverage: which share of the multiply-accumulates is quantized, and why the rest is not. Nothing is skipped silently."""

from __future__ import annotations

from ..bits.specs import Coverage, LeftOut
from ..profile.records import ACTIVATIONS, CONSTANTS, Found, Survey
from .sites import Row, row_name

SKIPPED = "kept in full precision (skip)"
THE_MODEL = "(the model itself)"  # its name among its own modules is empty


def coverage(survey: Survey | None, rows: dict[str, Row], sites: dict, apart: dict[str, str]) -> Coverage:
    """sites: {row: None where it stays in full precision}. apart: {row or module: why it is in floating point}."""
    left: list[LeftOut] = []
    for name, tally in survey.tallies.items() if survey else ():
        label, row = name or THE_MODEL, rows.get(name)
        if row is not None and row.module is not None:
            if sites[name] is None or name in apart:
                left.append(LeftOut(label, sum(tally.macs.values()), SKIPPED if sites[name] is None else apart[name]))
            continue
        left += [
            LeftOut(label, macs, apart.get(name) or f"{op}: no product that can be quantized where it is called")
            for op, macs in tally.rest.items()
        ]
        for found in tally.found:
            reason = _reason(found, row_name(name, found), sites, apart)
            if reason is not None:
                left.append(LeftOut(label, found.macs, reason))
    total = sum(sum(t.macs.values()) for t in survey.tallies.values()) if survey else 0
    left = [item for item in left if item.macs]
    missing = sum(item.macs for item in left)
    return Coverage(1 - missing / total if total else 0.0, sorted(left, key=lambda item: -item.macs))


def _reason(found: Found, row: str | None, sites: dict, apart: dict[str, str]) -> str | None:
    """Why products are left out; None: they are not."""
    if found.weight == CONSTANTS:
        return f"{found.function} of two weights: nothing of a sample is in it"
    if row not in sites:
        if found.weight == ACTIVATIONS:
            return f"{found.function} of two activations; attention=True quantizes it"
        return f"{found.function}: met only after the training had begun"
    return SKIPPED if sites[row] is None else apart.get(row)
