"""Where the generic rules of `shrink.py` and `inputs.py` do not fit a model type."""

from __future__ import annotations

_SERIES = {"prediction_length": 4, "context_length": 8, "num_time_features": 1, "label_length": 4, "moving_average": 5}
_IMAGE_TOKEN = {"image_token_index": 110}
_HG_ENCODER = {"encoder_in_channels": [64, 96, 128]}
_ROPE3 = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
_COMPASS = {"full_attention": _ROPE3, "sliding_attention": _ROPE3}
_ROPE3_HALF = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
_SAM_SIZES = {
    "vision_config.backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "prompt_encoder_config.image_size": 64,
}  # fmt: skip
_XCODEC = {"quantization_dim": 128, "encoder_hidden_size": 8, "semantic_model_config.num_hidden_layers": 2}
_DOTS = {f"swa_{name}": 4 for name in ("num_attention_heads", "num_key_value_heads")}
_VQ = {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1}
_MINICPM = {"image_token_id": 110, "video_token_id": 111}
_VIBE = {"num_filters": 8, "downsampling_ratios": [2, 4, 5], "depths": [1, 1, 1, 2]}
_MOBILENET5 = {"channel_multiplier": 0.1}
_PINPOINTS = {"image_grid_pinpoints": [[128, 128]]}
_PE_ARGS = {"img_size": 64, "embed_dim": 64, "depth": 2, "num_heads": 4}
_OCR_DET = {
    "kernel_list": [3, 2, 2],
    "scale_factor_list": [1, 2, 4, 8],
    "intraclass_block_config": {
        "reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0],
        "vertical_long_to_small_conv_longratio": [[7, 1], [1, 1], [3, 0]],
        "vertical_long_to_small_conv_midratio": [[5, 1], [1, 1], [2, 0]],
        "vertical_long_to_small_conv_shortratio": [[3, 1], [1, 1], [1, 0]],
        "horizontal_small_to_long_conv_longratio": [[1, 7], [1, 1], [0, 3]],
        "horizontal_small_to_long_conv_midratio": [[1, 5], [1, 1], [0, 2]],
        "horizontal_small_to_long_conv_shortratio": [[1, 3], [1, 1], [0, 1]],
        "symmetric_conv_long_longratio": [[7, 7], [1, 1], [3, 3]],
        "symmetric_conv_long_midratio": [[5, 5], [1, 1], [2, 2]],
        "symmetric_conv_long_shortratio": [[3, 3], [1, 1], [1, 1]],
    },
}  # fmt: skip

