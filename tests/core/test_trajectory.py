"""The trajectory: a record in bounded memory, and its files."""

import json

import pytest
import torch

from ldp_search.core import Allocation, Bits, Trajectory


def rows(n, layers=2):
    return [torch.full((layers, 3), 2 + i % 7) for i in range(n)]


def filled(n, capacity=None, layers=("0", "1")):
    trajectory = Trajectory(list(layers), capacity)
    for i, row in enumerate(rows(n, len(layers))):
        trajectory.append((i + 1) / n, row)
    return trajectory


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 16, 17, 100, 1000])
def test_memory_is_bounded_and_the_ends_are_exact(n):
    trajectory, expected = filled(n, capacity=8), torch.stack(rows(n)).to(torch.uint8)
    progress, bits = trajectory.progress, trajectory.bits
    assert len(trajectory) == len(progress) == len(bits) <= 9
    assert progress[0] == 1 / n and progress[-1] == 1.0 and progress == sorted(set(progress))
    steps = [round(p * n) - 1 for p in progress]
    assert torch.equal(bits, expected[steps]), "every record is that of its own step"
    gaps = {b - a for a, b in zip(steps[:-1], steps[1:-1], strict=False)}
    assert len(gaps) <= 1, "evenly spread"


def test_empty():
    trajectory = Trajectory(["a"])
    assert len(trajectory) == 0 and trajectory.bits.shape == (0, 1, 3) and trajectory.columns()["progress"] == []


def test_fractions_are_rounded():
    trajectory = Trajectory(["a"])
    trajectory.append(1.0, torch.tensor([[3.4, 3.6, 16.0]]))
    assert trajectory.bits.tolist() == [[[3, 4, 16]]]


@pytest.mark.parametrize("n", [5, 8, 21])
def test_a_state_goes_on(n):
    whole, part = filled(n + 20, 8), Trajectory(["0", "1"], 8)
    state = None
    for i, row in enumerate(rows(n + 20)):
        if i == n:
            state = part.state_dict()
            part.append(0.999, row)  # the saved state must not see this
            part = Trajectory(["0", "1"])
            part.load_state_dict(state)
        part.append((i + 1) / (n + 20), row)
    assert part.columns() == whole.columns() and part.capacity == 8


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("layers", [("0", "10"), ("layer1.0.conv", "fc"), ("",)])
def test_files(tmp_path, suffix, layers):
    trajectory = filled(30, layers=layers)
    trajectory.save(tmp_path / f"t.{suffix}")
    loaded = Trajectory.load(tmp_path / f"t.{suffix}")
    assert loaded.columns() == trajectory.columns() and loaded.layers == list(layers)
    frame = trajectory.to_frame()
    assert list(frame.columns) == ["progress", "layer", "weight_bits", "input_bits", "grad_bits"] and len(frame) == 30 * len(
        layers
    )


def test_errors_of_files(tmp_path):
    with pytest.raises(ValueError, match="saved as .parquet or .csv; received 't.txt'"):
        filled(3).save(tmp_path / "t.txt")
    with pytest.raises(ValueError, match="is a .parquet or .csv file; received 't.txt'"):
        Trajectory.load(tmp_path / "t.txt")
    with pytest.raises(FileNotFoundError, match="give the schedule.parquet of a run"):
        Trajectory.load(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("progress,layer\n1,a\n")
    with pytest.raises(ValueError, match=r"lacks \['grad_bits', 'input_bits', 'weight_bits'\]"):
        Trajectory.load(tmp_path / "t.csv")


def test_allocations(tmp_path):
    allocation = Allocation(
        {"a": Bits(3, 4, 8), "b": Bits(8, 8, 8)}, {"a": {"kind": "Linear", "macs": 5}}, {"relative_cost": 0.5}
    )
    path = tmp_path / "allocation.json"
    allocation.save(path)
    assert json.loads(path.read_text())["layers"]["a"] == {"weight": 3, "input": 4, "grad": 8, "kind": "Linear", "macs": 5}
    loaded = Allocation.load(path)
    assert loaded.layers == allocation.layers and loaded.summary == allocation.summary and loaded.details["a"]["macs"] == 5
    for text in ("", "[]", '{"layers": {"a": {"weight": 3}}}', '{"layers": [1]}', '{"layers": {"a": 3}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="An allocation is JSON with layers -> weight, input, grad"):
            Allocation.load(path)
    with pytest.raises(FileNotFoundError, match="No allocation at"):
        Allocation.load(tmp_path / "none.json")
