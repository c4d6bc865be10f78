"""How the modules of timm are made small, where the rule of `timm_models.py` does not do it."""

from __future__ import annotations

_VIT = {"embed_dim": 64, "depth": 2, "num_heads": 4}
_STAGES = {"embed_dims": (16, 32, 64, 128), "depths": (1, 1, 2, 1)}
_SWIN = {"embed_dim": 24, "depths": (2, 2, 2, 2)}

TIMM: dict[str, dict] = {
    "beit": {"model": "beit_base_patch16_224", **_VIT},
    "byoanet": {"model": "botnet26t_256"},
    "nasnet": {"model": "nasnetalarge", "num_features": 1056, "stem_size": 32},
    "mobilenetv5": {"model": "mobilenetv5_base", "channel_multiplier": 0.1},
    "cait": {"model": "cait_xxs24_224", **_VIT},
    "coat": {"model": "coat_tiny", "embed_dims": (16, 16, 16, 16), "serial_depths": (1, 1, 1, 1), "parallel_depth": 1},
    "convit": {"model": "convit_tiny", **_VIT},
    "convmixer": {"class": "ConvMixer", "dim": 64, "depth": 2},
    "crossvit": {"model": "crossvit_tiny_240", "embed_dim": [48, 96], "size": 240},
    "davit": {"model": "davit_tiny", **_STAGES, "num_heads": (1, 2, 4, 8)},
    "deepseek_vit": {"model": "deepseek_vit_412m", **_VIT},
    "deit": {"model": "deit_tiny_patch16_224", **_VIT},
    "densenet": {"model": "densenet121", "growth_rate": 8, "block_config": (2, 2, 2, 2)},
    "eva": {"model": "eva02_tiny_patch14_224", **_VIT},
    "focalnet": {"class": "FocalNet", "embed_dim": 16, "depths": (1, 1, 2, 1)},
    "gemma4_vit": {
        "model": "gemma4_vit_167m_enc",
        "embed_dim": 64,
        "depth": 2,
        "num_heads": 4,
        "head_dim": 16,
        "intermediate_size": 96,
    },
    "hiera": {"model": "hiera_tiny_224", "embed_dim": 16, "stages": (1, 1, 2, 1)},
    "hieradet_sam2": {"model": "sam2_hiera_tiny", "size": 64},
    "metaformer": {
        "class": "MetaFormer",
        "dims": (32, 64, 64, 128),
        "depths": (1, 1, 1, 1),
        "token_mixers": ["@Pooling", "@SepConv", "@Attention", "@Attention"],
        "norm_layers": ["@LayerNorm2dNoBias", "@LayerNorm2dNoBias", "@LayerNormNoBias", "@LayerNormNoBias"],
    },
    "mlp_mixer": {"class": "MlpMixer", "embed_dim": 64, "num_blocks": 2},
    "mvitv2": {"model": "mvitv2_tiny"},
    "naflexvit": {"model": "naflexvit_base_patch16_gap", **_VIT},
    "nest": {"class": "Nest", "embed_dims": (16, 32, 64), "num_heads": (1, 2, 4), "depths": (1, 1, 2)},
    "pvt_v2": {"model": "pvt_v2_b0"},
    "qwen3_vit": {"model": "qwen3_vit_88m", **_VIT},
    "sequencer": {
        "model": "sequencer2d_s",
        "layers": (1, 1, 1, 1),
        "embed_dims": (32, 64, 64, 64),
        "hidden_sizes": (8, 16, 16, 16),
    },
    "swin_transformer": {"model": "swin_tiny_patch4_window7_224", **_SWIN},
    "swin_transformer_v2": {"model": "swinv2_tiny_window16_256", **_SWIN},
    "swin_transformer_v2_cr": {"model": "swinv2_cr_tiny_224", **_SWIN},
    "tiny_vit": {"model": "tiny_vit_5m_224", **_STAGES, "num_heads": (1, 2, 4, 8)},
    "tnt": {"model": "tnt_s_legacy_patch16_224", "embed_dim": 64, "inner_dim": 16, "depth": 2, "num_heads_outer": 4},
    "twins": {"model": "twins_svt_small", **_STAGES},
    "vgg": {"class": "VGG", "cfg": [16, "M", 32, "M", 64, "M", 64, "M", 64, "M"], "mlp_ratio": 0.02},
    "vision_transformer_hybrid": {"model": "vit_tiny_r_s16_p8_224", **_VIT},
    "vision_transformer_sam": {"model": "samvit_base_patch16_224", **_VIT},
    "visformer": {"model": "visformer_tiny"},
    "volo": {
        "class": "VOLO",
        "layers": (1, 1, 1, 1),
        "embed_dims": (24, 48, 48, 48),
        "num_heads": (2, 4, 4, 4),
        "use_aux_head": False,
    },
    "xcit": {"model": "xcit_nano_12_p8_224", **_VIT},
}
"""{module: {"model" or "class": name, "size": of the picture, other arguments}}; "@X" stands for X of the module."""
