"""Relaxations: from real-valued bits to the bits in force."""

import pytest
import torch

from ldp_search.core.registry import build


def realize(spec, bits, previous=None, hysteresis=0.0, progress=0.0, uniform=None):
    bits = torch.as_tensor(bits, dtype=torch.float32)
    previous = torch.as_tensor(previous if previous is not None else bits, dtype=torch.float32)
    return build("relaxation", spec).realize(bits, previous, hysteresis, progress, uniform or (lambda: torch.rand(bits.shape)))


@pytest.mark.parametrize(
    ("bits", "previous", "hysteresis", "expected"),
    [
        (4.4, 4, 0, 4),
        (4.6, 4, 0, 5),
        (4.55, 4, 0.1, 4),  # beyond k + 0.5, within the hysteresis
        (4.65, 4, 0.1, 5),
        (4.45, 5, 0.1, 5),  # and on the way back
        (4.35, 5, 0.1, 4),
        (7.2, 4, 0.1, 7),
        (5.0, 6, 0.1, 5),
    ],
)
def test_rounding_with_hysteresis(bits, previous, hysteresis, expected):
    assert float(realize("round", bits, previous, hysteresis)) == expected


def test_hysteresis_stops_flips():
    path = 4.5 + 0.08 * torch.sin(torch.arange(100.0) * 2)
    flips = []
    for hysteresis in (0.0, 0.1):
        force, count = torch.tensor(4.0), 0
        for bits in path:
            new = realize("round", bits, force, hysteresis)
            count, force = count + int(new != force), new
        flips.append(count)
    assert flips[0] > 20 and flips[1] == 0


def test_interpolation_keeps_the_fraction():
    bits = torch.tensor([3.0, 4.25, 8.0])
    assert torch.equal(realize("interpolate", bits, hysteresis=0.1), bits)
    assert realize("interpolate", bits).data_ptr() != bits.data_ptr()


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_sampling_frequencies(fraction, progress):
    drawn = realize({"name": "sample", "final_temperature": 0.25}, torch.full((20_000,), 4 + fraction), progress=progress)
    temperature = 0.25**progress
    odds = (fraction / (1 - fraction)) ** (1 / temperature)
    assert set(drawn.tolist()) <= {4.0, 5.0}
    assert float((drawn == 5).float().mean()) == pytest.approx(odds / (1 + odds), abs=0.015 if fraction else 0)


def test_integers_stay_when_sampled():
    bits = torch.arange(2.0, 17.0)
    assert torch.equal(realize("sample", bits, uniform=lambda: torch.zeros(15)), bits)


@pytest.mark.parametrize(
    ("granularity", "tie"), [("layer", True), ("layer", False), ("block", True), ("network", False), ("network", True)]
)
def test_bits_that_are_shared_are_drawn_together(square, granularity, tie):
    ldp = square(4, policy="bit_gradient", granularity=granularity, tie=tie, relaxation="sample", target_cost=0.5, bits=(3, 8))
    seen = set()
    for step in range(40):
        ldp.step((step + 1) / 100)
        bits = ldp.parameters()["bits"].detach()
        assert not tie or torch.equal(bits[:, 0], bits[:, 1])
        assert granularity != "network" or (bits == bits[0]).all()
        seen.add(tuple(bits.flatten().tolist()))
    assert len(seen) > 1


@pytest.mark.parametrize("options", [{"temperature": 0.1, "final_temperature": 0.5}, {"final_temperature": 0}])
def test_temperatures_in_disorder(options):
    with pytest.raises(ValueError, match="0 < final_temperature <= temperature; received"):
        build("relaxation", {"name": "sample"} | options)
