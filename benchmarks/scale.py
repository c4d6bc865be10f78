"""What the controller costs as a model or a training grows: `ldp.step` at up to 10,000 layers, a trajectory of a million steps.

OMP_NUM_THREADS=1 python benchmarks/scale.py
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

import ldp_search
from ldp_search.core.bits.trajectory import Trajectory


def step_ms(layers: int, policy: str) -> float:
    """Median of 50 steps of the controller alone, gradients of the bits given."""
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)])
    options = {"target_cost": 0.5} if policy == "learned" else {}
    ldp_search.apply(model, "ldp", example_inputs=torch.randn(4, 8), policy=policy, **options)
    ldp, times = ldp_search.controller(model), []
    for turn in range(50):
        ldp.parameters()["bits"].grad.normal_()
        start = time.perf_counter()
        ldp.step(0.03 + turn / 100)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def trajectory(steps: int, layers: int) -> str:
    """Time and memory of that many records, a part of which is measured at the start and at the end."""
    record, bits, marks = Trajectory([str(i) for i in range(layers)]), torch.full((layers, 3), 5.0), []
    for turn in range(steps):
        if turn in (0, 100_000, steps - 100_000):
            marks.append(time.perf_counter())
        record.append((turn + 1) / steps, bits)
    end = time.perf_counter()
    first, last = (marks[1] - marks[0]) / 1e5 * 1e6, (end - marks[-1]) / 1e5 * 1e6
    kept = record._rows.numel() + 8 * len(record.progress)
    assert record.progress[0] == 1 / steps and record.progress[-1] == 1.0
    return (
        f"{steps:,} steps of {layers} layers: {first:.1f} us a step at first, {last:.1f} us at the end; {len(record):,} "
        f"records, {kept / 2**20:.2f} MiB; first and last step exact"
    )


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    for layers in (100, 1000, 10_000):
        print(f"ldp.step, {layers:>6,} layers: " + ", ".join(f"{p} {step_ms(layers, p):.2f} ms" for p in ("learned", "static")))
    print(trajectory(1_000_000, 25))


if __name__ == "__main__":
    main()