FIELDS: dict[str, dict] = {
    "apertus1p5_vision_tokenizer": _VQ,
    "bit": {"num_groups": 8},
    "chmv2": {"post_process_channels": [16, 32, 64, 128]},
    "clap_audio_model": {"window_size": 2},
    "dac": {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4, 4], "n_codebooks": 3},
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [32, 64]},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "diffusion_gemma_text": {"global_head_dim": 16},
    "dinov3_convnext": {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1]},
    "donut-swin": {"window_size": 2},
    "dots3_note_text": _DOTS,
    "embedding_gemma2_text": {"global_head_dim": 16},
    "ernie4_5_vl_moe_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}},
    "focalnet": {"embed_dim": 16},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_audio": {"subsampling_conv_channels": [128, 32]},  # the first is the number of mel bins too
    "gemma4_text": {"global_head_dim": 16},
    "gemma4_unified_text": {"global_head_dim": 16},
    "glmasr_encoder": {"intermediate_size": 256},
    "hgnet_v2": {
        "stem_channels": [3, 16, 24],
        "stage_in_channels": [24, 32, 64, 96],
        "stage_mid_channels": [16, 16, 24, 32],
        "stage_out_channels": [32, 64, 96, 128],
        "hidden_sizes": [32, 64, 96, 128],
    },
    "janus_vqgan": _VQ,
    "kosmos_2_5_vision_model": {"patch_embed_hidden_size": 768},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 96},
    "mamba2": {"num_heads": 8, "chunk_size": 8},
    "maskformer-swin": {"window_size": 2},
    "mgp-str": {"num_bpe_labels": 160, "num_wordpiece_labels": 160},
    "mllama_text_model": {"cross_attention_layers": [1]},
    "mllama_vision_model": {"intermediate_layers_indices": [0], "vision_output_dim": 128},
    "molmo2": {"image_patch_id": 110},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "molmo2_vision": {"num_position_embeddings": 16},
    "muse_spark_audio": {"num_hidden_layers": 4},
    "nemotron_h": {"chunk_size": 8},
    "paddleocr_vl_text": {"rope_parameters": _ROPE3},
    "perceiver": {"d_latents": 64, "num_self_attends_per_block": 2},
    "pix2struct_vision_model": {"patch_embed_hidden_size": 768},
    "pp_lcnet_v4": {"stem_channels": [3, 48, 96]},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "sam2_hiera_det_model": {
        "hidden_size": 16,
        "image_size": [64, 64],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "blocks_per_stage": [1, 2, 2, 1],
        "global_attention_blocks": [2],
        "window_size_per_stage": [4, 4, 2, 2],
    },
    "sam2_vision_model": {"backbone_channel_list": [128, 64, 32, 16], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
    "sapiens2_head": {"upsample_out_channels": [32, 32], "conv_out_channels": [32]},
    "superpoint": {"keypoint_decoder_dim": 65},  # 8 x 8 places and "none"
    "swin": {"window_size": 2},
    "swin2sr": {"image_size": 16},
    "swinv2": {"window_size": 2},
    "textnet": {"stem_out_channels": 16},
    "tipsv2_dpt": {"neck_hidden_sizes": [16, 32, 64, 128]},
    "univnet": {"model_hidden_channels": 8},
    "unlimited_ocr_sam_vision_model": {"downsample_channels": [32, 64]},
    "vibevoice_acoustic_tokenizer": _VIBE,
    "vibevoice_acoustic_tokenizer_decoder": _VIBE,
    "vibevoice_acoustic_tokenizer_encoder": _VIBE,
    "voxtral_encoder": {"intermediate_size": 256},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
}
"""{configuration type: {field: value}}: as CONFIG, wherever the type stands."""

