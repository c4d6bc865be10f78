"""Whether the best trial of a study is really better than the defaults: both trained again, with seeds that no trial had.

    OMP_NUM_THREADS=1 python benchmarks/search_confirm.py STORAGE OUTPUT [seeds=1,2,3,4,5]

A trial is chosen because it is the highest of many, so its own figure is too high. Trial 0 holds the defaults.
"""

import json
import statistics
import sys
from pathlib import Path

import yaml

from ldp_search.run import main
from ldp_search.runner.search import best
from ldp_search.runner.training import finish

storage, output, *words = sys.argv[1:]
seeds = [int(s) for s in dict(w.split("=", 1) for w in words).get("seeds", "1,2,3,4,5").split(",")]
finish.write_report_page = lambda output: None
study, output = best.load_study(storage), Path(output)
output.mkdir(parents=True, exist_ok=True)
trials = {"defaults": study.trials[0], "best": best.best_trial(study)}
found = {}
for name, trial in trials.items():
    (output / f"{name}.yaml").write_text(yaml.safe_dump(trial.user_attrs["config"], sort_keys=False))
    runs = []
    for seed in seeds:
        folder = output / f"{name}-{seed}"
        main([f"config={output / f'{name}.yaml'}", f"seed={seed}", f"output={folder}", "trackers=none"])
        runs.append(json.loads((folder / "result.json").read_text()))
    values = [r[r["metric"]] for r in runs]
    found[name] = values
    print(f"RESULT {name} (trial {trial.number}, in the study {trial.values[0]:.4f}): " + ", ".join(f"{v:.4f}" for v in values)
          + f"; mean {statistics.mean(values):.4f}, sd {statistics.stdev(values) if len(values) > 1 else 0:.4f}; training cost "
          + ", ".join(f"{r['mean_cost']:.4f}" for r in runs), flush=True)  # fmt: skip
gains = [b - a for a, b in zip(found["defaults"], found["best"], strict=True)]
print(f"RESULT gain, seed by seed: {', '.join(f'{g:+.4f}' for g in gains)}; mean {statistics.mean(gains):+.4f}")
