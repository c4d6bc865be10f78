"""The project's own components keep the contracts that `ldp_search.testing` gives to users."""

import pytest
import torch

from ldp_search.core.bits import cost
from ldp_search.core.bits.latency import Latency
from ldp_search.core.bits.limits import InferenceLimit, LatencyLimit, SizeLimit
from ldp_search.core.registry import build, names
from ldp_search.testing import BackendContract, CostContract, GradQuantizerContract, PolicyContract, QuantizerContract

MACS = torch.tensor([1000.0, 5000.0], dtype=torch.float64)


def of_each(kind: str, contract: type, **specs) -> dict[str, type]:
    """{class name: the contract's tests of a component}, of every registered one; specs: options that one cannot go without."""

    def test_class(name: str) -> type:
        made = {"make": lambda self: build(kind, specs.get(name, name))}
        return type(f"Test_{kind}_{name}", (contract,), made)

    return {f"Test_{kind}_{name}": test_class(name) for name in names(kind) if specs.get(name, name)}


globals().update(of_each("policy", PolicyContract, replay=None, progressive={"name": "progressive", "window": 2}))
globals().update(of_each("quantizer", QuantizerContract))
globals().update(of_each("grad_quantizer", GradQuantizerContract))
globals().update(of_each("backend", BackendContract, int8={"name": "int8", "choose": "always", "keep": "input"}))


class TestTrainingBitops(CostContract):
    def cost(self, bits):
        return cost.training_bitops(MACS, bits)

    def gradient(self, bits):
        return cost.training_bitops_gradient(MACS, bits)


class TestTrainingBitopsOfTwoGradients(TestTrainingBitops):
    def bits(self):
        return torch.tensor([[3.0, 4.0, 8.0, 6.0], [8.0, 8.0, 5.0, 8.0]], dtype=torch.float64)


class TestInferenceBitops(CostContract):
    def cost(self, bits):
        return cost.inference_bitops(MACS, bits)


class TestWeightMib(CostContract):
    def cost(self, bits):
        return cost.weight_mib(MACS, bits)


class TestBudgetOfInference(CostContract):
    def cost(self, bits):
        return InferenceLimit("target_inference", 0.5, "of the operations", MACS / MACS.sum()).layer_costs(bits)


class TestBudgetOfSize(CostContract):
    def cost(self, bits):
        return SizeLimit("target_size", 0.5, "MiB", MACS).layer_costs(bits)


class TestBudgetOfLatency(CostContract):
    """With a table in which more bits take longer, as they need not."""

    def cost(self, bits):
        times = torch.tensor([[1.0, 2.0], [3.0, 9.0]], dtype=torch.float64)
        latency = Latency(torch.tensor([7.0, 32.0], dtype=torch.float64), times, times)
        return LatencyLimit("target_latency", 0.5, "of the latency", latency, 11.0).layer_costs(bits)


def failures(contract: type) -> list[str]:
    """Names of the tests that a class fails."""
    made, failed = contract(), []
    for name in dir(made):
        if name.startswith("test_"):
            try:
                getattr(made, name)()
            except Exception:
                failed.append(name)
    return failed


def test_a_policy_that_forgets_its_memory_is_found():
    class Forgetful(PolicyContract):
        def make(self):
            policy = build("policy", {"name": "progressive", "window": 2})
            policy.state_dict = dict
            return policy

        def test_plain_data_describes_it(self):
            """Of no interest here."""

    with pytest.raises((AssertionError, KeyError)):
        Forgetful().test_a_training_saved_halfway_goes_on_with_the_same_bits()


def test_a_biased_gradient_quantizer_is_found():
    class Biased(GradQuantizerContract):
        def make(self):
            quantizer = build("grad_quantizer", "stochastic")
            return type("Shifted", (type(quantizer),), {"__call__": lambda self, g, bits: quantizer(g, bits) * 1.02})()

    assert "test_rounding_is_unbiased_and_within_a_step" in failures(Biased)


def test_a_quantizer_of_too_many_levels_is_found():
    class Fine(QuantizerContract):
        def make(self):
            quantizer = build("quantizer", "minmax")
            grid = lambda self, stats, bits, live, clip=None: quantizer.grid(stats, bits + 1, live, clip)  # noqa: E731
            return type("Fine", (type(quantizer),), {"grid": grid})()

    assert "test_values_lie_on_as_many_levels_as_the_bits_say" in failures(Fine)


def test_a_cost_that_falls_with_more_bits_is_found():
    class Wrong(CostContract):
        def cost(self, bits):
            return 1 / bits.prod(1)

    assert failures(Wrong) == ["test_no_bit_makes_it_cheaper_and_the_same_bits_cost_the_same"]
