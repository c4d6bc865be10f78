"""The damage of rounding, in units of the loss: what each coordinate's bits cost the training, at every number of bits.

Rounding the weights or the input of a layer makes an error e, which costs e'He / 2 of the loss; with the empirical Fisher
matrix for the Hessian H, over the M terms that the loss is the mean of (samples, or tokens):

    D_w(b) = M/2 sum over output channels (g . e)^2        D_x(b) = M/2 sum over samples (G_n . e_n)^2

g, G_n: gradients of the mean loss. Rounding a gradient stochastically makes no error on average, but adds a covariance C to the
weights' gradients, and noise costs SGD a loss of (lr / 4) tr C whatever the Hessian. From a layer's own rounding:

    in dL/dw:  C = V2                    in dL/dx:  tr C_k = s_k (V1 / |dL/dx|^2) tr Sigma_k  in all k trained before it

V2, V1: variance added to the layer's dL/dw and dL/dx. k: the weight of an earlier layer, an embedding, a norm or a bias
(`controller.other_gradients`); Sigma_k: covariance of its gradient from step to step; s_k: share of that gradient's square that
has come through the layer's dL/dx, and not round it (`controller.gradient_paths`). What a product of two tensors makes of
variances is the same product of squares, which is how both are measured.

All are measured at the bits in force and carried to the others by the error, or the variance, that a sample of the very tensor
shows at each number of bits: so no law like 4^-b is assumed, and clipping is in it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WEIGHT, INPUT, INPUT_GRADIENT, WEIGHT_GRADIENT = range(4)
X_SQUARE, W_SQUARE, SKETCH_SQUARE, TERMS, PASSES = range(5)  # columns of `Sensed.scalars`
SKETCH = 256  # elements of a weight's gradient that tell its mean from its spread
DEFAULT_RATE = 1.0
"""Effective learning rate where no optimizer tells: that of SGD at 0.1 with momentum 0.9."""


class Sensed:
    """What one step's backward passes tell of every site; accumulated by `backends.sensing`, averaged over ranks.

    curves: (sites, 4, levels): sum (g . e)^2 of the weight, sum (G_n . e_n)^2 of the input, V1, V2.
    scalars: (sites, 5): |dL/dx|^2, |dL/dw|^2 and that of its sketch, each summed over backward passes; terms of the loss that
    the site's output tells of; backward passes.
    sketch: (sites, SKETCH) elements of dL/dw, of all passes together.
    leaves: for each site three, whose gradients its rows of these are. places: (sites,) in the order of the forward, from 1 on;
    0: not met.
    """

    def __init__(self, sites: int, levels: Tensor):
        made: Any = {"dtype": torch.float32, "device": levels.device}
        self.levels = levels
        self.places = torch.zeros(sites, **made)
        self.curves = torch.zeros(sites, 4, len(levels), **made)
        self.scalars, self.sketch = torch.zeros(sites, 5, **made), torch.zeros(sites, SKETCH, **made)
        self._bind()

    def _bind(self) -> None:
        rows = zip(*(tensor.unbind() for tensor in self.tensors()), strict=True)
        self.leaves = [tuple(map(_leaf_of, row)) for row in rows]

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "leaves"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = dict(state)
        self._bind()  # a copy's leaves are those of its own rows

    @torch.no_grad()
    def met(self, site: int) -> None:
        """Note that the forward has come to a site; with tensors alone, as compiled code does it too."""
        place = self.places[site]
        place.copy_(torch.where(place > 0, place, self.places.amax() + 1))

    @property
    def order(self) -> list[int]:
        """The sites as the forward met them, each once. Waits for the device."""
        places = self.places.tolist()
        return sorted((site for site, place in enumerate(places) if place), key=places.__getitem__)

    @property
    def terms(self) -> Tensor:
        """(1,) M: the last site's output has a gradient at as many places as the loss has terms. In this process."""
        reached = self.places * (self.scalars[:, PASSES] > 0)
        last = reached.argmax(0, keepdim=True)
        return torch.where(reached[last] > 0, self.scalars[last, TERMS], 1.0).clamp_min(1.0)

    def tensors(self) -> list[Tensor]:
        return [self.curves, self.scalars, self.sketch]

    def to(self, device) -> None:
        self.levels, self.places = self.levels.to(device), self.places.to(device)
        self.curves, self.scalars, self.sketch = (tensor.to(device) for tensor in self.tensors())
        self._bind()

    def clear(self) -> None:
        for tensor in (self.places, *self.tensors()):
            tensor.zero_()
        for leaves, *rows in zip(self.leaves, *(tensor.unbind() for tensor in self.tensors()), strict=True):
            for leaf, row in zip(leaves, rows, strict=True):
                if leaf.grad is None or leaf.grad.data_ptr() != row.data_ptr():
                    leaf.grad = row  # a backward with `create_graph=True` adds out of place


