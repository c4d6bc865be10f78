"""Small instances of transformers' model types."""

from __future__ import annotations

import transformers

from .classes import class_name
from .exceptions import INPUTS, LEAVE
from .inputs import Inputs
from .shrink import small_config
from .zoo import Sample, wake

transformers.logging.set_verbosity_error()


def build(model_type: str) -> Sample:
    """One small model of a type, with its inputs."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = small_config(CONFIG_MAPPING[model_type], model_type)
    name = class_name(model_type)
    model = getattr(transformers, name)(config)
    model.float().eval()
    wake(model)
    maker = INPUTS.get(model_type)
    given = maker(Inputs(model)) if maker else {}
    return Sample(f"hf:{model_type}", model, Inputs(model).make(given, LEAVE.get(model_type, ())), name)
