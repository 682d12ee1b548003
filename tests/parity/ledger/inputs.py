"""What a shrunken model is run on, made from its configuration and the signature of its forward pass alone."""

import inspect

import torch

from sinkscope.models.backends.pictured import pictured_inputs
from sinkscope.prompts.naflex import inputs_of

LENGTHS = (24, 17)
"""Tokens of the two prompts: longer than windows and sparse patterns; together in a batch the second is padded."""

SLOW = ("nemotron3_5_asr", "nemotron_asr_streaming", "nemotron_asr_streaming_encoder")
"""Encoders of recordings that make one token of so many frames that a short recording would have no second one."""

SKIPPED = ("labels", "use_cache", "return_dict")


class NoInputsError(Exception):
    """There is no recipe for what this model takes."""


def ids(config, length, seed):
    """Random ids below the special ones, after the token that starts a text."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    size = min(getattr(text, "vocab_size", 100) or 100, 100)
    special = {
        value
        for each in (config, text)
        for name, value in vars(each).items()
        if name.endswith(("_token_id", "_token_index")) and type(value) is int
    }
    usual = torch.tensor([i for i in range(3, size) if i not in special])
    found = usual[torch.randint(len(usual), (length,), generator=torch.Generator().manual_seed(seed))].tolist()
    start = getattr(text, "bos_token_id", None)
    if type(start) is int and 0 <= start < size:
        found[0] = start
    return found


def noise(*shape, seed=0):
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(config, count=1):
    """Noise of the size that an image encoder with this configuration takes."""
    size = next((getattr(config, n) for n in ("image_size", "img_size", "input_size") if getattr(config, n, None)), 64)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = (
        getattr(config, "num_channels", None) or getattr(config, "in_channels", None) or getattr(config, "in_chans", 3)
    )
    channels = channels if isinstance(channels, int) else 3
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    return noise(count, frames, channels, height, width) if frames else noise(count, channels, height, width)


def recordings(network, name):
    """Noise as a recording: samples, or a spectrogram with either axis first, as long as encoders may ask for."""
    name = "input_values" if name == "inputs" else name
    config = network.config
    parts = (getattr(config, each, None) for each in ("audio_config", "encoder_config", "encoder"))
    audio = next((part for part in parts if part is not None and not isinstance(part, int)), config)
    mel = next(
        (getattr(audio, n) for n in ("num_mel_bins", "n_mels", "num_mel_filters") if getattr(audio, n, None)), None
    )
    if name == "input_values":
        if mel is not None and getattr(audio, "max_length", None):
            yield {name: noise(1, audio.max_length, mel)}
        yield {name: noise(1, 3840)}
        yield {name: noise(1, 1, 3840)}
        return
    longest = getattr(audio, "max_source_positions", None)
    usual = 512 if config.model_type in SLOW else 64
    widths = ("input_feat_per_channel", "feature_projection_input_dim", "input_dim", "feature_size")
    width = next((found for found in (getattr(audio, n, None) for n in widths) if isinstance(found, int)), mel or 80)
    shapes = [(1, mel, 2 * longest)] if mel is not None and longest and config.model_type == "whisper" else []
    shapes += [(1, usual, mel)] if mel is not None and longest else [(1, usual, width)]
    shapes += [(1, mel or 80, 2 * longest)] if longest else []
    shapes += [(1, mel or 80, 64), (1, 64, mel or 80), (1, 64, 128)]
    needs = inspect.signature(network.forward).parameters
    for shape in dict.fromkeys(shapes):
        yield {name: noise(*shape)}
        for mask in ("input_features_mask", "attention_mask"):
            if mask in needs:
                for frames in dict.fromkeys(shape[1:]):
                    yield {name: noise(*shape), mask: torch.ones(1, frames, dtype=torch.long)}


def forms(network):
    """Ways in which the model may be called, most likely first: a kind, and keyword arguments for each prompt.

    The kind is ``text``, ``image``, ``audio``, ``pair`` (encoder-decoders), ``both`` (a text and an image encoder side
    by side) or ``whole``, where a forward pass needs an image beside its text.

    Raises:
        NoInputsError: the model takes something else.
    """
    config, main = network.config, network.main_input_name
    takes = inspect.signature(network.forward).parameters
    needs = {
        name
        for name, each in takes.items()
        if each.default is inspect.Parameter.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    }
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
        for sources in zip(*(_sources(network, main, n) for n in LENGTHS), strict=True):
            targets = (torch.tensor([_target(config, n, k)]) for k, n in enumerate(LENGTHS))
            yield "pair", [s | {"decoder_input_ids": t} for s, t in zip(sources, targets, strict=True)]
    elif main in ("input_features", "input_values", "inputs") and "input_ids" not in takes:
        yield from (("audio", [given]) for given in recordings(network, main))
    elif ("pixel_values" in takes and "input_ids" not in takes) or {"grid_thw", "image_grid_thw"} & needs:
        yield "image", [_grid(network) if {"grid_thw", "image_grid_thw"} & set(takes) else _image(network)]
    elif "input_ids" in takes:
        yield from _texts(network, takes, needs)
    else:
        raise NoInputsError(f"it takes {main}")


def _texts(network, takes, needs):
    config = network.config
    rows = [{"input_ids": torch.tensor([ids(config, n, k)])} for k, n in enumerate(LENGTHS)]
    if "bbox" in takes:
        rows = [row | {"bbox": torch.zeros(*row["input_ids"].shape, 4, dtype=torch.long)} for row in rows]
    mask = [{"attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
    vision = getattr(config, "vision_config", None) or getattr(config, "image_config", None)
    if hasattr(network, "logit_scale") and "pixel_values" in takes and vision is not None:
        image = inputs_of(network, picture(vision))
        yield "both", [row | m | image for row, m in zip(rows, mask, strict=True)]
        return
    if "pixel_values" not in needs:
        yield "text", rows
    if "pixel_values" in takes:
        found = with_image(network)
        given = [found] if found is not None else pictured_inputs(network, rows[0]["input_ids"][0].tolist())
        yield from (("whole", [row]) for row in given)
    if "input_features" in takes:
        sound = next(iter(recordings(network, "input_features")))
        yield "both", [row | m | sound for row, m in zip(rows, mask, strict=True)]


def _image(network):
    config = network.config
    sized = any(getattr(config, name, None) for name in ("image_size", "img_size", "input_size"))
    return inputs_of(network, picture(config if sized else vision_of(network)))


def vision_of(network):
    """The configuration of the image part, or the model's own."""
    config = network.config
    parts = (getattr(config, name, None) for name in ("vision_config", "image_config", "backbone_config", "encoder"))
    return next((part for part in parts if part is not None), config)


