"""Encoder-decoders: the smallest inputs that reach every attention layer, and which call belongs to which tower."""

from __future__ import annotations

from typing import Any

import torch

from sinkscope.models.backends.trial import Seen
from sinkscope.models.facts import AUDIO_INPUTS, is_encoder_decoder
from sinkscope.prompts.model import source_name
from sinkscope.prompts.placing import device_of

SOURCE, TARGET = 3, 2
"""Tokens of the trial: of different number, so that cross-attention is told by the shape of its map."""


def pair_inputs(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a source of three tokens (or a recording, or an image) and a target of two."""
    config: Any = model.config
    device = device_of(model)
    text = config.get_text_config(decoder=True)
    names = ("bos_token_id", "eos_token_id")
    found = (getattr(holder, name, None) for holder in (config, text) for name in names)
    start = next((i for i in found if isinstance(i, int) and 0 <= i < getattr(text, "vocab_size", 1)), 0)
    target = torch.full((1, TARGET), start, device=device)
    return {**source_inputs(model, start), "decoder_input_ids": target}


def source_inputs(model: torch.nn.Module, start: int) -> dict[str, torch.Tensor]:
    """Return what the encoder reads in the trial."""
    main = source_name(model)
    if main in AUDIO_INPUTS:
        return recording(model)
    if main == "pixel_values":
        whole: Any = model.config
        config: Any = getattr(whole, "encoder", None) or getattr(whole, "vision_config", None) or whole
        size = getattr(config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": _noise(model, 1, getattr(config, "num_channels", 3), height, width)}
    return {"input_ids": torch.full((1, SOURCE), start, device=device_of(model))}


def recording(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a short recording as an audio encoder takes it: the first of some forms that it runs on."""
    first, *others = _recordings(model)
    network: Any = model
    encoder = network.get_encoder() if is_encoder_decoder(model) else model
    if not others or runs_on(encoder, first):
        return first
    return next((form for form in others if runs_on(encoder, form)), first)


@torch.no_grad()
def runs_on(encoder: torch.nn.Module, given: dict[str, torch.Tensor]) -> bool:
    """Say whether a forward pass takes these inputs."""
    try:
        encoder(**given)
    except Exception:  # whatever a model of unknown make raises
        return False
    return True


def _recordings(model: torch.nn.Module) -> list[dict[str, torch.Tensor]]:
    """Forms of a recording, most likely first: noise, since silence can make every state zero."""
    config: Any = model.config
    name = source_name(model)
    mel = getattr(config, "num_mel_bins", None)
    if name == "input_features":
        longest = getattr(config, "max_source_positions", None)
        if mel is not None and longest is not None:  # Whisper takes recordings of one length alone
            return [{name: _noise(model, 1, mel, 2 * longest)}]
        parts = [config, getattr(config, "encoder_config", None), getattr(config, "encoder", None)]
        widths = ("input_feat_per_channel", "feature_projection_input_dim", "num_mel_bins", "input_dim", "feature_size")
        found = [size for part in parts for width in widths if isinstance(size := getattr(part, width, None), int)]
        sizes = dict.fromkeys([*found, 80, 128])
        return [{name: _noise(model, 1, *shape)} for size in sizes for shape in ((64, size), (size, 64))]
    if mel is not None and getattr(config, "max_length", None):  # a spectrogram as an image (AST)
        return [{name: _noise(model, 1, config.max_length, mel)}]
    return [{name: _noise(model, *shape)} for shape in ((1, 4000), (1, 3840), (1, 1, 3840))]


def split_calls(model: torch.nn.Module, calls: list[Seen]) -> dict[str, list[Seen]]:
    """Sort the attention calls of a trial by tower; the decoder first, which is the default."""
    network: Any = model
    inside = {id(module) for module in network.get_encoder().modules()}
    groups: dict[str, list[Seen]] = {"decoder": [], "encoder": [], "cross": []}
    for call in calls:
        if id(call.by.module) in inside:
            groups["encoder"].append(call)
        else:
            groups["decoder" if call.keys == TARGET else "cross"].append(call)
    if not groups["decoder"]:  # one call over source and target together (T5Gemma 2): neither's keys alone
        groups["cross"] = []
    return {name: found for name, found in groups.items() if found}


def _noise(model: torch.nn.Module, *shape: int) -> torch.Tensor:
    like = next(p for p in model.parameters() if p.is_floating_point())
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device_of(model), like.dtype)
