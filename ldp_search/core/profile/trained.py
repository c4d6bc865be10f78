"""Which tensors of a forward have a gradient in training: those that something trained has gone into.

The profiler runs without gradient, so that nothing of it stays behind in the model; autograd cannot be asked. Where it cannot
be told, a tensor is taken for trained: what comes from code that torch does not show, tensors that a module holds beside its
buffers, what is computed within the model's own `torch.no_grad()`, and what stands before a `detach`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from .provenance import is_written, tensors_of

DETACHING = (Tensor.detach, Tensor.detach_, torch.detach, torch.detach_, Tensor.data.__get__)  # type: ignore[attr-defined]


class Trained:
    """untrained: {id: tensor} of what nothing trained has gone into: inputs, buffers, frozen parameters, and what they give."""

    def __init__(self, model: nn.Module, inputs):
        self.untrained: dict[int, Callable[[], Tensor | None]] = {}
        for tensor in (*model.buffers(), *_tensors_within(inputs)):
            self._note(tensor)
        for parameter in model.parameters():
            if not parameter.requires_grad:
                self._note(parameter)

    def needs_gradient(self, tensor: Tensor) -> bool:
        """Whether training computes the loss's gradient with respect to a tensor, where the loss depends on it."""
        if tensor.requires_grad:
            return True
        return self.untrained.get(id(tensor), lambda: None)() is not tensor

    def record(self, function, args: tuple, kwargs: dict, out) -> None:
        """Note what a function has made."""
        given = tensors_of([*args, *kwargs.values()])
        through = function not in DETACHING and any(self.needs_gradient(x) for x in given)
        if is_written(function, args):
            if through:
                self._forget(args[0])
            elif function in DETACHING:
                self._note(args[0])
            return
        for tensor in tensors_of([out]):
            if not through or not (tensor.is_floating_point() or tensor.is_complex()):
                self._note(tensor)
            else:
                self.untrained.pop(id(tensor), None)

    def _forget(self, written: Tensor) -> None:
        """What shares its memory with a tensor that something trained was written into."""
        root = written if written._base is None else written._base
        for key, held in list(self.untrained.items()):
            tensor = held()
            if tensor is None or tensor is root or tensor._base is root:
                del self.untrained[key]

    def _note(self, tensor: Tensor) -> None:
        if not tensor.requires_grad:
            self.untrained[id(tensor)] = weakref.ref(tensor)


def _tensors_within(value) -> Iterator[Tensor]:
    """The tensors of a forward's inputs, in lists, tuples and mappings too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_within(item)
    elif isinstance(value, Mapping):  # transformers' BatchEncoding too
        yield from _tensors_within(list(value.values()))
