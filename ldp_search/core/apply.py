"""Turning a model into a search space, finding its controller again, and undoing it."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from .census import census, own_inputs, shapes
from .controller import Controller
from .functions import KeptOut, QuantizedOwner, describe_owner
from .layers import FUSED, OrdinaryPath, QuantizedLayer, Swapped, describe, kind_of, swap, unswap
from .registry import did_you_mean
from .space import FULL_PRECISION, SearchSpace

ATTRIBUTE = "_ldp_controller"  # in the model's __dict__
FULL = (FULL_PRECISION,) * 3


def attach(model: nn.Module, space: SearchSpace, example_inputs=None) -> nn.Module:
    """Quantize the supported layers of `model` in place; returns the same object. See `ldp_search.apply`."""
    if find(model) is not None:
        raise ValueError("This model is a search space already: call ldp_search.remove(model) first.")
    layers = {n: m for n, m in model.named_modules() if (k := kind_of(type(m))) and (k != "Embedding" or space.embeddings)}
    counts = _count_now(model, example_inputs)
    owners = _owners(model, layers, counts) if space.functions else {}
    if not layers | owners:
        raise ValueError(
            f"{type(model).__name__} has no layer that can be quantized (Linear, convolutions, Conv1D of transformers"
            f"{'' if space.embeddings else '; Embedding with embeddings=True'}); it has "
            f"{sorted({type(m).__name__ for m in model.modules()})[:20]}."
        )
    precision = {name: _precision(name, space) for name in layers | owners}
    _check_patterns(space, layers | owners)
    if all(bounds[0][0] == FULL_PRECISION for bounds in precision.values()):
        raise ValueError(f"skip={space.skip} keeps every layer in full precision, so nothing is left to quantize.")
    modules = {n: m for n, m in model.named_modules() if n in layers or n in owners}
    entries = {n: describe_owner(m) if n in owners else describe(m) for n, m in modules.items()}
    controller = Controller(model, space, entries, precision)
    if counts is not None:
        controller.count(*counts)
    for site, module in zip(controller.sites, modules.values(), strict=True):
        if precision[site.name][0][0] < FULL_PRECISION:
            swap(module, site, QuantizedOwner if site.name in owners else QuantizedLayer)
        elif owners:
            swap(module, site, KeptOut)
    for module in [m for m in model.modules() if isinstance(m, FUSED)]:
        swap(module, controller.sites[0], OrdinaryPath)
    model.__dict__[ATTRIBUTE] = controller
    if counts is None:  # then at the first real inputs
        controller.hooks.append(model.register_forward_pre_hook(_count_at_first_forward, with_kwargs=True))
    return model


def find(model: nn.Module) -> Controller | None:
    """The controller of `model`, also through wrappers (DDP, torch.compile, PEFT, Accelerate); None without one."""
    if not isinstance(model, nn.Module):
        return None
    for module in [model, *model.modules()]:
        if ATTRIBUTE in module.__dict__:
            return module.__dict__[ATTRIBUTE]
    return None


def detach(model: nn.Module) -> nn.Module:
    """Undo `attach`: the original classes, no trace of the controller."""
    controller = find(model)
    if controller is None:
        return model
    for module in controller.model.modules():
        if isinstance(module, Swapped):
            unswap(module)
    for hook in controller.hooks:
        hook.remove()
    del controller.model.__dict__[ATTRIBUTE]
    return model


def _owners(model: nn.Module, layers: dict, counts: tuple | None) -> dict[str, nn.Module]:
    """Modules outside `layers` whose own products the op-level way reaches."""
    if counts is None:
        raise ValueError(
            "functions=True finds products outside of layers by running the model once: give example_inputs to apply()."
        )
    modules = dict(model.named_modules())
    return {name: modules[name] for name, tally in counts[0].items() if tally.reachable and name not in layers}


def _precision(name: str, space: SearchSpace) -> tuple:
    """(lowest, highest) of weight, input and gradient bits of one layer."""
    if any(fnmatchcase(name, pattern) for pattern in space.skip):
        return FULL, FULL
    for pattern, (bits, _) in space.fixed.items():
        if fnmatchcase(name, pattern):
            grad = bits if bits == FULL_PRECISION else space.grad_bits[1]
            return (bits, bits, grad), (bits, bits, grad)
    return tuple(zip(space.weight_bits, space.input_bits, space.grad_bits, strict=True))


def _check_patterns(space: SearchSpace, layers: dict) -> None:
    """A pattern that matches nothing is a mistake in it."""
    for field, patterns in (("skip", space.skip), ("fixed", space.fixed)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise ValueError(f"{field}: the pattern {pattern!r} matches no layer.{did_you_mean(pattern, layers)}")


def _as_call(example_inputs) -> tuple[tuple, dict]:
    """(args, kwargs) of a forward from a tensor, a tuple of them, or a mapping (also a tokenizer's)."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if hasattr(example_inputs, "keys"):
        return (), dict(example_inputs)
    return tuple(example_inputs), {}


def _counted(model: nn.Module, args: tuple, kwargs: dict) -> tuple:
    """The census, and on which inputs it was made."""
    return *census(model, args, kwargs), shapes(args, kwargs)


def _count_now(model: nn.Module, example_inputs) -> tuple | None:
    """The census on the inputs at hand; None without any."""
    if example_inputs is not None:
        return _counted(model, *_as_call(example_inputs))
    try:
        inputs = own_inputs(model)
        return None if inputs is None else _counted(model, *inputs)
    except Exception:  # a model's default inputs may not fit the model as it was built (another picture size, another task)
        return None


@torch.compiler.disable
def _count_at_first_forward(model: nn.Module, args: tuple, kwargs: dict) -> None:
    """Forward pre-hook. It asks the model for its controller, and so serves copies and pickles of the model too."""
    controller = model.__dict__[ATTRIBUTE]
    controller.hooks.pop().remove()
    with controller.disabled():
        controller.count(*_counted(model, args, kwargs))
