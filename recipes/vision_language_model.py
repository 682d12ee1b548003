"""Parts of the small vision-language model: tokenizer, network, processor, and several questions in one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from sinkscope import zoo
from sinkscope.models import variants
from sinkscope.tasks import scenes as data

SPECIAL = ("<s>", "<pad>", "</s>", "<image>")
"""Special tokens, in the order of their ids."""
TEMPLATE = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}USER: {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% elif m.role == 'system' %}{{ m.content[0].text }} {% else %} ASSISTANT: {{ m.content[0].text }}</s>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
MEAN, STD = (0.45, 0.45, 0.45), (0.25, 0.25, 0.25)
"""Mean and standard deviation of the pixel normalisation, for each channel."""


def make_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every word of the task is one token and any other text is spelled out.

    Words keep their hyphens (``top-left`` is one token), so that each answer is a single token.
    """
    rng, texts = np.random.default_rng(0), []
    for scene in data.held_out(60, seed=1):
        asked = [data.ask(scene, family, rng) for family in data.FAMILIES]
        pairs = [(q.text, q.answer) for q in asked] + [data.describe(scene)]
        texts += [f"USER: \n{question} ASSISTANT: {answer}" for question, answer in pairs]
    for values in data.FAMILIES.values():
        texts += [f"ASSISTANT: {value} {value}" for value in values] * 20
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[\w-]+| ?[^\s\w]+|\s"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


