"""The results of a sweep as Markdown: how many models are built, pass, are covered; why the others do not; the first names."""

from __future__ import annotations

import statistics
from collections import Counter

FIRST = {
    "timm": "resnet mobilenetv3 efficientnet convnext vision_transformer deit swin_transformer mlp_mixer regnet densenet",
    "hf": "bert distilbert roberta albert deberta-v2 electra xlnet modernbert gpt2 gpt_neox opt bloom llama mistral mixtral "
    "qwen2 qwen3 qwen2_moe qwen3_moe gemma gemma2 gemma3 phi phi3 falcon mamba mamba2 rwkv t5 bart pegasus whisper wav2vec2 "
    "vit swin segformer upernet mask2former detr clip siglip blip",
}
"""The names that people try first."""


def tables(results: dict[str, dict]) -> str:
    return "\n\n".join([_numbers(results), _kinds(results), _problems(results), _first(results)])


def _built(row: dict) -> bool:
    return "error" not in row and not row["checks"].get("plain")


def _passes(row: dict) -> bool:
    return _built(row) and not any(row["checks"].values())


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}".removesuffix(".0")


def _numbers(results: dict) -> str:
    lines = [
        "| | models | built | pass every check | MACs covered: least, median | without attention: least, median | "
        "a swap of Linear and Conv2d: least, median |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, title in (("timm", "timm modules"), ("hf", "transformers model types")):
        rows = [row for name, row in results.items() if name.startswith(family)]
        built = [row for row in rows if _built(row)]
        shares = []
        for key in ("coverage", "coverage_layers", "coverage_swap"):
            values = [row["numbers"][key] for row in built if key in row["numbers"]]
            shares.append(f"{_percent(min(values))}, {_percent(statistics.median(values))} %" if values else "-")
        lines.append(f"| {title} | {len(rows)} | {len(built)} | {sum(map(_passes, rows))} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _kinds(results: dict) -> str:
    """How many models fail each check, how many passed one in another way than most, and the time of all."""
    fails = Counter(check for row in results.values() if _built(row) for check, reason in row["checks"].items() if reason)
    each = ", ".join(f"{check} {count}" for check, count in fails.most_common()) or "none"
    numbers = [row["numbers"] for row in results.values() if _built(row)]
    minutes = sum(row.get("seconds", 0) for row in results.values()) / 60
    return (
        f"Checks that fail, with the number of models: {each}. Compared with noise of the size of rounding, since they choose "
        f"(top-k, codebooks, argmax): {sum('yardstick_16' in n for n in numbers)} models. Not pickled, since the plain model "
        f"cannot be either: {sum('notes' in n for n in numbers)}. Median error at 16 bits "
        f"{_median(numbers, 'error_16')}, at 8 bits {_median(numbers, 'error_8')}. {minutes:.0f} minutes of one process."
    )


def _median(numbers: list[dict], key: str) -> str:
    values = [n[key] for n in numbers if key in n]
    return f"{statistics.median(values):.1g}" if values else "-"


def _problems(results: dict) -> str:
    lines = ["| does not pass | why |", "|---|---|"]
    for name, row in sorted(results.items()):
        if _passes(row):
            continue
        why = row.get("error") or "; ".join(f"{check}: {reason}" for check, reason in row["checks"].items() if reason)
        kind, why = "" if _built(row) else "not built: ", why.removeprefix("NotImplementedError: ")
        lines.append(f"| {name} | {kind}{' '.join(why.split())[:160].replace('|', '/')} |")
    return "\n".join(lines) if len(lines) > 2 else "Every model passes."


def _first(results: dict) -> str:
    lines = [
        "| model | `apply`, attention=True | `apply` | a swap of Linear and Conv2d | error at 16 bits | at 8 bits |",
        "|---|---|---|---|---|---|",
    ]
    for family, words in FIRST.items():
        for name in (f"{family}:{word}" for word in words.split()):
            numbers = results.get(name, {}).get("numbers", {})
            shares = [_percent(numbers.get(key)) for key in ("coverage", "coverage_layers", "coverage_swap")]
            errors = [f"{numbers[key]:.1g}" if key in numbers else "-" for key in ("error_16", "error_8")]
            lines.append(f"| {name} | {' | '.join(shares)} | {' | '.join(errors)} |")
    return "\n".join(lines)
