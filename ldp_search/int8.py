"""Linear layers and convolutions on int8 kernels: the runtime of `format=torch`.

    model = int8.load("model.pt2")         # a plain module: run it as it is, or torch.compile(model)

This one file needs torch, and nothing else of ldp_search: it may be copied beside a model.

A file is a torch.export program. Its layers round their inputs to uint8 codes by torch's own functions and multiply them by
two operators that are defined here, `ldp_int8::linear` and `ldp_int8::convolution`: oneDNN's int8 kernels on CPUs that have the
instructions for them, with the weight brought into oneDNN's order once, at its first use; else a formula in floating point.

    x_q = x_scale * (q - x_zero)        w_q = w_scale * codes, int8, one scale an output channel        y = x_q * w_q + bias
"""

from __future__ import annotations

import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

VERSION = 1
NOTE = "ldp_int8.json"  # in the archive's extra files
POSTS = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),  # of convolutions
    "gelu": ("gelu", [], "none"),  # of linear layers, as the next
    "gelu_tanh": ("gelu", [], "tanh"),
}
"""{what may follow a product in the same kernel: oneDNN's name, numbers and algorithm}."""

_library = torch.library.Library("ldp_int8", "DEF")
_END = "str post='none', float y_scale=0.0, int y_zero=0) -> Tensor"  # y_scale > 0: codes of the result, uint8
_library.define(f"linear(Tensor q, float x_scale, int x_zero, Tensor codes, Tensor w_scale, Tensor? bias, {_END}")
_library.define(
    "convolution(Tensor q, float x_scale, int x_zero, Tensor codes, Tensor w_scale, Tensor? bias, int[] stride, int[] padding, "
    f"int[] dilation, int groups, {_END}"
)


# -- kernels --------------------------------------------------------------------------------------------------------


@cache
def has_kernels() -> bool:
    """Whether oneDNN's int8 kernels are there and exact: tried once, on sums that saturate at 16 bits without VNNI.

    In a thread of its own: the first to ask may be a trace, with tensors that have no values.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_are_exact).result()


def _are_exact() -> bool:
    q, codes, one = torch.full((2, 64), 255, dtype=torch.uint8), torch.full((16, 64), 127, dtype=torch.int8), torch.ones(16)
    try:
        y = _linear_by_kernel(q, 1.0, 0, codes, one, None)
        z = _convolution_by_kernel(q[..., None, None], 1.0, 0, codes[..., None, None], one, None, [1, 1], [0, 0], [1, 1], 1)
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):  # another build or version of torch
        return False
    return bool((y == 64 * 255 * 127).all() and (z == 64 * 255 * 127).all())


_packed: dict[tuple, tuple[StorageWeakRef, tuple]] = {}  # weights in oneDNN's order, while the plain ones live


def _prepared(codes: Tensor, options: tuple, make) -> tuple:
    """(packed weight, zero points of the weight) of int8 codes; made once for every tensor and its uses."""
    storage = codes.untyped_storage()
    version = 0 if codes.is_inference() else codes._version
    key = (storage._cdata, codes.storage_offset(), tuple(codes.shape), version, options)
    if key not in _packed:
        for old in [old for old, (reference, _) in _packed.items() if reference.expired()]:
            del _packed[old]
        _packed[key] = StorageWeakRef(storage), (make(), torch.zeros(codes.shape[0], dtype=torch.int32))
    return _packed[key][1]


def _result(post: str, y_scale: float, y_zero: int) -> tuple:
    """oneDNN's last arguments."""
    return y_scale or 1.0, y_zero, torch.uint8 if y_scale else torch.float32, *POSTS[post]


def _linear(q, x_scale, x_zero, codes, w_scale, bias, post="none", y_scale=0.0, y_zero=0):
    if has_kernels() and q.numel():
        return _linear_by_kernel(q, x_scale, x_zero, codes, w_scale, bias, post, y_scale, y_zero)
    return _after(F.linear((q.float() - x_zero) * x_scale, codes.float() * w_scale[:, None], bias), post, y_scale, y_zero)


def _linear_by_kernel(q, x_scale, x_zero, codes, w_scale, bias, post="none", y_scale=0.0, y_zero=0):
    weight, zeros = _prepared(codes, (), lambda: torch.ops.onednn.qlinear_prepack(codes, None))
    end = _result(post, y_scale, y_zero)
    return torch.ops.onednn.qlinear_pointwise(q, x_scale, x_zero, weight, w_scale, zeros, bias, *end)


