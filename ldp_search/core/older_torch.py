"""What older versions of torch cannot do, refused in one message that names the version that can."""

from __future__ import annotations

import torch

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
COMPILES = TORCH >= (2, 8)
"""Whether torch.compile computes a quantized model as it is.

Before torch 2.8 products outside of layers stay unrounded, and the backward of an autograd function takes one scale for another
where a name occurs both in it and around it.
"""


def needs_torch(version: str, what: str, instead: str) -> ImportError:
    """The error to raise where `what` needs a newer torch. instead: what can be done without."""
    return ImportError(f"{what} needs torch >= {version}; this is torch {torch.__version__}. Update torch, or {instead}.")


def refuse_to_compile() -> None:
    """ImportError, always: a quantized module runs into it while this torch compiles it."""
    raise needs_torch("2.8", "torch.compile (or a strict torch.export) of a quantized model", "leave the model as it is")


refuse_to_compile._torchdynamo_disable = True  # type: ignore[attr-defined]  # `torch.compiler.disable` loads the compiler
