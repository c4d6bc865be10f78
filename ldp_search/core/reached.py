"""The second half of `apply`'s self-check: one forward with quantization on, which must run, and must reach every site."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backends.simulate import Simulate
from .layers import ATTRIBUTE, has_no_range
from .strays import names_of
from .verify import outputs


def check_reached(model: nn.Module, controller, args: tuple, kwargs: dict) -> None:
    """Note in `controller.bypassed` the rows whose module ran, on an input that is not empty, without asking its site.

    Raises:
        RuntimeError: the model does not run with quantization on; names the module.
    """
    if any(p.is_meta for p in model.parameters()):
        return  # nothing has a range there, so nothing is quantized
    watch = _Watch(model)
    backend, controller.backend = controller.backend, Simulate()  # what others measure at their first call belongs to training
    try:
        outputs(model, args, kwargs)
    except Exception as error:
        raise RuntimeError(
            f"With quantization on, {type(model).__name__} does not run on example_inputs, but without it does. In the forward "
            f"of {watch.running()}: {type(error).__name__}: {error}. The model is unchanged. skip=[...] with this name may help."
        ) from error
    finally:
        controller.backend = backend
        watch.stop()
    for name, site in controller.searched_sites().items():
        if site is not None and not site.seen and name in watch.entered and controller.rows[name].macs:
            controller.bypassed[name] = "its module ran, but by another way than its forward and torch's functions"
    for site in controller.sites:
        site.seen, site.call_site = False, 0


class _Watch:
    """Which rows' modules are entered, and which module is running."""

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
