"""The measurements behind `python -m ldp_search.bench`, and their table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import send_to_device, set_seed
from torch import Tensor, nn

import ldp_search

from ...config.overlay import ConfigError, as_component
from ...config.settings import Settings
from ...config.task_file import display_name
from ...core.apply import find_controller
from ...core.controller.summary import elide
from .. import models
from ..tasks import build_task
from ..training.batches import TrainKeys, check_sizes
from ..training.optimizers import create_optimizer
from ..training.setup import on_cpu, searchable
from .timing import Times, interleaved, layer_times, peak_bytes, saved_bytes

SMALL_STEP = 1e-5  # of progress: the whole measurement lies at the beginning of a training


class _Subject:
    """A model with its optimizer: a step of it, and a forward alone. None measures what rounding costs, unless told to."""

    def __init__(self, model: nn.Module, task: Any, parts: list[Any], config: Any, accelerator: Accelerator):
        self.task, self.parts, self.accelerator = task, parts, accelerator
        self.module = model.to(accelerator.device).train()
        self.model = torch.compile(self.module) if config.compile else self.module
        self.optimizer, self.progress = create_optimizer(config, self.module), 0.0
        self.ldp = find_controller(self.module)
        self.measures = self.ldp is not None and self.ldp.sensing  # its first step does, and so one in `sense_every`

    def forward(self, part: Any = None) -> Tensor:
        """Loss of one part of the batch, the first one unless told."""
        with self.accelerator.autocast():
            return self.task.measure(self.model, self.parts[0] if part is None else part)[0]

    def step(self, sensing: bool = False) -> None:
        if self.ldp is not None:
            self.ldp.sensing = sensing
        for part in self.parts:
            loss = self.forward(part)
            loss.backward()
        if self.ldp is not None:
            self.progress += SMALL_STEP
            self.ldp.step(self.progress, loss=loss.detach())
            self.ldp.sensing = False
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(settings: Settings, rounds: int, layers: int) -> str:
    """The report as text. Raises ConfigError for a model, task or size that does not fit."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    config = settings.config
    accelerator = Accelerator(cpu=on_cpu(), mixed_precision={"fp32": "no", "bf16": "bf16"}[config.precision])
    if accelerator.num_processes > 1:
        raise ConfigError("One process measures; start `python -m ldp_search.bench` without a launcher.")
    task = build_task(settings.task, config)
    check_sizes(task, config, 1)
    set_seed(config.seed)
    plain_model, model = task.create_model(config.model, config.pretrained), searchable(settings, task)
    keys = TrainKeys(task.train_size, config.batch_size, config.accumulate, config.seed, 0, 1, 0, 1)
    parts = [send_to_device(task.batch(indices, epoch), accelerator.device) for epoch, indices in keys]
    plain, ldp = (_Subject(m, task, parts, config, accelerator) for m in (plain_model, model))
    for subject in (plain, ldp):  # compiles, chooses, touches the memory
        subject.step(sensing=subject.measures)
        subject.step()
    times = interleaved(plain.step, ldp.step, rounds, accelerator.device)
    sensing = None
    if ldp.measures:
        sensing = interleaved(plain.step, lambda: ldp.step(sensing=True), min(rounds, 3), accelerator.device)
    saved = [saved_bytes(subject.module, subject.forward) for subject in (plain, ldp)]
    peaks = [peak_bytes(subject.step, accelerator.device) for subject in (plain, ldp)]
    handle = ldp_search.controller(model)
    lines = [_headline(settings, accelerator), *_steps(times, sensing, handle.space.sense_every)]
    lines += _memory(saved, peaks, config.accumulate)
    if arithmetic := handle.backend.report(list(handle.layers)):
        lines.append(arithmetic)
    if layers:
        with accelerator.autocast():
            each = layer_times(plain.module, ldp.module, handle.layers, plain.forward, min(rounds, 5), accelerator.device)
        lines += _layers(each, layers, {name: spec.kind for name, spec in handle.layers.items()}, times, config.accumulate)
    return "\n".join(lines)


