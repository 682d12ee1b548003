"""Parts of the vision-language model made of two pretrained backbones: network, adapter, packed questions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from sinkscope.models.sources import resolve
from sinkscope.models.weights import loading
from sinkscope.tasks import photo_scenes
from sinkscope.tasks import scenes as data

VISION, TEXT = "dinov2-small", "smollm2-135m"
"""Named models that the two halves are taken from."""

VISION_LAYER = 6
"""Hidden state of the tower that the projector reads. A linear readout of single patches of held-out pictures names
colour and shape right at .92 and .94 of the patches there, at .83 and .90 in LLaVA's choice, the last but one of 12.
"""

IMAGE_TOKEN = "<gh_stars>"
"""A special token of SmolLM2 that no chat uses stands for the picture, so that the embedding table stays as it is."""

PATCH = 14
PATCHES = (photo_scenes.SIDE // PATCH) ** 2
TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the pixel normalisation, for each channel."""


def build(seed: int, vision_layer: int = VISION_LAYER) -> LlavaForConditionalGeneration:
    """Put the two backbones into LLaVA's architecture, with a projector of fresh weights.

    Args:
        seed: That of the projector.
        vision_layer: Hidden state of the tower that the projector reads, 0 the embeddings.

    Raises:
        ModelError: a backbone is not installed; the message holds the command that gets it.
    """
    vision, text = resolve(VISION).name, resolve(TEXT).name
    config = LlavaConfig(
        vision_config=AutoConfig.from_pretrained(vision), text_config=AutoConfig.from_pretrained(text),
        image_token_index=0, image_seq_length=PATCHES, vision_feature_layer=vision_layer,
        vision_feature_select_strategy="default", tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        network = LlavaForConditionalGeneration(config)
    with loading():
        tower = AutoModel.from_pretrained(vision, dtype=torch.float32)
        decoder = AutoModelForCausalLM.from_pretrained(text, dtype=torch.float32)
    network.model.vision_tower, network.model.language_model, network.lm_head = tower, decoder.model, decoder.lm_head
    network.model.multi_modal_projector.to_empty(device="cpu")
    torch.manual_seed(seed)
    size = float(decoder.model.embed_tokens.weight.detach().square().mean().sqrt())
    projector = network.model.multi_modal_projector
    with torch.no_grad():
        shown = features(network, photo_scenes.training_scene(0)).square().mean().sqrt()
        for layer, factor in ((projector.linear_1, 1 / shown), (projector.linear_2, 2 * size)):  # GELU halves it
            layer.weight.normal_(0.0, factor / layer.in_features**0.5)
            layer.bias.zero_()
    return network.eval()


def load_tokenizer() -> Any:
    """Return the decoder's own tokenizer."""
    return AutoTokenizer.from_pretrained(resolve(TEXT).name)


def add_adapter(network: LlavaForConditionalGeneration, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Add a low-rank adapter to the decoder and freeze all else but the projector; return what is trained, by name."""
    torch.manual_seed(seed)
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(TARGETS), lora_dropout=0.0)
    network.requires_grad_(False)
    inject_adapter_in_model(settings, network.model.language_model)
    network.model.multi_modal_projector.requires_grad_(True)
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def pixel_values(scene: data.Scene) -> Float[torch.Tensor, "1 channel height width"]:
    """What the image processor makes of the picture."""
    pixels = torch.from_numpy(scene.pixels).permute(2, 0, 1)[None].float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@torch.no_grad()
def features(network: LlavaForConditionalGeneration, scene: data.Scene) -> Float[torch.Tensor, "patch width"]:
    """What the frozen tower says of each patch: the input of the projector."""
    tower = network.model.vision_tower
    state = tower.embeddings(pixel_values(scene))
    for block in tower.encoder.layer[: network.config.vision_feature_layer]:
        state = block(state)
    return state[0, 1:]


def shared_vector(network: Any, patches: Iterable[Float[torch.Tensor, "patch width"]]) -> Float[torch.Tensor, " width"]:
    """What all visual tokens share: the mean of what the projector writes for these pictures."""
    projector = network.model.multi_modal_projector
    return torch.stack([projector(one).mean(0) for one in patches]).mean(0)


def phi(states: Float[torch.Tensor, "token width"]) -> Float[torch.Tensor, " token"]:
    """Largest magnitude of each token over its root mean square (phi over all dimensions, Kang et al. 2025)."""
    return states.abs().amax(-1) / states.square().mean(-1).add(1e-6).sqrt()


class Packer:
    """Writes several questions about one picture as one sequence, in which no question sees another."""

    def __init__(self, tokenizer: Any) -> None:
        self._encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self.image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.head = self._encode("<|im_start|>user\n") + [self.image] * PATCHES

    def __call__(self, dialogue: list[tuple[str, str]]) -> dict[str, Any]:
        """Write the questions and answers about a picture.

        Returns:
            ``ids``; ``positions``, as if each question stood alone; ``mask``, additive (1 1 query key); ``target``, the
            next token where it belongs to an answer, else -1; ``owner``, number of the question, 0 for the picture.
        """
        start = len(self.head)
        ids, places, owner, target = list(self.head), list(range(start)), [0] * start, [-1] * start
        for number, (question, answer) in enumerate(dialogue, start=1):
            asked = self._encode(f"\n{question}<|im_end|>\n<|im_start|>assistant\n")
            said = self._encode(f"{answer}<|im_end|>")
            ids += asked + said
            places += range(start, start + len(asked) + len(said))
            owner += [number] * (len(asked) + len(said))
            target += [-1] * (len(asked) - 1) + said + [-1]
        whose = torch.tensor(owner)
        sees = ((whose[:, None] == whose[None]) | (whose == 0)[None]).tril()
        mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
        return {
            "ids": torch.tensor(ids)[None], "positions": torch.tensor(places)[None], "mask": mask[None, None],
            "target": torch.tensor(target), "owner": whose,
        }  # fmt: skip


def states(
    network: LlavaForConditionalGeneration, packed: dict[str, Any], patches: Float[torch.Tensor, "patch feature"]
) -> Float[torch.Tensor, "query width"]:
    """Final states of a packed sequence, before the output layer."""
    inner = network.model
    embedded = inner.language_model.get_input_embeddings()(packed["ids"])
    start = int((packed["owner"] == 0).sum()) - len(patches)
    shown = inner.multi_modal_projector(patches[None].float())
    embedded = torch.cat([embedded[:, :start], shown, embedded[:, start + len(patches) :]], 1)
    return inner.language_model(
        inputs_embeds=embedded, attention_mask=packed["mask"], position_ids=packed["positions"], use_cache=False
    ).last_hidden_state[0]
