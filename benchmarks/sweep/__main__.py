"""Builds one small instance of every timm module and of every transformers model type, and runs the invariants on each.

python -m benchmarks.sweep run RESULTS.jsonl [PATTERN ...] [--workers N] [--seconds S]     goes on where it stopped
python -m benchmarks.sweep run RESULTS.jsonl --again                                       what did not pass once more
python -m benchmarks.sweep table RESULTS.jsonl                                             the tables, in Markdown

A model that takes longer than S seconds, or ends its process, is noted and the next one is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import select
import subprocess
import sys
import threading
from fnmatch import fnmatchcase
from pathlib import Path


def names() -> list[str]:
    """Every model of the zoo."""
    from .classes import class_name, model_types
    from .timm_models import modules

    return [f"timm:{m}" for m in modules()] + [f"hf:{kind}" for kind in model_types() if class_name(kind)]


def done(path: Path) -> dict[str, dict]:
    """{name: its newest result}."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def passes(row: dict) -> bool:
    return "error" not in row and not any(row["checks"].values())


class Worker:
    """A process that checks one model after another, and is replaced where one hangs or ends it."""

    def __init__(self):
        self.process = None

    def check(self, name: str, seconds: float) -> dict:
        if self.process is None or self.process.poll() is not None:
            words = [sys.executable, "-W", "ignore", "-m", "benchmarks.sweep", "worker"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.process = subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, **pipes)
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            self.end()
            return {"name": name, "error": f"no result within {seconds:.0f} s"}
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"name": name, "error": f"the process ended with {self.process.wait()}"}

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def run(path: Path, patterns: list[str], workers: int, seconds: float, again: bool = False) -> None:
    """Check what is not in the file yet (`again`: or does not pass there), and add a line for each."""
    known, waiting, lock = done(path), queue.SimpleQueue(), threading.Lock()
    known = {name: row for name, row in known.items() if passes(row) or not again}
    left = [n for n in names() if n not in known and (not patterns or any(fnmatchcase(n, p) for p in patterns))]
    for name in left:
        waiting.put(name)

    def serve():
        worker = Worker()
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return worker.end()
            result = worker.check(name, seconds)
            with lock, path.open("a") as file:
                file.write(json.dumps(result) + "\n")
                problems = result.get("error") or {k: v for k, v in result["checks"].items() if v} or "passes"
                print(f"{waiting.qsize():4} left  {name}: {problems}", flush=True)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def worker() -> None:
    """Names on standard input, results on standard output; whatever a model prints goes elsewhere."""
    results, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
    from .check import one

    for line in sys.stdin:
        results.write(json.dumps(one(line.strip())) + "\n")
        results.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("run", "table", "worker"))
    parser.add_argument("results", nargs="?", type=Path, default=Path("sweep.jsonl"))
    parser.add_argument("patterns", nargs="*", help="names such as 'hf:bert*' or 'timm:*'; default: all")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=300, help="of one model, then it is given up")
    parser.add_argument("--again", action="store_true", help="also what is in the file and does not pass")
    options = parser.parse_args()
    if options.action == "worker":
        worker()
    elif options.action == "run":
        run(options.results, options.patterns, options.workers, options.seconds, options.again)
    else:
        from .table import tables

        print(tables(done(options.results)))


if __name__ == "__main__":
    main()
