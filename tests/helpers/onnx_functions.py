"""Once imported, the exporter's table of ONNX functions is made once: torch.onnx parses the source of 500 of them anew at every
export, which takes half of the time of a small one.
"""

from copy import copy
from functools import cache

from torch.onnx._internal.exporter._registration import ONNXRegistry

_made = cache(ONNXRegistry.from_torchlib)


def _from_torchlib(*args, **options) -> ONNXRegistry:
    """A table of its own for every export: a custom operator is entered into none of the others."""
    registry = copy(_made(*args, **options))
    registry.functions = {name: list(functions) for name, functions in registry.functions.items()}
    return registry


ONNXRegistry.from_torchlib = staticmethod(_from_torchlib)
