"""A training in two processes that meet the same layers in orders of their own; each writes the bits after every step."""

import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import ldp_search


class Orders(nn.Module):
    """Four layers between two others, by an order that the process draws anew each time; now and then one is left out."""

    def __init__(self, rank: int):
        super().__init__()
        self.first, self.layers, self.last = (
            nn.Linear(8, 12),
            nn.ModuleList(nn.Linear(12, 12) for _ in range(4)),
            nn.Linear(12, 4),
        )
        self.draw = torch.Generator().manual_seed(rank)

    def forward(self, x):
        x = self.first(x)
        count = 3 + int(torch.rand((), generator=self.draw) < 0.7)
        for place in torch.randperm(4, generator=self.draw)[:count].tolist() if self.training else range(4):
            x = self.layers[place](x).relu()
        return self.last(x)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, steps, bits = dist.get_rank(), 60, []
    torch.manual_seed(0)
    inner = ldp_search.apply(Orders(rank), example_inputs=torch.randn(2, 8), target_cost=0.3, sense_every=1)
    ldp, model = ldp_search.controller(inner), DistributedDataParallel(inner, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, labels = torch.randn(64, 8, generator=torch.Generator().manual_seed(rank)), torch.arange(64) % 4
    for step in range(steps):
        F.cross_entropy(model(x), labels).backward()
        ldp.step((step + 1) / steps, optimizer=optimizer)
        optimizer.step(), optimizer.zero_grad()
        bits.append([list(layer) for layer in ldp.bits().values()])
    Path(folder, f"rank{rank}.json").write_text(json.dumps({"bits": bits, "damage": ldp.damage().total}))
    dist.destroy_process_group()
