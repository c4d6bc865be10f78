"""Random words of the command line: a run, or one message with exit status 2 and nothing written."""

from __future__ import annotations

import contextlib
import io
import random
import tempfile
from pathlib import Path

from torch import nn

from ldp_search.config.settings import RUN_FIELDS, SPACE_FIELDS
from ldp_search.run import main

from .worker import Find

SHORT = [
    "task=digits",
    "limit=40",
    "eval_limit=20",
    "steps=2",
    "batch_size=8",
    "trackers=none",
    "model=benchmarks.fuzz.words:net",
]
SENSIBLE = {
    "policy": ["learned", "static", "cyclic", "random", "progressive", "ramp"], "bits": ["[2,8]", "8", "[4,4]", "3"],
    "grad_bits": ["8", "32", "[4,8]", "6"], "backend": ["simulate", "reference", "int8"], "tie": ["true"],
    "relaxation": ["round", "interpolate"], "granularity": ["layer", "block", "network"], "space": ["cyclic", "ldp"],
    "weight_quantizer": ["minmax", "clip"], "target_cost": ["0.5", "0.3", "1"], "min_coverage": ["0.5", "1"],
    "optimizer": ["sgd", "adamw"], "lr": ["0.1", "1e-3"], "accumulate": ["1", "2", "4", "8"], "batch_size": ["1", "2", "8"],
    "precision": ["fp32", "bf16"], "ema": ["0.9"], "clip_norm": ["1"], "attention": ["true"], "activations": ["16bit"],
    "eval_batch_size": ["1", "7"], "data_workers": ["0"], "seed": ["1"], "warmup": ["0.5"], "epochs": ["1"],
    "lr_schedule": ["cosine", "linear"], "skip": ["*"], "fixed": ["{'*': 8}"], "log_every": ["1"], "checkpoint_every": ["1"],
    "model": ["timm:cifar_resnet20", "benchmarks.fuzz.words:narrow", "benchmarks.fuzz.words:net"], "dataset.flip": ["true"],
    "dataset.pad": ["1"], "dataset.mixup": ["0.5"], "dataset.label_smoothing": ["0.1"], "dataset.size": ["8", "4", "12"],
}  # fmt: skip
ODD = [
    "", "null", "-1", "0", "1e9", "nan", "inf", "true", "[]", "[1,2,3]", "{a: 1}", "abc", "'", ":", "*", "../x", "é", "0.5",
    "{}", "[[1]]",
]  # fmt: skip


def net(num_classes: int, in_chans: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_chans, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))


def narrow(num_classes: int, in_chans: int) -> nn.Module:
    """Ends in a batch norm over maps of a single pixel."""
    head = (nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, num_classes))
    return nn.Sequential(nn.Conv2d(in_chans, 6, 3), *head)


def case(seed: int) -> str:
    """One command line. Raises Find, or whatever main lets through."""
    draw = random.Random(seed)
    words = [_word(draw) for _ in range(draw.randint(1, 4))]
    dry = draw.random() < 0.4
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        line = [*SHORT, f"output={output}", *words, *(["--print-config"] if dry else [])]
        said, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            status = main(line)
        text = errors.getvalue()
        if "Traceback" in text:
            raise Find(f"{words}: a traceback: {text[-600:]}")
        if status not in (0, 1, 2) or (status == 0 and not dry and not (output / "result.json").is_file()):
            raise Find(f"{words}: exit status {status}: {text[-300:]}")
        if status == 2 and output.exists():
            raise Find(f"{words}: refused, but {output.name} was written: {text[-300:]}")
        if status == 2 and len(text.strip()) < 40:
            raise Find(f"{words}: a message that tells nothing: {text!r}")
        if status == 1 and not any(reason in text for reason in ("loss is", "Not all weights are finite")):
            raise Find(f"{words}: failed after the training had begun: {text[-600:]}")
        return f"{words}: {status} {' '.join(text.split())[:160]}"


def _word(draw: random.Random) -> str:
    """KEY=VALUE: mostly a setting that there is with a value that makes sense, else with an odd one, or a word misspelt."""
    fields = [*RUN_FIELDS, *SPACE_FIELDS]
    kind = draw.random()
    if kind < 0.6:
        key = draw.choice(sorted(SENSIBLE))
        return f"{key}={draw.choice(SENSIBLE[key])}"
    key = draw.choice(
        [field for field in fields if field not in ("output", "resume", "data", "task", "steps", "limit", "model")]
    )
    if kind < 0.9:
        return f"{key}={draw.choice(ODD)}"
    if kind < 0.95:
        return f"{key[:-1]}x={draw.choice(ODD)}"
    return draw.choice([key, f"{key}.option=1", f"dataset.{key}=1", f"={key}", f"policy.{key}=2", f"model.{key}=1"])
