"""Tiny decoders with cross-attention to images: Mllama with its own processor, IDEFICS with and without a perceiver."""

import torch
import transformers
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from vlm_models import CHATML, VOCAB, tokenizer

import sinkscope as sk
from sinkscope.testing.tiny import randomise

SIDE, PATCH = 16, 4
PER_TILE = 1 + (SIDE // PATCH) ** 2


def _random(network):
    """Random weights, with gates open: at the library's zeros an image would change nothing."""
    randomise(network, 0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("_gate") or ".alpha_" in name:
                parameter.fill_(0.8)
    return network.float().eval()


def mllama():
    """Five blocks, of which 1 and 3 attend to the image; up to four tiles of 4 x 4 patches and a class token each."""
    image = tokenizer().convert_tokens_to_ids("<image>")
    text = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5,
        "num_attention_heads": 4, "num_key_value_heads": 2, "cross_attention_layers": [1, 3], "pad_token_id": 2,
        "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_global_layers": 1, "image_size": SIDE,
        "patch_size": PATCH, "attention_heads": 4, "vision_output_dim": 64, "intermediate_layers_indices": [1],
        "max_num_tiles": 4,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.MllamaConfig(vision_config=vision, text_config=text, image_token_index=image)
    processor = transformers.MllamaProcessor(
        MllamaImageProcessorPil(size={"height": SIDE, "width": SIDE}, max_image_tiles=4), tokenizer()
    )
    processor.chat_template = "<s>" + CHATML.replace("IMAGE", "<image>")  # as Mllama's own begins
    network = _random(transformers.MllamaForConditionalGeneration(config))
    return sk.load_model(network, tokenizer=tokenizer(), processor=processor)


def idefics(resampler=False):
    """Four blocks; gated blocks that attend to the image run before blocks 0 and 2. Six latents with a perceiver."""
    torch.manual_seed(0)
    config = transformers.IdeficsConfig(
        vocab_size=VOCAB, additional_vocab_size=0, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, cross_layer_interval=2, qk_layer_norms=True, use_resampler=resampler,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=2, alpha_initializer="zeros",
        vision_config={
            "embed_dim": 32, "image_size": SIDE, "patch_size": PATCH, "num_hidden_layers": 2, "intermediate_size": 64,
            "num_attention_heads": 4,
        },
        perceiver_config={
            "resampler_n_latents": 6, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 16,
        },
    )  # fmt: skip
    return sk.load_model(_random(transformers.IdeficsForVisionText2Text(config)), tokenizer=tokenizer())


def idefics_inputs():
    """Two prompts of 12 and 9 tokens, padded; the first has two images, of which its tokens 2 to 5 see the first."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(60, 400, (2, 12), generator=generator)
    ids[:, 0] = 0
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    seen = torch.zeros(2, 12, 2, dtype=torch.long)
    seen[0, 2:6, 0] = 1
    seen[0, 6:] = 1
    seen[1, 1:, 0] = 1
    pixels = torch.randn(2, 2, 3, SIDE, SIDE, generator=generator)
    pixels[1, 1] = 0
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "image_attention_mask": seen}
