"""Inputs that the rules of `inputs.py` do not make: {model type: function of an `Inputs`, giving some of its inputs}."""

from __future__ import annotations

import torch

from .inputs import BATCH, FRAMES, SAMPLES, TOKENS, Inputs


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


def _picture_in_tiles(m: Inputs) -> dict:
    """A whole picture and its four quarters."""
    size = m.part("vision").image_size
    return {"pixel_values": m.uniform(BATCH, 5, 3, size, size), "image_sizes": torch.tensor([[2 * size, 2 * size]] * BATCH)}


def _flat_patches(m: Inputs) -> dict:
    """Pictures of 4 x 4 patches, each patch a row."""
    width = m.channels() * m.look("vision", "patch_size") ** 2
    return {
        "pixel_values": m.uniform(BATCH, 16, width),
        "spatial_shapes": torch.tensor([[4, 4]] * BATCH),
        "pixel_attention_mask": m.integers(1, 2, BATCH, 16),
    }


def _patches_in_a_row(m: Inputs) -> dict:
    """All patches of all pictures side by side, as one picture of one patch's height."""
    patch = m.look("vision", "patch_size")
    return {"pixel_values": m.uniform(1, 3, patch, patch * 32), "target_sizes": torch.tensor([[4, 4]] * BATCH)}


def _pairs(m: Inputs) -> dict:
    return {"pixel_values": m.uniform(1, 2, 3, 64, 64)}


def _video(m: Inputs) -> dict:
    return {"pixel_values": m.uniform(BATCH, m.look("vision", "num_frames"), 3, *m.size())}


def _shared_states(m: Inputs) -> dict:
    """Keys and values that an assistant takes from the model it assists."""
    c = m.config.text_config
    shape = (BATCH, c.num_key_value_heads, TOKENS)
    states = {
        kind: (m.uniform(*shape, width), m.uniform(*shape, width))
        for kind, width in (("full_attention", 16), ("sliding_attention", 16))
    }
    return {"inputs_embeds": m.uniform(BATCH, 1, 2 * m.config.backbone_hidden_size), "shared_kv_states": states}


def _task_words(m: Inputs) -> dict:
    """Two classes and one task in words, for each picture."""
    ids, mask = m.integers(30, 60, 2 * BATCH, 6), m.integers(1, 2, 2 * BATCH, 6)
    return {
        "classes_input_ids": ids,
        "classes_attention_mask": mask,
        "classes_structure": torch.tensor([2] * BATCH),
        "tasks_input_ids": ids[:BATCH],
        "tasks_attention_mask": mask[:BATCH],
    }


def _pixels_of_tokens(m: Inputs) -> dict:
    """A block of pixels for every token of the text, channels last."""
    return {"pixel_values": m.uniform(8, 32, 32, 3), "image_grid_thw": torch.tensor([[1, 2, 2]] * BATCH)}


def _talker(m: Inputs) -> dict:
    """What a talker gets from its thinker."""
    width = getattr(m.config, "embedding_size", None) or m.config.text_config.hidden_size
    return {
        "inputs_embeds": m.uniform(BATCH, TOKENS, width),
        "attention_mask": m.integers(1, 2, BATCH, TOKENS),
        "position_ids": torch.arange(TOKENS).expand(3, BATCH, TOKENS),  # left to itself it goes on from the last forward's
    }


def _image_and_sound(m: Inputs) -> dict:
    """A picture whole and in one crop, and a sound, with their 13 and 8 places in the text."""
    vision, audio = m.config.vision_config, m.config.audio_config
    return {
        "image_pixel_values": m.uniform(BATCH, 2, 3, 64, 64),
        "image_sizes": torch.tensor([[64, 64]] * BATCH),
        "image_attention_mask": m.integers(1, 2, BATCH, 2, 4, 4),
        "audio_input_features": m.uniform(BATCH, 64, audio.input_size),
        "audio_embed_sizes": torch.tensor([8] * BATCH),
        "audio_attention_mask": m.integers(1, 2, BATCH, 64).bool(),
        "input_ids": torch.tensor([[30, *[vision.image_token_id] * 13, *[audio.audio_token_id] * 8]] * BATCH),
    }


