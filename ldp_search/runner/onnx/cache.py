"""A causal language model with its cache of keys and values among its inputs and outputs: it reads one token at a time.

The inputs are input_ids (batch, sequence), attention_mask (batch, past_sequence + sequence) where the example has one, and
past_key_values.{layer}.key and .value (batch, heads, past_sequence, head size); the outputs logits (batch, sequence, words) and
present.{layer}.key and .value, the past followed by what was read. The names are those of Optimum and onnxruntime-genai.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from onnxscript import ir
from torch import Tensor, nn

from . import float_graph

IDS, MASK, PAST = "input_ids", "attention_mask", "past_key_values"
BATCH, SEQUENCE, PAST_SEQUENCE = "batch", "sequence", "past_sequence"
TRACED_PAST, TRACED_TOKENS, TRACED_BATCH = 3, 4, 2  # sizes of 0 and 1 would be taken for constants
STEPS = 4  # last tokens that a file is compared on one by one
WITHOUT = "Export without cache"


class CachedModel(nn.Module):
    """Calls a causal language model of transformers with tensors alone.

    Positions follow from the past and, where there is a mask, from what it lets through, as in transformers' `generate`: rows
    of unequal length are filled up on the left.
    """

    PREFIX = "model."  # of the names of the model's modules in here

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.training = model.training
        self.positions = "position_ids" in inspect.signature(model.forward).parameters
        self.cache = _parameter(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, past_key_values: list[tuple[Tensor, Tensor]]):
        """(logits, key of layer 0, value of layer 0, ...)."""
        given: dict[str, Any] = {}
        if attention_mask is not None:
            given[MASK] = attention_mask
            if self.positions:
                given["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        given[self.cache] = _cache(past_key_values)
        output = self.model(input_ids=input_ids, use_cache=True, **given)
        return output.logits, *(x for layer in output[self.cache].layers for x in (layer.keys, layer.values))


def _parameter(model: nn.Module) -> str | None:
    """What a forward calls its cache, which depends on transformers' version; None: it has none."""
    takes = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", PAST) if name in takes), None) if {IDS, "use_cache"} <= takes.keys() else None


def _cache(pairs: list[tuple[Tensor, Tensor]]):
    """transformers' cache that holds these keys and values. A window of attention is left to the mask: all are kept."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    for keys, values in pairs:
        layer = DynamicLayer()
        layer.keys, layer.values = keys, values  # `update` would copy them behind an empty tensor
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        cache.layers.append(layer)
    return cache


class Example(NamedTuple):
    """Example inputs of a `CachedModel`: whole texts behind an empty past.

    ids: (batch, length >= 2). mask: as long, or None. past: (key, value) of each layer, of length 0.
    """

    ids: Tensor
    mask: Tensor | None
    past: list[tuple[Tensor, Tensor]]

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs, in its order."""
        return [IDS, *([MASK] if self.mask is not None else []), *_names(PAST, len(self.past))]

    @property
    def outputs(self) -> list[str]:
        return ["logits", *_names("present", len(self.past))]

    @property
    def feed(self) -> dict[str, np.ndarray]:
        """{input of the graph: value}."""
        values = [x for x in (self.ids, self.mask, *itertools.chain(*self.past)) if x is not None]
        return {name: x.detach().cpu().numpy() for name, x in zip(self.inputs, values, strict=True)}


def _names(what: str, layers: int) -> list[str]:
    return [f"{what}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def check_model(model: nn.Module) -> None:
    """ValueError where the model is of a kind without such a cache."""
    kind, config = type(model).__name__, getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"cache takes causal language models; {kind} is an encoder-decoder, whose caches are not exported yet. {WITHOUT}."
        )
    if config is None or _parameter(model) is None:
        raise ValueError(
            f"cache takes causal language models of transformers, whose forward takes a cache of keys and values; that of "
            f"{kind} takes none. {WITHOUT}."
        )
    from transformers import __version__, cache_utils

    if not hasattr(cache_utils, "DynamicLayer"):
        raise ValueError(f"cache needs transformers of at least 4.56; received {__version__}: pip install -U transformers.")


def example(model: nn.Module, args: tuple, kwargs: dict) -> Example:
    """The example inputs of a forward as those of its `CachedModel`. The model is run once, in which its cache shows itself.

    Raises:
        ValueError: inputs beside ids and mask, or a cache of another kind than keys and values of every token.
    """
    ids, mask = _tokens(model, args, kwargs)
    kind = type(model).__name__
    try:
        logits, *found = CachedModel(model)(ids, mask, [])
    except Exception as error:  # of a cache of its own kind (states, windows)
        why = f"its forward with an empty one fails ({float_graph.first_line(error)})"
    else:
        grown = [
            isinstance(x, Tensor) and x.dim() == 4 and x.shape[0] == len(ids) and x.shape[2] == ids.shape[1] for x in found
        ]
        if grown and all(grown) and logits.dim() == 3 and logits.shape[1] == ids.shape[1]:
            pairs = zip(found[::2], found[1::2], strict=True)
            return Example(ids, mask, [(keys[:, :, :0], values[:, :, :0]) for keys, values in pairs])
        why = "its forward gives no logits, keys and values of every token"
    raise ValueError(f"cache takes models that keep keys and values of every token; of {kind} {why}. {WITHOUT}.")


