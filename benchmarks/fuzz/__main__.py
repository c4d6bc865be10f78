"""Random small models, calls, data and command lines: nothing may crash, fail with a traceback of ours, or be wrong silently.

python -m benchmarks.fuzz minutes=10 [kinds=models,data,words] [first=SEED] [results=FILE.jsonl]     cases of rising seeds
python -m benchmarks.fuzz seed=models:17 [seed=data:3 ...]                                           single cases, again
python -m benchmarks.fuzz seeds=benchmarks/fuzz/seeds.txt                                            all that once were finds

A case is a function of its seed alone. It runs in a process of its own kind, so that a crash or an endless loop is a find like
another. Outcomes: `passed`; `refused`, with a message of ours; `invalid`, where the plain model does not run without ldp_search
either; `find`, with what was wrong.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

KINDS = ("models", "data", "words")
SECONDS = 120  # that a case may take


class Worker:
    """A process that runs one case after another, and is replaced where one hangs or ends it."""

    def __init__(self):
        self.process: subprocess.Popen | None = None

    def run(self, name: str) -> dict:
        if self.process is None or self.process.poll() is not None:
            words = [sys.executable, "-W", "ignore", "-m", "benchmarks.fuzz.worker"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.process = subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, **pipes)
        start = time.monotonic()
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], SECONDS)[0]:
            self.end()
            return {"case": name, "outcome": "find", "what": f"no result within {SECONDS} s"}
        line = self.process.stdout.readline()
        if not line:
            return {"case": name, "outcome": "find", "what": f"the process ended with {self.process.wait()}"}
        return json.loads(line) | {"seconds": round(time.monotonic() - start, 2)}

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def cases(words: dict[str, list[str]]) -> Iterator[str]:
    """Names of cases, KIND:SEED: those that are asked for, else all kinds in turn without an end."""
    named = [*words.get("seed", [])]
    for file in words.get("seeds", []):
        named += [line.split()[0] for line in Path(file).read_text().splitlines() if line and not line.startswith("#")]
    if named:
        return iter(named)
    kinds = words.get("kinds", [",".join(KINDS)])[-1].split(",")
    return (f"{kind}:{seed}" for seed in itertools.count(int(words.get("first", ["0"])[-1])) for kind in kinds)


def main(arguments: list[str]) -> int:
    """Runs cases and prints the finds; the exit status is 1 where there were any."""
    words: dict[str, list[str]] = {}
    for key, _, value in (argument.partition("=") for argument in arguments):
        if key not in ("minutes", "kinds", "first", "seed", "seeds", "results") or not value:
            print(__doc__)
            return 2
        words.setdefault(key, []).append(value)
    limit = 60 * float(words.get("minutes", ["10"])[-1]) if "seed" not in words and "seeds" not in words else float("inf")
    start, worker, outcomes, rows = time.monotonic(), Worker(), Counter(), []
    try:
        for name in cases(words):
            row = worker.run(name)
            rows.append(row)
            outcomes[name.partition(":")[0], row["outcome"]] += 1
            if row["outcome"] == "find" or "seed" in words:
                print(f"{name}  {row['outcome']}: {row['what']}", flush=True)
            if time.monotonic() - start > limit:
                break
    finally:
        worker.end()
    if "results" in words:
        Path(words["results"][-1]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    minutes = (time.monotonic() - start) / 60
    finds = sum(n for (_, outcome), n in outcomes.items() if outcome == "find")
    print(f"{len(rows)} cases in {minutes:.1f} minutes, {finds} finds ({finds / max(minutes, 1e-9):.2f} a minute)")
    for (kind, outcome), n in sorted(outcomes.items()):
        print(f"  {kind:<8}{outcome:<10}{n:>6}")
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
