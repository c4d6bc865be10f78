"""How much of the noise in a site's dL/dx reaches what is trained before it: read off the graph of a step that senses.

Rounding gives a gradient a ratio of noise to itself, |e|^2 / |g|^2. Backward is linear, so the ratio goes on as it is through
whatever follows, until gradients of several ways meet, as where a branch leaves a residual stream: there each counts by its
part of the sum's square. So a branch that adds little to the gradient of the stream gives it little of its noise.

Gradients' squares are taken where ways meet alone, by hooks on autograd's nodes, which know the ways from the forward.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .distributed import local_part

Arrival = tuple[int, int]
"""A node of the graph and which of its outputs a gradient is of."""


class Reached(NamedTuple):
    """(sites, columns) each, float32 on the CPU; columns: sites' weights, then others.

    share: of a site's ratio of noise that is in the column's gradient, 1 where all of that gradient has come through the site.
    known: whether the graph tells of the pair.
    """

    share: Tensor
    known: Tensor


class _Seen:
    """What backward has shown; hooks hold this and no node, so that a graph which is never run backward is freed.

    meeting: how many ways come to an arrival. squares: {(node, its input): |gradient|^2 that leaves there}. totals: {arrival:
    |gradient|^2 of all ways together}. run: nodes that backward has come to.
    """

    def __init__(self):
        self.meeting: Counter[Arrival] = Counter()
        self.outputs: Counter[int] = Counter()  # of a node, that ways come to
        self.squares: dict[Arrival, Tensor] = {}
        self.totals: dict[Arrival, Tensor] = {}
        self.run: set[int] = set()

    def hook(self, node: int, targets: list[Arrival | None]):
        def show(gradients_in, gradients_out) -> None:
            self.run.add(node)
            for place, (g, target) in enumerate(zip(gradients_in, targets, strict=False)):
                if g is not None and target is not None and self.meeting[target] > 1:
                    self.squares[node, place] = _square(g)
            for output, g in enumerate(gradients_out):
                if g is not None and (self.meeting[node, output] > 1 or self.outputs[node] > 1):
                    self.totals[node, output] = _square(g)

        return show


class GradientPaths:
    """Of one step's forwards. `watch` each product of a site; after backward `reached` tells, and forgets."""

    def __init__(self):
        self._forget()

    def __getstate__(self) -> dict:
        return {}  # nodes of a graph stay with the process that made them

    def __setstate__(self, state: dict) -> None:
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[Any, int] = {}  # of autograd's nodes
        self._ways: list[list[Arrival | None]] = []  # from each node, one for each of its inputs
        self._leaves: dict[int, Tensor] = {}
        self._inside: dict[int, int] = {}  # node -> the site whose product it belongs to
        self._sources: dict[Arrival, int] = {}  # (node, its input) through which a site's dL/dx leaves -> the site
        self._inputs: list[Tensor] = []  # of products, that are leaves
        self._calls: list[tuple[int, Arrival]] = []  # of each call: the site, and where dL/dy arrives
        self._seen = _Seen()

    def watch(self, site: int, x: Tensor, y: Tensor) -> None:
        """A product of a site has made y of x."""
        if y.grad_fn is None:
            return
        if x.grad_fn is not None:
            self._visit(x.grad_fn)
        elif x.requires_grad:
            self._inputs.append(x)
        before = len(self._ways)
        root = self._visit(y.grad_fn)
        input_of = None if x.grad_fn is None else (self._numbers[x.grad_fn], x.output_nr)
        for node in range(before, len(self._ways)):
            self._inside[node] = site
            for place, target in enumerate(self._ways[node]):
                if target is not None and target == input_of:
                    self._sources[node, place] = site
        self._calls.append((site, (root, y.output_nr)))

    def _visit(self, root) -> int:
        """Number the nodes below, and hook those that are new."""
        stack, new = [root], []
        while stack:
            node = stack.pop()
            if node in self._numbers:
                continue
            self._numbers[node] = len(self._numbers)
            new.append(node)
            stack += [child for child, _ in node.next_functions if child is not None]
        for node in new:
            ways = [None if child is None else (self._numbers[child], output) for child, output in node.next_functions]
            number = len(self._ways)
            self._ways.append(ways)
            for way in ways:
                if way is not None:
                    self._seen.outputs[way[0]] += way not in self._seen.meeting
                    self._seen.meeting[way] += 1
            if hasattr(node, "variable"):
                self._leaves[number] = node.variable
            else:
                node.register_hook(self._seen.hook(number, ways))
        return self._numbers[root]

    def reached(self, sites: int, others: list[Tensor | None]) -> Reached:
        """Of this step's backward passes. others: what else is trained, as it is held now."""
        flow = _Flow(self, sites)
        share, known = torch.zeros(2, sites, sites + len(others), dtype=torch.float32, device="cpu")
        calls: Counter[int] = Counter()
        for site, arrival in self._calls:
            if arrival[0] in self._seen.run:
                calls[site] += 1
                share[:, site] += flow.at(arrival)
        met = torch.tensor([calls[site] for site in range(sites)], dtype=torch.float32, device="cpu")
        share[:, :sites] /= met.clamp_min(1.0)
        known[:, :sites] = met > 0
        leaves = {id(leaf): node for node, leaf in self._leaves.items()}
        for column, other in enumerate(others, sites):
            if id(other) in leaves:
                share[:, column], known[:, column] = flow.into(leaves[id(other)]), 1.0
        known *= ((met > 0) & ~flow.lost)[:, None]
        self._forget()
        return Reached(share, known)


