"""A network and settings so small that a run takes a second; `model=tiny:net` finds it, since tests/helpers/ is on the path."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from torch import nn

from ldp_search.run import main

ROOT = Path(__file__).resolve().parents[2]
_DATA = "task=digits limit=160 eval_limit=50"
WORDS = f"{_DATA} model=tiny:net batch_size=32 epochs=3 trackers=none log_every=2 checkpoint_every=2".split()
"""A run of 15 steps, with checkpoints and lines of metrics every other step."""


def net(num_classes: int, in_chans: int, width: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_chans, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(2 * width, num_classes),
    )  # fmt: skip


def plain_net(num_classes: int, in_chans: int) -> nn.Module:
    """Nothing in it looks at the batch as a whole."""
    return nn.Sequential(nn.Conv2d(in_chans, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, num_classes))


def slow_net(num_classes: int, in_chans: int) -> nn.Module:
    """The same, but a step takes long enough to be killed in."""
    model = net(num_classes, in_chans)
    model.register_forward_hook(lambda *_: time.sleep(0.03))
    return model


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "ldp_search.run", *words]


def environment() -> dict[str, str]:
    paths = [ROOT, *(ROOT / "tests" / room for room in ("helpers", "core", "integrations")), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(str(p) for p in paths if p), "OMP_NUM_THREADS": "1"}


def fork(function, *args, **kwargs) -> int:
    """The process id of a child that calls the function and ends with status 0, or 1 after an exception."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        function(*args, **kwargs)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Child:
    """A function in a fork: a process of its own that need not import anew. What it prints goes to a file."""

    def __init__(self, file: Path, function, *args):
        self.file = file
        self.pid = fork(self._run, function, *args)

    def _run(self, function, *args):
        os.setsid()
        os.dup2(os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        status = function(*args)
        sys.stdout.flush()
        os._exit(status or 0)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its status at its end: minus the signal where one killed it. Nothing that it began outlives the call."""
        try:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    @property
    def printed(self) -> str:
        return self.file.read_text()


def printed(program: str) -> str:
    """What a Python program prints in a process of its own; it must not fail."""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    return found.stdout.strip()


def torchrun(*script: str) -> subprocess.CompletedProcess:
    """Two processes on this machine; none of them outlives the call."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *script]
    options = {"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, start_new_session=True, **options)
    try:
        out, err = process.communicate(timeout=250)
    finally:
        process.terminate()  # it ends its workers, which are leaders of sessions of their own
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def start(folder: Path, lines: int, *words: str) -> Child:
    """A run in a process of its own, that has written some lines of metrics."""
    child = Child(folder.with_suffix(".log"), main, [*words, f"output={folder}"])
    deadline, file = time.monotonic() + 150, folder / "metrics.jsonl"
    while not file.exists() or file.read_text().count("\n") < lines:
        if time.monotonic() > deadline or os.waitpid(child.pid, os.WNOHANG)[0]:
            raise TimeoutError(child.printed)
        time.sleep(0.01)
    return child


def timeless_metrics(folder: Path) -> list[str]:
    """Lines of metrics.jsonl without the clock."""
    return [line.partition(', "seconds"')[0] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_result(one: Path, other: Path) -> None:
    """Everything that a run computes is bitwise the same in two folders."""
    assert timeless_metrics(one) == timeless_metrics(other)
    for name in ("model.safetensors", "schedule.parquet", "allocation.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