def with_image(network):
    """One prompt with an image in it, as the model's processor would make it; None where that is not known.

    The number of places of the image is what the model itself makes of it.
    """
    return next(_with_image(network), None)


def _with_image(network):
    takes = inspect.signature(network.forward).parameters
    if {"input_ids", "pixel_values"} <= set(takes):
        yield from _by_features(network, takes)
        row = ids(network.config, LENGTHS[0], 0)
        for given in pictured_inputs(network, row):
            if len({"input_ids", "pixel_values"} ^ set(given)) == 0 and given["input_ids"].shape[1] == len(row):
                continue  # neither places nor anything beside: the image may not be looked at
            try:
                with torch.no_grad():
                    network(**given)
            except Exception:
                continue
            yield given


def _by_features(network, takes):
    """Places as many as the model itself makes of an image."""
    config = network.config
    place = getattr(config, "image_token_id", None)
    if place is None or not hasattr(network, "get_image_features"):
        return
    for image in _images(network, takes):
        try:
            with torch.no_grad():
                found = network.get_image_features(**image)
                features = getattr(found, "pooler_output", found)
                parts = features if isinstance(features, list | tuple) else [features]
                count = sum(part.shape[:-1].numel() for part in parts)
                row = ids(config, LENGTHS[0], 0)
                row = torch.tensor([row[:5] + [place] * count + row[5:]])
                given = {"input_ids": row, **image}
                for name in ("token_type_ids", "mm_token_type_ids"):
                    if name in takes:
                        given[name] = (row == place).long()
                network(**given)
        except Exception:
            continue
        yield given


def _images(network, takes):
    """Forms in which models take one image."""
    config = vision_of(network)
    like = next(p for p in network.parameters() if p.is_floating_point())
    if "image_grid_thw" in takes:
        side = 2 * int(getattr(config, "spatial_merge_size", 1))
        channels = getattr(config, "in_channels", None) or getattr(config, "in_chans", None) or 3
        width = channels * int(getattr(config, "temporal_patch_size", 1)) * int(config.patch_size) ** 2
        yield {
            "pixel_values": noise(side * side, width).to(like.dtype),
            "image_grid_thw": torch.tensor([[1, side, side]]),
        }
        return
    image = picture(config).to(like.dtype)
    side = image.shape[-1]
    if "image_sizes" in takes:
        yield {"pixel_values": torch.cat([image] * 3)[None], "image_sizes": torch.tensor([[side, 2 * side]])}
        yield {"pixel_values": image, "image_sizes": torch.tensor([[side, side]])}
    if "spatial_shapes" in takes:
        yield inputs_of(network, image)
    if "pixel_attention_mask" in takes:
        yield {"pixel_values": image[None]}
    yield {"pixel_values": image}


def _grid(network):
    takes = inspect.signature(network.forward).parameters
    config = network.config
    side = 2 * int(getattr(config, "spatial_merge_size", 1))
    size = next(n for n in ("patch_size", "spatial_patch_size") if getattr(config, n, None))
    width = getattr(config, "in_channels", 3) * int(getattr(config, "temporal_patch_size", 1))
    given = noise(side * side, width * int(getattr(config, size)) ** 2)
    grid = next(name for name in ("grid_thw", "image_grid_thw") if name in takes)
    more = {"merge_sizes": torch.tensor([2])} if "merge_sizes" in takes else {}
    return {
        "pixel_values" if "pixel_values" in takes else "hidden_states": given,
        grid: torch.tensor([[1, side, side]]),
        **more,
    }


def _sources(network, main, length):
    if main in ("input_features", "input_values", "inputs"):
        yield from recordings(network, main)
    elif main == "pixel_values":
        config = network.config
        yield {main: picture(getattr(config, "encoder", None) or getattr(config, "vision_config", None) or config)}
    else:
        yield {"input_ids": torch.tensor([ids(network.config, length, 7)])}


def _target(config, length, seed):
    row = ids(config, length - 2, seed)
    text = config.get_text_config(decoder=True)
    start = getattr(config, "decoder_start_token_id", None) or getattr(text, "bos_token_id", None)
    if type(start) is int and 0 <= start < text.vocab_size:
        row[0] = start
    return row
