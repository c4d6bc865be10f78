"""A run in two processes, which each write down what they hold. `die_at=N` ends them after that step.

torchrun --nproc_per_node 2 tests/helpers/two_processes.py die_at [WORD ...]
"""

import json
import os
import sys
from pathlib import Path

import sklearn.datasets  # noqa: F401 (loaded before the fork)
import torch

from ldp_search.config.resolve import resolve
from ldp_search.runner.pretrained import card, save_load  # noqa: F401 (loaded before the fork)
from ldp_search.runner.training import finish, loop
from ldp_search.runner.training.setup import open_session
from ldp_search.runner.training.stopping import StopRequest


def main(die_at: str, *words: str) -> None:
    finish.write_report_page = card._picture = lambda _: None
    run = open_session(resolve(list(words)))
    plain_step = loop.training_step

    def step(session, parts):
        if session.step == int(die_at):
            torch.distributed.barrier()
            os._exit(9)
        plain_step(session, parts)

    loop.training_step = step
    loop.fit(run, StopRequest())
    trained = {name: value.double().sum().item() for name, value in run.plain_model.named_parameters()}
    finish.finish(run)
    held = {
        "processes": run.accelerator.num_processes,
        "bits": {name: list(bits) for name, bits in run.ldp.bits().items()},
        "weights": trained,
        "buffers": {name: value.double().sum().item() for name, value in run.plain_model.named_buffers()},
        "schedule": run.ldp.trajectory.bits.flatten().tolist(),
        "choices": run.ldp.backend.state_dict() if hasattr(run.ldp.backend, "state_dict") else None,
        "noise": torch.rand(1).item(),
    }
    Path(run.output, f"rank{run.accelerator.process_index}.json").write_text(json.dumps(held))
    run.accelerator.state.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
