"""Two real processes over gloo: equal bits and weights on both, killed and resumed bitwise, one voice for errors."""

import json
import subprocess
import sys

import pytest
import tiny
from tiny import ROOT, WORDS, same_result

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]


def two(die_at, folder, *words):
    script = [*TORCHRUN, str(ROOT / "tests" / "two_processes.py"), str(die_at), *WORDS, f"output={folder}", *words]
    return subprocess.run(script, env=tiny.environment(), capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    done = two(-1, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_both_processes_hold_the_same(whole):
    zero, one = (json.loads((whole / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert zero["processes"] == one["processes"] == 2
    assert zero.pop("noise") != one.pop("noise")  # each draws its own random numbers
    assert zero == one
    assert len(set(zero["schedule"])) > 2  # the bits did move


def test_one_of_them_writes(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines if row["split"] == "eval"] == [5, 10, 15]
    assert json.loads((whole / "result.json").read_text())["processes"] == 2
    counted = lines[-1]["accuracy"] * 50  # every evaluation sample once
    assert counted == pytest.approx(round(counted), abs=1e-4)


def test_killed_and_resumed_bitwise(whole, tmp_path):
    killed = two(9, tmp_path / "run")
    assert killed.returncode != 0 and (tmp_path / "run" / "checkpoints" / "step_00000008").is_dir(), killed.stderr
    resumed = two(-1, tmp_path / "run")
    assert resumed.returncode == 0 and "going on from step 8" in resumed.stdout, resumed.stderr
    same_result(whole, tmp_path / "run")
    assert [(whole / f"rank{r}.json").read_text() for r in (0, 1)] == [(tmp_path / "run" / f"rank{r}.json").read_text() for r in (0, 1)]


def test_errors_are_said_once():
    done = subprocess.run(
        [*TORCHRUN, "-m", "ldp_search.run", "batch_size=63"], env=tiny.environment(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode != 0
    assert done.stderr.count("batch_size must divide by accumulate times the number of processes (1 x 2)") == 1
