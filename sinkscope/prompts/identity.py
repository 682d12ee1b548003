"""Which model prompts were made for: what decided how pictures became tokens, and the check before anything runs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from sinkscope.errors import PromptError
from sinkscope.prompts.data import ImageSettings, PromptFields
from sinkscope.prompts.model import PromptModel, check_model, source_name
from sinkscope.prompts.vocabulary import Vocabulary

_NAMES = ("processor_class", "image_processor_type", "feature_extractor_type", "auto_map")
"""Settings of an image processor that only name classes."""


def image_settings(model: PromptModel, *, processed: bool = True) -> ImageSettings:
    """Say what decides how ``model`` turns pictures into tokens: its image processor, its family, its patches.

    Args:
        model: the model.
        processed: whether its image processor made the pixel values; ready-made ones have no settings.
    """
    config = model.config
    vision = getattr(config, "vision_config", None) or config
    layout = {
        "model type": getattr(config, "model_type", None),
        "patch size": getattr(vision, "patch_size", None),
        "register tokens": getattr(vision, "num_register_tokens", 0),
    }
    processor = getattr(model.processor, "image_processor", model.processor)
    if not processed or not hasattr(processor, "to_dict"):
        return ImageSettings({}, layout)
    settings = {str(name): value for name, value in processor.to_dict().items() if name not in _NAMES}
    return ImageSettings(settings, layout)


def check_prompts(prompts: object, model: PromptModel, call: str) -> None:
    """Refuse what is no :class:`Prompts`, and prompts that were made for another model.

    Token ids must stand for the same tokens in this model's vocabulary, and pictures must have been cut up as this
    model's image processor does it. Another checkpoint with the same tokenizer and processor is fine.

    Raises:
        ModelError: ``model`` is no handle on a model.
        PromptError: says what was given and how to build the prompts.
    """
    check_model(model, call)
    if not isinstance(prompts, PromptFields):
        raise PromptError(f"{call}: expected Prompts, got {_describe(prompts)}. {_how(prompts)}")
    if len(prompts) == 0:
        raise PromptError(
            f"{call}: no prompts. Build them with Prompts.from_texts, from_ids, from_images or from_inputs."
        )
    if model.kind in ("encoder-decoder", "audio"):
        _check_sides(prompts, model, call)
        return
    if prompts.other is not None:
        raise PromptError(f"{call}: these prompts are pairs, and this model is a {model.kind}. {_AGAIN}")
    given = set(prompts.whole or {}).union(*prompts.extras)
    takes = "pixel_values" in inspect.signature(model.model.forward).parameters  # detectors told what to find
    sees = model.kind == "vision" or takes or getattr(model.config, "vision_config", None) is not None
    if "pixel_values" in given and not sees:
        raise PromptError(
            f"{call}: these prompts hold images, and this model (a text {model.kind}) takes none. {_AGAIN}"
        )
    visual_alone = all(bool((ids < 0).all()) for ids in prompts.ids)
    if visual_alone != (model.kind == "vision"):
        made, reads = ("images alone", "text") if visual_alone else ("text", "images alone")
        raise PromptError(f"{call}: these prompts are {made}, and this model reads {reads}. {_AGAIN}")
    if not visual_alone:
        _check_tokens(prompts, model, call)
    if prompts.images is not None:
        _check_images(prompts.images, image_settings(model), call)


def _check_sides(prompts: PromptFields, model: PromptModel, call: str) -> None:
    """Refuse a source of another kind than the encoder reads, and tokens of another vocabulary on either side."""
    main = source_name(model.model)
    source = prompts.other if prompts.side == "target" else prompts
    if source is not None:
        given = next(iter(source.extras[0]), "input_ids")
        if given != main:
            raise PromptError(f"{call}: the source of these prompts is {given}, and this model reads {main}. {_AGAIN}")
        if prompts.images is not None:
            _check_images(prompts.images, image_settings(model), call)
    for side in (prompts, prompts.other):
        if side is not None and not bool((side.ids[0] < 0).any()):
            _check_tokens(side, model, call)


_AGAIN = "Build the prompts again with the model that runs them."


def _check_tokens(prompts: PromptFields, model: PromptModel, call: str) -> None:
    vocabulary = Vocabulary.of(model)
    for which, (ids, tokens) in enumerate(zip(prompts.ids, prompts.tokens, strict=True)):
        for number, place in zip(*np.unique(ids, return_index=True), strict=True):
            number, place = int(number), int(place)
            if vocabulary.size is not None and number >= vocabulary.size:
                raise PromptError(
                    f"{call}: prompt {which} holds token id {number}, but this model's vocabulary ends at "
                    f"{vocabulary.size - 1}. {_AGAIN}"
                )
            here, before = vocabulary.show(number)[0], tokens[place]
            # Without a tokenizer a token is shown as its number, and nothing can be compared.
            if here != before and f"#{number}" not in (here, before):
                raise PromptError(
                    f"{call}: these prompts were made with another tokenizer: id {number} of prompt {which} is "
                    f"{before!r} there and {here!r} in this model. {_AGAIN}"
                )


def _check_images(made: ImageSettings, own: ImageSettings, call: str) -> None:
    for what, before, here in (
        ("image processor", made.processor, own.processor), ("model", made.layout, own.layout),
    ):  # fmt: skip
        for name in sorted(set(before) & set(here)):
            if not _equal(before[name], here[name]):
                raise PromptError(
                    f"{call}: the images of these prompts were prepared for another {what}: {name} is {before[name]} "
                    f"there and {here[name]} here. {_AGAIN}"
                )


def _equal(one: Any, other: Any) -> bool:
    # A setting is None in one version of a processor, absent or a default in another; a list here is a tuple there.
    return one is None or other is None or _plain(one) == _plain(other)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {str(name): _plain(inner) for name, inner in items if inner is not None}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in cast("list[Any]", value)]
    return value if isinstance(value, int | float) else str(value)


def _describe(given: object) -> str:
    if isinstance(given, list | tuple):
        items = cast("list[Any]", given)
        kind = "list" if isinstance(given, list) else "tuple"
        return f"a {kind} of {len(items)} {type(items[0]).__name__}" if items else f"an empty {kind}"
    return f"the text {given[:30]!r}" if isinstance(given, str) else f"a {type(given).__name__}"


def _how(given: object) -> str:
    first: Any = next(iter(cast("list[Any]", given)), None) if isinstance(given, list | tuple) else given
    if isinstance(first, str):
        return "Build them first: Prompts.from_texts([...], model), or Prompts.from_images for paths of images."
    if isinstance(first, Mapping):
        return "Build them first: Prompts.from_chat([...], model), or Prompts.from_inputs for a processor's output."
    if isinstance(first, list | tuple | int) or hasattr(first, "tolist"):
        return "Build them first: Prompts.from_ids([[...], ...], model)."
    return "Build them first: Prompts.from_texts, from_ids, from_images, from_chat or from_inputs."
