"""The rows: how the bits are chosen, as fields of a search space. One place says what each name in the tables stands for."""

from __future__ import annotations

from dataclasses import dataclass

PUBLISHED = {"weight_quantizer": "minmax", "input_quantizer": "minmax", "grad_quantizer": "stochastic"}
"""Quantizers of CPT and the paper: ranges from minimum to maximum, gradients with one scale a tensor."""
NEW = {
    "weight_quantizer": {"name": "mse", "exact_zero": False},
    "input_quantizer": "mse",
    "grad_quantizer": "per_block",
}
"""Ranges of least squared error, gradients with one scale for 32 values along what a product sums over."""
A_SAMPLE = NEW | {"grad_quantizer": "per_sample"}
"""The same with one scale a sample."""
SEARCHED = {"bits": (2, 8), "grad_bits": (2, 8), "split_gradient": True}
ONE_GRADIENT = {"bits": (2, 8), "grad_bits": (3, 8), "split_gradient": False}
LOWEST = 27 / 192  # the cost of 3/3/3 bits everywhere
OLD_SIGNAL = {"policy": "bit_gradient", "bits": (2, 8), "grad_bits": 8}


@dataclass(frozen=True)
class Row:
    """space: fields of the SearchSpace, None for plain fp32. priority: 1 runs first.

    replays: row whose final allocation it takes. cyclic: the policy's `cycles` come from the recipe. beside: row of uniform
    bits at exactly its cost. part_of: the row of the whole method, from which it differs in one part.
    """

    name: str
    space: dict | None
    priority: int = 2
    replays: str | None = None
    cyclic: bool = False
    beside: str | None = None
    part_of: str | None = None


def _static(weight: int, inputs: int, grad: int, quantizers: dict) -> dict:
    return quantizers | {"policy": "static", "weight_bits": weight, "input_bits": inputs, "grad_bits": grad}


def _learned(target: float, **changes) -> dict:
    return NEW | SEARCHED | {"policy": "learned", "target_cost": target} | changes


_CPT = {"policy": "cyclic", "bits": (3, 8), "grad_bits": 8}

