"""A model's float graph, and what its quantized form needs beside it: its layers' nodes, and inputs with torch's outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from onnxscript import ir
from torch import nn

from . import cache, check, float_graph, marks
from .exported_forward import ready
from .marks import Marker


class Traced(NamedTuple):
    """nodes: {layer: its products}. feed: {input of the graph: value}. expected: outputs of the quantized model for it, called
    `outputs` in the graph. own_error, free_batch, free_length, cached_layers: as of `Export`. markers: see `marks`.
    by_token: with a cache, what is expected where the last tokens are read one by one.
    """

    graph: ir.Model
    nodes: dict[str, list[ir.Node]]
    feed: dict[str, np.ndarray]
    expected: Any
    outputs: list[str]
    own_error: float
    free_batch: bool
    free_length: bool
    markers: dict[str, Marker]
    cached_layers: int = 0
    by_token: list[np.ndarray] | None = None


def plain(ldp, args: tuple, kwargs: dict) -> Traced:
    """The model as it is called."""
    with ready(ldp.model):
        expected = ldp.model(*args, **kwargs)
        own_error = check.own_error(ldp, lambda: ldp.model(*args, **kwargs), expected)
        with ldp.disabled(), marks.marked(ldp) as markers:
            ldp.model(*args, **kwargs)
            outputs = float_graph.output_names(expected)
            graph, freedom = float_graph.float_graph(ldp.model, args, kwargs, outputs)
    nodes, feed = _nodes(graph, ldp.model, ldp), check.feed(graph.graph, args, kwargs)
    free = freedom.batch is not None, bool(freedom.lengths)
    return Traced(graph, nodes, feed, expected, outputs, own_error, *free, markers)


def with_cache(ldp, args: tuple, kwargs: dict) -> Traced:
    """The model with its cache of keys and values (see `cache`); compared on whole texts behind an empty past.

    Raises:
        ValueError: the model has no such cache, or fixes a length.
    """
    cache.check_model(ldp.model)
    with ready(ldp.model):
        shown, model = cache.example(ldp.model, args, kwargs), cache.CachedModel(ldp.model)
        expected = model(*shown)
        own_error = check.own_error(ldp, lambda: model(*shown), expected)
        by_token = cache.token_by_token(cache.as_file(model), shown.feed)
        with ldp.disabled(), marks.marked(ldp) as markers:
            model(*shown)
            graph = cache.graph(model, shown)
    nodes = _nodes(graph, model, ldp, model.PREFIX)
    return Traced(graph, nodes, shown.feed, expected, shown.outputs, own_error, True, True, markers, len(shown.past), by_token)


def _nodes(graph: ir.Model, model: nn.Module, ldp, prefix: str = "") -> dict[str, list[ir.Node]]:
    """{layer: its products}. prefix: what the layers' names begin with in `model`."""
    found = float_graph.product_nodes(graph.graph, model, {prefix + name: spec.kind for name, spec in ldp.specs.items()})
    return {name.removeprefix(prefix): nodes for name, nodes in found.items()}