def _tokens(model: nn.Module, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor | None]:
    """(ids, mask) of a forward's inputs, doubled where they are one token long; of 64 bits whatever they were, as runtimes feed
    them.
    """
    given = dict(inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments)
    given |= given.pop("kwargs", {})
    given = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    ids, mask = given.pop(IDS, None), given.pop(MASK, None)
    if given or ids is None or ids.dim() != 2 or (mask is not None and mask.shape != ids.shape):
        shapes = {k: tuple(x.shape) for k, x in {IDS: ids, MASK: mask, **given}.items() if x is not None}
        raise ValueError(
            f"With cache the example inputs are {IDS} (batch, length) and, where the file is to take one, {MASK} of the same "
            f"shape: positions follow by themselves. Received {shapes}."
        )
    if ids.shape[1] == 1:
        ids, mask = torch.cat([ids, ids], 1), None if mask is None else torch.cat([mask, mask], 1)
    return ids.long(), None if mask is None else mask.long()


def graph(model: CachedModel, shown: Example) -> ir.Model:
    """The float graph, unoptimized, with batch, sequence and past sequence free.

    Raises:
        ValueError: the model's own code fixes one of them.
    """
    batch, sequence, past_sequence = (torch.export.Dim(name) for name in (BATCH, SEQUENCE, PAST_SEQUENCE))
    kept = {0: batch, 2: past_sequence}
    mask_shape = None if shown.mask is None else {0: batch, 1: torch.export.Dim.AUTO}
    shapes = ({0: batch, 1: sequence}, mask_shape, [(kept, kept) for _ in shown.past])
    try:
        made = float_graph.traced(model, _traced(shown), {}, shown.outputs, shapes)
    except Exception as error:  # it raises many kinds
        raise ValueError(
            f"{type(model.model).__name__} cannot be exported with its cache: {float_graph.first_line(error)}. {WITHOUT}."
        ) from error
    for value, name in zip(made.graph.inputs, shown.inputs, strict=True):
        value.name = name
        if not all(isinstance(value.shape[d], ir.SymbolicDim) for d in (0, 1 if name in (IDS, MASK) else 2)):
            raise ValueError(
                f"{type(model.model).__name__} cannot be exported with its cache: its computation fixes a length or the batch "
                f"of {name}, to {value.shape}. {WITHOUT}."
            )
    _name_dimensions(made.graph)
    return made


def _traced(shown: Example) -> tuple:
    """Inputs of sizes that stand for any. Their values do not matter."""
    ids = shown.ids[:1, :1].expand(TRACED_BATCH, TRACED_TOKENS).contiguous()
    length = TRACED_PAST + TRACED_TOKENS
    mask = None if shown.mask is None else shown.mask.new_ones(TRACED_BATCH, length)
    past = [tuple(x.new_zeros(TRACED_BATCH, x.shape[1], TRACED_PAST, x.shape[3]) for x in pair) for pair in shown.past]
    return ids, mask, past


def _name_dimensions(graph: ir.Graph) -> None:
    """The free dimensions bear their names wherever they stand, in place of the exporter's s53."""
    inputs = {value.name: value.shape for value in graph.inputs}
    names = {inputs[IDS][0].value: BATCH, inputs[IDS][1].value: SEQUENCE, inputs[f"{PAST}.0.key"][2].value: PAST_SEQUENCE}
    if MASK in inputs:
        names[inputs[MASK][1].value] = f"{PAST_SEQUENCE} + {SEQUENCE}"
    for value in [*graph.inputs, *(out for node in graph for out in node.outputs)]:
        for index, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                value.shape[index] = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim.value)


def as_file(model: CachedModel) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """The model called as a file with its cache is, feed -> outputs."""

    @torch.no_grad()
    def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        device = next(model.parameters()).device
        given = {name: torch.from_numpy(value).to(device) for name, value in feed.items()}
        past = [value for name, value in given.items() if name.startswith(PAST)]
        outputs = model(given[IDS], given.get(MASK), list(zip(past[::2], past[1::2], strict=True)))
        return [x.cpu().numpy() for x in outputs]

    return run


def token_by_token(run: Callable[[dict], list[np.ndarray]], feed: dict[str, np.ndarray], last: int = STEPS) -> list[np.ndarray]:
    """Outputs of a file with a cache, as of one call, when it reads the last tokens one at a time and those before at once.

    Args:
        run: the file, feed -> outputs. feed: that of one call.
        last: how many, but for the first token at least.
    """
    ids, past, logits = feed[IDS], {k: v for k, v in feed.items() if k.startswith(PAST)}, []
    length = ids.shape[1]
    ends = range(max(1, length - last), length + 1)
    before = next(iter(past.values())).shape[2]
    for start, end in itertools.pairwise([0, *ends]):
        now = {IDS: ids[:, start:end]} | ({MASK: feed[MASK][:, : before + end]} if MASK in feed else {})
        found, *present = run(now | past)
        logits.append(found)
        past = dict(zip(past, present, strict=True))
    return [np.concatenate(logits, 1), *past.values()]


def same_tokens(found: np.ndarray, expected: np.ndarray, feed: dict[str, np.ndarray]) -> float:
    """Share of places with the same next token, of logits (batch, sequence, words), padding left out."""
    same = found.argmax(-1) == expected.argmax(-1)
    return float(np.average(same, weights=feed[MASK][:, -same.shape[1] :] if MASK in feed else None))


def without_padding(outputs: list[np.ndarray], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Logits, keys and values with zeros where the mask lets nothing through: nobody reads what is there."""
    if MASK not in feed:
        return outputs
    mask, (logits, *present) = feed[MASK] != 0, outputs
    held = [np.where(mask[:, None, -array.shape[2] :, None], array, 0) for array in present]
    return [np.where(mask[:, -logits.shape[1] :, None], logits, 0), *held]
