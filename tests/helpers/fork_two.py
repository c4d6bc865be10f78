"""Two processes of a training, with what torchrun tells its own, forked from the tests where torchrun is not what is tested."""

import importlib
import os
import signal
import socket
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState, PartialState
from tiny import Child, fork


def fork_two(file: Path, module: str, *words: str) -> Child:
    """Both call `module.main(*words)` and print to the file; the child that has forked them ends with their status.

    Where one fails the other is ended, and the status is that of the first that failed.
    """
    return Child(file, _both, module, words)


def _both(module: str, words) -> int:
    function, status = importlib.import_module(module).main, 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alive = {fork(_rank_of_two, function, rank, port, words) for rank in (0, 1)}
    while alive:
        pid, ended = os.wait()
        alive.remove(pid)
        if ended and not status:
            status = os.waitstatus_to_exitcode(ended) % 256
            for other in alive:
                os.kill(other, signal.SIGKILL)
    return status


def _rank_of_two(function, rank: int, port: int, words) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()  # what the tests before have left
    function(*words)
    sys.stdout.flush()
