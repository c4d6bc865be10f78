"""One tidy table of all cells, one of their means, and the figures.

    python -m benchmarks.paper report=FOLDER

table.csv, table.parquet: a line a cell, failed ones with their error. summary.md, summary.csv: a line a row of the benchmark,
with mean and standard deviation over its seeds, and the mean difference to `static8` and `cpt` over the seeds that both have,
to the uniform bits of its own cost, and to the whole method where a row lacks one part of it,
with its standard error. figures/: see `figures`.
"""

from __future__ import annotations

import csv
import statistics
import sys
from pathlib import Path
from typing import Any

from .rows import ROWS
from .store import Store

COLUMNS = [
    *("cell", "network", "size", "cut", "row", "seed", "status"),
    *("accuracy", "perplexity", "test_loss", "train_loss"),
    *("cost", "final_cost", "inference_cost", "own_mean_cost", "training_bitops", "macs", "coverage"),
    *("steps", "seconds", "cpu_seconds", "loop", "date", "commit", "torch", "device", "error"),
]
GROUP = ("network", "size", "cut", "row")
RIVALS = ("static8", "cpt")
UNIFORM = "uniform"
"""In the place of a rival: the row of uniform bits at exactly a row's cost."""
WHOLE = "whole"
"""In the place of a rival: the row of the whole method, where a row differs from it in one part."""


LOSSES = {"train_loss": "training loss", "test_loss": "test loss"}


def tidy(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a cell: the last line of each, flat, with the columns of COLUMNS (None where a line has no such value)."""
    last = {line["fingerprint"]: line for line in lines}
    out = []
    for line in last.values():
        settings, machine = line["settings"], line["machine"]
        cut = [f"{name}={settings[name]}" for name in ("limit", "epochs", "steps") if settings[name] is not None]
        flat = line | {"cut": " ".join(cut), "torch": line["versions"]["torch"]}
        flat["device"] = machine["gpu"] if line.get("on_gpu") else machine["processor"]
        out.append({name: flat.get(name) for name in COLUMNS})
    return out


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1), nan of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else float("nan")


def summary(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line a (network, size, cut, row), dearest first. score: accuracy in %, or perplexity."""
    groups: dict[tuple, list] = {}
    for row in table:
        if row["status"] == "done":
            groups.setdefault(tuple(row[name] for name in GROUP), []).append(row)
    out = []
    for key, members in groups.items():
        line = dict(zip(GROUP, key, strict=True)) | {"seeds": len(members), "metric": _metric(members[0])}
        for name in ("score", "train_loss", "test_loss", "cost", "inference_cost", "training_bitops"):
            values = [_score(row) if name == "score" else row[name] or float("nan") for row in members]
            line[name], line[f"{name}_sd"] = mean_and_spread(values)
        for rival in RIVALS:
            line |= _against(rival, members, groups.get((*key[:3], rival), []))
        for rival, name in _of_its_own(key[3]).items():
            line |= _against(rival, members, groups.get((*key[:3], name), []))
        line["commits"] = " ".join(sorted({row["commit"] for row in members}))
        out.append(line)
    return sorted(out, key=lambda line: (*(line[name] for name in GROUP[:3]), -line["cost"], line["row"]))


def _of_its_own(name: str) -> dict[str, str | None]:
    """{rival that is another row for each: that row}, of a row."""
    rule = ROWS.get(name)
    return {UNIFORM: rule and rule.beside, WHOLE: rule and rule.part_of}


def _metric(row: dict) -> str:
    return "accuracy" if row["accuracy"] is not None else "perplexity"


def _score(row: dict) -> float:
    return row[_metric(row)]


def _against(rival: str, members: list[dict], theirs: list[dict]) -> dict[str, float | None]:
    """Mean and standard error of the differences of the scores, over the seeds that both have."""
    known = {row["seed"]: _score(row) for row in theirs}
    differences = [_score(row) - known[row["seed"]] for row in members if row["seed"] in known]
    if not differences:
        return {f"minus_{rival}": None, f"minus_{rival}_se": None}
    mean, spread = mean_and_spread(differences)
    return {f"minus_{rival}": mean, f"minus_{rival}_se": spread / len(differences) ** 0.5}


def markdown(lines: list[dict[str, Any]], failed: list[dict[str, Any]]) -> str:
    """The summary as text: a table a (network, size, cut)."""
    out = []
    for place in dict.fromkeys(tuple(line[name] for name in GROUP[:3]) for line in lines):
        members = [line for line in lines if tuple(line[name] for name in GROUP[:3]) == place]
        loss = "train_loss" if members[0]["metric"] == "accuracy" else "test_loss"  # a text is read less than once
        head = ["row", "seeds", members[0]["metric"], LOSSES[loss], "training cost", "inference cost"]
        head += [*(f"minus {rival}" for rival in RIVALS), "minus uniform bits of its cost", "minus the whole method"]
        out += [f"## {' '.join(filter(None, place))}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for line in members:
            cells = [line["row"], str(line["seeds"]), _pm(line["score"], line["score_sd"], 2)]
            cells += [_pm(line[loss], line[f"{loss}_sd"], 3), f"{line['cost']:.4f}", f"{line['inference_cost']:.3f}"]
            cells += [_pm(line[f"minus_{rival}"], line[f"minus_{rival}_se"], 2, True) for rival in (*RIVALS, UNIFORM, WHOLE)]
            out.append(f"| {' | '.join(cells)} |")
        out.append("")
    out += [f"Failed: {row['cell']}: {row['error']}" for row in failed]
    commits = sorted({commit for line in lines for commit in line["commits"].split()})
    out.append(
        f"Means, ± standard deviation over seeds; differences of paired seeds ± standard error. Code: {', '.join(commits)}."
    )
    return "\n".join(out) + "\n"


def _pm(mean: float | None, spread: float, digits: int, signed: bool = False) -> str:
    if mean is None:
        return "-"
    text = f"{mean:{'+' if signed else ''}.{digits}f}"
    return text if spread != spread else f"{text} ± {spread:.{digits}f}"


def write(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def report(folder: Path) -> int:
    """Write tables and figures of a folder of results, and print the summary; the exit status."""
    store = Store(folder)
    table = tidy(store.lines())
    if not table:
        print(f"No results in {store.results}: train some cells first (output={folder}).", file=sys.stderr)
        return 2
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(folder / "table.csv", table, COLUMNS)
    pq.write_table(pa.Table.from_pylist(table), folder / "table.parquet")
    lines, failed = summary(table), [row for row in table if row["status"] == "failed"]
    if lines:
        write(folder / "summary.csv", lines, list(lines[0]))
    text = markdown(lines, failed)
    (folder / "summary.md").write_text(text)
    print(text)
    try:
        from .figures import draw_all
    except ImportError as error:
        print(f"No figures: {error}. pip install matplotlib", file=sys.stderr)
        return 0
    for path in draw_all(store, table, lines):
        print(path)
    return 0