class _Flow:
    """The ratios of noise at every node, from each site's dL/dx on: vectors of (sites,)."""

    def __init__(self, paths: GradientPaths, sites: int):
        self.paths, seen = paths, paths._seen
        self.squares = dict(zip(seen.squares, _on_host([*seen.squares.values()]), strict=True))
        self.totals = dict(zip(seen.totals, _on_host([*seen.totals.values()]), strict=True))
        self.none = torch.zeros(sites, dtype=torch.float32, device="cpu")
        self.own = torch.eye(sites, dtype=torch.float32, device="cpu")
        self.arrived: dict[int, dict[int, Tensor]] = {}  # at a node, by its output
        self.by_way: dict[int, list[tuple[Arrival, Tensor]]] = {}  # to a leaf: (node, its input) and the ratio there
        self.lost = torch.zeros(sites, dtype=torch.bool, device="cpu")
        for node in self._in_order():
            self._pass_on(node)

    def at(self, arrival: Arrival) -> Tensor:
        return self.arrived.get(arrival[0], {}).get(arrival[1], self.none)

    def into(self, leaf: int) -> Tensor:
        """At a parameter: by the ways that are no product of a site with it, where there are such (rows of a tied table)."""
        ways = self.by_way.get(leaf, [])
        outside = [way for way in ways if way[0][0] not in self.paths._inside] or ways
        return _mean([ratio for _, ratio in outside], [self.squares.get(way, 1.0) for way, _ in outside], self.none)

    def _in_order(self) -> list[int]:
        """Nodes that were run, each behind all whose gradients come to it."""
        run, ways = self.paths._seen.run, self.paths._ways
        waiting = Counter(way[0] for node in run for way in ways[node] if way is not None)
        order = [node for node in run if not waiting[node]]
        for node in order:
            for way in ways[node]:
                if way is not None:
                    waiting[way[0]] -= 1
                    if not waiting[way[0]] and way[0] in run:
                        order.append(way[0])
        return order

    def _pass_on(self, node: int) -> None:
        here, paths = self._ratio(node), self.paths
        for place, target in enumerate(paths._ways[node]):
            if target is None:
                continue
            site = paths._sources.get((node, place))
            ratio = here if site is None else here + self.own[site]
            if target[0] in paths._leaves:
                self.by_way.setdefault(target[0], []).append(((node, place), ratio))
                if self._is_cut(node, paths._leaves[target[0]]):
                    self.lost |= ratio > 0
                continue
            if paths._seen.meeting[target] > 1:
                total = self.totals.get(target, 0.0)
                ratio = ratio * (self.squares.get((node, place), 0.0) / total if total else 0.0)
            self.arrived.setdefault(target[0], {})[target[1]] = self.at(target) + ratio

    def _is_cut(self, node: int, leaf: Tensor) -> bool:
        """Whether a leaf is no parameter, but a tensor that was cut from what lies before it: the input of a checkpoint."""
        own = node in self.paths._inside and not any(leaf is x for x in self.paths._inputs)  # bits, and what a product records
        return not own and not isinstance(leaf, nn.Parameter)

    def _ratio(self, node: int) -> Tensor:
        """Of a node with several outputs the mean, by their squares."""
        ratios = self.arrived.get(node, {})
        if len(ratios) <= 1:
            return next(iter(ratios.values()), self.none)
        return _mean([*ratios.values()], [self.totals.get((node, output), 0.0) for output in ratios], self.none)


def _mean(ratios: list[Tensor], weights: list[float], none: Tensor) -> Tensor:
    total = sum(weights)
    return sum((ratio * (weight / total) for ratio, weight in zip(ratios, weights, strict=True)), none) if total else none


def _square(g: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.linalg.vector_norm(local_part(g.detach()), dtype=torch.float32).square()


def _on_host(values: list[Tensor]) -> list[float]:
    """Numbers, in one transfer from each device."""
    out = [0.0] * len(values)
    for device in {value.device for value in values}:
        there = [i for i, value in enumerate(values) if value.device == device]
        for i, value in zip(there, torch.stack([values[i] for i in there]).tolist(), strict=True):
            out[i] = value
    return out
