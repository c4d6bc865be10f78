"""Predicted and measured time of whole networks in onnxruntime: of runs that left a model.onnx, and of mixtures at random.

    OMP_NUM_THREADS=1 python benchmarks/latency.py table=table.json runs=runs/A,runs/B random=4 turns=100

table: of `python -m ldp_search.profile`. runs: folders of runs with export=onnx, of one network. random: mixtures of the first
run's network, each layer of 8 bits or in floating point. All are run in turn; medians of the process's own time, with half of
the middle half's range.
"""

from __future__ import annotations

import copy
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

import ldp_search
from ldp_search.core.bits.latency import LatencyTable
from ldp_search.runner.exports.export import plain_copy
from ldp_search.runner.exports.peers import onnx_feed, quiet
from ldp_search.runner.exports.subject import open_subject
from ldp_search.runner.latency.onnxruntime_nodes import session

DEFAULTS = {"table": "table.json", "runs": "", "random": "4", "turns": "100", "seed": "0"}


def mixed(model, args, kwargs, bits: dict[str, int], path: Path) -> None:
    """Write a plain model with its layers at these bits."""
    space = {"bits": 8, "policy": "static", "fixed": bits, "weight_quantizer": "mse", "input_quantizer": "mse"}
    searched = ldp_search.apply(copy.deepcopy(model), space, example_inputs=kwargs or args)
    ldp_search.controller(searched).finalize([(args, kwargs)], forward=lambda batch: searched(*batch[0], **batch[1]))
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ldp_search.export(searched, path, kwargs or args)


def predicted(table: LatencyTable, ldp, bits: dict[str, int] | None = None) -> float:
    """Milliseconds. bits: of both kinds, in place of those in force."""
    rows = [(b, b) for b in bits.values()] if bits else [(b.weight, b.input) for b in ldp.bits().values()]
    return float(table.of_layers(ldp.specs).total(torch.tensor(rows, dtype=torch.float64))) / 1e3


def main(words: list[str]) -> None:
    options = DEFAULTS | dict(word.split("=", 1) for word in words)
    table, draw = LatencyTable.load(options["table"]), random.Random(int(options["seed"]))
    torch.set_num_threads(table.content["threads"])
    folders = [Path(folder) for folder in options["runs"].split(",")]
    subjects = [open_subject(folder, []) for folder in folders]
    first = ldp_search.controller(subjects[0].model)
    args, kwargs = subjects[0].inputs(table.content["batch"])
    rows, files = [], {}
    for folder, subject in zip(folders, subjects, strict=True):
        result, ldp = json.loads((folder / "result.json").read_text()), ldp_search.controller(subject.model)
        wide = sum(max(b.weight, b.input) > 8 for b in ldp.bits().values())
        rows.append((folder.name, wide, result["inference_cost"], result[result["metric"]], predicted(table, ldp)))
        files[folder.name] = folder / "model.onnx"
    with tempfile.TemporaryDirectory() as stage:
        names, plain = list(first.bits()), plain_copy(subjects[0].model)
        mixtures = [dict.fromkeys(names, 8), dict.fromkeys(names, 16)]
        for _ in range(int(options["random"])):
            share = draw.random()
            mixtures.append({name: 16 if draw.random() < share else 8 for name in names})
        for bits in mixtures:
            wide = sum(b > 8 for b in bits.values())
            name = {0: "all in 8 bits", len(names): "all in floating point"}.get(wide, f"at random, {len(rows)}")
            files[name] = Path(stage) / f"{len(rows)}.onnx"
            mixed(plain, args, kwargs, bits, files[name])
            rows.append((name, wide, None, None, predicted(table, first, bits)))
        sessions = {name: session(path, table.content["threads"]) for name, path in files.items()}
        feeds = {name: onnx_feed([v.name for v in s.get_inputs()], args, kwargs) for name, s in sessions.items()}
        times = {name: [] for name in files}
        for _ in range(int(options["turns"])):
            for name, found in sessions.items():
                found.run(None, feeds[name])
                start = time.process_time()
                found.run(None, feeds[name])
                times[name].append((time.process_time() - start) * 1e3)
    print("| network | in floating point | inference BitOPs | metric | predicted, ms | measured, ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, wide, cost, metric, guess in rows:
        ordered, quarter = sorted(times[name]), len(times[name]) // 4
        ms, spread = statistics.median(ordered), (ordered[-1 - quarter] - ordered[quarter]) / 2
        shown = ("" if cost is None else f"{cost:.3f}", "" if metric is None else f"{metric:.4f}")
        told = f"{guess:.3f} | {ms:.3f} ± {spread:.3f} | {ms / guess:.2f}"
        print(f"| {name} | {wide} of {len(names)} layers | {shown[0]} | {shown[1]} | {told} |")


if __name__ == "__main__":
    main(sys.argv[1:])
