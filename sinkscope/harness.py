"""Any benchmark of lm-evaluation-harness on an edited model: a model class named ``sinkscope``.

    import lm_eval
    import sinkscope.harness  # registers the class

    given = {"pretrained": "zoo:lm-python", "edits": "scale-keys gamma=0.3 layers=2:6"}
    lm_eval.simple_evaluate("sinkscope", given, tasks=["lambada_openai"])

On the command line ``python -m sinkscope.harness`` takes the arguments of ``lm-eval``. The harness makes prompts,
requests and metrics; everything the model computes for them is computed under the edits. What a prompt is to an edit:
the context of a request, shots and all. The tokens of a continuation that is scored count as generated ones, so that
scoring and generating are the same thing under an edit.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int

from sinkscope.attention.primitives import Tally
from sinkscope.edits import dumps, loads, parse
from sinkscope.edits.base import Edit
from sinkscope.engine.applied import applied
from sinkscope.engine.effect import check_edits, require_touched
from sinkscope.engine.run import run
from sinkscope.errors import EditError, ModelError, SinkscopeWarning
from sinkscope.models.handle import Model, load_model
from sinkscope.probes.base import Probe, ProbeContext
from sinkscope.prompts import Prompts
from sinkscope.roles import ROLE_INDEX
from sinkscope.schema import Variable

try:
    register_model: Any = import_module("lm_eval.api.registry").register_model
    HFLM: Any = import_module("lm_eval.models.huggingface").HFLM
except ImportError as error:
    raise ModelError(
        f"sinkscope.harness needs lm-evaluation-harness, which cannot be imported ({error}). Install it with: "
        "pip install 'sinkscope[harness]'"
    ) from None

Request = tuple[Any, list[int], list[int]]
"""Cache key, token ids of the context, token ids of the continuation."""


@dataclass(frozen=True)
class Continuations(Probe, listed=False):
    """Log probability of continuations at the end of each prompt, and whether each is the greedy one.

    A prompt ends before the last token of its continuations. Makes ``continuation_log_probability`` and
    ``continuation_greedy`` (1 or 0), both (prompt, option), NaN beyond a prompt's continuations.

    Attributes:
        targets: token ids of the continuations of each prompt, in the order of the prompts.
    """

    targets: tuple[tuple[tuple[int, ...], ...], ...]
    variables: ClassVar[Mapping[str, Variable]] = {
        "continuation_log_probability": Variable(("prompt", "option"), "nat", "log probability of a continuation"),
        "continuation_greedy": Variable(("prompt", "option"), "1", "whether every token has the largest logit"),
    }
    logits: ClassVar[str | None] = "all"

    def at_end(
        self, logits: Float[torch.Tensor, "batch position vocab"], context: ProbeContext
    ) -> dict[str, torch.Tensor]:
        """Sum the log probabilities of each continuation's tokens."""
        width = max(len(several) for several in self.targets)
        sums = torch.full((len(logits), width), torch.nan, device=logits.device)
        greedy = sums.clone()
        for row, prompt in enumerate(context.batch.indices):
            own = logits[row][context.batch.real[row]]
            for place, target in enumerate(self.targets[prompt]):
                ids = torch.tensor(target, device=logits.device)
                logs = own[-len(target) :].float().log_softmax(-1)
                sums[row, place] = logs.gather(-1, ids[:, None]).sum()
                greedy[row, place] = float((logs.argmax(-1) == ids).all())
        return {"continuation_log_probability": sums, "continuation_greedy": greedy}


