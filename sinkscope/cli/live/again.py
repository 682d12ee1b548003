"""The prompts of a reading, made again from its tokens: the reading's own hashes say whether they are the same."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sinkscope.errors import PromptError
from sinkscope.prompts import Prompts
from sinkscope.roles import ROLE_INDEX

if TYPE_CHECKING:
    import xarray as xr

    from sinkscope.models.handle import Model
    from sinkscope.prompts.vocabulary import Vocabulary

MAX_TRIES = 256
"""Most ways of reading a prompt's tokens as ids that are tried: some strings stand for two ids."""


class TokensAgain:
    """Token ids of a reading's prompts, which keeps tokens as strings, and a hash of each prompt's ids and roles."""

    def __init__(self, model: Model, vocabulary: Vocabulary, ds: xr.Dataset) -> None:
        self._model, self._vocabulary, self._ds = model, vocabulary, ds
        self._ids: dict[str, list[int]] | None = None

    def prompt(self, index: int) -> Prompts:
        """Return one prompt of the reading, the same bit for bit.

        Raises:
            PromptError: its ids cannot be told from its tokens, as those of a prompt with pictures.
        """
        roles = self._ds["token_role"].transpose("prompt", "key").values[index].astype(str)
        count = int(((roles != "") & (roles != "pad")).sum())
        tokens = self._ds["token"].transpose("prompt", "key").values[index, :count].astype(str).tolist()
        wanted = str(self._ds["prompt_hash"].values[index]) if "prompt_hash" in self._ds.coords else ""
        held = np.array([ROLE_INDEX[str(role)] for role in roles[:count]], dtype=np.int8)
        choices = [self._numbers().get(token, []) for token in tokens]
        for ids in itertools.islice(itertools.product(*choices), MAX_TRIES):
            made = Prompts.from_ids([list(ids)], self._model)
            made = replace(made, roles=(held,))
            if made.prompt_digests()[0] == wanted:
                return made
        raise PromptError(
            f"The tokens of prompt {self._ds['prompt'].values[index]} do not tell what the model was given (pictures, "
            "or characters cut in two). Record its rows with AttentionMap when it is measured."
        )

    def _numbers(self) -> dict[str, list[int]]:
        """Every id that a token's string may stand for."""
        if self._ids is None:
            found: defaultdict[str, list[int]] = defaultdict(list)
            for number in range(self._vocabulary.size or 0):
                found[self._vocabulary.show(number)[0]].append(number)
            self._ids = dict(found)
        return self._ids
