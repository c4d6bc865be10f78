"""What `python -m ldp_search.export` does: write, compare, measure, put in place or aside, tell."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ...config.overlay import ConfigError
from ..io.atomic import write_whole
from . import parity, peers, table, timing
from .export import FORMATS, export
from .options import ExportOptions
from .subject import Subject, open_subject

REPORT = "export.json"
REJECTED = ".rejected"


def run(options: ExportOptions) -> int:
    """Export the model of a folder; returns the exit status.

    Raises:
        ConfigError: a folder, data or a model that cannot be exported. OSError: writing failed.
    """
    places = destinations(options)
    subject = open_subject(options.folder, options.rest)
    return export_subject(subject, options, places)


def destinations(options: ExportOptions) -> dict[str, Path]:
    """{format: path of its file}. ConfigError where they cannot be written."""
    output = options.folder if options.output is None else Path(options.output).expanduser()
    one_file = options.output is not None and len(options.format) == 1 and output.suffix and not output.is_dir()
    folder = output.parent if one_file else output
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={options.output} must lie in a folder that can be made: {error}.") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} cannot be written: give output=FOLDER.")
    if one_file and options.format == ["torch"] and output.suffix != ".pt2":
        raise ConfigError(f"torch.export programs are files called *.pt2; received output={options.output}.")
    return {name: output if one_file else folder / FORMATS[name] for name in options.format}


def export_subject(subject: Subject, options: ExportOptions, places: dict[str, Path]) -> int:
    """Write every format, compare and measure it, keep what agrees, and print and save the table; returns the exit status."""
    folder = next(iter(places.values())).parent
    samples = options.samples
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as stage:
        files = {name: Path(stage) / place.name for name, place in places.items()}
        of_onnx = {"nbits": options.nbits, "cache": options.cache}
        records = {name: _written(subject, name, path, **(of_onnx if name == "onnx" else {})) for name, path in files.items()}
        ways = [*peers.peers(subject, Path(stage), options.compare)]
        ways += [peers.exported(name, path, subject) for name, path in files.items()]
        ways += [peers.by_token(files["onnx"])] if options.cache else []
        compared = parity.compare(subject, ways, samples)
        times = timing.latencies(subject, ways, options.batch, options.rounds)
        reasons = {name: _reason(name, compared, options) for name in files}
        for name, path in files.items():
            put(path, places[name], reasons[name])
    metric = None if subject.task is None else subject.task.metric
    rows = table.rows(ways, compared, times, metric)
    own = compared[parity.YARDSTICK]
    report = {
        "data": subject.data, "samples": samples, "metric": metric, "rows": rows, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "made": time.strftime("%Y-%m-%d %H:%M"),
        "yardstick": {"error": own.error, "agreement": own.agreement},
        "files": {name: _summary(records[name], places[name], reasons[name]) for name in files},
    }  # fmt: skip
    write_whole(folder / REPORT, json.dumps(report, indent=1, default=str) + "\n")
    print(_told(subject, report, options, folder))
    for name, reason in reasons.items():
        if reason is not None:
            print(
                f"ldp_search.export: {places[name].name} was put aside as {places[name].name}{REJECTED}: {reason}",
                file=sys.stderr,
            )
    return int(any(reason is not None for reason in reasons.values()))


def _reason(format: str, compared: dict[str, parity.Parity], options: ExportOptions) -> str | None:
    """Why a file does not count as made; None: it does."""
    yardstick = compared[parity.YARDSTICK]
    reason = parity.rejection(format, compared[f"ours, {format}"], yardstick, options.agreement)
    if reason is None and format == "onnx" and options.cache:
        reason = parity.rejection(format, compared[peers.BY_TOKEN], yardstick, options.agreement)
        return None if reason is None else f"with its last tokens read one by one {reason}"
    return reason


def _written(subject: Subject, format: str, path: Path, **options: bool) -> Any:
    """The record of a file. options: of its format. ConfigError where the model cannot be exported so."""
    args, kwargs = subject.inputs(8)
    try:
        with peers.quiet():
            return export(subject.model, path, kwargs if kwargs and not args else args, format=format, **options)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def put(made: Path, place: Path, reason: str | None) -> None:
    """Move a file to its place, or aside with the reason beside it."""
    aside = place.with_name(place.name + REJECTED)
    note = aside.with_name(aside.name + ".txt")
    if reason is None:
        os.replace(made, place)
        for old in (aside, note):  # of an earlier try
            old.unlink(missing_ok=True)
        return
    os.replace(made, aside)
    write_whole(note, reason + "\n")


def _summary(record: Any, place: Path, reason: str | None) -> dict[str, Any]:
    """A record without what is no plain data."""
    kept = {key: value for key, value in record._asdict().items() if key not in ("module", "path")}
    return kept | {"path": str(place if reason is None else place.with_name(place.name + REJECTED)), "rejected": reason}


def _told(subject: Subject, report: dict, options: ExportOptions, folder: Path) -> str:
    lines = [
        f"\n{subject.folder}: compared on {report['data']} ({report['threads']} thread(s), torch {report['torch']})",
        table.text(report["rows"], options.batch, report["metric"]),
        "",
    ]
    for name, file in report["files"].items():
        if file["rejected"] is None:
            parts = {"in floating point": "float_layers", "int8, not nbits": "not_nbits", "inputs unrounded": "unrounded"}
            note = "".join(_listed(what, file.get(key, {})) for what, key in parts.items())
            lines.append(f"{name:<8} {file['path']}  {file['bytes'] / 2**20:.2f} MiB{note}")
    if options.compare and not peers.has_onnxruntime():
        lines.append("not compared with onnxruntime, which is not installed: pip install '.[onnx]' adds the comparison")
    return "\n".join([*lines, f"table    {folder / REPORT}"])


def _listed(what: str, layers: dict[str, str]) -> str:
    """The first of some layers, for a line; empty without any."""
    return f"; {what}: {', '.join(list(layers)[:3])}{' ...' * (len(layers) > 3)}" if layers else ""
