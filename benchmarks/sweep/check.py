"""The invariants: what must hold for every model of the zoo that a search space is applied to.

`check(sample)` runs all of them on one model and gives {name of check: "" or a short reason}, with the numbers measured on the
way. Only `space()` knows how the package is asked to quantize products outside of layers too.
"""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable

import ldp_search

from . import measure
from .running import backward, distance, outputs, same
from .sample import Sample

CLOSE = 2e-3  # relative difference at 16 bits that needs no yardstick
TIMES_YARDSTICK = 10
DRAWS = 8  # of noise


class Failed(Exception):
    """An invariant does not hold."""


def space(attention: bool = True) -> dict:
    """Overrides of `apply` that reach products outside of layers, as today's package spells them."""
    fields = ldp_search.SearchSpace.__dataclass_fields__
    if "attention" in fields:
        return {"attention": attention}
    return {"functions": attention}


def apply(sample: Sample, attention: bool = True, **overrides):
    """`apply` on a sample's model, by default with bits that take gradients; returns the controller."""
    overrides = overrides if "space" in overrides else {"space": "bit_gradient"} | overrides
    ldp_search.apply(sample.model, example_inputs=sample.inputs, **space(attention), **overrides)
    return ldp_search.controller(sample.model)


def static(sample: Sample, bits: int):
    return apply(sample, space="static", bits=bits, grad_bits=32)


