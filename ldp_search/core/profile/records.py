"""What a census finds, as plain data: what every module multiplies, and with which weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

ACTIVATIONS, GENERATED, CONSTANTS = "activations", "generated", "constants"
"""What a product without a weight multiplies: two activations; an input and a weight that depends on it; two weights."""


@dataclass
class Found:
    """Products of one kind that one module calls itself.

    weight: full name of the parameter or buffer that one operand is or comes from, or one of the three words above.
    operand: which one it is (0 or 1). shape: its trailing shape where it was computed from parameters first, else None.
    places: the calls, counted among all of that function and shape in that module, that have this computed weight.
    stacked: each call takes a part of it, and which ones depends on the data (experts).
    """

    function: str
    weight: str
    operand: int | None = None
    shape: tuple | None = None
    stacked: bool = False
    places: list[int] = field(default_factory=list)
    macs: int = 0
    calls: int = 0
    input_numel: int = 0


@dataclass
class Tally:
    """What one module did itself (its children excluded), per sample. macs, rest: {operation: MACs}, all and those in no
    function that can be quantized where it is called. found: those that can.
    """

    macs: Counter = field(default_factory=Counter)
    rest: Counter = field(default_factory=Counter)
    found: list[Found] = field(default_factory=list)
    calls: int = 0
    input_numel: int = 0


@dataclass
class Survey:
    """The result of a census: {module name: Tally}, and the inputs' shapes in words. Plain data, `to_dict` and back."""

    tallies: dict[str, Tally]
    inputs: str = ""

    def to_dict(self) -> dict:
        tallies = {
            name: vars(t) | {"macs": dict(t.macs), "rest": dict(t.rest), "found": [dict(vars(f)) for f in t.found]}
            for name, t in self.tallies.items()
        }
        return {"tallies": tallies, "inputs": self.inputs}

    @classmethod
    def from_dict(cls, values: dict) -> Survey:
        tallies = {}
        for name, t in values["tallies"].items():
            found = [Found(**f | {"shape": None if f["shape"] is None else tuple(f["shape"])}) for f in t["found"]]
            tallies[name] = Tally(Counter(t["macs"]), Counter(t["rest"]), found, t["calls"], t["input_numel"])
        return cls(tallies, values["inputs"])
