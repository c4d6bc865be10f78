"""The Trainer in two processes, with accumulation, bf16, checkpointing, evaluation and checkpoints.

    torchrun --nproc_per_node 2 tests/helpers/trainer_two.py FOLDER

A whole training in FOLDER/whole; then in FOLDER/cut one that breaks off between two checkpoints, and goes on, from what lies on
the disk, with everything made anew.
"""

import contextlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_integrations import Words, bert
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import ldp_search

bert()  # loads what both processes would load, each by itself, after the fork


class Cut(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


def train(folder: Path, *others, resume: bool = False) -> None:
    """Eight steps; each process writes what it holds in the end."""
    model = ldp_search.apply(bert(), target_cost=0.5)
    arguments = TrainingArguments(
        str(folder), max_steps=8, per_device_train_batch_size=4, gradient_accumulation_steps=2, bf16=True, use_cpu=True,
        gradient_checkpointing=True, eval_strategy="steps", eval_steps=2, save_steps=2, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", ddp_backend="gloo", report_to="none", disable_tqdm=True, logging_steps=1,
        seed=3, learning_rate=1e-3,
    )  # fmt: skip
    callbacks = [ldp_search.integrations.LDPCallback(), *others]
    trainer = Trainer(model, arguments, train_dataset=Words(), eval_dataset=Words(40), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if resume else None)
    ldp = ldp_search.controller(model)
    held = {
        "mode": trainer.args.parallel_mode.value,
        "best": Path(trainer.state.best_model_checkpoint).name,
        "seen": ldp.trajectory.seen,
        "schedule": ldp.trajectory.bits.flatten().tolist(),
        "mean_cost": ldp.cost().mean_relative,
        "tensors": {name: value.tolist() for name, value in ldp.state_dict()["tensors"].items()},
        "weights": {name: value.tolist() for name, value in model.state_dict().items()},
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "eval_losses": [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row],
    }
    (folder / f"rank{trainer.args.process_index}.json").write_text(json.dumps(held))


def main(folder: str) -> None:
    torch.set_num_threads(1)
    whole, cut = Path(folder, "whole"), Path(folder, "cut")
    train(whole)
    with contextlib.suppress(KeyboardInterrupt):
        train(cut, Cut())
    train(cut, resume=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
