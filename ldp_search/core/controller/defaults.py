"""The process's defaults, set aside: what LDP computes is the same whatever default dtype and device a program has chosen.

Our own tensors name both. A component (a policy, a relaxation, one's own or ours) may not, and optimizers make state as the
defaults say; so whatever calls them does so under torch's own defaults, and outside of inference mode, whose tensors a later
training could not change.
"""

from __future__ import annotations

import contextlib

import torch

CPU = torch.device("cpu")


@contextlib.contextmanager
def own_defaults():
    """Within this context, or a function that it decorates: fp32, the CPU, no inference mode."""
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.empty(0).device != CPU:  # torch 2.9 cannot name its default device after set_default_device(None)
            stack.enter_context(CPU)
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield
