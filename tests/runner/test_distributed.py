"""Two real processes over gloo: equal bits and weights on both, killed and resumed bitwise; errors said once."""

import json
import os
import socket
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from fork_two import fork_two
from tiny import ROOT, WORDS, fork, same_result, torchrun

from ldp_search.config.overlay import ConfigError
from ldp_search.config.resolve import resolve
from ldp_search.core.backends.int8.choice import has_integer_products
from ldp_search.run import main
from ldp_search.runner.search import best, run_trial, samplers
from ldp_search.runner.training import finish, loop
from ldp_search.runner.training.batches import check_sizes


def two(die_at, folder, *words):
    """(their status, what they printed)"""
    both = fork_two(folder.with_suffix(".log"), "two_processes", str(die_at), *WORDS, f"output={folder}", *words)
    return both.wait(), both.printed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    status, printed = two(-1, folder)
    assert status == 0, printed
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


@pytest.mark.skipif(not has_integer_products("cpu"), reason="no 8-bit products here")
def test_both_choose_the_same_integer_products_also_after_a_resume(tmp_path):
    """Each measures for itself; what counts is what they have agreed on."""
    words = ("backend=int8", "bits=8", "policy=static", "target_cost=null")
    assert two(9, tmp_path / "run", *words)[0] != 0
    status, printed = two(-1, tmp_path / "run", *words)
    assert status == 0 and "going on from step 8" in printed, printed
    zero, one = (json.loads((tmp_path / "run" / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert zero["choices"]["seconds"] and zero["choices"] == one["choices"]
    assert all("2 processes" in key for key in zero["choices"]["seconds"]) and zero["weights"] == one["weights"]


@pytest.mark.slow(reason="under torchrun itself what one process always shows in test_resume.py")
def test_killed_and_resumed_bitwise(whole, tmp_path):
    status, printed = two(9, tmp_path / "run")
    assert status != 0 and (tmp_path / "run" / "checkpoints" / "step_00000008").is_dir(), printed
    resumed = torchrun(str(ROOT / "tests" / "helpers" / "two_processes.py"), "-1", *WORDS, f"output={tmp_path / 'run'}")
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


def rank_of_a_search(rank, port, die_at, log, words):
    """One of two processes of a search, forked. Its second trial is pruned by the main process alone."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    AcceleratorState._reset_state(reset_partial_state=True)  # of this test process
    for module in (finish, run_trial):
        module.write_report_page = lambda output: None
    samplers.AmongFeasible.prune = lambda self, study, trial: trial.number == 1 and trial.last_step == 2
    plain_step = loop.training_step

    def step(session, parts):
        if session.output.name == "0002" and session.step == die_at:
            torch.distributed.barrier()
            os._exit(9)
        plain_step(session, parts)

    loop.training_step = step
    status = main(words)
    sys.stdout.flush()
    os._exit(status)


@pytest.mark.slow(reason="two searches in two processes, of which one is killed")
def test_a_search_whose_trials_are_trained_by_two_processes(tmp_path, monkeypatch):
    """The main process asks and decides, both hear the same; both killed in a trial, they go on with it from its checkpoint."""
    words = [*WORDS, "space=quick", "trials=3", f"storage={tmp_path / 's.journal'}", f"output={tmp_path / 's'}"]
    monkeypatch.setattr("ldp_search.runner.report.study.write_study_report", lambda study, output: None)
    for die_at, status in ((7, 9), (-1, 0)):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        pids = [fork(rank_of_a_search, rank, port, die_at, tmp_path / "log", words) for rank in (0, 1)]
        ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert ended == [status, status], (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().count("[3 of 3]") == 1
    trials = best.load_study(tmp_path / "s.journal").trials
    assert [t.state.name for t in trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert trials[1].intermediate_values.keys() == {1, 2} and trials[2].user_attrs["deaths"] == [1, 7]
    result = json.loads((tmp_path / "s" / "trials" / "0002" / "result.json").read_text())
    assert result["processes"] == 2 and result["accuracy"] == trials[2].value
