"""Small configurations of transformers: generic rules on the names of fields, recursively through sub-configurations.

A width of 4096 becomes 64, 32 layers become 2 (or one of each kind), and so on. Every width of a kind gets the same small
value wherever it stands, so that parts which must fit each other do. What the rules get wrong is in `exceptions.py`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from .exceptions import CONFIG, FIELDS

WIDTH, INNER, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 4, 2, 16
VOCABULARY, POSITIONS, IMAGE, PATCH = 160, 128, 64, 16
FIRST_SPECIAL = 100
"""Special tokens that do not fit the small vocabulary are numbered from here; inputs are drawn from below."""

_SPECIAL = re.compile(r"(token_id|token_index|_tok_id|_bos_id|_eos_id|_pad_id)$")
_RULES = [  # first match wins; a value at most as large as the new one stays
    (r"kernel|stride|dilation|coefficient|cost|temperature|theta|epsilon|sampl(ing|e_rate)|factor|ratio|_rate$|_labels$", None),
    (r"vocab_size|vocabulary|group_vocab$", VOCABULARY),
    (r"codebook_size|num_embeddings|num_codevectors_per_group|quantization_dim|codebook_vocab", 64),
    (r"(key_value_heads|kv_heads|num_key_value_groups|linear_num_key_heads)$", KV_HEADS),
    (r"(^|_)(head|heads)$|_heads_", HEADS),
    (r"num_experts_per_tok|moe_topk|moe_k$|top_k_experts|topk_experts", 2),
    (r"n_group$|topk_group$|n_shared|shared_experts$", 1),
    (r"experts$|expert_num$", 4),
    (r"first_k_dense_replace|num_dense_layers|insert_layer_id", 1),
    (r"(head_dim|d_kv|dim_head|kv_channels|_head_size|linear_\w+_head_dim)$", HEAD_DIM),
    (r"qk_nope_head_dim|qk_rope_head_dim|rotary_dim", 8),
    (r"lora_rank|_rank$", 16),
    (r"num_codebooks|num_quantizers|max_text_length|mamba_chunk_size|num_filters", 8),
    (r"mm_tokens_per_image", 4),
    (r"upsample_groups|bottleneck_features", WIDTH),
    (r"^n_groups$|n_groups$", 2),
    (r"state_size|d_state$", HEAD_DIM),
    (r"num_pos_feats", WIDTH // 2),
    (r"^num_frames$|frames_per_clip", 4),
    (r"num_kv_shared_layers|num_mtp_layers|nextn_predict", None),
    (r"layers$|^depth$|(^|_)n?_?layer$|num_blocks$|num_stages_|_depth$", 2),
    (r"(source|target)_positions", POSITIONS),
    (r"max_\w*positions?_embeddings|position_embeddings$|n_positions|n_ctx|max_seq_len|max_length|context_length", POSITIONS),
    (r"(image|img|input|pretrain_image|crop)_size$|^resolution$", IMAGE),
    (r"patch_size$", PATCH),
    (r"index_topk|sliding_window|attention_window|local_attention$", 8),
    (r"num_queries|num_proposals|two_stage_num_proposals|num_denoising|query_tokens|_num_latents|num_latents|n_latents", 8),
    (r"intermediate\w*_size|ffn|d_ff|dim_ff|mlp_dim|feed_?forward_(dim|hidden)|d_inner|linear_units|inner_dim", INNER),
    (r"hidden|d_model|n_embd|embd?_dim|embedding_size|embedding_dim|embedding_size|projector|project|_width$", WIDTH),
    (r"_dim$|^dim$|_dims$|channels?$|_units$|_size_per_layer_input|_inplanes|base_channels|feature_size", WIDTH),
    (r"codebook_dim|dim_bbox", WIDTH),
]  # fmt: skip
_MISSING = {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1}
"""Values of fields that are None by default, and that the model needs."""
RULES = [(re.compile(pattern), new) for pattern, new in _RULES]
_DEPTHS = re.compile(r"^depths?$|layers$|num_blocks|block_repeats|num_block|repeats$|numb_of_layers|n_attn_blocks")
_WIDTHS = re.compile(r"hidden_size|channels|embed_dim|_dims?$|dims$|neck_hidden|^dim$|hidden_sizes")
_KINDS = re.compile(r"(layer_types|layers_block_type|mlp_layer_types|block_types?|layers_type)$")


def small_config(cls: type, model_type: str = "", init: dict | None = None, path: str = "", ids: dict | None = None, over=None):
    """A small instance of a configuration class.

    Args:
        init: values in place of the class's own defaults, shrunk like them. path: where in the whole configuration it lies.
        ids: {name: number} of the special tokens met so far: equal names have equal numbers everywhere.
        over: {dotted path: value} of exceptions.
    """
    ids = {} if ids is None else ids
    over = CONFIG.get(model_type, {}) if over is None else over
    values = _defaults(cls) | dict(init or {})
    changed = dict(init or {}) | {k: new for k, v in values.items() if (new := small_value(k, v, ids)) is not v}
    changed |= _scaled_lists(values)
    changed |= _fitting(cls, values, changed)
    changed |= _one_of_each_kind(cls, values)
    changed |= FIELDS.get(cls.model_type, {})
    for name, sub_class, inner in _parts(cls, path, over):
        below = _prefixed(sub_class, path + name) | over
        changed[name] = small_config(sub_class, sub_class.model_type, inner, f"{path}{name}.", ids, below)
    own = {k[len(path) :]: v for k, v in over.items() if k.startswith(path) and "." not in k[len(path) :]}
    return cls(**changed | own)


def _prefixed(cls: type, path: str) -> dict:
    """The exceptions of a type, where it is a part of another one."""
    return {f"{path}.{key}": value for key, value in CONFIG.get(cls.model_type, {}).items()}


def _parts(cls: type, path: str, over: dict):
    """(name, class, values in place of its defaults) of every sub-configuration."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    specs = getattr(cls, "sub_configs_defaults", None) or {}
    for name, spec in specs.items():
        if other := over.get(f"{path}{name}."):  # an exception names another class
            yield name, CONFIG_MAPPING[other], {}
        elif spec.config_class.__name__ == "AutoConfig":
            yield name, CONFIG_MAPPING[spec.model_type], spec.init_kwargs
        else:
            yield name, spec.config_class, spec.init_kwargs
    for name, part in (vars(cls).get("sub_configs") or {}).items():  # of four types, as transformers 4 had it
        if name not in specs:
            yield name, part, {}


