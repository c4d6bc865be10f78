"""The Triton passes on a CUDA device: equality with the formulas, speed of each pass, and whole training steps.

    python benchmarks/step_cuda.py [only=checks,passes,steps,graphs] [seconds=50] [rounds=15] [json=FILE]

Made to fit in a minute, of which compiling the kernels is the most: parts take turns in the order of `only`, and what no longer
fits in `seconds` is named and left out. A step is forward, backward and `ldp.step`, without an optimizer; "graph" is forward
and backward of the same model, captured once and replayed: what a step costs where no Python stands between the kernels.
The exit status is 1 where a pass differs from its formula.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from contextlib import nullcontext
from functools import partial

import step_models
import torch
from step_cuda_checks import run_checks

import ldp_search
from ldp_search.core import native
from ldp_search.core.native import cuda
from ldp_search.core.quantize import fake_quantize as fq
from ldp_search.core.quantize.gradient_quantizers import SymmetricStochastic
from ldp_search.core.quantize.grid import Grid, measure

START = time.perf_counter()
LEARNED = {"policy": "learned", "target_cost": 0.5}
MODELS = {  # name: maker of (model, loss of a model, inputs of one sample)
    "ResNet-20, 32x32, batch 128": partial(step_models.images, "cifar_resnet20", 128, 32),
    "ResNet-20, 32x32, batch 2048": partial(step_models.images, "cifar_resnet20", 2048, 32),
    "BERT 4x256, sequence 64, batch 32": partial(step_models.bert, 32, 64),
    "BERT 4x768, sequence 128, batch 128": partial(step_models.bert, 128, 128, 4, 768),
}
VARIANTS = {  # name: (space or None for the plain model, Triton passes, bf16 autocast)
    "plain": (None, True, False),
    "learned 3-8, gradients 8, formulas": (LEARNED, False, False),
    "learned 3-8, gradients 8, Triton": (LEARNED, True, False),
    "plain, bf16 autocast": (None, True, True),
    "the same learned, formulas": (LEARNED, False, True),
    "the same learned, Triton": (LEARNED, True, True),
}


def left(seconds: float) -> float:
    return seconds - (time.perf_counter() - START)


def formulas(off: bool = True):
    return native.disabled() if off else nullcontext()


def milliseconds(f, rounds: int) -> float:
    """Median, by events around each call."""
    f()
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        f()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def passes_table(options) -> dict:
    """ms of each pass on a tensor far larger than the caches, on one that fits, and on a small one."""
    rows = {}
    print("\n| pass, ms: Triton, formulas | 2^28 fp32 | 2^28 bf16 | 2^22 fp32 | 2^12 fp32 |\n|---|---|---|---|---|")
    big = torch.randn(2**28, device="cuda")
    tensors = [big, big.bfloat16(), big[: 2**22].clone(), big[: 2**12].clone()]
    bits, low, scale = (torch.full((), value, device="cuda") for value in (8.0, -5.0, 0.04))
    affine, clipped = Grid(scale, low), Grid(scale / 2, None, low / 2, -low / 2)
    table = {
        "copy": lambda x: x.clone(),
        "range": lambda x: measure(x),
        "range and mean": lambda x: measure(x, spread=True),
        "rounding": lambda x: fq.rounded(x, affine, x.dtype),
        "rounding, clipped": lambda x: fq.rounded(x, clipped, x.dtype),
        "gradient of the scale": lambda x: fq.backward(x, x, affine, True),
        "gradient quantizer": lambda x: SymmetricStochastic()(x, bits),
    }
    for name, f in table.items():
        if left(options["seconds"]) < 0.35 * options["seconds"]:
            print(f"(no time left for {name})")
            break
        cells = []
        for x in tensors:
            fast = milliseconds(partial(f, x), 7)
            with formulas():
                cells.append((fast, milliseconds(partial(f, x), 5)))
        rows[name] = cells
        print(f"| {name} | " + " | ".join(f"{fast:.3f}, {slow:.3f}" for fast, slow in cells) + " |", flush=True)
    return rows


def subjects(name: str) -> dict:
    """{variant: (forward and backward, ldp.step or nothing)} of one model."""
    made = {}
    for variant, (space, triton, autocast) in VARIANTS.items():
        torch.manual_seed(0)
        with torch.device("cuda"):
            model, loss, example = MODELS[name]()
        model.train()
        after = lambda: None  # noqa: E731
        if space:
            ldp_search.apply(model, ldp_search.SearchSpace(**space), example)
            progress = itertools.count(1)
            after = partial(lambda ldp, progress: ldp.step(next(progress) / 1e6), ldp_search.controller(model), progress)

        def once(model=model, loss=loss, triton=triton, autocast=autocast):
            model.zero_grad()
            with formulas(not triton):
                with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                    value = loss(model)
                value.backward()

        made[variant] = once, after
    return made


def eager(parts: dict, rounds: int) -> dict[str, list[float]]:
    """ms of whole steps, the variants in turn."""
    times = {variant: [] for variant in parts}
    for n in range(rounds + 3):
        for variant, (once, after) in parts.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            once(), after()
            torch.cuda.synchronize()
            if n >= 3:  # before that kernels compile and memory is taken
                times[variant].append(1e3 * (time.perf_counter() - start))
    return times


def graphed(parts: dict, rounds: int) -> dict[str, list[float]]:
    """ms of forward and backward as a captured graph; a variant that cannot be captured says why."""
    times = {}
    for variant, (once, _) in parts.items():
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                once(), once()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                once()
            times[variant] = [milliseconds(graph.replay, rounds)]
        except RuntimeError as error:
            print(f"({variant}: no graph: {str(error).splitlines()[0][:150]})")
    return times


def steps(options, with_graphs: bool) -> dict:
    rows = {}
    for name in MODELS:
        if left(options["seconds"]) < 5:
            print(f"(no time left for {name})")
            continue
        parts = subjects(name)
        print(f"\n| {name} | step, ms | of plain | graph, ms | of plain |\n|---|---|---|---|---|")
        tables = eager(parts, options["rounds"]), graphed(parts, options["rounds"]) if with_graphs else {}
        medians = [{variant: statistics.median(times) for variant, times in table.items()} for table in tables]
        for variant in parts:
            plain = "plain, bf16 autocast" if VARIANTS[variant][2] else "plain"
            cells = []
            for table in medians:
                known = variant in table and plain in table
                cells += [f"{table[variant]:.2f}", f"{table[variant] / table[plain]:.2f}"] if known else ["", ""]
            print(f"| {variant} | " + " | ".join(cells) + " |", flush=True)
        rows[name] = dict(zip(("step", "graph"), medians, strict=True))
    return rows


def main(words: list[str]) -> int:
    options = {"only": "checks,passes,steps,graphs", "seconds": 50, "rounds": 15, "json": ""}
    for word in words:
        key, _, value = word.partition("=")
        if key not in options:
            sys.exit(f"Unknown word {word!r}; known: {', '.join(options)}")
        options[key] = type(options[key])(value)
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device here; tests/core/test_triton.py needs none, and benchmarks/step.py measures the CPU.")
    only, results = options["only"].split(","), {}
    cuda.passes(torch.zeros(1, device="cuda"))
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, Triton passes {cuda.status()}")
    if "checks" in only:
        results["different"] = run_checks(lambda: left(options["seconds"]) > 0.55 * options["seconds"])
    if "passes" in only:
        results["passes"] = passes_table(options)
    if "steps" in only:
        results["steps"] = steps(options, "graphs" in only)
    print(f"\n{time.perf_counter() - START:.0f} s")
    if options["json"]:
        with open(options["json"], "w") as file:
            json.dump(results, file, indent=1)
    return int(bool(results.get("different")) or cuda.status() != "on")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
