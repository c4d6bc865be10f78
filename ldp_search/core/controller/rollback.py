"""All or nothing: what `apply`, a late profile, `finalize` and loading change is put back when they raise, Ctrl-C included."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..model.swap import ATTRIBUTE

if TYPE_CHECKING:
    from .controller import Controller

_HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
          "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")  # fmt: skip


@contextlib.contextmanager
def model_kept(model: nn.Module):
    """Classes, records, patched forwards, and the hooks of the model itself are as before when the context raises."""
    before = [(module, module.__class__, module.__dict__.get(ATTRIBUTE), module.__dict__.get("forward"))
              for module in model.modules()]  # fmt: skip
    hooks = {name: dict(getattr(model, name)) for name in _HOOKS}
    try:
        yield
    except BaseException:
        for name, known in hooks.items():  # in place: their handles hold the dictionaries
            getattr(model, name).clear()
            getattr(model, name).update(known)
        for module, cls, record, forward in before:
            if module.__class__ is not cls:
                module.__class__ = cls
            _put(module.__dict__, ATTRIBUTE, record)
            _put(module.__dict__, "forward", forward)
        raise


def _put(values: dict, key: str, value) -> None:
    if value is not None:
        values[key] = value
    else:
        values.pop(key, None)


@contextlib.contextmanager
def controller_kept(controller: Controller):
    """A controller, with its policy's memory, its model's classes and hooks, is as before when the context raises."""
    held = _Held(controller)
    try:
        with model_kept(controller.model):
            yield
    except BaseException:
        held.put_back()
        raise


class _Held:
    """A controller at one moment: which objects it holds, and the values of those that change in place."""

    def __init__(self, controller: Controller):
        self.controller, self.values, self.hooks = controller, dict(controller.__dict__), dict(controller.hooks)
        self.tensors = [(x, x.detach().clone()) for x in controller.tensors.all()]
        policy, others = controller.policy, (controller.trajectory, *controller.tensors.holders(), *controller.sites)
        self.sensor = None if controller.sensor is None else controller.sensor.state_dict()
        self.objects = [(policy, _copied(policy.__dict__)), *((x, dict(x.__dict__)) for x in others)]
        self.random = controller.generator.get_state()
        self.backend = controller.backend.state_dict()

    def put_back(self) -> None:
        controller = self.controller
        for name in controller.hooks.keys() - self.hooks.keys():
            controller.hooks[name].remove()
        controller.__dict__.clear()
        controller.__dict__.update(self.values, hooks=self.hooks)
        with torch.no_grad():
            for tensor, values in self.tensors:
                tensor.copy_(values)
        for x, values in self.objects:
            x.__dict__.clear()
            x.__dict__.update(values)
        if self.sensor is not None and controller.sensor is not None:
            controller.sensor.load_state_dict(self.sensor)
        controller.generator.set_state(self.random)
        if self.backend:
            controller.backend.load_state_dict(self.backend)
        controller.bind_views()


def _copied(value):
    """Tensors and containers of plain data, copied as deep as they go; anything else is the same object."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (dict, list, tuple):
        return {k: _copied(v) for k, v in value.items()} if type(value) is dict else type(value)(map(_copied, value))
    return value
