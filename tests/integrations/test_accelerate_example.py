"""examples/accelerate_loop.py as it stands: run, resumed bitwise, and in two processes."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from tiny import ROOT, torchrun

EXAMPLE = str(ROOT / "examples" / "accelerate_loop.py")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the example here, with these words; gives what it printed."""

    def run(*words, example: str = EXAMPLE) -> str:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        monkeypatch.setattr(sys, "argv", [EXAMPLE, *map(str, words)])
        runpy.run_path(example, run_name="__main__")
        return capsys.readouterr().out

    yield run
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def last(printed: str) -> tuple[int, int, float, float]:
    """(processes, steps, accuracy in %, training cost) of the last line."""
    found = re.search(r"processes (\d+), steps (\d+), accuracy ([\d.]+)%, training cost ([\d.]+)", printed)
    return int(found[1]), int(found[2]), float(found[3]), float(found[4])


@pytest.mark.slow(reason="the example from end to end, and resumed")
def test_one_process_and_a_resume(run, tmp_path):
    processes, steps, accuracy, cost = last(run("output", tmp_path))
    assert (processes, steps, cost) == (1, 96, pytest.approx(0.4, abs=0.002)) and accuracy > 85
    shutil.move(tmp_path / "final", tmp_path / "whole")
    shutil.rmtree(tmp_path / "epoch_3")
    run("output", tmp_path, "resume")
    for name in ("model.safetensors", "ldp.json"):
        assert (tmp_path / "final" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_one_epoch_of_half_of_it(run, tmp_path):
    short = tmp_path / "short.py"
    text = Path(EXAMPLE).read_text()
    for whole, part in (("EPOCHS, COMMA = 3,", "EPOCHS, COMMA = 1,"), ("((2048, 1), (512, 2))", "((1024, 1), (512, 2))")):
        assert text.count(whole) == 1
        text = text.replace(whole, part)
    short.write_text(text)
    processes, steps, _, cost = last(run("output", tmp_path, example=str(short)))
    assert (processes, steps, cost) == (1, 16, pytest.approx(0.4, abs=0.002)) and (tmp_path / "final" / "ldp.json").is_file()


@pytest.mark.slow(reason="the example under torchrun; trainings in two processes always run in test_distributed.py")
def test_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    done = torchrun(EXAMPLE, "output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    processes, steps, accuracy, cost = last(done.stdout)
    assert (processes, steps, cost) == (2, 48, pytest.approx(0.4, abs=0.002)) and accuracy > 85


def test_ldp_is_ten_lines_of_it():
    lines = (ROOT / "examples" / "accelerate_loop.py").read_text().splitlines()
    assert sum("# LDP" in line for line in lines if not line.startswith("Offline")) <= 10
