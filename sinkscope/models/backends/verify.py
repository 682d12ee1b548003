"""Comparing the instrument with the model's own eager attention, on a prompt that reaches what its attention does.

One token finds where attention is; whether it is computed right shows only on a prompt longer than the model's window
or sparse pattern. Both runs see the same random tokens (or picture); logits are compared, and maps where the model
returns them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from sinkscope.attention import seam
from sinkscope.attention.view import Ask, Wants
from sinkscope.errors import UnsupportedModelError
from sinkscope.models import variants
from sinkscope.models.backends.base import Backend, Instruments, Output, Tower
from sinkscope.models.backends.discovery import no_cache, trial_inputs
from sinkscope.models.backends.pictured import pictured_inputs, takes_pictures
from sinkscope.models.backends.two_sided import runs_on

SHORTEST, LONGEST = 192, 512
"""Tokens of the prompt: more than one block of rows, and past the longest pattern that the configuration names."""

MAP_ENTRIES = 1 << 26
"""Entries of all maps together up to which they are compared; above it logits alone are."""

PATTERNS = re.compile(r"window|chunk|index_topk|block_size|local_attention")
"""Names of configuration values that say how far attention looks, or in what pieces."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest difference by type of the weights, relative to the largest logit where that is above 1."""


MAPS = {"encoder": "encoder_attentions", "decoder": "decoder_attentions", "cross": "cross_attentions"}
"""Where an encoder-decoder returns the maps of each tower."""


@dataclass(frozen=True)
class Verification:
    """Largest differences between the instrument and the model's own eager attention; ``maps`` None: not compared.

    ``beyond`` is the length of the longest pattern where the prompt was shorter than it, else 0.
    """

    tokens: int
    logits: float
    maps: float | None
    beyond: int

    def __str__(self) -> str:
        maps = "" if self.maps is None else f", maps {self.maps:.1g}"
        beyond = f"; a pattern of {self.beyond} tokens was not reached" if self.beyond else ""
        return f"against eager on {self.tokens} tokens: logits {self.logits:.1g}{maps}{beyond}"


def verify(network: torch.nn.Module, backend: Backend, tower: Tower, longest: int | None) -> Verification:
    """Run ``network`` by its own eager attention and under the instrument, and compare.

    Args:
        network: the model that ``backend`` drives.
        backend: gives the instrumented pass.
        tower: its attention is read.
        longest: tokens that the model takes at most; None for no limit.

    Raises:
        UnsupportedModelError: the two differ.
    """
    inputs, beyond = _inputs(network, longest)
    found, maps = _ours(backend, tower, inputs)
    with eager_attention(network), _added_masks(network, tower):
        wanted = _own(network, backend, tower, inputs)
        own_maps = _own_maps(network, inputs, MAPS.get(tower.name, "attentions")) if maps else []
    tokens = int(inputs["input_ids"].shape[1]) if "input_ids" in inputs else found.hidden.shape[1]
    kind = next(p.dtype for p in network.parameters() if p.is_floating_point())
    logits = difference(_answer(found), wanted)
    same = [m.shape for m in maps] == [m.shape for m in own_maps]
    worst = max(map(difference, maps, own_maps), default=None) if same else None
    if not max(logits, worst or 0.0) <= TOLERANCE.get(kind, 5e-2):
        raise UnsupportedModelError(
            f"{type(network).__name__}: under the instrument it computes something else than by its own eager "
            f"attention (largest difference {max(logits, worst or 0.0):.2g} on {tokens} tokens), so nothing is "
            "measured. Read it by transformers' own output_attentions=True."
        )
    return Verification(tokens, logits, worst, beyond)


def _ours(backend: Backend, tower: Tower, inputs: dict[str, torch.Tensor]) -> tuple[Output, list[torch.Tensor]]:
    """The instrumented pass; with every map where they are not too many, else with the norms of the keys."""
    length = next(iter(inputs.values())).shape[1]
    whole = "input_ids" not in inputs or sum(site.heads for site in tower.attention) * length**2 <= MAP_ENTRIES
    heads = {site.layer: max(each.heads for each in tower.sites_of(site.layer)) for site in tower.attention}
    every = {layer: Ask("map", {"heads": tuple(range(count))}) for layer, count in heads.items()}
    maps: list[torch.Tensor] = []
    instruments = Instruments(
        wants={layer: Wants(ask if whole else "key_norm") for layer, ask in every.items()},
        collect=lambda _, stats: maps.append(stats["map"]) if whole else None,
    )
    return backend.forward(inputs, tower, instruments, "all"), maps