def _defaults(cls: type) -> dict[str, Any]:
    out = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            out[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            out[field.name] = field.default_factory()
    return out


def small_value(name: str, value, ids: dict):
    """The small value of one field; the same object where it stays."""
    if value is None:
        return _MISSING.get(name)
    if name == "use_cache":
        return False  # a cache is of no use in training, and is left out of the outputs
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _small_int(name, value, ids)
    if isinstance(value, list | tuple) and value and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        kind = type(value)
        if re.search(r"attn_indexes|block_indexes|global_att|visual_indexes", name):
            return kind([1])  # the second of two layers
        new = kind(min(v, 2) for v in value) if _DEPTHS.search(name) else kind(_small_int(name, v, {}) for v in value)
        return value if new == value or _is_widths(name, value) else new
    if isinstance(value, float) and re.search("layerdrop|mask_time_prob|mask_feature_prob", name):
        return 0.0  # needs longer inputs, or drops what is to be measured
    return value


def _small_int(name: str, value: int, ids: dict) -> int:
    if _SPECIAL.search(name):
        return value if value < FIRST_SPECIAL // 4 else ids.setdefault(name.replace("index", "id"), FIRST_SPECIAL + len(ids))
    for pattern, new in RULES:
        if pattern.search(name):
            return value if new is None or value <= new else new
    return value


def _is_widths(name: str, value) -> bool:
    """Widths that grow from stage to stage; equal ones are treated like one number."""
    return (
        isinstance(value, list | tuple)
        and bool(_WIDTHS.search(name))
        and any(isinstance(v, int) and v >= 16 for v in value)
        and len({str(v) for v in value}) > 1
    )


def _scaled_lists(values: dict) -> dict:
    """Widths of stages, all divided by the same number: the least comes to 16 or more, and what fitted goes on to fit."""
    lists = {name: value for name, value in values.items() if _is_widths(name, value)}
    flat = [v for value in lists.values() for v in value if isinstance(v, int) and v > 4]
    divisor = 1
    while flat and min(flat) >= 32 * divisor and all(v % (2 * divisor) == 0 for v in flat):
        divisor *= 2
    scaled = lambda v: v // divisor if isinstance(v, int) and v > 4 else v  # noqa: E731
    return {name: type(value)(scaled(v) for v in value) for name, value in lists.items()}


def _fitting(cls: type, values: dict, changed: dict) -> dict:
    """Fields that must fit other fields."""
    out = {}
    heads = changed.get("num_attention_heads")
    if heads and values.get("num_key_value_heads") == values["num_attention_heads"]:
        out["num_key_value_heads"] = heads  # equal by nature (multi-head latent attention), not by choice
    if "head_dim" in values and values["head_dim"] is None and changed.get("hidden_size") and heads:
        out["head_dim"] = changed["hidden_size"] // heads
    if isinstance(heads := values.get("num_heads"), list | tuple) and isinstance(changed.get("embed_dim"), int):
        out["embed_dim"] = 8 * heads[0]
    if "mrope_section" in getattr(cls, "ignore_keys_at_rope_validation", ()) and not values.get("layer_types"):
        out["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    count = next((n for n in ("num_hidden_layers", "n_layer", "num_layers") if n in changed), None)
    wanted = values.get("out_indices") or values.get("out_features")
    if count and wanted and all(re.fullmatch(r"\d+|stage\d+", str(w)) for w in wanted):  # features of single layers
        out[count] = max(2, len(wanted))
        last = range(out[count] - len(wanted) + 1, out[count] + 1)
        out |= {"out_indices": list(last)} if values.get("out_indices") else {"out_features": [f"stage{i}" for i in last]}
    return out


def _one_of_each_kind(cls: type, values: dict) -> dict:
    """Where a model mixes kinds of layers, one layer of each kind, in their order (two layers at least)."""
    names = [name for name in values if _KINDS.search(name)]
    count = next((n for n in ("num_hidden_layers", "n_layer", "num_layers") if n in values), None)
    if not names or count is None:
        return {}
    try:
        default = cls()
    except Exception:  # it needs arguments
        return {}
    lists = {name: list(v) for name in names if isinstance(v := getattr(default, name, None), list | tuple)}
    if not lists or len({len(v) for v in lists.values()}) != 1:
        return {}
    chosen, seen = [], set()
    for kinds in zip(*lists.values(), strict=True):
        if any((i, k) not in seen for i, k in enumerate(kinds)):
            chosen.append(kinds)
            seen.update(enumerate(kinds))
    chosen = (chosen * 2)[:2] if len(chosen) < 2 else chosen
    return {count: len(chosen)} | {name: [kinds[i] for kinds in chosen] for i, name in enumerate(lists)}
