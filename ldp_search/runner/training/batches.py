"""The stream of batches: a function of (seed, step) alone, so that a run can go on from any step, on any number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ...config.overlay import ConfigError
from ..tasks import Task


class _Batches(Dataset):
    """Maps (epoch, indices) to a batch; epoch None means the evaluation set."""

    def __init__(self, task: Task):
        self.task = task

    def __getitem__(self, key: tuple[int | None, Tensor]) -> Any:
        epoch, indices = key
        return self.task.batch(indices, epoch)


class TrainKeys(Sampler):
    """Keys of this process's parts of the batches from step `start` on: `accumulate` of them a step.

    An epoch is a permutation that (seed, epoch) draws, cut into batches; what does not fill one is left out in that epoch.
    """

    def __init__(self, size: int, batch_size: int, accumulate: int, seed: int, start: int, stop: int, rank: int, world: int):
        self.size, self.batch_size, self.accumulate, self.seed = size, batch_size, accumulate, seed
        self.start, self.stop, self.rank, self.world = start, stop, rank, world
        self.part = batch_size // (accumulate * world)

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        per_epoch, shuffled_for, order = self.size // self.batch_size, -1, torch.empty(0)
        for step in range(self.start, self.stop):
            epoch, place = divmod(step, per_epoch)
            if epoch != shuffled_for:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order, shuffled_for = torch.randperm(self.size, generator=generator), epoch
            batch = order[place * self.batch_size : (place + 1) * self.batch_size]
            for part in range(self.accumulate):
                first = (part * self.world + self.rank) * self.part
                yield epoch, batch[first : first + self.part]


def check_sizes(task: Task, config: Any, world: int) -> None:
    """Raises ConfigError when batches cannot be cut from the data as asked."""
    if config.batch_size > task.train_size:
        raise ConfigError(f"batch_size must be at most the {task.train_size} training samples; received {config.batch_size}.")
    if config.batch_size % (config.accumulate * world):
        raise ConfigError(
            f"batch_size must divide by accumulate times the number of processes ({config.accumulate} x {world}); received "
            f"{config.batch_size}. It counts the samples of a whole optimizer step, so that a recipe holds on any hardware."
        )
    if task.eval_size < world:
        raise ConfigError(f"Each of the {world} processes needs a sample to evaluate on; there are {task.eval_size}.")


def train_loader(task: Task, config: Any, start: int, stop: int, rank: int, world: int) -> DataLoader:
    """Parts of training batches from step `start` to `stop`."""
    keys = TrainKeys(task.train_size, config.batch_size, config.accumulate, config.seed, start, stop, rank, world)
    return _loader(task, keys, config.data_workers)


def eval_loader(task: Task, config: Any, rank: int, world: int) -> DataLoader:
    """This process's share of the evaluation set, in order."""
    parts = torch.arange(rank, task.eval_size, world).split(config.eval_batch_size)
    return _loader(task, [(None, part) for part in parts], min(config.data_workers, len(parts)))


def _loader(task: Task, keys: Any, workers: int) -> DataLoader:
    return DataLoader(
        _Batches(task), sampler=keys, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: an iterator draws from it, and the training's random state must not notice
    )  # fmt: skip
