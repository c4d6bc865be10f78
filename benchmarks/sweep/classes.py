"""The model types of transformers that have a PyTorch class, and the class of each that runs most of the model."""

from __future__ import annotations

import functools

from .exceptions import CLASS

_HEADS = (
    "IMAGE_TEXT_TO_TEXT", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "MASKED_LM", "CAUSAL_LM", "MULTIMODAL_LM", "CTC", "RNNT",
    "TDT", "OBJECT_DETECTION", "UNIVERSAL_SEGMENTATION", "INSTANCE_SEGMENTATION", "SEMANTIC_SEGMENTATION", "IMAGE_SEGMENTATION",
    "DEPTH_ESTIMATION", "ZERO_SHOT_IMAGE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION",
    "AUDIO_CLASSIFICATION", "ZERO_SHOT_OBJECT_DETECTION",
    "TEXT_TO_SPECTROGRAM", "TIME_SERIES_PREDICTION", "IMAGE_TO_IMAGE", "IMAGE_MATTING", "KEYPOINT_DETECTION",
    "KEYPOINT_MATCHING", "POSE_ESTIMATION", "VISUAL_QUESTION_ANSWERING",
)  # fmt: skip
"""The tasks whose class is preferred to the model without a head, first come first served."""


@functools.cache
def tables() -> dict[str, dict[str, str]]:
    """{task: {model type: class name}} of transformers' own mappings."""
    from transformers.models.auto import modeling_auto

    ending = "_MAPPING_NAMES"
    found = {name.removesuffix(ending): value for name, value in vars(modeling_auto).items() if name.endswith(ending)}
    return {task.removeprefix("MODEL_FOR_"): dict(table) for task, table in found.items() if task.startswith("MODEL")}


def model_types() -> list[str]:
    """Every model type that a mapping names, sorted."""
    return sorted({kind for table in tables().values() for kind in table})


def class_name(model_type: str) -> str:
    """The class built for a type: a head where there is one, else the model itself, else whatever a mapping has."""
    if model_type in CLASS:
        return CLASS[model_type]
    order = [*_HEADS, "MODEL", *tables()]
    name = next(tables()[task][model_type] for task in order if model_type in tables().get(task, {}))
    return name if isinstance(name, str) else name[0]
