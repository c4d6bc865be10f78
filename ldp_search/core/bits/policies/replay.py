"""Replay: bits that were recorded, as a trajectory over progress or as one allocation."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import torch

from ...messages import did_you_mean
from ...registry import register
from ..allocation import Allocation
from ..trajectory import Trajectory
from .base import Policy


@register("policy", "replay")
@dataclass
class Replay(Policy):
    """path: a run's schedule.parquet (bits over progress) or allocation.json (its final bits, from the start)."""

    path: str = ""

    def begin(self):
        if str(self.path).endswith(".json"):
            layers = Allocation.load(self.path).layers
            names, progress = list(layers), [1.0]
            bits = torch.tensor([list(b) for b in layers.values()], dtype=torch.uint8, device="cpu")[None]
        elif self.path:
            trajectory = Trajectory.load(self.path)
            names, progress, bits = trajectory.layers, trajectory.progress, trajectory.bits
        else:
            raise ValueError("The policy 'replay' needs path=FILE: a run's schedule.parquet or allocation.json.")
        for name in self.problem.layers:
            if name not in names:
                raise ValueError(f"{self.path} has no bits for layer {name!r}.{did_you_mean(name, names)}")
        order = [names.index(name) for name in self.problem.layers]
        bits = _of_kinds(bits[:, order], self.problem.low.shape[1])
        self.state = {"progress": progress, "bits": bits.to(self.problem.low.device)}
        return self._at(0.0)

    def _at(self, progress: float):
        # A record's bits were in force up to its progress, so the step that begins now takes the first record that ends later.
        ends = self.state["progress"]
        index = min(bisect.bisect_right(ends, progress + 1e-9), len(ends) - 1)
        return self.state["bits"][index].to(self.problem.low.dtype)

    def step(self, signals):
        return self._at(signals.progress)


def _of_kinds(bits: torch.Tensor, kinds: int) -> torch.Tensor:
    """Records (records, layers, 3 or 4) as a space has them: one gradient's bits stand for both, of two the higher for one."""
    if bits.shape[2] == kinds:
        return bits
    if kinds == 4:
        return torch.cat([bits, bits[..., 2:]], 2)
    return torch.cat([bits[..., :2], bits[..., 2:].amax(2, keepdim=True)], 2)
