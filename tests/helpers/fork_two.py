"""Two processes of a training, with what torchrun tells its own, forked from one that has imported everything for both.

    python tests/helpers/fork_two.py MODULE [WORD ...]        each calls MODULE.main(*words)

Where one fails the other is ended, and the status is that of the first that failed.
"""

import importlib
import os
import signal
import socket
import sys

import tiny


def rank_of_two(function, rank: int, port: int, words: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    function(*words)
    sys.stdout.flush()


def main(module: str, *words: str) -> int:
    function, status = importlib.import_module(module).main, 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alive = {tiny.fork(rank_of_two, function, rank, port, words) for rank in (0, 1)}
    while alive:
        pid, ended = os.wait()
        alive.remove(pid)
        if ended and not status:
            status = os.waitstatus_to_exitcode(ended) % 256
            for other in alive:
                os.kill(other, signal.SIGKILL)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
