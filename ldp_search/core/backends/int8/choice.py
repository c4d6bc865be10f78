"""Which products run in integers: those that fit, where a measurement at their first call finds integers faster.

What was measured is part of the controller's state, so that a resumed training computes as before. Several processes choose
alike: what one of them measures is a proposal, which counts when all have agreed on it (`distributed.agree_on_choices`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import cache
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...bits.space import FULL_PRECISION
from ...native.memory import apart, intercepted
from ...products.bilinear import ConvolutionProduct, LinearProduct
from ..call import Call, compute_dtype
from .matmul import LONGEST_SUM

ROUNDS = 3
SLOWER = "slower in integers"
UNSETTLED = "not yet measured, or not agreed on by the processes"


def misfit(call: Call) -> str | None:
    """Why a product cannot run in 8-bit integers; None: it can. Looks at nothing that is only known on the device."""
    if not isinstance(call.product, (LinearProduct, ConvolutionProduct)):  # torch.compile of torch 2.9 takes no union
        return "a product of another kind"
    if isinstance(call.product, ConvolutionProduct) and (reason := _unfit_convolution(call.product)):
        return reason
    highest = call.site.highest
    kinds = ("weights", "inputs", "gradients", "gradients")[: len(highest)]  # torch.compile of 2.9 wants them as many
    for what, bits in zip(kinds, highest, strict=True):
        if bits > 8 and not (what == "gradients" and bits == FULL_PRECISION):
            return f"{what} of up to {bits:.0f} bits"
    x, w = call.x, call.w
    if not all(type(t) in (Tensor, nn.Parameter) for t in (x, w)):
        return "tensors of a class of their own"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16) or compute_dtype(x) == torch.float64:
        return f"computed in {x.dtype}".replace("torch.", "")
    rows, outputs, inputs = _sizes(call)
    linear = isinstance(call.product, LinearProduct)  # a convolution's weight gradient is summed in parts
    if max(rows if linear else 1, outputs * (1 if linear else w[0, 0].numel()), inputs) > LONGEST_SUM:
        return "sums too long for 32 bits"
    if not _products_on(x.device):
        return f"no 8-bit products on this {x.device.type}"
    if x.is_cuda and (min(rows, outputs, inputs) <= 16 or any(n % 8 for n in (rows, outputs, inputs))):
        return "sizes that are not multiples of 8 above 16"
    return None


def _unfit_convolution(product: ConvolutionProduct) -> str | None:
    if product.transposed or product.spatial_dims != 2:
        return "not a convolution in two dimensions"
    return "a grouped convolution" if product.groups > 1 else None


def _sizes(call: Call) -> tuple[int, int, int]:
    """(rows, outputs, inputs) of the product of matrices; the rows of a convolution counted at its input."""
    x, w = call.x, call.w
    if not isinstance(call.product, LinearProduct):
        return x.numel() // x.shape[1], len(w), w[0].numel()
    return x.numel() // x.shape[-1], *(w.shape[::-1] if call.product.transposed else w.shape)


@cache
def has_integer_products(device: torch.device | str) -> bool:
    """Whether torch._int_mm is exact and has hardware behind it: CPUs with VNNI, and CUDA. Without VNNI, sums of pairs may
    saturate at 16 bits.
    """
    there = {"cpu": getattr(torch.cpu, "_is_vnni_supported", lambda: False), "cuda": torch.cuda.is_available}
    kind = torch.device(device).type
    return kind in there and there[kind]() and hasattr(torch, "_int_mm") and apart(_is_exact, device)


def _products_on(device: torch.device) -> bool:
    return has_integer_products(device)


_products_on._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_exact(device: torch.device | str) -> bool:
    try:
        ends = torch.tensor([-128, 127, 127, -128] * 16, dtype=torch.int8, device=device)
        a, b = ends.repeat(32, 1), ends.flip(0).repeat(32, 1)
        return torch.equal(torch._int_mm(a, b.t()).cpu(), (a.cpu().long() @ b.cpu().long().t()).int())
    except RuntimeError:
        return False


_numbers = itertools.count()
_alive: WeakValueDictionary[int, Choices] = WeakValueDictionary()


class Choices:
    """What was measured, and which layers ran how."""

    def __init__(self) -> None:
        self.number = next(_numbers)
        _alive[self.number] = self
        self.seconds: dict[str, list[float]] = {}
        self.proposed: dict[str, list[float]] = {}
        self.reasons: dict[str, str | None] = {}
        self.slower_before: set[str] = set()  # in the training that was resumed
        self.trained: set[str] = set()
        self.mixed: set[str] = set()
        self.forward_only: set[str] = set()

    def slower(self, call: Call, ways: dict[str, Callable[[Call], Tensor]]) -> str | None:
        """SLOWER where the first of two ways takes longer than the second one, measured once for each kind of call; of
        several processes UNSETTLED until they have agreed on it, and in a mode or a trace, whose times say nothing.
        """
        key, alone = _kind(call), _processes() == 1
        if key not in self.seconds and key not in self.proposed and not intercepted():
            (self.seconds if alone else self.proposed)[key] = _measure(call, list(ways.values()))
        if key not in self.seconds:
            return UNSETTLED
        return None if self.seconds[key][0] < self.seconds[key][1] else SLOWER

    def agree(self, proposals: list[dict[str, list[float]]]) -> None:
        """Take over what the processes measured, listed by rank: of each kind of call, the first one's figures."""
        found = {key: times for of_rank in reversed(proposals) for key, times in of_rank.items()}
        self.seconds = found | self.seconds
        self.proposed = {}

    def note(self, call: Call, reason: str | None) -> None:
        """A layer ran in integers, or did not for this reason. Training counts, evaluation only before any.

        One that did both, as with inputs of several shapes, counts as integers, and is mixed. What a mode or a trace saw, of
        fake tensors for one, does not count.
        """
        if not intercepted():
            self.record(call.site.name, reason, call.grad_bits is None)

    def was_slower(self, name: str) -> bool:
        """Whether a layer was simulated for that reason when it ran last."""
        return self.reasons[name] == SLOWER if name in self.reasons else name in self.slower_before

    def record(self, name: str, reason: str | None, full_gradients: bool) -> None:
        """The same by the layer's name."""
        learns = torch.is_grad_enabled()
        if name in self.reasons and not learns:
            return
        if name not in self.trained:
            self.reasons[name] = reason
        elif self.reasons[name] != reason:
            if None in (reason, self.reasons[name]):
                self.mixed.add(name)
                reason = None
            self.reasons[name] = reason
        if learns:
            self.trained.add(name)
        if reason is None and full_gradients:
            self.forward_only.add(name)

    def report(self, names: list[str]) -> str:
        """One line: how many of the layers ran in integers, and why the others did not."""
        if not self.reasons:
            return "integer arithmetic: no layer has run yet"
        ran = [name for name in names if self.reasons.get(name, "") is None]
        only = sum(name in self.forward_only for name in ran)
        how = "forward and backward" if not only else "forward" if only == len(ran) else f"{only} of them forward only"
        mixed = [name for name in ran if name in self.mixed]
        how += f"; {_some(mixed)} not at every call" if mixed else ""
        text = f"integer arithmetic: {len(ran)} of {len(names)} layers" + (f" ({how})" if ran else "")
        others: dict[str, list[str]] = {}
        for name in names:
            if name not in ran:
                reason = self.reasons.get(name) or "did not run, or only outside of layers"
                others.setdefault(reason, []).append(name)
        listed = [f"{_some(members)} ({reason})" for reason, members in others.items()]
        return text + (f"; simulated: {'; '.join(listed)}" if listed else "")

    def state_dict(self) -> dict:
        slower = [name for name, reason in self.reasons.items() if reason == SLOWER]
        return {"seconds": {key: list(times) for key, times in self.seconds.items()}, "slower": slower}

    def load_state_dict(self, state: dict) -> None:
        self.seconds = {key: list(times) for key, times in state.get("seconds", {}).items()}
        self.slower_before = set(state.get("slower", []))


