"""What a quantized training step costs: interleaved medians against the plain step of the same model.

    OMP_NUM_THREADS=1 python benchmarks/step.py [models=resnet20,vit,bert,gpt2] [only=WORDS] [rounds=9] [keep=1] [json=FILE]

A step is forward, backward and `ldp.step`, without an optimizer. only='activations=16bit;static' takes the variants that are
named so, or whose names hold one of the words. keep=0 leaves the C library's memory settings as they are
(runner/training/memory.py). "saved" is what autograd keeps for backward, in bytes of distinct storages without the
parameters, and "peak" the largest sum of what torch allocates during a step; both as ratios to plain. Peers (torchao,
Brevitas) are measured where they are installed (step_peers.py).
"""

from __future__ import annotations

import copy
import gc
import json
import platform
import statistics
import sys
import time
from collections import namedtuple

import step_peers
import torch
from step_models import MODELS, make

import ldp_search
from ldp_search.core import native
from ldp_search.runner.bench.timing import peak_bytes, saved_bytes
from ldp_search.runner.training.memory import keep_freed_memory

Subject = namedtuple("Subject", "model step forward")  # functions without arguments: a training step, and up to the loss
CLIP = {"weight_quantizer": "clip", "input_quantizer": "clip"}
LEARNED = {"policy": "learned", "target_cost": 0.5}
DEFAULT = {  # search_spaces/ldp.yaml; of its steps one in 16 senses
    "policy": "learned", "target_cost": 0.3165, "bits": (2, 8), "grad_bits": (3, 8), "grad_quantizer": "per_sample",
    "weight_quantizer": {"name": "mse", "exact_zero": False}, "input_quantizer": "mse",
}  # fmt: skip
SPACES = {
    "the default, all bits learned": {**DEFAULT, "sense_every": 1_000_000},
    "the default, a step that senses": {**DEFAULT, "sense_every": 1},
    "static 8, gradients full": {"policy": "static", "bits": 8, "grad_bits": 32},
    "static 8, gradients 8": {"policy": "static", "bits": 8},
    "learned 3-8, gradients full": {**LEARNED, "grad_bits": 32},
    "learned 3-8, gradients 8": LEARNED,
    "the same, activations=16bit": {**LEARNED, "activations": "16bit"},
    "learned 3-8, gradients 8, clip": {**LEARNED, **CLIP},
    "learned 3-8, gradients 8, torch formulas": {**LEARNED, "native": False},
    "learned 3-8, gradients 8, reference": {**LEARNED, "backend": "reference"},
    "learned 3-8, gradients 8, int8": {**LEARNED, "backend": "int8"},
    "the same, int8, input_gradient=rounded": {**LEARNED, "backend": {"name": "int8", "input_gradient": "rounded"}},
    "the same, int8, activations=16bit": {**LEARNED, "backend": "int8", "activations": "16bit"},
}


def _subject(model, forward) -> Subject:
    def step():
        model.zero_grad()
        forward().backward()

    return Subject(model, step, forward)


def plain(model, loss, example) -> Subject:
    return _subject(model, lambda: loss(model))


def autocast(model, loss, example) -> Subject:
    def forward():
        with torch.autocast("cpu", torch.bfloat16):
            return loss(model)

    return _subject(model, forward)


def compiled(model, loss, example) -> Subject:
    function = torch.compile(model)
    return _subject(model, lambda: loss(function))


def searched(space: dict, wrap=plain):
    """An LDP variant: `wrap` says how the model is called. native=False: without the C kernels."""
    options = dict(space)
    formulas = not options.pop("native", True)

    def make_it(model, loss, example) -> Subject:
        ldp_search.apply(model, ldp_search.SearchSpace(**options), example)
        ldp, inner = ldp_search.controller(model), wrap(model, loss, example)
        progress = iter(range(1, 1_000_000))

        def step():
            with native.disabled() if formulas else _nothing():
                inner.step()
                ldp.step(next(progress) / 1e6)

        def forward():
            with native.disabled() if formulas else _nothing():
                return inner.forward()

        return Subject(model, step, forward)

    return make_it