class Case:
    """One model going through the checks; what a check has found out serves those after it."""

    def __init__(self, sample: Sample):
        self.sample, self.model, self.inputs = sample, sample.model, sample.inputs
        self.numbers: dict = {}

    # 1
    def plain(self) -> None:
        """The model without ldp_search runs, twice the same, forward and backward, in finite numbers."""
        self.evaluated = outputs(self.model, self.inputs)
        if not self.evaluated:
            raise Failed("no floating-point output")
        if difference := same(outputs(self.model, self.inputs), self.evaluated):
            raise Failed(f"not deterministic in evaluation: {difference}")
        if any(x.isnan().any() for x in self.evaluated):
            raise Failed("outputs are not numbers")
        self.trained = outputs(self.model, self.inputs, training=True)
        self.repeatable = same(outputs(self.model, self.inputs, training=True), self.trained) == ""
        start = time.perf_counter()
        bad = measure.not_finite(self.model, self.inputs)
        self.numbers["plain_step"] = round(time.perf_counter() - start, 3)
        if bad:
            raise Failed(f"gradients are not finite: {bad[:3]}")

    # 2, 5, 6
    def off(self) -> None:
        """`apply` keeps names and tensors; disabled, the outputs are the original's, exactly, in both modes."""
        before, named = measure.tensors_by_name(self.model), measure.parameters_by_name(self.model)
        self.classes = measure.anatomy(self.model)
        apply(self.sample)
        self.applied = True
        if (after := measure.tensors_by_name(self.model)) != before:
            raise Failed(f"state_dict changed: {measure.changes(before, after)}")
        if (after := measure.parameters_by_name(self.model)) != named:
            raise Failed(f"named_parameters changed: {measure.changes(named, after)}")
        with ldp_search.controller(self.model).disabled():
            if difference := same(outputs(self.model, self.inputs), self.evaluated):
                raise Failed(f"evaluation: {difference}")
            if self.repeatable and (difference := same(outputs(self.model, self.inputs, training=True), self.trained)):
                raise Failed(f"training: {difference}")

    def coverage(self) -> None:
        """Shares of the multiply-accumulates (with a plain swap by type for comparison). Nothing may be uncounted."""
        ldp = self._applied()
        self.numbers["coverage"] = round(ldp.coverage.share, 5)
        self.numbers["left_out"] = [[x.name, x.macs, x.reason] for x in ldp.coverage.left_out[:5]]
        self.numbers |= measure.macs(self.model, self.inputs, ldp)
        self._remove()
        self.numbers["coverage_layers"] = round(apply(self.sample, attention=False).coverage.share, 5)
        self._remove()
        if not self.numbers["macs_flops"]:
            raise Failed("no operation that torch's FlopCounterMode knows")

    def macs(self) -> None:
        """The profile agrees with torch's FlopCounterMode (attention by its mathematical form, where all is counted)."""
        counted, torchs = self.numbers["macs"] - self.numbers["macs_unknown"], self.numbers["macs_flops"]
        batches = {1} | {x.shape[0] for x in measure.input_tensors(self.inputs) if x.dim()}
        if not any(abs(counted * batch - torchs) <= 0.01 * torchs + 100 * batch for batch in batches):
            raise Failed(
                f"{counted:,} a sample against {torchs:,} a batch of {sorted(batches)}: ratio {torchs / max(counted, 1):.3f}"
            )

    # 4
    def gradients(self) -> None:
        """A training step gives finite gradients, and one for the bits of every layer that took part."""
        ldp = self._applied()
        self.model.zero_grad()
        start = time.perf_counter()
        with measure.watched(ldp) as seen:
            backward(self.model, self.inputs)
        self.numbers["step"] = round(time.perf_counter() - start, 3)
        bad = [n for n, p in self.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        grad = ldp.parameters()["bits"].grad.clone()
        if bad or not grad.isfinite().all():
            raise Failed(f"gradients are not finite: {bad[:3] or 'of the bits'}")
        silent = measure.silent_rows(ldp, grad, seen)
        self.numbers["rows"], self.numbers["exempt"] = len(ldp.layers), silent.exempt
        ldp.step(0.5)
        self.model.zero_grad()
        if silent.rows:
            raise Failed(f"no gradient for the bits of {len(silent.rows)} of {len(ldp.layers)} layers: {silent.rows[:3]}")

    # 8
    def copies(self) -> None:
        """A deep copy and a pickle of the applied model give its outputs."""
        self._applied()
        expected = outputs(self.model, self.inputs)
        for kind, duplicate in (("deepcopy", copy.deepcopy), ("pickle", lambda m: pickle.loads(pickle.dumps(m)))):
            try:
                other = duplicate(self.model)
            except Exception as error:
                if not _also_plain(self, duplicate):
                    raise Failed(f"{kind}: {_short(error)}") from error
                self.numbers.setdefault("notes", []).append(f"{kind}: the plain model cannot either")
                continue
            if difference := same(outputs(other, self.inputs), expected):
                raise Failed(f"{kind}: {difference}")

    # 7
    def remove(self) -> None:
        """`remove` gives the original classes, attributes and outputs back."""
        self._applied()
        self._remove()
        if (after := measure.anatomy(self.model)) != self.classes:
            raise Failed(f"left behind: {measure.changes(self.classes, after)}")
        if difference := same(outputs(self.model, self.inputs), self.evaluated):
            raise Failed(difference)

    # 3
    def close(self) -> None:
        """At 16 bits the outputs are the original's within rounding; at 8 bits they are finite, and how near is noted."""
        static(self.sample, 16)
        found = {16: outputs(self.model, self.inputs)}
        self._remove()
        static(self.sample, 8)
        found[8] = outputs(self.model, self.inputs)
        self._remove()
        for bits, values in found.items():
            if any(x.isnan().any() for x in values):
                raise Failed(f"outputs at {bits} bits are not numbers")
        errors = {bits: distance(values, self.evaluated) for bits, values in found.items()}
        self.numbers["error_16"], self.numbers["error_8"] = errors[16], errors[8]
        if errors[16] > CLOSE:
            yardstick = self.numbers["yardstick_16"] = max(self._noise(16))
            if (
                errors[16] > TIMES_YARDSTICK * yardstick
                and not self._falls_with_bits(errors[16])
                and not self._jumps(errors[16])
            ):
                raise Failed(f"16 bits are off by {errors[16]:.2g}, noise of the size of 16-bit rounding by {yardstick:.2g}")

    def _noise(self, bits: int) -> list[float]:
        """The yardstick's errors, least first: a few draws, since near a tie only some of them make a choice fall otherwise."""
        errors = (measure.rounding_noise(self.model, self.inputs, self.evaluated, bits, draw) for draw in range(DRAWS))
        return sorted(errors)

    def _jumps(self, error: float) -> bool:
        """Whether noise of 12 bits moves the outputs as far in some draws and hardly in others: a choice near a tie."""
        least, *_, most = self.numbers["noise_12"] = self._noise(12)
        return most > error / 2 and least < error / 50

    def _falls_with_bits(self, error: float) -> bool:
        """Whether four bits less make at least four times the error: then it is rounding, of values of very unequal sizes."""
        static(self.sample, 12)
        coarse = distance(outputs(self.model, self.inputs), self.evaluated)
        self._remove()
        self.numbers["error_12"] = coarse
        return coarse > 4 * error

    def _applied(self):
        if ldp_search.core.find_controller(self.model) is None:
            apply(self.sample)
        return ldp_search.controller(self.model)

    def _remove(self) -> None:
        ldp_search.remove(self.model)


CHECKS = ("plain", "off", "gradients", "copies", "remove", "coverage", "macs", "close")


def check(sample: Sample, names: tuple[str, ...] = CHECKS) -> dict:
    """Run the checks on one model: {"checks": {name: "" or reason}, "numbers": {...}}. Without `plain` no other can be."""
    case, results = Case(sample), {}
    for name in names:
        results[name] = _run(getattr(case, name))
        if name == "plain" and results[name]:
            break
        if results[name] and ldp_search.core.find_controller(sample.model) is not None and name != "off":
            _run(case._remove)
    return {"checks": results, "numbers": case.numbers}


def _run(function: Callable) -> str:
    try:
        function()
    except Failed as failed:
        return str(failed)
    except Exception as error:
        return _short(error)
    return ""


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _also_plain(case: Case, duplicate: Callable) -> bool:
    """Whether the plain model cannot be duplicated either."""
    ldp_search.remove(case.model)
    try:
        duplicate(case.model)
    except Exception:
        return True
    finally:
        apply(case.sample)
    return False


def one(name: str) -> dict:
    """The result of one model of the zoo: {"name", "class", "checks", "numbers"}, or an "error" where it cannot be built."""
    from . import zoo

    start = time.perf_counter()
    try:
        sample = zoo.make(name)
    except Exception as error:
        return {"name": name, "error": _short(error)}
    result = {"name": name, "class": sample.class_name} | check(sample)
    return result | {"seconds": round(time.perf_counter() - start, 1)}
