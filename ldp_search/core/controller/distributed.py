"""What all ranks must agree on: one all-reduce of everything at once."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..backends import Backend


def average_over_ranks(tensors: list[Tensor]) -> None:
    """Replace each tensor, in place, by its mean over the ranks; nothing happens in a single process."""
    if not tensors or ranks() == 1:
        return
    flat = torch.cat([t.detach().flatten().float() for t in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a sharded tensor, the tensor itself otherwise."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def agree_on_choices(backend: Backend) -> None:
    """Let a backend that measures settle what its processes found for themselves. Every process must call it."""
    if ranks() > 1 and (mine := backend.proposals()) is not None:
        found: list = [None] * ranks()
        dist.all_gather_object(found, mine)
        backend.agree(found)


@contextmanager
def all_succeed(what: str):
    """A part that every rank must get through: where one fails all raise, and none waits for it in the next collective.

    Raises:
        RuntimeError: on the ranks that did not fail themselves.
    """
    mine = None
    try:
        yield
    except Exception as error:
        mine = error
    if ranks() > 1:
        every: list = [None] * ranks()
        dist.all_gather_object(every, None if mine is None else f"{type(mine).__name__}: {mine}")
        if mine is None and (failed := [f"rank {rank}: {error}" for rank, error in enumerate(every) if error]):
            raise RuntimeError(f"{what} failed on another rank, so that nothing was changed on this one. {failed[0]}")
    if mine is not None:
        raise mine


def agree(value):
    """The first rank's value, on every rank: what each would find for itself may depend on its own batch."""
    if ranks() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def reshard(model: nn.Module) -> None:
    """FSDP2 keeps the root's parameters gathered after a forward; whoever makes an optimizer next would be given these."""
    module: Any
    for module in model.modules():
        if any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__):
            module.reshard()
