"""Whether a training that goes on has the length of the one that was saved: bits follow the share of it that is done."""

from __future__ import annotations

from typing import Any, NamedTuple


class Stand(NamedTuple):
    """Where a saved training stands: `step` of `total` optimizer steps, `progress` of its way; step 0 before the first."""

    step: int
    total: int
    progress: float

    def __str__(self) -> str:
        return f"{self.progress:.0%} of its training (step {self.step} of {self.total})"

    def too_far_for(self, next_step: int, total: int) -> bool:
        """Whether the next step would be no progress: the saved training was shorter."""
        return self.step > 0 and self.progress >= next_step / total

    def jumps_in(self, next_step: int, total: int) -> bool:
        """Whether the next step would be more than 2 % of the training further than it was to be: the saved one was longer."""
        return self.step > 0 and next_step / total - next_step / self.total > 0.02


def stand_of(state: dict[str, Any]) -> Stand:
    """Of what `controller.state_dict()` gave."""
    step, progress = state["trajectory"]["seen"], state["progress"]
    return Stand(step, round(step / progress) if progress else 0, progress)
