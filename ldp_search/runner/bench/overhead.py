"""What a step costs against the plain step, measured once at the start of a run, without a trace in its result."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from accelerate.utils import send_to_device

from ..training.batches import TrainKeys
from ..training.run_session import Session, random_state, set_random_state
from .timing import Times, interleaved, timed

ROUNDS = 2
STEPS = 2 * (1 + ROUNDS)
LONGEST = 10.0
"""Seconds that the measurement may take; also at most a twentieth of the run's steps."""


def overhead(run: Session) -> str | None:
    """A line on the time of a step with and without LDP; None where it is not wanted or would take too long.

    Not in several processes, whose steps wait for each other, nor compiled, nor when a run goes on.
    """
    config, where = run.config, run.accelerator
    wanted = config.overhead and not config.compile and where.num_processes == 1 and run.step == 0
    if not wanted or run.total_steps < 20 * STEPS:
        return None
    random, ldp = random_state(), run.ldp.state_dict()
    buffers = [buffer.clone() for buffer in run.plain_model.buffers()]
    try:
        times = _measure(run)
    finally:
        for parameter in run.plain_model.parameters():
            parameter.grad = None
        with torch.no_grad():
            for buffer, value in zip(run.plain_model.buffers(), buffers, strict=True):
                buffer.copy_(value)
        run.ldp.load_state_dict(ldp)
        set_random_state(random)
    if times is None:
        return None
    times, sensing = times
    plain, with_ldp = times.seconds
    every = run.ldp.space.sense_every
    with_ldp += (sensing - with_ldp) / every if sensing else 0.0
    both = f"{_seconds(with_ldp)} against {_seconds(plain)}, without the optimizer"
    also = f"; one in {every}, which measures, {_seconds(sensing)}" if sensing else ""
    return f"a step takes {with_ldp / plain:.2f}x of the plain step ({both}{also})"


def _measure(run: Session) -> tuple[Times, float | None] | None:
    """Both ways of an ordinary step, and the seconds of one that measures damages, where there are such."""
    keys = TrainKeys(run.task.train_size, run.config.batch_size, run.config.accumulate, run.config.seed, 0, 1, 0, 1)
    parts = [send_to_device(run.task.batch(indices, epoch), run.accelerator.device) for epoch, indices in keys]

    def step(plain: bool) -> None:
        for part in parts:
            with run.ldp.disabled() if plain else nullcontext(), run.accelerator.autocast():
                loss, _ = run.task.measure(run.plain_model, part)
            loss.backward()

    run.plain_model.train()
    device = run.accelerator.device
    if timed(lambda: step(True), device) * STEPS > LONGEST:
        return None
    measures, run.ldp.sensing = run.ldp.sensing, False
    step(False)
    times = interleaved(lambda: step(True), lambda: step(False), ROUNDS, device)
    run.ldp.sensing = measures
    return times, timed(lambda: step(False), device) if measures else None


def _seconds(value: float) -> str:
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.2f} s"
