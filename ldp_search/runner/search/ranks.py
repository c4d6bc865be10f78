"""Several processes that train one trial together: the main one talks to Optuna, all hear the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Ranks:
    """The processes of this worker. world: Accelerate's state, None where there is this process alone."""

    def __init__(self, world: Any = None):
        self.world = world

    @property
    def count(self) -> int:
        return 1 if self.world is None else self.world.num_processes

    @property
    def is_main(self) -> bool:
        return self.world is None or self.world.is_main_process

    def agree(self, decide: Callable[[], Any]) -> Any:
        """What the main process decides, on every process; what it raises, too (an Exception, or Ctrl-C)."""
        if self.count == 1:
            return decide()
        from accelerate.utils import broadcast_object_list

        answer: list[Any] = [None, None]
        if self.is_main:
            try:
                answer = [decide(), None]
            except (Exception, KeyboardInterrupt) as error:
                answer = [None, error]
        broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]
