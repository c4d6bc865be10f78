"""Policies: rules that give the bits of every layer over the training. One small file each."""

from ..problem import Problem, Signals
from .base import Policy, Schedule
from .cyclic import Cyclic
from .learned import Learned
from .paper import Paper
from .progressive import Progressive
from .ramp import Ramp
from .random import Random
from .replay import Replay
from .static import Static

__all__ = [
    "Cyclic",
    "Learned",
    "Paper",
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
