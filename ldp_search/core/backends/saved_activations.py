"""What a forward keeps for backward, in half the bytes: the space's option `activations="16bit"`.

Of plain training most of the memory is what autograd keeps: each product's input, and as much again by normalisations, GELU,
softmax and attention. While the model's forward runs, every large fp32 tensor that anything saves becomes 16-bit codes: blocks
of 2,048 elements, in the order of memory, each divided into 65,535 steps between its minimum and maximum (groups with a range
of their own, as ActNN, arXiv:2104.14129, has them for fewer bits). A tensor that several operations save, as a ReLU and the
convolution behind it do, is packed once. What is above a block's minimum never gets the minimum's code, so zeros stay apart
from small positive values: a ReLU's gradient is exact. Parameters, and the weights of quantized products, stay as they are.

The error is at most 1/514 of a quantization step for an 8-bit input and less for fewer bits; docs/step.md has what it does to
the gradients. What the model's forward does not compute (a loss outside of it) is kept as usual. Nothing is packed while
torch.compile compiles, with sharded parameters, and without gradients.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from .. import native
from ..native import passes

ATTRIBUTE = "_ldp_controller"  # in the model's __dict__ (model/install.py)
BLOCK = native.BLOCK
SMALLEST = 4096  # elements; below, the bookkeeping costs more than it saves


class Packed:
    """16-bit codes of a dense fp32 tensor's memory."""

    __slots__ = ("codes", "ranges", "source")

    def __init__(self, x: Tensor, source):
        flat = x.as_strided((x.numel(),), (1,))
        self.codes, self.ranges = pack(flat)
        self.source = source  # what the codes are of: a tensor of another storage at the same address is not it

    def unpack(self) -> Tensor:
        """The memory again, as a flat tensor."""
        return unpack(self.codes, self.ranges)


@native.with_kernel(passes.pack)
def pack(flat: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, (2, blocks) of lowest value and step)."""
    missing = -flat.numel() % BLOCK
    x = torch.cat([flat, flat[-1:].expand(missing)]) if missing else flat
    x = x.view(-1, BLOCK)
    low, high = torch.aminmax(x, dim=1, keepdim=True)
    step = (high - low) / 65535
    inverse = torch.where(step > 0, 1 / step, 0)
    codes = ((x - low) * inverse).round_().clamp_(max=65535)
    codes = torch.where((codes < 1) & (x > low), 1, codes)
    return (codes - 32768).to(torch.int16).flatten()[: flat.numel()].clone(), torch.stack([low.flatten(), step.flatten()])


@native.with_kernel(passes.unpack)
def unpack(codes: Tensor, ranges: Tensor) -> Tensor:
    """The inverse of `pack`."""
    low, step = (values.repeat_interleave(BLOCK)[: codes.numel()] for values in ranges)
    return (codes.to(torch.float32) + 32768).mul_(step).add_(low)


class Keeper:
    """Packs what one forward saves. exact: storages to leave alone."""

    def __init__(self, model: nn.Module):
        self.exact = {p.untyped_storage()._cdata for p in model.parameters()}
        self.packed: dict[tuple, Packed] = {}
        self.latest: tuple[Packed, Tensor] | None = None  # often asked for twice in a row: by a convolution, then by its ReLU
        self.hooks: torch.autograd.graph.saved_tensors_hooks | None = torch.autograd.graph.saved_tensors_hooks(
            self._pack, self._unpack
        )

    def _pack(self, x: Tensor):
        kept = self._kept(x)
        if _running.watch is not None:
            _running.watch(*([kept] if isinstance(kept, Tensor) else [kept[0].codes, kept[0].ranges]))
        return kept

    def _kept(self, x: Tensor):
        if x.dtype != torch.float32 or x.numel() < SMALLEST or type(x) is not Tensor:
            return x
        storage = x.untyped_storage()
        if storage._cdata in self.exact or storage.nbytes() < 4 * x.numel():  # the latter: expanded from less
            return x
        key: tuple
        dense: Tensor | None
        if storage.nbytes() == 4 * x.numel() and native.is_dense(x):
            key, dense = (storage._cdata, x._version), x
        else:  # a part: packed without the rest, whose memory may hold anything
            key, dense = (storage._cdata, x._version, x.storage_offset(), x.shape, x.stride()), None
        found = self.packed.get(key)
        if found is None or found.source.expired():
            found = self.packed[key] = Packed(x.contiguous() if dense is None else dense, StorageWeakRef(storage))
        layout = (x.shape, x.stride()) if dense is not None else (x.shape, None)
        return found, layout

    def _unpack(self, saved):
        if isinstance(saved, Tensor):
            return saved
        packed, (shape, stride) = saved
        if self.latest is None or self.latest[0] is not packed:
            self.latest = None  # first, so that its memory can serve again
            self.latest = packed, packed.unpack()
        flat = self.latest[1]
        return flat.view(shape) if stride is None else flat.as_strided(shape, stride)


class _Running(threading.local):
    def __init__(self) -> None:
        self.keepers: list[Keeper | None] = []
        self.watch: Callable[..., None] | None = None


_running = _Running()


@contextlib.contextmanager
def watched(see: Callable[..., None]):
    """Within this context `see` is called with the tensors that keepers keep. Hooks around a model's forward see none of them:
    autograd calls the innermost ones alone, which are the keeper's.
    """
    before, _running.watch = _running.watch, see
    try:
        yield
    finally:
        _running.watch = before


def keep_exact(w: Tensor) -> None:
    """Have the forward under way keep the tensor as it is."""
    if _running.keepers and _running.keepers[-1] is not None:
        _running.keepers[-1].exact.add(w.untyped_storage()._cdata)


def begin(model: nn.Module, args: tuple) -> None:
    """Forward pre-hook of the model."""
    if torch.compiler.is_compiling():
        return
    on = torch.is_grad_enabled() and model.__dict__[ATTRIBUTE].enabled and not any(map(_is_wrapped, model.parameters()))
    keeper = Keeper(model) if on else None
    _running.keepers.append(keeper)
    if keeper is not None and keeper.hooks is not None:
        keeper.hooks.__enter__()


def end(model: nn.Module, args: tuple, output) -> None:
    """Forward hook of the model, called after an error too."""
    if torch.compiler.is_compiling() or not _running.keepers:
        return
    keeper = _running.keepers.pop()
    if keeper is not None and keeper.hooks is not None:
        keeper.hooks.__exit__(None, None, None)
        keeper.packed.clear()
        keeper.hooks = None  # they refer to the keeper, which is to go with the graph


def _is_wrapped(p: Tensor) -> bool:
    return type(p) is not nn.Parameter


def install(model: nn.Module) -> dict:
    """The hooks, to be removed by `ldp_search.remove`."""
    return {
        "saved": model.register_forward_pre_hook(begin),
        "saved_end": model.register_forward_hook(end, always_call=True),
    }
