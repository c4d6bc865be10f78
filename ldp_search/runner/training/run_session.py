"""All that one run holds: made from its settings, saved to a checkpoint, brought back from one."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from ...config.settings import Config, Settings
from ...core.bits.space import FULL_PRECISION
from ..io import checkpoint_files
from ..tasks import Task
from .ema import Ema
from .journal import Journal

CHECKPOINTS = "checkpoints"
LAYERS = "layers.json"  # what is counted of them, until allocation.json is there


@dataclass
class Session:
    """A run in progress. step: optimizer steps done. window: sums of `Task.measure` since the last line of metrics."""

    settings: Settings
    accelerator: Any
    task: Task
    model: nn.Module  # as Accelerate wrapped it
    ldp: Any
    optimizer: Any
    journal: Journal
    output: Path
    steps_per_epoch: int
    total_steps: int
    ema: Ema | None = None
    step: int = 0
    window: Tensor | None = None
    best: dict[str, Any] | None = None  # row of the best evaluation, for information: the last one is the result

    @property
    def config(self) -> Config:
        return self.settings.config

    @property
    def plain_model(self) -> nn.Module:
        """The model without wrappers, in eager mode: evaluation needs no gradients to be shared."""
        return self.ldp.model

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be continued."""
        here = {"processes": self.accelerator.num_processes, "data (fingerprint)": self.task.fingerprint}
        return self.settings.identity | here

    def place(self) -> dict[str, float]:
        return {"epoch": round(self.step / self.steps_per_epoch, 4), "progress": self.step / self.total_steps}

    def figures(self) -> dict[str, float]:
        """Cost and bits in force. Waits for the device."""
        cost = self.ldp.cost()
        rows = [list(row) for row in self.ldp.bits().values()]
        return {"cost": cost.relative, "mean_cost": cost.mean_relative, "mean_bits": _mean_bits(rows)}

    def figures_of_step(self) -> dict[str, float]:
        """`figures` of the step that was last: of the bits that it was computed with, which have moved on by now."""
        spent, progress = self.ldp.spent
        bits = self.ldp.trajectory.last
        cost = float(self.ldp.problem.to("cpu").relative_cost(bits.double()))
        return {"cost": cost, "mean_cost": spent / progress, "mean_bits": _mean_bits(bits.tolist())}


def _mean_bits(rows: list[list[int]]) -> float:
    """Over the weights and inputs that are quantized."""
    bits = [b for row in rows for b in row[:2] if b < FULL_PRECISION]
    return sum(bits) / max(1, len(bits))


def save_session(run: Session) -> None:
    """A checkpoint of everything. All processes take part, the main one writes.

    Raises:
        OSError: it cannot be written; earlier checkpoints are untouched.
    """
    mine = {"random": random_state(), "window": None if run.window is None else run.window.cpu()}
    everyone = gather_object([mine])
    if not run.accelerator.is_main_process:
        return
    state = {
        "identity": run.identity, "step": run.step, "best": run.best, "processes": everyone,
        "model": run.plain_model.state_dict(), "optimizer": run.optimizer.state_dict(), "ldp": run.ldp.state_dict(),
        "ema": None if run.ema is None else run.ema.state_dict(),
        "metrics": run.journal.text, "seconds": run.journal.seconds,
    }  # fmt: skip
    checkpoint_files.save(run.output / CHECKPOINTS, run.step, state)
    save_schedule(run)


def restore_session(run: Session, state: dict[str, Any]) -> None:
    """Bring back what `save_session` saved, but for the random state, which is to be the last (`set_random_state`)."""
    run.step, run.best = state["step"], state["best"]
    run.plain_model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.ldp.load_state_dict(state["ldp"])
    if run.ema is not None:
        run.ema.load_state_dict(state["ema"])
    window = state["processes"][run.accelerator.process_index]["window"]
    run.window = None if window is None else window.to(run.accelerator.device)


def save_schedule(run: Session) -> None:
    """schedule.parquet as far as the run is: a report can be made at any time."""
    partial = run.output / ".partial.schedule.parquet"
    try:
        run.ldp.trajectory.save(partial)
        partial.replace(run.output / "schedule.parquet")
    finally:
        partial.unlink(missing_ok=True)


def random_state() -> dict[str, Any]:
    """Every global random state of this process, as plain data and tensors."""
    kind, keys, *rest = np.random.get_state()
    state = {"python": random.getstate(), "numpy": (kind, keys.tolist(), *rest), "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`."""
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
