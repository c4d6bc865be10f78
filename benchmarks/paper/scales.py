"""What the scale of rounded gradients makes of the expected loss, on the weights of a ResNet-20 in mid-training.

    python -m benchmarks.paper.scales checkpoint=OUTPUT/cells/NAME/checkpoint.pt data=FOLDER [size=proxy] [batches=16]

For each gradient quantizer, with one number of bits for both backward products and with one for each: the least expected loss
from rounding at each training cost, and that of 5/5/4 bits everywhere. Weights stand still while it is measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import ldp_search
from ldp_search.core.controller.forecast import _search

from .data import open_data
from .graphs import steps_of
from .networks import NETWORKS
from .recipes import recipe_of
from .rows import NEW

QUANTIZERS = {
    "one scale, minimum to maximum": "stochastic",
    "one scale, symmetric": "symmetric",
    "a sample, an output channel": "per_sample_channel",
    "a sample": "per_sample",
    "64 values": {"name": "per_block", "size": 64},
    "32 values": "per_block",
    "16 values": {"name": "per_block", "size": 16},
}
COSTS = (0.25, 0.3165, 0.386)
UNIFORM = (5.0, 5.0, 4.0, 4.0)


def measured(state: dict, recipe, data_folder: Path, quantizer, split: bool, batches: int):
    """The damages of a space with this quantizer, as `LeastDamage`."""
    data = open_data(data_folder, recipe, 0, torch.device("cpu"))
    torch.manual_seed(0)
    model = NETWORKS["resnet20"].build(data.pixels, recipe.classes)
    space = NEW | {"grad_quantizer": quantizer, "split_gradient": split, "bits": (2, 8), "grad_bits": (3, 8)}
    space |= {"policy": "learned", "target_cost": 0.3165, "sense_every": 1}
    ldp_search.apply(model, ldp_search.SearchSpace.from_dict(space), example_inputs=data.example())
    model.load_state_dict(state["model"])
    model.to(memory_format=torch.channels_last).train()
    ldp = ldp_search.controller(model)
    rate = recipe.lr_at(state["step"], data.steps)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=recipe.momentum, nesterov=recipe.nesterov)
    steps = steps_of(model, data, optimizer, False)
    data.begin_epoch(state["step"] // data.per_epoch)
    for k in range(1, batches + 1):
        steps.gradients(True)
        ldp.step(1e-6 * k, loss=steps.loss, optimizer=optimizer)  # within the policy's warm-up: the bits stay
        optimizer.zero_grad()
    return _search(ldp)


def line(search) -> list[float]:
    """The least damage at each of COSTS, and that of UNIFORM."""
    found = [search.at_budget(cost, search.problem.high)[0].damage for cost in COSTS]
    uniform = torch.tensor(UNIFORM[: search.problem.high.shape[1]]).expand(search.problem.high.shape)
    return [*found, float(search.damage(uniform).sum())]


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    torch.set_num_threads(1)
    recipe = recipe_of("resnet20", given.get("size", "proxy"))
    state = torch.load(given["checkpoint"], map_location="cpu", weights_only=False)
    print(f"step {state['step']}, learning rate {recipe.lr_at(state['step'], 3900):.4f}")
    print(f"| scale for each | bits | {' | '.join(map(str, COSTS))} | 5/5/4 |\n|---|---|" + "---|" * (len(COSTS) + 1))
    for name, quantizer in QUANTIZERS.items():
        for split in (False, True):
            numbers = line(measured(state, recipe, Path(given["data"]), quantizer, split, int(given.get("batches", 16))))
            print(f"| {name} | {'two' if split else 'one'} | " + " | ".join(f"{n:.4f}" for n in numbers) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
