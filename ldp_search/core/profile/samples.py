"""How many samples a forward takes, from what goes in and what comes out."""

from __future__ import annotations

from torch import Tensor


def batch_size(args: tuple, kwargs: dict, main: str | None = None, output=None) -> int:
    """Samples among the inputs; 1 where nothing tells.

    A tensor counts by its first dimension. A list of tensors is ambiguous: pictures of a detection model, each without a batch
    dimension, or several inputs that each have one; what comes out, one result a picture or tensors with that first dimension,
    tells which. So it does where the inputs are an object that holds its tensors somewhere.

    main: the keyword that transformers calls the model's main input; others may have the patches of all pictures in a row.
    """
    main = main[0] if isinstance(main, list | tuple) and main else main
    if isinstance(main, str) and isinstance(kwargs.get(main), Tensor):
        return kwargs[main].shape[0]
    for value in [*args, *kwargs.values()]:
        found = _counts(value)
        if found:
            come_out = _results(output)
            return next((n for n in found if n in come_out), found[0])
    return min(_results(output), default=1) if args or kwargs else 1


def _counts(value) -> list[int]:
    """What one input may count, the likeliest first; nothing where it holds no tensor with dimensions."""
    if isinstance(value, Tensor):
        return [value.shape[0]] if value.dim() > 0 else []
    if hasattr(value, "values") and callable(value.values):
        value = tuple(value.values())
        return next((found for x in value if (found := _counts(x))), [])
    if not isinstance(value, list | tuple):
        return []
    within = next((found for x in value if (found := _counts(x))), [])
    if within and isinstance(value, list):
        return [len(value), *within] if _are_samples(value) else [*within, len(value)]
    return within


def _are_samples(values: list) -> bool:
    """Whether a list looks like samples: mappings, or tensors that could not be stacked along a batch dimension they share."""
    if all(hasattr(value, "keys") for value in values):
        return True
    tensors = [value for value in values if isinstance(value, Tensor)]
    return len(tensors) == len(values) and (
        len({t.shape[0] for t in tensors}) > 1 or all(t.dim() == 3 and t.shape[0] in (1, 3, 4) for t in tensors)
    )


def _results(output) -> set[int]:
    """How many samples the output may be of."""
    if isinstance(output, Tensor):
        return {output.shape[0]} if output.dim() > 0 else set()
    if isinstance(output, list) and output and all(hasattr(x, "keys") or isinstance(x, Tensor) for x in output):
        shared = {x.shape[0] for x in output if isinstance(x, Tensor) and x.dim() > 0}
        return {len(output)} | (shared if len(shared) == 1 else set())
    values = output.values() if hasattr(output, "values") else output if isinstance(output, tuple) else ()
    return next((found for x in values if (found := _results(x))), set())


def shapes(args: tuple, kwargs: dict) -> str:
    """The shapes of the tensors among the inputs, in words."""
    named = [*(("", x) for x in args), *((f"{key} ", x) for key, x in kwargs.items())]
    return ", ".join(f"{key}{words}" for key, x in named if (words := _in_words(x)))


def _in_words(value) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if not isinstance(value, list | tuple) or not any(isinstance(x, Tensor) for x in value):
        return ""
    each = [_in_words(x) for x in value if isinstance(x, Tensor)]
    return f"{len(each)} of {each[0]}" if len(set(each)) == 1 else f"[{', '.join(each)}]"