ROWS = {
    row.name: row
    for row in (
        Row("static8", _static(8, 8, 8, PUBLISHED), 1),
        Row("cpt", PUBLISHED | _CPT, 1, cyclic=True),
        Row("learned_0.3165", _learned(0.3165), 1),
        Row("learned_0.25", _learned(0.25), 1, beside="uniform_444"),
        Row("uniform_554", _static(5, 5, 4, NEW), 1),
        Row("uniform_445", _static(4, 4, 5, NEW), 1),
        Row("learned_0.386", _learned(0.386), 1),
        # Where rounding costs most: learned beside the uniform triple of exactly its cost.
        Row("uniform_444", _static(4, 4, 4, NEW), 1),
        Row("uniform_453", _static(4, 5, 3, NEW), 1),
        Row("uniform_443", _static(4, 4, 3, NEW), 1),
        Row("uniform_333", _static(3, 3, 3, NEW), 1),
        Row("learned_as_554", _learned(65 / 192), 1, beside="uniform_554"),
        Row("learned_as_443", _learned(40 / 192), 1, beside="uniform_443"),
        Row("learned_as_333", _learned(LOWEST), 1, beside="uniform_333"),
        Row("random_as_443", NEW | SEARCHED | {"policy": "random", "target_cost": 40 / 192}, beside="uniform_443"),
        Row("random_0.3165", NEW | SEARCHED | {"policy": "random", "target_cost": 0.3165}),
        Row("replay_0.20", NEW | SEARCHED | {"policy": "replay"}, replays="learned_0.20"),
        Row("replay_as_333", NEW | SEARCHED | {"policy": "replay"}, replays="learned_as_333"),
        Row("static448", _static(4, 4, 8, PUBLISHED)),
        Row("cpt_g5", NEW | _CPT | {"grad_bits": 5}, cyclic=True),
        Row("learned_0.20", _learned(0.20)),
        Row("learned_0.50", _learned(0.50)),
        Row("learned_no_grad_bits", _learned(0.417, grad_bits=8)),
        Row("learned_old_signal", PUBLISHED | OLD_SIGNAL | {"target_cost": 0.417}),
        Row("fp32", None),
        Row("static8_new", _static(8, 8, 8, NEW)),
        *(
            Row(f"static8_new_{kind}", _static(8, 8, 8, PUBLISHED | {name: NEW[name]}), 3, part_of="static8")
            for kind, name in zip(("weights", "inputs", "gradients"), PUBLISHED, strict=True)
        ),
        Row("learned_0.633", _learned(0.633)),
        Row("uniform_554_sample_scales", _static(5, 5, 4, A_SAMPLE), part_of="uniform_554"),
        # One part of the method taken out, or changed, at a time: where rounding costs most, and at the default's budget.
        Row("as_333_one_gradient", _learned(LOWEST, **ONE_GRADIENT | {"grad_bits": (2, 8)}), 3, part_of="learned_as_333"),
        Row("as_333_sample_scales", _learned(LOWEST, **A_SAMPLE), 3, part_of="learned_as_333"),
        Row("as_333_without_input_clip", _learned(LOWEST, input_quantizer="minmax"), 3, part_of="learned_as_333"),
        Row("as_333_without_weight_grid", _learned(LOWEST, weight_quantizer="minmax"), 3, part_of="learned_as_333"),
        Row(
            "as_333_grad_rate_0.25",
            _learned(LOWEST, policy={"name": "learned", "grad_rate": 0.25}),
            3,
            part_of="learned_as_333",
        ),
        Row("as_333_grad_rate_4", _learned(LOWEST, policy={"name": "learned", "grad_rate": 4.0}), 3, part_of="learned_as_333"),
        Row("as_333_without_freeze", _learned(LOWEST, policy={"name": "learned", "freeze": 0.0}), 3, part_of="learned_as_333"),
        Row("learned_0.3165_three_bits", _learned(0.3165, grad_bits=(3, 8)), 3, part_of="learned_0.3165"),
        Row("learned_0.3165_one_gradient", _learned(0.3165, **ONE_GRADIENT), 3, part_of="learned_0.3165"),
        Row("learned_0.3165_sample_scales", _learned(0.3165, **A_SAMPLE, **ONE_GRADIENT), 3, part_of="learned_0.3165"),
        Row("learned_0.25_sample_scales", _learned(0.25, **A_SAMPLE, **ONE_GRADIENT), 3, part_of="learned_0.25"),
        Row("learned_0.386_sample_scales", _learned(0.386, **A_SAMPLE, **ONE_GRADIENT), 3, part_of="learned_0.386"),
        Row("grad_rate_0.25", _learned(0.3165, policy={"name": "learned", "grad_rate": 0.25}), 3, part_of="learned_0.3165"),
        Row("grad_rate_4", _learned(0.3165, policy={"name": "learned", "grad_rate": 4.0}), 3, part_of="learned_0.3165"),
        Row("without_input_clip", _learned(0.3165, input_quantizer="minmax"), 3, part_of="learned_0.3165"),
        Row("without_weight_grid", _learned(0.3165, weight_quantizer="minmax"), 3, part_of="learned_0.3165"),
        Row("without_fine_scales", _learned(0.3165, grad_quantizer="symmetric"), 3, part_of="learned_0.3165"),
        Row("without_freeze", _learned(0.3165, policy={"name": "learned", "freeze": 0.0}), 3, part_of="learned_0.3165"),
    )
}


def space_of(row: Row, cycles: int, seed: int, replayed: str | None = None, **always) -> dict | None:
    """Fields of the row's search space; replayed: allocation.json of the row that it replays; always: fields of its network."""
    if row.space is None:
        return None
    space = row.space | {"seed": seed} | always
    if row.cyclic:
        space["policy"] = {"name": space["policy"], "cycles": cycles}
    if row.replays is not None:
        space["policy"] = {"name": space["policy"], "path": replayed or ""}
    return space
