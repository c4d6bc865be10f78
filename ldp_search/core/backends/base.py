"""What a backend is: how a quantized product is computed."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from ..registry import Component
from .call import Call


class Backend(Component, kind="backend"):
    """Base. A backend is a registered dataclass; its fields are its options. A new one defines `__call__`; the other methods
    are for those that remember something, such as a measurement.
    """

    @abstractmethod
    def __call__(self, call: Call) -> Tensor:
        """Q(x) * Q(w) + bias, differentiable in x, w, bias and both grids, with the gradient of the result quantized."""

    def report(self, names: list[str]) -> str:
        """A line for the user on how the layers `names` were computed; empty where there is nothing to say."""
        return ""

    def proposals(self) -> Any:
        """What this process found for itself, picklable; None, always and in every process: there is nothing to agree on."""
        return None

    def agree(self, proposals: list[Any]) -> None:
        """Take over what all processes proposed, listed by rank."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs, as plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, unless that was empty."""
