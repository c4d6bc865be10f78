"""ONNX files, called as the model that they came from."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor, nn


class Outputs(dict):
    """Outputs of a file by name, also as attributes, as those of transformers are."""

    __getattr__ = dict.get


class OnnxModel(nn.Module):
    """An ONNX file, called as the model that it came from; one with a cache reads whole texts behind an empty past.

    token_by_token: of a file with a cache: the last tokens are read one at a time.
    """

    def __init__(self, path: str | os.PathLike, token_by_token: bool = False):
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs, outputs = self.session.get_inputs(), [value.name for value in self.session.get_outputs()]
        self.past = {value.name: value.shape for value in inputs if value.name.startswith("past_key_values.")}
        self.takes = [value.name for value in inputs if value.name not in self.past]
        self.gives = [name for name in outputs if not (self.past and name.startswith("present."))]
        self.token_by_token = token_by_token

    def forward(self, *args, **kwargs):
        feed = {name: value for name, value in kwargs.items() if name in self.takes}
        rest = [name for name in self.takes if name not in feed]
        feed |= dict(zip(rest, [x for x in args if isinstance(x, Tensor)], strict=True))
        values = [torch.from_numpy(array) for array in self._run({name: value.numpy() for name, value in feed.items()})]
        if self.gives == ["output"]:
            return values[0]
        return tuple(values) if self.gives[0] == "output_0" else Outputs(zip(self.gives, values, strict=True))

    def _run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        if not self.past:
            return self.session.run(None, feed)
        feed = {name: value.astype(np.int64) for name, value in feed.items()}  # whatever the model took
        batch = len(feed["input_ids"])
        feed |= {name: np.zeros((batch, shape[1], 0, shape[3]), np.float32) for name, shape in self.past.items()}
        if not self.token_by_token:
            return self.session.run(self.gives, feed)
        from ..onnx.cache import token_by_token

        return token_by_token(lambda now: self.session.run(None, now), feed)[:1]


def onnx_feed(takes: list[str], args: tuple, kwargs: dict) -> dict:
    """What a file's inputs, by their names, take of a forward's."""
    values = {name: value for name, value in kwargs.items() if name in takes}
    rest = [name for name in takes if name not in values]
    values |= dict(zip(rest, args, strict=False))
    return {name: value.numpy() for name, value in values.items()}