def _headline(settings: Settings, accelerator: Accelerator) -> str:
    config, device = settings.config, accelerator.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} x {torch.get_num_threads()}"
    values, bits = settings.values, "-".join(f"{b:.0f}" for b in dict.fromkeys(settings.space.bits))
    return (
        f"{models.display_name(config.model)} on {display_name(config.task)}, batch {config.batch_size}, {config.precision}"
        f"{', compiled' if config.compile else ''}; policy {as_component(values['policy'])['name']}, bits {bits}, "
        f"backend {as_component(values['backend'])['name']}; "
        f"{where}, torch {torch.__version__}"
    )


def _steps(times: Times, sensing: Times | None, every: int) -> list[str]:
    """An ordinary step, one that measures what rounding costs, and the mean over `every` steps, of which one does."""

    def row(name: str, plain: float, ldp: float, ratio: float) -> str:
        return f"{name:<20} {plain * 1e3:>7.1f} ms {ldp * 1e3:>7.1f} ms {ratio:>7.2f}"

    head = f"{'':<20} {'plain':>10} {'LDP':>10} {'ratio':>7}"
    lines = [head, row("step", *times.seconds, times.ratio) + f" ± {times.spread:.2f}"]
    if sensing is not None:
        (plain, ldp), mean = times.seconds, lambda usual, one: usual + (one - usual) / every
        lines += [
            row("one that measures", *sensing.seconds, sensing.ratio) + f" ± {sensing.spread:.2f}, one step in {every}",
            row(f"mean of {every} steps", plain, mean(ldp, sensing.seconds[1]), mean(times.ratio, sensing.ratio)),
        ]
    return lines


def _memory(saved: list[int], peaks: list[int], accumulate: int) -> list[str]:
    part = " of one part of the batch" if accumulate > 1 else ""
    return [
        f"{'kept for backward':<20} {_mib(saved[0])} {_mib(saved[1])} {saved[1] / max(1, saved[0]):>7.2f}{part}",
        f"{'peak of the step':<20} {_mib(peaks[0])} {_mib(peaks[1])} {peaks[1] / max(1, peaks[0]):>7.2f}",
    ]


def _mib(size: int) -> str:
    return f"{size / 2**20:>6.1f} MiB"


def _layers(each: dict[str, Times], most: int, kinds: dict[str, str], times: Times, accumulate: int) -> list[str]:
    """The layers with the largest differences, and all together beside the whole step."""

    def milliseconds(measured: Times) -> tuple[float, float]:
        return tuple(value * 1e3 for value in measured.seconds)

    found = {name: milliseconds(measured) for name, measured in each.items()}
    order = sorted(found, key=lambda name: found[name][1] - found[name][0], reverse=True)
    width = max([len("layer"), *(min(48, len(name)) for name in order[:most])])
    per_part = ", one part of the batch" if accumulate > 1 else ""
    lines = [f"layers that cost most (forward and backward, each alone{per_part})",
             f"{'layer':<{width}}  {'kind':<10} {'plain':>10} {'LDP':>10} {'ratio':>7}"]  # fmt: skip
    row: Callable = lambda name, kind, a, b: f"{name:<{width}}  {kind:<10} {a:>7.2f} ms {b:>7.2f} ms {b / a:>7.2f}"  # noqa: E731
    lines += [row(elide(name, width), kinds[name][:10], *found[name]) for name in order[:most]]
    sums = [sum(values) for values in zip(*found.values(), strict=True)] if found else [0.0, 0.0]
    if found:
        lines.append(row(f"all {len(found)}", "", *sums))
        rest = [seconds * 1e3 - accumulate * total for seconds, total in zip(times.seconds, sums, strict=True)]
        lines.append(f"the rest of the step: plain {max(0.0, rest[0]):.1f} ms, LDP {max(0.0, rest[1]):.1f} ms")
    return lines
