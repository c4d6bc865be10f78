"""Pieces of an HTML page that needs nothing but itself: everything is escaped here, once, and pictures lie inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1260px; padding: 28px 24px 64px; background: #fff; color: #1a1a1a;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 8px; }
h3 { font-size: 16px; margin: 24px 0 6px; }
p { max-width: 90ch; overflow-wrap: anywhere; }
.under { color: #595959; margin: 0 0 18px; overflow-wrap: anywhere; }
.note { background: #fff6df; border-left: 4px solid #e69f00; padding: 8px 14px; margin: 14px 0; }
.note ul { margin: 4px 0; padding-left: 20px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 12px; margin: 16px 0; }
.card { border: 1px solid #d5d5d5; border-radius: 8px; padding: 10px 14px; overflow-wrap: anywhere; }
.card b { display: block; font-size: 23px; line-height: 1.3; font-weight: 650; }
.card span { color: #595959; font-size: 13px; display: block; }
figure { margin: 8px 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: #595959; font-size: 13px; max-width: 110ch; }
.scroll { overflow: auto; max-height: 520px; width: fit-content; max-width: 100%; border: 1px solid #d5d5d5;
  border-radius: 8px; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: 4px 12px; text-align: left; border-bottom: 1px solid #ececec; vertical-align: top; }
td { overflow-wrap: anywhere; }
th { position: sticky; top: 0; background: #f5f5f5; font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
details { margin: 14px 0; }
summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
details.run { border: 1px solid #d5d5d5; border-radius: 8px; padding: 10px 16px; }
pre { background: #f5f5f5; border-radius: 8px; padding: 12px 14px; overflow: auto; font-size: 13px; line-height: 1.4;
  white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { .scroll { max-height: none; overflow: visible; } }
"""


def esc(text: object) -> str:
    """Text as HTML shows it literally."""
    return html.escape(str(text), quote=True)


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document. Its policy forbids the browser to load anything, should something slip through."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{esc(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(p for p in parts if p)
        + "\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{esc(text)}</h{level}>"


def paragraph(text: str, css: str = "") -> str:
    return f'<p class="{css}">{esc(text)}</p>' if css else f"<p>{esc(text)}</p>"


def note(title: str, lines: Sequence[str]) -> str:
    """A box that stands out; nothing without lines."""
    items = "".join(f"<li>{esc(line)}</li>" for line in lines)
    return f'<div class="note"><b>{esc(title)}</b><ul>{items}</ul></div>' if lines else ""


def cards(entries: Iterable[tuple[str, str, str]]) -> str:
    """(label, value, explanation) each in a box."""
    boxes = (f'<div class="card"><span>{esc(a)}</span><b>{esc(b)}</b><span>{esc(c)}</span></div>' for a, b, c in entries)
    return f'<div class="cards">{"".join(boxes)}</div>'


def picture(png: bytes, file: str, caption: str) -> str:
    """A PNG inside the page; `file` is its name beside the page, for use elsewhere."""
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{esc(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{esc(caption)} ({esc(file)})</figcaption></figure>"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], numeric: Iterable[int] = ()) -> str:
    """A table that scrolls inside itself; `numeric` columns are aligned right."""
    right = {i: ' class="n"' for i in numeric}
    head = "".join(f"<th{right.get(i, '')}>{esc(name)}</th>" for i, name in enumerate(columns))
    body = "\n".join(
        "<tr>" + "".join(f"<td{right.get(i, '')}>{esc(cell)}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def code(text: str) -> str:
    return f"<pre>{esc(text)}</pre>"


def details(summary: str, parts: Iterable[str], css: str = "") -> str:
    """Parts that a click opens."""
    inside = "\n".join(part for part in parts if part)
    return f'<details class="{css}"><summary>{esc(summary)}</summary>\n{inside}\n</details>'
