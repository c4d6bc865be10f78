"""What runs a network, one class a target: the files and kernels of `python -m ldp_search.export`, layer by layer and whole."""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import ldp_search

from ... import int8
from ...core.bits.space import MAX_BITS, SearchSpace
from ..exports.int8 import int8_module
from ..exports.peers import PlainModel, onnx_feed, quiet
from .onnxruntime_nodes import NodeTimes, cut, session
from .shapes import Apart, Shape, at_bits

CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")


class Parts(NamedTuple):
    """Microseconds of one call of a layer: of the product, and of what brings its input and output into its own form."""

    before: float
    product: float
    after: float


class Timed(ABC):
    """Something that is run in turn with others; the second of two runs counts, which finds its weights near the processor."""

    @abstractmethod
    def run(self) -> None:
        """Its turn."""

    @abstractmethod
    def times(self) -> list[Parts]:
        """Of every turn so far; there is none after it."""


class Called(Timed):
    """A function under a clock. With one thread its own processor time, which leaves out what others do on a busy machine."""

    def __init__(self, call: Callable[[], Any], clock: Callable[[], float]):
        self.call, self.clock, self.found = call, clock, []

    def run(self) -> None:
        self.call()
        start = self.clock()
        self.call()
        self.found.append(Parts(0.0, (self.clock() - start) * 1e6, 0.0))

    def times(self) -> list[Parts]:
        return self.found


class Nodes(Timed):
    """A layer in onnxruntime, by its own record of the nodes: calling a session costs more than a small layer."""

    def __init__(self, path: Path, inputs: Tensor, convolution: bool, threads: int):
        self.nodes, self.convolution = NodeTimes(path, threads), convolution
        self.feed = {self.nodes.session.get_inputs()[0].name: inputs.numpy()}

    def run(self) -> None:
        for _ in range(2):
            self.nodes.session.run(None, self.feed)

    def times(self) -> list[Parts]:
        return [Parts(*parts) for parts in self.nodes.parts(self.convolution)[1::2]]


class Runtime(ABC):
    """Makes what is measured. space: whose quantizers are used. folder: for files. format: of an export. packages: beside
    torch, whose versions are told.
    """

    format: str
    packages: tuple[str, ...] = ()

    def __init__(self, space: SearchSpace, folder: Path, threads: int):
        self.space, self.folder, self.threads = space, folder, threads
        self.clock = time.process_time if threads == 1 else time.perf_counter

    @abstractmethod
    def layers(self, shapes: list[Shape], kernel: int) -> list[Timed]:
        """Each shape alone, on the kernels of a container."""

    @abstractmethod
    def call_of(self, path: Path, args: tuple, kwargs: dict[str, Any]) -> Callable[[], Any]:
        """A forward of an exported file."""

    def whole(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], kernel: int) -> Timed:
        """The network, every layer on the kernels of a container."""
        return Called(self.call_of(self.exported(model, args, kwargs, kernel, "whole"), args, kwargs), self.clock)

    def exported(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], kernel: int, name: str) -> Path:
        """The file of a plain model at the bits of a container."""
        path = self.folder / f"{name}-{kernel}{'.pt2' if self.format == 'torch' else '.onnx'}"
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the file takes this size of batch alone
            searched = at_bits(model, min(kernel, MAX_BITS), self.space, args, kwargs)
            ldp_search.export(searched, path, kwargs or args, format=self.format)
        return path


class OnnxRuntime(Runtime):
    """QDQ files in onnxruntime on the CPU."""

    format, packages = "onnx", ("onnxruntime",)

    def layers(self, shapes: list[Shape], kernel: int) -> list[Timed]:
        together = Apart([shape.layer for shape in shapes])
        path = self.exported(together, tuple(shape.inputs for shape in shapes), {}, kernel, "layers")
        files = cut(path, len(shapes))
        return [
            Nodes(file, shape.inputs, shape.kind in CONVOLUTIONS, self.threads)
            for file, shape in zip(files, shapes, strict=True)
        ]

    def call_of(self, path: Path, args: tuple, kwargs: dict[str, Any]) -> Callable[[], Any]:
        found = session(path, self.threads)
        feed = onnx_feed([value.name for value in found.get_inputs()], args, kwargs)
        return lambda: found.run(None, feed)


class Torch(Runtime):
    """torch.export programs on oneDNN's int8 kernels, and torch's own in floating point."""

    format = "torch"

    def layers(self, shapes: list[Shape], kernel: int) -> list[Timed]:
        together, inputs = Apart([shape.layer for shape in shapes]), tuple(shape.inputs for shape in shapes)
        with quiet():
            made = int8_module(at_bits(together, min(kernel, MAX_BITS), self.space, inputs, {})).module
        return [Called(_call(layer, (x,), {}), self.clock) for layer, x in zip(made.layers, inputs, strict=True)]

    def call_of(self, path: Path, args: tuple, kwargs: dict[str, Any]) -> Callable[[], Any]:
        return _call(PlainModel(int8.load(path)), args, kwargs)


def _call(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Callable[[], Any]:
    @torch.no_grad()
    def call() -> Any:
        return module(*args, **kwargs)

    return call


RUNTIMES: dict[str, type[Runtime]] = {"onnxruntime-cpu": OnnxRuntime, "torch-cpu": Torch}
