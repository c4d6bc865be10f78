"""A cell is one training: (network, row, size, seed). What it is trained with is plain data, by which it is known again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

from ldp_search.core.messages import did_you_mean

from .networks import NETWORKS
from .recipes import SIZES, Recipe, recipe_of
from .rows import ROWS, Row, space_of


@dataclass(frozen=True)
class Cell:
    """One training. limit, epochs, steps: of the data and the recipe, where they are cut for a trial."""

    network: str
    row: str
    size: str
    seed: int
    limit: int | None = None
    epochs: int | None = None
    steps: int | None = None

    @property
    def name(self) -> str:
        return f"{self.network}-{self.row}-{self.size}-seed{self.seed}"

    @property
    def recipe(self) -> Recipe:
        return recipe_of(self.network, self.size, epochs=self.epochs, steps=self.steps)

    @property
    def rule(self) -> Row:
        return ROWS[self.row]

    @property
    def replayed(self) -> Cell | None:
        """The cell whose final allocation this one takes."""
        source = self.rule.replays
        return None if source is None else Cell(**asdict(self) | {"row": source})

    def space(self, replayed: str | None = None) -> dict | None:
        """Fields of its search space."""
        return space_of(self.rule, self.recipe.cycles, self.seed, replayed, **NETWORKS[self.network].space)

    @property
    def settings(self) -> dict:
        """All that decides its result, as plain data."""
        return json.loads(json.dumps(asdict(self) | {"recipe": asdict(self.recipe), "space": self.space()}))

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]


def choose(patterns: list[str], size: str, seeds: list[int], **cut) -> list[Cell]:
    """The cells whose NETWORK/ROW matches, in the order in which they should run: pattern, priority, seed, row.

    Raises:
        ValueError: an unknown size, or a pattern that matches nothing.
    """
    if size not in SIZES:
        raise ValueError(f"Unknown size {size!r}.{did_you_mean(size, SIZES)}")
    known = [(network, row) for network in NETWORKS for row in ROWS.values()]
    out: dict[str, Cell] = {}
    for pattern in patterns:
        found = [(n, r) for n, r in known if fnmatchcase(f"{n}/{r.name}", pattern)]
        if not found:
            raise ValueError(f"No cell is called {pattern!r}.{did_you_mean(pattern, [f'{n}/{r.name}' for n, r in known])}")
        order = sorted(((r.priority, seed, i) for i, (_, r) in enumerate(found) for seed in seeds))
        for _, seed, index in order:
            network, row = found[index]
            cell = Cell(network, row.name, size, seed, **cut)
            out.setdefault(cell.name, cell)
    return list(out.values())