def sketch_of(gradient: Tensor) -> Tensor:
    """At most SKETCH of its elements, evenly spread."""
    flat = gradient.reshape(-1)
    return flat[:: max(1, flat.numel() // SKETCH)][:SKETCH]


def _leaf_of(row: Tensor) -> Tensor:
    """A leaf whose gradient accumulates in `row`; its own values are nobody's."""
    made = torch.zeros_like(row).requires_grad_()
    made.grad = row
    return made


class DamageMeter:
    """Smoothed `Sensed`, and the damages that follow from it; on the CPU, in float64.

    smoothing: share of the past that each measurement keeps. ranks: processes whose gradients are averaged.
    """

    def __init__(self, smoothing: float, ranks: int = 1):
        self.smoothing, self.ranks = smoothing, ranks
        self.state: Any = None  # {name: tensor, "mass": float} from the first measurement on

    def update(self, sensed: Sensed, terms: Tensor, others: tuple[Tensor, Tensor], share: Tensor, known: Tensor) -> None:
        """Take in one step's measurement, in one transfer from the device. A step that overflowed, or whose backward told
        nothing of any site, says nothing of what rounding costs.

        Args:
            terms: (1,) as `Sensed.terms`. others: (others, 2) and (others, SKETCH), as of `OtherGradients.measured`.
            share: (sites, sites + others) s_k of the sites' dL/dx, 0 where this step does not tell. known: where it does.
        """
        found = [tensor.to("cpu", torch.float64) for tensor in (*sensed.tensors(), terms, *others, share, known)]
        if all_finite(found) and bool(found[1][:, PASSES].any()):
            self._take_in(*found)

    def _take_in(self, curves, scalars, sketch, terms, squares, sketches, share, known) -> None:
        curves[:, :2] *= terms / 2
        gradients = torch.cat([sketch, sketches])  # of the sites' weights, then of what else is trained
        now = {
            "curves": curves, "x_gradient": scalars[:, X_SQUARE],
            "w_gradient": torch.cat([scalars[:, W_SQUARE], squares[:, 0]]),
            "sketches": torch.cat([scalars[:, SKETCH_SQUARE], squares[:, 1]]),
            "mean": gradients, "square": gradients.square().sum(1), "known": (scalars[:, PASSES] > 0).double(),
            "share": share.float(), "pairs": known.float(),
        }  # fmt: skip
        if self.state is None:
            self.state = {key: torch.zeros_like(value) for key, value in now.items()} | {"mass": 0.0}
        keep = self.smoothing
        for key, value in now.items():
            self.state[key].lerp_(value, 1 - keep)
        self.state["mass"] = self.state["mass"] * keep + 1 - keep

    @property
    def ready(self) -> bool:
        return self.state is not None

    def curves(self, rates: Tensor, columns: int) -> Tensor:
        """(sites, columns, levels) damage of each coordinate at each number of bits, in units of the loss.

        rates: (sites + others,) effective learning rates. columns: 3 where both gradients share their bits.
        """
        s = self.state
        found = s["curves"] / s["mass"]
        paths = s["share"] / s["pairs"].clamp_min(1e-30)
        earlier = paths.double() @ (rates * self._spread())
        rates = rates[: len(found)]
        share = earlier * s["mass"] / s["x_gradient"].clamp_min(1e-300)
        in_input = found[:, INPUT_GRADIENT] * share[:, None] / 4
        in_weight = found[:, WEIGHT_GRADIENT] * (rates / self.ranks)[:, None] / 4
        gradients = [in_input + in_weight] if columns == 3 else [in_input, in_weight]
        curves = torch.stack([found[:, WEIGHT], found[:, INPUT], *gradients], 1)
        if not self.known.all() and self.known.any():  # what no backward has reached is taken for a site like the others
            curves[~self.known] = curves[self.known].median(0).values
        return curves

    def _spread(self) -> Tensor:
        """(sites + others,) tr Sigma of the step's whole gradient: the variance of the sketch's elements, as a share of all.

        What share they are of is told pass by pass, since |dL/dw|^2 is known of each pass alone (and of each rank).
        """
        s, keep = self.state, self.smoothing
        square, mean = s["square"] / s["mass"], s["mean"] / s["mass"]
        all_for_one = s["w_gradient"] / s["sketches"].clamp_min(1e-300)
        own = (1 - keep) / (1 + keep) * (2 - s["mass"]) / s["mass"]  # of the variance that is left in a moving average
        if own > 1 - 1e-9:  # one measurement tells no spread: a gradient of few samples is mostly noise
            return square * all_for_one
        variance = (square - mean.square().sum(1)) / (1 - own)
        return torch.minimum(variance.clamp_min(0.0), square) * all_for_one

    @property
    def known(self) -> Tensor:
        """(sites,) mask of those that a backward pass has reached."""
        return self.state["known"] > 0

    def state_dict(self) -> dict | None:
        return None if self.state is None else {k: v.clone() if isinstance(v, Tensor) else v for k, v in self.state.items()}

    def load_state_dict(self, state: dict | None, others: int = 0) -> None:
        """others: how many are trained besides the sites; where the state knows of another number, they have no noise yet."""
        self.state = None if state is None else {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
        if self.state is not None and len(self.state["mean"]) != (sites := len(self.state["curves"])) + others:
            for key in ("w_gradient", "sketches", "mean", "square"):
                of_sites = self.state[key][:sites]
                self.state[key] = torch.cat([of_sites, of_sites.new_zeros(others, *of_sites.shape[1:])])
            for key in ("share", "pairs"):
                self.state[key] = torch.cat([self.state[key][:, :sites], self.state[key].new_zeros(sites, others)], 1)


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether there is neither an infinity nor a NaN in any of them. Waits for the device."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
