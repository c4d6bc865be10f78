"""Every kind and shape of layer, and the whole network, in every container: measured in turn, as a table."""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...config.overlay import ConfigError
from ...config.settings import Settings
from ...core.bits.latency import FLOAT, FORMAT, KIND, kernel_of
from .. import models
from ..exports.subject import of_size
from .options import ProfileOptions
from .runtimes import RUNTIMES, Parts, Runtime, Timed
from .shapes import Shape, at_bits, distinct_shapes

WARM_UP, LEAST_TURNS, MOST_SECONDS = 3, 5, 60.0
Tell = Callable[[str], None]
"""Takes a line on how far it has got."""


def measure(
    model: nn.Module, args: tuple, kwargs: dict[str, Any], settings: Settings, options: ProfileOptions, tell: Tell
) -> dict[str, Any]:
    """The table of a plain model at inputs that are cut, or repeated, to `options.batch` samples."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        with tempfile.TemporaryDirectory(prefix="ldp-profile-") as folder:
            args, kwargs = _of_batch(args, kwargs, options.batch)
            runtime = RUNTIMES[options.target](settings.space, Path(folder), options.threads)
            return _measure(model, args, kwargs, settings, options, runtime, tell)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    finally:
        torch.set_num_threads(before)


def _measure(
    model: nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    settings: Settings,
    options: ProfileOptions,
    runtime: Runtime,
    tell: Tell,
) -> dict[str, Any]:
    shapes = distinct_shapes(model, at_bits(model, 8, settings.space, args, kwargs), args, kwargs)
    if not shapes:
        raise ConfigError(f"The model {settings.config.model!r} has no layer that the target {options.target} could run.")
    kernels = list(dict.fromkeys(kernel_of(options.target, width) for width in options.measured))
    tell(f"{len(shapes)} shapes of {sum(len(s.names) for s in shapes)} layers, {options.target}, batch {options.batch}")
    layers: dict[tuple[str, int], Timed] = {}
    whole: dict[int, Timed] = {}
    for kernel in kernels:
        tell(f"preparing the layers and the network for {named(kernel)}")
        layers |= {(shape.shape, kernel): timed for shape, timed in zip(shapes, runtime.layers(shapes, kernel), strict=True)}
        whole[kernel] = runtime.whole(model, args, kwargs, kernel)
    times = _in_turn({**layers, **{("", kernel): timed for kernel, timed in whole.items()}}, options.turns, tell)
    rows = [_row(shape, {k: times[shape.shape, k] for k in kernels}, options) for shape in shapes]
    return {
        "kind": KIND, "format": FORMAT, "target": options.target, "model": models.display_name(settings.config.model),
        "inputs": _sizes(args, kwargs), "batch": options.batch, "threads": options.threads, "device": _device(),
        "versions": {name: version(name) for name in ("torch", *runtime.packages)},
        "date": time.strftime("%Y-%m-%d %H:%M"), "containers": list(options.measured),
        "whole": {str(w): _median([p.product for p in times["", kernel_of(options.target, w)]]) for w in options.measured},
        "rows": rows,
    }  # fmt: skip


def _in_turn(timed: dict[tuple[str, int], Timed], turns: int, tell: Tell) -> dict[tuple[str, int], list[Parts]]:
    """Times of all, one after the other in every turn, so that what else the machine does falls on all of them."""
    start = time.perf_counter()
    for _ in range(WARM_UP):
        for each in timed.values():
            each.run()
    one = (time.perf_counter() - start) / WARM_UP
    turns = max(LEAST_TURNS, min(turns, int(MOST_SECONDS / max(one, 1e-6))))
    for turn in range(turns):
        if turn % 10 == 0:
            tell(f"turn {turn + 1} of {turns}")
        for each in timed.values():
            each.run()
    return {key: each.times()[WARM_UP:] for key, each in timed.items()}


def _row(shape: Shape, times: dict[int, list[Parts]], options: ProfileOptions) -> dict[str, Any]:
    """One line of the table. In the network a convolution in integers reads and gives codes, unless it reads the input of the
    network; one in another container has to convert them, there and back.
    """
    medians = {kernel: Parts(*(_median([p[i] for p in found]) for i in range(3))) for kernel, found in times.items()}
    least = medians[min(medians)]
    out = {}
    for width in options.measured:
        kernel = kernel_of(options.target, width)
        own = medians[kernel]
        us, edges = own.product, 0.0
        if kernel == min(medians):
            us += own.before if shape.reads_input else 0.0
        else:
            edges = own.before + own.after + least.after + (0.0 if shape.reads_input else least.before)
        spread = _spread([p.product for p in times[kernel]])
        out[str(width)] = {"us": round(us, 2), "spread": round(spread, 2), "edges": round(edges, 2)}
    return {"shape": shape.shape, "layers": shape.names, "times": out}


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 2)


def _spread(values: list[float]) -> float:
    """Half of the middle half's range."""
    ordered, quarter = sorted(values), len(values) // 4
    return (ordered[-1 - quarter] - ordered[quarter]) / 2


def _of_batch(args: tuple, kwargs: dict[str, Any], batch: int) -> tuple[tuple, dict[str, Any]]:
    kwargs = {key: value for key, value in kwargs.items() if isinstance(value, Tensor)}
    found = next(x.shape[0] for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor))
    return pytree.tree_map(lambda x: of_size(x, found=found, size=batch), (args, kwargs))


def _sizes(args: tuple, kwargs: dict[str, Any]) -> list[list[int]]:
    return [list(x.shape) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]


def _device() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def named(width: int) -> str:
    return "floating point" if width == FLOAT else f"{width} bits"
