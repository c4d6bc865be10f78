"""Where the generic rules of `shrink.py` and `inputs.py` do not fit a model type."""

FIELDS: dict[str, dict] = {
    "bit": {"num_groups": 8},
    "clap_audio_model": {"window_size": 2},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "donut-swin": {"window_size": 2},
    "ernie4_5_vl_moe_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "hgnet_v2": {
        "stem_channels": [3, 16, 24], "stage_in_channels": [24, 32, 64, 96], "stage_mid_channels": [16, 16, 24, 32],
        "stage_out_channels": [32, 64, 96, 128], "hidden_sizes": [32, 64, 96, 128],
    },
    "inkling_vision": {},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "maskformer-swin": {"window_size": 2},
    "swin": {"window_size": 2},
    "swinv2": {"window_size": 2},
    "mimi": {"upsample_groups": 64},
}
"""{configuration type: {field: value}}: as CONFIG, wherever the type stands."""

_SERIES = {"prediction_length": 4, "context_length": 8, "num_time_features": 1, "label_length": 4, "moving_average": 5}
_IMAGE_TOKEN = {"image_token_index": 110}

_HG_ENCODER = {"encoder_in_channels": [64, 96, 128]}
_ROPE3 = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
_COMPASS = {"full_attention": _ROPE3, "sliding_attention": _ROPE3}

CONFIG: dict[str, dict] = {
    "align": {"vision_config.width_coefficient": 0.25, "projection_dim": 80},
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "autoformer": _SERIES,
    "blip-2": _IMAGE_TOKEN,
    "chameleon": {"vocabulary_map": {"<image>": 110} | {f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": 30 + i for i in range(64)}},
    "clap": {"audio_config.spec_size": 64, "audio_config.num_mel_bins": 32, "audio_config.patch_embeds_hidden_size": 16, "audio_config.hidden_size": 128},
    "dbrx": {"attn_config.rope_theta": 1e4, "ffn_config.ffn_hidden_size": 96},
    "cohere_compass": {"text_config.rope_parameters": _COMPASS},
    "cohere_compass_text": {"rope_parameters": _COMPASS},
    "cvt": {"depth": (1, 2, 3)},
    "d_fine": _HG_ENCODER,
    "deimv2": _HG_ENCODER,
    "depth_pro": {
        "patch_size": 64, "intermediate_hook_ids": [1, 0], "intermediate_feature_dims": [64, 64], "scaled_images_feature_dims": [64, 64, 32],
    },
    "diffusion_gemma": {"text_config.num_experts": 4, "text_config.top_k_experts": 2, "text_config.moe_intermediate_size": 32},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "edgetam_vision_model": {"backbone_config.architecture": "repvit_m1"},
    "efficientloftr": {"hidden_size": 256},
    "emu3": {"vocabulary_map": {"<image>": 110, "<|extra_200|>": 111} | {f"<|visual token {i:06d}|>": 30 + i for i in range(64)}},
    "esm": {"vocab_size": 40, "esmfold_config": None},
    "fun_asr_nano": {"adaptor_config.intermediate_size": 16},
    "gemma3n": {"vision_config.model_args": {"channel_multiplier": 0.1}},
    "gemma3n_vision": {"model_args": {"channel_multiplier": 0.1}},
    "gemma4_assistant": {"text_config.hidden_size_per_layer_input": 0},
    "glm5_next": {"text_config.index_kpool": 4},
    "glm5_next_text": {"index_kpool": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]]},
    "grounding-dino": {},
    "efficientnet": {"width_coefficient": 0.25, "hidden_dim": 320},
    "informer": _SERIES,
    "instructblip": _IMAGE_TOKEN,
    "instructblipvideo": _IMAGE_TOKEN,
    "time_series_transformer": _SERIES,
}
"""{model type: {dotted path in its configuration: value}}; a path that ends in a dot names another class for a part."""

CLASS: dict[str, str] = {
    "bark": "BarkSemanticModel",
    "beit": "BeitForImageClassification",
    "data2vec-vision": "Data2VecVisionForImageClassification",
    "qwen2_5_omni": "Qwen2_5OmniTalkerForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeTalkerForConditionalGeneration",
    "voxtral_realtime_text": "VoxtralRealtimeTextForCausalLM",
}
"""{model type: class} in place of the one that `classes.py` chooses."""

PART: dict[str, str] = {"bark": "semantic_config", "qwen2_5_omni": "talker_config", "qwen3_omni_moe": "talker_config"}
"""{model type: field of its configuration} that the class of CLASS takes: the whole has no forward, only `generate`."""

LEAVE: dict[str, tuple] = {"dots3_note": ("input_features",)}
"""{model type: names of inputs} to leave out."""

TIMM: dict[str, dict] = {}
"""{module of timm: {"model": name, "size": of the picture, other arguments of create_model}}."""
