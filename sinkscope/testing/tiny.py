"""Tiny random models of every supported architecture, built from a configuration in well under a second.

They answer questions of parity and law, never questions about language: two or three layers, width 32, a vocabulary of
96, weights drawn so wide that attention is far from uniform. Nothing is downloaded and nothing depends on the library's
own initialisation, which differs from one architecture to the next and leaves attention almost flat.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from sinkscope.errors import ModelError

VOCAB, PAD, BOS, EOS = 96, 0, 1, 2
IMAGE, VIDEO, VISION_START, VISION_END = 90, 91, 92, 93
FIRST_PLAIN_ID, LAST_PLAIN_ID = 3, 89
"""Ids that mean nothing special in any tiny model; random prompts are drawn from them."""

WIDTH, HEADS, KV_HEADS, LAYERS, WINDOW, CONTEXT = 32, 4, 2, 3, 5, 256
WEIGHT_STD = 0.25
"""Spread of every weight matrix: attention logits then have a standard deviation of about 1 to 2."""


@dataclass(frozen=True)
class Recipe:
    """How one tiny model is made: its kind, class, model type and configuration."""

    kind: str
    cls: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)


_IDS = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_TEXT = _IDS | {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip
_NO_FFN = {key: value for key, value in _TEXT.items() if key != "intermediate_size"}
_GQA = _TEXT | {"num_key_value_heads": KV_HEADS}
_GEMMA = _GQA | {"head_dim": 16}
_GEMMA2 = _GEMMA | {
    "sliding_window": WINDOW, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 20.0,
    "query_pre_attn_scalar": 16,
}  # fmt: skip
_GEMMA3 = _GEMMA | {"sliding_window": WINDOW, "query_pre_attn_scalar": 16, "sliding_window_pattern": 2}
_BERT = _TEXT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "type_vocab_size": 2}
_GPTJ = _IDS | {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT, "rotary_dim": 4}
_VISION = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 64,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
_DINO = {k: v for k, v in _VISION.items() if k != "intermediate_size"} | {"mlp_ratio": 2}
_CLIP_TEXT = _TEXT | {"max_position_embeddings": 64}
_CLIP = _VISION | {"projection_dim": 16}
_IMAGE_INDEX = {"image_token_index": IMAGE}
_QWEN_IDS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}  # fmt: skip
_MROPE = _GQA | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_QWEN_VISION = {"depth": LAYERS, "num_heads": HEADS, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2}
_PINPOINTS = [[16, 32], [32, 16], [32, 32]]

_BART = _IDS | {
    "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": LAYERS, "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": CONTEXT,
    "decoder_start_token_id": EOS,
}  # fmt: skip

_LINEAR = "linear_attention"
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

RECIPES: dict[str, Recipe] = {
    "llama": Recipe("decoder", "LlamaForCausalLM", "llama", _GQA),
    "qwen2": Recipe("decoder", "Qwen2ForCausalLM", "qwen2", _GQA),
    "qwen3": Recipe("decoder", "Qwen3ForCausalLM", "qwen3", _GQA | {"head_dim": 16}),
    "mistral": Recipe("decoder", "MistralForCausalLM", "mistral", _GQA | {"sliding_window": WINDOW}),
    "olmo": Recipe("decoder", "OlmoForCausalLM", "olmo", _GQA),
    "gemma": Recipe("decoder", "GemmaForCausalLM", "gemma", _GEMMA),
    "gemma2": Recipe("decoder", "Gemma2ForCausalLM", "gemma2", _GEMMA2),
    "gemma3_text": Recipe("decoder", "Gemma3ForCausalLM", "gemma3_text", _GEMMA3),
    "gpt_oss": Recipe(
        "decoder", "GptOssForCausalLM", "gpt_oss",
        _GQA | {"head_dim": 8, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "gpt2": Recipe(
        "decoder", "GPT2LMHeadModel", "gpt2",
        _IDS | {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT,
                "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "gpt_neox": Recipe("decoder", "GPTNeoXForCausalLM", "gpt_neox", _TEXT),
    "opt": Recipe(
        "decoder", "OPTForCausalLM", "opt",
        _NO_FFN | {"ffn_dim": 64, "dropout": 0.0, "word_embed_proj_dim": WIDTH},
    ),
    "qwen3_next": Recipe(
        "hybrid", "Qwen3NextForCausalLM", "qwen3_next",
        _GQA | _EXPERTS | {"num_hidden_layers": 4, "head_dim": 8, "shared_expert_intermediate_size": 32,
                           "layer_types": [_LINEAR, "full_attention", _LINEAR, "full_attention"],
                           "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
                           "linear_value_head_dim": 8},
    ),
    "lfm2": Recipe(
        "hybrid", "Lfm2ForCausalLM", "lfm2",
        _GQA | {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "conv"],
                "block_ff_dim": 64, "block_auto_adjust_ff_dim": False},
    ),
    "jamba": Recipe(
        "hybrid", "JambaForCausalLM", "jamba",
        _GQA | {"num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2, "num_experts": 4,
                "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_dt_rank": 4},
    ),
    "nemotron_h": Recipe(
        "hybrid", "NemotronHForCausalLM", "nemotron_h",
        _GQA | {"layers_block_type": [_LINEAR, "mlp", "full_attention", "mlp", "full_attention"], "head_dim": 8,
                "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "recurrent_gemma": Recipe(
        "hybrid", "RecurrentGemmaForCausalLM", "recurrent_gemma",
        _IDS | {"hidden_size": WIDTH, "num_hidden_layers": 4, "num_attention_heads": HEADS, "intermediate_size": 128,
                "num_key_value_heads": KV_HEADS, "lru_width": WIDTH, "attention_window_size": WINDOW,
                "block_types": ["recurrent", "attention"]},
    ),
    "minimax": Recipe(
        "hybrid", "MiniMaxForCausalLM", "minimax",
        _GQA | {"num_hidden_layers": 4, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
                "layer_types": [_LINEAR, "full_attention", _LINEAR, "full_attention"], "block_size": 8},
    ),
    "falcon_h1": Recipe(
        "hybrid", "FalconH1ForCausalLM", "falcon_h1",
        _GQA | {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8},
    ),
    "zamba2": Recipe(
        "hybrid", "Zamba2ForCausalLM", "zamba2",
        _TEXT | {"num_hidden_layers": 5, "layers_block_type": [_LINEAR, "hybrid", _LINEAR, "hybrid", _LINEAR],
                 "mamba_d_state": 8, "n_mamba_heads": 4, "chunk_size": 8},
    ),
    "diffllama": Recipe("hybrid", "DiffLlamaForCausalLM", "diffllama", _GQA),
    "longcat_flash": Recipe(
        "hybrid", "LongcatFlashForCausalLM", "longcat_flash",
        _IDS | {"hidden_size": WIDTH, "num_layers": 2, "num_hidden_layers": 4, "num_attention_heads": HEADS,
                "ffn_hidden_size": 64, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
                "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "zero_expert_num": 2,
                "moe_topk": 2, "expert_ffn_hidden_size": 32, "max_position_embeddings": CONTEXT, "head_dim": 8},
    ),
    "gptj": Recipe("bypass", "GPTJForCausalLM", "gptj", _GPTJ),
    "gpt_neo": Recipe(
        "bypass", "GPTNeoForCausalLM", "gpt_neo",
        _IDS | {"hidden_size": WIDTH, "num_layers": 2, "num_heads": HEADS, "intermediate_size": 64,
                "max_position_embeddings": CONTEXT, "window_size": WINDOW,
                "attention_types": [[["global", "local"], 1]]},
    ),
    "falcon": Recipe("bypass", "FalconForCausalLM", "falcon", _NO_FFN),
    "bloom": Recipe(
        "bypass", "BloomForCausalLM", "bloom", _IDS | {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}
    ),
    "mpt": Recipe(
        "bypass", "MptForCausalLM", "mpt",
        _IDS | {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": CONTEXT},
    ),
    "bert": Recipe("encoder", "BertForMaskedLM", "bert", _BERT),
    "bert_base": Recipe("encoder", "BertModel", "bert", _BERT),
    "vit": Recipe("vision", "ViTModel", "vit", _VISION),
    "deit": Recipe("vision", "DeiTModel", "deit", _VISION),
    "dinov2": Recipe("vision", "Dinov2Model", "dinov2", _DINO),
    "dinov2_with_registers": Recipe("vision", "Dinov2WithRegistersModel", "dinov2_with_registers", _DINO),
    "dinov3": Recipe("vision", "DINOv3ViTModel", "dinov3_vit", _VISION | {"num_register_tokens": 2}),
    "clip_vision": Recipe("vision", "CLIPVisionModel", "clip_vision_model", _CLIP),
    "siglip_vision": Recipe("vision", "SiglipVisionModel", "siglip_vision_model", _VISION),
    "clip": Recipe(
        "dual", "CLIPModel", "clip", {"text_config": _CLIP_TEXT, "vision_config": _CLIP, "projection_dim": 16}
    ),
    "siglip": Recipe("dual", "SiglipModel", "siglip", {"text_config": _CLIP_TEXT, "vision_config": _VISION}),
    "llava": Recipe(
        "vlm", "LlavaForConditionalGeneration", "llava",
        _IMAGE_INDEX | {"image_seq_length": 16, "text_config": _GQA | {"model_type": "llama"},
                        "vision_config": _CLIP | {"model_type": "clip_vision_model"}},
    ),
    "llava_next": Recipe(
        "vlm", "LlavaNextForConditionalGeneration", "llava_next",
        _IMAGE_INDEX | {"image_seq_length": 16, "image_grid_pinpoints": _PINPOINTS,
                        "text_config": _GQA | {"model_type": "mistral", "sliding_window": None},
                        "vision_config": _CLIP | {"model_type": "clip_vision_model"}},
    ),
    "llava_onevision": Recipe(
        "vlm", "LlavaOnevisionForConditionalGeneration", "llava_onevision",
        _IMAGE_INDEX | {"video_token_index": VIDEO, "image_grid_pinpoints": _PINPOINTS,
                        "text_config": _GQA | {"model_type": "qwen2"},
                        "vision_config": _VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}},
    ),
    "qwen2_vl": Recipe(
        "vlm", "Qwen2VLForConditionalGeneration", "qwen2_vl",
        _QWEN_IDS | {"text_config": _MROPE,
                     "vision_config": _QWEN_VISION | {"embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2}},
    ),
    "qwen2_5_vl": Recipe(
        "vlm", "Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl",
        _QWEN_IDS | {"text_config": _MROPE,
                     "vision_config": _QWEN_VISION | {"hidden_size": WIDTH, "out_hidden_size": WIDTH,
                                                      "intermediate_size": 64, "window_size": 16,
                                                      "fullatt_block_indexes": [1]}},
    ),
    "qwen3_vl": Recipe(
        "vlm", "Qwen3VLForConditionalGeneration", "qwen3_vl",
        _QWEN_IDS | {"text_config": _MROPE | {"head_dim": 8},
                     "vision_config": _QWEN_VISION | {"hidden_size": WIDTH, "out_hidden_size": WIDTH,
                                                      "intermediate_size": 64, "num_position_embeddings": 64,
                                                      "deepstack_visual_indexes": [0, 1]}},
    ),
    "internvl": Recipe(
        "vlm", "InternVLForConditionalGeneration", "internvl",
        {"image_token_id": IMAGE, "image_seq_length": 4, "text_config": _GQA | {"model_type": "qwen2"},
         "vision_config": _VISION | {"image_size": [16, 16], "patch_size": [4, 4]}},
    ),
    "gemma3": Recipe(
        "vlm", "Gemma3ForConditionalGeneration", "gemma3",
        _IMAGE_INDEX | {"boi_token_index": VISION_START, "eoi_token_index": VISION_END, "mm_tokens_per_image": 4,
                        "text_config": _GEMMA3,
                        "vision_config": _VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}},
    ),
    "idefics3": Recipe(
        "vlm", "Idefics3ForConditionalGeneration", "idefics3",
        {"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": PAD, "text_config": _GQA | {"model_type": "llama"},
         "vision_config": _VISION},
    ),
    "t5": Recipe(
        "encoder-decoder", "T5ForConditionalGeneration", "t5",
        _IDS | {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": LAYERS,
                "num_heads": HEADS, "relative_attention_num_buckets": 8, "decoder_start_token_id": PAD},
    ),
    "bart": Recipe("encoder-decoder", "BartForConditionalGeneration", "bart", _BART | {"forced_eos_token_id": None}),
    "pegasus": Recipe("encoder-decoder", "PegasusForConditionalGeneration", "pegasus",
                      _BART | {"forced_eos_token_id": None}),
    "mbart": Recipe("encoder-decoder", "MBartForConditionalGeneration", "mbart", _BART | {"forced_eos_token_id": None}),
    "whisper": Recipe(
        "encoder-decoder", "WhisperForConditionalGeneration", "whisper",
        {k: v for k, v in _BART.items() if k != "max_position_embeddings"}
        | {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 64, "suppress_tokens": None,
           "begin_suppress_tokens": None},
    ),
    "moonshine": Recipe(
        "encoder-decoder", "MoonshineForConditionalGeneration", "moonshine",
        {"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 48, "encoder_num_hidden_layers": 2,
         "decoder_num_hidden_layers": LAYERS, "encoder_num_attention_heads": HEADS,
         "decoder_num_attention_heads": HEADS, "decoder_start_token_id": BOS, "bos_token_id": BOS,
         "eos_token_id": EOS},
    ),
}  # fmt: skip
"""Every tiny model by name.

