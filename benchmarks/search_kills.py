"""A search under fire: workers killed at work, on a journal and on PostgreSQL, against the same search left in peace.

    OMP_NUM_THREADS=1 python benchmarks/search_kills.py [kills=20] [trials=12]

The tests do the same with fewer kills (tests/runner/test_search_faults.py); here the counts are shown.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

import pytest
import toy_search

from ldp_search.runner.search import best

options = {"kills": "20", "trials": "12"} | dict(word.split("=", 1) for word in sys.argv[1:])
kills, trials, work = int(options["kills"]), int(options["trials"]), Path(tempfile.mkdtemp(prefix="kills-"))


def found(storage):
    return [(t.state.name, t.values, t.params) for t in best.load_study(storage).trials]


with pytest.MonkeyPatch.context() as patch, toy_search.Postgres() as server:
    toy_search.hurried(patch)
    toy_search.search(work / "calm.journal", work / "calm", trials)
    calm = found(work / "calm.journal")
    for storage, name in ((work / "fire.journal", "journal"), (server.url, "postgresql")):
        folder = work / name
        slow = toy_search.toy(nap=0.25)
        made = toy_search.search_under_fire(storage, folder, trials, workers=3, kills=kills, seed=1, train=slow)
        rows = best.load_study(storage).trials
        steps = [len(p.read_text().splitlines()) for p in folder.glob("trials/*/steps.txt")]
        taken = sum(t.user_attrs.get("deaths", [0])[0] for t in rows)
        complete = sum(t.state.name == "COMPLETE" for t in rows)
        print(f"{name}: {made} kills of 3 workers, {taken} trials taken up again; {len(rows)} trials, {complete} complete, "
              f"equal to the search in peace: {found(storage) == calm}; "
              f"{sum(steps)} steps for {4 * trials}")  # fmt: skip
