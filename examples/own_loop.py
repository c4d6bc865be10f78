"""Learned precision in a loop of one's own: a small CNN on scikit-learn's handwritten digits. Offline, about ten seconds.

python examples/own_loop.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ldp_search

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
train, test = TensorDataset(images[:1400], labels[:1400]), (images[1400:], labels[1400:])
loader = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)

model = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(64 * 4, 10)),
)
ldp_search.apply(model, example_inputs=images[:1], target_cost=0.4)
ldp = ldp_search.controller(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

epochs, step = 10, 0
for _ in range(epochs):
    model.train()
    for x, y in loader:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        step += 1
        ldp.step(step / (epochs * len(loader)), optimizer=optimizer)
        optimizer.step()
        optimizer.zero_grad()

ldp.finalize(loader)
model.eval()
with torch.no_grad():
    accuracy = (model(test[0]).argmax(1) == test[1]).float().mean()
print(ldp.summary())
print(f"accuracy {accuracy:.1%} at {ldp.cost().mean_relative:.3f} of the training cost of 8 bits everywhere")
