"""What every export needs of a model, checked before any work."""

from __future__ import annotations

from ...core.bits.space import FULL_PRECISION
from ...core.controller.checks import not_finite
from ...core.model.interception import InterceptionPlan
from ...core.model.swap import ATTRIBUTE
from ..onnx.integer_codes import CONTAINER_BITS


def check_frozen(ldp) -> None:
    """ValueError while the bits can still move."""
    if not ldp.frozen:
        raise ValueError("Export needs integer bits for good, but they can still move: call ldp.finalize(loader) first.")


def check_ranges(ldp, highest: int) -> None:
    """ValueError unless weights and ranges are finite, and those of each layer that ran with at most `highest` bits known."""
    broken = not_finite(ldp)
    if broken:  # first: where nothing is finite, no range was ever seen
        raise ValueError(
            f"Export needs finite weights and input ranges; those of {', '.join(broken[:10])} are not: the training "
            "diverged. Train again with a smaller learning rate, or export an earlier checkpoint."
        )
    bits = ldp.bits()
    unknown = [
        site.name
        for site, spec in zip(ldp.sites, ldp.specs.values(), strict=True)
        if spec.module is not None and spec.kind != "Embedding" and spec.calls and max(bits[site.name][:2]) <= highest
        if not site.ranges[:, 3].all()
    ]
    if unknown or not ldp.profiled:
        listed = ", ".join(unknown[:10]) or "any layer"
        raise ValueError(
            f"Export needs the range of every layer's input, but none is known of {listed}: train, or call "
            "ldp.finalize(loader) with some batches."
        )


def why_float(bits, spec, too_wide: str) -> str | None:
    """Why a layer has no form in 8-bit integers whatever the format; None: nothing speaks against it.

    too_wide: what is said of more bits than 8.
    """
    if bits.weight >= FULL_PRECISION:
        return "kept in full precision (skip)"
    if spec.module is None:
        return "its products are functions outside of a layer: operands stay unrounded"
    if spec.kind == "Embedding":
        return "its rows are looked up, not multiplied; they are at their bits"
    if max(bits.weight, bits.input) > CONTAINER_BITS:
        return f"{bits.weight} weight bits and {bits.input} input bits {too_wide}"
    return None


def read_outside(ldp) -> dict[str, str]:
    """{layer: why its input is not rounded} of layers whose weight is multiplied elsewhere than in their own forward."""
    plans = ((name, module.__dict__.get(ATTRIBUTE)) for name, module in ldp.model.named_modules())
    owners = {
        site.name: name or "the model" for name, plan in plans if isinstance(plan, InterceptionPlan) for site in plan.sites()
    }
    return {
        name: f"{owners[name]} multiplies by its weight outside of its own forward: weight at its bits, input unrounded"
        for name, spec in ldp.specs.items()
        if spec.module is not None and name in owners
    }