CONFIG: dict[str, dict] = {
    "align": {"vision_config.width_coefficient": 0.25, "projection_dim": 80},
    "apertus1p5": {"image_token_offset": 40, "audio_token_offset": 104, "text_config.vocab_size": 256},
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "autoformer": _SERIES,
    "blip-2": _IMAGE_TOKEN,
    "chameleon": {
        **{f"vq_config.{name}": value for name, value in _VQ.items()},
        "vocabulary_map": {"<image>": 110} | {f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": 30 + i for i in range(64)},
    },
    "clap": {
        "audio_config.spec_size": 64,
        "audio_config.num_mel_bins": 32,
        "audio_config.patch_embeds_hidden_size": 16,
        "audio_config.hidden_size": 128,
    },
    "clvp": {"text_config.num_attention_heads": 2, "speech_config.num_attention_heads": 2},
    "cohere_compass": {"text_config.rope_parameters": _COMPASS},
    "cohere_compass_text": {"rope_parameters": _COMPASS},
    "cvt": {"depth": (1, 2, 3)},
    "d_fine": _HG_ENCODER,
    "dbrx": {"attn_config.rope_theta": 1e4, "attn_config.clip_qkv": 8.0, "ffn_config.ffn_hidden_size": 96},
    "deimv2": _HG_ENCODER,
    "depth_pro": {
        "patch_size": 64,
        "intermediate_hook_ids": [1, 0],
        "intermediate_feature_dims": [64, 64],
        "scaled_images_feature_dims": [64, 64, 32],
    },
    "diffusion_gemma": {"text_config.num_experts": 4, "text_config.top_k_experts": 2, "text_config.moe_intermediate_size": 32},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
    "edgetam": _SAM_SIZES,
    "edgetam_vision_model": {"backbone_config.architecture": "repvit_m1"},
    "efficientloftr": {
        "out_features": [16, 16, 32, 64],
        "hidden_size": 64,
        "num_attention_heads": 8,
        "stage_num_blocks": [1, 1, 1, 1],
        "num_attention_layers": 1,
    },
    "efficientnet": {"width_coefficient": 0.25, "hidden_dim": 320},
    "emu3": {
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 2, 2, 2],
        "vocabulary_map": {"<image>": 110, "<|extra_200|>": 111} | {f"<|visual token {i:06d}|>": 30 + i for i in range(64)},
    },
    "esm": {"vocab_size": 40, "pad_token_id": 1, "mask_token_id": 2, "esmfold_config": None},
    "fast_vlm": {"vision_config.architecture": "fastvit_t8", "vision_config.hidden_size": 768},
    "fastspeech2_conformer_with_hifigan": {"vocoder_config.model_in_dim": 80},
    "fun_asr_nano": {"adaptor_config.intermediate_size": 16},
    "gemma3n": {
        "vision_config.model_args": _MOBILENET5,
        "vision_config.hidden_size": 2048,
        "audio_soft_tokens_per_image": 8,
        "vision_config.vocab_offset": 160,
        "audio_config.vocab_offset": 288,
        "text_config.vocab_size": 416,
        "image_token_id": 161,
        "audio_token_id": 289,
    },
    "gemma3n_vision": {"model_args": _MOBILENET5},
    "gemma4_assistant": {"text_config.hidden_size_per_layer_input": 0, "text_config.vocab_size_per_layer_input": 0},
    "glm4v_moe": {"text_config.rope_parameters": _ROPE3_HALF},
    "glm4v_moe_text": {"rope_parameters": _ROPE3_HALF},
    "glm5_next": {"text_config.index_kpool": 4},
    "glm5_next_text": {"index_kpool": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "1/2", **_PINPOINTS},
    "idefics": {"freeze_text_layers": False, "freeze_vision_layers": False},
    "informer": _SERIES,
    "instructblip": _IMAGE_TOKEN,
    "instructblipvideo": {"video_token_index": 110},
    "kosmos-2": {"latent_query_num": 8},
    "kosmos-2.5": {"latent_query_num": 8},
    "llava_next": _PINPOINTS,
    "llava_next_video": _PINPOINTS,
    "llava_onevision": _PINPOINTS,
    "lw_detr": {"projector_scale_factors": [2.0, 0.5]},
    "minicpm_ocr": _MINICPM,
    "minicpmv4_6": _MINICPM,
    "minicpmv4_7": _MINICPM,
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_glimmer": {"out_hidden_size": 256},
    "muse_spark": {"out_hidden_size": 256},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h_omni": {
        "image_token_id": 110,
        "video_token_id": 111,
        "audio_token_id": 112,
        "audio_config.projection_hidden_size": 64,
        "audio_config.projection_bias": False,
    },
    "neucodec": _XCODEC,
    "omdet-turbo": {
        "apply_layernorm_after_vision_backbone": False,
        "class_embed_dim": 128,
        "text_projection_in_dim": 128,
        "text_projection_out_dim": 128,
        "text_config.hidden_size": 128,
        "encoder_in_channels": (48, 96, 192),
        "vision_features_channels": (64, 64, 64),
    },
    "pe_video_encoder": {"vision_config.architecture": "vit_pe_core_tiny_patch16_384", "vision_config.model_args": _PE_ARGS},
    "perception_lm": {"vision_config.architecture": "vit_pe_spatial_tiny_patch16_512", "vision_config.model_args": _PE_ARGS},
    "pp_doclayout_v2": _HG_ENCODER
    | {"class_thresholds": [0.5, 0.5], "class_order": [0, 1], "reading_order_config.max_2d_position_embeddings": 1024},
    "pp_doclayout_v3": _HG_ENCODER | {"x4_feat_dim": 32},
    "pp_doclayout_v4": _HG_ENCODER,
    "pp_ocrv5_server_det": _OCR_DET,
    "pp_ocrv6_medium_det": _OCR_DET,
    "pp_ocrv6_small_det": {"layer_list_out_channels": (48, 96, 192, 384)},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 112, "vision_end_token_id": 113},
    "qwen3_omni_moe": {"talker_config.text_config.shared_expert_intermediate_size": 96, "talker_config.spatial_merge_size": 2},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 112, "vision_end_token_id": 113},
    "reformer": {"axial_pos_shape": (4, 4), "axial_pos_embds_dim": (32, 32)},
    "rf_detr": {"backbone_config.": "rf_detr_dinov2"},
    "rt_detr": _HG_ENCODER,
    "rt_detr_v2": _HG_ENCODER,
    "sam3_tracker": _SAM_SIZES,
    "seggpt": {
        "image_size": (128, 64),
        "num_hidden_layers": 4,
        "intermediate_hidden_state_indices": (1, 2, 3),
        "merge_index": 0,
    },
    "step3p7": {"text_config.sliding_window": 8},
    "t5gemma2_encoder": {"text_config.dropout_rate": 0.0},
    "time_series_transformer": _SERIES,
    "timm_backbone": {"backbone": "test_resnet", "use_pretrained_backbone": False},
    "timm_wrapper": {"architecture": "test_resnet"},
    "tvp": {"visual_prompt_size": 8},
    "uvdoc": {"backbone_config.out_features": [f"stage{i}" for i in range(1, 7)]},
    "vipllava": {"vision_feature_layer": [-1, -2]},
    "vitmatte": {"fusion_hidden_sizes": [64, 32, 16, 8]},
    "voxtral": {"audio_token_id": 110},
    "wav2vec2-bert": {"vocab_size": 40},
    "wav2vec2-conformer": {"vocab_size": 40},
    "xcodec": {"acoustic_model_config.downsampling_ratios": [8, 5, 4, 2]},
    "xcodec2": _XCODEC,
    "xmod": {"default_language": "en_XX"},
}
"""{model type: {dotted path in its configuration: value}}; a path that ends in a dot names another class for a part."""

