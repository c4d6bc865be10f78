"""Ctrl-C and termination: the step that runs is finished and saved, then the run ends; asked twice, it ends at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(KeyboardInterrupt):
    """The run was asked to stop. `code`: the exit status by convention, 130 after Ctrl-C, 143 after a termination."""

    def __init__(self, number: int):
        super().__init__()
        self.code = 128 + number


class StopRequest:
    """`number` is the signal that asked to stop, 0 as long as none did."""

    number = 0


@contextmanager
def stop_between_steps(processes: int) -> Iterator[StopRequest]:
    """Within this context a first signal is only noted. With several processes it ends the run at once: they would have to
    agree on a step first, at the price of a message in every step, and the last checkpoint is near anyway.
    """
    request, before = StopRequest(), {}

    def note(number: int, frame: object) -> None:
        if request.number or processes > 1:
            raise Stopped(number)
        request.number = number
        print("\nStopping after this step (again: at once) ...", file=sys.stderr)

    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
