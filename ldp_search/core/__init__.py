"""The method. torch only. Its rooms, in reading order:

products/     what multiplies
quantize/     how a tensor is rounded: from bits to a grid, and the rounding with its derivatives
backends/     how a quantized product is computed; int8/ does it in integers
native/       C for the passes of all three
bits/         which bits, when, at what cost: space, policies, costs, trajectory, allocation
profile/      one forward of counting: what a model multiplies, and where
model/        where in a model quantized products take the place of plain ones: sites, and classes changed in place (swap)
controller/   the step of a training: all of it in one object

apply is the door: it puts a controller into a model, and verify checks that nothing else has changed. registry finds
components by name; messages words errors.

When a quantized Linear is called: `swap` has put a class before its own, whose forward asks `layers.QuantizedLayer.run`; that
asks the layer's `site`, `Site.layer`, which makes the grids of the bits in force and hands operands and grids to the backend,
`backends/simulate.py`. The bits move in `Controller.step`, by `policies/learned.py`.

An import names the module that defines what it wants: the rooms hand nothing on, but for native, backends and policies.
"""

from .apply import apply, find_controller, remove
from .backends import Backend, Call
from .bits.allocation import Allocation
from .bits.cost import Cost
from .bits.relaxations import Relaxation
from .bits.space import SearchSpace
from .bits.specs import Bits, Coverage, LayerSpec, SplitBits
from .bits.trajectory import Trajectory
from .controller.controller import Controller
from .quantize.gradient_quantizers import GradQuantizer
from .quantize.grid import Grid, Statistics
from .quantize.quantizers import Quantizer
from .registry import register

__all__ = [
    "Allocation",
    "Backend",
    "Bits",
    "Call",
    "Controller",
    "Cost",
    "Coverage",
    "GradQuantizer",
    "Grid",
    "LayerSpec",
    "Quantizer",
    "Relaxation",
    "SearchSpace",
    "SplitBits",
    "Statistics",
    "Trajectory",
    "apply",
    "find_controller",
    "register",
    "remove",
]
