"""onnxruntime's own times of the nodes of a small graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Transpose", "ReorderInput", "ReorderOutput", "Sub", "Add", "Clip", "Cast")
"""What onnxruntime puts between a convolution and neighbours of another type or order of memory."""
NODE = "_kernel_time"


def session(path: Path, threads: int, profile: str | None = None) -> Any:
    """An inference session on the CPU; profile: start of the name of the file that its record goes to."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def cut(path: Path, count: int) -> list[Path]:
    """A graph of `count` parts side by side, the i-th output of the i-th input, as files of one part each."""
    import onnx

    graph = onnx.load(path)
    inputs, outputs = ([value.name for value in values] for values in (graph.graph.input, graph.graph.output))
    if len(inputs) != count or len(outputs) != count:
        raise ValueError(f"{path} must have {count} inputs and outputs; it has {len(inputs)} and {len(outputs)}.")
    extractor, files = onnx.utils.Extractor(graph), []
    for place, (given, made) in enumerate(zip(inputs, outputs, strict=True)):
        files.append(path.with_name(f"{path.stem}-{place}.onnx"))
        onnx.save(extractor.extract_model([given], [made]), files[-1])
    return files


class NodeTimes:
    """A session that records; `parts` ends it."""

    def __init__(self, path: Path, threads: int):
        self.session = session(path, threads, str(path.with_suffix("")))

    def parts(self, convolution: bool) -> list[tuple[float, float, float]]:
        """[(before, product, after)] microseconds of each run. Only about a convolution are there conversions of its own:
        what rounds a linear layer's input comes with every such layer.
        """
        record = Path(self.session.end_profiling())
        return split(json.loads(record.read_text()), CONVERSIONS if convolution else ())


def split(events: list[dict[str, Any]], conversions: tuple[str, ...]) -> list[tuple[float, float, float]]:
    """The same of a record's events."""
    nodes = sorted((e for e in events if e.get("cat") == "Node" and e["name"].endswith(NODE)), key=lambda e: e["ts"])
    each = len({e["args"]["node_index"] for e in nodes})
    out = []
    for start in range(0, len(nodes) - len(nodes) % max(1, each), max(1, each)):
        run = [(e["args"]["op_name"], float(e["dur"])) for e in nodes[start : start + each]]
        inner = [place for place, (name, _) in enumerate(run) if name not in conversions] or [*range(len(run))]
        first, last = inner[0], inner[-1]
        out.append(tuple(sum(us for _, us in part) for part in (run[:first], run[first : last + 1], run[last + 1 :])))
    return out
