"""How every figure looks: size, colours that colour-blind readers can tell apart, names that fit, PNG bytes.

Figures are made through matplotlib's object interface, never pyplot: nothing is kept in global state, so a process may
draw hundreds of them, and the settings of a user's own matplotlib neither show here nor are changed.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections import Counter
from dataclasses import dataclass

import matplotlib.style
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

DPI = 110
WIDTH = 11.0  # inches: 1210 pixels, the width of the page
TALLEST = 14.0
FULL_PRECISION = 32
INK, FAINT, GRID = "#1a1a1a", "#6b6b6b", "#dcdcdc"
NOT_YET = "#f2f2f2"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, less the yellow
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")

_SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": GRID,
    "legend.frameon": True,  # a white ground, no edge: a legend over a curve stays readable
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "hatch.color": GRID,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # a layer or run may have $ in its name
}


def styled():
    """Within this context everything is made and drawn in the common style, whatever the user's own is."""
    return matplotlib.style.context(["default", _SETTINGS])


class StyledFigure(Figure):
    """A figure that keeps the common style when it is drawn later, and that a notebook shows without pyplot."""

    def __init__(self, width: float, height: float):
        super().__init__(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(self)

    def draw(self, renderer):
        with styled():
            super().draw(renderer)

    def png(self) -> bytes:
        buffer = io.BytesIO()
        self.canvas.print_png(buffer, metadata={"Software": None})  # savefig would draw everything twice
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        """For a notebook, which keeps what it shows: 256 colours take a third of the room, and look the same."""
        from PIL import Image  # comes with matplotlib

        small, whole = io.BytesIO(), Image.open(io.BytesIO(self.png())).convert("RGB")
        few = whole.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # rare colours stay
        few.save(small, "png", optimize=True)
        return small.getvalue()


@contextlib.contextmanager
def drawing(width: float = WIDTH, height: float = 4.0):
    """A figure to draw on, and `png` to fill: `with drawing() as (figure, png): ...` leaves the bytes in `png`."""
    png = bytearray()
    with styled():
        figure = StyledFigure(width, height)
        try:
            yield figure, png
            png += figure.png()
        finally:
            figure.clear()  # axes and figure refer to each other: without this, memory waits for the collector


@dataclass
class BitScale:
    """A colour for every integer of bits, light for few and dark for many; full precision stands apart in grey."""

    levels: list[int]

    @classmethod
    def covering(cls, values, allowed: tuple[int, int] | None = None) -> BitScale:
        """The scale for these bits and for all that the space allows, so that runs of one space look alike."""
        values = np.asarray(values, dtype=np.float64)
        found = {int(round(v)) for v in np.unique(values[~np.isnan(values)])} | set(allowed or ())
        low = [bits for bits in found if bits < FULL_PRECISION] or [8]
        return cls(list(range(min(low), max(low) + 1)) + sorted(bits for bits in found if bits >= FULL_PRECISION))

    @property
    def colours(self) -> list:
        searched = [bits for bits in self.levels if bits < FULL_PRECISION]
        places = np.linspace(0.03, 1.0, len(searched)) if len(searched) > 1 else [0.6]
        return [colormaps["viridis_r"](p) for p in places] + ["#b5b5b5"] * (len(self.levels) - len(searched))

    @property
    def cmap(self) -> ListedColormap:
        return ListedColormap(self.colours)

    @property
    def norm(self) -> BoundaryNorm:
        return BoundaryNorm(np.arange(len(self.levels) + 1) - 0.5, max(1, len(self.levels)))

    def index(self, bits: np.ndarray) -> np.ndarray:
        """Positions of bits on the scale, masked where there are none."""
        rounded = np.round(np.nan_to_num(bits, nan=self.levels[0]))
        place = np.clip(np.searchsorted(self.levels, rounded), 0, len(self.levels) - 1)
        return np.ma.masked_array(place, np.isnan(bits))

    def colour(self, bits: float):
        """The colour of one value, `NOT_YET` where it is unknown."""
        return NOT_YET if np.isnan(bits) else self.colours[int(self.index(np.array([bits]))[0])]

    def add_bar(self, figure: Figure, axes, on_top: bool = False) -> None:
        """The key of the colours, one field an integer."""
        if on_top:
            place = {"location": "top", "fraction": 0.02, "aspect": 36, "shrink": 0.35}
            place["pad"] = 0.15 / figure.get_size_inches()[1]
        else:
            place = {"location": "right", "fraction": 0.03, "aspect": 18, "pad": 0.01, "anchor": (0.0, 1.0)}
        bar = figure.colorbar(ScalarMappable(self.norm, self.cmap), ax=axes, ticks=range(len(self.levels)), **place)
        bar.set_ticklabels([str(bits) for bits in self.levels])
        bar.ax.tick_params(length=0)
        if on_top:
            bar.set_label("bits", labelpad=4)
        else:
            bar.ax.set_title("bits", fontsize=9, fontweight="normal", loc="center")
        bar.outline.set_visible(False)


def elide(name: str, longest: int = 34, common: Counter | None = None) -> str:
    """Shorten a layer name in its middle, keeping its ends and, as long as it can, its numbers.

    Of the parts between the dots those go first that most names have (counted in `common`), then the longest.
    """
    common = Counter() if common is None else common
    parts = name.split(".")
    while len(short := ".".join(parts).replace("….", "…").replace(".…", "…")) > longest:
        inner = [i for i in range(1, len(parts) - 1) if parts[i] != "…" and not re.search(r"\d", parts[i])]
        if not inner:
            break
        parts[max(inner, key=lambda i: (common[parts[i]], len(parts[i])))] = "…"
        parts = [part for i, part in enumerate(parts) if part != "…" or parts[i - 1] != "…"]
    if len(short) <= longest:
        return short
    keep = longest - 1
    return short[: (keep + 1) // 2] + "…" + short[len(short) - keep // 2 :]


def row_edges(count: int, most: int) -> np.ndarray:
    """Edges of at most `most` rows of consecutive layers, as many in each; in the last, what is left."""
    return np.append(np.arange(0, count, max(1, math.ceil(count / most))), count)


def rows_of(edges: np.ndarray) -> str:
    """How many layers a row holds, in words: `4 in a row, the last of 2`."""
    sizes = np.diff(edges)
    return f"{sizes[0]} in a row" + (f", the last of {sizes[-1]}" if sizes[-1] != sizes[0] else "")


def label_rows(axis, names: list[str], height: float, longest: int = 34) -> None:
    """Names beside as many rows of a panel of `height` inches as can be read, evenly thinned out."""
    size = float(np.clip(height / max(1, len(names)) * 72 * 0.8, 6.0, 9.0))
    every = int(np.ceil(len(names) * size * 1.2 / 72 / height))
    shown = range(0, len(names), max(1, every))
    common = Counter(part for name in names for part in set(name.split(".")))
    axis.set_yticks(list(shown), [elide(names[i], longest, common) for i in shown], fontsize=size)
    axis.tick_params(axis="y", length=0 if every <= 1 else 3)


def say_on_top(figure: Figure, text: str) -> None:
    """A line of small print over the panels of a figure."""
    figure.suptitle(text, x=0.005, ha="left", fontsize=9, color=FAINT)
