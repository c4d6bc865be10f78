"""Changes of a layer's weights and inputs at once, for costs that fall only when both have changed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .problem import Problem

if TYPE_CHECKING:
    from .least_damage import LeastDamage


class Pairs:
    """The groups of weights and of inputs that meet in a layer, as pairs; several where layers share their bits.

    count: how many, 0 where they are not wanted. index: (layers, kinds) the coordinate's pair. layers: mask of those in one.
    """

    def __init__(self, problem: Problem, wanted: bool = True):
        searched = problem.searched.clone()
        searched[:, 2:] = False
        root = list(range(problem.groups))

        def find(group: int) -> int:
            while root[group] != group:
                group = root[group]
            return group

        both = searched[:, :2].all(1) & (problem.group[:, 0] != problem.group[:, 1])
        for weight, input in problem.group[both, :2].tolist():
            root[find(weight)] = find(input)
        roots = torch.tensor([find(group) for group in range(problem.groups)])
        joined = set(roots[problem.group[both, 0]].tolist()) if wanted else set()
        numbers = {group: place for place, group in enumerate(sorted(joined))}
        number = torch.tensor([numbers.get(group, len(numbers)) for group in roots.tolist()])
        self.count = len(numbers)
        self.index = torch.where(searched, number[problem.group], self.count)
        self.layers = (self.index < self.count).any(1)

    def mask(self, pair: int) -> Tensor:
        """(layers, kinds) of the coordinates of a pair."""
        return self.index == pair

    def best(self, search: LeastDamage, price: float, bits: Tensor, rest: Tensor | None, factor: float) -> Tensor:
        """`bits` with every pair at the one number of bits for both that is best, where that is better than what it has.

        rest, factor: as `LeastDamage._best` has them: no coordinate comes further from `rest` than to its next number, and what
        grows by it counts `factor` times.
        """
        levels, forward, inside = search.levels, slice(0, 2), self.index[:, :2] < self.count
        trial = bits.expand(len(levels), *bits.shape).clone()
        trial[..., forward] = torch.where(inside, levels[:, None, None], trial[..., forward])
        start = bits.clone()  # as `rest` has the pairs, all else as it is
        if rest is not None:
            start[:, forward] = torch.where(inside, rest[:, forward], bits[:, forward])
        damage = (search.curves + search.outside)[:, forward].masked_fill(~inside[..., None], 0.0)
        options = self._pooled(damage, search.charges(price, trial).T)
        at = lambda b: self._pooled(search.damage(b)[:, forward, None] * inside[..., None], search.charges(price, b)[:, None])  # noqa: E731
        before, now = at(start), at(bits)
        change = [option - first for option, first in zip(options, before, strict=True)]
        stay = [current - first for current, first in zip(now, before, strict=True)]
        if rest is not None:
            change[0] = change[0].masked_fill(self._far(search, rest, inside), math.inf)
            change, stay = ([torch.where(v > 0, v * factor, v) for v in values] for values in (change, stay))
        total, held = change[0] + change[1], (stay[0] + stay[1])[:, 0]
        found = total.min(1)
        better = found.values < held - 1e-12 * search.scale
        target = torch.where(better, levels[found.indices], 0.0)
        index = self.index[:, forward].clamp(max=self.count - 1)
        out = bits.clone()
        out[:, forward] = torch.where(inside & better[index], target[index], bits[:, forward])
        return out

    def _pooled(self, damage: Tensor, cost: Tensor) -> list[Tensor]:
        """(pairs, options) of damages (layers, 2, options) and of layers' costs (layers, options)."""
        out = [torch.zeros(self.count + 1, cost.shape[1], dtype=torch.float64) for _ in range(2)]
        out[0].index_add_(0, self.index[:, :2].flatten(), damage.flatten(0, 1))
        out[1].index_add_(0, self.index[:, :2].min(1).values, cost)
        return [values[:-1] for values in out]

    def _far(self, search: LeastDamage, rest: Tensor, inside: Tensor) -> Tensor:
        """(pairs, levels) mask of what some coordinate would reach only past its next number."""
        places = search.places[None, :2].expand(len(rest), -1, -1)
        at = (rest[:, :2].long() - search.first).clamp(0, places.shape[2] - 1)
        far = ((places - places.gather(2, at[..., None])).abs() > 1) & inside[..., None]
        out = torch.zeros(self.count + 1, places.shape[2], dtype=torch.long)
        out.index_add_(0, self.index[:, :2].flatten(), far.flatten(0, 1).long())
        return out[:-1] > 0
