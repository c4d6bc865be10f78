"""What an exported file is compared with: the same trained network in torch and onnxruntime, fp32 and onnxruntime's own int8.

Everything here is a `Way`: a module that is called as the model is, with its bytes on disk, or the reason why there is none.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ... import int8, packed
from .export import plain_copy
from .onnx_model import OnnxModel, Outputs, onnx_feed
from .subject import Subject

TRAINED, FP32_TORCH, FP32_ORT = "trained network, at its bits", "torch, fp32", "onnxruntime, fp32"
STATIC_ORT, DYNAMIC_ORT = "onnxruntime's static int8", "onnxruntime's dynamic int8"
BY_TOKEN = "ours, onnx, last tokens one by one"


@dataclass
class Way:
    """One way to run the network. module: None where there is none, `failed` then says why. bytes: on disk."""

    name: str
    module: nn.Module | None
    bytes: int | None = None
    ours: bool = False
    failed: str | None = None
    timed: bool = True


class PlainModel(nn.Module):
    """A loaded torch.export program, which takes what it was traced with and gives a plain dict."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        found = self.module(*args, **{key: value for key, value in kwargs.items() if isinstance(value, Tensor)})
        return Outputs(found) if isinstance(found, dict) else found


def exported(format: str, path: Path, subject: Subject) -> Way:
    """The way of a file that was written here."""
    make: dict[str, Callable[[], nn.Module]] = {
        "onnx": lambda: OnnxModel(path),
        "torch": lambda: PlainModel(int8.load(path)),
        "packed": lambda: packed.load(path, plain_copy(subject.model)),
    }
    return _way(f"ours, {format}", make[format], path, ours=True, timed=format != "packed")


def by_token(path: Path) -> Way:
    """The way of an ONNX file with a cache that reads the last tokens of each text one at a time."""
    return _way(BY_TOKEN, lambda: OnnxModel(path, token_by_token=True), path, ours=True, timed=False)


def has_onnxruntime() -> bool:
    """Whether all that a comparison with onnxruntime needs is installed."""
    return all(importlib.util.find_spec(package) is not None for package in ("onnx", "onnxscript", "onnxruntime"))


def peers(subject: Subject, folder: Path, compare: bool) -> Iterator[Way]:
    """What to compare with; files are made in `folder`. compare: also with onnxruntime, where it is installed."""
    yield Way(TRAINED, subject.model, timed=False)
    plain = plain_copy(subject.model)
    size = sum(t.numel() * t.element_size() for t in {t.data_ptr(): t for t in plain.state_dict().values()}.values())
    yield Way(FP32_TORCH, plain, size)
    if not compare or not has_onnxruntime():
        return
    float_file = folder / "fp32.onnx"
    first = _way(FP32_ORT, lambda: _written(float_file, lambda: write_float(plain, float_file, subject)), float_file)
    yield first
    for name, make in ((STATIC_ORT, _static), (DYNAMIC_ORT, _dynamic)):
        path = folder / f"{make.__name__}.onnx"
        if first.failed is not None:
            yield Way(name, None, failed="there is no float file to start from")
        else:
            yield _way(name, lambda make=make, path=path: _written(path, lambda: make(float_file, path, subject)), path)


def _written(path: Path, write: Callable[[], None]) -> nn.Module:
    write()
    return OnnxModel(path)


def _way(name: str, make: Callable[[], nn.Module], path: Path, **options: Any) -> Way:
    """The way, or why it cannot be made: others' exporters and quantizers raise whatever they like."""
    try:
        with quiet():
            module = make()
        return Way(name, module.eval(), path.stat().st_size, **options)
    except Exception as error:
        return Way(name, None, failed=_first_line(error), **options)


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def write_float(plain: nn.Module, path: Path, subject: Subject) -> None:
    """The network in fp32, as an ONNX file that onnxruntime's own quantizers take."""
    from onnxscript import ir, optimizer

    from ..onnx.exported_forward import ready
    from ..onnx.float_graph import float_graph, output_names

    args, kwargs = subject.inputs(4)
    with ready(plain):
        graph, _ = float_graph(plain, args, kwargs, output_names(plain(*args, **kwargs)))
    optimizer.optimize(graph)
    ir.save(graph, path)


def _static(float_file: Path, path: Path, subject: Subject) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            takes = OnnxModel(float_file).takes
            self.feeds = iter([onnx_feed(takes, *inputs) for inputs in subject.calibration()])

        def get_next(self):
            return next(self.feeds, None)

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(float_file), str(prepared))
    quantize_static(str(prepared), str(path), Reader(), per_channel=True, activation_type=QuantType.QUInt8)


def _dynamic(float_file: Path, path: Path, subject: Subject) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(float_file), str(path), per_channel=True)


@contextlib.contextmanager
def quiet():
    """Within this context exporters and quantizers keep their remarks to themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)
