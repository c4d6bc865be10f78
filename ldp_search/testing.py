"""Contract tests for components of one's own: inherit one and say how yours is made. pytest, or unittest, runs them.

    class TestLateRise(PolicyContract):
        def make(self):
            return LateRise(at=0.7)

What every member of a kind must keep is tested: shapes and ranges, what is saved and resumed, unbiased rounding, gradients
equal to the reference's, and that a small network trains with it. What is particular to yours is yours to test.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from .api import apply, controller
from .core.backends import Backend
from .core.bits.policies import Policy, Problem, Signals
from .core.quantize.fake_quantize import reference
from .core.quantize.gradient_quantizers import GradQuantizer
from .core.quantize.grid import Grid, measure
from .core.quantize.quantizers import Quantizer
from .core.registry import build, describe

__all__ = ["BackendContract", "CostContract", "GradQuantizerContract", "PolicyContract", "QuantizerContract"]

SAMPLES, WIDTH = 8, 6


def train(steps: int = 4, seed: int = 0, **space: Any) -> tuple[list[float], Tensor]:
    """(losses, dL/dbits of the last step) of a convolution and a linear layer, quantized as `space` says."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * WIDTH * WIDTH, 3))
    x, labels = torch.randn(SAMPLES, 2, WIDTH, WIDTH), torch.arange(SAMPLES) % 3
    apply(model, {}, example_inputs=x, **space)
    ldp, optimizer = controller(model), torch.optim.SGD(model.parameters(), 0.05)
    losses, gradient = [], torch.zeros(0)
    for step in range(steps):
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        grad = ldp.parameters()["bits"].grad
        gradient = gradient if grad is None else grad.clone()
        ldp.step((step + 1) / steps, loss=loss.detach(), optimizer=optimizer)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, gradient


class _Component(ABC):
    """What all kinds of components keep. kind: as `register` calls it. field: of the search space."""

    kind: str
    fields: tuple[str, ...]

    @abstractmethod
    def make(self) -> Any:
        """A fresh object of the class that is tested."""

    def test_plain_data_describes_it(self) -> None:
        component = self.make()
        again = build(self.kind, describe(component))
        assert type(again) is type(component), f"{describe(component)} names {type(again)}"
        assert describe(again) == describe(component), f"made from {describe(component)}, it is {describe(again)}"

    def test_a_network_trains_with_it(self) -> None:
        losses, _ = train(**{"policy": "static", "target_cost": 0.8} | {field: self.make() for field in self.fields})
        assert all(map(torch.isfinite, torch.tensor(losses))), f"losses {losses}"


class PolicyContract(_Component):
    """Tests of a policy. steps: length of the training that it is shown."""

    kind, fields, steps = "policy", ("policy",), 20

    @abstractmethod
    def make(self) -> Policy: ...

    def problem(self) -> Problem:
        """Three layers of different cost, weights and inputs of 3 to 8 bits, gradients of 8; override it for others."""
        low, high = torch.tensor([[3.0, 3.0, 8.0]] * 3), torch.full((3, 3), 8.0)
        group = torch.tensor([[0, 1, 0], [2, 3, 0], [4, 5, 0]])
        macs = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        return Problem(["first", "second", "third"], low, high, macs, group, 6, target_cost=0.6)

    def signals(self, problem: Problem, step: int, bits: Tensor) -> Signals:
        """Of step `step`: a falling loss, gradients and damages that differ between the layers, half of the cost spent."""
        progress = (step + 1) / self.steps
        size = torch.arange(1.0, len(problem.layers) + 1).view(-1, 1)
        grads = -size * torch.exp2(-bits) * torch.rand(bits.shape)
        curves = (size * torch.ones(bits.shape[1])).double()[..., None] * torch.pow(4.0, -problem.levels.double())
        spent = torch.tensor(0.5 * progress, dtype=torch.float64)
        return Signals(progress, torch.round(bits), grads, torch.tensor(2.0 - progress), spent, lambda: curves)

    def run(self, policy: Policy, bits: Tensor, first: int, last: int) -> list[Tensor]:
        """Bits of the steps `first` to `last`; random numbers depend on the step alone."""
        out = []
        for step in range(first, last):
            torch.manual_seed(step)
            out.append(bits := policy.step(self.signals(policy.problem, step, bits)))
        return out

    def test_bits_are_real_numbers_within_their_ranges(self) -> None:
        policy, problem = self.make(), self.problem()
        start = policy.bind(problem)
        for bits in [start, *self.run(policy, start, 0, self.steps)]:
            assert bits.shape == problem.low.shape, f"{tuple(bits.shape)} instead of {tuple(problem.low.shape)}"
            assert bits.is_floating_point() and bits.isfinite().all(), f"real-valued bits, not {bits}"
            assert (bits >= problem.low).all() and (bits <= problem.high).all(), f"within the ranges, not {bits}"

    def test_a_training_saved_halfway_goes_on_with_the_same_bits(self) -> None:
        whole, first, second = self.make(), self.make(), self.make()
        half = self.steps // 2
        expected = self.run(whole, whole.bind(self.problem()), 0, self.steps)
        found = self.run(first, first.bind(self.problem()), 0, half)
        saved = io.BytesIO()
        torch.save(first.state_dict(), saved)
        saved.seek(0)
        second.bind(self.problem())
        second.load_state_dict(torch.load(saved, weights_only=True))
        found += self.run(second, found[-1], half, self.steps)
        for step, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert torch.equal(a, b), f"step {step}, of {half} before saving: {a} instead of {b}"

    def test_two_of_it_share_nothing(self) -> None:
        one, other = self.make(), self.make()
        one.bind(self.problem())
        before = self.run(one, one.bind(self.problem()), 0, 3)
        self.run(other, other.bind(self.problem()), 0, self.steps)
        after = self.run(one, one.bind(self.problem()), 0, 3)
        assert all(map(torch.equal, before, after)), "another object of the class has changed what this one does"


