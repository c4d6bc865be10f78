"""Killed at any moment, a run goes on to bitwise the result of one that was never interrupted."""

import random
import shutil

import numpy as np
import pytest
import tiny
import torch
from breadth import breadth
from tiny import WORDS, same_result

from ldp_search.config.resolve import resolve
from ldp_search.run import main
from ldp_search.runner.io import checkpoint_files
from ldp_search.runner.report import load_run
from ldp_search.runner.training import finish, loop
from ldp_search.runner.training.run_session import random_state, set_random_state
from ldp_search.runner.training.setup import open_session
from ldp_search.runner.training.stopping import StopRequest


class Killed(BaseException):
    """Stands for a kill: nothing in the program catches it."""


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(finish, "write_report_page", lambda output: None)


def run(folder, *words):
    return main([*WORDS, f"output={folder}", *words])


def kill_at(step, folder, *words, monkeypatch):
    """A run that ends in the middle of a step, after the bits have moved and before the weights have."""
    with monkeypatch.context() as patch:
        session = open_session(resolve([*WORDS, f"output={folder}", *words]))
        plain = session.optimizer.step

        def deadly(*args):
            if session.step == step:
                raise Killed
            return plain(*args)

        patch.setattr(session.optimizer, "step", deadly)
        with pytest.raises(Killed):
            loop.fit(session, StopRequest())
    assert load_run(folder).coverage["share"] == 1  # what is counted is told from the start


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("never_interrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "write_report_page", lambda output: None)
        patch.setattr("ldp_search.runner.pretrained.card._picture", lambda ldp: None)
        assert run(folder) == 0
    return folder


POLICIES = ["learned", "bit_gradient grad_bits=8", "cyclic", "progressive policy.window=1 grad_bits=6,8", "ldp_paper"]


@breadth("policy", POLICIES, always=["learned", POLICIES[3]])
def test_resumed_is_bitwise_uninterrupted(policy, tmp_path, monkeypatch):
    words = ["space=ldp_paper"] if policy == "ldp_paper" else f"policy={policy} relaxation=sample".split()
    assert run(tmp_path / "whole", *words) == 0
    for step in (1, 5, 12):  # before the first checkpoint, on one, between two
        kill_at(step, tmp_path / "killed", *words, monkeypatch=monkeypatch)
    assert run(tmp_path / "killed", *words) == 0
    same_result(tmp_path / "whole", tmp_path / "killed")


def test_kill_dash_nine(tmp_path):
    """A real process, killed three times wherever it happens to be."""
    words = [*WORDS, "model=tiny:slow_net", "checkpoint_every=1", "log_every=1"]
    assert main([*words, f"output={tmp_path / 'whole'}"]) == 0
    for lines in (4, 9):
        process = tiny.start(tmp_path / "killed", lines, *words)
        process.kill()
        assert process.wait() == -9
    assert checkpoint_files.newest_intact(tmp_path / "killed" / "checkpoints", print) is not None
    assert main([*words, f"output={tmp_path / 'killed'}"]) == 0
    same_result(tmp_path / "whole", tmp_path / "killed")


def test_other_workers_and_other_checkpoint_times_change_nothing(whole, tmp_path, monkeypatch):
    kill_at(7, tmp_path / "killed", "checkpoint_every=3", "data_workers=2", monkeypatch=monkeypatch)
    assert run(tmp_path / "killed", "checkpoint_every=5", "data_workers=1") == 0
    same_result(whole, tmp_path / "killed")


def test_the_folder_alone_is_enough(tmp_path, monkeypatch, capsys):
    assert run(tmp_path / "whole", "lr=0.03", "policy=cyclic", "policy.cycles=3") == 0
    kill_at(7, tmp_path / "killed", "lr=0.03", "policy=cyclic", "policy.cycles=3", monkeypatch=monkeypatch)
    shutil.copytree(tmp_path / "killed", tmp_path / "copy")
    assert main([f"resume={tmp_path / 'killed'}"]) == 0
    assert "going on from step 6" in capsys.readouterr().out
    same_result(tmp_path / "whole", tmp_path / "killed")
    one = tmp_path / "copy" / "checkpoints" / "step_00000004"  # an older one, into a new folder
    assert main([f"resume={one}", f"output={tmp_path / 'elsewhere'}"]) == 0
    same_result(tmp_path / "whole", tmp_path / "elsewhere")


def test_killed_after_the_training_and_before_the_result(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(finish, "save_schedule", lambda run: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(tmp_path / "killed")
    assert run(tmp_path / "killed") == 0
    same_result(whole, tmp_path / "killed")


@breadth("harm", ["cut off", "one bit", "no manifest", "no state"], always=["one bit", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over(harm, whole, tmp_path, monkeypatch, capsys):
    kill_at(9, tmp_path / "killed", monkeypatch=monkeypatch)
    newest, older = checkpoint_files.candidates(tmp_path / "killed" / "checkpoints")
    state, manifest = newest / checkpoint_files.STATE, newest / checkpoint_files.MANIFEST
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    {
        "cut off": lambda: state.write_bytes(content[:-100]), "one bit": lambda: state.write_bytes(content),
        "no manifest": manifest.unlink, "no state": state.unlink,
    }[harm]()  # fmt: skip
    assert run(tmp_path / "killed") == 0
    out = capsys.readouterr().out
    assert f"{newest} is damaged" in out and f"going on from step {int(older.name[5:])}" in out
    same_result(whole, tmp_path / "killed")


def test_a_checkpoint_appears_at_once_or_not_at_all(tmp_path, monkeypatch):
    checkpoint_files.save(tmp_path, 1, {"x": torch.ones(3)})
    for function in ("os.replace", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(function, lambda *_: (_ for _ in ()).throw(OSError("no space left")))
            with pytest.raises(OSError, match="no space left"):
                checkpoint_files.save(tmp_path, 2, {"x": torch.ones(3)})
        assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    (tmp_path / ".partial_00000002").mkdir()  # what a kill leaves
    for step in (2, 3):
        checkpoint_files.save(tmp_path, step, {"x": torch.full((3,), step)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]  # the newest two
    assert checkpoint_files.load(checkpoint_files.newest_intact(tmp_path, print))["x"].tolist() == [3, 3, 3]


def test_other_settings_or_data_are_refused(tmp_path, monkeypatch, capsys):
    kill_at(7, tmp_path / "run", monkeypatch=monkeypatch)
    before = sorted((tmp_path / "run").rglob("*"))
    for words, shown in (
        (["lr=0.2", "bits=3,6"], "lr: 0.1 -> 0.2\n  bits: [2, 8] -> [3, 6]"),
        (["limit=100"], "limit: 160 -> 100"),
        (["epochs=4"], "epochs: 3 -> 4"),
    ):
        assert run(tmp_path / "run", *words) == 2
        err = capsys.readouterr().err
        assert "belongs to a run with other settings (there -> here)" in err and shown in err and "another output=" in err
    monkeypatch.setattr("ldp_search.runner.tasks.images._fingerprint", lambda stores, labels: "others")
    assert run(tmp_path / "run") == 2 and "data (fingerprint)" in capsys.readouterr().err
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_nothing_intact_to_go_on_from(tmp_path, monkeypatch, capsys):
    kill_at(3, tmp_path / "run", monkeypatch=monkeypatch)
    for path in checkpoint_files.candidates(tmp_path / "run" / "checkpoints"):
        (path / checkpoint_files.STATE).unlink()
    assert main([f"resume={tmp_path / 'run'}"]) == 2
    assert "must hold an intact checkpoint" in capsys.readouterr().err


def test_random_state_comes_back():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    state = random_state()
    first = draw()
    set_random_state(state)
    assert draw() == first
