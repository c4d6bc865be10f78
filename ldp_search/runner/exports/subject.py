"""What is to be exported: the model of a folder, and data to compare on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...api import controller
from ...config.overlay import ConfigError
from ..pretrained.ldp_json import RECORD, read_record
from ..pretrained.save_load import load_pretrained
from .outputs import evaluating, tensors

RANDOM_BATCHES, CALIBRATION_SAMPLES = 4, 128


@dataclass
class Subject:
    """A trained model with data.

    task: gives evaluation batches, losses and metrics; None: random inputs. config: its settings. folder: where it was saved.
    """

    model: nn.Module
    folder: Path
    task: Any = None
    config: Any = None

    @property
    def data(self) -> str:
        """In words, for the table."""
        return "random inputs" if self.task is None else f"evaluation data of {Path(str(self.config.task)).stem}"

    def batches(self, samples: int) -> Iterator[Any]:
        """Evaluation batches of up to `samples` samples; without a task a few random ones."""
        if self.task is None:
            yield from (random_inputs(self.model, 8, seed) for seed in range(min(RANDOM_BATCHES, -(-samples // 8))))
            return
        count = min(samples, self.task.eval_size)
        for part in torch.arange(count).split(min(self.config.eval_batch_size, 100)):
            yield self.task.batch(part, None)

    def run(self, model: nn.Module, batch: Any) -> tuple[list[Any], Tensor | None]:
        """(outputs of each call of the model, sums for the task's metrics) of a batch."""
        recorder = Recorder(model)
        if self.task is None:
            args, kwargs = batch
            recorder(*args, **kwargs)
            return recorder.outputs, None
        return recorder.outputs, self.task.measure(recorder.eval(), batch)[1]

    def inputs(self, size: int) -> tuple[tuple, dict]:
        """(args, kwargs) of a forward of `size` evaluation samples."""
        if self.task is None:
            return random_inputs(self.model, size, 0)
        return self._inputs(torch.arange(min(size, self.task.eval_size)), None, size)

    def calibration(self) -> list[tuple[tuple, dict]]:
        """Inputs of training samples, for what is calibrated (onnxruntime's own int8)."""
        if self.task is None:
            return [random_inputs(self.model, 8, seed) for seed in range(100, 104)]
        places = torch.arange(min(CALIBRATION_SAMPLES, self.task.train_size)).split(8)
        return [self._inputs(part, 0, len(part)) for part in places]

    def _inputs(self, places: Tensor, epoch: int | None, size: int) -> tuple[tuple, dict]:
        """Seen in a forward of the model, so that no kind of task has to tell; repeated or cut to `size` samples."""
        recorder = Recorder(self.model)
        with evaluating(self.model):
            self.task.measure(recorder.eval(), self.task.batch(places, epoch))
        args, kwargs = recorder.inputs[0]
        kwargs = {key: value for key, value in kwargs.items() if isinstance(value, Tensor)}
        found = next(x.shape[0] for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        return pytree.tree_map(partial(of_size, found=found, size=size), (args, kwargs))


def of_size(x: Any, found: int, size: int) -> Any:
    if not isinstance(x, Tensor) or not x.dim() or x.shape[0] != found:
        return x
    return x.repeat(-(-size // found), *[1] * (x.dim() - 1))[:size]


class Recorder(nn.Module):
    """Calls a model and keeps what goes in and comes out."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self.inputs, self.outputs = module, [], []

    def forward(self, *args, **kwargs):
        self.inputs.append((args, kwargs))
        output = self.module(*args, **kwargs)
        self.outputs.append(tensors(output))
        return output


def open_subject(folder: Path, words: list[str]) -> Subject:
    """The model of a run or of save_pretrained, with the data of the run, or of the task that the words name.

    Raises:
        ConfigError: no such folder, a file that is not whole, data that cannot be had, or settings without a task.
    """
    if not (folder / RECORD).is_file():
        finished = (
            " The run in it has not finished: resume=FOLDER goes on with it." if (folder / "config.yaml").is_file() else ""
        )
        raise ConfigError(f"{folder} holds no {RECORD}: give the folder of a finished run or of save_pretrained.{finished}")
    without = [word for word in words if word != "task=none"]
    is_run = (folder / "config.yaml").is_file()
    if without and not is_run and not any(word.startswith("task=") for word in without):
        raise ConfigError(f"{without[0]} says how data is read, but not which: add task=NAME (or task=none alone).")
    task = config = None
    if "task=none" not in words and (is_run or without):
        task, config = _task(folder if is_run else None, without)
    fresh = None
    if task is not None:  # tasks take over what a model demands of its inputs (size, tokenizer) when they make one
        with torch.random.fork_rng():
            fresh = task.create_model(config.model, False)
    try:
        model = load_pretrained(folder, None if _is_rebuilt(folder) else fresh)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    controller(model).freeze()
    return Subject(model, folder, task, config)


def _is_rebuilt(folder: Path) -> bool:
    """Whether the folder says how its model is made."""
    try:
        return read_record(folder)["model"].get("source") != "none"
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _task(run: Path | None, words: list[str]) -> tuple[Any, Any]:
    """(task, settings): those of a run's config.yaml with the words over them."""
    from ...config.resolve import resolve
    from ..tasks import build_task

    settings = resolve([*([f"config={run / 'config.yaml'}"] if run is not None else []), *words])
    return build_task(settings.task, settings.config), settings.config


def random_inputs(model: nn.Module, size: int, seed: int) -> tuple[tuple, dict]:
    """(args, kwargs) of a forward of `size` random samples, of the shape that timm's or transformers' model says it takes."""
    generator = torch.Generator().manual_seed(seed)
    config = getattr(model, "config", None)
    if hasattr(model, "pretrained_cfg"):
        shape = _picture_shape(model)
        return (torch.randn(size, *shape, generator=generator),), {}
    if config is None or not hasattr(model, "main_input_name"):
        raise ConfigError(
            f"What a {type(model).__name__} takes is not known, so there is nothing to compare on: give task=NAME."
        )
    if model.main_input_name == "pixel_values":
        side = getattr(config, "image_size", None)  # models of any size have none
        side = side if isinstance(side, int | list | tuple) else 224
        sides = [side, side] if isinstance(side, int) else list(side)
        return (), {"pixel_values": torch.randn(size, config.num_channels, *sides, generator=generator)}
    length = min(64, getattr(config, "max_position_embeddings", 64) or 64)
    ids = torch.randint(0, config.vocab_size, (size, length), generator=generator)
    return (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _picture_shape(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) of timm's model, read off its first convolution and patch embedding where these differ."""
    channels, height, width = model.pretrained_cfg.get("input_size") or (3, 224, 224)
    side = getattr(getattr(model, "patch_embed", None), "img_size", None)
    height, width = side if isinstance(side, list | tuple) else (height, width)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return (channels if first is None else first.weight.shape[1] * first.groups), height, width
