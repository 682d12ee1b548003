"""Making a configuration small: few blocks that keep every kind of block, small widths, and nothing else changed.

Names tell what a number is: hundreds of configurations call the same thing by a few dozen names. What cannot be told
that way stands in :mod:`parity.ledger.overrides`.
"""

import copy
import re

from transformers import AutoConfig, PreTrainedConfig

from parity.ledger.overrides import OVERRIDES
from sinkscope.testing.tiny import RECIPES

WIDTH, HEADS, KV_HEADS, VOCAB, WINDOW, POSITIONS, BLOCKS = 32, 4, 2, 128, 5, 256, 4
FIRST_SPECIAL = 100
"""Ids from here on have a meaning (places of images and the like); prompts draw from those below."""

RULES = {
    r"(num_(.*_)?attention_heads|n_heads?|num_heads|(encoder|decoder)_attention_heads|num_query_heads)": HEADS,
    r"(linear_num_key_heads|linear_num_value_heads|linear_num_heads|linear_n_heads|index_n_heads)": HEADS,
    r"(mamba_(n|num)_heads|n_mamba_heads|qformer_heads)": HEADS,
    r"(head_dim|d_kv|d_head|kv_channels|qk_nope_head_dim|qk_rope_head_dim|v_head_dim|head_size|index_head_dim)": 8,
    r"(linear_key_head_dim|linear_value_head_dim|linear_head_dim|attention_head_dim|local_head_dim)": 8,
    r".*_rank": 16,
    r"(n_routed_experts|num_(local_|routed_)?experts|moe_num_experts|num_moe_experts)": 4,
    r"(num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k|top_k_experts|num_selected_experts|experts_per_token)": 2,
    r"(n_group|topk_group|num_expert_group|num_limited_groups)": 1,
    r"(vocab_size|.*_vocab_size|vocab_size_per_layer_input|vocabulary_size|.*_vocab)": VOCAB,
    r"(max_.*position.*|n_positions|n_ctx|max_seq_len|max_sequence_length|max_seq_length)": POSITIONS,
    r"(max_target_length|context_length)": POSITIONS,
    r"(sliding_window|attention_window_size|window_attention|local_attention)": WINDOW,
    r"(attention_chunk_size|chunk_size|mamba_chunk_size|chunk_length)": 8,
    r"(index_topk|rotary_dim|num_frames)": 4,
    r"index_kpool": 2,
    r"((mamba_)?(d_state|state_size)|ssm_state_size)": 8,
    r"(patch_size|spatial_patch_size)": 4,
    r"(image_size|img_size|input_resolution|pretrain_image_size)": 16,
    r"(num_channels|in_channels|in_chans|num_image_channels)": None,
    r"(num_mel_bins|n_mels|mel_bins|feature_size|num_mel_filters)": 16,
    r"max_source_positions": 10,
    r"(relative_attention_num_buckets|.*num_buckets)": 8,
    r"(num_(.*_)?(hidden_)?layers|n_layers?|(encoder|decoder)(_num)?(_hidden)?_layers|.*_num_hidden_layers)": 2,
    r"(depth|num_blocks|(encoder|decoder)_depth|layers)": 2,
    r"(.*intermediate_size|.*ffn_dim|d_ff|.*ffn_size|ffn_hidden_size|mlp_dim|n_inner|ff_dim|block_ff_dim|d_inner)": 64,
    r"(.*mlp_hidden_size|.*mlp_size|feedforward_size)": 64,
    r"(.*hidden_size|.*d_model|n_embd|dim|.*_dim|.*_width|.*_channels|.*embedding_size|.*embed_size|d_embed)": WIDTH,
    r"(n_dim|bottleneck_size|emb_size)": WIDTH,
}
"""What an integer of this name becomes; a smaller one, and one whose rule is None, stays.

The first rule that fits counts.
"""

MISSING = {
    "vocab_size": VOCAB, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1, "num_experts": None,
}  # fmt: skip
"""What stands for a number that the configuration leaves open, and that a model cannot be built without."""

PARTS = {
    "vision-encoder-decoder": ("vit", "gpt2"), "speech-encoder-decoder": ("wav2vec2", "gpt2"),
    "encoder-decoder": ("bert", "bert"), "vision-text-dual-encoder": ("clip_vision_model", "bert"),
}  # fmt: skip
"""Models that are made of any two others."""

KEY_VALUE_HEADS = r"(.*key_value_heads|.*kv_heads|n_head_kv|multi_query_group_num|num_query_groups)"

PER_STAGE = ("depths", "hidden_sizes", "num_attention_heads", "num_heads", "embed_dims", "stage_depths")
"""Lists with one entry for each stage of a pyramid, not for each block."""


def shrink(model_type):
    """Make the small configuration of one model type."""
    recipe = next((each for each in RECIPES.values() if each.model_type == model_type), None)
    if recipe is not None:
        return AutoConfig.for_model(model_type, **recipe.config)
    return _shrunk(model_type)


def _shrunk(model_type):
    """The same by rule alone, without the recipes of the named architectures."""
    config = made(model_type)
    _shrink(config)
    _override(config)
    _repair_ids(config)
    return config


def _override(config):
    for part in [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]:
        _override(part)
    for name, value in OVERRIDES.get(getattr(config, "model_type", ""), {}).items():
        *path, last = name.split(".")
        holder = config
        for part in path:
            holder = getattr(holder, part)
        if isinstance(holder, dict):
            holder[last] = copy.deepcopy(value)
        elif last == "backbone_config":
            setattr(holder, last, AutoConfig.for_model(**value))
        else:
            _set(holder, last, copy.deepcopy(value))


