"""A tiny Pixtral: LLaVA's class with a tower that reads each image at its own shape.

The library's processor of text and images needs torchvision; the one here writes the same rows of placeholders.
"""

from functools import cache

import jinja2
import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PixtralVisionConfig
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from vlm_models import CHATML, VOCAB, tokenizer

from sinkscope.models.handle import Model

PATCH = 4


class Processor:
    """One placeholder for each patch, a break after each row, an end after the image."""

    image_token = "<image>"

    def __init__(self):
        side = {"height": PATCH, "width": PATCH}
        self.image_processor = PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size=side)
        self.tokenizer = tokenizer()
        self.chat_template = CHATML.replace("IMAGE", "<image>")

    def apply_chat_template(self, turns, **_):
        return jinja2.Template(self.chat_template).render(messages=turns, add_generation_prompt=True)

    def __call__(self, images=None, text=None, return_tensors="pt", add_special_tokens=True):
        texts = [text] if isinstance(text, str) else text
        made = {}
        if images:
            made = dict(self.image_processor(images=[one for each in images for one in each], return_tensors="pt"))
            sizes = iter(made["image_sizes"].tolist())
            texts = [self._expand(text, sizes) for text in texts]
        ids = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=add_special_tokens)
        return {**ids, **made}

    def _expand(self, text, sizes):
        parts = text.split("<image>")
        for place in range(1, len(parts)):
            rows, columns = (side // PATCH for side in next(sizes))
            parts[place] = "<row_1_col_1>".join(["<image>" * columns] * rows) + "</img>" + parts[place]
        return "".join(parts)


@cache
def pixtral():
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=PixtralVisionConfig(patch_size=PATCH, image_size=32, **small),
        text_config=LlamaConfig(vocab_size=VOCAB, num_key_value_heads=4, **small),
        image_token_index=int(tokenizer().convert_tokens_to_ids("<image>")), vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    return Model(LlavaForConditionalGeneration(config).eval(), tokenizer=tokenizer(), processor=Processor())
