"""The bits of least damage at a price, at a budget, and over all budgets (the front).

Minimise  sum over coordinates D_i(b_i) + price * C(b)  over integers. C is a sum over layers of products of two bits, so with
the bits of the other kinds held it is linear in those of one kind, and the best bits of that kind are found exactly, each by
itself; the kinds take turns until nothing moves. Where D_i = S_i 4^-b this is the closed form

    b_i* = log2( 2 ln2 S_i / (price dC/db_i) ) / 2
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .problem import Problem

SWEEPS = 12
PRICES = (1e-9, 1e9)  # between which every price lies, in mean damages per relative cost
NEAR = 4.0  # factor about the last price within which the next one is looked for first
RESERVE = 1e-6  # of the mean damage: what a coordinate does at the lowest bits that shows none, so that budgets are used up
FINE = 0.02  # of the logarithm of a price: closer prices are one


class Choice(NamedTuple):
    """bits: (layers, kinds). cost: relative. damage: expected loss."""

    bits: Tensor
    cost: float
    damage: float


class Column(NamedTuple):
    """Kinds whose bits move together in some layers, and what of their choice is the same at every price.

    searched: (layers, kinds) mask of the coordinates that move. group: (layers, kinds) theirs, one after the last elsewhere.
    once: (layers,) the group that a layer's cost is counted in, whatever the kinds. damage: (groups + 1, levels).
    """

    kinds: list[int]
    searched: Tensor
    group: Tensor
    once: Tensor
    damage: Tensor


class LeastDamage:
    """The choices for one problem and one set of damages.

    problem: on the CPU. curves: (layers, kinds, levels) float64. levels: (levels,) numbers of bits, ascending by one.
    """

    def __init__(self, problem: Problem, curves: Tensor, levels: Tensor):
        self.problem, self.levels = problem, levels.double()
        self.first = int(levels[0])
        self.scale = float(curves.mean()) or 1.0
        self.curves = curves.double() + RESERVE * self.scale * 4.0 ** (self.first - self.levels)
        allowed = problem.allowed(self.levels)
        self.outside = torch.where(allowed, 0.0, math.inf).double()
        self.places = allowed.any(0).long().cumsum(-1)  # (kinds, levels): neighbours differ by one
        self.columns = _columns_that_move_together(problem)
        self.moving = [self._column(*column) for column in self.columns]

    def damage(self, bits: Tensor) -> Tensor:
        """(layers, kinds) expected loss from rounding to `bits`; 0 where the bits are not searched and not among the levels."""
        index = (bits.long() - self.first).clamp(0, len(self.levels) - 1)
        found = self.curves.gather(2, index[..., None]).squeeze(2)
        return torch.where((bits >= self.first) & (bits <= self.levels[-1]), found, 0.0)

    def choice(self, bits: Tensor) -> Choice:
        return Choice(bits, float(self.problem.relative_cost(bits)), float(self.damage(bits).sum()))

    def at_price(self, price: float, start: Tensor, thorough: bool = True) -> Choice:
        """The end of the descent from `start`; thorough: the best of those from the lowest and from the highest bits too."""
        starts = (start, self.problem.low, self.problem.high) if thorough else (start,)
        found = [self.choice(self._descend(price, bits)) for bits in starts]
        return min(found, key=lambda c: self.objective(price, c))

    def objective(self, price: float, choice: Choice) -> float:
        return choice.damage + price * choice.cost

    def charges(self, price: float, bits: Tensor) -> Tensor:
        """(..., layers) what `bits` (..., layers, kinds) cost each layer at a price, in units of the damage."""
        return price * self.problem.layer_costs(bits)

    def moved(self, price: float, bits: Tensor, inertia: float) -> Choice:
        """`bits` (layers, kinds) after the changes by one bit that pay at a price: that save 4^inertia times what they take.

        By one bit, since damages are measured with all other bits as they are: noise of many gradients at once is no sum.
        inertia: in bits; so far must the real-valued optimum lie beyond the middle of two numbers.
        """
        return self.choice(self._descend(price, bits.double(), inertia))

    def towards(self, bits: Tensor, budget: float, tolerance: float, rest: Tensor | None = None) -> Choice:
        """`bits` after the fewest changes by one bit, each of the most use, that bring the cost near to a budget.

        tolerance: how near, as a share of the budget. rest: bits in force, of which none comes further away than one (None: as
            far as the budget asks for).
        """
        p, now = self.problem, self.choice(bits.double())
        while abs(now.cost - budget) > tolerance * budget:
            sign = 1.0 if now.cost < budget else -1.0
            trial = p.beside(now.bits, sign)
            step = trial - now.bits
            free = p.searched & (trial >= p.low) & (trial <= p.high)
            if rest is not None:
                free &= (trial >= p.beside(rest, -1.0)) & (trial <= p.beside(rest, 1.0))
            stuck = p.pool((p.searched & ~free).double()) > 0
            gain = p.pool(torch.where(free, self.damage(now.bits) - self.damage(trial), 0.0))
            cost = p.pool(p.cost_gradient(now.bits) * step)
            use = (gain / cost).masked_fill(stuck | (cost == 0) | (p.members == 0), -math.inf if sign > 0 else math.inf)
            group = int(use.argmax() if sign > 0 else use.argmin())
            if not math.isfinite(float(use[group])):
                break
            found = self.choice(torch.where((p.group == group) & p.searched, trial, now.bits))
            if abs(found.cost - budget) >= abs(now.cost - budget):
                break
            now = found
        return now

    def _descend(self, price: float, bits: Tensor, inertia: float = 0.0) -> Tensor:
        bits, rest = bits.double(), bits.double()
        for _ in range(SWEEPS):
            before = bits
            for column in self.moving:
                bits = self._best(price, bits, column, rest if inertia else None, 4.0**inertia)
            bits = self._best_at_once(price, bits, rest if inertia else None, 4.0**inertia)
            if torch.equal(bits, before):
                break
        return bits

    def _column(self, together: list[int], layers: Tensor) -> Column:
        p = self.problem
        searched = p.searched[:, together] & layers[:, None]
        group = torch.where(searched, p.group[:, together], p.groups)  # the last one: not searched
        damages = torch.where(searched[..., None], self.curves[:, together] + self.outside[:, together], 0.0)
        mask, groups = torch.zeros_like(p.searched), torch.full_like(p.group, p.groups)
        mask[:, together], groups[:, together] = searched, group
        return Column(
            together, mask, groups,
            once=torch.where(searched.any(1), group.min(1).values, p.groups),
            damage=self._sums().index_add_(0, group.flatten(), damages.flatten(0, 1)),
        )  # fmt: skip

    def _sums(self) -> Tensor:
        return torch.zeros(self.problem.groups + 1, len(self.levels), dtype=torch.float64)

    def _best(self, price: float, bits: Tensor, column: Column, rest: Tensor | None, factor: float) -> Tensor:
        """The best bits of a column, the others held. A change from `rest` must save `factor` times what it takes."""
        trial = torch.where(column.searched, self.levels[:, None, None], bits)
        costs = self.charges(price, trial).T  # (layers, levels)
        damage, cost = column.damage, self._sums().index_add_(0, column.once, costs)
        if rest is not None:
            kinds = column.kinds
            group, places = column.group[:, kinds], self.places[kinds[0]]
            damage, cost = self._with_inertia(damage, cost, group, rest[:, kinds], places, factor)
        best = self.levels[(damage + cost).argmin(1)]
        return torch.where(column.searched, best[column.group], bits)

    def _best_at_once(self, price: float, bits: Tensor, rest: Tensor | None, factor: float) -> Tensor:
        """`bits` after what pays only where several kinds change at once: nothing, as long as costs are linear in each."""
        return bits

    def _with_inertia(
        self, damage: Tensor, cost: Tensor, group: Tensor, rest: Tensor, places: Tensor, factor: float
    ) -> tuple[Tensor, Tensor]:
        """Damage and cost (groups + 1, levels) as changes from `rest`; whichever of them grows counts `factor` times."""
        index = torch.zeros(len(damage), dtype=torch.long)
        index[group.flatten()] = (rest.flatten() - self.first).long().clamp(0, len(self.levels) - 1)
        damage, cost = (values - values.gather(1, index[:, None]) for values in (damage, cost))
        far = (places - places[index][:, None]).abs() > 1
        damage = torch.nan_to_num(damage, math.inf, math.inf, -math.inf).masked_fill(far, math.inf)
        return torch.where(damage > 0, damage * factor, damage), torch.where(cost > 0, cost * factor, cost)

    def around(self, budget: float, start: Tensor, near: float | None = None) -> tuple[Choice, Choice, float]:
        """The choices next to a budget, at most it and at least it, and the price between them.

        near: a price to search about, from `start` alone; None: everywhere.
        """
        low, high = (math.log(price) for price in self._between(near))
        at = lambda log_price, bits: self.at_price(math.exp(log_price), bits, not near)  # noqa: E731
        below, above = at(high, start), at(low, start)
        if below.cost > budget or above.cost <= budget:
            if near:
                return self.around(budget, start)
            end = below if below.cost > budget else above
            return end, end, math.exp(high if below.cost > budget else low)
        while high - low > FINE:
            middle = (low + high) / 2
            found = at(middle, below.bits)
            if found.cost <= budget:
                below, high = found, middle
            else:
                above, low = found, middle
        return below, above, math.exp((low + high) / 2)

    def _between(self, near: float | None) -> tuple[float, float]:
        return (near / NEAR, near * NEAR) if near else (PRICES[0] * self.scale, PRICES[1] * self.scale)

    def at_budget(self, budget: float, start: Tensor, near: float | None = None) -> tuple[Choice, Choice, float]:
        """(the choice of most use within the budget, the one next to it above, the price)."""
        below, above, price = self.around(budget, start, near)
        best, dearer = below.bits.clone(), above
        for group in self._by_use(below, above):
            trial = torch.where((self.problem.group == group) & self.problem.searched, above.bits, best)
            cost = float(self.problem.relative_cost(trial))
            if cost <= budget:
                best = trial
            elif cost < dearer.cost:
                dearer = self.choice(trial)
        return self.choice(best), dearer, price

    def _by_use(self, below: Choice, above: Choice) -> list[int]:
        """The groups in which two choices differ, those first that save the most damage for their cost."""
        p = self.problem
        saved = self.damage(below.bits) - self.damage(above.bits)
        spent = p.cost_gradient((below.bits + above.bits) / 2) * (above.bits - below.bits)
        differ = p.pool((above.bits != below.bits).double()) > 0
        use = p.pool(saved) / p.pool(spent).clamp_min(1e-300)
        return [g for g in torch.argsort(use, descending=True).tolist() if differ[g]]

    def front(self, points: int = 25) -> list[Choice]:
        """Choices of least damage from the dearest to the cheapest, each cost once."""
        low, high = float(self.problem.relative_cost(self.problem.low)), float(self.problem.relative_cost(self.problem.high))
        out: dict[float, Choice] = {}
        start = self.problem.high
        for k in range(points):
            choice, _, _ = self.at_budget(high + (low - high) * k / max(1, points - 1) + 1e-12, start)
            out[round(choice.cost, 9)] = choice
            start = choice.bits
        return sorted(out.values(), key=lambda c: -c.cost)


def _columns_that_move_together(problem: Problem) -> list[tuple[list[int], Tensor]]:
    """(kinds, mask of layers): kinds that share a group move together in its layers, each by itself in the others."""
    kinds = problem.low.shape[1]
    groups = torch.where(problem.searched, problem.group, -1)
    shared = torch.zeros(problem.groups + 1, dtype=torch.bool)  # groups of several kinds; the last one: not searched
    sets = [{k} for k in range(kinds)]
    for a in range(kinds):
        for b in range(a):
            both = (groups[:, a] == groups[:, b]) & (groups[:, a] >= 0)
            shared[groups[both, a]] = True
            if bool(both.any()):
                merged = next(s for s in sets if a in s) | next(s for s in sets if b in s)
                sets = [s for s in sets if not s & merged] + [merged]
    joint, everywhere = shared[groups], torch.ones(len(groups), dtype=torch.bool)
    out: list[tuple[list[int], Tensor]] = []
    for kinds_of_set in map(sorted, sets):
        together = joint[:, kinds_of_set].any(1) if len(kinds_of_set) > 1 else everywhere
        out.append((kinds_of_set, together))
        if not together.all():
            out.extend(([kind], ~together) for kind in kinds_of_set)
    return out
