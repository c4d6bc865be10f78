"""The schedule of a run in words, computed from its records, and numbers as a reader expects them."""

from __future__ import annotations

import numpy as np

from .layers import Layer
from .load import Run
from .schedule import Schedule


def describe(run: Run, layers: list[Layer]) -> str:
    """Some sentences on what the schedule does, over time and over layers."""
    schedule = run.schedule
    if schedule is None:
        return "The bits over the training are not recorded yet."
    searched = {layer.name for layer in layers if layer.searched is not False}
    columns = np.array([i for i, name in enumerate(schedule.layers) if name in searched], dtype=int)
    told = "all layers" if len(columns) == len(schedule.layers) else f"the {len(columns):,} searched layers"
    if not len(columns):
        columns, told = np.arange(len(schedule.layers)), "all layers"
    bits = schedule.compute_bits(columns)
    bits, columns = bits[:, ~np.isnan(bits).any(0)], columns[~np.isnan(bits).any(0)]
    if not bits.size:
        return "No layer has weight or input bits."
    if bits.min() == bits.max() and not schedule.differs("weight", "input"):
        sentences = [f"{told.capitalize()} hold {digits(bits.min())} bits for weights and inputs throughout."]
    else:
        sentences = [_over_time(bits, schedule, told, run.finished), *_over_layers(bits, columns, schedule)]
        sentences += [_weights_against_inputs(schedule, columns), _changes(schedule, columns, run.finished)]
    return " ".join(s for s in [*sentences, _cost(run)] if s)


def _over_time(bits: np.ndarray, schedule: Schedule, told: str, finished: bool) -> str:
    mean = bits.mean(1)
    subject = f"The mean bits of {told} (weights and inputs)"
    end = "at the end" if finished else "so far"
    if np.ptp(mean) < 0.05:
        return f"{subject} stay at {digits(mean.mean())}."
    # One layer that flips between two neighbouring bits is no turn of the whole.
    turns = turning_points(mean, max(0.25, 0.3 * float(np.ptp(mean)), 1.05 / bits.shape[1]))
    moves = list(zip(turns[:-1], turns[1:], strict=True))
    if len(moves) > 4:
        rises = sum(mean[b] > mean[a] for a, b in moves)
        low, high = digits(mean.min()), digits(mean.max())
        return (
            f"{subject} rise {rises} times and fall {len(moves) - rises} times between {low} and {high}; "
            f"they are {digits(mean[-1])} {end}."
        )
    told_moves = [f"begin at {digits(mean[0])}"]
    for a, b in moves:
        when = end if b == len(mean) - 1 else f"at {percent(schedule.progress[b], 0)} of the training"
        told_moves.append(f"{'rise' if mean[b] > mean[a] else 'fall'} to {digits(mean[b])} {when}")
    if turns[-1] != len(mean) - 1:
        told_moves.append(f"are {digits(mean[-1])} {end}")
    return f"{subject} {listing(told_moves)}."


def turning_points(values: np.ndarray, threshold: float) -> list[int]:
    """Indices of the first value, of every extreme between moves of more than `threshold`, and of the last extreme."""
    turns, extreme, direction = [0], 0, 0
    for i, value in enumerate(values):
        if direction == 0:
            if abs(value - values[0]) > threshold:
                direction, extreme = (1 if value > values[0] else -1), i
        elif (value - values[extreme]) * direction > 0:
            extreme = i
        elif abs(value - values[extreme]) > threshold:
            turns.append(extreme)
            direction, extreme = -direction, i
    return [*turns, extreme] if direction else turns


def _over_layers(bits: np.ndarray, columns: np.ndarray, schedule: Schedule) -> list[str]:
    if bits.shape[1] == 1:
        return []
    if all(_shared(schedule.bits[kind][:, columns]) for kind in ("weight", "input")):
        return ["At each moment all of them share the same bits."]
    mean = schedule.durations @ bits
    order = np.argsort(-mean, kind="stable")
    named = 1 if len(order) <= 6 else 3
    name = [f"{schedule.layers[columns[i]]} ({digits(mean[i])})" for i in order]
    most, fewest = listing(name[:named]), listing(name[-named:])
    out = [f"On average over the training, the most bits go to {most}, the fewest to {fewest}."]
    if len(order) >= 9:
        first, middle, last = (part.mean() for part in np.array_split(mean, 3))
        out.append(
            f"From input to output, the first third of the layers averages {digits(first)} bits, the middle third "
            f"{digits(middle)} and the last third {digits(last)}."
        )
    return out


def _shared(bits: np.ndarray) -> bool:
    """Whether all columns are the same at each moment (or there is nothing to differ)."""
    return bool(np.isnan(bits).all() or (bits == bits[:, :1]).all())


def _weights_against_inputs(schedule: Schedule, columns: np.ndarray) -> str:
    if not schedule.differs("weight", "input"):
        return ""
    gap = np.nanmean(schedule.durations @ (schedule.bits["weight"] - schedule.bits["input"])[:, columns])
    if abs(gap) < 0.05:
        return "Weights and inputs differ, but hold the same bits on average."
    return f"Weights hold {digits(abs(gap))} bits {'more' if gap > 0 else 'fewer'} than inputs on average."


def _changes(schedule: Schedule, columns: np.ndarray, finished: bool) -> str:
    if len(schedule) < 2:
        return ""
    changed = np.zeros((len(schedule) - 1, len(columns)), dtype=bool)
    for kind in ("weight", "input"):
        values = np.nan_to_num(schedule.bits[kind][:, columns])
        changed |= values[1:] != values[:-1]
    steps = changed.any(1)
    if not steps.any():
        return "No layer ever changes its bits."
    last = schedule.progress[np.flatnonzero(steps)[-1] + 1]
    each = "" if (changed.all(1) == steps).all() else f", a given layer at {percent(changed.mean())}"
    return (
        f"Some layer changes its bits at {percent(steps.mean())} of the {len(schedule):,} recorded steps{each}; "
        f"the last change {'comes' if finished else 'so far came'} at {percent(last, 0)} of the training."
    )


def _cost(run: Run) -> str:
    if run.mean_cost is None:
        return ""
    span = "the run" if run.finished else "the run so far"
    return f"Over {span}, training costs {percent(run.mean_cost)} of {run.static_name}."


def listing(words: list[str]) -> str:
    """a, b and c"""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def digits(value: float | None, places: int = 1) -> str:
    """A number with at most so many decimals; – where it is unknown."""
    if value is None or np.isnan(value):
        return "–"
    return f"{value:,.{places}f}".removesuffix("." + "0" * places) if places else f"{value:,.0f}"


def percent(value: float | None, places: int = 1) -> str:
    """A fraction as a percentage, with a space that no line breaks at; – where it is unknown."""
    return "–" if value is None or np.isnan(value) else f"{100 * value:.{places}f}\N{NO-BREAK SPACE}%"


def places_of(value: float, least: int = 1, most: int = 3) -> int:
    """As many places as a fraction's percentage needs to be shown as it was given: 2 for 0.3165."""
    return max(least, len(f"{100 * value:.{most}f}".rstrip("0").partition(".")[2]))


def score(run: Run) -> str:
    """The run's metric, in its own unit."""
    return percent(run.score, 2) if run.metric.percent else run.metric.show(run.score)


def count(value: float | None) -> str:
    """A large count with its unit: 40.8 M."""
    if value is None or np.isnan(value):
        return "–"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    return f"{minutes} min {int(seconds % 60)} s" if hours < 1 else f"{hours} h {minutes % 60} min"
