"""`export=` of a run: what it needs is tried out before the training, and done at its end."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import torch
from torch import nn

from ...api import controller
from ...config.overlay import ConfigError
from ...core.apply import as_call

PACKAGES = {"onnx": ("onnx", "onnxscript"), "packed": ("safetensors",), "torch": ()}


def check_possible(model: nn.Module, example_inputs: Any, formats: list[str]) -> None:
    """ConfigError, before a training, where the model could not be exported after it: its graph is traced as then."""
    for name in formats:
        missing = [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]
        if missing:
            raise ConfigError(f"export={name} needs {' and '.join(missing)}: pip install 'ldp_search[onnx]'")
    args, kwargs = as_call(example_inputs)
    with torch.random.fork_rng(), controller(model).disabled():
        for name in formats:
            if name != "packed":
                _try(name, model, args, kwargs)


def _try(name: str, model: nn.Module, args: tuple, kwargs: dict) -> None:
    from ..onnx.exported_forward import ready
    from ..onnx.float_graph import float_graph, output_names
    from .export import plain_copy
    from .int8 import trace
    from .peers import quiet

    try:
        with quiet():
            if name == "torch":
                trace(plain_copy(model), args, kwargs)
                return
            with ready(model):
                float_graph(model, args, kwargs, output_names(model(*args, **kwargs)))
    except Exception as error:  # exporters raise many kinds
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(f"export={name} will not work for this model, so nothing was trained: {why}") from error


def export_run(run: Any) -> int:
    """Export a finished run into its folder, with the table; returns the exit status. Errors come as one message."""
    from .command import destinations, export_subject
    from .options import ExportOptions
    from .subject import Subject

    model = run.plain_model
    if run.accelerator.device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    options = ExportOptions(run.output, format=list(run.config.export))
    try:
        return export_subject(Subject(model, run.output, run.task, run.config), options, destinations(options))
    except (ConfigError, ImportError, OSError) as error:
        print(f"ldp_search.run: the run is saved, but its export failed: {error}", flush=True)
        return 1
