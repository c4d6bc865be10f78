"""The model card: README.md of a saved model, with its allocation, costs and schedule picture.

What is between the two marks is ours and written anew each time; whatever stands around them is the user's and stays. A
README.md without the marks is not touched.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...core import Allocation, Controller
from ...core.controller.finalize import allocation
from ...core.messages import warn

CARD, PICTURE = "README.md", "schedule.png"
BEGIN, END = "<!-- ldp_search: written by save_pretrained -->", "<!-- ldp_search: end -->"
SHOWN_LAYERS = 24  # a longer table is folded
SHOWN_LEFT_OUT = 5
SPLIT = {"grad bits": "gradient bits, dL/dx", "weight grad bits": "gradient bits, dL/dw"}
TAGS = ["ldp_search", "quantization", "mixed-precision", "learned-precision"]


def write_card(ldp: Controller, record: dict[str, Any], stage: Path, folder: Path, name: str) -> None:
    """Put the card of a model into `stage`, and its picture where there is a trajectory.

    Args:
        record: of ldp.json. folder: where a card may be already. name: what the loading example calls the model.
    """
    picture = _picture(ldp)
    if picture is not None:
        (stage / PICTURE).write_bytes(picture)
    path = folder / CARD
    text = merged(
        path.read_text(encoding="utf-8") if path.is_file() else None, make_card(ldp, record, picture is not None, name)
    )
    if text is None:
        warn(
            f"{path} was not written by save_pretrained and stays as it is; for the table of bits in it, put the lines "
            f"{BEGIN!r} and {END!r} where it shall stand.",
        )
    else:
        (stage / CARD).write_text(text, encoding="utf-8")


def merged(old: str | None, card: str) -> str | None:
    """`card`; where there is an old text, that one with our part replaced; None where it has no such part."""
    if old is None:
        return card
    if not (BEGIN in old and END in old.partition(BEGIN)[2]):
        return None
    before, _, rest = old.partition(BEGIN)
    return before + BEGIN + card.partition(BEGIN)[2].partition(END)[0] + END + rest.partition(END)[2]


def make_card(ldp: Controller, record: dict[str, Any], picture: bool, name: str) -> str:
    """The whole text of a card: metadata, title, costs, picture, how to load, table of bits."""
    parts = [_what(ldp, record), _costs(ldp, record)]
    if picture:
        parts.append(f"![Bits of every layer over the training]({PICTURE})")
    parts += [_loading(record, name), _table(allocation(ldp))]
    title = f"# {Path(name).name or 'Model'}"
    return "\n\n".join([_metadata(ldp, record), title, BEGIN, *parts, END]) + "\n"


def _metadata(ldp: Controller, record: dict[str, Any]) -> str:
    from huggingface_hub import ModelCardData

    source = record["model"]["source"]
    options = {"library_name": source if source != "none" else "ldp_search", "tags": TAGS}
    base = getattr(getattr(ldp.model, "config", None), "_name_or_path", None)
    if isinstance(base, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists():
        options["base_model"] = base
    return f"---\n{ModelCardData(**options).to_yaml()}\n---"


def _what(ldp: Controller, record: dict[str, Any]) -> str:
    policy, space = ldp.policy.name, ldp.space
    how = (
        "were learned while it was trained"
        if ldp.policy.needs_gradients or ldp.policy.needs_damage
        else f"were set by the policy `{policy}`"
    )
    budgets = (
        ("a training cost of {:g}", space.target_cost if ldp.policy.meets_target else None),
        ("{:g} of the highest bits' operations of inference", space.target_inference),
        ("{:g} MiB of weights", space.target_size),
        ("{:g} of the highest bits' predicted latency", space.target_latency),
    )
    given = [words.format(value) for words, value in budgets if value is not None]
    target = f", to {', '.join(given)}" if given else ""
    progress = record["progress"]
    if record["frozen"]:
        state = "They are final."
    else:
        state = f"The training is {'done' if progress >= 1 - 1e-9 else f'at {progress:.0%}'}; the bits are not frozen."
    return (
        f"The numbers of bits of this model's {len(record['layers'])} quantized layers {how}{target}, with "
        f"[ldp_search](https://arxiv.org/abs/2203.07713) (Learnable Dynamic Precision). {state}"
    )


def _costs(ldp: Controller, record: dict[str, Any]) -> str:
    summary, coverage = record["summary"], record["summary"]["coverage"]
    if record["profile"] is None:
        return "Costs are not known: no input was given to count operations on."
    plain = sum(layer["weight_numel"] for layer in record["layers"].values()) * 4 / 2**20
    on = f"; counted on {ldp.profile.inputs}" if ldp.profile.inputs else ""
    rows = [
        ("training cost", f"{summary['mean_relative_cost']:.3f}", "of the highest bits everywhere, averaged over the training"),
        ("inference cost", f"{summary['relative_inference_cost']:.3f}", "of the highest bits everywhere"),
        ("weights", f"{summary['weight_mib']:.3f} MiB", f"of the quantized layers at their bits ({plain:.3f} MiB in fp32)"),
        ("coverage", f"{coverage['share']:.1%}", "of the MACs go through quantized products" + on),
    ]
    if summary.get("relative_latency") is not None:
        on = f"of the highest bits everywhere, as predicted: {summary['latency_ms']:.3g} ms"
        rows.insert(2, ("latency", f"{summary['relative_latency']:.3f}", on))
    left = coverage["left_out"]
    lines = ["| | | |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    if left:
        named = [f"`{item['name']}` ({item['macs']:,} MACs: {item['reason']})" for item in left[:SHOWN_LEFT_OUT]]
        more = f"; and {len(left) - SHOWN_LEFT_OUT} more, in ldp.json" if len(left) > SHOWN_LEFT_OUT else ""
        lines += ["", f"Not quantized: {'; '.join(named)}{more}."]
    return "\n".join(lines)


def _loading(record: dict[str, Any], name: str) -> str:
    model = "" if record["model"]["source"] != "none" else ", model=your_model"
    plain = {
        "transformers": f'`{record["model"].get("class")}.from_pretrained("{name}")` of transformers',
        "timm": '`timm.create_model(..., checkpoint_path="model.safetensors")`',
    }.get(record["model"]["source"], "`safetensors`")
    return (
        "## Loading\n\n```python\nimport ldp_search\n\n"
        f'model = ldp_search.load_pretrained("{name}"{model})  # computes at these bits\n```\n\n'
        f"The weights are stored in floating point, under their plain names: {plain} loads them without the bits."
    )


def _table(found: Allocation) -> str:
    columns, rows = found.table()
    split = "weight grad bits" in columns
    heads = [SPLIT.get(name, name) if split else name.replace("grad ", "gradient ") for name in columns]
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "--:|" * (len(columns) - 2)]
    for layer, kind, macs, *bits in rows:
        shown = layer.replace("|", "\\|") or "(the model itself)"
        lines.append(f"| `{shown}` | {kind} | {macs:,} | {' | '.join(map(str, bits))} |")
    table = "\n".join(lines)
    if len(rows) > SHOWN_LAYERS:
        table = f"<details>\n<summary>All {len(rows)} layers</summary>\n\n{table}\n\n</details>"
    return f"## Allocation\n\n{table}"


def _picture(ldp: Controller) -> bytes | None:
    """The heatmap of the report; None without a trajectory, and where it cannot be drawn: that must not cost the model."""
    if ldp.trajectory.seen == 0:
        return None
    try:
        from ..report.heatmap import scale_of, schedule_figure
        from ..report.live import run_of

        run = run_of(ldp)
        return schedule_figure(run, scale_of(run))
    except Exception as error:
        warn(f"The schedule could not be drawn ({type(error).__name__}: {error}); all else is saved.")
        return None
