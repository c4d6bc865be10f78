"""Learned precision in an Accelerate loop: a small BERT that tells on which side of a comma the larger number stands.

    python examples/accelerate_loop.py                                                            one process
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 examples/accelerate_loop.py               two, on a CPU
    accelerate launch --num_processes 2 examples/accelerate_loop.py                               two GPUs
    python examples/accelerate_loop.py resume                                                     goes on where it was

Offline, about ten seconds. What LDP adds is marked `# LDP`. On a CPU, `accelerate launch --cpu --num_processes 2` runs one
process, and torchrun without ACCELERATE_USE_CPU two that do not know each other; neither says so: look at what is printed.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoConfig, AutoModelForSequenceClassification

import ldp_search  # LDP

EPOCHS, COMMA = 3, 20


def pairs(size: int, seed: int) -> TensorDataset:
    """`a , b` as tokens 0 to 19 and the comma; label 1 where a > b."""
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, COMMA, (size, 2), generator=draw)
    tokens = torch.stack([numbers[:, 0], torch.full((size,), COMMA), numbers[:, 1]], dim=1)
    return TensorDataset(tokens, (numbers[:, 0] > numbers[:, 1]).long())


output = Path(sys.argv[sys.argv.index("output") + 1] if "output" in sys.argv else "runs/accelerate")
project = ProjectConfiguration(project_dir=str(output), automatic_checkpoint_naming=False)
loading = DataLoaderConfiguration(use_seedable_sampler=True)  # else a resume in several processes takes another order
accelerator = Accelerator(gradient_accumulation_steps=2, project_config=project, dataloader_config=loading)
set_seed(0)
config = AutoConfig.for_model(
    "bert",
    vocab_size=COMMA + 1,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=128,
    num_labels=2,
)
model = AutoModelForSequenceClassification.from_config(config)
ldp_search.apply(model, target_cost=0.4)  # LDP
ldp = ldp_search.controller(model)  # LDP
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
train, test = (DataLoader(pairs(*of), batch_size=32, shuffle=True, drop_last=True) for of in ((2048, 1), (512, 2)))
model, optimizer, train, test = accelerator.prepare(model, optimizer, train, test)
accelerator.register_for_checkpointing(ldp)  # LDP

done, step, steps = 0, 0, EPOCHS * (len(train) // 2)
if "resume" in sys.argv:
    newest = max(output.glob("epoch_*"), key=lambda folder: int(folder.name.removeprefix("epoch_")))
    accelerator.load_state(str(newest))
    done = int(newest.name.removeprefix("epoch_"))
    step = done * (len(train) // 2)

for epoch in range(done, EPOCHS):
    model.train()
    train.set_epoch(epoch)  # another order every epoch, the same after a resume
    for tokens, labels in train:
        with accelerator.accumulate(model):
            loss = model(input_ids=tokens, labels=labels).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:  # LDP: once per optimizer step
                step += 1  # LDP
                ldp.step(step / steps, optimizer=optimizer)  # LDP
            optimizer.step()
            optimizer.zero_grad()
    accelerator.save_state(str(output / f"epoch_{epoch + 1}"))

ldp.finalize((tokens,) for tokens, _ in train)  # LDP
model.eval()
right = torch.zeros((), device=accelerator.device)
with torch.no_grad():
    for tokens, labels in test:
        right += (model(input_ids=tokens).logits.argmax(1) == labels).sum()
right = accelerator.reduce(right, "sum")
if accelerator.is_main_process:
    print(ldp.summary())
    cost = ldp.cost().mean_relative
    print(f"processes {accelerator.num_processes}, steps {step}, accuracy {right / 512:.1%}, training cost {cost:.3f}")
    ldp_search.save_pretrained(accelerator.unwrap_model(model), output / "final")  # LDP
accelerator.end_training()
