"""Policies: rules that give the bits of every layer over the training. One small file each."""

from ..problem import Problem, Signals
from .base import Policy, Schedule
from .cyclic import Cyclic
from .ldp_sgd import LdpSgd
from .learned import Learned
from .progressive import Progressive
from .ramp import Ramp
from .random import Random
from .replay import Replay
from .static import Static

__all__ = [
    "Cyclic",
    "Learned",
    "LdpSgd",
    "Policy",
    "Problem",
    "Progressive",
    "Ramp",
    "Random",
    "Replay",
    "Schedule",
    "Signals",
    "Static",
]
