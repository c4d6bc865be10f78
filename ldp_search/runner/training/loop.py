"""The training loop: one for every kind of task, on one device or many.

`training_step` is the method's step in full. Around it: the stream of batches, a line of metrics now and then, an evaluation
an epoch, a checkpoint a minute.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import send_to_device

from ...config.settings import interval
from ..tasks.metrics import metric
from .batches import eval_loader, train_loader
from .optimizers import lr_factor
from .run_session import Session, save_session
from .stopping import Stopped, StopRequest


class Diverged(ArithmeticError):
    """The loss or the weights are no longer finite; the message says since when and what to do."""


def training_step(run: Session, parts: list[Any]) -> None:
    """One optimizer step, on a batch computed in parts. The bits move between backward and the weights' own step."""
    mean_loss = torch.zeros((), device=run.accelerator.device)
    for batch in parts:
        with run.accelerator.accumulate(run.model):
            loss, sums = run.task.measure(run.model, batch)
            run.accelerator.backward(loss)
            run.window = sums if run.window is None else run.window + sums
            mean_loss += loss.detach() / len(parts)
            if run.accelerator.sync_gradients:
                if run.config.clip_norm is not None:
                    run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.clip_norm)
                run.ldp.step((run.step + 1) / run.total_steps, mean_loss, run.optimizer)
            run.optimizer.step()
            run.optimizer.zero_grad()
    if run.ema is not None:
        run.ema.update()


def fit(run: Session, request: StopRequest, on_evaluate: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Train from `run.step` to the end.

    Args:
        request: looked at between steps. on_evaluate: called with the row of each evaluation; what it raises ends the run.

    Raises:
        Diverged, Stopped; OSError when the disk is full. Checkpoints made so far stay.
    """
    config, rank, world = run.config, run.accelerator.process_index, run.accelerator.num_processes
    unit, every = interval(config.checkpoint_every)
    log_every = config.log_every or min(100, math.ceil(run.total_steps / 400))
    stream = iter(train_loader(run.task, config, run.step, run.total_steps, rank, world))
    saved_at = time.monotonic()
    run.model.train()
    while run.step < run.total_steps:
        _set_lr(run)
        parts = list(itertools.islice(stream, config.accumulate))
        training_step(run, [send_to_device(part, run.accelerator.device, non_blocking=True) for part in parts])
        run.step += 1
        run.journal.bar.update(1)
        last = run.step == run.total_steps
        due = unit == "steps" and run.step % max(1, int(every)) == 0
        if run.step % log_every == 0 or last:
            due = _log(run, unit == "seconds" and time.monotonic() - saved_at >= every) or due
        if run.step % (run.steps_per_epoch * config.eval_every) == 0 or last:
            row = evaluate(run, "eval")
            if (
                run.best is None
                or not math.isfinite(run.best[run.task.metric])
                or metric(run.task.metric).better(row[run.task.metric], run.best[run.task.metric])
            ):
                run.best = row
            if on_evaluate is not None:
                on_evaluate(row)
        if due or last or request.number:
            _save(run)
            saved_at = time.monotonic()
        if request.number:
            raise Stopped(request.number)


def _set_lr(run: Session) -> None:
    for group in run.optimizer.param_groups:
        group["lr"] = run.config.lr * lr_factor(run.config, run.step / run.total_steps) * group.get("lr_scale", 1.0)


def _log(run: Session, due: bool) -> bool:
    """A line on the steps since the last one; tells whether the main process wants a checkpoint. Waits for the device."""
    sums = torch.cat([run.window, run.window.new_tensor([float(due and run.accelerator.is_main_process)])])
    *sums, wanted = run.accelerator.reduce(sums, "sum").tolist()
    run.window = None
    metrics = run.task.metrics(sums)
    if not math.isfinite(metrics["loss"]):
        raise Diverged(f"The loss is {metrics['loss']} at step {run.step} of {run.total_steps}.")
    metrics["lr"] = run.optimizer.param_groups[0]["lr"]
    row = run.journal.row("train", run.step, run.place() | metrics | run.figures_of_step())
    run.journal.show(row)
    return wanted > 0


@torch.no_grad()
def evaluate(run: Session, split: str) -> dict[str, Any]:
    """Metrics on the evaluation set, at the bits in force; written as a line of metrics and returned."""
    model, accelerator = run.plain_model, run.accelerator
    model.eval()
    sums = None
    with run.ema.applied() if run.ema is not None and split != "final" else nullcontext():
        if accelerator.num_processes > 1:  # batch-norm statistics differ between processes; the main one's are those saved
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        for batch in eval_loader(run.task, run.config, accelerator.process_index, accelerator.num_processes):
            found = run.task.measure(model, send_to_device(batch, accelerator.device, non_blocking=True))[1]
            sums = found if sums is None else sums + found
    model.train()
    metrics = run.task.metrics(accelerator.reduce(sums, "sum").tolist())
    row = run.journal.row(split, run.step, run.place() | metrics | run.figures())
    name, when = run.task.metric, "final bits" if split == "final" else f"epoch {row['epoch']:g}"
    run.journal.say(
        f"{when}: {name} {row[name]:.4g}, loss {row['loss']:.4f}, {row['mean_bits']:.2f} bits, "
        f"cost {row['cost']:.3f}, averaged {row['mean_cost']:.3f}"
    )
    return row


def _save(run: Session) -> None:
    """A checkpoint, unless there is nothing worth to go on from."""
    state = run.plain_model.state_dict()
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise Diverged(f"Not all weights are finite at step {run.step} of {run.total_steps}: {', '.join(bad[:3])}.")
    save_session(run)
