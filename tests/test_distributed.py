"""Two real processes over gloo: equal bits and weights on both, killed and resumed bitwise; errors said once."""

import json
from types import SimpleNamespace

import pytest
from tiny import ROOT, WORDS, same_result, torchrun

from ldp_search.config import resolve
from ldp_search.run import main
from ldp_search.runner.batches import check_sizes
from ldp_search.runner.overlay import ConfigError


def two(die_at, folder, *words):
    return torchrun(str(ROOT / "tests" / "two_processes.py"), str(die_at), *WORDS, f"output={folder}", *words)


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
    for name in ("rank0.json", "rank1.json"):
        assert (whole / name).read_text() == (tmp_path / "run" / name).read_text()


@pytest.mark.parametrize(("rank", "times"), [("0", 1), ("1", 0)])
def test_errors_are_said_once(rank, times, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    assert main(["lr=abc"]) == 2
    assert capsys.readouterr().err.count("lr must be a number") == times


def test_batches_are_cut_among_the_processes():
    config = resolve(["batch_size=63"]).config
    with pytest.raises(ConfigError, match=r"must divide by accumulate times the number of processes \(1 x 2\); received 63"):
        check_sizes(SimpleNamespace(train_size=100, eval_size=100), config, world=2)
    with pytest.raises(ConfigError, match="Each of the 2 processes needs a sample to evaluate on"):
        check_sizes(SimpleNamespace(train_size=100, eval_size=1), resolve([]).config, world=2)
