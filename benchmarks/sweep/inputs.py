"""Inputs for the forward of a transformers model, from its signature and its configuration.

Every parameter that is required, and every optional one of `ALWAYS`, gets a value from the maker of its name. How many places
the embeddings of an image or a sound take in the text, the model itself is asked (`get_image_features`).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .shrink import FIRST_SPECIAL

BATCH, TOKENS, FRAMES, SAMPLES = 2, 12, 32, 4000
ALWAYS = (
    "input_ids", "attention_mask", "pixel_values", "input_features", "input_values", "decoder_input_ids", "bbox",
    "image_grid_thw", "mm_token_type_ids", "input_features_mask", "feature_attention_mask",
)  # fmt: skip
_BINS = (
    "num_mel_bins", "feature_size", "input_feat_size", "n_mels", "input_dim", "input_feat_per_channel",
    "feature_projection_input_dim", "audio_embed_dim",
)  # fmt: skip
_PARTS = {
    "vision": (
        "vision_config", "image_config", "image_model_config", "vlm_config", "thinker_config", "backbone_config", "encoder",
        "model_config",
    ),
    "audio": (
        "audio_config", "asr_config", "audio_encoder_config", "encoder_config", "speech_config", "thinker_config",
        "audio_encoder", "encoder", "dac_config",
    ),
    "text": ("text_config", "decoder_config", "decoder", "vlm_config", "thinker_config", "text_encoder", "language_config"),
}  # fmt: skip


def signature(forward) -> dict[str, inspect.Parameter]:
    """Its parameters, without those that collect the rest."""
    found = inspect.signature(forward).parameters.values()
    return {p.name: p for p in found if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


class Inputs:
    """Makes the inputs of one model; each method named after a parameter of forward."""

    def __init__(self, model: nn.Module, seed: int = 0):
        self.model, self.config, self.made = model, model.config, {}
        self.names = signature(model.forward)
        self.generator = torch.Generator().manual_seed(seed)

    def make(self, given: dict[str, Any] | None = None, leave: tuple = ()) -> dict[str, Any]:
        """All of them; `given` stand instead of made ones, `leave` are left out.

        Raises:
            NotImplementedError: a required parameter that nothing here makes.
        """
        self.made.update(given or {})
        self.extra = set(given or {})  # may be one that forward takes among its keywords
        order = sorted(self.names, key=lambda name: name in ("input_ids", "attention_mask", "mm_token_type_ids"))  # these last
        for name in order:
            required = self.names[name].default is inspect.Parameter.empty
            if name in self.made or name in leave or not (required or name in ALWAYS):
                continue
            maker = getattr(self, name, None)
            if maker is None and not required:
                continue
            if maker is None:
                raise NotImplementedError(f"no maker of the required input {name!r}")
            value = maker()
            if value is not None:
                self.made[name] = value
        return {
            name: value for name, value in self.made.items() if value is not None and (name in self.names or name in self.extra)
        }

    # -- looking things up ------------------------------------------------------------------------------------------

    def part(self, kind: str):
        """The configuration of the part that sees pictures, sound or text."""
        config = self.config
        for _ in range(3):
            inner = next((c for name in _PARTS[kind] if hasattr(c := getattr(config, name, None), "model_type")), None)
            if inner is None:
                return config
            config = inner
        return config

    def look(self, kind: str, *names: str, default=None):
        """The first of these fields, in the part or the whole configuration."""
        for config in (self.part(kind), self.config):
            for name in names:
                if (value := getattr(config, name, None)) is not None:
                    return value
        return default

    def uniform(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * 0.5

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    # -- text -------------------------------------------------------------------------------------------------------

    def input_ids(self) -> Tensor:
        counts = {kind: self.places(kind) if self.token(kind) is not None else 0 for kind in ("image", "audio")}
        return self.text_with(**counts)

    def text_with(self, **counts: int) -> Tensor:
        """Text with so many places for the embeddings of an image, a sound."""
        high = min(self.look("text", "vocab_size", default=FIRST_SPECIAL), FIRST_SPECIAL)
        ids = self.integers(min(30, high // 2), high, BATCH, TOKENS)
        for kind, count in counts.items():
            if count:
                ids = torch.cat([ids[:, :2], torch.full((BATCH, count), self.token(kind)), ids[:, 2:]], dim=1)
        return ids

    def token(self, kind: str) -> int | None:
        """The number of the token that stands for one place of an image or a sound."""
        names = (f"{kind}_token_id", f"{kind}_token_index", f"{kind}_patch_id")
        configs = (
            self.config,
            *(c for part in ("vlm_config", "thinker_config") if (c := getattr(self.config, part, None)) is not None),
        )
        return next((v for config in configs for name in names if (v := getattr(config, name, None)) is not None), None)

    def places(self, kind: str) -> int:
        """How many tokens a sample's image (or sound) becomes: the model is asked."""
        functions = [f for m in self.model.modules() if (f := getattr(m, f"get_{kind}_features", None)) is not None]
        if not functions:
            return 0
        function = max(functions, key=lambda f: len(signature(f)))  # the outer ones hand keywords on
        known = {k: v for k, v in self.made.items() if k in signature(function)}
        if not known:
            return 0
        with torch.no_grad():
            found = function(**known)
        return _rows(found) // BATCH

    def attention_mask(self):
        ids = self.made.get("input_ids")
        return None if ids is None else torch.ones_like(ids)

    def decoder_input_ids(self) -> Tensor:
        return self.integers(30, 60, BATCH, TOKENS)

    def mm_token_type_ids(self):
        ids = self.made.get("input_ids")
        token = self.token("image")
        return None if ids is None else (ids == (-1 if token is None else token)).long()

    def bbox(self) -> Tensor:
        return torch.tensor([1, 2, 10, 20]).expand(BATCH, TOKENS, 4).clone()

    def labels(self) -> Tensor:
        return self.made.get("input_ids", self.decoder_input_ids())

    # -- pictures ---------------------------------------------------------------------------------------------------

    def size(self) -> tuple[int, int]:
        size = self.look(
            "vision", "image_size", "img_size", "input_size", "image_resolution", "pretrain_image_size", default=64
        )
        if isinstance(size, dict):
            size = (size["height"], size["width"])
        size = tuple(size) if isinstance(size, list | tuple) else (size, size)
        return size[-2:]

    def channels(self) -> int:
        return self.look("vision", "num_channels", "in_channels", "in_chans", "channels", default=3)

    def pixel_values(self) -> Tensor:
        if {"image_grid_thw", "grid_thw"} & set(self.names):
            return self.patches()
        video = "Video" in type(self.model).__name__ or hasattr(self.config, "num_frames")
        frames = self.look("vision", "num_frames", "frames_per_clip") if video else None
        return self.uniform(BATCH, *([frames] if frames else []), self.channels(), *self.size())

    def pixel_values_videos(self) -> Tensor:
        frames = self.look("vision", "num_frames", "frames_per_clip", default=2)
        return self.uniform(BATCH, frames, self.channels(), *self.size())

    def patches(self) -> Tensor:
        """Pictures cut into patches beforehand, one row a patch."""
        patch, time = self.look("vision", "patch_size"), self.look("vision", "temporal_patch_size", "patch_temporal", default=1)
        rows = int(self.grid().prod(1).sum())
        return self.uniform(rows, self.channels() * time * patch * patch)

    def grid(self) -> Tensor:
        merge = self.look("vision", "spatial_merge_size", "merge_size", default=2)
        return torch.tensor([[1, 2 * merge, 2 * merge]] * BATCH)

    def image_grid_thw(self):
        return self.grid()

    grid_thw = image_grid_thw

    def hidden_states(self) -> Tensor:
        return self.patches()

    # -- sound ------------------------------------------------------------------------------------------------------

    def input_features(self) -> Tensor:
        bins, length = self.look("audio", *_BINS, default=80), self.look("audio", "max_source_positions")
        return self.uniform(BATCH, FRAMES, bins) if length is None else self.uniform(BATCH, bins, 2 * length)  # as Whisper's

    def input_features_mask(self) -> Tensor:
        features = self.made["input_features"]
        length = max(features.shape[1:]) if self.look("audio", "max_source_positions") else features.shape[1]
        return torch.ones(BATCH, length, dtype=torch.bool)

    feature_attention_mask = input_features_mask

    def input_values(self) -> Tensor:
        if (length := self.look("audio", "max_length")) and (bins := self.look("audio", "num_mel_bins")):
            return self.uniform(BATCH, length, bins)
        if self.look("audio", "audio_channels", "codebook_size") is not None:
            return self.uniform(BATCH, self.look("audio", "audio_channels", default=1), SAMPLES)
        return self.uniform(BATCH, SAMPLES)


def _rows(found) -> int:
    """Rows of embeddings in what a `get_..._features` returned."""
    if not isinstance(found, Tensor | list | tuple) or hasattr(found, "last_hidden_state"):
        pooled = getattr(found, "pooler_output", None)
        found = found.last_hidden_state if pooled is None else pooled
    if isinstance(found, Tensor):
        return found.numel() // found.shape[-1]
    return sum(_rows(item) for item in found if item is not None)
