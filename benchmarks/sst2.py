"""A small BERT on SST-2, from a configuration, with transformers' Trainer: the callback on a real task.

    python benchmarks/sst2.py --data FOLDER --tokenizer FOLDER --policy learned --target_cost 0.45 --output_dir runs/learned
    python benchmarks/sst2.py --data FOLDER --tokenizer FOLDER --policy static --static_bits 4 --output_dir runs/static-4
    torchrun --nproc_per_node 2 benchmarks/sst2.py ... --use_cpu True --ddp_backend gloo

FOLDER: parquet files with `sentence` and `label`, and a BERT tokenizer. Every field of TrainingArguments is an option too
(--bf16, --gradient_accumulation_steps 2, --gradient_checkpointing, --resume_from_checkpoint FOLDER, ...).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertTokenizerFast,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

import ldp_search


@dataclass
class Options:
    """What is trained; the rest is TrainingArguments."""

    data: str = field(metadata={"help": "folder with the parquet files of SST-2"})
    tokenizer: str = field(metadata={"help": "folder of a BERT tokenizer"})
    policy: str = "learned"
    target_cost: float | None = None
    static_bits: int | None = field(default=None, metadata={"help": "of the policy static; by default the highest, 8"})
    hidden: int = 128
    layers: int = 2
    longest: int = 48
    limit: int = 67349
    attention: str = "sdpa"


RECIPE = {
    "per_device_train_batch_size": 32, "per_device_eval_batch_size": 128, "learning_rate": 5e-4, "weight_decay": 0.01,
    "warmup_steps": 100, "logging_steps": 50, "eval_strategy": "steps", "eval_steps": 500, "save_steps": 500,
    "save_total_limit": 2, "num_train_epochs": 1.0,
}  # fmt: skip


def space(options: Options) -> dict:
    """Fields of the search space that the options name; costs are relative to 8 bits for every policy."""
    policy = {"name": options.policy} | ({} if options.static_bits is None else {"bits": options.static_bits})
    return {"policy": policy, "bits": (3, 8), "grad_bits": 8, "target_cost": options.target_cost}


def make_model(options: Options, vocabulary: int):
    """A BERT of `layers` layers, random weights."""
    config = AutoConfig.for_model(
        "bert", hidden_size=options.hidden, num_hidden_layers=options.layers, num_attention_heads=options.hidden // 64,
        intermediate_size=4 * options.hidden, vocab_size=vocabulary, max_position_embeddings=128, num_labels=2,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=options.attention)


def main() -> None:
    torch.set_num_threads(1)
    parser = HfArgumentParser((Options, TrainingArguments))
    parser.set_defaults(**RECIPE)
    options, arguments = parser.parse_args_into_dataclasses()
    tokenizer = BertTokenizerFast.from_pretrained(options.tokenizer)
    sets = load_dataset(options.data)
    sets["train"] = sets["train"].select(range(min(options.limit, len(sets["train"]))))
    sets = sets.map(lambda rows: tokenizer(rows["sentence"], truncation=True, max_length=options.longest), batched=True)

    set_seed(arguments.seed)
    model = make_model(options, len(tokenizer))
    example = tokenizer(["a film of average length that one does not forget"] * 2, return_tensors="pt")
    ldp_search.apply(model, example_inputs=example, **space(options))
    trainer = Trainer(
        model=model, args=arguments, train_dataset=sets["train"], eval_dataset=sets["validation"],
        data_collator=DataCollatorWithPadding(tokenizer), processing_class=tokenizer,
        compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, 1) == p.label_ids).mean())},
        callbacks=[ldp_search.integrations.LDPCallback(finalize=True)],
    )  # fmt: skip
    done = trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        ldp, cost = ldp_search.controller(model), ldp_search.controller(model).cost()
        result = {
            "policy": options.policy, "steps": done.global_step, "seconds": round(done.metrics["train_runtime"]),
            "accuracy": metrics["eval_accuracy"], "loss": metrics["eval_loss"], "mean_cost": cost.mean_relative,
            "inference_cost": cost.relative_inference, "weight_mib": cost.weight_mib, "coverage": ldp.coverage.share,
        }  # fmt: skip
        folder = ldp_search.save_pretrained(model, Path(arguments.output_dir) / "final")
        (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        print(ldp.summary())
        print(json.dumps(result))


if __name__ == "__main__":
    main()