def _convolution(
    q, x_scale, x_zero, codes, w_scale, bias, stride, padding, dilation, groups, post="none", y_scale=0.0, y_zero=0
):
    how = list(stride), list(padding), list(dilation)
    if has_kernels() and q.numel():
        return _convolution_by_kernel(q, x_scale, x_zero, codes, w_scale, bias, *how, groups, post, y_scale, y_zero)
    w = codes.float() * w_scale.view(-1, *[1] * (codes.dim() - 1))
    y = torch.convolution((q.float() - x_zero) * x_scale, w, bias, *how, False, [0] * len(stride), groups)
    return _after(y, post, y_scale, y_zero)


def _convolution_by_kernel(
    q, x_scale, x_zero, codes, w_scale, bias, stride, padding, dilation, groups, post="none", y_scale=0.0, y_zero=0
):
    how = stride, padding, dilation
    options = (x_scale, x_zero, *map(tuple, how), groups)
    weight, zeros = _prepared(
        codes, options, lambda: torch.ops.onednn.qconv_prepack(codes, w_scale, x_scale, x_zero, *how, groups, None)
    )
    kernel = getattr(torch.ops.onednn, "qconv_pointwise", None) or torch.ops.onednn.qconv2d_pointwise
    end = _result(post, y_scale, y_zero)
    return kernel(q, x_scale, x_zero, weight, w_scale, zeros, bias, *how, groups, *end)


def _after(y: Tensor, post: str, y_scale: float, y_zero: int) -> Tensor:
    """By formulas, what follows a product."""
    if post in ("relu", "relu6"):
        y = y.clamp(0, 6 if post == "relu6" else None)
    elif post != "none":
        y = F.gelu(y, approximate="tanh" if post == "gelu_tanh" else "none")
    return torch.clamp(torch.round(y / y_scale) + y_zero, 0, 255).to(torch.uint8) if y_scale else y


def _fake_linear(q, x_scale, x_zero, codes, w_scale, bias, post="none", y_scale=0.0, y_zero=0):
    return q.new_empty((*q.shape[:-1], codes.shape[0]), dtype=torch.uint8 if y_scale else torch.float32)


def _fake_convolution(
    q, x_scale, x_zero, codes, w_scale, bias, stride, padding, dilation, groups, post="none", y_scale=0.0, y_zero=0
):
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(q.shape[2:], codes.shape[2:], stride, padding, dilation, strict=True)
    ]
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    y = q.new_empty((q.shape[0], codes.shape[0], *sizes), dtype=torch.uint8 if y_scale else torch.float32)
    return y.to(memory_format=formats[y.dim()]) if y.dim() in formats and has_kernels() else y


for _name, _run, _fake in (("linear", _linear, _fake_linear), ("convolution", _convolution, _fake_convolution)):
    _library.impl(_name, _run, "CPU")
    torch.library.register_fake(f"ldp_int8::{_name}", _fake, lib=_library)


# -- layers ---------------------------------------------------------------------------------------------------------


class Int8Layer(nn.Module):
    """What the layers share: the weight's codes, and the grids that the input is rounded to, one for each call of a forward.

    weight: int8 codes, output channels first. w_scale: (channels,). bias_0, bias_1, ...: (channels,), with what a grid's shift
    adds to it; one for each grid. grids: [(scale, zero_point, low, high, shift)], as `integer_codes.InputCodes`.
    """

    def __init__(self, codes: Tensor, w_scale: Tensor, biases: list[Tensor], grids: list[tuple]):
        super().__init__()
        self.register_buffer("weight", codes)
        self.register_buffer("w_scale", w_scale)
        for i, bias in enumerate(biases):
            self.register_buffer(f"bias_{i}", bias)
        self.grids, self.turn = grids, 0

    def next_call(self) -> tuple[tuple, Tensor]:
        """(grid, bias) of the call whose turn it is."""
        turn = self.turn
        if len(self.grids) > 1:
            self.turn = (turn + 1) % len(self.grids)
        return self.grids[turn], getattr(self, f"bias_{turn}")

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, codes {self.grids[0][2]} to {self.grids[0][3]}"


def quantize(x: Tensor, scale: float, zero_point: int, low: int, high: int, shift: float) -> Tensor:
    """uint8 codes of `x`."""
    x = x if x.dtype == torch.float32 else x.float()
    q = (x - shift).mul_(1 / scale) if shift else x * (1 / scale)
    return q.round_().add_(zero_point).clamp_(low, high).to(torch.uint8)


def _as(y: Tensor, like: Tensor) -> Tensor:
    return y if y.dtype == like.dtype else y.to(like.dtype)


class Int8Linear(Int8Layer):
    def forward(self, input: Tensor) -> Tensor:
        grid, bias = self.next_call()
        q = quantize(input, *grid)
        return _as(torch.ops.ldp_int8.linear(q, grid[0], grid[1], self.weight, self.w_scale, bias), input)


