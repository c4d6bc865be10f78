"""Inputs that the generic rules of `inputs.py` do not make: {model type: function of an `Inputs`, giving some of its inputs}."""

from __future__ import annotations

import torch

from .inputs import BATCH, FRAMES, TOKENS, Inputs


def _series(m: Inputs) -> dict:
    c = m.config
    past = c.context_length + max(c.lags_sequence)
    return {
        "past_values": m.uniform(BATCH, past),
        "past_time_features": m.uniform(BATCH, past, c.num_time_features),
        "past_observed_mask": m.uniform(BATCH, past) > -9,
        "future_values": m.uniform(BATCH, c.prediction_length),
        "future_time_features": m.uniform(BATCH, c.prediction_length, c.num_time_features),
    }


def _decisions(m: Inputs) -> dict:
    return {
        "states": m.uniform(BATCH, TOKENS, m.config.state_dim),
        "actions": m.uniform(BATCH, TOKENS, m.config.act_dim),
        "rewards": m.uniform(BATCH, TOKENS, 1),
        "returns_to_go": m.uniform(BATCH, TOKENS, 1),
        "timesteps": m.integers(0, 20, BATCH, TOKENS),
        "attention_mask": m.integers(1, 2, BATCH, TOKENS),
    }


def _one_picture_a_list(m: Inputs) -> dict:
    return {"pixel_values": m.uniform(BATCH, 1, m.channels(), *m.size())}


def _placed_patches(m: Inputs) -> dict:
    """Rows of patches with their places: a grid of 6 x 6, for pooling by 3."""
    patch = m.look("vision", "patch_size")
    places = torch.stack(torch.meshgrid(torch.arange(6), torch.arange(6), indexing="xy"), -1).reshape(1, 36, 2)
    name = "image_position_ids" if "image_position_ids" in m.names else "pixel_position_ids"
    return {"pixel_values": m.uniform(BATCH, 36, 3 * patch * patch), name: places.repeat(BATCH, 1, 1)}


def _speech(m: Inputs) -> dict:
    """FastSpeech2 wants all labels in training."""
    length = TOKENS * 2
    return {
        "input_ids": m.integers(5, 60, BATCH, TOKENS),
        "spectrogram_labels": m.uniform(BATCH, length, 80),
        "duration_labels": m.integers(2, 3, BATCH, TOKENS),
        "pitch_labels": m.uniform(BATCH, TOKENS, 1),
        "energy_labels": m.uniform(BATCH, TOKENS, 1),
    }


SPECIAL = {
    "autoformer": _series,
    "blip_2_qformer": lambda m: {
        "query_embeds": m.uniform(BATCH, 8, m.config.hidden_size),
        "encoder_hidden_states": m.uniform(BATCH, 16, m.config.encoder_hidden_size),
    },
    "clap": lambda m: {
        "input_features": m.uniform(BATCH, 1, 64, m.config.audio_config.num_mel_bins),
        "is_longer": m.integers(0, 1, BATCH, 1),
    },
    "clvp": lambda m: {"input_features": m.uniform(BATCH, m.config.decoder_config.feature_size, FRAMES)},
    "colqwen2": lambda m: {"pixel_values": m.patches().unflatten(0, (BATCH, -1))},
    "decision_transformer": _decisions,
    "deepseek_vl_hybrid": lambda m: {"high_res_pixel_values": m.uniform(BATCH, 3, 64, 64)},
    "depth_pro": lambda m: {"pixel_values": m.uniform(1, 3, 256, 256)},
    "embedding_gemma2": _placed_patches,
    "fastspeech2_conformer": _speech,
    "fastspeech2_conformer_with_hifigan": _speech,
    "fun_asr_nano": lambda m: {"input_features": m.uniform(BATCH, FRAMES, 560)},
    "fun_asr_nano_encoder": lambda m: {"input_features": m.uniform(BATCH, FRAMES, 560)},
    "fuyu": lambda m: {"image_patches": m.uniform(BATCH, 4, 768)},
    "gemma3n_audio": lambda m: {"audio_mel": m.uniform(BATCH, FRAMES, 128), "audio_mel_mask": m.integers(0, 1, BATCH, FRAMES).bool()},
    "gemma4": _placed_patches,
    "gemma4_unified": _placed_patches,
    "gemma4_vision": _placed_patches,
    "granite_docling": lambda m: _one_picture_a_list(m) | {"pixel_attention_mask": m.integers(1, 2, BATCH, 1).bool()},
    "inkling_mm_model": lambda m: {"pixel_values": m.uniform(BATCH, 2, 3, 64, 64)},
    "dia": lambda m: {"decoder_input_ids": m.integers(30, 60, BATCH, TOKENS, m.config.decoder_config.num_channels)},
    "idefics": _one_picture_a_list,
    "informer": _series,
    "time_series_transformer": _series,
} | dict.fromkeys(("colmodernvbert", "idefics2", "idefics3", "modernvbert", "smolvlm", "ultravbert"), _one_picture_a_list)
