"""Small GGUF files with a tokenizer, written with llama.cpp's own library."""

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

MERGES = ["t h", "th e", "Ġ the", "c a", "ca t"]
TOKENS = ["<unk>", "<s>", "</s>", *bytes_to_unicode().values(), *(pair.replace(" ", "") for pair in MERGES)]


def network(seed: int = 0) -> LlamaForCausalLM:
    """Llama of 2 blocks, width 64, 2 heads, 1 key-value head, untied head."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Order the rows of query and key weights as llama.cpp does, which rotates neighbouring pairs."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """The weights under the names of GGUF."""
    state, config = model.state_dict(), model.config
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    found = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads
                weight = interleaved(weight, heads)
            found[f"blk.{layer}.{theirs}.weight"] = weight
    return {name: weight.numpy() for name, weight in found.items()}


def header(path, model, architecture, *, tokenizer, kind):
    """Begin a file: what llama.cpp's converter says of a model before its tensors."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(getattr(gguf.LlamaFileType, f"{'ALL' if kind == 'F32' else 'MOSTLY'}_{kind}"))
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(TOKENS)
        writer.add_token_types([3 if token.startswith("<") and len(token) > 1 else 1 for token in TOKENS])
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
    return writer


def finish(writer):
    """Write what was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(path, model=None, *, kind="F32", architecture="llama", tokenizer=True, without=()):
    """Write a model as a GGUF file; ``kind`` is the quantisation of its matrices."""
    model, types = model or network(), gguf.GGMLQuantizationType
    writer = header(path, model, architecture, tokenizer=tokenizer, kind=kind)
    for name, array in tensors(model).items():
        if name in without:
            continue
        if array.ndim == 1 or kind == "F32":
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, types[kind]), raw_dtype=types[kind])
    finish(writer)
    return path
