"""What a quantized training step costs: interleaved medians against the plain step of the same model.

    OMP_NUM_THREADS=1 python benchmarks/step.py [model=cifar_resnet20] [batch=128] [rounds=7] [size=32] [keep=1]

keep=0 leaves the C library's memory settings as they are (see ldp_search/runner/memory.py). "saved" is what autograd keeps
for backward, in bytes of distinct storages, as a ratio to plain.
"""

from __future__ import annotations

import copy
import platform
import statistics
import sys
import time

import timm
import torch
import torch.nn.functional as F

import ldp_search
import ldp_search.runner.cifar_models  # noqa: F401  (registers the CIFAR networks with timm)
from ldp_search.runner.memory import keep_freed_memory

CLIP = {"weight_quantizer": "clip", "input_quantizer": "clip"}
VARIANTS = {
    "plain": None,
    "static, min/max, gradients full": {"policy": "static", "grad_bits": 32},
    "static, min/max, gradients 8 bits": {"policy": "static"},
    "learned, min/max, gradients 8 bits": {"target_cost": 0.5},
    "learned, clip, gradients 8 bits": {"target_cost": 0.5, **CLIP},
    "the same by the reference formulas": {"target_cost": 0.5, "backend": "reference", **CLIP},
}


def saved_bytes(model, x, y) -> int:
    """Bytes that one forward keeps for backward, parameters excluded."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(model(x), y)
    total = sum(seen.values())
    loss.backward()
    return total


def main(words: list[str]) -> None:
    options = {"model": "cifar_resnet20", "batch": 128, "rounds": 7, "size": 32, "keep": 1}
    for word in words:
        key, _, value = word.partition("=")
        if key not in options:
            sys.exit(f"Unknown word {word!r}; known: {', '.join(options)}")
        options[key] = type(options[key])(value)
    kept = bool(options["keep"]) and keep_freed_memory()
    torch.manual_seed(0)
    base = timm.create_model(options["model"], num_classes=10)
    x, y = torch.randn(options["batch"], 3, options["size"], options["size"]), torch.randint(0, 10, (options["batch"],))
    models = {}
    for name, space in VARIANTS.items():
        models[name] = copy.deepcopy(base)
        if space is not None:
            ldp_search.apply(models[name], ldp_search.SearchSpace(**space), x[:1])
    saved = {name: saved_bytes(model, x, y) for name, model in models.items()}
    times = {name: [] for name in models}
    for turn in range(options["rounds"]):
        for name, model in models.items():
            start = time.perf_counter()
            F.cross_entropy(model(x), y).backward()
            if VARIANTS[name] is not None:
                ldp_search.controller(model).step((turn + 1) / options["rounds"])
            times[name].append(time.perf_counter() - start)
    print(
        f"{options}; torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}, memory kept: {kept}"
    )
    plain = statistics.median(times["plain"])
    for name, values in times.items():
        spread = (max(values) - min(values)) / 2 / plain
        ratio = statistics.median(values) / plain
        kept_bytes = saved[name] / saved["plain"]
        print(f"{name:<38} {statistics.median(values) * 1e3:8.0f} ms  x{ratio:.2f} ±{spread:.2f}  saved x{kept_bytes:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