class QuantizerContract(_Component):
    """Tests of a quantizer of weights and inputs. bits: numbers of bits that it is asked for."""

    kind, fields, bits = "quantizer", ("weight_quantizer", "input_quantizer"), (2, 3, 4, 8)

    @abstractmethod
    def make(self) -> Quantizer: ...

    def data(self) -> dict[str, Tensor]:
        """(channels, values) of both signs, never negative, all equal, and zero."""
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
        return {"normal": x, "rectified": x.relu(), "constant": torch.full((4, 64), 0.7), "zeros": torch.zeros(4, 64)}

    def grid(self, x: Tensor, bits: Tensor, axes: tuple[int, ...] = (), live: bool = True) -> Grid:
        quantizer = self.make()
        return quantizer.grid(measure(x, axes, quantizer.needs_spread), bits, live)

    def test_values_lie_on_as_many_levels_as_the_bits_say(self) -> None:
        for what, x in self.data().items():
            for bits in self.bits:
                for axes in ((), (0,)):
                    q = reference(x, self.grid(x, torch.tensor(float(bits)), axes))
                    assert q.isfinite().all(), f"{what} at {bits} bits: {q}"
                    rows = [q.flatten()] if not axes else list(q)
                    assert max(len(row.unique()) for row in rows) <= 2**bits, f"{what} at {bits} bits, axes {axes}"

    def test_what_is_not_clipped_moves_by_half_a_step_at_most(self) -> None:
        for what, x in self.data().items():
            for bits in self.bits:
                grid = self.grid(x, torch.tensor(float(bits)))
                inside = x if grid.low is None or grid.high is None else torch.minimum(torch.maximum(x, grid.low), grid.high)
                error = (reference(x, grid) - inside).abs().max()
                assert error <= 0.501 * grid.scale + 1e-6, f"{what} at {bits} bits: {error} at a step of {grid.scale}"

    def test_more_bits_round_more_finely(self) -> None:
        x = self.data()["normal"]
        errors = [(reference(x, self.grid(x, torch.tensor(float(bits)))) - x).square().mean() for bits in (3, 5, 8)]
        assert errors[0] > errors[1] > errors[2], f"squared errors at 3, 5 and 8 bits: {errors}"

    def test_a_range_known_from_before_clips_what_exceeds_it(self) -> None:
        x = self.data()["normal"]
        grid = self.grid(x, torch.tensor(4.0), live=False)
        q = reference(100 * x, grid)
        assert q.abs().max() <= 2 * x.abs().max(), f"{q.abs().max()} from statistics with a maximum of {x.abs().max()}"

    def test_the_scale_has_a_gradient_in_the_bits(self) -> None:
        bits = torch.tensor(4.0, requires_grad=True)
        (slope,) = torch.autograd.grad(self.grid(self.data()["normal"], bits).scale.sum(), bits)
        assert slope.isfinite() and slope < 0, f"d scale / d bits must be negative; it is {slope}"