``hybrid`` names decoders whose blocks do not all make one attention call: some have none, some make two. ``bypass``
names decoders whose attention does not pass through transformers' interface. ``encoder-decoder`` models read text, or
recordings (Whisper, Moonshine).
"""


def names(kind: str | None = None) -> list[str]:
    """List the tiny models of one kind: ``decoder``, ``hybrid``, ``encoder``, ``vision``, ``dual``, ``vlm``...

    The others are ``bypass`` and ``encoder-decoder`` models. ``dual`` is a text and a vision encoder side by side
    (CLIP, SigLIP). Without a
    kind, all names.

    Raises:
        ModelError: there is no such kind.
    """
    kinds = sorted({recipe.kind for recipe in RECIPES.values()})
    if kind is not None and kind not in kinds:
        raise ModelError(f"testing.names({kind!r}): the kinds are {kinds}. Use one of them, or none for all names.")
    return [name for name, recipe in RECIPES.items() if kind is None or recipe.kind == kind]


def tiny(name: str, seed: int = 0, **config_overrides: Any) -> PreTrainedModel:
    """Build a tiny random model: float32, evaluation mode, the same weights for the same seed.

    Args:
        name: one of :func:`names`.
        seed: seed of the weights.
        config_overrides: configuration entries to replace; ``text_config`` and ``vision_config`` of a composite model
            take a mapping that is merged into the recipe's.

    Raises:
        ModelError: there is no such recipe.
    """
    if name not in RECIPES:
        raise ModelError(f"testing.tiny({name!r}): there is no such tiny model. Names are {names()}.")
    recipe = RECIPES[name]
    settings = {**recipe.config}
    for key, value in config_overrides.items():
        nested = isinstance(value, dict) and isinstance(settings.get(key), dict)
        settings[key] = {**settings[key], **value} if nested else value
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = AutoConfig.for_model(recipe.model_type, **settings)
            config.architectures = [recipe.cls]
            model = getattr(transformers, recipe.cls)(config)
    finally:
        transformers_logging.set_verbosity(verbosity)
    randomise(model, seed)
    return model.float().eval()


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int, std: float = WEIGHT_STD) -> None:
    """Redraw every parameter in place: matrices wide, norms and biases jittered, learned sink logits of order 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("sinks"):
            parameter.copy_(noise)
        elif parameter.ndim < 2:
            parameter.add_(0.1 * noise)
        else:
            parameter.copy_(std * noise)
