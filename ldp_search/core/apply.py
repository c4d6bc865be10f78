"""Turning a model into a search space, finding its controller again, and undoing it."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .backends import saved_activations
from .bits.space import SearchSpace
from .controller.checks import check_coverage
from .controller.controller import Controller
from .controller.distributed import reshard
from .controller.rollback import model_kept
from .controller.strays import warn_of_strays
from .model.install import ATTRIBUTE, install, own
from .model.interception import InterceptionPlan
from .model.patched import release
from .model.swap import ATTRIBUTE as RECORD
from .model.swap import Swapped, unswap
from .profile import profiler
from .profile.records import ModelProfile
from .verify import check_reached, equal, first_difference, outputs, trace


def apply(model: nn.Module, space: SearchSpace, example_inputs=None, profile: ModelProfile | None = None) -> nn.Module:
    """Quantize the products of `model` in place; returns the same object. See `ldp_search.apply`.

    profile: an earlier profile of the same model, in place of a new one.
    """
    check_fresh(model)
    call = None if example_inputs is None else as_call(example_inputs)
    if profile is None:
        profile = profiler.profile(model, *call) if call else _profile_on_own_inputs(model)
    before = outputs(model, *call) if call else None
    controller = Controller(model, space, profile)
    with _undone_if_it_fails(model, controller):
        _install(model, controller)
        if profile is None:  # then at the first real inputs
            from .controller.first_forward import count_at_first_forward

            controller.hooks["profile"] = model.register_forward_pre_hook(count_at_first_forward, with_kwargs=True)
            if not isinstance(model, Swapped):  # a forward is looked up before the hook runs, so the class has to be there
                own(model, InterceptionPlan("", controller))
        if call and before is not None:
            _verify(model, controller, call, before)
            check_reached(model, controller, *call)
            check_coverage(controller)
        reshard(model)
    warn_of_strays(controller)
    return model


@contextmanager
def _undone_if_it_fails(model: nn.Module, controller: Controller):
    """A model is a search space, or what it was before, wherever `apply` ends: Ctrl-C included."""
    try:
        with model_kept(model):
            yield
    except BaseException:
        for hook in controller.hooks.values():
            hook.remove()
        model.__dict__.pop(ATTRIBUTE, None)
        raise


def check_fresh(model: nn.Module) -> None:
    """`model` is a module, complete, and no part of it is searched."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"apply() takes a torch.nn.Module; received {type(model).__name__} {str(model)[:60]!r}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"apply() takes a module in Python; this {type(model).__name__} is TorchScript, whose products nothing "
                        "can reach any more. Call apply() on the model before torch.jit.script or trace.")  # fmt: skip
    found = find_controller(model)
    if found is not None:
        part = next((name for name, m in model.named_modules() if m is found.model), "")
        which = "This model is" if not part else f"{part!r} in this model is"
        raise ValueError(f"{which} a search space already: call ldp_search.remove(model) first.")
    lazy = [name for name, p in model.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise ValueError(f"apply() needs parameters with shapes; {lazy[:5]} have none yet. Run the model once before apply().")


def _install(model: nn.Module, controller: Controller) -> None:
    model.__dict__[ATTRIBUTE], controller.removed = controller, False
    install(controller)
    if controller.space.activations == "16bit":
        controller.hooks |= saved_activations.install(model)


def find_controller(model: nn.Module) -> Controller | None:
    """The controller of `model`, also through wrappers (DDP, torch.compile, PEFT, Accelerate); None without one."""
    if not isinstance(model, nn.Module):
        return None
    modules = [model, *model.modules()]
    for module in modules:
        if ATTRIBUTE in module.__dict__:
            return module.__dict__[ATTRIBUTE]
    for module in modules:  # a part of the model, or what an adapter left of it
        if (record := module.__dict__.get(RECORD)) is not None:
            return getattr(record, "controller", record)
    return None


def remove(model: nn.Module) -> nn.Module:
    """Undo `apply`: the original classes, no trace of the controller."""
    controller = find_controller(model)
    if controller is None:
        return model
    for module in [*model.modules(), *controller.model.modules()]:
        release(module)
        if isinstance(module, Swapped):
            unswap(module)
    for hook in controller.hooks.values():
        hook.remove()
    controller.hooks.clear()
    controller.model.__dict__.pop(ATTRIBUTE, None)
    controller.removed = True
    return model


def _verify(model: nn.Module, controller: Controller, call: tuple, before: list[Tensor]) -> None:
    """With quantization off the outputs must be those from before, exactly; else undo everything and name the culprit."""
    with controller.disabled():
        if equal(before, outputs(model, *call)):
            return
        after = trace(model, *call)
    remove(model)
    if not equal(before, outputs(model, *call)):  # it computes something else every time, so nothing can be said
        _install(model, controller)
        return
    raise RuntimeError(
        f"With quantization off, {type(model).__name__} must compute what it computed before apply(), but the output of "
        f"{first_difference(trace(model, *call), after)} differs. The model is unchanged. skip=[...] with this name may help."
    )


def as_call(example_inputs) -> tuple[tuple, dict]:
    """(args, kwargs) of a forward from a tensor, a tuple of them, or a mapping (also a tokenizer's)."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if hasattr(example_inputs, "keys"):
        return (), dict(example_inputs)
    if not isinstance(example_inputs, list | tuple):
        raise TypeError(
            "example_inputs must be a tensor, a tuple of arguments or a mapping of keyword arguments; received "
            f"{type(example_inputs).__name__}."
        )
    return tuple(example_inputs), {}


def _profile_on_own_inputs(model: nn.Module) -> ModelProfile | None:
    try:
        inputs = profiler.own_inputs(model)
        return None if inputs is None else profiler.profile(model, *inputs)
    except Exception:  # a model's default inputs may not fit the model as it was built (another picture size, another task)
        return None
