"""The controller: everything that LDP adds to a model, and the one call of a training step, `ldp.step(progress)`.

It holds the bits of all layers as one (layers, 3) tensor of weight, input and gradient bits on the model's device. Layers
see rows of it (leaves whose `.grad` are rows of one gradient tensor), so that a step is a handful of operations on small
tensors whatever the number of layers, with no transfer to the host and nothing that torch.compile would recompile for.
"""

from __future__ import annotations

import dataclasses
import warnings
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..bits import cost as costs
from ..bits.allocation import Allocation
from ..bits.coordinates import assign_groups, precisions
from ..bits.policies import Problem, Signals
from ..bits.policies.budget import check_reachable
from ..bits.space import FULL_PRECISION, SearchSpace
from ..bits.specs import Bits, Coverage, LayerSpec
from ..bits.trajectory import Trajectory
from ..model.coverage import SKIPPED, coverage
from ..model.install import install
from ..model.interception import copy_with_model
from ..model.site import Site
from ..model.sites import SiteSpec, check_some, find_sites, holders, owned_numel
from ..profile.records import ModelProfile
from ..registry import build
from . import checkpoint as state
from .distributed import average_over_ranks
from .finalize import finalize
from .summary import summarize

CLIP_LR = 1e-3  # of the learned clips: a share of the range per step, since they are held as logarithms