def _own(network: torch.nn.Module, backend: Backend, tower: Tower, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the model itself answers; a bridge drives a copy, so the model is asked beside it."""
    if backend.name == "transformers":
        return _answer(backend.forward(inputs, tower, Instruments(), "all"))
    out = network(**inputs, **no_cache(network))
    logits = getattr(out, "logits", None)
    return out[0] if logits is None else logits


def _own_maps(network: torch.nn.Module, inputs: dict[str, torch.Tensor], name: str) -> list[torch.Tensor]:
    try:
        out = network(**inputs, **no_cache(network), output_attentions=True)
    except TypeError:  # no such argument
        return []
    maps = getattr(out, name, None) or ()
    return [each for each in maps if isinstance(each, torch.Tensor) and each.ndim == 4]


@contextmanager
def _added_masks(network: torch.nn.Module, tower: Tower) -> Iterator[None]:
    """While inside, attention gets masks that it can add: to a boolean one eager BERT would add 1 (Grounding DINO)."""

    def added(mask: Any) -> Any:
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.ndim != 4:
            return mask
        return torch.zeros_like(mask, dtype=kind).masked_fill(~mask, torch.finfo(kind).min)

    def change(_: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        return tuple(map(added, given)), {name: added(each) for name, each in named.items()}

    kind = next(p.dtype for p in network.parameters() if p.is_floating_point())
    modules, calling = dict(network.named_modules()), {site.path for site in tower.attention}
    # The paths of a bridge beside the model are not the model's own.
    hooks = [modules[at].register_forward_pre_hook(change, with_kwargs=True) for at in calling & modules.keys()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _answer(output: Output) -> torch.Tensor:
    return output.hidden if output.logits is None else output.logits


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference relative to the largest number above 1; NaN where either is NaN."""
    wanted = wanted.float()
    return float((found.float() - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))


def _inputs(network: torch.nn.Module, longest: int | None) -> tuple[dict[str, torch.Tensor], int]:
    inputs = trial_inputs(network)[0]
    if "decoder_input_ids" in inputs:
        return _longer_pair(network, inputs, longest), 0
    pattern, length = _lengths(network, longest)
    if "input_ids" in inputs:
        first = inputs["input_ids"]
        inputs["input_ids"] = torch.cat([first, _words(network, length - 1).to(first.device)], dim=1)
    else:
        name, like = next(iter(inputs.items()))
        noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)
        inputs, pattern = inputs | {name: noise}, 0
    if takes_pictures(network) and not runs_on(network, inputs):  # BLIP-2 reads no text without an image
        text = inputs["input_ids"] if "input_ids" in inputs else _words(network, length)
        forms = pictured_inputs(network, text[0].tolist())
        inputs = next((form for form in forms if runs_on(network, form)), inputs)
    return inputs, pattern if pattern >= length else 0


def _lengths(network: torch.nn.Module, longest: int | None) -> tuple[int, int]:
    """Tokens of the longest pattern that the configuration names, and of a prompt that reaches it if it may."""
    config: Any = network.config
    sizes = [
        value
        for name, value in config.get_text_config().to_dict().items()
        if PATTERNS.search(name) and type(value) is int
    ]
    pattern = max(sizes, default=0)
    return pattern, min(max(SHORTEST, pattern + SHORTEST // 4), LONGEST, longest or LONGEST)


def _words(network: torch.nn.Module, count: int) -> torch.Tensor:
    """Random ids (1, count), none with a meaning: padding, or the place of an image, is not read as text."""
    config: Any = network.config
    text = config.get_text_config()
    special = {value for each in (config, text) for name, value in each.to_dict().items() if _is_id(name, value)}
    ids = torch.tensor(sorted(set(range(text.vocab_size)) - special))
    return ids[torch.randint(len(ids), (1, count), generator=torch.Generator().manual_seed(0))]


def _longer_pair(
    network: torch.nn.Module, inputs: dict[str, torch.Tensor], longest: int | None
) -> dict[str, torch.Tensor]:
    """A source and a target of random ids; a recording or an image is long enough as it is."""
    config: Any = network.config
    limit = min(longest or LONGEST, getattr(config, "max_target_positions", None) or LONGEST)
    generator = torch.Generator().manual_seed(0)
    for name, share in (("input_ids", 1), ("decoder_input_ids", 2)):
        if name in inputs:
            shape = (1, max(2, min(SHORTEST, limit) // share))
            ids = torch.randint(3, config.get_text_config(decoder=True).vocab_size, shape, generator=generator)
            inputs = inputs | {name: ids.to(inputs[name].device)}
    return inputs


def _is_id(name: str, value: Any) -> bool:
    return name.endswith(("_token_id", "_token_index")) and isinstance(value, int)


@contextmanager
def eager_attention(network: torch.nn.Module) -> Iterator[None]:
    """While inside, the model computes attention by its own eager function, a variant of the zoo by the dense one."""
    before = [(config, config._attn_implementation_internal) for config in seam.configs(network)]
    try:
        for config, _ in before:
            # Eager attention would leave out the learned keys and biases of a variant.
            dense = config._attn_implementation_internal == variants.NAME
            config._attn_implementation_internal = variants.NAME if dense else "eager"
        yield
    finally:
        for config, old in before:
            config._attn_implementation_internal = old
