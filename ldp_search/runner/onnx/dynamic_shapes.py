"""Which dimensions of an exported graph's inputs are free: the batch, and the length of token inputs."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from onnxscript import ir
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Freedom(NamedTuple):
    """What shall be free, and the sizes in the example: of the batch, and of dimension 1 of token inputs.

    batch, lengths: None and empty where that dimension stays fixed.
    """

    batch: int | None
    lengths: frozenset[int] = frozenset()

    @classmethod
    def of(cls, args: tuple, kwargs: dict) -> Freedom:
        """All that can be free. Token inputs are tensors of integers with a batch and a length (ids, masks, positions)."""
        found = tensors((args, kwargs))
        batch = next((x.shape[0] for x in found if x.dim()), None)
        tokens = [x for x in found if x.dim() > 1 and x.shape[0] == batch and not (x.is_floating_point() or x.is_complex())]
        return cls(batch, frozenset(x.shape[1] for x in tokens))

    def free(self, x: Any) -> dict[int, Any] | None:
        """The dynamic dimensions of one input, as torch.export wants them. Whatever has a token input's length follows it."""
        if self.batch is None or not isinstance(x, Tensor) or not x.dim() or x.shape[0] != self.batch:
            return None
        long = x.dim() > 1 and x.shape[1] in self.lengths
        return {0: torch.export.Dim("batch")} | ({1: torch.export.Dim.AUTO} if long else {})

    def widened(self, args: tuple, kwargs: dict) -> tuple[Freedom, tuple, dict]:
        """Sizes of one would be taken for constants: such inputs are doubled."""

        def wider(x):
            free = self.free(x) or {}
            for dim in free:
                x = torch.cat([x, x], dim) if x.shape[dim] == 1 else x
            return x

        args, kwargs = pytree.tree_map(wider, (args, kwargs))
        return Freedom(max(self.batch, 2), frozenset(max(n, 2) for n in self.lengths)), args, kwargs

    def of_other_batch(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The inputs with twice the batch."""
        return pytree.tree_map(lambda x: torch.cat([x, x]) if 0 in (self.free(x) or {}) else x, (args, kwargs))

    def of_other_length(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The inputs with half the length, or twice where it is one."""

        def other(x):
            if 1 not in (self.free(x) or {}):
                return x
            return x[:, : x.shape[1] // 2] if x.shape[1] > 1 else torch.cat([x, x], 1)

        return pytree.tree_map(other, (args, kwargs))


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of nested inputs or outputs, in the order in which the graph has them."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def by_parameter(model: nn.Module, arg_shapes: tuple, kwarg_shapes: dict) -> tuple | dict:
    """The shapes as torch.export wants them: {parameter of forward: shapes}, or a tuple without keyword inputs."""
    if not kwarg_shapes:
        return arg_shapes
    return dict(zip(inspect.signature(model.forward).parameters, arg_shapes, strict=False)) | kwarg_shapes


def fixed_lengths(graph: ir.Graph, freedom: Freedom) -> list[str]:
    """The inputs of a token input's length whose dimension 1 the exporter has fixed."""
    return [
        value.name for value in graph.inputs if len(value.shape) > 1 and value.shape[1] in freedom.lengths and _batched(value)
    ]


def _batched(value: ir.Value) -> bool:
    return not isinstance(value.shape[0], int)


def name_lengths(graph: ir.Graph) -> None:
    """Call the free lengths "sequence", or "sequence_2" and so on, wherever they stand, in place of the exporter's s53."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        for dim in list(value.shape or ())[1:]:
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                names.setdefault(dim.value, f"sequence_{len(names) + 1}" if names else "sequence")
    for value in [*graph.inputs, *(out for node in graph for out in node.outputs)]:
        for index, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value in names:
                value.shape[index] = names[dim.value]
