"""The damage of rounding as a training measures it: what the sites record, smoothed, and the learning rates it counts by."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from ..bits.damage import SKETCH_SQUARE, DamageMeter, Sensed
from ..messages import warn
from ..model.sites import SiteSpec
from ..native.memory import recomputing
from .distributed import average_over_ranks, ranks
from .gradient_paths import GradientPaths
from .learning_rates import effective_rates, learning_rate
from .other_gradients import OtherGradients

PATIENCE = 4  # measurements that may tell nothing before it is said (a loss scaled for fp16 overflows at first)
SMOOTHING = 0.9  # share of the past that a measurement keeps; they are `sense_every` steps apart


class DamageSensor:
    """record, paths: what the sites write into. others: what is trained besides their weights. meter: the past, smoothed.

    rates: (sites + others,) effective learning rates. kept_out: names of sites that stay in full precision.
    warming_up: the optimizer's learning rate has risen since the last measurement; True until there are two.
    """

    def __init__(self, model: nn.Module, specs: list[SiteSpec], levels: Tensor, kept_out: Collection[str] = ()):
        self.specs, self.record, self.others = specs, Sensed(len(specs), levels), OtherGradients(model, specs, kept_out)
        self.meter, self.paths, self.warming_up = DamageMeter(SMOOTHING), GradientPaths(), True
        self.rates = effective_rates([[]] * (len(specs) + len(self.others.holders)))
        self._rate: float | None = None  # at the last measurement
        self._silent = 0  # measurements in this process before the first that told anything
        self.scaled = False  # the loss has had a factor (fp16) that nobody has told
        self._named = False  # that a step came without gradients

    def watched(self, site: int, x: Tensor, y: Tensor) -> Tensor:
        """y, which a site's product has made of x, its place in the graph noted. A compiled forward has none, and one that is
        computed again has another than backward takes.
        """
        if not torch.compiler.is_compiling() and not recomputing():
            self.scaled |= x.dtype == torch.float16
            self.paths.watch(site, x, y)
        return y

    def measure(self, optimizer=None, training: bool = True) -> None:
        """Take in what the backward passes since the last step have recorded. training: whether the model is in that mode."""
        terms, share, known = self.record.terms, *self._paths()
        average_over_ranks([*self.record.tensors(), terms, share, known])
        factor = self.others.factor(self.record)
        others = self.others.measured(self.record, factor)
        average_over_ranks([*others])
        clipped = self._clipped(factor)
        self.meter.update(self.record, terms, others, share, known)
        self._warn_of_silence(training)
        weights = [*(spec.held for spec in self.specs), *self.others.weights()]
        self.rates = self._agreed(effective_rates(weights, optimizer) * clipped)
        self.record.clear()
        rate = learning_rate(optimizer)
        self.warming_up, self._rate = self._rate is None or rate > self._rate, rate

    def _paths(self) -> tuple[Tensor, Tensor]:
        """(sites, sites + others) share and known of `Reached`; where the graph does not tell (torch.compile, a recomputed
        forward), all of what comes before a site has its whole noise.
        """
        parameters = [next(iter(held), None) for held in self.others.weights()]
        share, known = self.paths.reached(len(self.specs), parameters)
        earlier, met = by_order(self.record.order, self.others.before)
        either = torch.where(known > 0, share, earlier), torch.maximum(known, met)
        device = self.record.curves.device
        return (either[0] * either[1]).to(device), either[1].to(device)

    def _clipped(self, told: Tensor) -> float:
        """By how much gradients were clipped since backward: what was recorded moves the weights by so much less.

        told: `OtherGradients.factor`. That of a scaled loss which nobody has told is no clipping.
        """
        factor = float(told)
        if factor == 0 and not self._named:
            self._named = True
            warn(
                "ldp.step() found gradients in no weight, though a backward pass has come through them: what else is trained "
                "(embeddings, norms) counts for nothing then. Call ldp.step() after backward and before optimizer.zero_grad().",
            )
        scaled, self.scaled = self.scaled, False
        if scaled or not math.isfinite(factor) or factor <= 1:
            return 1.0
        exponent = math.log2(factor)
        return 1.0 if abs(exponent - round(exponent)) < 1e-3 else 1 / factor  # a scale is a power of two; clipping is none

    def _warn_of_silence(self, training: bool) -> None:
        self._silent += not self.ready
        if self._silent == 1 and not training and not self.ready:
            self._silent = PATIENCE + 1  # said
            warn(
                "The model is in evaluation mode, in which nothing is measured of what rounding costs: bits are chosen without "
                "it, and ranges stay as they are. Call model.train() before the training.",
            )
        if self._silent == PATIENCE and not self.ready:
            warn(
                f"{PATIENCE} measurements told nothing of what rounding costs, so bits are chosen without it: no backward "
                "pass has reached a quantized layer, or all of them overflowed. Call loss.backward() before ldp.step(); "
                "torch.autograd.grad(loss, parameters) leaves nothing behind.",
            )

    def unscale(self, scale: float) -> None:
        """Undo a factor on the loss (fp16); the parameters' own gradients may have it still.

        What is recorded is of the second order in gradients, the sketch of the first.
        """
        self.scaled = False
        for tensor, factor in (
            (self.record.curves, scale**2),
            (self.record.scalars[:, : SKETCH_SQUARE + 1], scale**2),
            (self.record.sketch, scale),
        ):
            tensor.div_(factor)

    def _agreed(self, rates: Tensor) -> Tensor:
        """The mean over the ranks: of sharded weights each knows the moments of its own part."""
        if ranks() == 1:
            return rates
        held = rates.to(self.record.curves.device, torch.float32)
        average_over_ranks([held])
        return held.cpu().double()

    @property
    def ready(self) -> bool:
        return self.meter.ready

    def curves(self, kinds: int) -> Tensor:
        """(sites, kinds, levels) damages in units of the loss, float64 on the CPU."""
        self.meter.ranks = ranks()  # of this process, not of those that measured: a resumed training decides before it measures
        return self.meter.curves(self.rates, kinds)

    def to(self, device) -> None:
        self.record.to(device)

    def state_dict(self) -> dict:
        return {
            "meter": self.meter.state_dict(),
            "rates": self.rates.clone(),
            "rate": self._rate,
            "warming_up": self.warming_up,
        }

    def load_state_dict(self, state: dict) -> None:
        self.record.clear()
        meter = state["meter"]
        if meter is not None and "share" not in meter:  # of a version that went by the order alone
            earlier, met = by_order(meter["order"], self.others.before)
            meter = meter | {"share": earlier * met * meter["mass"], "pairs": met * meter["mass"]}
            meter.pop("order")
        self.meter.load_state_dict(meter, len(self.others.holders))
        known = len(self.rates if len(state["rates"]) == len(self.rates) else self.specs)  # others may be more, or fewer
        self.rates[:known] = state["rates"][:known]
        self._rate, self.warming_up = state["rate"], state["warming_up"]


def by_order(order: list[int], before: Tensor) -> tuple[Tensor, Tensor]:
    """(sites, sites + others) each: 1 for the columns that lie before a site, and 1 for the pairs that the order tells of.

    before: (sites, others) mask.
    """
    sites = len(before)
    place = torch.full((sites,), -1, dtype=torch.long, device="cpu")
    place[order] = torch.arange(len(order), device="cpu")
    met = place >= 0
    earlier = torch.cat([(place[None] < place[:, None]) & met[None], before], 1)
    told = torch.cat([met[None].expand(sites, sites), torch.ones_like(before)], 1) & met[:, None]
    return earlier.float(), told.float()
