"""Many workers on one study: throughput, and whether any trial is lost or done twice.

    OMP_NUM_THREADS=1 python benchmarks/search_workers.py [workers=64] [trials=640] [seconds=2] [storage=URL]

The objective sleeps for `seconds` and reports twice. Without storage= a PostgreSQL server of its own is started (as the tests
do). The workers are forked, so that their start is no part of the measurement.
"""

import collections
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

import toy_search

import ldp_search
from ldp_search.runner.search import best

options = {"workers": "64", "trials": "640", "seconds": "2", "storage": ""} | dict(w.split("=", 1) for w in sys.argv[1:])
workers, trials, seconds = int(options["workers"]), int(options["trials"]), float(options["seconds"])
work = Path(tempfile.mkdtemp(prefix="workers-"))


def train(trial):
    for step in (1, 2):
        time.sleep(seconds / 2)
        trial.report(step, trial["x"] * step)
    with open(work / "done.txt", "a") as log:
        log.write(f"{trial.number} {os.getpid()}\n")
    return trial["x"], None, {"training_cost": 0.5}


def run(storage: str) -> None:
    how = {"sampler": "tpe", "pruner": "none", "study": "many", "reports": 2}
    ldp_search.tune(train, toy_search.SPACE, storage, trials, output=work, **how)


with contextlib.ExitStack() as stack:
    server = None if options["storage"] else stack.enter_context(toy_search.Postgres())
    storage = options["storage"] or server.url
    begun = time.monotonic()
    sys.stdout.flush()
    shown = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    pids = [toy_search.fork(run, storage) for _ in range(workers)]
    codes = collections.Counter(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
    os.dup2(shown, 1)
    took = time.monotonic() - begun
    found = best.load_study(storage, "many").get_trials()
    did = collections.Counter(int(line.split()[0]) for line in (work / "done.txt").read_text().splitlines())
    shares = collections.Counter(line.split()[1] for line in (work / "done.txt").read_text().splitlines()).values()
    waits = sorted((t.datetime_complete - t.datetime_start).total_seconds() - seconds for t in found if t.datetime_complete)

print(f"{workers} workers, {trials} trials of {seconds:g} s on {storage.partition(':')[0]}: {took:.1f} s in all,")
print(f"  {trials / took:.1f} trials/s (without any overhead: {workers / seconds:.1f})")
print(f"  states: {dict(collections.Counter(t.state.name for t in found))}; exit statuses of the workers: {dict(codes)}")
print(f"  lost: {sorted(set(range(trials)) - set(did))}, done twice: {[n for n, count in did.items() if count > 1]}")
median, most = waits[len(waits) // 2], waits[int(len(waits) * 0.95)]
print(f"  time of a trial beyond its {seconds:g} s: median {median:.2f} s, 95 % {most:.2f} s")
print(f"  trials a worker: {min(shares)} to {max(shares)}")