def choose_while_compiling(number: int, name: str, reason: str | None, measured: bool, full_gradients: bool) -> bool:
    """Whether a layer that torch.compile compiles, which fits if there is no `reason`, is to run in integers.

    A trace has no tensors to measure, so what steps before it found counts, and integers where they found nothing.

    Args:
        number: of the `Choices`; a trace takes plain constants.
    """
    choices = _alive[number]
    if reason is None and measured and choices.was_slower(name):
        reason = SLOWER
    choices.record(name, reason, full_gradients)
    return reason is None


choose_while_compiling._dynamo_marked_constant = True  # type: ignore[attr-defined]  # called as it is, while a trace is made


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _kind(call: Call) -> str:
    """What the speed depends on. Sizes to the next power of two: a batch of texts is a little longer or shorter each time."""
    x, w = call.x, call.w
    rows, options = _power(_sizes(call)[0]), ""
    if not isinstance(call.product, LinearProduct):
        size, p = "x".join(str(_power(n)) for n in x.shape[2:]), call.product
        options = f" at {size}, stride {p.stride}, padding {p.padding}, dilation {p.dilation}"
    threads = f"{_processes()} processes" if _processes() > 1 else torch.get_num_threads()
    way = "backward too" if _learns(call) else "forward"
    precision = "" if call.grad_bits is not None else ", full gradients"
    transposed = " transposed" if call.product.transposed else ""
    return (
        f"{x.device.type} x {threads}, {x.dtype} in {compute_dtype(x)}, {rows} rows, "
        f"weight{transposed} {tuple(w.shape)}{options}, {way}{precision}"
    )


def _power(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


def _learns(call: Call) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(call))


def _tensors(call: Call) -> list[Tensor]:
    return [t for t in (call.x, call.w, call.bias, *call.x_grid, *call.w_grid) if t is not None]


def _measure(call: Call, ways: list[Callable[[Call], Tensor]]) -> list[float]:
    """Shortest seconds of each way, interleaved; neither random state nor gradients are touched."""
    learns, device = _learns(call), call.x.device
    # With one thread its own time says more: it leaves out what others take of the processor.
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    times: list[list[float]] = [[] for _ in ways]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for _ in range(1 + ROUNDS):
            for way, seconds in zip(ways, times, strict=True):
                copy = _detached(call)
                _wait(device)
                start = clock()
                y = way(copy)
                if learns:
                    leaves = [t for t in _tensors(copy) if t.requires_grad]
                    torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)
                _wait(device)
                seconds.append(clock() - start)
    return [min(seconds[1:]) for seconds in times]


def _detached(call: Call) -> Call:
    """The same product on leaves of their own, without copies."""
    x_grid, w_grid = (grid.map(_leaf) for grid in (call.x_grid, call.w_grid))
    bias = None if call.bias is None else _leaf(call.bias)
    return call._replace(x=_leaf(call.x), w=_leaf(call.w), bias=bias, x_grid=x_grid, w_grid=w_grid)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
