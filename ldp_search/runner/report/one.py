"""The report on one run: what came out, the schedule, the layers, the course, what is covered, how to repeat it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any

from ...config.overlay import EXCLUSIVE
from ...config.resolve import resolve
from ...core.bits.space import FINAL_BUDGETS
from . import html
from .bars import layers_figure
from .curves import course_figure
from .heatmap import schedule_figure
from .layers import Layer, layers_of, left_out, total_macs
from .load import Run, named, number
from .style import BitScale
from .words import count, describe, digits, duration, percent, places_of, score

Pictures = dict[str, bytes]
"""File name -> PNG, filled while the sections are written."""


def title_of(run: Run) -> str:
    task = named(run.setting("task"))
    if task.endswith((".yaml", ".yml")):  # a user's own task file: its name, not where it lies
        task = PurePath(task).stem
    parts = [task, named(run.setting("model")), run.policy]
    return " · ".join(part for part in parts if part)


def run_sections(run: Run, scale: BitScale, pictures: Pictures, prefix: str = "") -> Iterator[str]:
    """The parts of the page on this run. `prefix` tells its pictures from those of other runs."""

    def show(file: str, png: bytes, caption: str) -> str:
        pictures[prefix + file] = png
        return html.picture(png, prefix + file, caption)

    layers = layers_of(run)
    state = "" if run.finished else f"This run is not finished: it is at {percent(run.progress, 0)}."
    yield html.note(state or "Some files of this run are missing or unreadable.", run.notes)
    yield html.cards(headline(run))
    yield html.heading("The schedule")
    yield html.paragraph(describe(run, layers))
    if run.schedule is not None:
        yield show("schedule.png", schedule_figure(run, scale), "Bits of every layer (first on top) over the training")
    if layers:
        yield html.heading("The layers at the end" if run.finished else "The layers now")
        caption = "Bits of every layer, and its share of the bit operations that the training took and of the MACs"
        yield show("layers.png", layers_figure(run, layers, scale), caption)
    if run.metrics:
        yield html.heading("The training")
        costs = f"cost accumulated and in force, relative to {run.static_name}"
        caption = f"{run.metric.title} and loss; {costs}" if run.folder is not None else costs.capitalize()
        yield show("training.png", course_figure(run), caption)
    yield from _examples(run, show)
    yield from _coverage(run, layers)
    yield from _repeat(run)


def _examples(run: Run, show: Callable[[str, bytes, str], str]) -> Iterator[str]:
    """Predictions beside the truth, where the task has drawn them."""
    found = sorted(run.folder.glob("examples*.png")) if run.folder is not None else []
    if found:
        yield html.heading("Predictions")
    for path in found:
        about = path.with_name(f"{path.name}.txt")
        yield show(path.name, path.read_bytes(), about.read_text(encoding="utf-8").strip() if about.is_file() else path.stem)


def headline(run: Run) -> list[tuple[str, str, str]]:
    """The cards on top: (label, value, explanation)."""
    target = run.target_cost
    kind = "of the finished model" if run.finished else "at the newest evaluation"
    over = f"of {run.static_name}, mean over the run" + ("" if run.finished else " so far")
    cards = [("Training cost", percent(run.mean_cost), over)]
    if run.folder is not None:  # a controller knows nothing of the model's metric
        cards[:0] = [(run.metric.title, score(run), kind if run.score is not None else "not evaluated yet")]
    if target is not None:
        places = places_of(target)
        reached = (
            "not recorded yet"
            if run.mean_cost is None
            else f"reached {percent(run.mean_cost, places)}: {_deviation(run.mean_cost, target)}"
        )
        cards.append(("Target cost", percent(target, places), reached))
    share = number(run.coverage.get("share"))
    cards += [
        ("Inference cost", percent(run.inference_cost), f"of {run.static_name}, final bits{_budget(run, 'target_inference')}"),
        (
            "Weights",
            "–" if run.weight_mib is None else f"{run.weight_mib:.3g} MiB",
            f"at the final bits{_budget(run, 'target_size')}",
        ),
        *_latency(run),
        ("Coverage", percent(share), "of the MACs are quantized"),
    ]
    if run.folder is not None:
        cards.append(("Seed", "–" if run.seed is None else str(run.seed), run.policy))
        cards.append(("Time", duration(run.seconds), "training" if run.finished else "so far"))
    return cards


def _budget(run: Run, name: str) -> str:
    most = number(run.setting(name))
    return "" if most is None else f"; budget {f'{most:g} MiB' if name == 'target_size' else percent(most)}"


def _latency(run: Run) -> list[tuple[str, str, str]]:
    """The card of a predicted latency, where the run had a table."""
    if run.latency is None:
        return []
    milliseconds = "" if run.latency_ms is None else f", {run.latency_ms:.3g} ms"
    note = f"of the highest bits, final bits as predicted{milliseconds}{_budget(run, 'target_latency')}"
    return [("Latency", percent(run.latency), note)]


def _deviation(reached: float, target: float) -> str:
    """By how much a cost misses its target, relative to the target."""
    off = (reached - target) / target if target else 0.0
    return "on target" if abs(off) < 0.0005 else f"{100 * abs(off):.1f} % {'above' if off > 0 else 'below'}"


def _coverage(run: Run, layers: list[Layer]) -> Iterator[str]:
    if not layers:
        return
    yield html.heading("Coverage")
    total, share = total_macs(run, layers), number(run.coverage.get("share"))
    if not run.allocation or (run.folder is None and share is None):
        yield html.paragraph(f"MACs and coverage are known {run.counts_come}; these are the bits now.")
    elif share is not None:
        yield html.paragraph(f"{percent(share)} of the model's {count(total)} MACs per sample are quantized.")
    columns = SPLIT if any(one.weight_grad == one.weight_grad for one in layers) else COLUMNS
    cells = [[show(one) for show in columns.values()] for one in layers]
    yield html.table(list(columns), cells, range(2, len(columns) - 1))
    rest = left_out(run)
    if rest:
        yield html.heading("Left out of quantization", 3)
        rows = [(name, count(macs), percent(macs / total if total else None, 2), reason) for name, macs, reason in rest]
        yield html.table(("what", "MACs", "share of MACs", "why"), rows, numeric=(1, 2))
    elif run.coverage:
        yield html.paragraph("Nothing is left out.")
    arithmetic = run.result.get("arithmetic")
    if isinstance(arithmetic, str):
        yield html.paragraph(arithmetic[:1].upper() + arithmetic[1:] + ".")


COLUMNS = {
    "layer": lambda one: one.name,
    "kind": lambda one: one.kind or "–",
    "MACs": lambda one: count(one.macs),
    "share of MACs": lambda one: percent(one.mac_share, 2),
    "share of training cost": lambda one: percent(one.cost_share, 2),
    "weight bits": lambda one: digits(one.weight),
    "input bits": lambda one: digits(one.input),
    "gradient bits": lambda one: digits(one.grad),
    "bits are": lambda one: {True: "searched", False: "fixed"}.get(one.searched, "–"),
}
"""The coverage table: heading and content of each column."""

SPLIT = {
    **dict(list(COLUMNS.items())[:-2]),
    "gradient bits, dL/dx": lambda one: digits(one.grad),
    "gradient bits, dL/dw": lambda one: digits(one.weight_grad),
    "bits are": COLUMNS["bits are"],
}
"""The same where a run splits the gradient's bits."""


