"""The check that `apply` makes of itself: with quantization off, the model computes what it did before, exactly; with it on, it
runs, and every site is reached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .backends.simulate import Simulate
from .controller.strays import names_of
from .model.layers import has_no_range
from .model.swap import ATTRIBUTE
from .profile.sandbox import copied, on_trial

if TYPE_CHECKING:
    from .controller.controller import Controller


def outputs(model: nn.Module, args: tuple, kwargs: dict) -> list[Tensor]:
    """The tensors that the model returns in evaluation mode, from a fixed random state; modes and random state stay."""
    return on_trial(model, lambda: [x.clone() for x in tensors(model(*copied(args), **copied(kwargs)))])


def tensors(tree) -> list[Tensor]:
    """The tensors of a nested output; also those in objects that pytree does not know but that are mappings."""
    if hasattr(tree, "items") and not isinstance(tree, dict):
        tree = dict(tree.items())
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two outputs are bitwise the same; a NaN equals a NaN. Of meta tensors there is only the shape."""
    return len(one) == len(other) and all(
        a.shape == b.shape and (a.is_meta or torch.equal(a.isnan(), b.isnan()) and torch.equal(a[~a.isnan()], b[~b.isnan()]))
        for a, b in zip(one, other, strict=True)
    )


def trace(model: nn.Module, args: tuple, kwargs: dict) -> list[tuple[str, list[Tensor]]]:
    """(module, its outputs) of every call of a forward, in the order in which they end."""
    seen, hooks = [], []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks
            continue
        hook = lambda module, inputs, output, name=name: seen.append((name, [x.clone() for x in tensors(output)]))  # noqa: E731
        hooks.append(module.register_forward_hook(hook))
    try:
        outputs(model, args, kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def first_difference(before: list, after: list) -> str:
    """The first module whose output changed."""
    for (name, one), (_, other) in zip(before, after, strict=False):
        if not equal(one, other):
            return name or "the model itself"
    return "a part that no module holds"


def check_reached(model: nn.Module, controller: Controller, args: tuple, kwargs: dict) -> None:
    """Note in `controller.bypassed` the sites whose module ran, on an input that is not empty, without asking its site.

    Raises:
        RuntimeError: the model does not run with quantization on; names the module.
    """
    if any(p.is_meta for p in model.parameters()):
        return  # nothing has a range there, so nothing is quantized
    watch = _Watch(model)
    backend, controller.backend = controller.backend, Simulate()  # others measure at their first call, which is for training
    try:
        outputs(model, args, kwargs)
    except Exception as error:
        raise RuntimeError(
            f"With quantization on, {type(model).__name__} does not run on example_inputs, but without it does. In the forward "
            f"of {watch.running()}: {type(error).__name__}: {error}. The model is unchanged; skip=[...] with its name may help."
        ) from error
    finally:
        controller.backend = backend
        watch.stop()
    for name, site in controller.searched_sites().items():
        if site is not None and not site.seen and name in watch.entered and controller.specs[name].macs:
            controller.bypassed[name] = "its module ran, but multiplied without its forward and torch's functions"
    for site in controller.sites:
        site.seen, site.call_site = False, 0


class _Watch:
    """Which sites' modules are entered, and which module is running."""

    def __init__(self, model: nn.Module):
        self.entered: set[str] = set()
        self._stack: list[str] = []
        self._hooks = []
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # it takes no hooks, and has no sites
                continue
            self._hooks.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._leave))

    def _enter(self, name: str):
        def hook(module, args, kwargs):
            self._stack.append(name)
            given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            if not any(has_no_range(x) for x in given):
                self.entered |= names_of(module.__dict__.get(ATTRIBUTE))

        return hook

    def _leave(self, module, args, output) -> None:
        self._stack.pop()

    def running(self) -> str:
        """The innermost module whose forward began and has not ended."""
        return repr(self._stack[-1]) if self._stack and self._stack[-1] else "the model itself"

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()