def make_processor(tokenizer: Any, patch: int) -> LlavaProcessor:
    """Processor of pictures (resized, cropped to a square of 64 pixels, normalised) and text, with a chat template."""
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    images = LlavaImageProcessorPil(
        size={"shortest_edge": data.SIDE},
        crop_size={"height": data.SIDE, "width": data.SIDE},
        image_mean=list(MEAN),
        image_std=list(STD),
        do_pad=False,
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def build(config: Any, tokenizer: Any) -> LlavaForConditionalGeneration:
    """The network with fresh weights, its decoder taken over from the zoo model ``config.start`` if one is named."""
    torch.manual_seed(config.seed)
    vision = CLIPVisionConfig(
        hidden_size=config.tower_width, intermediate_size=config.tower_mlp, num_hidden_layers=config.tower_layers,
        num_attention_heads=config.tower_heads, image_size=data.SIDE, patch_size=config.patch, projection_dim=32,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=config.width, intermediate_size=config.mlp,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.heads,
        max_position_embeddings=512, rms_norm_eps=1e-5, initializer_range=config.init_std, tie_word_embeddings=False,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    special: dict[str, Any] = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    network = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=3, vision_feature_layer=-1,
            vision_feature_select_strategy="default", image_seq_length=(data.SIDE // config.patch) ** 2,
            tie_word_embeddings=False, **special,
        )
    )  # fmt: skip
    with torch.no_grad():
        if config.start:
            _take_over(network, tokenizer, config.start)
        scale = float(network.model.language_model.embed_tokens.weight.square().mean().sqrt())
        first, last = network.model.multi_modal_projector.linear_1, network.model.multi_modal_projector.linear_2
        for layer, factor in ((first, 1.0), (last, 2 * scale)):  # GELU about halves the size of what passes
            layer.weight.normal_(0.0, factor / layer.in_features**0.5)
            layer.bias.zero_()
    return network


def _take_over(network: Any, tokenizer: Any, name: str) -> None:
    """Copy a zoo language model's blocks and final norm, and the embeddings of the tokens that both vocabularies hold.

    Rows of other tokens are drawn with the standard deviation of the rows that are there.
    """
    folder = zoo.path(name)
    source, known = variants.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    decoder = network.model.language_model
    decoder.layers.load_state_dict(source.model.layers.state_dict())
    decoder.norm.load_state_dict(source.model.norm.state_dict())
    pairs = [(new, known[token]) for token, new in tokenizer.get_vocab().items() if token in known]
    here, there = (list(rows) for rows in zip(*sorted(pairs), strict=True))
    for table, old in ((decoder.embed_tokens, source.model.embed_tokens), (network.lm_head, source.lm_head)):
        table.weight.normal_(0.0, float(old.weight.std()))
        table.weight[here] = old.weight[there]


def pixel_values(scenes: list[data.Scene]) -> Float[torch.Tensor, "batch channel height width"]:
    """What the processor makes of the pictures of these scenes."""
    stacked = torch.from_numpy(np.stack([scene.pixels for scene in scenes])).permute(0, 3, 1, 2).float() / 255
    return (stacked - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@dataclass(frozen=True, eq=False)
class Packed:
    """Several questions about each picture, in one sequence per picture.

    Attributes:
        ids: Token ids; the picture comes first, padding is ``<pad>``.
        positions: Position of each token, as if its question were the only one.
        visible: Which keys a query sees: the picture's part and its own question, causally.
        target: The next token where it belongs to an answer, else -1.
    """

    ids: Int[torch.Tensor, "batch key"]
    positions: Int[torch.Tensor, "batch key"]
    visible: Bool[torch.Tensor, "batch 1 query key"]
    target: Int[torch.Tensor, "batch query"]


def pack(tokenizer: Any, dialogues: list[list[tuple[str, str]]], patches: int) -> Packed:
    """Pack the questions and answers about each picture into one sequence."""
    core = tokenizer.backend_tokenizer
    head = core.encode("USER: " + "<image>" * patches).ids
    rows = []
    for dialogue in dialogues:
        ids, places, owners, targets = list(head), list(range(len(head))), [0] * len(head), [-1] * len(head)
        for index, (question, answer) in enumerate(dialogue, start=1):
            asked = core.encode(f"\n{question} ASSISTANT:", add_special_tokens=False).ids
            said = core.encode(f" {answer}</s>", add_special_tokens=False).ids
            ids += asked + said
            places += range(len(head), len(head) + len(asked) + len(said))
            owners += [index] * (len(asked) + len(said))
            targets += [-1] * (len(asked) - 1) + said + [-1]
        rows.append((ids, places, owners, targets))
    length = max(len(row[0]) for row in rows)
    filled = [
        torch.tensor([row[part] + [blank] * (length - len(row[part])) for row in rows])
        for part, blank in enumerate((1, 0, -1, -1))
    ]
    ids, positions, owner, target = filled
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = (owner[:, :, None] == owner[:, None, :]) | (owner == 0)[:, None, :]
    return Packed(ids, positions, (same & causal)[:, None], target)


def packed_states(vlm: Any, packed: Packed, pixels: torch.Tensor) -> Float[torch.Tensor, "batch query width"]:
    """Final states of a packed batch, before the output layer."""
    inner = vlm.model
    features = inner.get_image_features(pixel_values=pixels)
    features = getattr(features, "pooler_output", features)
    features = torch.cat(list(features)) if isinstance(features, list | tuple) else features
    embedded = inner.language_model.embed_tokens(packed.ids)
    where = (packed.ids == vlm.config.image_token_id)[..., None].expand_as(embedded)
    embedded = embedded.masked_scatter(where, features.to(embedded.dtype).reshape(-1, embedded.shape[-1]))
    mask = torch.zeros(packed.visible.shape).masked_fill(~packed.visible, torch.finfo(torch.float32).min)
    return inner.language_model(
        inputs_embeds=embedded, attention_mask=mask, position_ids=packed.positions, use_cache=False
    ).last_hidden_state


@torch.no_grad()
def sink_summary(vlm: Any, tokenizer: Any, scenes: list[data.Scene]) -> dict[str, float]:
    """Sinks at a glance, on one question per scene, from eager attention averaged over text rows after the picture.

    Returns:
        ``bos_mean``, ``bos_max``: attention to ``<s>``, mean and largest over heads. ``visual_share``: mean attention
        to all visual tokens. ``visual_top``: largest attention of any head to one visual token, mean over scenes.
        ``visual_top_ratio``: most attended visual token over the median one (mean over heads and scenes of attention
        averaged over heads). ``massive``: largest over median magnitude at ``<s>``, best layer; ``massive_visual``: the
        largest of any visual token over the median magnitude, best layer.
    """
    rng = np.random.default_rng(3)
    asked = [[(q.text, q.answer)] for q in (data.ask(scene, "colour", rng) for scene in scenes)]
    before = vlm.config._attn_implementation
    vlm.set_attn_implementation("eager")
    kept: dict[str, Any] = {}
    handle = vlm.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kw: (_a, kw | {"output_attentions": True, "output_hidden_states": True}), with_kwargs=True
    )
    catch = vlm.model.language_model.register_forward_hook(lambda _m, _i, out: kept.update(out=out))
    try:
        packed = pack(tokenizer, asked, vlm.config.image_seq_length)
        packed_states(vlm, packed, pixel_values(scenes))
    finally:
        handle.remove()
        catch.remove()
        vlm.set_attn_implementation(before)
    image = packed.ids[0] == vlm.config.image_token_id
    after = int(torch.nonzero(image)[-1]) + 1
    text = (packed.ids != 1)[:, after:].float()
    maps = torch.stack(kept["out"].attentions)[:, :, :, after:]
    mean = (maps * text[None, :, None, :, None]).sum(3) / text.sum(1)[None, :, None, None]
    visual = mean[..., image]
    states = torch.stack(kept["out"].hidden_states[1:-1])
    middle = states.abs().flatten(2).median(-1).values
    pooled = visual.mean((0, 2))
    return {
        "bos_mean": float(mean[..., 0].mean()),
        "bos_max": float(mean[..., 0].mean(1).max()),
        "visual_share": float(visual.sum(-1).mean()),
        "visual_top": float(visual.amax((0, 2, 3)).mean()),
        "visual_top_ratio": float((pooled.max(-1).values / pooled.median(-1).values).mean()),
        "massive": float((states[:, :, 0].abs().amax(-1) / middle).mean(1).max()),
        "massive_visual": float((states[:, :, image].abs().amax((-1, -2)) / middle).mean(1).max()),
    }
