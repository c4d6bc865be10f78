"""What a training step costs with and without LDP: shared by `ldp_search.bench` and the first line of a run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ...core.backends import saved_activations


class Times(NamedTuple):
    """Seconds of the same work by two ways, one after the other, round by round."""

    plain: list[float]
    ldp: list[float]

    @property
    def seconds(self) -> tuple[float, float]:
        """Medians of both."""
        return statistics.median(self.plain), statistics.median(self.ldp)

    @property
    def ratio(self) -> float:
        return statistics.median(self._ratios())

    @property
    def spread(self) -> float:
        """Half the range of the rounds' ratios."""
        return (max(self._ratios()) - min(self._ratios())) / 2

    def _ratios(self) -> list[float]:
        return [b / a for a, b in zip(self.plain, self.ldp, strict=True)]


def interleaved(plain: Callable[[], Any], ldp: Callable[[], Any], rounds: int, device: torch.device) -> Times:
    """Both in turn, so that what else the machine does falls on both; each has been run before."""
    times = Times([], [])
    for _ in range(rounds):
        for step, seconds in zip((plain, ldp), times, strict=True):
            seconds.append(timed(step, device))
    return times


def timed(step: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for backward after `forward`, in distinct storages, parameters excluded. Runs backward too.

    Of what activations="16bit" packs, the codes and their ranges count. forward: to a loss.
    """
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def see(*tensors: Tensor) -> None:
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()

    def pack(tensor: Tensor) -> Tensor:
        see(tensor)
        return tensor

    with saved_activations.watched(see), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    total = sum(kept.values())
    loss.backward()
    return total


def peak_bytes(step: Callable[[], Any], device: torch.device) -> int:
    """The most that torch had allocated during a step, above what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def layer_times(
    plain: nn.Module, ldp: nn.Module, names: Iterable[str], forward: Callable[[], Any], rounds: int, device: torch.device
) -> dict[str, Times]:
    """{layer: seconds of its forward and backward alone}, on the inputs that it has in `forward()` of `plain`.

    Names that are no module of their own (products outside of layers) and layers that did not run are left out.
    """
    pairs = {n: (a, b) for n in names if (a := _module(plain, n)) is not None and (b := _module(ldp, n)) is not None}
    seen: dict[str, tuple] = {}
    hooks = [a.register_forward_pre_hook(_keep(seen, n), with_kwargs=True) for n, (a, _) in pairs.items()]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    out = {}
    for name, call in seen.items():
        steps = [lambda layer=layer, call=call: _forward_backward(layer, *call) for layer in pairs[name]]
        for step in steps:
            step()
        out[name] = interleaved(*steps, rounds, device)
    return out


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name) if name else None
    except AttributeError:
        return None


def _keep(seen: dict[str, tuple], name: str) -> Callable:
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.setdefault(name, (args, kwargs))

    return hook


def _forward_backward(layer: nn.Module, args: tuple, kwargs: dict) -> None:
    def leaf(value: Any) -> Any:
        return value.detach().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value

    args, kwargs = [leaf(value) for value in args], {key: leaf(value) for key, value in kwargs.items()}
    y = layer(*args, **kwargs)
    y = y if isinstance(y, Tensor) else y[0]
    leaves = [t for t in (*args, *kwargs.values(), *layer.parameters()) if isinstance(t, Tensor) and t.requires_grad]
    torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)