class Controller:
    """Handle of one model's search; `ldp_search.controller(model)` finds it.

    specs: {name: what has bits of its own}, layers and products outside of layers; profile: the counts that they follow from,
    None until there was one. enabled: whether the model quantizes. calibrating: inputs are measured in evaluation mode too.
    """

    def __init__(self, model: nn.Module, space: SearchSpace, profile: ModelProfile | None = None):
        self.model, self.space, self.enabled, self.calibrating = model, space, True, False
        self.weight_quantizer, self.input_quantizer = (
            build("quantizer", q) for q in (space.weight_quantizer, space.input_quantizer)
        )
        self.grad_quantizer, self.backend = (
            build("grad_quantizer", space.grad_quantizer),
            build("backend", space.backend),
        )
        self.relaxation, self.policy = build("relaxation", space.relaxation), build("policy", space.policy)
        self.generator = torch.Generator().manual_seed(space.seed)
        self._progress, self.frozen, self.hooks, self.counting = 0.0, False, {}, False
        self.profile = profile
        self._build(find_sites(model, space, profile))
        self._check_policy()
        self._check_costs()
        self._bind()

    def _build(self, specs: dict[str, SiteSpec]) -> None:
        """Everything that has a place for each site."""
        check_some(self.model, specs, self.space)
        precision = precisions(specs, self.space, final=self.profiled)
        self.specs, self._names = specs, list(specs)
        low, high = (torch.tensor([precision[name][k] for name in specs], dtype=torch.float32).view(-1, 3) for k in (0, 1))
        group, groups = assign_groups(self._names, low, high, self.space.granularity, self.space.tie, holders(specs))
        self.problem = Problem(
            self._names,
            low,
            high,
            self._macs_of(specs),
            group,
            groups,
            self.space.target_cost,
            self.space.cost_weight,
            self.space.seed,
        )
        highest = map(tuple, high.tolist())
        self.sites = [Site(self, name, spec.axis, bits) for (name, spec), bits in zip(specs.items(), highest, strict=True)]
        self._weights = owned_numel(specs.values())
        self.trajectory = Trajectory(self._names)
        self._allocate([spec.channels for spec in specs.values()])

    def _macs_of(self, specs: dict[str, SiteSpec]) -> Tensor:
        """(sites,) per sample; all alike until they are counted."""
        return torch.tensor([spec.macs if self.profiled else 1 for spec in specs.values()], dtype=torch.float64)

    @property
    def profiled(self) -> bool:
        return self.profile is not None

    @property
    def on(self) -> bool:
        return self.enabled

    def searched_sites(self) -> dict[str, Site | None]:
        """{name: its site}, None where it stays in full precision."""
        full = (self.problem.high[:, 0] >= FULL_PRECISION).tolist()
        return {site.name: None if kept else site for site, kept in zip(self.sites, full, strict=True)}

    # -- the tensors ------------------------------------------------------------------------------------------------

    def _allocate(self, channels: list[int]) -> None:
        n, device = len(self.sites), self.problem.low.device
        self._bits, self._grads = torch.zeros(n, 3, device=device), torch.zeros(n, 3, device=device)
        self._ranges = torch.zeros(sum(spec.call_sites for spec in self.specs.values()), 4, device=device)
        self._channels = channels if self.weight_quantizer.learned_clip else [0] * n
        inputs = n if self.input_quantizer.learned_clip else 0
        self._clips = torch.zeros(inputs + sum(self._channels), device=device)  # logarithms: of the inputs, then the weights
        self._clip_grads = torch.zeros_like(self._clips)
        self._clip_optimizer = torch.optim.Adam([self._clips], lr=CLIP_LR)
        self._spent = torch.zeros((), dtype=torch.float64, device=device)
        self._bind_views()

    def _bind_views(self) -> None:
        """Give every site its rows: leaves that share the stacked tensors' storage, with gradients that do so too."""
        learn = self.policy.needs_gradients and not self.frozen
        inputs = len(self.sites) if self.input_quantizer.learned_clip else 0
        start, ranges = inputs, self._ranges.split([spec.call_sites for spec in self.specs.values()])
        for row, site in enumerate(self.sites):
            site.bits = _leaf(self._bits[row], self._grads[row] if learn else None)
            site.grad_bits = self._bits[row, 2]
            site.ranges = ranges[row]
            clip = slice(row, row + 1)
            site.x_clip = _leaf(self._clips[clip], None if self.frozen else self._clip_grads[clip]) if inputs else None
            stop = start + self._channels[row]
            weights = slice(start, stop)
            site.w_clip = (
                _leaf(self._clips[weights], None if self.frozen else self._clip_grads[weights]) if stop > start else None
            )
            start = stop

    def to(self, device) -> None:
        """Move everything to the device where the model turned out to be; called by the layers themselves."""
        for name in ("_bits", "_grads", "_ranges", "_clips", "_clip_grads", "_spent"):
            setattr(self, name, getattr(self, name).to(device))
        state = self._clip_optimizer.state_dict()
        self._clip_optimizer = torch.optim.Adam([self._clips], lr=CLIP_LR)
        self._clip_optimizer.load_state_dict(state)
        self.problem = self.problem.to(device)
        self.policy.to(device)
        self._bind_views()

    def _check_policy(self) -> None:
        if not self.policy.needs_gradients:
            return
        if not self.problem.searched.any():
            raise ValueError(
                f"The policy {self.policy.name!r} learns bits, but every range is a single number "
                f"(bits={self.space.bits}, grad_bits={self.space.grad_bits}). "
                "Give a range such as bits=(3, 8), or policy='static'."
            )
        if self.problem.searched[:, 2].any():
            raise ValueError(
                f"The loss has no gradient with respect to the gradient bits, so {self.policy.name!r} cannot learn them; "
                f"received grad_bits={self.space.grad_bits}. Give one number, e.g. grad_bits=8."
            )

    def _bind(self) -> None:
        """Let the policy begin: at `apply`, and again when the MACs become known."""
        start = self.policy.bind(self.problem)
        self._bits.copy_(self._realize(start, 0.0, torch.round(start)))

    def _realize(self, bits: Tensor, progress: float, previous: Tensor) -> Tensor:
        bits = torch.minimum(torch.maximum(bits.to(self._bits), self.problem.low), self.problem.high)
        return self.relaxation.realize(bits, previous, self.policy.hysteresis, progress, self._uniform)

    def _uniform(self) -> Tensor:
        """Random numbers (layers, 3) in [0, 1), one a group: coordinates that share their bits share the draw."""
        drawn = torch.rand(self.problem.groups, generator=self.generator).to(self._bits.device, non_blocking=True)
        return drawn[self.problem.group]

    # -- the step ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, progress: float, loss: Tensor | float | None = None) -> None:
        """Once per optimizer step, after backward and before `optimizer.step()`.

        Args:
            progress: share of the training done when this step is, in (0, 1], rising.
            loss: mean training loss of the step (0-d), for the policies that read it.

        A loss scaled for fp16 scales the bits' gradients too: 'learned' with a target does not mind, others do.

        Raises:
            ValueError: progress out of order, or no loss for a policy that needs one.
        """
        if not self._progress < progress <= 1 + 1e-9:
            raise ValueError(
                f"progress must rise from 0 to 1, once per optimizer step; received {progress} after {self._progress}. "
                "Pass (step + 1) / total_steps."
            )
        if self.policy.needs_loss and loss is None and not self.frozen:
            raise ValueError(
                f"The policy {self.policy.name!r} reads the training loss: call ldp.step(progress, loss=loss.detach())."
            )
        if not self.profiled and self._progress == 0:
            warnings.warn(
                "The first step comes before any operation was counted: costs take all layers alike, and products outside of "
                "layers are not quantized. Call the model itself (no part or method of it), or give apply() example_inputs.",
                stacklevel=3,
            )
        loss = None if loss is None else torch.as_tensor(loss, device=self._bits.device).detach().clone()
        average_over_ranks([self._grads, self._ranges, self._clip_grads] + ([] if loss is None else [loss]))
        self._spent += self.problem.relative_cost(self._bits) * (progress - self._progress)
        self.trajectory.append(progress, self._bits)
        self._progress = progress
        if not self.frozen and progress < 1 - 1e-9:  # after the last step its bits stay: they are the result
            grads = self._grads if self.policy.needs_gradients else None
            bits = self.policy.step(Signals(progress, self._bits.clone(), grads, loss, self._spent))
            self._bits.copy_(self._realize(bits, progress, self._bits))
            self._step_clips()
        self._grads.zero_()
        self._clip_grads.zero_()

    def _step_clips(self) -> None:
        if self._clips.numel():
            self._clips.grad = torch.nan_to_num(self._clip_grads, 0.0, 0.0, 0.0)
            self._clip_optimizer.step()

    # -- what it tells ----------------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, Tensor]:
        """The architecture tensors, in force now, with `.grad` since the last step: bits (layers, 3), and clips' logarithms."""
        out = {"bits": _leaf(self._bits, self._grads)}
        return out | ({"log_clips": _leaf(self._clips, self._clip_grads)} if self._clips.numel() else {})

    def bits(self) -> dict[str, Bits]:
        """{layer name: Bits(weight, input, grad)}, integers in force now."""
        rows = torch.round(self._bits).int().tolist()
        return {name: Bits(*row) for name, row in zip(self._names, rows, strict=True)}

    @property
    def layers(self) -> dict[str, LayerSpec]:
        """{layer name: LayerSpec}; MACs are 0 until they are counted (at `apply` with inputs, else at the first forward)."""
        return {
            name: LayerSpec(name, spec.kind, spec.macs, numel, spec.input_numel, spec.calls)
            for (name, spec), numel in zip(self.specs.items(), self._weights, strict=True)
        }

    def cost(self) -> costs.Cost:
        """Cost at the bits in force now, and averaged so far. Waits for the device."""
        p, bits = self.problem, torch.round(self._bits).double()
        macs = p.macs if self.profiled else torch.zeros_like(p.macs)
        inference, highest = (costs.inference_bitops(p.macs, b).sum() for b in (bits, p.high.double()))
        numel = torch.tensor(self._weights, dtype=torch.float64, device=bits.device)
        left_out = sum(item.macs for item in self.coverage.left_out if item.reason != SKIPPED)
        return costs.Cost(
            training_bitops=float(costs.training_bitops(macs, bits).sum()),
            inference_bitops=float(inference) if self.profiled else 0.0,
            relative=float(p.relative_cost(bits)),
            relative_inference=float(inference / highest),
            weight_mib=float(costs.weight_mib(numel, bits).sum()),
            mean_relative=float(self._spent) / self._progress if self._progress else float(p.relative_cost(bits)),
            left_out_bitops=float(3 * FULL_PRECISION**2 * left_out),
        )

    @property
    def coverage(self) -> Coverage:
        """Share of the model's MACs that goes through quantized products, and what does not."""
        return coverage(self.profile, self.specs, self.searched_sites())

    def summary(self) -> str:
        """A text table of the layers and their bits, the cost and the coverage."""
        return summarize(self)

    # -- counting ---------------------------------------------------------------------------------------------------

    def adopt_profile(self, profile: ModelProfile) -> None:
        """Take over a profile that comes after `apply`: the costs, and the sites of the products outside of layers.

        Raises:
            ValueError: the coverage is below the space's `min_coverage`, the target cost out of reach, or a pattern matches
                nothing.
        """
        before = dict(self.__dict__)
        try:
            self._adopt_profile(profile)
        except Exception:  # nothing is half taken over: the next forward says the same again
            self.__dict__.update(before)
            self._bind_views()
            self.policy.bind(self.problem)
            raise
        if "profile" in self.hooks:
            self.hooks.pop("profile").remove()
        install(self)

    def _adopt_profile(self, profile: ModelProfile) -> None:
        self.profile, before = profile, self.bits()
        specs = find_sites(self.model, self.space, profile)
        if self._progress > 0:  # what a training has learned stays; what it has not met so far stays out
            specs = {name: spec for name, spec in specs.items() if name in self.specs}
        device = self._bits.device
        if list(specs) == self._names:
            precisions(specs, self.space, final=True)
            self.specs, self.problem = specs, dataclasses.replace(self.problem, macs=self._macs_of(specs).to(device))
            self.policy.problem = self.problem
            self._ranges = torch.zeros(sum(spec.call_sites for spec in specs.values()), 4, device=device)
            self._bind_views()
        else:
            self._build(specs)
            self.to(device)
        self._check_costs()
        if self._progress == 0:
            self._bind()
        if self.frozen:
            for row, name in enumerate(self._names):
                self._bits[row] = torch.tensor(before.get(name, self.bits()[name]), dtype=torch.float32)

    def _check_costs(self) -> None:
        if not self.profiled:
            return
        found = self.coverage
        if found.share < self.space.min_coverage:
            listed = "\n".join(f"  {item.name}: {item.macs:,} MACs, {item.reason}" for item in found.left_out[:20])
            raise ValueError(
                f"min_coverage={self.space.min_coverage} of the MACs must be quantized, but only {found.share:.3f} is. "
                f"Left out:\n{listed}\nLower min_coverage, or take these layers out of `skip`."
            )
        if self.policy.meets_target:
            check_reachable(self.problem)

    # -- off, frozen, saved -----------------------------------------------------------------------------------------

    @contextmanager
    def disabled(self):
        """Within this context the model computes as if `apply` had never been called."""
        before, self.enabled = self.enabled, False
        try:
            yield self
        finally:
            self.enabled = before

    @property
    def ranges(self) -> Tensor:
        """(call sites, 4) moving averages, as sums: of each input's minimum, maximum and mean magnitude, and of 1 (their mass).
        A site has one call site, more where its module runs more than once in a forward.
        """
        return self._ranges

    def freeze(self) -> None:
        """Round the bits in force to integers and keep them: `step` records, but nothing moves any more."""
        self._bits.round_()
        self.frozen = True
        self._bind_views()

    def finalize(self, loader=None, forward=None, batches: int = 50) -> Allocation:
        """Freeze the bits at integers and re-estimate batch-norm statistics and input ranges at them (see `finalize.py`)."""
        return finalize(self.model, self, loader, forward, batches)

    def state_dict(self) -> dict:
        """All that a training needs to go on bitwise: tensors on the CPU and plain data."""
        return state.of(self)

    def load_state_dict(self, saved: dict) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: the state is of a model with other layers.
        """
        state.load(self, saved)

    def __deepcopy__(self, memo: dict):
        return copy_with_model(self, self, memo)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._bind_views()  # pickle does not keep storages shared


def _leaf(values: Tensor, grad: Tensor | None) -> Tensor:
    """A leaf on the same storage as `values`; with `grad`, one whose gradient accumulates there."""
    leaf = values.detach()
    if grad is not None:
        leaf.requires_grad_()
        leaf.grad = grad
    return leaf
