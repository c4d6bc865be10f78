"""The figures of a study's parameters: how much each matters, and which values lead where."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from matplotlib import colormaps

from .style import FAINT, SERIES, WIDTH, drawing, elide
from .trials import StudyView

FEWEST = 4  # complete trials that an importance is computed from
ENOUGH = 20  # ... and that make it worth something


def importances(study: Any, view: StudyView) -> dict[str, dict[str, float]]:
    """{target: {parameter: share}} by Optuna's evaluator, of the metric and, where it varies, of the cost."""
    out: dict[str, dict[str, float]] = {}
    for name in (view.metric, view.cost):
        # The evaluator asks what makes a value low. A trial that has ended since the view was taken is left out, as NaN.
        values = {r.number: (-view.sign * r.metric if name == view.metric else r.cost) for r in view.complete}
        known = [v for v in values.values() if v is not None]
        if len(known) == len(values) >= FEWEST and np.ptp(known) > 1e-3 * max(map(abs, known)):
            found = _evaluate(study, values)
            if found:
                out[name] = found
    return out


def _evaluate(study: Any, values: dict[int, float]) -> dict[str, float]:
    import optuna

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(optuna.importance.get_param_importances(study, target=lambda t: values.get(t.number, math.nan)))
    except (ValueError, RuntimeError):  # no parameter that all trials have, or none that varies
        return {}


def importance_figure(found: dict[str, dict[str, float]]) -> bytes:
    """Bars, a colour for the metric and one for the cost."""
    names = list(dict.fromkeys(name for shares in found.values() for name in shares))[::-1]
    with drawing(WIDTH * 0.75, 1.1 + 0.34 * max(1, len(names))) as (figure, png):
        axis = figure.subplots()
        height = 0.8 / max(1, len(found))
        for i, (target, shares) in enumerate(found.items()):
            places = [y + 0.4 - height * (i + 0.5) for y in range(len(names))]
            widths = [100 * shares.get(name, 0.0) for name in names]
            axis.barh(places, widths, height=height * 0.92, color=SERIES[i], label=f"of {target}")
            for place, width in zip(places, widths, strict=True):
                axis.text(width + 0.6, place, f"{width:.0f} %", va="center", fontsize=8, color=FAINT)
        axis.set_yticks(range(len(names)), [elide(name, 40) for name in names])
        axis.tick_params(axis="y", length=0)
        axis.set_xlim(0, 108)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        axis.set_xlabel("share of the importance")
        axis.legend(loc="lower right")
    return bytes(png)


def coordinates_figure(view: StudyView) -> bytes:
    """A line a trial through the values of its parameters, coloured by the metric; the best ones on top."""
    rows = sorted(view.complete, key=lambda r: view.sign * r.metric)
    names = [n for n in dict.fromkeys(name for r in rows for name in r.params) if _varies(rows, n)]
    columns = [*names, view.cost, view.metric]
    with drawing(WIDTH, 4.6) as (figure, png):
        axis = figure.subplots()
        scales = [_scale([_value(r, c, view) for r in rows]) for c in columns]
        metrics = np.array([r.metric for r in rows])
        span = np.ptp(metrics) or 1.0
        for row, value in zip(rows, metrics, strict=True):
            places = [scale(_value(row, c, view)) for scale, c in zip(scales, columns, strict=True)]
            share = (value - metrics.min()) / span
            share = share if view.sign > 0 else 1 - share
            style = {"color": colormaps["viridis_r"](0.05 + 0.95 * share), "linewidth": 0.8 + 1.4 * share, "alpha": 0.75}
            axis.plot(range(len(columns)), places, marker=".", markersize=4, **style)
        for x, (column, scale) in enumerate(zip(columns, scales, strict=True)):
            axis.axvline(x, color=FAINT, linewidth=0.8)
            for place, text in scale.marks:
                axis.text(x + 0.03, place, text, fontsize=7.5, va="center", zorder=5,
                          bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.6})  # fmt: skip
            axis.text(x, 1.07, elide(column, 20), rotation=22, ha="left", va="bottom", fontsize=8.5)
        axis.set_xlim(-0.2, len(columns) - 0.4)
        axis.set_ylim(-0.05, 1.05)
        axis.axis("off")
    return bytes(png)


def _varies(rows: list, name: str) -> bool:
    return len({str(r.params.get(name)) for r in rows}) > 1


def _value(row, column: str, view: StudyView) -> Any:
    if column == view.metric:
        return row.metric
    return row.cost if column == view.cost else row.params.get(column)


class _scale:
    """From a value to its height in a column: numbers by size (or logarithm, over two decades), words in order; absent: NaN."""

    def __init__(self, values: list[Any]):
        present = [v for v in values if v is not None]
        self.numeric = bool(present) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in present)
        if self.numeric:
            low, high = min(present), max(present)
            self.log = low > 0 and high / low > 20
            self.low, self.span = self._f(low), (self._f(high) - self._f(low)) or 1.0
            self.marks = [(self(low), f"{low:.3g}"), (self(high), f"{high:.3g}")] if low < high else [(self(low), f"{low:.3g}")]
        else:
            self.words = sorted({str(v) for v in present})
            self.marks = [(self(word), word[:14]) for word in self.words]

    def _f(self, value: float) -> float:
        return math.log(value) if self.log else float(value)

    def __call__(self, value: Any) -> float:
        if value is None:
            return math.nan
        if self.numeric:
            return (self._f(value) - self.low) / self.span
        return self.words.index(str(value)) / max(1, len(self.words) - 1)
