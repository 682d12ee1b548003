"""Models of the zoo that are put together: two pretrained backbones, a projector, and a low-rank adapter folded in.

Only what was trained here ships: ``parts.json`` says of what the model consists, ``adapter.safetensors`` holds the
projector and the adapter (LoRA, Hu et al. 2022). The backbones come from their own packages. The whole is written into
the cache once, as a folder that transformers loads like any other.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from sinkscope.errors import ModelError
from sinkscope.models import weights
from sinkscope.models.sources import cache
from sinkscope.models.sources.base import Checkpoint

PARTS, ADAPTER = "parts.json", "adapter.safetensors"
"""The files that ship."""

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
"""Files of the language model that the whole keeps as they are."""

PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.default\.weight")
"""Name of one of the two factors of an adapted matrix, as PEFT names them."""

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML; a picture is its placeholder and a line break."""


def read_parts(folder: Path) -> dict[str, Any]:
    """What ``parts.json`` says.

    Keys: ``vision`` and ``text``, each with the ``name`` and ``origin`` of a named model; ``image_token``,
    ``image_size`` and ``patch`` in pixels, ``image_mean``, ``image_std``; ``vision_feature_layer`` and
    ``vision_feature_select_strategy`` as in transformers; ``lora_scale``, the factor of the adapter's product;
    ``parameters``, number of weights of the whole.
    """
    return json.loads((folder / PARTS).read_text(encoding="utf-8"))


def checkpoint(folder: Path, name: str, backbones: Mapping[str, Checkpoint]) -> Checkpoint:
    """Return the folder of the whole model, put together now if that was not done before.

    Args:
        folder: Where ``parts.json`` and ``adapter.safetensors`` lie.
        name: What the user asked for, such as ``zoo:vlm-smol``.
        backbones: ``vision`` and ``text``, converted.

    Raises:
        ModelError: a backbone has other weights than those that were trained on, or the adapter does not fit it.
    """
    parts = read_parts(folder)
    for role, found in backbones.items():
        wanted = parts[role]["origin"]
        if found.origin != wanted:
            raise ModelError(
                f"load_model({name!r}): it was trained on {parts[role]['name']} {wanted}, and here that is "
                f"{found.origin or found.name}. Install the version that sinkscope models names."
            )
    digest = hashlib.sha256()
    for part in (folder / PARTS, folder / ADAPTER):
        digest.update(part.read_bytes())

    def make(target: Path) -> dict[str, Any]:
        vision, text = backbones["vision"].name, backbones["text"].name
        network = assemble(vision, text, load_file(folder / ADAPTER), parts)
        cache.check_room(target, sum(p.numel() * p.element_size() for p in network.parameters()))
        with weights.loading():
            network.save_pretrained(target)
        _write_processor(Path(text), target, parts)
        named = " and ".join(f"{parts[role]['name']} ({parts[role]['origin']})" for role in ("vision", "text"))
        origin = f"put together from {named} with an adapter (sha256 {digest.hexdigest()[:12]})"
        return {"origin": origin, "file": ADAPTER, "source": name}

    entry = cache.obtain(digest.hexdigest(), make)
    return Checkpoint(str(entry.folder), local=True, label=name, origin=entry.origin, dtype=torch.float32)


def assemble(
    vision: str, text: str, trained: Mapping[str, torch.Tensor], parts: Mapping[str, Any]
) -> LlavaForConditionalGeneration:
    """Put two backbones into LLaVA's architecture (Liu et al. 2023), with the projector and the folded adapter.

    Args:
        vision, text: Folders of the two.
        trained: Projector, and the factors of the adapter under PEFT's names.
        parts: As :func:`read_parts`.

    Raises:
        ModelError: a tensor of ``trained`` has no place in the model, or a place gets none.
    """
    token = AutoTokenizer.from_pretrained(text, local_files_only=True).convert_tokens_to_ids(parts["image_token"])
    config = LlavaConfig(
        vision_config=AutoConfig.from_pretrained(vision), text_config=AutoConfig.from_pretrained(text),
        image_token_index=token, image_seq_length=(parts["image_size"] // parts["patch"]) ** 2,
        vision_feature_layer=parts["vision_feature_layer"],
        vision_feature_select_strategy=parts["vision_feature_select_strategy"], tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        network = LlavaForConditionalGeneration(config)
    with weights.loading():
        tower = AutoModel.from_pretrained(vision, dtype=torch.float32, local_files_only=True)
        decoder = AutoModelForCausalLM.from_pretrained(text, dtype=torch.float32, local_files_only=True)
    network.model.vision_tower, network.model.language_model, network.lm_head = tower, decoder.model, decoder.lm_head
    network.model.multi_modal_projector.to_empty(device="cpu")
    _fill(network, trained, float(parts["lora_scale"]))
    weights.check_finite(network, ADAPTER)
    return network.eval()


@torch.no_grad()
def _fill(network: LlavaForConditionalGeneration, trained: Mapping[str, torch.Tensor], scale: float) -> None:
    """Copy the projector, and add to each adapted matrix ``scale`` times the product of its two factors."""
    own = dict(network.named_parameters())
    factors: dict[str, dict[str, Float[torch.Tensor, "row column"]]] = {}
    waiting = {name for name in own if "multi_modal_projector" in name}
    try:
        for name, value in trained.items():
            pair = PAIR.fullmatch(name)
            if pair is None:
                own[name].copy_(value)
                waiting.discard(name)
            else:
                factors.setdefault(pair["module"], {})[pair["side"]] = value.float()
        for module, pair in factors.items():
            own[f"{module}.weight"].add_((pair["B"] @ pair["A"]).view_as(own[f"{module}.weight"]), alpha=scale)
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"{ADAPTER}: it does not fit these backbones: {weights.first_line(error)}") from None
    if waiting:
        raise ModelError(f"{ADAPTER}: {', '.join(sorted(waiting))} is missing. Install sinkscope again.")


def _write_processor(text: Path, target: Path, parts: Mapping[str, Any]) -> None:
    """Write tokenizer, chat template, and the settings that turn images into pixels."""
    for file in TOKENIZER:
        if (text / file).is_file():
            shutil.copyfile(text / file, target / file)
    template = TEMPLATE.replace("IMAGE", parts["image_token"])
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    side, strategy = parts["image_size"], parts["vision_feature_select_strategy"]
    images = {
        "image_processor_type": "LlavaImageProcessor", "do_resize": True, "size": {"shortest_edge": side},
        "resample": 3, "do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": parts["image_mean"],
        "image_std": parts["image_std"], "do_convert_rgb": True, "do_pad": False,
    }  # fmt: skip
    whole = {
        "processor_class": "LlavaProcessor", "image_processor": images, "image_token": parts["image_token"],
        "num_additional_image_tokens": 1, "patch_size": parts["patch"], "vision_feature_select_strategy": strategy,
    }  # fmt: skip
    (target / "processor_config.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
