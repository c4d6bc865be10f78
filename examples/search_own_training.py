"""A search around a training function of one's own, in ten lines; start it in several terminals for several workers."""

import torch
from torch.nn import functional as F

import ldp_search

x = torch.randn(512, 16)
y = (x[:, 0] * x[:, 1] > 0).long()


def train(trial):
    torch.manual_seed(trial.seed)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    ldp = ldp_search.controller(ldp_search.apply(model, trial.space, example_inputs=x[:1]))
    optimizer = torch.optim.SGD(model.parameters(), lr=trial["lr"], momentum=0.9)
    for step in range(100):
        F.cross_entropy(model(x), y).backward()
        ldp.step((step + 1) / 100, optimizer=optimizer)
        optimizer.step()
        optimizer.zero_grad()
    return (model(x).argmax(1) == y).float().mean().item(), ldp


if __name__ == "__main__":
    best = ldp_search.tune(train, space="ldp", storage="own.journal", trials=10, metric="accuracy")
    print(f"trial {best.number}: {best.metric:.4f} at cost {best.figures['training_cost']:.3f} with {best.params}")