class EditedLM(HFLM):
    """A decoder under edits, as lm-evaluation-harness wants it.

    Args:
        pretrained: anything :func:`sinkscope.load_model` takes, such as ``"zoo:lm-python"``, a folder or a hub id; or a
            :class:`sinkscope.Model`.
        edits: text form (``"mask-keys keys=first layers=2:6 + gate-heads scale=0 heads=3"``), the JSON text of
            ``sinkscope.edits.dumps``, its data, or edits. Empty: the model as it is.
        dtype: as in ``load_model``.
        device: as in ``load_model``.
        batch_size: prompts per pass; a number.
        options: further options of the harness's ``hf`` model, such as ``max_length`` or ``add_bos_token``.

    Raises:
        ModelError: not a decoder with a tokenizer, or options that the harness does not know.
        EditError: malformed edits, or edits that this model does not have a place for.
    """

    def __init__(
        self, pretrained: Any, edits: Any = "", dtype: Any = None, device: Any = None, batch_size: Any = 1,
        **options: Any,
    ) -> None:  # fmt: skip
        self.edits = read_edits(edits)
        handle = pretrained if isinstance(pretrained, Model) else load_model(pretrained, dtype=dtype, device=device)
        if handle.kind != "decoder" or handle.tokenizer is None:
            raise ModelError(
                f"sinkscope.harness: {handle.id} is a model of kind {handle.kind!r} "
                f"{'without' if handle.tokenizer is None else 'with'} a tokenizer. Benchmarks need a decoder with one."
            )
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ModelError(f"sinkscope.harness(batch_size={batch_size!r}): give a whole number of at least 1.")
        tower = handle.backend.towers[handle.backend.default_tower]
        check_edits(self.edits, tower)
        unknown = sorted(set(options) - set(inspect.signature(HFLM.__init__).parameters))
        if unknown:
            raise ModelError(
                f"sinkscope.harness: there is no option {unknown[0]!r}. A comma in edits= ends the argument on the "
                'command line: pass model_args as JSON, {"pretrained": ..., "edits": ...}.'
            )
        super().__init__(handle.model, tokenizer=handle.tokenizer, batch_size=int(batch_size), **options)
        self.handle = handle
        self.tallies = [Tally() for _ in self.edits]

    @property
    def eot_token_id(self) -> int:
        """End of text; a tokenizer without one gets the id that starts a text, which no prompt continues with."""
        names = ("eos_token_id", "bos_token_id", "pad_token_id")
        found = [getattr(self.tokenizer, name, None) for name in names]
        return next((number for number in found if number is not None), 0)

    def get_model_info(self) -> dict[str, Any]:
        """Return what the results file says of the model: its name and fingerprint, and the edits as JSON."""
        from sinkscope import __version__

        return {
            "model_source": self.handle.id, "model_fingerprint": self.handle.fingerprint, "edits": dumps(self.edits),
            "model_num_parameters": sum(p.numel() for p in self.handle.model.parameters()),
            "model_dtype": str(self.handle.dtype), "sinkscope_version": __version__,
        }  # fmt: skip

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate under the edits.

        Raises:
            EditHasNoEffect: an edit touched nothing in any of the requests.
        """
        self.tallies = [Tally() for _ in self.edits]
        found = super().generate_until(requests, disable_tqdm=disable_tqdm)
        require_touched(self.edits, self.tallies, self.handle.id, len(requests))
        return found

    def _model_generate(
        self, context: Int[torch.Tensor, "batch token"], max_length: int, stop: list[str], **options: Any
    ) -> Int[torch.Tensor, "batch longer"]:
        mask = options.get("attention_mask")
        real = torch.ones_like(context, dtype=torch.bool) if mask is None else mask.bool()
        rows = [ids[kept].tolist() for ids, kept in zip(context, real, strict=True)]
        prompts = Prompts.from_ids(rows, self.handle)
        with torch.no_grad(), self.handle.evaluating(), applied(self.handle, self.edits, prompts) as tallies:
            out = super()._model_generate(context, max_length, stop, **options)
        for total, tally in zip(self.tallies, tallies, strict=True):
            total.add(tally)
        return out

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Score continuations; requests that differ in the last token alone share a pass."""
        groups: dict[tuple[tuple[int, ...], int], dict[tuple[int, ...], None]] = {}
        places = []
        for _, context, continuation in requests:
            ids = (context + continuation)[-(self.max_length + 1) :]
            key = (tuple(ids[:-1]), len(continuation))
            groups.setdefault(key, {})[tuple(continuation)] = None
            places.append((key, tuple(continuation)))
        targets = tuple(tuple(several) for several in groups.values())
        reading = run(
            self.handle, self._prompts(list(groups)), [Continuations(targets)], self.edits,
            batch_size=override_bs or int(self.batch_size),
        )  # fmt: skip
        sums, greedy = (reading[f"continuation_{name}"].values for name in ("log_probability", "greedy"))
        rows = {key: row for row, key in enumerate(groups)}
        answers = []
        for (cache_key, _, _), (key, target) in zip(requests, places, strict=True):
            at = rows[key], list(groups[key]).index(target)
            answers.append((float(sums[at]), bool(greedy[at])))
            if cache_key is not None:  # a window of a rolling request has none
                self.cache_hook.add_partial("loglikelihood", cache_key, answers[-1])
        return answers

    def _prompts(self, keys: Sequence[tuple[tuple[int, ...], int]]) -> Prompts:
        """Prompts whose last tokens, those of a continuation, have the role ``generated``."""
        with warnings.catch_warnings():
            # The harness puts its prefix before text that its tokenizer began with a token of its own; so it is scored.
            warnings.simplefilter("ignore", SinkscopeWarning)
            prompts = Prompts.from_ids([list(ids) for ids, _ in keys], self.handle)
        roles = [row.copy() for row in prompts.roles]
        for row, (_, count) in zip(roles, keys, strict=True):
            row[len(row) - (count - 1) :] = ROLE_INDEX["generated"]
        return replace(prompts, roles=tuple(np.asarray(row) for row in roles))


def read_edits(given: Any) -> tuple[Edit, ...]:
    """Edits from their text form, JSON text, JSON data, one edit, or a list of edits.

    Raises:
        EditError: anything else, or malformed.
    """
    if isinstance(given, Edit):
        return (given,)
    if isinstance(given, str):
        text = given.strip()
        return tuple(loads(text) if text.startswith("[") else parse(text) if text else ())
    if given is None or isinstance(given, Sequence):
        return tuple(edit if isinstance(edit, Edit) else Edit.from_dict(edit) for edit in given or ())
    raise EditError(
        f"edits={given!r:.60}: expected text such as 'mask-keys keys=first', JSON, or edits, got a "
        f"{type(given).__name__}. Write edits as on the command line."
    )


def main() -> None:
    """Return the command line of lm-evaluation-harness, with the model ``sinkscope`` known to it."""
    import_module("lm_eval.__main__").cli_evaluate()


if __name__ == "__main__":
    # Under -m this file is not the module that the rest of the package knows: the class is registered from that one.
    import_module("sinkscope.harness").main()
else:
    register_model("sinkscope")(EditedLM)
