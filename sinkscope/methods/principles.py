"""Which part of attention does what: one principle at a time is taken from a trained model (Xue et al. 2025).

Mixing of tokens, the form of the weights, their dependence on the sequence, and that of queries and keys on a layer's
own state. The paper trains models without each; put into a trained model they ask what that model uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from sinkscope.edits import Edit, GiveMaps, MixIdentity, Patch, SwapNormaliser
from sinkscope.engine.run import find_tower, run
from sinkscope.errors import PromptError
from sinkscope.methods.residual import residual_stream
from sinkscope.probes import AttentionMap
from sinkscope.prompts import Prompts
from sinkscope.registry import method

if TYPE_CHECKING:
    from sinkscope.models.handle import Model

Maps = Float[np.ndarray, "layer head query key"]

REPLACEMENTS = {
    "no mixing": "each token sees itself alone",
    "kernel": "a kernel of queries and keys, ELU + 1, in the place of the exponential",
    "softplus": "softplus of the same logits over its sum",
    "random embeddings": "queries and keys from the embeddings of other tokens, one for each token",
    "fixed sequence": "queries and keys of another text",
    "static embeddings": "queries and keys from the tokens' own embeddings, in every layer",
}
"""The six replacements by name, and what they leave of attention."""


def maps_of(model: Model, prompts: Prompts, *, static: bool = False) -> Maps:
    """Return all attention maps of one prompt, what a query cannot see as 0; ``static``: every layer reads embeddings.

    Raises:
        PromptError: more than one prompt.
    """
    if len(prompts) != 1:
        raise PromptError(f"maps_of: {len(prompts)} prompts were given. Give one: prompts.subset([0]).")
    tower = find_tower(model, None)
    probe = AttentionMap(range(tower.depth), range(max(site.heads for site in tower.attention)))
    edits: list[Edit] = []
    if static:
        embedded = residual_stream(model, prompts, 0)["embed"][None]
        edits = [Patch("state", layer=layer, source=embedded) for layer in range(tower.depth - 1)]
    found = run(model, prompts, [probe], edits)["attention"]
    return np.nan_to_num(found.transpose("prompt", "layer", "head", "query", "key").values[0])


@method()
def replaced_attention(
    model: Model, prompts: Prompts, index: int, other: int, *, layers: Any = None, seed: int = 0
) -> dict[str, list[Edit]]:
    """Return the edits of the six replacements for one prompt, by the names of ``REPLACEMENTS``.

    Args:
        model: a language model.
        prompts: several prompts.
        index: the prompt that is read; run the edits on ``prompts.subset([index])``.
        other: the prompt whose maps are the fixed sequence's; as long as the first at least.
        layers: where attention is replaced; None is all of them, every second one a hybrid of the paper.
        seed: of the permutation of the vocabulary that says which other token's embedding a token gets.

    Source: Xue et al. 2025 (xue2025). Which functions its approximate and non-approximate forms are was not found; the
    two here are ours.

    Raises:
        PromptError: ``other`` is the prompt itself, or shorter.
    """
    if index == other or prompts.lengths[other] < prompts.lengths[index]:
        raise PromptError(
            f"replaced_attention(index={index}, other={other}): the fixed sequence must be another prompt, and of "
            f"{prompts.lengths[index]} tokens at least. Give the number of such a prompt."
        )
    own = prompts.subset([index])
    renamed = np.random.default_rng(seed).permutation(int(model.config.get_text_config().vocab_size))
    strangers = Prompts.from_ids([renamed[np.asarray(own.ids[0])].tolist()], model)
    given = {
        "random embeddings": maps_of(model, strangers, static=True),
        "fixed sequence": maps_of(model, prompts.subset([other])),
        "static embeddings": maps_of(model, own, static=True),
    }
    made: dict[str, list[Edit]] = {
        "no mixing": [MixIdentity(1.0, layers=layers)],
        "kernel": [SwapNormaliser("elu_kernel", layers=layers)],
        "softplus": [SwapNormaliser("softplus", layers=layers)],
    }
    made |= {name: [GiveMaps(maps, layers=layers)] for name, maps in given.items()}
    return {name: made[name] for name in REPLACEMENTS}