def _repeat(run: Run) -> Iterator[str]:
    if not run.config or run.folder is None:
        return
    yield html.heading("To repeat this run")
    yield html.code(command(run))
    yield html.details("The whole configuration", [html.code(run.config_text)])
    versions = run.result.get("versions")
    if isinstance(versions, dict):
        yield html.details("Versions", [html.table(("what", "version"), versions.items())])


NOT_REPEATED = ("config", "output", "resume")  # where a run wrote and whether it continued is not what it computed
LEADING = ("task", "model", "space", "recipe", "policy", "target_cost", *FINAL_BUDGETS, "latency", "seed")


def command(run: Run) -> str:
    """The command line that computes this run again: the words that differ from its recipe, if these say it all."""
    keys = [key for key in LEADING if key in run.config] + [key for key in run.config if key not in LEADING]
    values = {key: run.config[key] for key in keys if key not in NOT_REPEATED}
    words = _few_words(values) or [f"{key}={_word(value)}" for key, value in values.items() if value is not None]
    return " ".join(["python -m ldp_search.run", *(shlex.quote(word) for word in words)])


def _few_words(values: dict[str, Any]) -> list[str]:
    """Those words alone that the task's recipe does not already say; none where that cannot be told any more."""
    try:
        words = [f"{key}={_word(values[key])}" for key in ("task", "space")]
        base = resolve(words).values
        if base["recipe"] != values["recipe"]:
            words.append(f"recipe={_word(values['recipe'])}")
            base = resolve(words).values
        changed = {key: value for key, value in values.items() if base[key] != value}
        for pair in EXCLUSIVE:  # the one that is given takes the other one away
            if any(changed.get(key) is not None for key in pair):
                changed = {key: value for key, value in changed.items() if key not in pair or value is not None}
        words += [f"{key}={_word(value)}" for key, value in changed.items()]
        words.append(f"seed={_word(values['seed'])}")
        words = list(dict.fromkeys(words))
        again = resolve(words).values
        return words if all(again[key] == value for key, value in values.items()) else []
    except (ValueError, KeyError, TypeError, OSError):  # another version's settings, or a task file that is gone
        return []


def _word(value: object) -> str:
    """A value as the command line takes it: YAML on one line, a component without options by its name alone."""
    if isinstance(value, dict) and list(value) == ["name"]:
        value = value["name"]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
