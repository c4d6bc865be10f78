"""The training of one cell: the same loop for every row, network and device, resumable at any step."""

from __future__ import annotations

import copy
import inspect
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ldp_search

from .cells import Cell
from .costs import costs_of, costs_of_fp32, training_bitops
from .data import open_data
from .graphs import steps_of
from .networks import NETWORKS

DRAWS = 1_000_003  # seed of what quantizers draw, apart from that of the weights


class Diverged(ArithmeticError):
    """The training loss is no number any more."""


class Training:
    """Model, data, optimizer and controller of one cell, and the loop.

    replayed: allocation.json that the row replays. graph: CUDA graphs.
    """

    def __init__(self, cell: Cell, folder: Path, device: torch.device, replayed: str | None = None, graph: bool = True):
        self.cell, self.recipe, self.device = cell, cell.recipe, device
        self.data = open_data(folder, self.recipe, cell.seed, device, cell.limit)
        torch.manual_seed(cell.seed)  # the weights: the same for all rows of a seed
        self.model = NETWORKS[cell.network].build(self.data.pixels, self.recipe.classes)
        self.ldp, self.macs, space = None, 0.0, cell.space(replayed)
        if space is None:
            self.macs = _count_macs(self.model, self.data.example())
        else:  # on the host, where a forward computed twice is the same to the digit, as `apply` checks
            space |= {"accounting": "published"}  # as in the lines: rows are compared at equal published cost
            ldp_search.apply(self.model, ldp_search.SearchSpace.from_dict(space), example_inputs=self.data.example())
            self.ldp = ldp_search.controller(self.model)
            self.ldp.to(device)
        self.model.to(device, memory_format=torch.channels_last)
        self.optimizer = _optimizer(self.model, self.recipe, device)
        self.tells_optimizer = self.ldp is not None and "optimizer" in inspect.signature(self.ldp.step).parameters
        self.steps = steps_of(self.model, self.data, self.optimizer, graph)
        self.step, self.curve = 0, []
        self.seconds = self.cpu_seconds = 0.0  # in the loop, over all resumes
        torch.manual_seed(DRAWS + cell.seed)

    # -- the loop -------------------------------------------------------------------------------------------------------

    def run(self, pause: Callable[[Training], bool] = lambda training: False) -> bool:
        """Train to the end; False where `pause`, asked before every step, said to stop.

        Raises:
            Diverged: the loss of an epoch is not finite.
        """
        clock = _Clock(self)
        with _own_stream(self.device):
            self.model.train()
            self.data.begin_epoch(self.step // self.data.per_epoch, self.step % self.data.per_epoch)
            self.bits_at = self._bits_at()
            while self.step < self.data.steps:
                clock.read()
                if pause(self):
                    return False
                self._one_step()
                if self.step % self.data.per_epoch == 0 or self.step == self.data.steps:
                    self._end_epoch()
            clock.read()
        return True

    def _one_step(self) -> None:
        self.steps.set_lr(self.recipe.lr_at(self.step, self.data.steps))
        self.steps.gradients(bool(getattr(self.ldp, "sensing", False)))
        self.step += 1
        if self.ldp is not None:
            told = {"optimizer": self.optimizer} if self.tells_optimizer else {}
            self.ldp.step(self.step / self.data.steps, loss=self.steps.loss, **told)
        self.steps.update()

    def _end_epoch(self) -> None:
        """Note the epoch's mean loss (of the part of it that there was), and begin the next one."""
        mean = float(self.steps.total) / ((self.step - 1) % self.data.per_epoch + 1)
        self.steps.total.zero_()
        self.curve.append(mean)
        if not math.isfinite(mean):
            raise Diverged(f"The training loss must be finite; its mean over epoch {len(self.curve)} is {mean}.")
        if self.steps.note == "graph" and self._bits_at() != self.bits_at:
            raise RuntimeError("The bits must stay in one tensor, where the graphs read them; they moved. Use graph=false.")
        if self.step < self.data.steps:
            self.data.begin_epoch(self.step // self.data.per_epoch)

    def _bits_at(self) -> int:
        """Address of the bits in force."""
        return 0 if self.ldp is None else self.ldp.parameters()["bits"].data_ptr()

    # -- the end --------------------------------------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """Finalize, evaluate at the last step, and count: fields of the cell's line."""
        if self.ldp is None:
            costs = costs_of_fp32(self.macs)
        else:
            costs = costs_of(self.ldp) | {"own_mean_cost": self.ldp.cost().mean_relative, "coverage": self.ldp.coverage.share}
            self.allocation = self.ldp.finalize(self.data.calibration())
        self.model.eval()
        samples = self.data.steps * self.recipe.batch
        return self.data.evaluate(self.model) | {
            "train_loss": self.curve[-1],
            "curve": self.curve,
            **costs,
            "training_bitops": training_bitops(costs["cost"], costs["macs"], samples),
            "steps": self.data.steps,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
            "loop": self.steps.note,
            "on_gpu": self.device.type == "cuda",
        }

    # -- checkpoints ----------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write all that the training needs to go on; the file is there as a whole or not at all."""
        cuda = self.device.type == "cuda"
        state = {
            "fingerprint": self.cell.fingerprint,
            "step": self.step,
            "curve": self.curve,
            "seconds": (self.seconds, self.cpu_seconds),
            "total": self.steps.total,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ldp": None if self.ldp is None else self.ldp.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
        }
        partial = path.with_suffix(".partial")
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    def load(self, path: Path) -> bool:
        """Go on from a checkpoint; False where there is none of these settings."""
        if not path.is_file():
            return False
        state = torch.load(path, map_location="cpu", weights_only=False)
        if state["fingerprint"] != self.cell.fingerprint:
            return False
        self.step, self.curve = state["step"], state["curve"]
        self.seconds, self.cpu_seconds = state["seconds"]
        self.steps.total.copy_(state["total"])
        self.model.load_state_dict(state["model"])
        for saved, own in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            saved.update({name: own[name] for name in ("fused", "capturable") if name in own})  # those of this device
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ldp is not None:
            self.ldp.load_state_dict(state["ldp"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        return True


class _Clock:
    """Adds to the seconds of a training since this was made: of the wall, and of this process."""

    def __init__(self, training: Training):
        self.training = training
        self.wall, self.cpu = training.seconds - time.monotonic(), training.cpu_seconds - time.process_time()

    def read(self) -> None:
        self.training.seconds, self.training.cpu_seconds = self.wall + time.monotonic(), self.cpu + time.process_time()


def _own_stream(device: torch.device):
    """Captures need a stream that is not the default one, and warm steps on it."""
    if device.type != "cuda":
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


def _optimizer(model: nn.Module, recipe, device: torch.device) -> torch.optim.Optimizer:
    """SGD decays all parameters, as the papers do; AdamW only matrices. On a GPU fused: it reads its rate from a tensor."""
    fused = device.type == "cuda"
    if recipe.optimizer == "sgd":
        options = {"momentum": recipe.momentum, "nesterov": recipe.nesterov, "weight_decay": recipe.weight_decay}
        return torch.optim.SGD(model.parameters(), recipe.lr, fused=fused or None, **options)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, recipe.lr, betas=(0.9, 0.95), fused=fused or None, capturable=fused)


def _count_macs(model: nn.Module, example: torch.Tensor) -> float:
    space = ldp_search.SearchSpace(policy="static", attention=True)
    counted = ldp_search.apply(copy.deepcopy(model), space, example_inputs=example)
    return float(sum(layer.macs for layer in ldp_search.controller(counted).layers.values()))
