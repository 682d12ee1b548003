"""Values of configurations that no rule of :mod:`parity.ledger.shrink` gives, by the model type of each part.

``part.name`` reaches a part, or a dictionary. They are set last, over what the rules made.
"""

from transformers import ResNetConfig

RESNET = ResNetConfig(
    embedding_size=16, hidden_sizes=[16, 16, 16, 32], depths=[1, 1, 1, 1], layer_type="basic",
    out_features=["stage2", "stage3", "stage4"],
).to_dict()  # fmt: skip

DETECTOR = {"use_timm_backbone": False, "backbone": None, "backbone_config": RESNET, "image_size": 64}

CODEC = {"upsample_groups": 32, "num_filters": 4, "codebook_dim": 16, "vector_quantization_hidden_dimension": 16}

OVERRIDES = {
    # Names that the rules read otherwise
    "mpnet": {"relative_attention_num_buckets": 32},  # the function that makes buckets has a number of its own
    "xmod": {"default_language": "en_XX"},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 110, "audio_start_token_id": 111},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 110, "audio_start_token_id": 111},
    "ministral": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8, "num_key_value_heads": 2},
    "hunyuan_v1_moe": {"head_dim": 8, "num_key_value_heads": 2},
    "hunyuan_vl_text": {"head_dim": 8, "num_key_value_heads": 2},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "mistral4": {"num_key_value_heads": 4, "head_dim": 16},
    "esm": {"pad_token_id": 1, "mask_token_id": 2},
    "mobilebert": {"intra_bottleneck_size": 32, "embedding_size": 16},
    "mamba2": {"head_dim": 16, "n_groups": 1},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16]},
    "led": {"attention_window": [8, 8]},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "perceiver": {"d_latents": 32, "d_model": 32, "num_latents": 8, "num_self_attends_per_block": 2,
                  "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "max_position_embeddings": 64},
    "ernie4_5_vl_moe_text": {"rope_parameters.mrope_section": [1, 1, 2]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4,
                                                                    "mrope_section": [2, 1, 1]}}},
    "step3p5": {"sliding_window": 5},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "lilt": {"hidden_size": 48},
    "bros": {"dim_bbox_sinusoid_emb_2d": 32, "dim_bbox_sinusoid_emb_1d": 4, "dim_bbox_projection": 8},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    # Blocks of every kind
    "bamba": {"attn_layer_indices": [1], "mamba_d_head": 16},
    "dbrx": {"attn_config.rope_theta": 1e4, "attn_config.clip_qkv": 8.0},
    "nemotron_h": {"n_groups": 2},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"], "mamba_d_head": 16,
                         "num_key_value_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
              "attention_hidden_size": 64, "attention_head_dim": 16},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "qwen4_exp_text": {"layer_types": ["linear_attention", "indexed_attention"], "indexer_n_heads": 4,
                       "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 2,
                       "hc_lowrank": 8, "ngram_vocab_size_base": 128},
    # Images
    "blip-2": {"image_token_index": 100, "num_query_tokens": 4},
    "instructblip": {"image_token_index": 100, "num_query_tokens": 4},
    "instructblipvideo": {"video_token_index": 100, "num_query_tokens": 4},
    "mllama_vision_model": {"vision_output_dim": 64},
    "mllama_text_model": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "vit_mae": {"mask_ratio": 0.0},
    "pp_formulanet_vision": {"image_size": 64},
    "siglip2_text_model": {"projection_size": 32},
    "kosmos-2": {"latent_query_num": 4},
    "paddleocr_vl_text": {"rope_parameters.mrope_section": [2, 1, 1]},
    "emu3": {"vocabulary_map": {"<image>": 100, "<|extra_200|>": 101, **{f"<|visual token {i:06d}|>": 102 + i
             for i in range(16)}}},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]]},
    "sam": {"prompt_encoder_config.image_embedding_size": 4, "prompt_encoder_config.image_size": 16},
    "sam_hq": {"prompt_encoder_config.image_embedding_size": 4, "prompt_encoder_config.image_size": 16},
    "data2vec-vision": {"_attn_implementation": "eager"},  # its kind of attention is chosen as it is built
    "vjepa2": {"pred_num_attention_heads": 4},
    "chameleon": {"vocabulary_map": {"<image>": 100, **{f"IMGIMGBS{i}": 101 + i for i in range(16)}}},
    "owlvit_text_model": {"max_position_embeddings": 256},
    "owlv2_text_model": {"max_position_embeddings": 256},
    "florence_vision": {"embed_dim": [32, 32, 32, 32], "depths": [1, 1, 1, 1]},
    "swin": {"window_size": 2, "image_size": 64},
    "donut-swin": {"window_size": 2, "image_size": 64},
    "swinv2": {"window_size": 2, "image_size": 64, "pretrained_window_sizes": [0, 0, 0, 0]},
    "maskformer-swin": {"window_size": 2, "image_size": 64},
    "convnext": {"image_size": 64},
    "convnextv2": {"image_size": 64},
    "dinov3_convnext": {"image_size": 64},
    "pvt": {"image_size": 64},
    "pvt_v2": {"image_size": 64},
    "mobilevitv2": {"image_size": 64},
    "bit": {"num_groups": 4},
    "detr": DETECTOR,
    "conditional_detr": DETECTOR,
    "deformable_detr": DETECTOR | {"image_size": 256},
    "dab-detr": DETECTOR,
    "table-transformer": DETECTOR,
    # Sound
    "mimi": CODEC,
}  # fmt: skip
"""By model type of a part: its values."""
