"""The comparison as rows of plain data, and as text."""

from __future__ import annotations

import math
from typing import Any

from ..tasks import metrics
from .parity import Parity
from .peers import Way
from .timing import Latency


def rows(ways: list[Way], parities: dict[str, Parity], times: dict[str, dict[int, Latency]], metric: str | None) -> list[dict]:
    """A row for each way: name, ours, mib, ms and spread by batch size, error, agreement, metric; or `failed`, with why."""
    out = []
    for way in ways:
        parity = parities[way.name]
        row: dict[str, Any] = {"name": way.name, "ours": way.ours, "mib": None if way.bytes is None else way.bytes / 2**20}
        if parity.failed is not None:
            out.append(row | {"failed": parity.failed})
            continue
        row["ms"] = {str(size): t.ms for size, t in times.get(way.name, {}).items()}
        row["ms_spread"] = {str(size): t.spread for size, t in times.get(way.name, {}).items()}
        row["error"] = parity.error if math.isfinite(parity.error) else None
        row["agreement"] = parity.agreement
        if metric is not None:
            row[metric] = parity.metrics[metric]
        out.append(row)
    return out


def text(found: list[dict], sizes: list[int], metric: str | None) -> str:
    """The table for a terminal."""
    title = [] if metric is None else [metrics.metric(metric).title]
    head = ["", "MiB", *(f"ms, batch {size}" for size in sizes), "error", "agreement", *title]
    lines, failures = [head], []
    for row in found:
        mib = "" if row["mib"] is None else f"{row['mib']:.2f}"
        if "failed" in row:
            lines.append([row["name"], mib] + ["–"] * (len(head) - 2))
            failures.append(f"  {row['name']}: {row['failed']}")
            continue
        ms = [f"{row['ms'][str(s)]:.1f} ± {row['ms_spread'][str(s)]:.1f}" if str(s) in row["ms"] else "" for s in sizes]
        agreement = "" if row["agreement"] is None else f"{row['agreement']:.2%}"
        error = "inf" if row["error"] is None else f"{row['error']:.2g}"
        shown = [] if metric is None else [metrics.metric(metric).show(row[metric])]
        lines.append([row["name"], mib, *ms, error, agreement, *shown])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    table = "\n".join(_line(line, widths) for line in lines)
    return table + ("\nDid not run:\n" + "\n".join(failures) if failures else "")


def _line(cells: list[str], widths: list[int]) -> str:
    return f"  {cells[0]:<{widths[0]}}" + "".join(f"  {c:>{w}}" for c, w in zip(cells[1:], widths[1:], strict=True))
