"""Searches with the same number of trials compared, several seeds each: the sampler of a search (TPE) and a grid.

    OMP_NUM_THREADS=1 python benchmarks/search_grid.py FOLDER [trials=16] [seeds=5] [steps=80] [samplers=tpe,grid]

A small convolutional network on scikit-learn's digits, whose settings are searched under a bound on the training cost and,
for the hypervolume, with two objectives. Four settings with two points each make a grid of 16. The metric is the accuracy on
the held-out fifth, after `steps` steps of 64.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import ldp_search
from ldp_search.runner.report.trials import view_of
from ldp_search.runner.search import best
from ldp_search.runner.tasks.images import ImageClassification, ImageData

folder = Path(sys.argv[1])
options = {"trials": "16", "seeds": "5", "steps": "80", "samplers": "tpe,grid"} | dict(w.split("=", 1) for w in sys.argv[2:])
trials, seeds, steps = (int(options[key]) for key in ("trials", "seeds", "steps"))
torch.set_num_threads(1)
SPACE = {
    "policy": "learned", "bits": [2, 8], "grad_bits": 8, "target_cost": 0.3,
    "outer": {"max_cost": 0.3, "params": {
        "lr": {"low": 0.02, "high": 1.0, "log": True}, "target_cost": {"low": 0.2, "high": 0.4},
        "policy.lr": {"low": 0.01, "high": 0.5, "log": True}, "policy.freeze": {"low": 0.02, "high": 0.5},
    }},
}  # fmt: skip


class Settings:
    data, limit, eval_limit, seed = None, None, None, 0


digits = ImageClassification(ImageData(source="digits", classes=10, channels=1, mean=[0.3053], std=[0.3760]), Settings)
held_out = digits.batch(torch.arange(digits.eval_size), None)


def network() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def train(trial):
    torch.manual_seed(trial.seed)
    model = ldp_search.apply(network(), trial.space, example_inputs=torch.zeros(1, 1, 8, 8))
    ldp, optimizer = ldp_search.controller(model), torch.optim.SGD(model.parameters(), lr=trial["lr"], momentum=0.9)
    for step in range(steps):
        images, labels = digits.batch(torch.randint(digits.train_size, (64,)), 0)
        F.cross_entropy(model(images), labels).backward()
        ldp.step((step + 1) / steps)
        optimizer.step()
        optimizer.zero_grad()
    ldp.finalize([digits.batch(torch.arange(256), 0)[0]])
    with torch.no_grad():
        accuracy = (model.eval()(held_out[0]).argmax(1) == held_out[1]).float().mean().item()
    return accuracy, ldp


rows = []
for seed in range(seeds):
    for sampler in options["samplers"].split(","):
        for pareto in (False, True):
            begun, name = time.time(), f"{sampler}-{seed}-{'pareto' if pareto else 'constraint'}"
            words = {"output": folder / name, "sampler": sampler, "pareto": pareto, "seed": seed, "metric": "accuracy"}
            space = SPACE if not pareto else SPACE | {"outer": {"params": SPACE["outer"]["params"]}}
            ldp_search.tune(train, space, folder / f"{name}.journal", trials, **words)
            view = view_of(best.load_study(folder / f"{name}.journal"))
            fits = [r.metric for r in view.complete if r.cost <= 0.3 * 1.005]
            volume = view.hypervolume(None, 0.5, 0.4)
            row = {"sampler": sampler, "seed": seed, "pareto": pareto, "trials": len(view.complete), "feasible": len(fits)}
            rows.append(row | {"best": max(fits), "hypervolume": volume, "seconds": round(time.time() - begun, 1)})
            print(json.dumps(rows[-1]), flush=True)
for pareto in (False, True):
    for sampler in options["samplers"].split(","):
        of = [r for r in rows if r["sampler"] == sampler and r["pareto"] == pareto]
        mean = {key: sum(r[key] for r in of) / len(of) for key in ("best", "hypervolume", "feasible")}
        print(f"{'pareto' if pareto else 'constraint':<11} {sampler:<7} " + ", ".join(f"{k} {v:.4f}" for k, v in mean.items()))
