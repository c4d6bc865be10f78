"""Short names of models, and what they stand for; `python -m ldp_search.run --list models` shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Alias:
    """stands_for: timm:NAME or hf:ID. config: of a model of transformers that starts from scratch, its model_type and the
    fields in which it differs from that type's defaults: so it needs no network.
    """

    stands_for: str
    config: dict[str, Any] = field(default_factory=dict)
    note: str = ""


_TINY_LLAMA = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 1024,
}  # fmt: skip
_DEBERTA = {
    "model_type": "deberta-v2", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "max_position_embeddings": 512,
    "type_vocab_size": 0,
}  # fmt: skip
_STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_SWIN_TINY = {"backbone_config": {"model_type": "swin", **_STAGES}}
_CONVNEXT_TINY = {"backbone_config": {"model_type": "convnext", **_STAGES}}

ALIASES = {
    **{f"resnet{depth}": Alias(f"timm:cifar_resnet{depth}", note="the CIFAR one") for depth in (20, 32, 38, 44, 56, 74, 110)},
    "mobilenetv2": Alias("timm:cifar_mobilenetv2", note="the CIFAR one"),
    "resnet18": Alias("timm:resnet18"),
    "resnet34": Alias("timm:resnet34"),
    "resnet50": Alias("timm:resnet50"),
    "convnext_tiny": Alias("timm:convnext_tiny"),
    "efficientnet_b0": Alias("timm:efficientnet_b0"),
    "vit_tiny": Alias("timm:vit_tiny_patch16_224"),
    "deit": Alias("timm:deit_small_patch16_224"),
    "deit_tiny": Alias("timm:deit_tiny_patch16_224"),
    "vit": Alias("hf:google/vit-base-patch16-224-in21k", {"model_type": "vit"}),
    "bert": Alias("hf:google-bert/bert-base-uncased", {"model_type": "bert"}),
    "bert-large": Alias(
        "hf:google-bert/bert-large-uncased",
        {
            "model_type": "bert",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
    ),
    "roberta": Alias("hf:FacebookAI/roberta-base", {"model_type": "roberta", "max_position_embeddings": 514}),
    "distilbert": Alias("hf:distilbert/distilbert-base-uncased", {"model_type": "distilbert"}),
    "deberta": Alias("hf:microsoft/deberta-v3-base", _DEBERTA),
    "gpt2": Alias("hf:openai-community/gpt2", {"model_type": "gpt2"}),
    "distilgpt2": Alias("hf:distilbert/distilgpt2", {"model_type": "gpt2", "n_layer": 6}),
    "segformer": Alias("hf:nvidia/mit-b0", {"model_type": "segformer"}, note="for segmentation"),
    "upernet": Alias(
        "hf:openmmlab/upernet-convnext-tiny", {"model_type": "upernet", **_CONVNEXT_TINY}, note="for segmentation"
    ),
    "dpt": Alias("hf:Intel/dpt-large-ade", {"model_type": "dpt"}, note="for segmentation"),
    "mask2former": Alias(
        "hf:facebook/mask2former-swin-tiny-ade-semantic", {"model_type": "mask2former", **_SWIN_TINY}, note="for segmentation"
    ),
    "maskformer": Alias(
        "hf:facebook/maskformer-swin-tiny-ade", {"model_type": "maskformer", **_SWIN_TINY}, note="for segmentation"
    ),
    "llama-tiny": Alias("", _TINY_LLAMA, note="a Llama of 4 layers, 256 wide, from scratch"),
}