_SESSION = "its forward takes a session of a video that it changes, not tensors"
CANNOT: dict[str, str] = {
    "dinat": "needs the package natten",
    "edgetam_video": _SESSION,
    "glm_image_vqmodel": "has no forward, only encode",
    "higgs_audio_v2_tokenizer": "needs the package torchaudio",
    "layoutlmv2": "needs the package detectron2",
    "sam2_video": _SESSION,
    "sam3_tracker_video": _SESSION,
    "sam3_video": _SESSION,
    "wavtokenizer_encoder": "gives integer codes only, so nothing can be differentiated",
}
"""{model type: why no model of it is built}."""

CLASS: dict[str, str] = {
    "bark": "BarkSemanticModel",
    "beit": "BeitForImageClassification",
    "data2vec-vision": "Data2VecVisionForImageClassification",
    "llama4": "Llama4ForCausalLM",  # of the whole one, forward asks its language model for images' outputs that it has not
    "musicgen": "MusicgenForConditionalGeneration",
    "musicgen_melody": "MusicgenMelodyForConditionalGeneration",
    "qwen2_5_omni": "Qwen2_5OmniTalkerForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeTalkerForConditionalGeneration",
}
"""{model type: class} in place of the one that `classes.py` chooses."""

PART: dict[str, str] = {
    "bark": "semantic_config",
    "llama4": "text_config",
    "qwen2_5_omni": "talker_config",
    "qwen3_omni_moe": "talker_config",
}
"""{model type: field of its configuration} that the class of CLASS takes: the whole has no forward, only `generate`."""

LEAVE: dict[str, tuple] = {
    "apertus1p5": ("input_values",),
    "csm": ("input_values",),
    "dots3_note": ("input_features",),
    "glm_image": ("pixel_values", "image_grid_thw", "mm_token_type_ids"),
    "pop2piano": ("input_ids", "attention_mask"),
    "qwen2_5_omni": ("input_ids",),
    "qwen3_omni_moe": ("input_ids",),
    "speech-encoder-decoder": ("input_features",),
}
"""{model type: names of inputs} to leave out."""
