"""Learned bits beside equal bits of exactly the same training cost, in minutes, without data or network.

    OMP_NUM_THREADS=1 python benchmarks/equal_bits.py [models=convnext,mixer,resnet] [bits=3] [steps=300] [seeds=0,1,2]

Small networks of timm on scikit-learn's handwritten digits, enlarged to 32x32: AdamW from 2e-3 with a cosine to 0, batches of
32. A row for full precision, for `bits` of weights, inputs and gradients everywhere (the space `uniform`, which has the
quantizers of `ldp`), and for `learned` at their cost, (bits / 8)^2 of that of 8 bits. Same weights and batches for all rows of
a seed. Training loss: mean of the last tenth; accuracy on the 355 pictures that are held out, after `finalize`.
"""

from __future__ import annotations

import statistics
import sys
import warnings

import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import nn
from torch.nn import functional as F

import ldp_search
import ldp_search.runner.models.cifar  # noqa: F401  # gives timm the CIFAR ResNets
from ldp_search.runner.data.embedded import digits

MODELS = {
    "convnext": lambda: timm.create_model("convnext_atto", num_classes=10, dims=(16, 32, 64, 96), depths=(2, 2, 4, 2)),
    "mixer": lambda: MlpMixer(num_classes=10, img_size=32, patch_size=4, embed_dim=64, num_blocks=4),
    "resnet": lambda: timm.create_model("cifar_resnet20", num_classes=10),
}
SEARCH = {"sense_every": 8}  # short trainings have few steps to measure in
Data = tuple[torch.Tensor, torch.Tensor]


def main(words: list[str]) -> None:
    options = {"models": ",".join(MODELS), "bits": "3", "steps": "300", "seeds": "0,1,2"}
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if wrong := [*(set(given) - set(options)), *(word for word in words if "=" not in word)]:
        sys.exit(f"options are {', '.join(options)}, as NAME=VALUE; received {', '.join(wrong)}")
    options |= given
    bits, steps, seeds = int(options["bits"]), int(options["steps"]), [int(seed) for seed in options["seeds"].split(",")]
    cost = (bits / 8) ** 2
    train, test = ((F.interpolate(x / 127.5 - 1, 32).expand(-1, 3, -1, -1), y) for x, y in digits())
    rows = {
        "full precision": None,
        f"{bits}/{bits}/{bits} everywhere": {"space": "uniform", "policy": {"name": "static", "bits": bits, "grad_bits": bits}},
        f"learned, target_cost={cost:g}": {"space": "ldp", "target_cost": cost},
    }
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} thread(s); seeds {options['seeds']}\n"
    )
    print("| network | bits | training loss | accuracy, % | training cost | inference cost |\n|---|---|---|---|---|---|")
    for name in options["models"].split(","):
        for row, space in rows.items():
            runs = [run(name, space, seed, steps, train, test) for seed in seeds]
            losses, accuracies = [f"{loss:.3f}" for loss, *_ in runs], [f"{accuracy:.1f}" for _, accuracy, *_ in runs]
            costs = [f"{statistics.mean(run[i] for run in runs):.3f}" if space else "" for i in (2, 3)]
            print(f"| {name} | {row} | {', '.join(losses)} | {', '.join(accuracies)} | {costs[0]} | {costs[1]} |", flush=True)


def run(name: str, space: dict | None, seed: int, steps: int, train: Data, test: Data) -> tuple[float, float, float, float]:
    """(training loss, accuracy in %, training cost and inference cost relative to 8 bits; 0 of full precision)."""
    torch.manual_seed(seed)
    model, ldp = MODELS[name]().train(), None
    if space is not None:
        ldp_search.apply(model, example_inputs=train[0][:1], **space, **SEARCH)
        ldp = ldp_search.controller(model)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw, losses = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        chosen = torch.randint(0, len(train[0]), (32,), generator=draw)
        loss = F.cross_entropy(model(train[0][chosen]), train[1][chosen])
        loss.backward()
        if ldp is not None:
            ldp.step((step + 1) / steps, optimizer=optimizer)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    spent, final = 0.0, 0.0
    if ldp is not None:
        spent, final = ldp.cost().mean_relative, ldp.cost().relative_inference
        ldp.finalize(train[0].split(32)[:20])
    return statistics.mean(losses[-max(1, steps // 10) :]), accuracy_of(model, test), spent, final


@torch.no_grad()
def accuracy_of(model: nn.Module, data: Data) -> float:
    model.eval()
    found = torch.cat([model(x).argmax(1) for x in data[0].split(128)])
    return 100 * (found == data[1]).float().mean().item()


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)
    main(sys.argv[1:])
