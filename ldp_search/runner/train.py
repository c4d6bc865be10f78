"""The training loop: one for every kind of task, on one device or many.

`training_step` is the method's step in full. Around it: the stream of batches, a line of metrics now and then, an evaluation
an epoch, a checkpoint a minute.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from ..core.space import FULL_PRECISION
from .batches import eval_loader, train_loader
from .config_types import Interval
from .optimizers import lr_factor
from .run_state import Run
from .stopping import Stopped, StopRequest


class Diverged(ArithmeticError):
    """The loss or the weights are no longer finite; the message says since when and what to do."""


def training_step(run: Run, parts: list[Any]) -> None:
    """One optimizer step, on a batch computed in parts. The bits move between backward and the weights' own step."""
    mean_loss = torch.zeros((), device=run.accelerator.device)
    for batch in parts:
        with run.accelerator.accumulate(run.model):
            loss, sums = run.task.measure(run.model, batch)
            run.accelerator.backward(loss)
            mean_loss += loss.detach() / len(parts)
            run.window += sums
            if run.accelerator.sync_gradients:
                run.clip_gradients()
                run.ldp.step((run.step + 1) / run.total_steps, loss=mean_loss)
            run.optimizer.step()
            run.optimizer.zero_grad()
