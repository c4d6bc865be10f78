"""What the profiler finds, as plain data: what every module multiplies, and with which weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

ACTIVATIONS, GENERATED, CONSTANTS = "activations", "generated", "constants"
"""What a product without a weight multiplies: two activations; an input and a weight that depends on it; two weights."""


@dataclass
class ProductProfile:
    """Products of one kind that one module calls itself.

    weight: full name of the parameter or buffer that one operand is or comes from, or one of the three words above.
    operand: which one it is (0 or 1). shape: its trailing shape where it was computed from parameters first, else None.
    places: the calls, counted among all of that function and shape in that module, that have this computed weight.
    stacked: each call takes a part of it, and which ones depends on the data (experts). uncomputed: MACs of the products that
    would give each operand its gradient, and that training leaves out: nothing that is trained has gone into that operand.
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
    uncomputed: list[int] = field(default_factory=lambda: [0, 0])


@dataclass
class ModuleProfile:
    """What one module did itself (its children excluded), per sample. macs, other_macs: {operation: MACs}, all and those in no
    function that can be quantized where it is called. products: those that can.
    """

    macs: Counter = field(default_factory=Counter)
    other_macs: Counter = field(default_factory=Counter)
    products: list[ProductProfile] = field(default_factory=list)
    calls: int = 0
    input_numel: int = 0


@dataclass
class ModelProfile:
    """{module name: ModuleProfile}, and the inputs' shapes in words. Plain data, `to_dict` and back."""

    modules: dict[str, ModuleProfile]
    inputs: str = ""

    def to_dict(self) -> dict:
        modules = {
            name: vars(t)
            | {"macs": dict(t.macs), "other_macs": dict(t.other_macs), "products": [dict(vars(f)) for f in t.products]}
            for name, t in self.modules.items()
        }
        return {"modules": modules, "inputs": self.inputs}

    @classmethod
    def from_dict(cls, values: dict) -> ModelProfile:
        modules = {}
        for name, t in values["modules"].items():
            found = [ProductProfile(**f | {"shape": None if f["shape"] is None else tuple(f["shape"])}) for f in t["products"]]
            modules[name] = ModuleProfile(Counter(t["macs"]), Counter(t["other_macs"]), found, t["calls"], t["input_numel"])
        return cls(modules, values["inputs"])
