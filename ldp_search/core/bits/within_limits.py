"""The bits of least damage under several budgets at once: that of the training, and those of the final bits.

Minimise  sum of D_i(b_i) + price * C(b) + sum over limits of price_k * C_k(b).  C and every C_k are sums over layers of a
function of the layer's bits, and the descent of `least_damage` tries all bits of one kind with the others held, so it stays
exact whatever the functions; only the prices have to be found. Each follows how far its own budget is missed, all together
(dual ascent, in logarithms); what integers then leave is made up one change at a time, each the one that does the least damage
for what it gives.

Of operations and size each kind's bits have a part of their own. A latency falls only when a layer's weights and inputs both
fit in an integer kernel, so with such a limit the two also move at once (`bits.pairs`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .least_damage import PRICES, Choice, LeastDamage
from .limits import WITHIN
from .pairs import Pairs
from .problem import Problem

RATE = 2.0  # of the logarithm of a price, per logarithm of what its budget is missed by: a cost falls about as price^-0.3
NEAR_ENOUGH = 0.005  # share of a budget
FIRST, NEXT = 40, 8  # dual steps, from no prices and from those of the last time
LEAST_SAVED = 1e-12  # share of a limit: below it are the last digits of sums
LAST = 6  # of these steps' choices that are completed to the budgets, of which the best is taken


class Changes(NamedTuple):
    """What each move to the next number does: of one group, or of a pair of them.

    damage, cost: (moves,), inf where it cannot. shares: (limits, moves).
    """

    damage: Tensor
    cost: Tensor
    shares: Tensor


class LeastDamageWithin(LeastDamage):
    """`LeastDamage` of a problem with limits. prices: one a limit, in damage per whole limit; None before any was found."""

    def __init__(self, problem: Problem, curves: Tensor, levels: Tensor, prices: list[float] | None = None):
        super().__init__(problem, curves, levels)
        self.limits, self.prices = problem.limits, prices
        self.price: float | None = None  # of the training, as found last
        self.pairs = Pairs(problem, any(limit.together for limit in self.limits))
        self.moves = [(together, layers, problem.group) for together, layers in self.columns]  # with the index of the move
        if self.pairs.count:
            self.moves.append(([0, 1], self.pairs.layers, problem.groups + self.pairs.index))
        self.count = problem.groups + self.pairs.count

    def charges(self, price: float, bits: Tensor) -> Tensor:
        costs = super().charges(price, bits)
        for limit, own in zip(self.limits, self.prices or [], strict=False):
            costs = costs + own * limit.layer_costs(bits)
        return costs

    def objective(self, price: float, choice: Choice) -> float:
        own = zip(self.limits, self.prices or [], strict=False)
        return super().objective(price, choice) + sum(each * limit.share(choice.bits) for limit, each in own)

    def shares(self, bits: Tensor) -> list[float]:
        return [limit.share(bits) for limit in self.limits]

    def keeps(self, bits: Tensor) -> bool:
        return max(self.shares(bits)) <= WITHIN

    # -- prices -----------------------------------------------------------------------------------------------------

    def settle(self, budget: float | None, start: Tensor, price: float | None) -> tuple[list[Choice], float]:
        """(the choices on the way, the price of the training); `self.prices` are those of the limits then.

        budget: of the training, whose price is sought from `price` on; None: the price is given and stays.
        """
        steps = NEXT if self.prices else FIRST
        budget = None if budget is None else max(budget, 1e-9)
        if budget is not None and not price:
            price, steps = self._first_price(start) / budget, FIRST
        given, found = float(price or 0.0), []
        first = given * budget if budget is not None else self._first_price(start)
        prices = [given, *(self.prices or [first] * len(self.limits))]
        for step in range(steps):
            price, self.prices = prices[0], prices[1:]
            choice = self.at_price(price, start, thorough=not step)
            found.append(choice)
            start = choice.bits
            missed = [0.0 if budget is None else math.log(max(choice.cost, 1e-12) / budget)]
            missed += [math.log(max(share, 1e-12)) for share in self.shares(choice.bits)]
            free = NEAR_ENOUGH * sum(prices)  # a price that decides nothing: its budget may be left unused
            near = all(abs(m) < NEAR_ENOUGH or (m < 0 and p < free) for m, p in zip(missed, prices, strict=True))
            if near or _goes_to_and_fro(found):
                break
            rate, least, most = RATE / (1 + step / 10), PRICES[0] * self.scale, PRICES[1] * self.scale
            moved = [min(max(p * math.exp(rate * m), least), most) for p, m in zip(prices, missed, strict=True)]
            prices = moved if budget is not None else [given, *moved[1:]]
        self.price = given = float(price or 0.0)
        return found, given

    def _first_price(self, bits: Tensor) -> float:
        """The price of a relative cost of 1 at which the bits in force would be about right."""
        changes = [self._changes(bits.double(), sign) for sign in (1.0, -1.0)]
        ratios = torch.cat([(change.damage / change.cost).abs() for change in changes])
        ratios = ratios[ratios.isfinite() & (ratios > 0)]
        return float(ratios.median()) if len(ratios) else self.scale

    def _best_at_once(self, price: float, bits: Tensor, rest: Tensor | None, factor: float) -> Tensor:
        return self.pairs.best(self, price, bits, rest, factor) if self.pairs.count else bits

    # -- changes of one group, or of a pair ---------------------------------------------------------------------------

    def _free(self, beside: Tensor, rest: Tensor | None) -> Tensor:
        """(layers, kinds) mask of the coordinates that may move to `beside`."""
        p = self.problem
        free = p.searched & (beside >= p.low) & (beside <= p.high)
        if rest is not None:
            free &= (beside >= p.beside(rest, -1.0)) & (beside <= p.beside(rest, 1.0))
        return free

    def _changes(self, bits: Tensor, sign: float, rest: Tensor | None = None) -> Changes:
        """rest: bits in force, of which none comes further away than to its next number (None: as far as it likes)."""
        p = self.problem
        beside, before = p.beside(bits, sign), self.damage(bits)
        free = self._free(beside, rest)
        out = torch.zeros(2 + len(self.limits), self.count + 1, dtype=torch.float64)
        stuck = torch.ones(self.count + 1, dtype=torch.bool)
        for together, layers, index in self.moves:
            chosen = free[:, together] & layers[:, None]
            trial = bits.clone()
            trial[:, together] = torch.where(chosen, beside[:, together], bits[:, together])
            group = torch.where(chosen, index[:, together], self.count)
            once = group.min(1).values
            out[0].index_add_(0, group.flatten(), (self.damage(trial) - before)[:, together].flatten())
            out[1].index_add_(0, once, p.layer_costs(trial) - p.layer_costs(bits))
            for row, limit in zip(out[2:], self.limits, strict=True):
                row.index_add_(0, once, limit.layer_costs(trial) - limit.layer_costs(bits))
            stuck[group.flatten()] = False
        out[:2] = out[:2].masked_fill(stuck, math.inf)
        return Changes(out[0, :-1], out[1, :-1], out[2:, :-1])

    def _moved(self, bits: Tensor, move: int, sign: float, rest: Tensor | None = None) -> Tensor:
        p, beside = self.problem, self.problem.beside(bits, sign)
        of_move = self.pairs.mask(move - p.groups) if move >= p.groups else p.group == move
        return torch.where(of_move & self._free(beside, rest), beside, bits)

    def _lowered(self, bits: Tensor, limit: int | None, rest: Tensor | None = None) -> Tensor | None:
        """One change, of the least damage for what it takes from a limit, or from the cost (None); None: there is none.

        Down, but where a limit knows no order: a small layer may be faster in floating point than in integers.
        """
        either = limit is not None and self.limits[limit].together
        found: list[tuple[float, int, float]] = []
        for sign in (-1.0, 1.0) if either else (-1.0,):
            changes = self._changes(bits, sign, rest)
            saved = -(changes.cost if limit is None else changes.shares[limit])
            no = (saved <= LEAST_SAVED) | changes.damage.isinf()
            if sign > 0:  # what it takes from one limit it may not add to another beyond that
                for other, share in zip(changes.shares, self.shares(bits), strict=True):
                    no |= (other > 0) & (share + other > WITHIN)
            use = (changes.damage / saved).masked_fill(no, math.inf)
            found.append((float(use.min()), int(use.argmin()), sign))
        least, move, sign = min(found)
        return self._moved(bits, move, sign, rest) if least < math.inf else None

    def _raised(
        self, bits: Tensor, most: float, room: float, price: float, rest: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """(the change up of most use whose cost is at most `most`, the cheapest beyond it); None where there is none.

        Both keep every limit to a share of `room`, or to what it is. price: what the change must save for its cost.
        """
        changes, now = self._changes(bits, 1.0, rest), float(self.problem.relative_cost(bits))
        fits = changes.damage.isfinite()
        for limit, share in zip(changes.shares, self.shares(bits), strict=True):
            fits &= (limit <= 0) | (share + limit <= room)
        pays = fits & (-changes.damage > price * changes.cost)
        affordable = now + changes.cost <= most
        use = (changes.damage / changes.cost.clamp_min(1e-300)).masked_fill(~(pays & affordable), math.inf)
        beyond = (now + changes.cost).masked_fill(~fits | affordable, math.inf)
        best, next_one = int(use.argmin()), int(beyond.argmin())
        return (
            self._moved(bits, best, 1.0, rest) if use[best] < math.inf else None,
            self._moved(bits, next_one, 1.0, rest) if beyond[next_one] < math.inf else None,
        )

    def _kept(self, bits: Tensor, room: float, rest: Tensor | None = None) -> Tensor:
        """`bits` with the fewest changes that bring every limit to a share of `room`."""
        for _ in range(self.count * len(self.levels)):
            if max(shares := self.shares(bits)) <= room:
                break
            lower = self._lowered(bits, shares.index(max(shares)), rest)
            if lower is None:
                break
            bits = lower
        return bits

    # -- what a policy asks for -------------------------------------------------------------------------------------

    def towards(self, bits: Tensor, budget: float | None, tolerance: float, rest: Tensor | None = None) -> Choice:
        """`bits` after the fewest changes that keep every limit, and bring the cost near to its budget."""
        now = self.choice(self._kept(bits.double(), WITHIN, rest))
        while budget is not None and abs(now.cost - budget) > tolerance * budget:
            if now.cost > budget:
                trial = self._lowered(now.bits, None, rest)
            else:
                trial = next((t for t in self._raised(now.bits, budget, WITHIN, 0.0, rest) if t is not None), None)
            found = None if trial is None else self.choice(trial)
            if found is None or abs(found.cost - budget) >= abs(now.cost - budget):
                break
            now = found
        return now

    def at_budget(self, budget: float | None, start: Tensor, near: float | None = None) -> tuple[Choice, Choice, float]:
        """As of `LeastDamage`, both keeping every limit. budget: None: the choice of most use at the price `near`, twice."""
        choices, price = self.settle(budget, start.double(), near or self.price)
        unique = {tuple(choice.bits.flatten().tolist()): choice.bits for choice in choices[-LAST:]}
        ends = [self._exact(bits, budget, price) for bits in unique.values()]
        pay = 0.0 if budget is not None else price
        below, above = min(ends, key=lambda pair: pair[0].damage + pay * pair[0].cost)
        return below, above, price

    def _exact(self, bits: Tensor, budget: float | None, price: float) -> tuple[Choice, Choice]:
        bits = self._kept(bits, WITHIN)
        above: Tensor | None = None
        most = math.inf if budget is None else budget
        while float(self.problem.relative_cost(bits)) > most:
            lower = self._lowered(bits, None)
            if lower is None:
                break
            bits, above = lower, bits
        while True:
            higher, beyond = self._raised(bits, most, WITHIN, price if budget is None else 0.0)
            if higher is None:
                break
            bits = higher
        dearer = beyond if beyond is not None else above
        return self.choice(bits), self.choice(bits if dearer is None or budget is None else dearer)


def search_of(problem: Problem, curves: Tensor, levels: Tensor, prices: list[float] | None = None) -> LeastDamage:
    """The search for a problem, with or without limits; `prices` of its limits, where known."""
    if not problem.limits:
        return LeastDamage(problem, curves, levels)
    return LeastDamageWithin(problem, curves, levels, prices)


def _goes_to_and_fro(found: list[Choice]) -> bool:
    """Whether the last choice has left one that it now comes back to: integers come no nearer."""
    *earlier, last = found
    return any(torch.equal(last.bits, one.bits) for one in earlier[:-1]) and not torch.equal(last.bits, earlier[-1].bits)
