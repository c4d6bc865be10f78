"""The command line: `python -m ldp_search.run KEY=VALUE ...`, also under `accelerate launch -m` and `torchrun -m`.

Exit status: 0 done; 1 the training or a write failed; 2 wrong settings or data; 130 stopped by Ctrl-C, 143 by a termination.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from .config.overlay import ConfigError


def main(words: Sequence[str] | None = None, as_program: bool = False) -> int:
    """Do what the words ask for; returns the exit status. What a user can mend comes as one message, without a traceback.

    as_program: this process runs nothing else, so its settings may be changed.
    """
    words = list(sys.argv[1:] if words is None else words)
    try:
        from .runner import help as usage

        text = usage.answer(words)
        if text is not None:
            _tell(text, sys.stdout)
            return 0
        return _run(words, as_program)
    except ConfigError as error:
        return _fail(2, str(error))
    except KeyboardInterrupt:
        return _fail(130, "Stopped before the training began; nothing was changed.")


def _run(words: list[str], as_program: bool) -> int:
    from .config.resolve import resolve

    settings = resolve(words)
    from .runner.training.memory import (
        keep_freed_memory,  # from here on imports take seconds: errors in the settings came first
    )

    if as_program:
        share_cores()
        keep_freed_memory()
    if settings.study is not None:
        from .runner.search.command import search

        return search(settings, words)
    from .runner.training.finish import table
    from .runner.training.setup import Finished, open_session

    try:
        run = open_session(settings)
    except Finished as done:
        _tell(f"{done.folder} holds this very run, finished already.\n{table(done.folder)}", sys.stdout)
        return 0
    status = _train(run)
    if status == 0:
        if run.accelerator.is_main_process:  # which wrote the result; other machines may not have it at all
            _tell(table(run.output), sys.stdout)
            if run.config.export:
                from .runner.exports.of_run import export_run

                status = export_run(run)
        run.accelerator.state.destroy_process_group()
    return status


def _train(run: Any) -> int:
    """Train to the end and save everything; returns the exit status."""
    from .runner.bench.overhead import overhead
    from .runner.training.finish import finish
    from .runner.training.loop import Diverged, fit
    from .runner.training.stopping import stop_between_steps

    try:
        with stop_between_steps(run.accelerator.num_processes) as request:
            if (line := overhead(run)) is not None:
                run.journal.say(line)
            fit(run, request)
        finish(run)
        return 0
    except KeyboardInterrupt as stopped:
        status, message = getattr(stopped, "code", 130), f"Stopped at step {run.step:,}. {_how_to_go_on(run)}"
    except Diverged as error:
        lower = f"lr={run.config.lr / 3:.2g}" + ("" if run.config.clip_norm else " or clip_norm=1")
        status, message = 1, f"{error} Going on would not help; start anew with, for instance, {lower}."
    except OSError as error:
        place = f"Make room on the disk of {run.output}, or make the folder writable."
        status, message = 1, f"Writing failed at step {run.step:,}: {error}\n{place} {_how_to_go_on(run)}"
    run.journal.close()
    return _fail(status, message)


def _how_to_go_on(run: Any) -> str:
    from .runner.io.checkpoint_files import newest_intact
    from .runner.training.run_session import CHECKPOINTS

    newest = newest_intact(run.output / CHECKPOINTS, lambda text: None)
    if newest is None:
        return "There is no checkpoint yet: the same command starts anew."
    return f"To go on from step {int(newest.name.rpartition('_')[2]):,}:\n  python -m ldp_search.run resume={run.output}"


def _fail(status: int, message: str) -> int:
    _tell(f"ldp_search.run: {message}", sys.stderr)
    return status


def _tell(text: str, stream: Any) -> None:
    """Print on the first process alone."""
    if int(os.environ.get("RANK", "0")) == 0:
        try:
            print(text, file=stream, flush=True)
        except BrokenPipeError:  # its reader (head) has seen enough; what is still buffered goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def share_cores() -> None:
    """Let idle threads sleep. OpenMP's spin by default, and on cores that other processes use too they take the time from
    those that compute: 44 steps on `digits` took 90 s instead of 6 s on two busy cores.

    The setting is read when torch is loaded. Where that has happened already, the program starts itself anew, once.
    """
    if not os.environ.get("OMP_WAIT_POLICY"):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        if "torch" in sys.modules and os.name == "posix":
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    sys.exit(main(as_program=True))
