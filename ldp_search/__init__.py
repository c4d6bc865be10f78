"""ldp_search: learn how many bits each layer of a network needs, at each moment of its training.

model = ldp_search.apply(model, target_cost=0.5)     # in place; names, tensors and checkpoints stay
ldp = ldp_search.controller(model)
for step, batch in enumerate(loader):
    loss(model, batch).backward()
    ldp.step((step + 1) / steps, optimizer=optimizer)  # once per optimizer step, after backward
    optimizer.step(); optimizer.zero_grad()
allocation = ldp.finalize(loader)                    # integer bits of every layer
"""

from importlib import import_module

from .api import apply, controller, remove, resolve_space
from .core import (
    Allocation,
    Bits,
    Controller,
    Cost,
    Coverage,
    GradQuantizer,
    LayerSpec,
    Quantizer,
    SearchSpace,
    SplitBits,
    Trajectory,
    register,
)
from .core.bits.policies import Policy, Schedule
from .core.controller.display import provide_drawing

__version__ = "0.1.0"

_LAZY = {  # these need packages that `import ldp_search` must not load
    "save_pretrained": "ldp_search.runner.pretrained.save_load",
    "load_pretrained": "ldp_search.runner.pretrained.save_load",
    "push_to_hub": "ldp_search.runner.pretrained.save_load",
    "export": "ldp_search.export",  # a module that is called
    "integrations": "ldp_search.integrations",
    "notebook": "ldp_search.notebook",
    "report": "ldp_search.report",  # a module that is called
    "best": "ldp_search.runner.search.best",
    "tune": "ldp_search.runner.search.tune",
}

__all__ = [
    "Allocation",
    "Bits",
    "Controller",
    "Cost",
    "Coverage",
    "GradQuantizer",
    "LayerSpec",
    "Policy",
    "Quantizer",
    "Schedule",
    "SearchSpace",
    "SplitBits",
    "Trajectory",
    "apply",
    "best",
    "controller",
    "export",
    "integrations",
    "load_pretrained",
    "notebook",
    "push_to_hub",
    "register",
    "remove",
    "report",
    "resolve_space",
    "save_pretrained",
    "tune",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'ldp_search' has no attribute {name!r}")
    module = import_module(_LAZY[name])
    return module if _LAZY[name] == f"ldp_search.{name}" else getattr(module, name)


def __dir__():
    return sorted(__all__)


provide_drawing(lambda ldp, kind: import_module("ldp_search.runner.report.figures").draw(ldp, kind))
