"""Small models trained in two processes under one wrapper after another; each writes what it holds.

torchrun --nproc_per_node 2 tests/helpers/wrapped_two.py FOLDER [WRAPPER ...]
"""

import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from test_wrapped_models import TOKENS, bert
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import ldp_search
from ldp_search import controller
from ldp_search.runner.pretrained import card, save_load  # noqa: F401 (loaded before the fork)

bert()  # loads what both processes would load, each by itself, after the fork
card._picture = lambda ldp: None  # nobody looks at it
STEPS, SPACE = 4, {"target_cost": 0.6, "grad_bits": 32}  # without the random rounding of gradients


def shard(model):
    """FSDP2 as people use it: every block, then the rest."""
    for block in model.bert.encoder.layer:
        fully_shard(block)
    return fully_shard(model)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def ddp(rank):
    return DistributedDataParallel(ldp_search.apply(bert(), **SPACE))


def ddp_counted_first(rank):
    return DistributedDataParallel(ldp_search.apply(bert(), example_inputs={"input_ids": TOKENS}, **SPACE))


def fsdp2_after_apply(rank):
    return shard(ldp_search.apply(bert(), **SPACE))


def fsdp2_before_apply(rank):
    return ldp_search.apply(shard(bert()), **SPACE)


def fsdp2_counted_before_apply(rank):
    return ldp_search.apply(shard(bert()), example_inputs={"input_ids": TOKENS}, **SPACE)


def fsdp2_of_linear_layers(rank):
    model = ldp_search.apply(bert(), **SPACE)
    for layer in [m for m in model.modules() if isinstance(m, torch.nn.Linear)]:
        fully_shard(layer)
    return fully_shard(model)


def fsdp2_of_linear_layers_before_apply(rank):
    model = bert()
    for layer in [m for m in model.modules() if isinstance(m, torch.nn.Linear)]:
        fully_shard(layer)
    return ldp_search.apply(fully_shard(model), **SPACE)


def prepared(accelerator):
    model = ldp_search.apply(bert(), **SPACE)
    return *accelerator.prepare(model, sgd(model)), accelerator.backward


def accelerate_ddp(rank):
    return prepared(Accelerator(cpu=True))


def accelerate_fsdp2(rank):
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["BertLayer"]
    )
    accelerator = Accelerator(cpu=True)
    # On a CPU Accelerate takes DDP whatever it is told: this is what it sets where it has GPUs.
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    return prepared(accelerator)


WRAPPERS = [
    ddp, ddp_counted_first, fsdp2_after_apply, fsdp2_before_apply, fsdp2_counted_before_apply, fsdp2_of_linear_layers,
    fsdp2_of_linear_layers_before_apply, accelerate_ddp, accelerate_fsdp2,
]  # fmt: skip


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train(wrap, rank: int, folder: Path) -> dict:
    """A short training, each process on its own half of the batch."""
    torch.manual_seed(0)
    model = wrap(rank)
    model, optimizer, backward = model if isinstance(model, tuple) else (model, sgd(model), torch.Tensor.backward)
    ldp, mine = controller(model), slice(2 * rank, 2 * rank + 2)
    model.train()
    for step in range(STEPS):
        logits = model(input_ids=TOKENS[mine]).logits
        loss = F.cross_entropy(logits, torch.tensor([0, 1, 0, 1])[mine])
        backward(loss)
        ldp.step((step + 1) / STEPS)
        quiet = [n for n, known in zip(ldp.layers, ldp.sensor.meter.known, strict=True) if not known]
        optimizer.step()
        optimizer.zero_grad()
    ldp.finalize([{"input_ids": TOKENS[mine]}])
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=TOKENS).logits
    plain = getattr(model, "module", model)
    state = {name: whole(value) for name, value in plain.state_dict().items()}
    if rank == 0:
        ldp_search.save_pretrained(plain, folder, state_dict=state)
    dist.barrier()
    with torch.no_grad():
        loaded = ldp_search.load_pretrained(folder)(input_ids=TOKENS).logits
    return {
        "class": type(model).__name__,
        "bits": {name: list(bits) for name, bits in ldp.bits().items()},
        "schedule": ldp.trajectory.bits.flatten().tolist(),
        "mean_cost": ldp.cost().mean_relative,
        "covered": ldp.coverage.share,
        "quiet": quiet,
        "noise": ldp.sensor.meter._spread().tolist(),
        "logits": logits.flatten().tolist(),
        "loaded": loaded.flatten().tolist(),
        "weights": {name: value.double().sum().item() for name, value in state.items()},
    }


def main(folder: str, *names: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, held = dist.get_rank(), {}
    for wrap in [w for w in WRAPPERS if not names or w.__name__ in names]:
        AcceleratorState._reset_state()
        PartialState._reset_state()
        try:
            held[wrap.__name__] = train(wrap, rank, Path(folder, wrap.__name__))
        except Exception:
            held[wrap.__name__] = {"error": traceback.format_exc()}
    Path(folder, f"rank{rank}.json").write_text(json.dumps(held))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