SPECIAL = {
    "apertus1p5": lambda m: {"image_sizes": torch.tensor([[64, 64]] * BATCH)},
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
    "csm": lambda m: {"input_ids": m.integers(30, 60, BATCH, TOKENS)},
    "decision_transformer": _decisions,
    "deepseek_vl_hybrid": lambda m: {"high_res_pixel_values": m.uniform(BATCH, 3, 64, 64)},
    "depth_pro": lambda m: {"pixel_values": m.uniform(1, 3, 256, 256)},
    "dia": lambda m: {"decoder_input_ids": m.integers(30, 60, BATCH, TOKENS, m.config.decoder_config.num_channels)},
    "diffusion_gemma": lambda m: {
        "pixel_values": m.uniform(BATCH, 36, 768),
        "image_position_ids": _placed_patches(m)["pixel_position_ids"],
        "input_ids": m.text_with(image=4),
    },
    "efficientloftr": _pairs,
    "embedding_gemma2": lambda m: _placed_patches(m) | {"input_features": m.uniform(BATCH, FRAMES, 128)},
    "emu3": lambda m: {"image_sizes": torch.tensor([[64, 64]] * BATCH)},
    "evolla": lambda m: {
        "protein_input_ids": m.integers(5, 25, BATCH, TOKENS),
        "protein_attention_mask": m.integers(1, 2, BATCH, TOKENS),
    },
    "fastspeech2_conformer": _speech,
    "fastspeech2_conformer_with_hifigan": _speech,
    "fun_asr_nano": lambda m: {"input_features": m.uniform(BATCH, FRAMES, 560)},
    "fun_asr_nano_encoder": lambda m: {"input_features": m.uniform(BATCH, FRAMES, 560)},
    "fuyu": lambda m: {"pixel_values": m.uniform(BATCH, 4, 768)},
    "gemma3n": lambda m: {
        "input_features": m.uniform(BATCH, FRAMES, 128),
        "input_features_mask": m.integers(1, 2, BATCH, FRAMES).bool(),
        "input_ids": m.text_with(image=256, audio=8),
    },
    "gemma3n_audio": lambda m: {
        "audio_mel": m.uniform(BATCH, FRAMES, 128),
        "audio_mel_mask": m.integers(0, 1, BATCH, FRAMES).bool(),
    },
    "gemma4": lambda m: _placed_patches(m) | {"input_features": m.uniform(BATCH, FRAMES, 128)},
    "gemma4_assistant": _shared_states,
    "gemma4_audio": lambda m: {"input_features": m.uniform(BATCH, FRAMES, 128)},
    "gemma4_unified": lambda m: {
        "pixel_values": m.uniform(BATCH, 4, 6912),
        "image_position_ids": torch.tensor([[[0, 0], [1, 0], [0, 1], [1, 1]]] * BATCH),
    },
    "gemma4_unified_assistant": _shared_states,
    "gemma4_vision": _placed_patches,
    "glmasr": lambda m: {"input_features": m.uniform(BATCH, 128, 64), "input_features_mask": m.integers(1, 2, BATCH, 64)},
    "glmasr_encoder": lambda m: {"input_features": m.uniform(BATCH, 128, 64)},
    "granite4_vision": lambda m: _picture_in_tiles(m) | {"input_ids": m.text_with(image=24)},
    "granite_docling": lambda m: _one_picture_a_list(m) | {"pixel_attention_mask": m.integers(1, 2, BATCH, 1).bool()},
    "granite_speech": lambda m: {"input_ids": m.text_with(audio=9), "input_features_mask": m.integers(1, 2, BATCH, 9).bool()},
    "granite_speech5_ctc": lambda m: {"input_features": m.uniform(BATCH, FRAMES, 320)},
    "granite_speech5_encoder": lambda m: {"input_features": m.uniform(BATCH, FRAMES, 320)},
    "granite_speech_plus": lambda m: {
        "input_ids": m.text_with(audio=9),
        "input_features_mask": m.integers(1, 2, BATCH, 9).bool(),
    },
    "idefics": lambda m: _one_picture_a_list(m) | {"image_attention_mask": m.integers(1, 2, BATCH, TOKENS, 1)},
    "informer": _series,
    "inkling2": _pixels_of_tokens,
    "inkling2_loop": _pixels_of_tokens,
    "inkling2_vision": _pixels_of_tokens,
    "inkling_mm_model": lambda m: {"pixel_values": m.uniform(8, 2, 16, 16, 3)},
    "instructblip": lambda m: {"qformer_input_ids": m.integers(30, 60, BATCH, TOKENS), "input_ids": m.text_with(image=8)},
    "instructblipvideo": lambda m: {
        "pixel_values": m.uniform(BATCH, 4, 3, 64, 64),
        "qformer_input_ids": m.integers(30, 60, BATCH, TOKENS),
        "input_ids": m.text_with(video=32),
    },
    "jev": lambda m: {
        "input_ids": m.integers(30, 60, 1, TOKENS),
        "marks": torch.tensor([[4, 8, 12]]),
        "num_options": torch.tensor([[2, 3, 4]]),
        "question_type_ids": torch.tensor([[0, 1, 2]]),
    },
    "kimi_k25": lambda m: {"pixel_values": m.patches().reshape(-1, 3, 14, 14)},
    "kimi_k25_vision": lambda m: {"pixel_values": m.patches().reshape(-1, 3, 14, 14)},
    "kosmos-2": lambda m: {
        "input_ids": m.integers(30, 60, BATCH, 20),
        "image_embeds_position_mask": (torch.arange(20) < 8).long().expand(BATCH, 20),
    },
    "kosmos-2.5": lambda m: {
        "flattened_patches": torch.cat([m.integers(1, 5, BATCH, 16, 2).float(), m.uniform(BATCH, 16, 768)], -1),
        "input_ids": m.integers(30, 60, BATCH, 20),
        "image_embeds_position_mask": (torch.arange(20) < 8).long().expand(BATCH, 20),
    },
    "kyutai_speech_to_text": lambda m: {"input_ids": m.integers(30, 60, BATCH, TOKENS, 1 + m.config.num_codebooks)},
    "lfm2_vl": _flat_patches,
    "lightglue": _pairs,
    "lighton_ocr": lambda m: {"image_sizes": torch.tensor([[64, 64]] * BATCH)},
    "llava_next": _picture_in_tiles,
    "llava_next_video": _picture_in_tiles,
    "llava_onevision": _picture_in_tiles,
    "longformer": lambda m: {"global_attention_mask": (torch.arange(TOKENS) == 0).long().expand(BATCH, TOKENS)},
    "luke": lambda m: {
        "entity_ids": m.integers(5, 25, BATCH, 3),
        "entity_attention_mask": m.integers(1, 2, BATCH, 3),
        "entity_position_ids": m.integers(0, TOKENS, BATCH, 3, 4),
    },
    "lxmert": lambda m: {
        "visual_feats": m.uniform(BATCH, 4, m.config.visual_feat_dim),
        "visual_pos": m.uniform(BATCH, 4, 4).abs(),
    },
    "mimi_decoder": lambda m: {"latents": m.uniform(BATCH, m.config.hidden_size, 8)},
    "minicpm_ocr": lambda m: _patches_in_a_row(m) | {"downsample_mode": "16x"},
    "minicpm_ocr_vision": _patches_in_a_row,
    "minicpmv4_6": lambda m: _patches_in_a_row(m) | {"downsample_mode": "16x"},
    "minicpmv4_7": lambda m: _patches_in_a_row(m) | {"downsample_mode": "16x"},
    "minicpmv4_7_vision": _patches_in_a_row,
    "mistral3": lambda m: {"image_sizes": torch.tensor([[64, 64]] * BATCH)},
    "mistral_large4": lambda m: {"image_sizes": torch.tensor([[64, 64]] * BATCH)},
    "mllama": lambda m: {
        "pixel_values": m.uniform(BATCH, 1, 4, 3, 64, 64),
        "aspect_ratio_ids": m.integers(6, 7, BATCH, 1),
        "aspect_ratio_mask": m.integers(1, 2, BATCH, 1, 4),
        "input_ids": m.integers(30, 60, BATCH, TOKENS),
        "cross_attention_mask": m.integers(1, 2, BATCH, TOKENS, 1, 4),
    },
    "molmo2": lambda m: {
        "pixel_values": m.uniform(BATCH, 16, 588),
        "image_token_pooling": torch.arange(32).reshape(8, 4),
        "image_grids": torch.tensor([[2, 2, 0, 0]] * BATCH),
        "input_ids": m.text_with(image=4),
    },
    "moss_transcribe_diarize": lambda m: {"padding_mask": m.integers(1, 2, BATCH, 256), "input_ids": m.text_with(audio=32)},
    "muse_glimmer_assistant": lambda m: {
        "noise_embeds": m.uniform(BATCH, 16, m.config.hidden_size),
        "context_hidden_states": m.uniform(BATCH, TOKENS, m.config.hidden_size * len(m.config.target_layer_ids)),
        "attention_mask": m.integers(1, 2, BATCH, TOKENS + 16),
    },
    "muse_spark": lambda m: {"input_values": m.uniform(BATCH, 3840)},
    "muse_spark_audio": lambda m: {"input_values": m.uniform(BATCH, 3840)},
    "musicflamingo": lambda m: {"input_ids": m.text_with(audio=64)},
    "musicgen": lambda m: {"decoder_input_ids": m.integers(30, 60, BATCH * m.config.decoder.num_codebooks, TOKENS)},
    "musicgen_melody": lambda m: {
        "decoder_input_ids": m.integers(30, 60, BATCH * m.config.decoder.num_codebooks, TOKENS),
        "input_features": m.uniform(BATCH, 8, m.config.num_chroma),
    },
    "nemotron3_5_transcribe_word_timestamp": lambda m: {"inputs_embeds": m.uniform(BATCH, TOKENS, m.config.hidden_size)},
    "nemotron_h_omni": lambda m: {"pixel_values": m.uniform(BATCH * 16, 768), "image_grid_hw": torch.tensor([[4, 4]] * BATCH)},
    "neomme": lambda m: {"pixel_values": m.uniform(BATCH * 16, 768)},
    "neucodec": lambda m: {"input_values": m.uniform(BATCH, 1, 3200), "input_features": m.uniform(BATCH, 10, 64)},
    "omdet-turbo": _task_words,
    "omniasr": lambda m: {"input_values": m.uniform(BATCH, 1, SAMPLES)},
    "omniasr_audio": lambda m: {"input_values": m.uniform(BATCH, 1, SAMPLES)},
    "omniasr_ctc": lambda m: {"input_values": m.uniform(BATCH, 1, SAMPLES)},
    "oneformer": lambda m: {"task_inputs": m.integers(30, 60, BATCH, m.config.task_seq_len)},
    "paddleocr_vl": lambda m: {"pixel_values": m.patches().reshape(-1, 3, 14, 14)},
    "patchtsmixer": lambda m: {"past_values": m.uniform(BATCH, m.config.context_length, m.config.num_input_channels)},
    "patchtst": lambda m: {"past_values": m.uniform(BATCH, m.config.context_length, m.config.num_input_channels)},
    "pe_audio_video_encoder": lambda m: {
        "input_values": m.uniform(BATCH, 1, 3840),
        "pixel_values_videos": m.uniform(BATCH, 2, 3, 64, 64),
    },
    "perception_lm": lambda m: {"pixel_values": m.uniform(BATCH, 1, 3, 64, 64)},
    "phi4_multimodal": _image_and_sound,
    "pi0": lambda m: {
        "state": m.uniform(BATCH, m.config.max_state_dim),
        "actions": m.uniform(BATCH, m.config.chunk_size, m.config.max_action_dim),
        "noise": m.uniform(BATCH, m.config.chunk_size, m.config.max_action_dim),
        "timestep": m.uniform(BATCH).abs(),
        "input_ids": m.text_with(image=16),
        "pixel_values": m.uniform(BATCH, 1, 3, *m.size()),
        "pixel_attention_mask": m.integers(1, 2, BATCH, 1).bool(),
    },
    "pix2struct": lambda m: {
        "flattened_patches": torch.cat([m.integers(1, 5, BATCH, 16, 2).float(), m.uniform(BATCH, 16, 768)], -1),
        "attention_mask": m.integers(1, 2, BATCH, 16),
    },
    "pocket_tts_audio_tokenizer_decoder": lambda m: {"latents": m.uniform(BATCH, m.config.hidden_size, 8)},
    "pop2piano": lambda m: {"input_features": m.uniform(BATCH, FRAMES, m.config.d_model)},
    "pp_ocrv5_mobile_rec": lambda m: {"pixel_values": m.uniform(BATCH, 3, 96, 160)},
    "qwen2_5_omni": _talker,
    "qwen2_audio": lambda m: {"input_ids": m.text_with(audio=64)},
    "qwen3_asr": lambda m: {"input_features": m.uniform(BATCH, 128, 100), "input_features_mask": m.integers(1, 2, BATCH, 100)},
    "qwen3_asr_encoder": lambda m: {
        "input_features": m.uniform(BATCH, 128, 100),
        "input_features_mask": m.integers(1, 2, BATCH, 100),
    },
    "qwen3_omni_moe": _talker,
    "reformer": lambda m: {"input_ids": m.integers(30, 60, BATCH, 16)},
    "seggpt": lambda m: dict.fromkeys(("pixel_values", "prompt_pixel_values", "prompt_masks"), m.uniform(BATCH, 3, 64, 64)),
    "siglip2": _flat_patches,
    "siglip2_vision_model": _flat_patches,
    "speech_to_text": lambda m: {"input_features": m.uniform(BATCH, FRAMES, m.config.input_feat_per_channel)},
    "superglue": _pairs,
    "time_series_transformer": _series,
    "timesfm": lambda m: {"past_values": m.uniform(BATCH, m.config.context_length), "freq": torch.tensor([0, 1])},
    "timesfm2_5": lambda m: {"past_values": m.uniform(BATCH, m.config.context_length)},
    "trocr": lambda m: {"encoder_hidden_states": m.uniform(BATCH, 16, m.config.d_model)},
    "tvp": lambda m: {"pixel_values": m.uniform(1, m.config.num_frames, 3, 64, 64), "input_ids": m.integers(30, 60, 1, TOKENS)},
    "vibevoice": lambda m: {"input_values": m.uniform(BATCH, 1, 640), "padding_mask": m.integers(1, 2, BATCH, 640).bool()},
    "vibevoice_acoustic_tokenizer": lambda m: {"input_values": m.uniform(BATCH, 1, 640)},
    "vibevoice_acoustic_tokenizer_decoder": lambda m: {"hidden_states": m.uniform(BATCH, m.config.hidden_size, 4)},
    "vibevoice_acoustic_tokenizer_encoder": lambda m: {"hidden_states": m.uniform(BATCH, 1, 640)},
    "vibevoice_asr": lambda m: {"input_values": m.uniform(BATCH, 1, 640), "padding_mask": m.integers(1, 2, BATCH, 640).bool()},
    "video_llama_3": lambda m: {"image_merge_sizes": torch.tensor([2, 2]), "input_ids": m.text_with(image=4)},
    "video_llama_3_vision": lambda m: {"merge_sizes": torch.tensor([2, 2])},
    "video_llava": lambda m: {
        "pixel_values_images": m.uniform(BATCH, 3, *m.size()),
        "pixel_values_videos": m.uniform(BATCH, 8, 3, *m.size()),
        "input_ids": m.text_with(image=16, video=8 * 17),
    },
    "videomt": lambda m: {"pixel_values_videos": m.uniform(1, 2, 3, *m.size())},
    "voxtral_realtime": lambda m: {"input_features": m.uniform(BATCH, 128, 8 * TOKENS)},
    "voxtral_realtime_encoder": lambda m: {"input_features": m.uniform(BATCH, 128, 64)},
    "voxtral_realtime_text": lambda m: {"t_cond": m.uniform(1, 1, m.config.hidden_size)},
    "wav2vec2-bert": lambda m: {"input_features": m.uniform(BATCH, FRAMES, m.config.feature_projection_input_dim)},
    "xclip": _video,
    "xcodec2": lambda m: {"input_values": m.uniform(BATCH, 1, 3200), "input_features": m.uniform(BATCH, 10, 64)},
} | dict.fromkeys(("colmodernvbert", "idefics2", "idefics3", "modernvbert", "smolvlm", "ultravbert"), _one_picture_a_list)
