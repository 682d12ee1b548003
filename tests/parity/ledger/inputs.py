"""What a shrunken model is run on, made from its configuration and the signature of its forward pass alone."""

import inspect

import torch

LENGTHS = (24, 17)
"""Tokens of the two prompts: longer than windows and sparse patterns; together in a batch the second is padded."""

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


def recording(network, name):
    """Noise as a recording: samples, or a spectrogram."""
    config = network.config
    audio = (
        getattr(config, "audio_config", None)
        or getattr(config, "encoder_config", None)
        or getattr(config, "encoder", config)
    )
    mel = next(
        (getattr(audio, n) for n in ("num_mel_bins", "n_mels", "num_mel_filters") if getattr(audio, n, None)), None
    )
    if name == "input_values":
        if mel is not None and getattr(audio, "max_length", None):
            return noise(1, audio.max_length, mel)
        return noise(1, 4000)
    longest = getattr(audio, "max_source_positions", None)
    if mel is not None and longest:
        return (
            noise(1, mel, 2 * longest)
            if "features" in name and network.config.model_type == "whisper"
            else noise(1, 64, mel)
        )
    width = (
        getattr(audio, "input_feat_per_channel", None) or getattr(audio, "feature_projection_input_dim", None) or mel
    )
    return noise(1, 64, width or 80)


def of(network):
    """Keyword arguments of one forward pass for each of two prompts, and how they are called.

    ``text``, ``image``, ``audio``, ``pair`` (encoder-decoders), ``both`` (a text and an image encoder side by side) or
    ``whole``, where a forward pass needs an image beside its text.

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
        return "pair", [
            _source(network, main, n) | {"decoder_input_ids": torch.tensor([_target(config, n, k)])}
            for k, n in enumerate(LENGTHS)
        ]
    if main in ("input_features", "input_values"):
        return "audio", [{main: recording(network, main)}]
    if main == "pixel_values" and "input_ids" not in takes:
        return "image", [_grid(network) if "grid_thw" in takes else {"pixel_values": picture(config)}]
    if "input_ids" in takes:
        rows = [{"input_ids": torch.tensor([ids(config, n, k)])} for k, n in enumerate(LENGTHS)]
        if "bbox" in takes:
            rows = [row | {"bbox": torch.zeros(*row["input_ids"].shape, 4, dtype=torch.long)} for row in rows]
        if (
            hasattr(network, "logit_scale")
            and "pixel_values" in takes
            and getattr(config, "vision_config", None) is not None
        ):
            mask = [{"attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
            return "both", [
                row | m | {"pixel_values": picture(config.vision_config)} for row, m in zip(rows, mask, strict=True)
            ]
        if "pixel_values" in needs:
            found = with_image(network)
            return "whole", [found if found is not None else rows[0] | {"pixel_values": picture(vision_of(network))}]
        return "text", rows
    if "grid_thw" in takes:
        raise NoInputsError("the image part of a larger model, with inputs of its own; it is read inside that model")
    raise NoInputsError(f"it takes {main}")


def vision_of(network):
    """The configuration of the image part, or the model's own."""
    config = network.config
    return getattr(config, "vision_config", None) or getattr(config, "encoder", None) or config


def with_image(network):
    """One prompt with an image in it, as the model's processor would make it; None where that is not known.

    The number of places of the image is what the model itself makes of it.
    """
    config = network.config
    place = getattr(config, "image_token_id", None)
    if place is None or not hasattr(network, "get_image_features"):
        return None
    takes = inspect.signature(network.forward).parameters
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
        return given
    return None


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
    if "pixel_attention_mask" in takes:
        yield {"pixel_values": image[None]}
    yield {"pixel_values": image}


def _grid(network):
    config = network.config
    side = 2 * int(getattr(config, "spatial_merge_size", 1))
    width = (
        getattr(config, "in_channels", 3) * int(getattr(config, "temporal_patch_size", 1)) * int(config.patch_size) ** 2
    )
    return {"pixel_values": noise(side * side, width), "grid_thw": torch.tensor([[1, side, side]])}


def _source(network, main, length):
    if main in ("input_features", "input_values"):
        return {main: recording(network, main)}
    if main == "pixel_values":
        config = network.config
        return {main: picture(getattr(config, "encoder", None) or getattr(config, "vision_config", None) or config)}
    return {"input_ids": torch.tensor([ids(network.config, length, 7)])}


def _target(config, length, seed):
    row = ids(config, length - 2, seed)
    text = config.get_text_config(decoder=True)
    start = getattr(config, "decoder_start_token_id", None) or getattr(text, "bos_token_id", None)
    if type(start) is int and 0 <= start < text.vocab_size:
        row[0] = start
    return row
