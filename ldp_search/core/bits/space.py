"""The search space: which bits are searched, in which range, by which policy, under which cost.

A space is plain data, the same in Python, in a YAML file of `search_spaces/` and on the command line.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..messages import did_you_mean, warn_renamed
from ..registry import build, current_name, describe
from .latency import LatencyTable

ACTIVATIONS = ("exact", "16bit")
ACCOUNTINGS = ("exact", "published")

MAX_BITS = 16
"""The most bits a code may have: fp32 arithmetic holds codes of up to 24 bits exactly, 16 keeps a margin for ranges."""
FULL_PRECISION = 32
"""Bits counted for a layer that is left in full precision."""

BitRange = tuple[float, float]
"""(lowest, highest) bits, whole numbers; equal where the bits are fixed."""
BitsOfKinds = tuple[float, ...]
"""Bits of weight, input and gradient."""


@dataclass
class SearchSpace:
    """What `apply` searches.

    Bits are given as a pair (lowest, highest) or as one integer, which fixes them. Component fields (`policy`,
    `relaxation`, the quantizers, `backend`) are a name or a mapping ``{"name": ..., option: value}``.
    """

    policy: Any = "learned"  # rule giving the bits over time: learned, static, ramp, cyclic, progressive, random, replay
    bits: Any = (3, 8)  # range of weight and input bits
    weight_bits: Any = None  # range of the weight bits alone, where it differs from `bits`
    input_bits: Any = None  # range of the input bits alone, where it differs from `bits`
    grad_bits: Any = 8  # bits of the gradient of each layer's output; 32 leaves it unquantized
    split_gradient: bool = False  # dL/dx and dL/dw take gradients of bits of their own
    tie: bool = False  # weights and inputs of a layer share their bits (the paper)
    granularity: str = "layer"  # bits shared by: network, block or layer
    relaxation: Any = "round"  # from real-valued bits to those in force: round, interpolate, sample
    weight_quantizer: Any = "minmax"
    input_quantizer: Any = "minmax"
    grad_quantizer: Any = "stochastic"
    target_cost: float | None = None  # mean training cost over the run, relative to the highest bits; None: no budget
    cost_weight: float | None = None  # price of the cost in the objective, instead of a budget
    target_inference: float | None = None  # most inference operations of the final bits, relative to the highest bits
    target_size: float | None = None  # most MiB that the weights take at the final bits
    target_latency: float | None = None  # most predicted latency of the final bits, relative to the highest bits; by `latency`
    latency: Any = None  # measured on the device by `python -m ldp_search.profile`: the table's file, or what is in it
    containers: Any = None  # the numbers of bits that a device has: a list, or cpu-int8, gpu-int4, packed; None: any number
    accounting: str = "exact"  # exact: gradients that are never computed cost nothing; published: every layer pays for both
    skip: list[str] = field(default_factory=list)  # name patterns left in full precision (counted at 32 bits)
    fixed: dict[str, Any] = field(default_factory=dict)  # name pattern -> bits outside the search, e.g. {"*head": 8}
    attention: bool = False  # quantize products of two activations too: attention's query-key and weights-value products
    embeddings: bool = False  # quantize the rows that nn.Embedding looks up
    min_coverage: float = 0.0  # refuse a model of which a smaller share of the MACs would be quantized
    backend: Any = "simulate"  # how quantized products are computed: simulate, int8, reference
    activations: str = "exact"  # what is kept of them for backward: exact, or 16bit (codes of every large fp32 tensor)
    sense_every: int = 16  # steps between two measurements: of what rounding costs the loss, and of the best clipping bounds
    seed: int = 0  # of everything random that the policy and the relaxation draw

    def __post_init__(self):
        self._check_types()
        self._read_latency()
        self.skip = [self.skip] if isinstance(self.skip, str) else list(self.skip)
        self.bits = bit_range(self.bits, "bits")
        self.weight_bits = self.bits if self.weight_bits is None else bit_range(self.weight_bits, "weight_bits")
        self.input_bits = self.bits if self.input_bits is None else bit_range(self.input_bits, "input_bits")
        self.grad_bits = bit_range(self.grad_bits, "grad_bits", full=True)
        self.fixed = {pattern: bit_range(bits, f"fixed[{pattern!r}]", full=True) for pattern, bits in self.fixed.items()}
        for pattern, (low, high) in self.fixed.items():
            if low != high:
                raise ValueError(f"fixed[{pattern!r}] must be one number of bits; received the range ({low}, {high}).")
        for name, known in (("granularity", GRANULARITIES), ("activations", ACTIVATIONS), ("accounting", ACCOUNTINGS)):
            if (word := getattr(self, name)) not in known:
                raise ValueError(f"Unknown {name} {word!r}.{did_you_mean(word, known)}")
        if self.tie and self.weight_bits != self.input_bits:
            raise ValueError(
                f"tie=True shares bits between weights and inputs, so their ranges must be equal; received "
                f"weight_bits={self.weight_bits} and input_bits={self.input_bits}. Give `bits` alone, or tie=False."
            )
        if self.target_cost is not None and not 0 < self.target_cost <= 1:
            raise ValueError(f"target_cost must be in (0, 1], relative to the highest bits; received {self.target_cost}.")
        if self.cost_weight is not None and self.cost_weight < 0:
            raise ValueError(f"cost_weight must be >= 0; received {self.cost_weight}.")
        if self.target_cost is not None and self.cost_weight is not None and self.cost_weight > 0:
            raise ValueError("target_cost and cost_weight exclude each other: a budget sets its own price. Give one.")
        for name in ("target_inference", "target_latency"):
            if (most := getattr(self, name)) is not None and not 0 < most <= 1:
                raise ValueError(f"{name} must be in (0, 1], relative to the highest bits; received {most}.")
        if self.target_size is not None and not 0 < self.target_size < math.inf:
            raise ValueError(f"target_size is in MiB of weights, above 0; received {self.target_size}.")
        if not 0 <= self.min_coverage <= 1:
            raise ValueError(f"min_coverage must be in [0, 1]; received {self.min_coverage}.")
        if self.sense_every < 1:
            raise ValueError(f"sense_every must be a number of steps, 1 at least; received {self.sense_every}.")
        for name, kind in COMPONENT_KINDS.items():
            build(kind, getattr(self, name))  # an unknown name or option fails here, before any work
        self._check_containers()
        self._check_latency()

    def _check_types(self) -> None:
        """Plain fields hold what their names promise; a word where a number belongs is a mistake in a file."""
        number = (int, float)
        wanted: dict[str, tuple[type | tuple[type, ...], str]] = {
            **dict.fromkeys(("tie", "split_gradient", "attention", "embeddings"), (bool, "true or false")),
            **dict.fromkeys((*MAY_BE_NONE, "min_coverage"), (number, "a number")),
            **dict.fromkeys(("seed", "sense_every"), (int, "a whole number")),
            "fixed": (dict, "a mapping of name patterns to bits"),
            **dict.fromkeys(("granularity", "activations", "accounting"), (str, "a word")),
        }
        for name, (types, words) in wanted.items():
            value = getattr(self, name)
            if value is None and name in MAY_BE_NONE:
                continue
            if not isinstance(value, types) or (types is not bool and isinstance(value, bool)):
                raise ValueError(f"{name} must be {words}; received {value!r}.")

    def _check_containers(self) -> None:
        """Raises ValueError where weights or inputs could have no bits that a container holds."""
        if (widths := self.widths) is None:
            return
        if build("relaxation", self.relaxation).interpolates:
            raise ValueError(
                f"relaxation={self.relaxation} mixes two numbers of bits, which no container holds; give relaxation=round, or "
                "containers=None."
            )
        for name in ("weight_bits", "input_bits"):
            within_containers(getattr(self, name), widths, name)
        for pattern, (bits, _) in self.fixed.items():
            if bits != FULL_PRECISION:
                within_containers((bits, bits), widths, f"fixed[{pattern!r}]")

    def _read_latency(self) -> None:
        """The table's content in the place of its file, so that a space can be sent; its containers where none are given."""
        if self.latency is None:
            if self.target_latency is not None:
                raise ValueError(
                    f"target_latency={self.target_latency} needs what the device takes: latency=TABLE.json, made there by "
                    "python -m ldp_search.profile model=... output=TABLE.json."
                )
            return
        table = LatencyTable.load(self.latency) if isinstance(self.latency, str | Path) else LatencyTable.of(self.latency)
        self.latency = table.content
        if self.containers is None:
            self.containers = table.searched_containers(MAX_BITS)

    def _check_latency(self) -> None:
        """Raises ValueError where no choice of bits changes the latency."""
        if self.target_latency is None or self.latency_table is None or self.widths is None:
            return
        low, high = (
            max(end(within_containers(bits, self.widths, name)) for name, bits in self._forward()) for end in (min, max)
        )
        slots, has = self.latency_table.containers, self.latency_table.searched_containers(MAX_BITS)
        if not any(low <= width < high for width in slots):
            raise ValueError(
                f"target_latency needs bits in several containers of the table, {list(slots)} ({FULL_PRECISION} is floating "
                f"point, for more bits than the others have); weight_bits={self.weight_bits} and input_bits={self.input_bits} "
                f"with containers={list(self.widths)} lie in one. Widen them: bits=[{has[0]},{MAX_BITS}] "
                f"containers=[{','.join(map(str, has))}]."
            )

    def _forward(self) -> tuple[tuple[str, BitRange], ...]:
        return ("weight_bits", self.weight_bits), ("input_bits", self.input_bits)

    @property
    def latency_table(self) -> LatencyTable | None:
        """What `latency` holds."""
        return None if self.latency is None else LatencyTable.of(self.latency)

    @property
    def widths(self) -> tuple[int, ...] | None:
        """The numbers of bits of `containers`, ascending."""
        return None if self.containers is None else container_widths(self.containers)

    @classmethod
    def from_dict(cls, values: dict) -> SearchSpace:
        """A space from plain data; an unknown key is an error with the nearest names."""
        values, known = current_words(values), {f.name for f in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise ValueError(f"Unknown field {key!r} of a search space.{did_you_mean(key, known)}")
        return cls(**values)

    def replace(self, **overrides) -> SearchSpace:
        """This space with some fields changed; ranges derived from `bits` follow it."""
        values = self._values()
        if "bits" in overrides:
            for name in ("weight_bits", "input_bits"):
                if values[name] == values["bits"]:
                    values[name] = None
        if overrides.get("target_cost") is not None:
            values["cost_weight"] = None
        if overrides.get("cost_weight") is not None:
            values["target_cost"] = None
        return SearchSpace.from_dict(values | overrides)

    def to_dict(self) -> dict:
        """Plain data, fit for YAML and JSON, that `from_dict` takes."""
        return {name: describe(v) if dataclasses.is_dataclass(v) else v for name, v in self._values().items()}

    def _values(self) -> dict:
        return {f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in dataclasses.fields(self)} | {
            "fixed": {pattern: bits[0] for pattern, bits in self.fixed.items()}
        }


def current_words(values: dict) -> dict:
    """Settings in which fields and words of earlier versions are the current ones, each with a line of warning."""
    values = dict(values)
    if "saved" in values:
        value = values.pop("saved")
        word = "16bit" if value == "half" else value
        warn_renamed(f"saved={value}", f"activations={word}")
        values.setdefault("activations", word)
    policy = values.get("policy")
    if isinstance(policy, str):
        values["policy"] = current_name("policy", policy)
    elif isinstance(policy, dict) and isinstance(policy.get("name"), str):
        values["policy"] = policy | {"name": current_name("policy", policy["name"])}
    return values


GRANULARITIES = ("network", "block", "layer")
FINAL_BUDGETS = ("target_inference", "target_size", "target_latency")
"""The fields that bound the final bits, each in a unit of its own (`bits.limits`)."""
MAY_BE_NONE = ("target_cost", "cost_weight", *FINAL_BUDGETS)
PROFILES = {"cpu-int8": (8, 16), "gpu-int4": (4, 8), "packed": (2, 4, 8)}
"""{name: containers}: integer products of x86 with VNNI; tensor cores from Turing to Ada; whole codes in a byte."""
COMPONENT_KINDS = {
    "policy": "policy",
    "relaxation": "relaxation",
    "weight_quantizer": "quantizer",
    "input_quantizer": "quantizer",
    "grad_quantizer": "grad_quantizer",
    "backend": "backend",
}
"""{field of the space that holds a component: its kind}."""


def bit_range(value: Any, field_name: str, full: bool = False) -> BitRange:
    """(lowest, highest) bits from a pair or a number.

    Raises:
        ValueError: not within 2 to 16 (or 32, where `full` precision is allowed), or in the wrong order.
    """
    try:
        low, high = (value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        low, high = float(low), float(high)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{field_name} must be one number or a pair (lowest, highest); received {value!r}.") from error
    if full and low == high == FULL_PRECISION:
        return low, high
    if not 2 <= low <= high <= MAX_BITS or low != int(low) or high != int(high):
        also = f", or {FULL_PRECISION} for full precision" if full else ""
        raise ValueError(f"{field_name} must be integers with 2 <= lowest <= highest <= {MAX_BITS}{also}; received {value!r}.")
    return low, high


def container_widths(value: Any) -> tuple[int, ...]:
    """Ascending numbers of bits from a profile's name, a number or a list of them.

    Raises:
        ValueError: an unknown name, or no whole numbers of 2 to 16.
    """
    if isinstance(value, str):
        if value not in PROFILES:
            raise ValueError(f"Unknown containers {value!r}.{did_you_mean(value, PROFILES)} Or a list of bits, e.g. [4, 8].")
        return PROFILES[value]
    listed = [value] if isinstance(value, int | float) else value
    whole = isinstance(listed, list | tuple) and all(isinstance(b, int | float) and b == int(b) for b in listed)
    if not whole or not listed or any(isinstance(b, bool) or not 2 <= b <= MAX_BITS for b in listed):
        raise ValueError(
            f"containers are whole numbers of bits of 2 to {MAX_BITS}, e.g. [4, 8, 16], or one of {list(PROFILES)}; "
            f"received {value!r}."
        )
    return tuple(sorted({int(b) for b in listed}))


def within_containers(bits: BitRange, widths: tuple[int, ...], field_name: str) -> BitRange:
    """The (lowest, highest) container of a range.

    Raises:
        ValueError: there is none in it.
    """
    found = [float(width) for width in widths if bits[0] <= width <= bits[1]]
    if not found:
        raise ValueError(
            f"{field_name} must reach a container of {list(widths)}; received ({bits[0]:g}, {bits[1]:g}). Widen it, or give "
            "other containers."
        )
    return found[0], found[-1]
