"""Running what is exported: its inputs, the ranges inside it, and the comparison with torch before it counts as made."""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxscript
import torch
from onnxscript import ir

from ...core.messages import warn
from . import cache
from .dynamic_shapes import tensors

INTEGER_KERNELS = (
    "QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulNBits",
)  # fmt: skip
SMALL_CHANGE = 1e-4  # about what rounding a bias to the step of an int32 accumulator does


class Checked(NamedTuple):
    """max_error, kernels and same_tokens of `Export`; None where onnxruntime is missing, the last one without a cache too."""

    max_error: float | None = None
    kernels: dict[str, int] | None = None
    same_tokens: float | None = None


def feed(graph: ir.Graph, args: tuple, kwargs: dict) -> dict[str, np.ndarray]:
    """{input of the graph: value}, of the example inputs."""
    names = [value.name for value in graph.inputs]
    values = {name: value for name, value in kwargs.items() if name in names}
    rest = [name for name in names if name not in values]
    positional = tensors((args, {k: v for k, v in kwargs.items() if k not in values}))
    values |= dict(zip(rest, positional, strict=False))
    return {name: value.detach().cpu().numpy() for name, value in values.items()}


def difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Largest difference, relative to the largest finite magnitude of each expected array; equal infinities differ by 0."""
    return max((_difference(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    a, b = (np.asarray(x, dtype=np.float64) for x in (found, expected))  # also truth values, which have no difference
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    largest = np.abs(b[np.isfinite(b)]).max(initial=1e-30)
    return float(np.abs(a[~same] - b[~same]).max(initial=0.0) / largest)


def own_error(ldp, run: Callable[[], Any], expected) -> float:
    """`difference` of the quantized model in torch, run as for `expected`, when layers' outputs change by `SMALL_CHANGE`."""
    generator = torch.Generator().manual_seed(0)

    def change(module, inputs, output):
        noise = torch.randn(output.shape, generator=generator).to(output)
        return output * (1 + SMALL_CHANGE * noise)

    hooks = [spec.module.register_forward_hook(change) for spec in ldp.specs.values() if spec.module is not None]
    try:
        changed = run()
    finally:
        for hook in hooks:
            hook.remove()
    return difference(_arrays(changed), _arrays(expected))


def _arrays(output) -> list[np.ndarray]:
    return [x.detach().cpu().numpy() for x in tensors(output)]


def _session(source, save_to: str | None = None):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if save_to is not None:
        options.optimized_model_filepath = save_to
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def ranges(graph: ir.Model, values: list[ir.Value], inputs: dict) -> dict[str, tuple[float, float]]:
    """{value's name: (lowest, highest)} on the example inputs, by running the graph with these as further outputs."""
    main, added = graph.graph, []
    for value in values:
        for op in ("ReduceMin", "ReduceMax"):
            node = ir.node(op, [value], attributes={"keepdims": 0}, name=f"{value.name}.{op}")
            node.outputs[0].name, node.outputs[0].dtype = node.name, ir.DataType.FLOAT
            node.outputs[0].shape = ir.Shape([])
            main.append(node)
            main.outputs.append(node.outputs[0])
            added.append(node)
    main.sort()
    try:
        with _explained():
            found = _session(ir.to_proto(graph).SerializeToString()).run([node.name for node in added], inputs)
    finally:
        for node in added:
            main.outputs.remove(node.outputs[0])
            main.remove(node)
    pairs = zip(found[::2], found[1::2], strict=True)
    return {value.name: (float(low), float(high)) for value, (low, high) in zip(values, pairs, strict=True)}


def save(
    graph: ir.Model, path: Path, inputs: dict, expected, names: list[str], runs: bool, by_token: list[np.ndarray] | None
) -> Checked:
    """Write next to `path`, run and compare, then put in place: a file at `path` is one that runs.

    Args:
        names: of the graph's outputs.
        runs: whether onnxruntime is there.
        by_token: what is expected of a file with a cache (see `cache`) when it reads its last tokens one at a time; None: it
            has none.

    Raises:
        RuntimeError: onnxruntime cannot run what was made.
    """
    _tidy(graph)
    _name_outputs(graph.graph, names)
    checked = Checked()
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".export-") as folder:
        made, optimized = os.path.join(folder, "model.onnx"), os.path.join(folder, "optimized.onnx")
        ir.save(graph, made)
        if runs:
            checked = _compared(made, optimized, inputs, _arrays(expected), by_token)
        else:
            warn("The exported file was not run, since onnxruntime is missing: pip install onnxruntime")
        os.replace(made, path)
    return checked


def _compared(made: str, optimized: str, inputs: dict, expected: list[np.ndarray], by_token) -> Checked:
    """A file beside the model. optimized: where onnxruntime's own form of the graph goes, whose operators are counted."""
    with _explained():
        run = partial(_session(made, optimized).run, None)
        ways = [(run(inputs), expected)]
        if by_token is not None:
            ways.append((cache.token_by_token(run, inputs), by_token))
    counts = Counter(node.op_type for node in ir.load(optimized).graph)
    kernels = {op: counts[op] for op in INTEGER_KERNELS if counts[op]}
    same = None
    if by_token is not None:
        same = min(cache.same_tokens(found[0], wanted[0], inputs) for found, wanted in ways)
        ways = [tuple(cache.without_padding(outputs, inputs) for outputs in way) for way in ways]
    return Checked(max(difference(*way) for way in ways), kernels, same)


@contextmanager
def _explained():
    """What onnxruntime says, of kinds of its own, in words that tell what to do."""
    import onnxruntime

    try:
        yield
    except Exception as error:
        raise RuntimeError(
            f"onnxruntime {onnxruntime.__version__} cannot run what was made of the model, so no file was written: "
            f"{' '.join(str(error).split())[:500]}\nexport(..., round_outputs=False) leaves convolutions in floating point; "
            "skip=[...] at apply() does so with the layer that is named above."
        ) from error


def _name_outputs(graph: ir.Graph, names: list[str]) -> None:
    """The outputs are called as they were, whichever nodes they come from by now."""
    for value, name in zip(graph.outputs, names, strict=False):
        for other in (out for node in graph for out in node.outputs if out.name == name and out is not value):
            other.name = f"{name}.before"
        value.name = name


def _tidy(graph: ir.Model) -> None:
    """Order the nodes; take out what nothing reads any more (the float weights) and the exporter's notes."""
    graph.graph.sort()
    logger = logging.getLogger("onnxscript.optimizer")
    level, logger.level = logger.level, logging.ERROR  # it reports every constant that it cannot compute in advance
    try:
        onnxscript.optimizer.optimize(graph)
    finally:
        logger.level = level
    for node in graph.graph:
        node.metadata_props.clear()  # a third of a small file
        for value in node.outputs:
            value.metadata_props.clear()
