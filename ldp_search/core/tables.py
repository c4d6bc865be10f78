"""Small tables: as text for terminals, and as HTML for notebooks, which takes ink and ground of the page it stands in."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Sequence

MOST_ROWS = 60  # a notebook keeps what it shows
RULE = "border-bottom:1px solid rgba(128,128,128,.3)"
WIDEST_SEARCHED = 16  # bits; more than that is full precision, and without a shade


def escaped(text: object) -> str:
    """Text as HTML shows it literally."""
    return html.escape(str(text), quote=True)


def as_text(rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """Rows in aligned columns, the first of them the names of these; all but the first `left` stand on the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ([f"{cell:{'<' if i < left else '>'}{widths[i]}}" for i, cell in enumerate(row)] for row in cells)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def as_html(columns: Sequence[str], rows: Sequence[Sequence[object]], bits: Collection[int] = ()) -> str:
    """A table that scrolls inside itself; past `MOST_ROWS` the rows in its middle are counted only.

    Numbers stand on the right. bits: the columns that hold bits, of which more have a darker ground.
    """
    values = [v for row in rows for i in bits if isinstance(v := row[i], int) and v <= WIDEST_SEARCHED]
    low, high = min(values, default=0), max(values, default=0)

    def cell(place: int, value: object) -> str:
        style = f"padding:2px 10px;{RULE};text-align:{'right' if str(value)[:1].isdigit() else 'left'}"
        if place in bits and isinstance(value, int) and value <= WIDEST_SEARCHED:
            style += f";background:rgba(0,114,178,{0.06 + 0.5 * (value - low) / max(1, high - low):.2f})"
        return f'<td style="{style}">{escaped(f"{value:,}" if isinstance(value, int) else value)}</td>'

    shown = ["".join(cell(i, value) for i, value in enumerate(row)) for row in rows]
    if (more := len(rows) - MOST_ROWS) > 0:
        between = f'<td colspan="{len(columns)}" style="{RULE};text-align:left">… {more:,} more …</td>'
        shown[2 * MOST_ROWS // 3 : 2 * MOST_ROWS // 3 + more] = [between]
    head = "".join(f'<th style="padding:2px 10px;{RULE};text-align:left">{escaped(name)}</th>' for name in columns)
    body = "".join(f"<tr>{row}</tr>" for row in shown)
    return (
        '<div style="max-height:440px;overflow:auto;width:fit-content;max-width:100%"><table style="border-collapse:collapse;'
        f'margin:4px 0"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def lines(texts: Iterable[str]) -> str:
    """Each text a line of its own."""
    return "".join(f'<div style="margin:2px 0">{escaped(text)}</div>' for text in texts)


def folded(title: str, inside: str) -> str:
    """What a click opens."""
    return f"<details><summary>{escaped(title)}</summary>{inside}</details>"