def variants() -> dict:
    """{name: maker of a Subject from (model, loss, example)}; a maker returns None for a model that it does not take."""
    return {
        "plain fp32": plain,
        "plain bf16 autocast": autocast,
        "plain fp32, compiled": compiled,
        **{name: searched(space) for name, space in SPACES.items()},
        "learned 3-8, gradients 8, bf16 autocast": searched(LEARNED, autocast),
        "learned 3-8, gradients 8, compiled": searched(LEARNED, compiled),
        **{name: _peer(change) for name, change in step_peers.peers().items()},
    }


def _peer(change):
    def make_it(model, loss, example) -> Subject | None:
        model = change(model)
        return None if model is None else plain(model, loss, example)

    return make_it


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return False


def measure(name: str, only: list[str], rounds: int) -> dict[str, dict]:
    """{variant: time, spread, saved, peak} of one model, the first three relative to plain."""
    base, loss, example = make(name)
    subjects, known = {}, variants()
    for variant, maker in known.items():
        asked = variant in only or any(word in variant for word in only if word not in known)
        if variant == "plain fp32" or not only or asked:
            subject = maker(copy.deepcopy(base), loss, example)
            if subject is not None:
                subjects[variant] = subject
    for subject in subjects.values():  # compiles, settles, touches the memory
        subject.step(), subject.step()
    saved = {variant: saved_bytes(subject.model, subject.forward) for variant, subject in subjects.items()}
    peak = {variant: peak_bytes(subject.step, torch.device("cpu")) for variant, subject in subjects.items()}
    times = {variant: [] for variant in subjects}
    gc.disable()
    for _ in range(rounds):
        for variant, subject in subjects.items():
            start = time.perf_counter()
            subject.step()
            times[variant].append(time.perf_counter() - start)
        gc.collect()
    gc.enable()
    unit = statistics.median(times["plain fp32"])
    rows = {}
    for variant, values in times.items():
        ratios = sorted(value / one for value, one in zip(values, times["plain fp32"], strict=True))
        rows[variant] = {
            "ms": statistics.median(values) * 1e3,
            "ratio": statistics.median(values) / unit,
            "spread": (ratios[-1 - len(ratios) // 4] - ratios[len(ratios) // 4]) / 2,  # half the middle half
            "saved": saved[variant] / saved["plain fp32"],
            "peak": peak[variant] / peak["plain fp32"],
            "saved_mib": saved[variant] / 2**20,
        }
    return rows


def main(words: list[str]) -> None:
    options = {"models": ",".join(MODELS), "only": "", "rounds": 9, "keep": 1, "json": ""}
    for word in words:
        key, _, value = word.partition("=")
        if key not in options:
            sys.exit(f"Unknown word {word!r}; known: {', '.join(options)}")
        options[key] = type(options[key])(value)
    if unknown := set(options["models"].split(",")) - set(MODELS):
        sys.exit(f"Unknown models {sorted(unknown)}; known: {', '.join(MODELS)}")
    kept = bool(options["keep"]) and keep_freed_memory()
    where = f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}"
    print(f"{where}, native kernels {native.status()}, memory kept: {kept}, {options['rounds']} rounds")
    results = {}
    for name in options["models"].split(","):
        rows = results[name] = measure(name, [w for w in options["only"].split(";") if w], options["rounds"])
        plain_row = rows["plain fp32"]
        print(f"\n{MODELS[name][0]} ({plain_row['ms']:.0f} ms, {plain_row['saved_mib']:.0f} MiB saved)")
        print("| step | time | saved | peak |\n|---|---|---|---|")
        for variant, r in rows.items():
            print(f"| {variant} | {r['ratio']:.2f} ± {r['spread']:.2f} | {r['saved']:.2f} | {r['peak']:.2f} |", flush=True)
    if options["json"]:
        with open(options["json"], "w") as file:
            json.dump({"where": where, "results": results}, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
