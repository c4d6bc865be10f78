"""A rehearsal before the training: one batch of everything that the run will do later, so that nothing fails hours into it.

A part of the first training batch forward and backward, a batch of the evaluation set with its metrics, a batch of those that
estimate statistics anew at the end, and what is written of the model, without writing it. Nothing of it stays: weights,
buffers, bits, ranges and random states are as they were, so that a training has the same numbers with it and without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object, send_to_device
from torch import nn

from ...config.overlay import ConfigError
from ...core.controller.distributed import agree_on_choices
from ...core.profile.sandbox import buffers_kept
from ..pretrained.ldp_json import make_record, to_text
from ..pretrained.recipe import recipe
from ..remedies import in_words
from .batches import TrainKeys
from .run_session import Session, random_state, set_random_state


def rehearse(run: Session) -> None:
    """Raises ConfigError, the same on every process, with the first thing that would fail later and what to do."""
    parts: dict[str, Callable[[Session], None]] = {
        "The first training step": _train,
        "The evaluation": _evaluate,
        "Estimating batch statistics at the end": _calibrate,
        "Saving the trained model": _save,
    }
    message = None
    with _as_before(run):
        for what, part in parts.items():
            try:
                part(run)
            except Exception as error:  # whatever a model of someone else's raises
                config, processes = run.config, run.accelerator.num_processes
                message = (
                    f"{what} fails on its first batch (batch_size={config.batch_size}, accumulate={config.accumulate}, "
                    f"eval_batch_size={config.eval_batch_size}, {processes} process{'es' if processes > 1 else ''}): "
                    f"{in_words(error)}\nNothing was trained or written."
                )
                break
    found = [text for text in gather_object([message]) if text is not None]
    if found:
        raise ConfigError(found[0])
    agree_on_choices(run.ldp.backend)


def _train(run: Session) -> None:
    config, rank, world = run.config, run.accelerator.process_index, run.accelerator.num_processes
    keys = TrainKeys(run.task.train_size, config.batch_size, config.accumulate, config.seed, 0, 1, rank, world)
    epoch, indices = next(iter(keys))
    run.plain_model.train()
    loss, sums = run.task.measure(run.plain_model, _on_device(run, run.task.batch(indices, epoch)))
    learning = [parameter for parameter in run.plain_model.parameters() if parameter.requires_grad]
    torch.autograd.grad(loss, learning, allow_unused=True)  # which leaves every .grad alone
    run.task.metrics(sums.tolist())


@torch.no_grad()
def _evaluate(run: Session) -> None:
    rank, world = run.accelerator.process_index, run.accelerator.num_processes
    indices = torch.arange(rank, run.task.eval_size, world)[: run.config.eval_batch_size]
    run.plain_model.eval()
    _, sums = run.task.measure(run.plain_model, _on_device(run, run.task.batch(indices, None)))
    run.task.metrics(sums.tolist())


@torch.no_grad()
def _calibrate(run: Session) -> None:
    """As `finalize` does: whole batches on one process, batch norms alone in training mode."""
    config = run.config
    epoch, indices = next(iter(TrainKeys(run.task.train_size, config.batch_size, 1, config.seed, 0, 1, 0, 1)))
    run.plain_model.eval()
    for module in run.plain_model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.train()
    run.task.measure(run.plain_model, _on_device(run, run.task.batch(indices, epoch)))


def _save(run: Session) -> None:
    if run.accelerator.is_main_process:
        how = recipe(run.plain_model, run.task.creation(run.config.model))
        to_text(make_record(run.ldp, how, {"bytes": 0, "sha256": ""}))


def _on_device(run: Session, batch):
    return send_to_device(batch, run.accelerator.device)


@contextmanager
def _as_before(run: Session) -> Iterator[None]:
    """What a forward or a batch changes is undone on leaving. What the backend measured of its speed stays."""
    state, random, modes = run.ldp.state_dict(), random_state(), _modes(run.plain_model)
    state.pop("backend", None)
    try:
        with buffers_kept(run.plain_model):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        run.ldp.load_state_dict(state)
        set_random_state(random)


def _modes(model: nn.Module) -> dict[nn.Module, bool]:
    return {module: module.training for module in model.modules()}
