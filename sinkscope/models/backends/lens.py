"""The second backend: TransformerLens. Reads a ``TransformerBridge`` through its hooks.

It serves people who hold a bridge, and architectures that compute attention without the library's interface (GPT-J,
GPT-Neo, Falcon, BLOOM, MPT). Maps are formed by TransformerLens and reduced one layer at a time. This family of modules
alone imports ``transformer_lens``, and only inside functions: the import takes seconds.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float

from sinkscope.attention import seam
from sinkscope.attention.keywords import check_functions
from sinkscope.errors import EditError, UnsupportedModelError
from sinkscope.models.backends.alone import Batches
from sinkscope.models.backends.base import AttentionSite, Instruments, Output, Tower, carried
from sinkscope.models.backends.discovery import trial_inputs
from sinkscope.models.backends.lens_discovery import explore, split_inputs
from sinkscope.models.backends.lens_hooks import NamedHook, Seat, attention_hooks, residual_hook
from sinkscope.models.backends.own_errors import inputs_told
from sinkscope.models.locks import evaluation_mode

TRIAL_LENGTH = 16
"""Tokens on which a new bridge is compared with the model it was made from."""


class LensBackend:
    """Drives a ``TransformerBridge``; its hooks are there during a pass only."""

    name = "lens"

    def __init__(self, bridge: Any) -> None:
        self.bridge = bridge
        self.why_not = ""
        self.towers: dict[str, Tower] = {}
        self.seats: tuple[Seat, ...] = ()
        try:
            self.seats, tower = explore(bridge)
            self.towers = {tower.name: tower}
        except UnsupportedModelError as error:
            self.why_not = str(error)
        self.reading = "dense" if self.towers else "none"
        self.edits = bool(self.seats) and all(seat.live for seat in self.seats)
        if self.towers and not self.edits:
            self.why_not = self._no_edits()
        self.default_tower = next(iter(self.towers), "text")
        self._factors: dict[str, torch.Tensor] = {}
        self._batches = Batches(f"{type(bridge.original_model).__name__}: TransformerLens", self._scores)

    def forward(
        self, inputs: Mapping[str, torch.Tensor], tower: Tower, instruments: Instruments, logits: str | None = None
    ) -> Output:
        """Run the bridge once under ``instruments``; see :class:`sinkscope.models.backends.base.Backend`.

        Raises:
            UnsupportedModelError: the bridge's weights were folded and a magnitude is asked for, a statistic needs
                scores that this attention does not hand over, or a prompt in a batch is not computed as it is alone.
            EditError: attention is to be edited where TransformerLens would discard the edit.
        """
        kept: list[torch.Tensor] = []
        hooks = self.hooks(tower, instruments)
        last = "ln_final.hook_out" if "ln_final.hook_out" in self.bridge.hook_dict else tower.residual[-1].path
        hooks.append((last, lambda tensor, hook: kept.append(tensor)))
        first, rest = split_inputs(dict(inputs))
        with inputs_told(self.bridge.original_model, inputs):
            self._batches.check(inputs)
            with self.bridge.hooks(fwd_hooks=hooks):
                scores = self.bridge.forward(first, return_type="logits", **rest, **self._extra(logits))
        return Output(kept[-1] if kept else scores, scores if logits else None, frozenset({"dense"}))

    def hooks(self, tower: Tower, instruments: Instruments) -> list[NamedHook]:
        """Hook names and functions that read and change what ``instruments`` says, after checking that they can.

        Raises:
            UnsupportedModelError: see :meth:`forward`.
            EditError: see :meth:`forward`.
        """
        self._check(instruments)
        hooks = attention_hooks(self.seats, instruments, self.write_factor)
        residual = carried(instruments.residual, tower)
        for site in tower.residual:
            if residual.get(site.name):
                hooks.append((site.path, residual_hook(residual[site.name])))
        return hooks

    def write_factor(self, site: AttentionSite) -> Float[torch.Tensor, "head dim dim"] | None:
        """Triangular factor of each head's slice of W_O, so that |R v| = |W_O v| at head width, not model width."""
        if site.output_path is None:
            return None
        if site.path not in self._factors:
            weight = self.seats[site.layer].module.W_O.detach().double().reshape(site.heads, site.head_dim, -1)
            self._factors[site.path] = torch.linalg.qr(weight.transpose(1, 2), mode="r").R.float()
        return self._factors[site.path]

    def _extra(self, logits: str | None) -> dict[str, Any]:
        names = inspect.signature(self.bridge.original_model.forward).parameters
        extra: dict[str, Any] = {"use_cache": False} if "use_cache" in names else {}
        if logits != "all" and "logits_to_keep" in names:
            extra["logits_to_keep"] = 1
        return extra

    def _check(self, instruments: Instruments) -> None:
        if instruments.edits is not None and not self.edits:
            raise EditError(self._no_edits())
        names = {name for wants in instruments.wants.values() for name in wants.names}
        magnitudes = sorted(names & {"value_norm", "key_norm", "write_norm"})
        magnitudes += ["the residual stream"] if instruments.residual else []
        if magnitudes and getattr(self.bridge, "_weights_processed", False):
            raise UnsupportedModelError(
                f"{', '.join(magnitudes)}: this bridge's weights were folded and centred (enable_compatibility_mode), "
                "so activations have other sizes than the model's own. Use a bridge without compatibility mode, or "
                "enable_compatibility_mode(no_processing=True)."
            )

    def _scores(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        first, rest = split_inputs(dict(inputs))
        return self.bridge.forward(first, return_type="logits", **rest)

    def _no_edits(self) -> str:
        layers = [seat.site.layer for seat in self.seats if not seat.live]
        return (
            f"TransformerLens leaves the attention of layers {layers} to transformers and sees weights after they were "
            "used, so edits there would have no effect. Use backend='transformers' if it can read this model."
        )


def to_bridge(hf_model: torch.nn.Module, tokenizer: Any | None = None) -> Any:
    """Make a ``TransformerBridge`` of a copy of ``hf_model``, which is left alone (a bridge changes what it wraps).

    No network, nothing installed. The bridge's logits are compared with the model's own on a few tokens.

    Raises:
        UnsupportedModelError: TransformerLens does not list the architecture, cannot build it, needs a package that is
            missing, or computes different logits; or its attention is a function of somebody else's.
    """
    name = type(hf_model).__name__
    check_functions(seam.configs(hf_model))
    _check_served(name)
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    copied: Any = copy.deepcopy(hf_model).eval()
    for config in seam.configs(copied):
        # set_attn_implementation ignores classes without the interface; delegated attention shows its weights if eager.
        config._attn_implementation_internal = "eager"
    try:
        bridge = build_bridge_from_module(
            copied, name, hf_config=copied.config, tokenizer=copy.deepcopy(tokenizer), model_name=name
        )
    except Exception as error:  # adapters raise whatever they come across
        told = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UnsupportedModelError(
            f"{name}: TransformerLens could not build a bridge of this model ({told}). Load it with "
            "backend='transformers' if its attention can be read there."
        ) from error
    _check_same(hf_model, bridge)
    return bridge


def _check_served(name: str) -> None:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    adapter = SUPPORTED_ARCHITECTURES.get(name)
    if adapter is None:
        raise UnsupportedModelError(
            f"{name}: TransformerLens has no adapter for this architecture. Load it with backend='transformers'; a "
            "class with a language-model head may be served where the bare model is not."
        )
    missing = [lib for lib in getattr(adapter, "required_libraries", []) if importlib.util.find_spec(lib) is None]
    if missing:
        raise UnsupportedModelError(
            f"{name}: TransformerLens needs {', '.join(missing)} for this architecture and would install it by itself. "
            f"Install it first (pip install {' '.join(missing)}), or load the model with backend='transformers'."
        )


def _check_same(hf_model: torch.nn.Module, bridge: Any) -> None:
    """Refuse a bridge that computes something else (ALiBi of Falcon is counted twice in its eager path, for one)."""
    inputs = trial_inputs(hf_model)[0]
    if "input_ids" in inputs:
        vocabulary = hf_model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
        steps = torch.arange(TRIAL_LENGTH, device=inputs["input_ids"].device)[None]
        inputs["input_ids"] = (inputs["input_ids"] + 7 * steps) % vocabulary
    first, rest = split_inputs(inputs)
    with torch.no_grad(), evaluation_mode(hf_model):
        own = hf_model(**inputs)
        given = bridge.forward(first, return_type="logits", **rest).float()
    found = getattr(own, "logits", None)
    expected = (own[0] if found is None else found).float()
    exact = next(hf_model.parameters()).dtype in (torch.float32, torch.float64)
    worst = float((given - expected).abs().max())
    if not worst <= (1e-3 if exact else 5e-2) * max(1.0, float(expected.abs().max())):
        raise UnsupportedModelError(
            f"{type(hf_model).__name__}: TransformerLens computes other logits than the model itself (largest "
            f"difference {worst:.3g} on {TRIAL_LENGTH} tokens), so nothing is measured through it."
        )
