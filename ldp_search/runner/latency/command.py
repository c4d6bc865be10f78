"""What `python -m ldp_search.profile` does: measure every shape and the whole network in every container, write the table, tell."""

from __future__ import annotations

import json
import platform
import statistics
import sys
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
from ...config.resolve import resolve
from ...config.settings import Settings
from ...core.apply import as_call
from ...core.bits.latency import FLOAT, FORMAT, KIND, LatencyTable, kernel_of
from ...core.bits.space import MAX_BITS
from ...core.controller.summary import elide
from .. import models
from ..exports.subject import of_size
from ..io.atomic import write_whole
from ..tasks import build_task
from .options import ProfileOptions
from .runtimes import RUNTIMES, Parts, Runtime, Timed
from .shapes import Shape, at_bits, distinct_shapes

WARM_UP, LEAST_TURNS, MOST_SECONDS = 3, 5, 60.0
Tell = Callable[[str], None]


def run(options: ProfileOptions, tell: Tell | None = None) -> int:
    """Measure and write; returns the exit status.

    Raises:
        ConfigError: wrong settings, data or model. ImportError: a package of the target is missing. OSError: writing failed.
    """
    settings = resolve(options.rest)
    task = build_task(settings.task, settings.config)
    model = task.create_model(settings.config.model, settings.config.pretrained).eval()
    inputs = as_call(task.example_inputs())
    table = measure(model, *inputs, settings, options, tell or _to_the_terminal)
    write_whole(Path(options.output).expanduser(), json.dumps(table, indent=1) + "\n")
    print(text(table))
    print(f"\ntable    {options.output}\n{_next(table, options)}")
    return 0


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
        tell(f"preparing the layers and the network for {_named(kernel)}")
        layers |= {(shape.shape, kernel): timed for shape, timed in zip(shapes, runtime.layers(shapes, kernel), strict=True)}
        whole[kernel] = runtime.whole(model, args, kwargs, kernel)
    times = _in_turn({**layers, **{("", kernel): timed for kernel, timed in whole.items()}}, options.turns, tell)
    rows = [_row(shape, {k: times[shape.shape, k] for k in kernels}, options) for shape in shapes]
    return {
        "kind": KIND, "format": FORMAT, "target": options.target, "model": models.display_name(settings.config.model),
        "inputs": _sizes(args, kwargs), "batch": options.batch, "threads": options.threads, "device": _device(),
        "versions": {"torch": torch.__version__, **{name: version(name) for name in ("onnxruntime",) if runtime.format == "onnx"}},
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
        out[str(width)] = {
            "us": round(us, 2),
            "spread": round(_spread([p.product for p in times[kernel]]), 2),
            "edges": round(edges, 2),
        }
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


def _named(width: int) -> str:
    return "floating point" if width == FLOAT else f"{width} bits"


def text(table: dict[str, Any]) -> str:
    """The table for a terminal: microseconds of one layer, and of the network."""
    widths = [str(width) for width in table["containers"]]
    head = f"{'layer':<28} {'times':>5} " + " ".join(f"{_named(int(width)):>20}" for width in widths)
    lines = [f"{table['model']}: microseconds on {table['device']}, {table['target']}, {table['threads']} thread(s)", head]
    for row in table["rows"]:
        shown = [f"{row['times'][w]['us']:.0f} ± {row['times'][w]['spread']:.0f}" for w in widths]
        lines.append(f"{elide(row['layers'][0], 28):<28} {len(row['layers']):>5} " + " ".join(f"{cell:>20}" for cell in shown))
    whole = " ".join(f"{table['whole'][width]:>20.0f}" for width in widths)
    return "\n".join([*lines, f"{'the whole network':<28} {'':>5} {whole}"])


def _next(table: dict[str, Any], options: ProfileOptions) -> str:
    low, high = table["containers"][0], min(FLOAT, MAX_BITS)
    least = table["whole"][str(low)] / table["whole"][str(FLOAT)]
    words = " ".join(options.rest)
    within = f"between {least:.2f} and 1" if least < 1 else "of which nothing lower is to be had with all layers in integers"
    return (
        f"next     python -m ldp_search.run {words} latency={options.output} target_latency=... bits=[{min(low, high)},{high}]\n"
        f"         target_latency: of the time in floating point, {within}"
    )


def _to_the_terminal(line: str) -> None:
    print(f"ldp_search.profile: {line}", file=sys.stderr, flush=True)


__all__ = ["LatencyTable", "measure", "run", "text"]
