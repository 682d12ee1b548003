"""Tiny vision-language models with real processors: a tokenizer trained in memory, the library's PIL processors."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sinkscope.testing import tiny

FAMILIES = (
    "llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "idefics3",
)  # fmt: skip
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = {
    "image_token": "<image>", "video_token": "<video>", "boi_token": "<boi>", "eoi_token": "<eoi>",
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<image>",
}  # fmt: skip
SQUARE = {"height": 16, "width": 16}
VOCAB = 512


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with chat markup, a BOS and the placeholders of every family."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tile_tags = [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
    special = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<global-img>", "<fake_token_around_image>"]
    special += [*dict.fromkeys(SPECIAL.values()), "<end_of_utterance>", *tile_tags]
    trainer = trainers.BpeTrainer(
        vocab_size=440,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    text = ["What color is the square? You are a helpful assistant.\n system user assistant the cat sat."] * 20
    core.train_from_iterator(text, trainer)
    bos = core.token_to_id("<s>")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", extra_special_tokens=SPECIAL
    )


def image(width: int, height: int) -> Image.Image:
    """Red grows with x, green with y, blue is full: a pixel says where it was, and black says that it was padding."""
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    pixels[..., 0] = np.round(np.linspace(0, 255, width))[None, :]
    pixels[..., 1] = np.round(np.linspace(0, 255, height))[:, None]
    return Image.fromarray(pixels)


def without_video(cls):
    """Subclass a processor so that it needs no video processor: those exist for torchvision alone."""

    def check(self, name, argument):
        return type(None) if argument is None else super(made, self).check_argument_for_proper_class(name, argument)

    made = type(cls.__name__, (cls,), {"check_argument_for_proper_class": check})
    return made


def _id(token: str) -> int:
    return int(tokenizer().convert_tokens_to_ids(token))


def _llava(**settings):
    ids = {"image_token_index": _id("<image>")}
    processor = transformers.LlavaProcessor(
        LlavaImageProcessorPil(**{"size": {"shortest_edge": 16}, "crop_size": SQUARE} | settings), tokenizer(),
        patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return ids, processor


def _llava_next(**settings):
    pinpoints = [[16, 32], [32, 16], [32, 32], [16, 48], [48, 16]]
    ids = {"image_token_index": _id("<image>"), "image_grid_pinpoints": pinpoints}
    plain = {"size": {"shortest_edge": 16}, "crop_size": SQUARE, "image_grid_pinpoints": pinpoints}
    processor = transformers.LlavaNextProcessor(
        LlavaNextImageProcessorPil(**plain | settings), tokenizer(),
        patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return ids, processor


def _llava_onevision(**settings):
    pinpoints = [[16 * r, 16 * c] for r in range(1, 5) for c in range(1, 5)]
    aspect = settings.pop("vision_aspect_ratio", "anyres_max_9")
    ids = {"image_token_index": _id("<image>"), "video_token_index": _id("<video>")}
    ids |= {"image_grid_pinpoints": pinpoints, "vision_aspect_ratio": aspect}
    processor = without_video(transformers.LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(**{"size": SQUARE, "image_grid_pinpoints": pinpoints} | settings), tokenizer(),
        num_image_tokens=16, vision_feature_select_strategy="full", vision_aspect_ratio=aspect,
    )  # fmt: skip
    return ids, processor


def _qwen(name: str, **settings):
    ids = {"image_token_id": _id("<image>"), "video_token_id": _id("<video>")}
    ids |= {"vision_start_token_id": _id("<img>"), "vision_end_token_id": _id("</img>")}
    plain = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 1024}}
    cls = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}[name]
    made = without_video(getattr(transformers, cls))(Qwen2VLImageProcessorPil(**plain | settings), tokenizer())
    return ids, made


def _internvl(**settings):
    settings = {"size": SQUARE, "min_patches": 1, "max_patches": 6} | settings
    processor = without_video(transformers.InternVLProcessor)(
        GotOcr2ImageProcessorPil(**settings), tokenizer(), image_seq_length=4
    )
    return {"image_token_id": _id("<image>")}, processor


def _gemma3(**settings):
    ids = {"image_token_index": _id("<image>"), "boi_token_index": _id("<boi>"), "eoi_token_index": _id("<eoi>")}
    made = transformers.Gemma3Processor(
        Gemma3ImageProcessorPil(**{"size": SQUARE} | settings), tokenizer(), image_seq_length=4
    )
    return ids, made


def _idefics3(**settings):
    plain = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 16}}
    processor = transformers.Idefics3Processor(
        Idefics3ImageProcessorPil(**plain | settings), tokenizer(), image_seq_len=4
    )
    return {"image_token_id": _id("<image>")}, processor


PLACEHOLDER = {"gemma3": "<boi>", "qwen2_vl": "<img><image></img>", "qwen2_5_vl": "<img><image></img>",
               "qwen3_vl": "<img><image></img>"}  # fmt: skip


def vlm(name: str, **settings):
    """Build a handle like ``sinkscope.models.handle.Model`` on a tiny model of a family, with its own processor."""
    make = globals().get(f"_{name}")
    ids, processor = _qwen(name, **settings) if name.startswith("qwen") else make(**settings)
    processor.chat_template = CHATML.replace("IMAGE", PLACEHOLDER.get(name, "<image>"))
    network = tiny(name, **ids, text_config={"vocab_size": VOCAB, "max_position_embeddings": 1024})
    return SimpleNamespace(
        model=network,
        config=network.config,
        tokenizer=tokenizer(),
        processor=processor,
        kind="vlm",
        context_length=1024,
    )
