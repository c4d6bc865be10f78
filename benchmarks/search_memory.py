"""Memory and open files of one worker process over many trials.

    OMP_NUM_THREADS=1 python benchmarks/search_memory.py FOLDER [trials=200]

Real trials, each a training of 8 steps of a small network on digits; the page with its figures is drawn in every tenth.
"""

import contextlib
import io
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from ldp_search.run import main
from ldp_search.runner.search import worker
from ldp_search.runner.training import finish

folder = Path(sys.argv[1])
trials = int(dict(w.split("=", 1) for w in sys.argv[2:]).get("trials", "200"))
drawn, seen, end = finish.write_report_page, [], worker.Worker._end


def measured(self, trial, *args):
    end(self, trial, *args)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    seen.append((trial.number, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))))


worker.Worker._end = measured
finish.write_report_page = lambda output: drawn(output) if int(output.name) % 10 == 0 else None
words = ["task=digits", "limit=256", "eval_limit=50", "model=tiny:net", "batch_size=64", "epochs=2", "space=ldp"]
with contextlib.redirect_stdout(io.StringIO()):
    main([*words, f"trials={trials}", f"storage={folder / 'm.journal'}", f"output={folder / 'm'}"])
for number, mib, files in seen:
    if number in (1, trials - 1) or number % (trials // 8) == 0:
        print(f"after trial {number}: {mib:.0f} MiB, {files} open files")