def made(model_type):
    """The configuration as transformers makes it, with parts of its own where it is made of two models."""
    if model_type in PARTS:
        parts = PARTS[model_type]
        names = ("vision_config", "text_config") if "dual" in model_type else ("encoder", "decoder")
        configs = {name: AutoConfig.for_model(part).to_dict() for name, part in zip(names, parts, strict=True)}
        if "decoder" in configs:
            configs["decoder"] |= {"is_decoder": True, "add_cross_attention": True}
        return AutoConfig.for_model(model_type, **configs)
    return AutoConfig.for_model(model_type)


def _shrink(config):
    parts = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    for part in parts:
        _shrink(part)
    chosen, depth = _blocks(config)
    kv = _kv_heads(config)
    for name, value in list(vars(config).items()):
        new = _smaller(name, value, chosen, depth)
        if new is not value:
            _set(config, name, new)
    for name, value in kv.items():
        _set(config, name, value)
    _shrink_rope(config)


def _set(config, name, value):
    try:
        setattr(config, name, value)
    except Exception:  # a property, or a value that its validation refuses: then it stays
        config.__dict__[name] = value


def _blocks(config):
    """Which of the blocks stay, so that every kind does; and how many there were."""
    depth = next((getattr(config, n, None) for n in ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
                  if isinstance(getattr(config, n, None), int)), 0)  # fmt: skip
    named = {name: value for name, value in vars(config).items() if isinstance(value, list | tuple)}
    lists = [value for name, value in named.items() if len(value) == depth > 2 and name not in PER_STAGE]
    if not lists:
        return None, depth
    kinds = [tuple(str(each[i]) for each in lists) for i in range(depth)]
    seen, chosen = {}, []
    for index, kind in enumerate(kinds):
        if kind not in seen:
            seen[kind] = index
            chosen.append(index)
    if len(chosen) > BLOCKS + 1:  # a value for each block (rope bases): two blocks of each named kind are enough
        names = [tuple(str(each[i]) for each in lists if isinstance(each[0], str)) for i in range(depth)]
        chosen = sorted({kind: index for index, kind in reversed(list(enumerate(names)))}.values())[: BLOCKS + 1]
    for index in range(depth):
        if len(chosen) < 2 and index not in chosen:
            chosen.append(index)
    return sorted(chosen), depth


def _smaller(name, value, chosen, depth):
    if isinstance(value, bool) or name.startswith("_"):
        return value
    if isinstance(value, list | tuple):
        return _shorter(name, value, chosen, depth)
    if value is None:
        return MISSING.get(name)
    if not isinstance(value, int):
        return value
    if name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers") and chosen is not None and value == depth:
        return len(chosen)
    for pattern, small in RULES.items():
        if re.fullmatch(pattern, name):
            return value if small is None else min(value, small)
    return value


def _shorter(name, value, chosen, depth):
    if chosen is not None and len(value) == depth and name not in PER_STAGE:
        return type(value)(value[i] for i in chosen)
    if name in ("depths", "stage_depths", "num_blocks"):
        return type(value)(1 for _ in value)
    if name in ("num_attention_heads", "num_heads", "num_attention_heads_per_stage"):
        return type(value)(HEADS for _ in value)
    if name in ("hidden_sizes", "embed_dims", "neck_hidden_sizes"):
        return type(value)(WIDTH for _ in value)
    if name in ("image_size", "img_size"):
        return type(value)(16 for _ in value)
    if name == "patch_size":
        return type(value)(min(4, each) for each in value)
    if name in ("conv_dim", "tdnn_dim"):
        return type(value)(WIDTH for _ in value)
    if re.search(r"(ind(ex|ic)es|layer_ids|layers|_idx|layer_indices)$", name) and all(type(v) is int for v in value):
        top = len(chosen) if chosen is not None else 2
        return type(value)(sorted({min(v, top - 1) for v in value}))
    return value


def _kv_heads(config):
    found = {}
    heads = next((getattr(config, n, None) for n in ("num_attention_heads", "n_head", "n_heads", "num_heads")
                  if isinstance(getattr(config, n, None), int)), 1)  # fmt: skip
    for name, value in vars(config).items():
        if re.fullmatch(KEY_VALUE_HEADS, name) and type(value) is int:
            found[name] = 1 if value == 1 else HEADS if value >= heads else KV_HEADS
    return found


def _shrink_rope(config):
    for name in ("rope_parameters", "rope_scaling"):
        rope = getattr(config, name, None)
        if isinstance(rope, dict):
            for part in (rope, *[each for each in rope.values() if isinstance(each, dict)]):
                if "mrope_section" in part or "mrope_section" in _named(config):
                    part["mrope_section"] = _sections(config, part)


def _named(config):
    """Entries of the rope's parameters that this configuration knows beside the library's own."""
    return getattr(type(config), "ignore_keys_at_rope_validation", None) or ()


def _sections(config, rope):
    """Three parts of the rotated pairs of a head: time, height, width."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pairs = int(width * rope.get("partial_rotary_factor", 1.0)) // 2
    return [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]


def _repair_ids(config, known=None):
    """Give every special id a place of its own in the small vocabulary; the same id keeps the same place."""
    size = getattr(config, "vocab_size", None)
    size = size if isinstance(size, int) and size > 0 else VOCAB
    known = {} if known is None else known
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _repair_ids(value, known)
        elif re.search(r"(_token_id|_token_index|token_idx)$|^(image|video|audio)_token", name):
            if type(value) is int and value >= FIRST_SPECIAL:
                _set(config, name, min(known.setdefault(value, FIRST_SPECIAL + len(known)), size - 1))
            elif isinstance(value, list) and value and type(value[0]) is int:
                _set(config, name, [2])
