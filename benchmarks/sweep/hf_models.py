"""Small instances of transformers' model types."""

from __future__ import annotations

import importlib

import transformers

from .classes import class_name
from .exceptions import CANNOT, LEAVE, PART
from .inputs import Inputs
from .sample import Sample, wake
from .shrink import small_config
from .special import SPECIAL

transformers.logging.set_verbosity_error()


def _class(name: str, config) -> type:
    """A class by name; a few stand in the mappings, but not among the public names."""
    if hasattr(transformers, name):
        return getattr(transformers, name)
    module = type(config).__module__.replace(".configuration_", ".modeling_")
    return getattr(importlib.import_module(module), name)


def build(model_type: str) -> Sample:
    """One small model of a type, with its inputs."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type in CANNOT:
        raise NotImplementedError(CANNOT[model_type])
    config = small_config(CONFIG_MAPPING[model_type], model_type)
    for name in PART.get(model_type, "").split():
        config = getattr(config, name)
    name = class_name(model_type)
    model = _class(name, config)(config)
    model.float().eval()
    wake(model)
    maker = Inputs(model)
    given = SPECIAL[model_type](maker) if model_type in SPECIAL else {}
    return Sample(f"hf:{model_type}", model, maker.make(given, LEAVE.get(model_type, ())), name)
