"""What a quantized training step costs: interleaved medians against the plain step of the same model.

    OMP_NUM_THREADS=1 python benchmarks/step.py [models=resnet20,vit,bert,gpt2] [only=WORDS] [rounds=9] [keep=1] [clock=wall]
        [json=FILE]

A step is forward, backward and `ldp.step`, without an optimizer. only='activations=16bit;static' takes the variants that are
named so, or whose names hold one of the words. clock=cpu counts the processor's time, which with one thread says more on a
machine that others use. keep=0 leaves the C library's memory settings as they are (runner/training/memory.py). "to compiled"
is the ratio to the compiled plain step, where that is among them. "saved" is what autograd keeps for backward, in bytes of
distinct storages without the parameters, and "peak" the largest sum of what torch allocates during a step; both as ratios to
plain. Peers (torchao, Brevitas) are measured where they are installed (step_peers.py).
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
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLIP = {"weight_quantizer": "clip", "input_quantizer": "clip"}
LEARNED = {"policy": "learned", "target_cost": 0.5}
DEFAULT = {  # search_spaces/ldp.yaml; of its steps one in 16 senses
    "policy": "learned", "target_cost": 0.3165, "bits": (2, 8), "grad_bits": (2, 8), "grad_quantizer": "per_block",
    "split_gradient": True, "weight_quantizer": {"name": "mse", "exact_zero": False}, "input_quantizer": "mse",
}  # fmt: skip
UNSENSED = {**DEFAULT, "sense_every": 1_000_000}
COMPILED_PLAIN = "plain fp32, compiled"
SPACES = {
    "the default, all bits learned": UNSENSED,
    "the default, a step that senses": {**DEFAULT, "sense_every": 1},
    "the default, int8": {**UNSENSED, "backend": "int8"},
    "the default, int8, input_gradient=rounded": {**UNSENSED, "backend": {"name": "int8", "input_gradient": "rounded"}},
    "the default, a scale a sample": {**UNSENSED, "grad_quantizer": "per_sample", "split_gradient": False},
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
COMPILED = (  # besides "learned 3-8, gradients 8"
    "the default, all bits learned", "the default, a step that senses", "learned 3-8, gradients 8, int8",
    "the same, int8, input_gradient=rounded",
)  # fmt: skip


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
        **{name: searched(space) for name, space in SPACES.items()},
        "learned 3-8, gradients 8, bf16 autocast": searched(LEARNED, autocast),
        COMPILED_PLAIN: compiled,
        "learned 3-8, gradients 8, compiled": searched(LEARNED, compiled),
        **{f"{name}, compiled": searched(SPACES[name], compiled) for name in COMPILED},
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


def measure(name: str, only: list[str], rounds: int, clock=time.perf_counter) -> dict[str, dict]:
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
            start = clock()
            subject.step()
            times[variant].append(clock() - start)
        gc.collect()
    gc.enable()
    return {
        variant: {
            "ms": statistics.median(values) * 1e3,
            "ratio": _ratio(values, times["plain fp32"]),
            "to_compiled": _ratio(values, times[COMPILED_PLAIN]) if "compiled" in variant and COMPILED_PLAIN in times else None,
            "saved": saved[variant] / saved["plain fp32"],
            "peak": peak[variant] / peak["plain fp32"],
            "saved_mib": saved[variant] / 2**20,
        }
        for variant, values in times.items()
    }


def _ratio(values: list[float], others: list[float]) -> tuple[float, float]:
    """(of the medians, half of the middle half of the rounds' ratios)."""
    ratios = sorted(value / other for value, other in zip(values, others, strict=True))
    spread = (ratios[-1 - len(ratios) // 4] - ratios[len(ratios) // 4]) / 2
    return statistics.median(values) / statistics.median(others), spread


def _shown(ratio: tuple[float, float] | None) -> str:
    return "" if ratio is None else f"{ratio[0]:.2f} ± {ratio[1]:.2f}"


def main(words: list[str]) -> None:
    options = {"models": ",".join(MODELS), "only": "", "rounds": 9, "keep": 1, "clock": "wall", "json": ""}
    for word in words:
        key, _, value = word.partition("=")
        if key not in options:
            sys.exit(f"Unknown word {word!r}; known: {', '.join(options)}")
        options[key] = type(options[key])(value)
    if unknown := set(options["models"].split(",")) - set(MODELS):
        sys.exit(f"Unknown models {sorted(unknown)}; known: {', '.join(MODELS)}")
    if options["clock"] not in CLOCKS:
        sys.exit(f"Unknown clock {options['clock']!r}; known: {', '.join(CLOCKS)}")
    kept = bool(options["keep"]) and keep_freed_memory()
    where = f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}"
    print(f"{where}, native kernels {native.status()}, memory kept: {kept}, {options['rounds']} rounds")
    results = {}
    for name in options["models"].split(","):
        only = [w for w in options["only"].split(";") if w]
        rows = results[name] = measure(name, only, options["rounds"], CLOCKS[options["clock"]])
        plain_row = rows["plain fp32"]
        print(f"\n{MODELS[name][0]} ({plain_row['ms']:.0f} ms, {plain_row['saved_mib']:.0f} MiB saved)")
        print("| step | time | to compiled | saved | peak |\n|---|---|---|---|---|")
        for variant, r in rows.items():
            ratios = f"{_shown(r['ratio'])} | {_shown(r['to_compiled'])}"
            print(f"| {variant} | {ratios} | {r['saved']:.2f} | {r['peak']:.2f} |", flush=True)
    if options["json"]:
        with open(options["json"], "w") as file:
            json.dump({"where": where, "results": results}, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
