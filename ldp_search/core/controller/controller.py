"""The controller: everything that LDP adds to a model, and the one call of a training step, `ldp.step(progress)`.

It holds the bits of all layers as one (layers, kinds) tensor on the model's device: weight, input and gradient bits. Layers
see rows of it (leaves whose `.grad` are rows of one gradient tensor), so that a step is a handful of operations on small
tensors whatever the number of layers, with no transfer to the host and nothing that torch.compile would recompile for.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backends import Backend
from ..bits.allocation import Allocation
from ..bits.cost import Cost
from ..bits.policies import Policy, Problem, Signals
from ..bits.relaxations import Relaxation
from ..bits.space import FULL_PRECISION, SearchSpace
from ..bits.specs import AnyBits, Coverage, LayerSpec, as_bits
from ..bits.trajectory import Trajectory
from ..model.coverage import coverage
from ..model.install import install
from ..model.interception import copy_with_model
from ..model.site import Site
from ..model.sites import SiteSpec, find_sites
from ..profile.records import ModelProfile
from ..quantize.gradient_quantizers import GradQuantizer
from ..quantize.quantizers import Quantizer
from ..registry import build
from . import controller_state, counting
from .accounting import cost_of
from .checks import check_budgets, check_coverage, check_learnable, check_step, finite_loss
from .damage_sensor import DamageSensor
from .defaults import own_defaults
from .display import as_html, drawn
from .distributed import agree_on_choices, average_over_ranks
from .finalize import finalize, frozen_norms
from .forecast import Damage, Front, damage, front
from .rollback import controller_kept
from .search_problem import always_computed, backward_macs
from .strays import PATIENCE, apart, warn_of_changes, warn_of_unreached, warn_where_frozen
from .summary import Summary, summarize
from .tensors import BitTensors, leaf


class Controller:
    """Handle of one model's search; `ldp_search.controller(model)` finds it.

    specs: {name: what has bits of its own}, layers and products outside of layers; profile: the counts that they follow from,
    None until there was one. enabled: whether the model quantizes. calibrating: inputs are measured in evaluation mode too.
    """

    specs: dict[str, SiteSpec]
    problem: Problem
    trained: dict[str, tuple[bool, ...]]  # which weights of each site asked for a gradient when they were counted
    sites: list[Site]
    tensors: BitTensors
    trajectory: Trajectory
    sensor: DamageSensor | None
    sensing: bool  # whether the step under way measures what rounding costs
    levels: Tensor

    @own_defaults()
    def __init__(self, model: nn.Module, space: SearchSpace, profile: ModelProfile | None = None):
        self.model, self.space, self.enabled, self.calibrating = model, space, True, False
        self.weight_quantizer: Quantizer = build("quantizer", space.weight_quantizer)
        self.input_quantizer: Quantizer = build("quantizer", space.input_quantizer)
        self.grad_quantizer: GradQuantizer = build("grad_quantizer", space.grad_quantizer)
        self.backend: Backend = build("backend", space.backend)
        self.searches_clips = self.weight_quantizer.searches_clip or self.input_quantizer.searches_clip
        self.straight = self.input_quantizer.straight_through, self.weight_quantizer.straight_through
        self.relaxation: Relaxation = build("relaxation", space.relaxation)
        self.policy: Policy = build("policy", space.policy)
        self.generator = torch.Generator("cpu").manual_seed(space.seed)
        self._progress, self._steps, self.frozen, self.counting = 0.0, 0, False, False
        self._loss: Tensor | None = None  # the last one that was finite
        self.named_refrozen: set[str] = set()  # sites that a warning has named
        self.removed = False  # by `remove`: it is the handle of nothing any more
        self.hooks: dict[str, RemovableHandle] = {}
        self._names: list[str] = []
        self._weights: list[int] = []
        self.bypassed: dict[str, str] = {}  # {site: why its products are not quantized}, found by `apply`
        self._looks_again = PATIENCE  # the step after which layers that no forward has reached are named
        self.frozen_norms: set[str] | None = None  # names of batch norms, as the first step finds them; None: before it
        self.profile = profile
        counting.build(self, find_sites(model, space, profile))
        check_learnable(self.policy, self.problem, space)
        check_budgets(self.policy, space)
        counting.check_costs(self)
        self.begin()

    @property
    def profiled(self) -> bool:
        return self.profile is not None

    @property
    def on(self) -> bool:
        """As a `Site`'s: a layer that asks for none of its own (a fused one) has the controller for its record."""
        return self.enabled

    def searched_sites(self) -> dict[str, Site | None]:
        """{name: its site}, None where it stays in full precision."""
        return {site.name: None if site.highest[0] >= FULL_PRECISION else site for site in self.sites}

    # -- the tensors ------------------------------------------------------------------------------------------------

    def bind_views(self) -> None:
        self.tensors.bind_views(self.sites, self.policy.needs_gradients and not self.frozen, self.frozen)

    @own_defaults()
    def to(self, device) -> None:
        """Move everything to the device where the model turned out to be; called by the layers themselves."""
        self.tensors.to(device)
        self.levels = self.levels.to(device)
        if self.sensor is not None:
            self.sensor.to(device)
        self.problem = self.problem.to(device)
        self.policy.to(device)
        self.bind_views()

    def begin(self) -> None:
        """Let the policy begin: at `apply`, and again when the MACs become known."""
        start = self.policy.bind(self.problem)
        self.tensors.bits.copy_(self._realize(start, 0.0, torch.round(start)))

    def _realize(self, bits: Tensor, progress: float, previous: Tensor) -> Tensor:
        wanted = tuple(self.problem.low.shape)
        if bits.dim() == 2 and any(n not in (1, m) for n, m in zip(bits.shape, wanted, strict=True)):
            raise ValueError(
                f"The policy {self.policy.name!r} must give bits of the shape of problem.low, (layers, kinds) = {wanted}; "
                f"received {tuple(bits.shape)}. A space with split_gradient=True has four kinds, others three."
            )
        bits = torch.minimum(torch.maximum(bits.to(self.tensors.bits), self.problem.low), self.problem.high)
        bits = self.relaxation.realize(bits, previous, self.policy.hysteresis, progress, self._uniform)
        return bits if self.problem.containers is None else self.problem.in_force(bits)

    def _uniform(self) -> Tensor:
        """Random numbers (layers, kinds) in [0, 1), one a group: coordinates that share their bits share the draw."""
        drawn = torch.rand(self.problem.groups, generator=self.generator, dtype=torch.float32, device="cpu")
        return drawn.to(self.tensors.bits.device, non_blocking=True)[self.problem.group]

    # -- the step ---------------------------------------------------------------------------------------------------

    @own_defaults()
    @torch.no_grad()
    def step(self, progress: float, loss: Tensor | float | None = None, optimizer=None) -> None:
        """Once per optimizer step, after backward and before `optimizer.step()`.

        Args:
            progress: share of the training done when this step is, in (0, 1], rising.
            loss: mean training loss of the step (0-d), for the policies that read it.
            optimizer: of the weights; its learning rate is what the noise of rounded gradients counts by. Without one an
                effective rate of 1 is taken (SGD at 0.1 with momentum 0.9).

        A loss scaled for fp16 scales the bits' gradients too: 'learned' with a target takes the same bits (the losses that
        `damage()` and `front()` expect are multiplied by the square of the scale), other policies mind.

        Raises:
            ValueError: progress out of order, or no loss for a policy that needs one.
        """
        check_step(self, progress, self._progress, loss)
        if self.frozen_norms is None:
            self._look_around()
        loss = None if loss is None else torch.as_tensor(loss, device=self.tensors.bits.device).detach().clone()
        average_over_ranks([*self.tensors.of_the_batch(self.sensing), *([] if loss is None else [loss])])
        loss = self._loss = None if loss is None else finite_loss(loss, self._loss)
        if self.sensing and self.sensor is not None:
            self.sensor.measure(optimizer, self.model.training)
        self.tensors.spent += self.problem.relative_cost(self.tensors.bits) * (progress - self._progress)
        self.trajectory.append(progress, self.tensors.bits)
        self._progress, self._steps = progress, self._steps + 1
        self.sensing = self.senses_at(self._steps)
        if not self.frozen and progress < 1 - 1e-9:  # after the last step its bits stay: they are the result
            grads = self.tensors.finite_gradients() if self.policy.needs_gradients else None
            warming_up = self.sensor is not None and self.sensor.warming_up
            signals = Signals(
                progress, self.tensors.bits.clone(), grads, loss, self.tensors.spent, self._damages(), warming_up
            )  # fmt: skip
            bits = self.policy.step(signals)
            self.tensors.bits.copy_(self._realize(bits, progress, self.tensors.bits))
            self.tensors.step_clips()
        self.tensors.zero_gradients()
        if self.trajectory.seen.bit_count() == 1:  # steps 1, 2, 4, ...: new kinds of calls become rare
            agree_on_choices(self.backend)
        if self.trajectory.seen.bit_count() == 1 or self.sensing:
            warn_where_frozen(self)
        if self._steps == self._looks_again:
            warn_of_unreached(self)

    def _look_around(self) -> None:
        """At the first step of a process: name what has come between `apply` and the training."""
        check_coverage(self)
        warn_of_changes(self)
        warn_where_frozen(self)
        self.frozen_norms, self._looks_again = frozen_norms(self.model), self._steps + PATIENCE

    def senses_at(self, steps: int) -> bool:
        """Whether the forward and backward of step `steps` measure what rounding costs, and search the clipping bounds."""
        measures = self.sensor is not None or self.searches_clips
        return measures and not self.frozen and steps % self.space.sense_every == 0

    def _damages(self):
        """What `Signals.damage` is."""
        if self.sensor is None or not self.sensor.ready:
            return None
        return lambda: self.sensor.curves(self.tensors.bits.shape[1])

    # -- what it tells ----------------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, Tensor]:
        """The architecture tensors, with `.grad` since the last step: bits (layers, kinds) in force, clips' logarithms."""
        out = {"bits": leaf(self.tensors.bits, self.tensors.grads)}
        return out | ({"log_clips": leaf(self.tensors.clips, self.tensors.clip_grads)} if self.tensors.clips.numel() else {})

    def bits(self) -> dict[str, AnyBits]:
        """{layer name: Bits(weight, input, grad)}, integers in force; SplitBits where the space splits the gradient's."""
        rows = torch.round(self.tensors.bits).int().tolist()
        return {name: as_bits(row) for name, row in zip(self._names, rows, strict=True)}

    @property
    def layers(self) -> dict[str, LayerSpec]:
        """{layer name: LayerSpec}; MACs are 0 until they are counted (at `apply` with inputs, else at the first forward)."""
        always = always_computed(self.space)
        return {
            name: LayerSpec(name, spec.kind, spec.macs, numel, spec.input_numel, spec.calls, backward_macs(spec, always))
            for (name, spec), numel in zip(self.specs.items(), self._weights, strict=True)
        }

    @property
    def spent(self) -> tuple[float, float]:
        """(integral of the relative training cost over progress so far, progress so far). Waits for the device."""
        return float(self.tensors.spent), self._progress

    def cost(self) -> Cost:
        """Cost at the bits in force now, and averaged so far. Waits for the device."""
        return cost_of(self)

    def damage(self) -> Damage:
        """Expected loss from rounding to the bits in force: by layer, by kind, and in all (`bits.damage`).

        Raises:
            ValueError: the policy measures none, or no training step has been taken yet.
        """
        return damage(self)

    def front(self, points: int = 25) -> Front:
        """The least expected loss from rounding over the training cost of a step, from what was measured so far.

        Raises:
            ValueError: as `damage`.
        """
        return front(self, points)

    @property
    def coverage(self) -> Coverage:
        """Share of the model's MACs that goes through quantized products, and what does not."""
        return coverage(self.profile, self.specs, self.searched_sites(), apart(self))

    def summary(self) -> Summary:
        """A text table of the layers and their bits, the cost and the coverage."""
        return summarize(self)

    def plot(self, kind: str = "schedule"):
        """A matplotlib figure of the search as it stands; a notebook shows it, `.savefig(path)` keeps it.

        Args:
            kind: `schedule`: bits of all layers over progress, and costs against their budgets. `allocation`: bits in force,
                beside each layer's share of the cost. `damage`: expected loss from rounding, by layer and kind. `front`: the
                least expected loss at every cost.

        Raises:
            ValueError: an unknown kind, or nothing is measured yet that it would show. ImportError: without matplotlib.
        """
        return drawn(self, kind)

    def _repr_html_(self) -> str:
        return as_html(self)

    # -- counting ---------------------------------------------------------------------------------------------------

    @own_defaults()
    def adopt_profile(self, profile: ModelProfile) -> None:
        """Take over a profile that comes after `apply`: the costs, and the sites of the products outside of layers.

        Raises:
            ValueError: the coverage is below the space's `min_coverage`, the target cost out of reach, or a pattern matches
                nothing.
        """
        with controller_kept(self):  # nothing is half taken over: the next forward says the same again
            counting.adopt(self, profile)
            install(self)
        if "profile" in self.hooks:
            self.hooks.pop("profile").remove()

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
        """`BitTensors.ranges`: moving averages of the inputs, (call sites, 4)."""
        return self.tensors.ranges

    def freeze(self) -> None:
        """Round the bits in force to integers and keep them: `step` records, but nothing moves any more."""
        self.tensors.bits.round_()
        self.frozen, self.sensing = True, False
        self.bind_views()

    def finalize(self, loader=None, forward=None, batches: int = 50) -> Allocation:
        """Freeze the bits at integers and re-estimate batch-norm statistics and input ranges at them (see `finalize.py`)."""
        return finalize(self.model, self, loader, forward, batches)

    def state_dict(self) -> dict:
        """All that a training needs to go on bitwise: tensors on the CPU and plain data."""
        return controller_state.of(self)

    @own_defaults()
    def load_state_dict(self, saved: dict) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: the state is of a model with other layers.
        """
        with controller_kept(self):
            controller_state.load(self, saved)

    def __deepcopy__(self, memo: dict):
        return copy_with_model(self, self, memo)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.bind_views()  # pickle does not keep storages shared
