"""Backends: how a quantized product  y = Q(x) * Q(w),  dL/dy -> Q_g(dL/dy)  is computed. The one seam for faster arithmetic.

A backend is called with everything that a product needs and returns y, differentiable in x, w, bias and the two grids.
"""

from .base import Backend
from .call import Call, finish
from .int8.backend import Int8
from .reference import Reference
from .simulate import Simulate

__all__ = ["Backend", "Call", "Int8", "Reference", "Simulate", "finish"]
