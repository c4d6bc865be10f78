"""Training data as integer tensors on the device, cut into batches there.

The order of the samples and their augmentation follow from (seed, epoch) alone: drawn on the host before each epoch, so all
rows of a seed see the same batches on any device, and a resumed run goes on in the middle of an epoch. `batch` reads buffers
that stay in place and a position held on the device, so that a CUDA graph can hold it.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recipes import Recipe

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
AVERAGED = 1.1  # pictures averaged to 16x16 vary less
CALIBRATION = 1 << 20  # the "epoch" whose batches re-estimate statistics at the end
EVAL_BATCH = 500


def load(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Arrays of DATA/NAME.npz, as `prepare` wrote them."""
    path = Path(folder) / f"{name}.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"No prepared data at {path}. Write it: python -m benchmarks.paper.prepare data=PARQUET_FOLDER output={path}"
        )
    with np.load(path) as arrays:
        return dict(arrays)


class Batches:
    """What pictures and texts share: the order of an epoch, and the position in it."""

    metric = "accuracy"

    def __init__(self, samples: int, recipe: Recipe, seed: int, device: torch.device):
        if samples < recipe.batch:
            raise ValueError(f"An epoch needs at least one batch of {recipe.batch}; there are {samples} samples. Raise limit.")
        self.samples, self.recipe, self.seed, self.device = samples, recipe, seed, device
        self.per_epoch = samples // recipe.batch
        self.steps = recipe.steps or recipe.epochs * self.per_epoch
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.order = torch.zeros(self.per_epoch, recipe.batch, dtype=torch.long, device=device)

    def begin_epoch(self, epoch: int, position: int = 0) -> None:
        """Draw the epoch's order (and augmentation), and stand before batch `position`."""
        generator = torch.Generator().manual_seed((self.seed << 24) + epoch)
        self.order.copy_(torch.randperm(self.samples, generator=generator)[: self.order.numel()].view_as(self.order))
        self._draw(generator)
        self.position.fill_(position)

    def _draw(self, generator: torch.Generator) -> None:
        """Augmentation of the epoch."""

    def batch(self) -> tuple[Tensor, Tensor]:
        """(inputs, targets) at the position; does not move it."""
        raise NotImplementedError(f"{type(self).__name__} must define batch().")

    def calibration(self, batches: int = 50):
        """Training batches, the same for all rows of a seed: (inputs,)."""
        self.begin_epoch(CALIBRATION)
        for _ in range(min(batches, self.per_epoch)):
            yield (self.batch()[0],)
            self.position.add_(1)


class Pictures(Batches):
    """CIFAR-10: random crop of the padded picture, flip. train: (samples, pixels, pixels, 3) uint8."""

    def __init__(self, arrays: dict, recipe: Recipe, seed: int, device: torch.device, limit: int | None = None):
        images, labels = arrays["train_images"][:limit], arrays["train_labels"][:limit]
        super().__init__(len(images), recipe, seed, device)
        self.pixels, pad = images.shape[1], recipe.pad
        widened = np.empty((len(images), self.pixels + 2 * pad, self.pixels + 2 * pad, 3), np.uint8)
        widened[:] = np.round(np.array(MEAN) * 255)  # the mean, which is 0 to the network
        widened[:, pad : pad + self.pixels, pad : pad + self.pixels] = images
        self.images, self.labels = (torch.from_numpy(a).to(device) for a in (widened, labels.astype(np.int64)))
        self.test = tuple(
            torch.from_numpy(a).to(device) for a in (arrays["test_images"], arrays["test_labels"].astype(np.int64))
        )
        self.mean = torch.tensor(MEAN, device=device) * 255
        self.scale = (AVERAGED if self.pixels == 16 else 1.0) / (torch.tensor(STD, device=device) * 255)
        self.line = torch.arange(self.pixels, device=device)
        self.moves = torch.zeros(*self.order.shape, 3, dtype=torch.long, device=device)  # down, right, flip

    def _draw(self, generator):
        pad = self.recipe.pad
        shifts = torch.randint(2 * pad + 1, (*self.order.shape, 2), generator=generator)
        flips = torch.randint(2, (*self.order.shape, 1), generator=generator)
        self.moves.copy_(torch.cat([shifts, flips], -1))

    def _normalized(self, images: Tensor) -> Tensor:
        """(n, h, w, 3) uint8 -> (n, 3, h, w) fp32 in channels_last."""
        return ((images.float() - self.mean) * self.scale).permute(0, 3, 1, 2)

    def batch(self):
        chosen = self.order.index_select(0, self.position)[0]
        down, right, flip = self.moves.index_select(0, self.position)[0].unbind(-1)
        across = torch.where(flip[:, None] == 1, self.line.flip(0), self.line) + right[:, None]
        images = self.images[chosen[:, None, None], (down[:, None] + self.line)[:, :, None], across[:, None, :]]
        return self._normalized(images), self.labels[chosen]

    @staticmethod
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def example(self) -> Tensor:
        """Inputs of two samples, on the host."""
        return torch.zeros(2, 3, self.pixels, self.pixels)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """accuracy in %, and loss, of the test pictures."""
        images, labels = self.test
        right, loss = torch.zeros((), device=self.device), torch.zeros((), dtype=torch.float64, device=self.device)
        for start in range(0, len(images), EVAL_BATCH):
            x, y = (t[start : start + EVAL_BATCH] for t in (images, labels))
            outputs = model(self._normalized(x))
            right += (outputs.argmax(1) == y).sum()
            loss += F.cross_entropy(outputs, y, reduction="sum").double()
        return {"accuracy": 100 * float(right) / len(images), "test_loss": float(loss) / len(images)}


class Texts(Batches):
    """Token streams cut into sequences of `CONTEXT` that are predicted one token ahead."""

    CONTEXT = 128
    metric = "perplexity"

    def __init__(self, arrays: dict, recipe: Recipe, seed: int, device: torch.device, limit: int | None = None):
        train, test = (self._cut(arrays[name], device) for name in ("train_tokens", "test_tokens"))
        super().__init__(len(train[:limit]), recipe, seed, device)
        self.train, self.test, self.pixels = train[:limit], test, 0

    @classmethod
    def _cut(cls, tokens: np.ndarray, device: torch.device) -> Tensor:
        """(sequences, CONTEXT + 1) int32; neighbours share one token, so that each is predicted once."""
        count = (len(tokens) - 1) // cls.CONTEXT
        stream = torch.from_numpy(tokens[: count * cls.CONTEXT + 1].astype(np.int32))
        return stream.unfold(0, cls.CONTEXT + 1, cls.CONTEXT).contiguous().to(device)

    def batch(self):
        rows = self.train[self.order.index_select(0, self.position)[0]].long()
        return rows[:, :-1], rows[:, 1:]

    @staticmethod
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def example(self) -> Tensor:
        """Inputs of two samples, on the host."""
        return torch.zeros(2, self.CONTEXT, dtype=torch.long)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """perplexity and loss a token of the test text."""
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for rows in self.test.split(32):
            rows = rows.long()
            loss += self.loss(model(rows[:, :-1]), rows[:, 1:]).double() * len(rows)
        mean = float(loss) / len(self.test)
        return {"perplexity": math.exp(min(mean, 50.0)), "test_loss": mean}


def open_data(folder: Path, recipe: Recipe, seed: int, device: torch.device, limit: int | None = None) -> Pictures | Texts:
    """The recipe's data on `device`, at most `limit` training samples of it."""
    arrays = load(folder, recipe.data)
    kind = Texts if "train_tokens" in arrays else Pictures
    return kind(arrays, recipe, seed, device, limit)
