"""What `python -m ldp_search.profile` does: build the model, measure it, write the table, tell."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from ...config.resolve import resolve
from ...core.apply import as_call
from ...core.bits.latency import FLOAT
from ...core.bits.space import MAX_BITS
from ...core.controller.summary import elide
from ..io.atomic import folder_made, write_whole
from ..tasks import build_task
from .measure import measure, named
from .options import ProfileOptions


def run(options: ProfileOptions) -> int:
    """Measure and write; returns the exit status.

    Raises:
        ConfigError: wrong settings, data or model. ImportError: a package of the target is missing. OSError: writing failed.
    """
    settings = resolve(options.rest)
    task = build_task(settings.task, settings.config)
    model = task.create_model(settings.config.model, settings.config.pretrained).eval()
    inputs = as_call(task.example_inputs())
    table = measure(model, *inputs, settings, options, _tell)
    place = Path(options.output).expanduser()
    with folder_made(place.parent):
        write_whole(place, json.dumps(table, indent=1) + "\n")
    print(text(table))
    print(f"\ntable    {options.output}\n{_next(table, options)}")
    return 0


def text(table: dict[str, Any]) -> str:
    """The table for a terminal: microseconds of one layer, and of the network."""
    widths = [str(width) for width in table["containers"]]
    head = f"{'layer':<28} {'times':>5} " + " ".join(f"{named(int(width)):>20}" for width in widths)
    lines = [f"{table['model']}: microseconds on {table['device']}, {table['target']}, {table['threads']} thread(s)", head]
    for row in table["rows"]:
        shown = [f"{row['times'][w]['us']:.0f} ± {row['times'][w]['spread']:.0f}" for w in widths]
        lines.append(f"{elide(row['layers'][0], 28):<28} {len(row['layers']):>5} " + " ".join(f"{cell:>20}" for cell in shown))
    whole = " ".join(f"{table['whole'][width]:>20.0f}" for width in widths)
    return "\n".join([*lines, f"{'the whole network':<28} {'':>5} {whole}"])


def _next(table: dict[str, Any], options: ProfileOptions) -> str:
    low, high = table["containers"][0], min(FLOAT, MAX_BITS)
    least = table["whole"][str(low)] / table["whole"][str(FLOAT)]
    words = " ".join(map(shlex.quote, options.rest))
    within = f"between {least:.2f} and 1" if least < 1 else "of which nothing lower is to be had with all layers in integers"
    bits = f"bits=[{min(low, high)},{high}]"
    return (
        f"next     python -m ldp_search.run {words} {bits} latency={options.output} target_latency=...\n"
        f"         target_latency: of the time in floating point, {within}"
    )


def _tell(line: str) -> None:
    print(f"ldp_search.profile: {line}", file=sys.stderr, flush=True)
