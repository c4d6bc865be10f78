"""The method: quantizers, quantized layers, relaxations, policies, costs, allocation and controller. torch only.

Read in this order: quantizers, fake_quantize, gradient_quantizers, products, backends (one quantized product); layers, owners,
site (in a network); cost, relaxations, policies (which bits); controller (one training step); census, rows, apply, finalize
(before and after).
"""

from .allocation import Allocation
from .apply import attach, detach, find
from .controller import Controller
from .cost import Cost, Latency
from .gradient_quantizers import GradQuantizer
from .quantizers import Grid, Quantizer, Statistics
from .registry import register
from .relaxations import Relaxation
from .space import SearchSpace
from .specs import Bits, Coverage, LayerSpec
from .trajectory import Trajectory

__all__ = [
    "Allocation",
    "Bits",
    "Controller",
    "Cost",
    "Coverage",
    "GradQuantizer",
    "Grid",
    "Latency",
    "LayerSpec",
    "Quantizer",
    "Relaxation",
    "SearchSpace",
    "Statistics",
    "Trajectory",
    "attach",
    "detach",
    "find",
    "register",
]