class Int8Conv(Int8Layer):
    """padding: that of the product, zeros. pad, mode: what is padded before, as torch.nn.functional.pad takes it.

    edges: one for each grid, (outputs, 1, *kernel): what the grid's shift adds at each tap that lies on the input and not on
    the zeros around it; the bias is then without it. None where the bias holds it.
    """

    def __init__(self, codes, w_scale, biases, grids, stride, padding, dilation, groups, pad=None, mode="constant", edges=()):
        super().__init__(codes, w_scale, biases, grids)
        self.has_edges = [edge is not None for edge in edges] or [False] * len(grids)
        for i, edge in enumerate(edges):
            if edge is not None:
                self.register_buffer(f"edge_{i}", edge)
        self.stride, self.padding, self.dilation, self.groups = map(list, (stride, padding, dilation, [groups]))
        self.pad, self.mode = pad, mode

    def forward(self, input: Tensor) -> Tensor:
        turn = self.turn
        grid, bias = self.next_call()
        unbatched = input.dim() == len(self.stride) + 1
        x = input.unsqueeze(0) if unbatched else input
        x = x if self.pad is None else F.pad(x, self.pad, mode=self.mode)
        q, how = quantize(x, *grid), (self.stride, self.padding, self.dilation, self.groups[0])
        y = _as(torch.ops.ldp_int8.convolution(q, grid[0], grid[1], self.weight, self.w_scale, bias, *how), input)
        if self.has_edges[turn]:
            inside, edge = x.new_ones(1, 1, *x.shape[2:]), getattr(self, f"edge_{turn}")
            y = y + torch.convolution(inside, edge, None, *how[:3], False, [0] * len(self.stride), 1)
        return y.squeeze(0) if unbatched else y


# -- files ----------------------------------------------------------------------------------------------------------


def save(program: torch.export.ExportedProgram, path: str | Path, note: dict) -> None:
    """Write a program with a note of plain data, its version among it."""
    program.example_inputs = None  # they are pickled, and data of the user
    torch.export.save(program, path, extra_files={NOTE: json.dumps({"version": VERSION} | note)})


def read_note(path: str | Path) -> dict:
    """Check a file and return its note.

    Raises:
        FileNotFoundError: there is none. ValueError: it was cut short or changed, is of another version, or would be unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No model at {path}: give a file that format=torch wrote.")
    try:
        with zipfile.ZipFile(path) as archive:
            bad, contents = archive.testzip(), {name: archive.read(name) for name in _small(archive)}
            names = archive.namelist()
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ValueError(f"{path} is not a whole file ({error}): it was cut short or changed. Copy it again.") from error
    if bad is not None:
        raise ValueError(f"{path} was changed: the checksum of {bad} is another. Copy it again.")
    pickled = [n for n in names if _is_pickled(n, contents.get(n, b""))]
    if pickled:
        raise ValueError(f"{path} holds {pickled[0]}, which would have to be unpickled: no file of format=torch does. Refused.")
    found = [json.loads(text) for name, text in contents.items() if name.endswith(f"extra/{NOTE}")]
    if not found:
        raise ValueError(f"{path} is a torch.export program, but none that format=torch wrote: it has no {NOTE}.")
    if found[0].get("version") != VERSION:
        raise ValueError(
            f"{path} must be of format version {VERSION}; it is of {found[0].get('version')!r}, made with "
            f"{found[0].get('made_with')}. Read it with the int8.py of that version, or export the model again."
        )
    return found[0]


def _small(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in archive.namelist() if name.endswith((".json", ".pt"))]


def _is_pickled(name: str, content: bytes) -> bool:
    """Whether loading the archive would unpickle this part of it."""
    part = name.rpartition("/")[2]
    if name.endswith("_config.json"):
        return any(entry.get("use_pickle") for entry in json.loads(content).get("config", {}).values())
    return part.startswith(("custom_obj", "opaque_obj")) or (part.endswith(".pt") and content != b"")


def load_program(path: str | Path) -> torch.export.ExportedProgram:
    """The torch.export program of a file, after `read_note`'s checks."""
    read_note(path)
    return torch.export.load(io.BytesIO(Path(path).read_bytes()))


def load(path: str | Path) -> nn.Module:
    """A plain module in evaluation mode that runs on int8 kernels, eager or under torch.compile."""
    module = load_program(path).module()
    for name in ("train", "eval"):  # which torch refuses there; the program is one of evaluation, whatever the mode
        module.__dict__.pop(name, None)
    return module.eval()
