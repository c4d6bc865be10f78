"""The problem that a policy is given, from the sites of a model and the space that is searched."""

from __future__ import annotations

import torch
from torch import Tensor

from ..bits.coordinates import assign_groups, precisions
from ..bits.latency import Latency
from ..bits.policies import Problem
from ..bits.space import SearchSpace
from ..bits.specs import computed
from ..model.sites import SiteSpec, holders, owned_numel
from ..registry import build


def problem_of(specs: dict[str, SiteSpec], space: SearchSpace, profiled: bool) -> Problem:
    """profiled: all sites are known, and their MACs."""
    names, precision = list(specs), precisions(specs, space, final=profiled)
    kinds = range(4 if space.split_gradient else 3)
    ends = ([[precision[name][end][min(kind, 2)] for kind in kinds] for name in names] for end in (0, 1))
    low, high = (torch.tensor(bits, dtype=torch.float32, device="cpu") for bits in ends)
    joint = [spec.module is None for spec in specs.values()]
    group, groups = assign_groups(names, low, high, space.granularity, space.tie, holders(specs), joint)
    return Problem(
        names, low, high, macs_of(specs, profiled), group, groups, space.target_cost, space.cost_weight, space.seed,
        numel_of(specs), space.target_inference, space.target_size, space.widths, profiled, space.target_latency,
        latency_of(specs, space, profiled), backward_of(specs, space, profiled),
    )  # fmt: skip


def latency_of(specs: dict[str, SiteSpec], space: SearchSpace, profiled: bool) -> Latency | None:
    """By the space's table; None without one, and before the shapes are known. ValueError: a table of another model."""
    table = space.latency_table if profiled else None
    return None if table is None else table.of_layers(specs)


def macs_of(specs: dict[str, SiteSpec], profiled: bool) -> Tensor:
    """(sites,) per sample; all alike until they are counted."""
    return torch.tensor([spec.macs if profiled else 1 for spec in specs.values()], dtype=torch.float64, device="cpu")


def backward_of(specs: dict[str, SiteSpec], space: SearchSpace, profiled: bool) -> Tensor | None:
    """(sites, 2) MACs of dL/dx and of dL/dw, as the space's accounting has them; None until they are counted."""
    if not profiled:
        return None
    always = always_computed(space)
    rows = [backward_macs(spec, always) for spec in specs.values()]
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def computed_of(specs: dict[str, SiteSpec], space: SearchSpace, kinds: int) -> list[list[bool]]:
    """(sites, kinds) as `bits.specs.computed` has it."""
    always = always_computed(space)
    return [computed(kinds, spec.macs, backward_macs(spec, always)) for spec in specs.values()]


def always_computed(space: SearchSpace) -> tuple[bool, bool]:
    """Whether every layer counts its dL/dx, and its dL/dw, whatever is trained.

    By the published accounting; and where backward needs them for bits or clips that are learned by gradient. Clips of weights
    are in every layer, so that gradients pass through all of them (but for the first one's dL/dx, which is counted too).
    """
    if space.accounting == "published" or build("policy", space.policy).needs_gradients:
        return True, True
    of_input, of_weight = (build("quantizer", name).learned_clip for name in (space.input_quantizer, space.weight_quantizer))
    return of_input or of_weight, of_weight


def backward_macs(spec: SiteSpec, always: tuple[bool, bool]) -> tuple[int, int]:
    """MACs of a site's dL/dx and dL/dw that count. always: as `always_computed` has it."""
    of_input, of_weight = spec.backward_macs
    return spec.macs if always[0] else of_input, spec.macs if always[1] else of_weight


def numel_of(specs: dict[str, SiteSpec]) -> Tensor:
    """(sites,) elements of the weights that each owns."""
    return torch.tensor(owned_numel(specs.values()), dtype=torch.float64, device="cpu")
