"""How long the ways take, one after the other in turn, so that what else the machine does falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .peers import Way
from .subject import Subject

MOST_SECONDS = 60  # of the turns of one size of batch


class Latency(NamedTuple):
    """Milliseconds of a forward: median, and half of the middle half's range."""

    ms: float
    spread: float


@torch.no_grad()
def latencies(
    subject: Subject, ways: list[Way], sizes: list[int], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[int, Latency]]:
    """{way: {batch size: latency}} of the ways that run, on this machine as torch's threads are set. A way that fails on a size
    has none of it. clock: in seconds; with one thread, time.process_time leaves out what others do on a busy machine.
    """
    out: dict[str, dict[int, Latency]] = {way.name: {} for way in ways}
    for size in sizes:
        inputs = subject.inputs(size)
        runs = {way.name: way.module for way in ways if way.module is not None and way.timed}
        warm = {name: seconds for name, module in runs.items() if (seconds := _warmed(module, inputs, clock)) is not None}
        turns = max(2, min(rounds, int(MOST_SECONDS / max(1e-6, sum(warm.values())))))
        times: dict[str, list[float]] = {name: [] for name in warm}
        for _ in range(turns):
            for name, seconds in times.items():
                seconds.append(_seconds(runs[name], inputs, clock))
        for name, seconds in times.items():
            out[name][size] = _latency(seconds)
    return out


def _warmed(module: torch.nn.Module, inputs: Any, clock: Callable[[], float]) -> float | None:
    """Seconds of a second call; None where it does not run."""
    try:
        _seconds(module, inputs, clock)
        return _seconds(module, inputs, clock)
    except Exception:  # parity has said why
        return None


def _seconds(module: torch.nn.Module, inputs: Any, clock: Callable[[], float]) -> float:
    args, kwargs = inputs
    start = clock()
    module(*args, **kwargs)
    return clock() - start


def _latency(seconds: list[float]) -> Latency:
    ordered = sorted(seconds)
    quarter = len(ordered) // 4
    return Latency(statistics.median(ordered) * 1e3, (ordered[-1 - quarter] - ordered[quarter]) / 2 * 1e3)
