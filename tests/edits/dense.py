"""A second, slow implementation: float64, whole maps, the edit applied to the map. Shares no code with the package."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface

from sinkscope.engine.plan import Plan
from sinkscope.models.backends.base import Instruments
from sinkscope.models.handle import Model, load_model
from sinkscope.prompts import Batch, Prompts
from sinkscope.testing import pixels, text_ids, tiny

NAME = "dense_reference"


@dataclass
class Row:
    """What a reference edit of the weights gets: logits with -inf where hidden, and the learned sink's logit."""

    layer: int
    logits: torch.Tensor
    sink: torch.Tensor | None

    def softmax(self, logits: torch.Tensor | None = None, null: torch.Tensor | float | None = None) -> torch.Tensor:
        """Softmax over keys, learned sink and null key; only the keys are returned, dead rows are 0."""
        logits = self.logits if logits is None else logits
        columns = [logits]
        if self.sink is not None:
            columns.append(self.sink.expand(*logits.shape[:3], 1))
        if null is not None:
            columns.append(torch.as_tensor(null, dtype=logits.dtype).expand(*logits.shape[:3], 1))
        weights = torch.softmax(torch.cat(columns, -1), -1)[..., : logits.shape[-1]]
        return weights.nan_to_num(0.0)

    @property
    def visible(self) -> torch.Tensor:
        return self.logits > -1e300


@dataclass
class Reference:
    """Functions of one edited layer: weights from a row, values, output of the heads."""

    weights: Callable[[Row], torch.Tensor] = lambda row: row.softmax()
    values: Callable[[int, torch.Tensor], torch.Tensor] = lambda _, value: value
    output: Callable[[int, torch.Tensor], torch.Tensor] = lambda _, out: out
    modules: list[int] = field(default_factory=list)
    seen: list[torch.Tensor] = field(default_factory=list)


_current = Reference()


def attention(module, query, key, value, attention_mask=None, scaling=None, **kwargs):
    ref = _current
    if id(module) not in ref.modules:
        ref.modules.append(id(module))
    layer = ref.modules.index(id(module))
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    logits = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    if kwargs.get("softcap"):
        logits = torch.tanh(logits / kwargs["softcap"]) * kwargs["softcap"]
    if attention_mask is not None:
        logits = logits.masked_fill(attention_mask[..., : key.shape[2]] < -1e4, -torch.inf)
    sink = kwargs.get("s_aux")
    sink = None if sink is None else sink.to(logits.dtype).view(1, -1, 1, 1)
    weights = ref.weights(Row(layer, logits, sink))
    ref.seen.append(weights)
    out = ref.output(layer, weights @ ref.values(layer, value))
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)


def dense_hidden(model: Model, batch: Batch, reference: Reference) -> torch.Tensor:
    """Final hidden state (float64) of a copy of the model under the reference."""
    global _current
    twin = copy.deepcopy(model.model).double()
    twin.set_attn_implementation(NAME)
    if model.config.model_type == "gpt_oss":
        twin.set_experts_implementation("eager")  # the grouped kernel takes no float64
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch.inputs.items()}
    _current = reference
    reference.modules.clear()
    reference.seen.clear()
    try:
        with torch.no_grad():
            base = twin.base_model
            out = base(**inputs) if "pixel_values" in inputs else base(**inputs, use_cache=False)
    finally:
        _current = Reference()
    return out.last_hidden_state


def plan_of(model: Model, prompts: Prompts, edits, **kwargs) -> tuple[Plan, Batch]:
    batch = prompts.batch(range(len(prompts)))
    return Plan(edits, model.backend.towers[model.backend.default_tower], prompts, batch, **kwargs), batch


def edited_hidden(model: Model, prompts: Prompts, edits, **kwargs) -> torch.Tensor:
    """Final hidden state under the package's edits."""
    plan, batch = plan_of(model, prompts, edits, **kwargs)
    tower = model.backend.towers[model.backend.default_tower]
    instruments = Instruments(edits=plan.call_edits if plan.on_attention else None, residual=plan.residual)
    with torch.no_grad():
        return model.backend.forward(batch.inputs, tower, instruments).hidden


def model_and_prompts(name: str, lengths=(9, 12)) -> tuple[Model, Prompts]:
    """A tiny model and padded prompts for it (images for a vision encoder)."""
    model = load_model(tiny(name))
    if model.kind == "vision":
        return model, Prompts.from_images(list(pixels(model.model, len(lengths))), model)
    ids = text_ids(model.model, len(lengths), max(lengths))
    return model, Prompts.from_ids([row[:n].tolist() for row, n in zip(ids, lengths, strict=True)], model)


def assert_close(found: torch.Tensor, expected: torch.Tensor, batch: Batch, tolerance: float = 1e-5) -> None:
    real = batch.real
    found, expected = found[real].double(), expected[real]
    scale = float(expected.abs().max())
    worst = float((found - expected).abs().max()) / scale
    assert worst < tolerance, f"differs by {worst:.2e} of the scale {scale:.3g}"
