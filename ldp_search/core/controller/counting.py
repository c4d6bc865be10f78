"""What a controller has a place for in each site, and what becomes of it when operations are counted, again, or no more."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING

import torch

from ..bits.coordinates import precisions
from ..bits.policies.budget import check_reachable
from ..bits.reachable import check_limits
from ..bits.trajectory import Trajectory
from ..model.coverage import coverage
from ..model.site import Site
from ..model.sites import SiteSpec, check_some, find_sites, owned_numel, trained_weights
from ..profile.records import ModelProfile
from .checks import check_coverage
from .damage_sensor import DamageSensor
from .search_problem import backward_of, computed_of, latency_of, macs_of, numel_of, problem_of
from .tensors import BitTensors

if TYPE_CHECKING:
    from .controller import Controller


def build(controller: Controller, specs: dict[str, SiteSpec]) -> None:
    """Problem, sites, tensors, trajectory and sensor anew, of these specs."""
    c = controller
    check_some(c.model, specs, c.space)
    c.specs, c._names, c.trained = specs, list(specs), trained_weights(specs.values())
    c.problem = problem_of(specs, c.space, c.profiled)
    highest = map(tuple, c.problem.high.tolist())
    c.sites = [
        Site(c, place, name, spec.axis, bits)
        for place, ((name, spec), bits) in enumerate(zip(specs.items(), highest, strict=True))
    ]
    c._weights = owned_numel(specs.values())
    c.trajectory = Trajectory(c._names)
    c.levels = c.problem.levels
    quantizers = c.weight_quantizer, c.input_quantizer
    kinds, device = c.problem.low.shape[1], c.problem.low.device
    c.trajectory.computed = computed_of(specs, c.space, kinds)
    c.tensors = BitTensors([*specs.values()], kinds, len(c.levels), *quantizers, device)
    kept_out = [name for name, site in c.searched_sites().items() if site is None]
    c.sensor = DamageSensor(c.model, [*specs.values()], c.levels, kept_out) if c.policy.needs_damage else None
    c.sensing = c.senses_at(c._steps)
    c.bind_views()


def adopt(controller: Controller, profile: ModelProfile) -> None:
    """Take over a profile; what it refuses leaves things half done (`controller_kept` puts them back)."""
    c = controller
    c.profile, before = profile, c.bits()
    specs = find_sites(c.model, c.space, profile)
    if c._progress > 0:  # what a training has learned stays; what it has not met so far stays out
        specs = {name: spec for name, spec in specs.items() if name in c.specs}
    if list(specs) == c._names:
        _count_anew(c, specs)
    else:
        device = c.tensors.bits.device
        build(c, specs)
        c.to(device)
    check_costs(c)
    if c._progress == 0:
        c.begin()
    if c.frozen:
        for row, name in enumerate(c._names):
            c.tensors.bits[row] = torch.tensor(before.get(name, c.bits()[name]), dtype=torch.float32, device="cpu")


def _count_anew(c: Controller, specs: dict[str, SiteSpec]) -> None:
    """The same sites with other counts: what has been learned of them stays."""
    precisions(specs, c.space, final=True)
    device = c.tensors.bits.device
    macs, numel, latency = macs_of(specs, c.profiled), numel_of(specs), latency_of(specs, c.space, c.profiled)
    backward = backward_of(specs, c.space, c.profiled)
    problem = dataclasses.replace(
        c.problem, macs=macs, weight_numel=numel, latency=latency, counted=c.profiled, backward=backward
    )
    c.specs, c.problem, c.trained = specs, problem.to(device), trained_weights(specs.values())
    c.named_refrozen = set()
    c.policy.problem = c.problem
    c.trajectory.computed = computed_of(specs, c.space, c.problem.low.shape[1])
    c.tensors = copy.copy(c.tensors)
    c.tensors.resize_ranges([*specs.values()])
    if c.sensor is not None:
        c.sensor.specs = [*specs.values()]
    c.bind_views()


def forget(controller: Controller) -> None:
    """The sites as before anything was counted, with the bits of a beginning."""
    device, controller.profile = controller.tensors.bits.device, None
    build(controller, find_sites(controller.model, controller.space, None))
    controller.to(device)
    controller.begin()


def check_costs(controller: Controller) -> None:
    """A ValueError where what was counted leaves the coverage below its minimum or a budget out of reach."""
    if not controller.profiled:
        return
    check_coverage(controller, coverage(controller.profile, controller.specs, controller.searched_sites(), {}))
    if controller.policy.meets_target:
        check_reachable(controller.problem)
        check_limits(controller.problem)
