"""The models whose attention is read in the benchmarks: one with random weights, and real ones from package indexes.

``reference`` is of Llama's architecture, 8 layers, width 512, 8 heads, random weights and random tokens: what it costs
is not what a real model costs, since real text has roles, and trained heads and streams are uneven. The others are the
named models of :func:`sinkscope.load_model`, on the text of this repository's pages.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sinkscope as sk

REFERENCE = "reference"
NAMES = (REFERENCE, "smollm2-135m", "gemma3-270m", "minilm")
LONGEST = {"minilm": 512}
"""Most tokens that a model has positions for, where that is less than is measured."""

LAYERS, WIDTH, HEADS, VOCAB = 8, 512, 8, 1024


@dataclass(frozen=True)
class Subject:
    """A model on the library's fused attention, as a user of transformers runs it, and the tokens it reads."""

    name: str
    handle: Any
    tokens: torch.Tensor

    @property
    def base(self) -> torch.nn.Module:
        """The model without its output head: what a reading runs."""
        return getattr(self.handle.model, "base_model", self.handle.model)

    @property
    def prompts(self) -> Any:
        """The tokens as prompts."""
        return sk.Prompts.from_ids(self.tokens.tolist(), self.handle)

    @property
    def map_bytes(self) -> int:
        """What all attention maps of the tokens take."""
        heads = sum(site.heads for site in self.handle.backend.towers[self.handle.backend.default_tower].attention)
        return 4 * heads * self.tokens.shape[1] ** 2

    def forward(self, **arguments: Any) -> Any:
        """Run the model without its head once."""
        with torch.no_grad():
            return self.base(self.tokens.to(self.handle.device), **arguments)

    def eager(self) -> Subject:
        """Return a copy that computes attention maps."""
        network = copy.deepcopy(self.handle.model)
        network.set_attn_implementation("eager")
        return Subject(self.name, sk.load_model(network, tokenizer=self.handle.tokenizer), self.tokens)


def subject(name: str, dtype: str, length: int) -> Subject:
    """Return a model of :data:`NAMES` and ``length`` tokens for it."""
    handle = _loaded(name, dtype)
    if name == REFERENCE:
        tokens = torch.randint(3, VOCAB, (1, length), generator=torch.Generator().manual_seed(length))
        tokens[0, 0] = 1
    else:
        tokens = torch.tensor([handle.tokenizer(_text())["input_ids"][:length]])
    if tokens.shape[1] < length:
        raise SystemExit(f"{name}: the repository's pages give {tokens.shape[1]} tokens, {length} are needed")
    return Subject(name, handle, tokens)


@functools.cache
def _loaded(name: str, dtype: str) -> Any:
    if name == REFERENCE:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=HEADS, intermediate_size=1408, max_position_embeddings=1 << 16, bos_token_id=1,
        )  # fmt: skip
        network = LlamaForCausalLM(config).eval().to(getattr(torch, dtype))
        network.set_attn_implementation("sdpa")
        return sk.load_model(network)
    handle = sk.load_model(name, dtype=getattr(torch, dtype))
    handle.model.set_attn_implementation("sdpa")
    return handle


@functools.cache
def _text() -> str:
    folder = Path(__file__).parent.parent
    pages = [folder / "README.md", *sorted((folder / "docs").glob("*.md"))]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages if page.name != "benchmarks.md")


Way = Callable[[Subject], Callable[[], Any]]
