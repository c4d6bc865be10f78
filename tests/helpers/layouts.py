"""Tensors in every way that memory may be laid out, for the tests of kernels."""

import torch

LAYOUTS = {  # name: (tensor, axis of its channels or None)
    "whole": (lambda: torch.randn(3, 5, 7), None),
    "channels outermost": (lambda: torch.randn(6, 5, 3, 3), 0),
    "channels in the middle": (lambda: torch.randn(4, 6, 9), 1),
    "channels last": (lambda: torch.randn(4, 6, 5, 3).to(memory_format=torch.channels_last), 0),
    "channels last, innermost": (lambda: torch.randn(4, 6, 5, 3).to(memory_format=torch.channels_last), 1),
    "transposed": (lambda: torch.randn(8, 33).t(), 0),
    "one channel": (lambda: torch.randn(1, 40), 0),
    "one element": (lambda: torch.randn(1, 1), None),
}
ODD_VALUES = [float("nan"), -float("nan"), float("inf"), -float("inf"), 0.0, -0.0]