class GradQuantizerContract(_Component):
    """Tests of a gradient quantizer. draws: how often a gradient is rounded for its mean."""

    kind, fields, draws = "grad_quantizer", ("grad_quantizer",), 400

    @abstractmethod
    def make(self) -> GradQuantizer: ...

    def gradient(self) -> Tensor:
        """(samples, values), heavy-tailed, with zeros."""
        g = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) ** 3
        return g.where(g.abs() > 0.1, 0.0)

    def test_rounding_is_unbiased_and_within_a_step(self) -> None:
        torch.manual_seed(0)
        g, quantizer, bits = self.gradient(), self.make(), torch.tensor(4.0)
        error = torch.stack([quantizer(g, bits) for _ in range(self.draws)]) - g
        step = quantizer.grid(g, bits).scale
        assert (error.abs() <= 1.001 * step).all(), "each element goes to one of its two neighbours"
        mean = (error.mean(0) / step).abs().max()
        assert mean < 5.5 * 0.5 / self.draws**0.5, f"the mean of {self.draws} roundings is off by {mean} steps"

    def test_shape_and_type_are_kept(self) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            for shape in ((5,), (3, 5), (2, 4, 3, 3)):
                g = torch.randn(shape).to(dtype)
                q = self.make()(g, torch.tensor(3.0))
                assert q.shape == g.shape and q.dtype == dtype and q.data_ptr() != g.data_ptr(), f"{dtype} {shape}: {q}"

    def test_a_gradient_of_zeros_stays_one(self) -> None:
        assert not self.make()(torch.zeros(3, 4), torch.tensor(4.0)).any()

    def test_codes_give_the_values_of_the_grid(self) -> None:
        g, quantizer, bits = self.gradient(), self.make(), torch.tensor(8.0)
        for part in (quantizer, *quantizer.parts(channel_dim=-1)):
            codes, step = part.codes(g, bits), part.grid(g, bits).scale
            assert codes.values.dtype == torch.int8, f"codes of at most 8 bits, not {codes.values.dtype}"
            error = (codes.to_float() - g).abs()
            assert (error <= 1.001 * step).all(), f"off by up to {(error / step).max()} steps"


class BackendContract(_Component):
    """Tests of a backend against the formulas. tolerance: of losses and gradients, relative to the largest."""

    kind, fields, tolerance = "backend", ("backend",), 1e-4

    @abstractmethod
    def make(self) -> Backend: ...

    def compare(self, **space: Any) -> None:
        losses, gradient = train(1, backend=self.make(), **space)
        expected, expected_gradient = train(1, backend="reference", **space)
        torch.testing.assert_close(losses, expected, rtol=self.tolerance, atol=self.tolerance)
        largest = float(expected_gradient.abs().max()) if expected_gradient.numel() else 0.0
        torch.testing.assert_close(gradient, expected_gradient, rtol=self.tolerance, atol=self.tolerance * largest)

    def test_loss_and_gradients_of_the_bits_are_those_of_the_formulas(self) -> None:
        self.compare(policy="bit_gradient", cost_weight=0.0, bits=(3, 8), grad_bits=32)

    def test_a_training_in_full_gradients_goes_as_by_the_formulas(self) -> None:
        losses, _ = train(backend=self.make(), policy="static", bits=6, grad_bits=32)
        expected, _ = train(backend="reference", policy="static", bits=6, grad_bits=32)
        torch.testing.assert_close(losses, expected, rtol=30 * self.tolerance, atol=30 * self.tolerance)

    def test_what_it_remembers_is_saved_and_reported(self) -> None:
        one, other = self.make(), self.make()
        state = one.state_dict()
        if state:
            other.load_state_dict(state)
        assert other.state_dict() == state, f"{other.state_dict()} instead of {state}"
        assert isinstance(one.report(["layer"]), str)
        if (mine := one.proposals()) is not None:
            one.agree([mine])


class CostContract(ABC):
    """Tests of a cost: a function of the bits alone, once the layers are known."""

    @abstractmethod
    def cost(self, bits: Tensor) -> Tensor:
        """(layers,) of bits (layers, kinds)."""

    def gradient(self, bits: Tensor) -> Tensor | None:
        """d cost.sum() / d bits by a formula of its own; None: there is none."""
        return None

    def bits(self) -> Tensor:
        """(layers, kinds) for which the cost is known."""
        return torch.tensor([[3.0, 4.0, 8.0], [8.0, 8.0, 8.0]], dtype=torch.float64)

    def test_a_cost_for_each_layer(self) -> None:
        bits = self.bits()
        found = self.cost(bits)
        assert found.shape == bits.shape[:1], f"{tuple(found.shape)} instead of ({len(bits)},)"
        assert found.isfinite().all() and (found >= 0).all(), f"costs {found}"

    def test_no_bit_makes_it_cheaper_and_the_same_bits_cost_the_same(self) -> None:
        bits = self.bits()
        before = self.cost(bits)
        for kind in range(bits.shape[1]):
            fewer = bits.clone()
            fewer[:, kind] = (fewer[:, kind] - 1).clamp(min=2)
            assert (self.cost(fewer) <= before).all(), f"{self.cost(fewer)} at {fewer} is above {before} at {bits}"
        assert torch.equal(self.cost(bits), before), "it remembers something between two calls"

    def test_its_gradient_is_that_of_autograd(self) -> None:
        bits = self.bits().requires_grad_()
        if (expected := self.gradient(bits.detach())) is None:
            return
        (found,) = torch.autograd.grad(self.cost(bits).sum(), bits)
        torch.testing.assert_close(found, expected)
