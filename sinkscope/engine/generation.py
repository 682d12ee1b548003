"""``generate``: greedy continuation of prompts under edits, given back as prompts whose new tokens have a role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from transformers import GenerationMixin, LogitsProcessor, StaticCache

from sinkscope.arguments import RAW, is_iterable, is_whole, shown
from sinkscope.attention.masks import EmptyCacheError
from sinkscope.attention.primitives import Tally
from sinkscope.edits.base import Edit
from sinkscope.engine.applied import applied
from sinkscope.engine.effect import require_touched
from sinkscope.engine.pair_generation import Continue, generate_targets
from sinkscope.engine.run import as_tuple
from sinkscope.errors import ModelError, PromptError, UnsupportedModelError
from sinkscope.prompts import Prompts
from sinkscope.prompts.batch import PER_TOKEN, PER_TOKEN_AND_IMAGE, along_tokens
from sinkscope.prompts.identity import check_prompts
from sinkscope.prompts.placing import in_type_of
from sinkscope.prompts.vocabulary import Vocabulary
from sinkscope.roles import ROLE_INDEX

if TYPE_CHECKING:
    from sinkscope.models.handle import Model


def generate(
    model: Model, prompts: Prompts, edits: Sequence[Edit] = (), max_new_tokens: int = 20, *, batch_size: int = 8,
    tower: str | None = None, **options: Any,
) -> Prompts:  # fmt: skip
    """Continue each prompt, every pass under ``edits``, and give the prompts with what was generated.

    Greedy unless ``options`` (those of transformers' ``generate``) say otherwise. Texts are padded on the left, prompts
    with images run one by one. New tokens have the role ``generated``; an end-of-sequence token is the last one kept.
    ``tower`` says where the edits act, as in :func:`sinkscope.run`. An encoder-decoder continues the target of each
    pair, or begins one where there is a source alone. ``cache_implementation="static"`` is honoured, not compiled. A
    model whose cache does not count its tokens (MiniMax) is run without one.

    Raises:
        PromptError: the model generates nothing, or the continuation would not fit its context.
        UnsupportedModelError: a static cache is handed over, or asked for of an encoder-decoder; an encoder-decoder
            with a generation of its own (Whisper).
        ModelError: the logits of a step are NaN or infinite.
        EditError, EditHasNoEffect: as :func:`sinkscope.run`; an edit that touches nothing in any pass has no effect.
    """
    edits = as_tuple(edits, "edits")
    _check(model, prompts, max_new_tokens, options)
    prompts.spans(batch_size)  # refuses a wrong size, for prompts with images too
    checks = [*_processors(options.pop("logits_processor", None)), _FiniteLogits(model.id)]
    own_static = _static(getattr(model.model.generation_config, "cache_implementation", None))
    static = not own_static and _static(options.get("cache_implementation"))
    if own_static:
        options["cache_implementation"] = "dynamic"  # the same tokens; edits need the mask within the pass
    elif static:
        del options["cache_implementation"]
    # Greedy, so that two runs differ by their edits alone.
    settings = {"do_sample": False, "pad_token_id": prompts.pad_id, **options, "logits_processor": checks}
    settings |= {"max_new_tokens": max_new_tokens}
    ends = _end_ids(model, options)

    def go_on(inputs: dict[str, torch.Tensor], start: int, more: dict[str, Any]) -> list[np.ndarray]:
        if static:
            config = model.config.get_text_config(decoder=True)
            more = more | {"past_key_values": _UncompiledCache(config, max_cache_len=start + max_new_tokens)}
        try:
            found = _generated(model, inputs, settings | more)
        except EmptyCacheError:
            if options.get("use_cache", True) is False or "past_key_values" in {**options, **more}:
                raise
            found = _generated(model, inputs, settings | more | {"use_cache": False})  # every step from the start
        return _until_end(found[:, start:], ends)

    continued = generate_targets if model.kind == "encoder-decoder" else _continued
    with torch.no_grad(), model.evaluating():
        longer, totals = continued(model, prompts, edits, go_on, batch_size, tower)
    require_touched(edits, totals, model.id, len(prompts))
    return longer


def written_texts(model: Model, written: Prompts) -> list[str]:
    """Return what was generated in each prompt, without special tokens."""
    assert model.tokenizer is not None
    return [
        str(model.tokenizer.decode(ids[roles == ROLE_INDEX["generated"]], skip_special_tokens=True)).strip()
        for ids, roles in zip(written.ids, written.roles, strict=True)
    ]


def _continued(
    model: Model, prompts: Prompts, edits: Sequence[Edit], go_on: Continue, batch_size: int, tower: str | None
) -> tuple[Prompts, list[Tally]]:
    totals = [Tally() for _ in edits]
    new: list[np.ndarray] = []
    for chosen in prompts.spans(1 if any(prompts.extras) else batch_size):
        part = prompts if prompts.whole is not None else prompts.subset(chosen)
        inputs = in_type_of(model.model, _left_padded(part, model.device))
        with applied(model, edits, part, tower=tower) as tallies:
            new += go_on(inputs, inputs["input_ids"].shape[1], {})
        for total, tally in zip(totals, tallies, strict=True):
            total.add(tally)
    return extended(prompts, new, model), totals


class _UncompiledCache(StaticCache):
    """A static cache for which the library neither compiles the model nor makes masks ahead of the pass."""

    is_compileable = False  # type: ignore[assignment]


def _generated(model: Model, inputs: dict[str, torch.Tensor], settings: dict[str, Any]) -> torch.Tensor:
    try:
        found = model.model.generate(**inputs, **settings)  # type: ignore[operator]
        ids: torch.Tensor = getattr(found, "sequences", found)
    except (*RAW, ImportError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise PromptError(
            f"generate: {type(model.model).__name__} refuses to continue these prompts ({type(error).__name__}: "
            f"{str(error)[:160]}). Try model.model.generate by itself."
        ) from error
    if ids.ndim != 2:
        raise UnsupportedModelError(
            f"generate: {type(model.model).__name__} writes {tuple(ids.shape)} (codes of several books a step), not "
            "one token a step. Use model.model.generate inside sinkscope.applied."
        )
    return ids


def _check(model: Model, prompts: Prompts, count: int, options: dict[str, Any]) -> None:
    check_prompts(prompts, model, "generate")
    if not getattr(model.model, "can_generate", lambda: False)():
        raise PromptError(f"generate: {model.id} ({type(model.model).__name__}) generates no text. Use a decoder.")
    pairs = model.kind == "encoder-decoder"
    own: Any = GenerationMixin
    if pairs and getattr(type(model.model), "generate", None) is not own.generate:
        raise UnsupportedModelError(
            f"generate: {type(model.model).__name__} writes by a procedure of its own (segments, other targets "
            "than given). Use model.model.generate inside sinkscope.applied, or read given targets with sinkscope.run."
        )
    if getattr(options.get("past_key_values"), "is_compileable", False) or (
        pairs and _static(options.get("cache_implementation"))
    ):
        raise UnsupportedModelError(
            "generate: a static cache made by others fixes the mask before the pass, and edits need it within. Leave "
            f"past_key_values out, and {'cache_implementation too' if pairs else 'say cache_implementation=static'}."
        )
    if not is_whole(count) or count < 1:
        raise PromptError(f"generate(max_new_tokens={count!r}): use a whole number of at least 1.")
    if options.get("num_return_sequences", 1) != 1:
        raise PromptError(
            "generate(num_return_sequences=...): one continuation per prompt is given. Repeat the prompts."
        )
    before = prompts.lengths if not pairs else (1,) if prompts.other is None else prompts.other.lengths
    longest = max(before) + count
    if model.context_length is not None and longest > model.context_length:
        raise PromptError(
            f"generate: the longest prompt and {count} new tokens make {longest}, but this model's context length is "
            f"{model.context_length}. Ask for fewer tokens or shorten the prompt."
        )
    if prompts.whole is not None and "position_ids" in prompts.whole:
        raise PromptError("generate: these inputs have explicit position_ids. Leave them out; the model makes its own.")


def _static(implementation: Any) -> bool:
    return implementation not in (None, "dynamic", "offloaded", "quantized")


class _FiniteLogits(LogitsProcessor):
    """Refuses to choose a token from logits that are not finite: argmax would give some token, padding mostly."""

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id

    def __call__(
        self, input_ids: Int[torch.Tensor, "row token"], scores: Float[torch.Tensor, "row vocab"]
    ) -> Float[torch.Tensor, "row vocab"]:
        if len(scores) != len(input_ids):
            raise PromptError(
                f"generate(logits_processor=): it gave {len(scores)} rows for {len(input_ids)} prompts. Return the "
                "scores in the shape they came in."
            )
        # Minus infinity is how transformers forbids a token; a row of nothing else has no token left.
        if bool(torch.isnan(scores).any()) or not bool(torch.isfinite(scores.amax(-1)).all()):
            raise ModelError(
                f"generate: the logits of {self.model_id} are NaN or infinite at token {input_ids.shape[1]}. Check the "
                "weights and edits, or use a wider dtype (float32 or bfloat16 instead of float16)."
            )
        return scores


def _left_padded(prompts: Prompts, device: torch.device) -> dict[str, torch.Tensor]:
    batch = prompts.batch(range(len(prompts)), device)
    real = batch.real
    if bool(real.all()):
        return {**batch.inputs, "attention_mask": real.long()}
    if prompts.whole is not None:
        if not bool(real[:, -1].all()):
            raise PromptError(
                "generate: this processor output is padded on the right. Pad on the left, or use Prompts.from_chat."
            )
        return batch.inputs
    # Padding goes to the left: generation goes on from the last column, which must be a token.
    order = (~real).long().argsort(dim=1, descending=True, stable=True)
    return {
        "input_ids": batch.inputs["input_ids"].gather(1, order),
        "attention_mask": real.gather(1, order).long(),
    }


def _end_ids(model: Model, options: dict[str, Any]) -> set[int]:
    found = options.get("eos_token_id", getattr(model.model.generation_config, "eos_token_id", None))
    listed = [] if found is None else list(found) if is_iterable(found) else [found]
    if not all(map(is_whole, listed)):
        raise PromptError(f"generate(eos_token_id={shown(found)}): give a token id, a list of them, or None.")
    return {int(i) for i in listed}


def _processors(given: Any) -> list[Any]:
    listed = [] if given is None else list(given) if is_iterable(given) else [given]
    if not all(map(callable, listed)) or any(isinstance(each, type) for each in listed):
        raise PromptError(f"generate(logits_processor={shown(given)}): give a list of transformers' LogitsProcessor.")
    return listed


def _until_end(ids: torch.Tensor, ends: set[int]) -> list[np.ndarray]:
    rows = []
    for row in ids.cpu().numpy():
        stop = next((i + 1 for i, token in enumerate(row.tolist()) if token in ends), len(row))
        rows.append(row[:stop].astype(np.int64))
    return rows


def extended(prompts: Prompts, new: Sequence[np.ndarray], model: Model) -> Prompts:
    """Return the prompts with more tokens behind them, ids per prompt, whose role is ``generated``."""
    vocabulary = Vocabulary.of(model)
    role = ROLE_INDEX["generated"]
    return replace(
        prompts,
        ids=tuple(np.concatenate([old, more]) for old, more in zip(prompts.ids, new, strict=True)),
        roles=tuple(
            np.concatenate([old, np.full(len(more), role, np.int8)])
            for old, more in zip(prompts.roles, new, strict=True)
        ),
        tokens=tuple(old + vocabulary.label(more)[1] for old, more in zip(prompts.tokens, new, strict=True)),
        extras=tuple(_longer(old, len(more)) for old, more in zip(prompts.extras, new, strict=True)),
        grids=tuple(_longer_grid(old, len(more)) for old, more in zip(prompts.grids, new, strict=True)),
        whole=None if prompts.whole is None else _longer_whole(prompts, new),
    )


def _longer(extra: dict[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    return {name: _over_tokens(name, tensor, count) for name, tensor in extra.items()}


def _over_tokens(name: str, tensor: torch.Tensor, count: int) -> torch.Tensor:
    """Go on with ``count`` new tokens; they see the images that the last one saw."""
    if name in PER_TOKEN_AND_IMAGE:
        return along_tokens(tensor, tensor.shape[1] + count, like_last=True)
    return torch.nn.functional.pad(tensor, (0, count)) if name in PER_TOKEN else tensor


def _longer_grid(grid: Any, count: int) -> Any:
    if grid is None:
        return None
    names = ("row", "col", "tile", "image", "box")
    parts = {n: np.asarray(getattr(grid, n)) for n in names}
    return replace(
        grid, **{n: np.concatenate([a, np.full((count, *a.shape[1:]), np.nan, a.dtype)]) for n, a in parts.items()}
    )


def _longer_whole(prompts: Prompts, new: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    assert prompts.whole is not None
    count = max(len(more) for more in new)
    whole = {name: _over_tokens(name, tensor, count) for name, tensor in prompts.whole.items()}
    ids = [np.pad(more, (0, count - len(more)), constant_values=prompts.pad_id) for more in new]
    mask = [np.pad(np.ones(len(more), np.int64), (0, count - len(more))) for more in new]
    old = whole.get("attention_mask", torch.ones_like(whole["input_ids"]))
    whole["input_ids"] = torch.cat([whole["input_ids"], torch.from_numpy(np.stack(ids))], dim=1)
    whole["attention_mask"] = torch.cat([old, torch.from_numpy(np.stack(mask)).to(old.dtype)], dim=1)
    return whole
