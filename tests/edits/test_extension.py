"""Edits written outside the package are as good as its own: run, sweep, generate, applied, JSON, text, effect guard."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope.edits import AttentionEdit, EditedCall, EditedStream, ResidualEdit, dumps, loads, parse
from sinkscope.edits.base import EDITS, Edit
from sinkscope.errors import EditError, EditHasNoEffect
from sinkscope.models.handle import load_model
from sinkscope.testing import tiny
from tests.edits.dense import Reference, assert_close, dense_hidden, edited_hidden, model_and_prompts


@dataclass(frozen=True, repr=False)
class SharpenRows(AttentionEdit):
    """Raise the weights to a power and renormalise."""

    power: float

    def __post_init__(self) -> None:
        self._number("power", low=0.0)
        super().__post_init__()

    @property
    def identity(self) -> bool:
        return self.power == 1.0

    def change_attention(self, call: EditedCall) -> None:
        def sharpen(weights, tile):
            new = weights**self.power
            return new * weights.sum(-1, keepdim=True) / new.sum(-1, keepdim=True).clamp(min=1e-38)

        call.change_weights(sharpen)


@dataclass(frozen=True, repr=False)
class FlipTokens(ResidualEdit):
    """Change the sign of the residual stream at some tokens."""

    def change_residual(self, hidden, stream: EditedStream):
        return torch.where(stream.keys()[..., None], -hidden, hidden)


@dataclass
class Largest:
    """What ClipLoud remembers of the prompt."""

    norm: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class ClipLoud(ResidualEdit):
    """Scale tokens down whose norm exceeds a multiple of the prompt's median norm; new tokens go by the prompt's."""

    conditional: ClassVar[bool] = True
    keys: Any = field(default="all", kw_only=True)
    times: float = field(default=1.2, kw_only=True)

    def change_residual(self, hidden, stream: EditedStream):
        norm, known = hidden.norm(dim=-1), stream.state(Largest).norm
        if stream.offset == 0:
            shown = norm.masked_fill(~stream.prompt(), torch.nan)
            known[stream.site] = self.times * shown.nanmedian(-1, keepdim=True).values
        limit = known[stream.site]
        loud = stream.keys() & (norm > limit)
        stream.fire(int(loud.sum()))
        return torch.where(loud[..., None], hidden * (limit / norm)[..., None], hidden)


@dataclass(frozen=True, repr=False)
class DampBusyHeads(AttentionEdit):
    """Halve the output of heads that give some key more than a share of their attention, in the rows selected."""

    conditional: ClassVar[bool] = True
    share: float = 0.5

    def change_attention(self, call: EditedCall) -> None:
        stats = call.statistics("key_sum", "key_viewers")
        mass = stats["key_sum"] / stats["key_viewers"].clamp(min=1)[:, None]
        busy = (mass > self.share).any(-1)
        if bool(busy.any()):
            call.fire(int(busy.sum()))
            call.change_output(lambda out: out * (1 - 0.5 * busy[:, None, :, None].to(out.dtype)))


@dataclass(frozen=True, repr=False)
class SquareWeights(AttentionEdit):
    """Weights in proportion to the squared logit: a normaliser of whole rows."""

    def change_attention(self, call: EditedCall) -> None:
        call.normalise(squares)


def squares(logits, tile):
    new = torch.where(logits > -1e29, logits, torch.zeros(())).square()
    return new / new.sum(-1, keepdim=True).clamp(min=1e-38)


@dataclass(frozen=True, repr=False)
class GateRows(AttentionEdit):
    """A gate of its own for each row and head: here 1 / (1 + row + head)."""

    def change_attention(self, call: EditedCall) -> None:
        rows = torch.arange(call.call.query.shape[2]) + call.call.mask.q_offset
        gate = 1 / (1.0 + rows[:, None] + torch.arange(call.head_count))
        call.change_output(lambda out: out * gate[None, :, :, None].to(out.dtype))


@dataclass(frozen=True, repr=False)
class Everything(AttentionEdit):
    """Each remaining primitive once."""

    keys: Any = "first"

    def change_attention(self, call: EditedCall) -> None:
        dim = call.call.value.shape[-1]
        call.add_log_bias(call.keys(), -0.5)
        call.scale_weights(call.keys(), 0.5, keep_self=True)
        call.change_values(call.keys(), 2.0)
        call.add_null_key(0.3)
        call.add_key(torch.zeros(call.head_count, dim), torch.ones(call.head_count, dim))


@dataclass(frozen=True, repr=False)
class LeakBack(Edit):
    """An edit of both kinds: what a token's stream was before block 1 damps its own weight after it."""

    amount: float = 0.1

    def layers_in(self, tower):
        return (1,)

    def sites_in(self, tower):
        return ("0.post",)

    def watch_residual(self, hidden, stream: EditedStream) -> None:
        stream.state(Largest).norm[stream.site] = hidden.norm(dim=-1)

    def change_attention(self, call: EditedCall) -> None:
        norm = call.state(Largest).norm["0.post"]
        call.change_output(lambda out: out * torch.exp(-self.amount * norm)[:, :, None, None])


OWN = [
    SharpenRows(2.0, layers=[0, 2], heads=[1, 3]), FlipTokens("0.post", keys=[1]), ClipLoud("0.post", times=0.8),
    DampBusyHeads(0.3), SquareWeights(heads=[2]), GateRows(layers=1), Everything(layers=1), LeakBack(),
]  # fmt: skip
NAMES = [type(edit).__name__ for edit in OWN]


def power(batch, layers, heads):
    def weights(row):
        p = row.softmax()
        if row.layer in layers:
            new = p**2
            new = new * p.sum(-1, keepdim=True) / new.sum(-1, keepdim=True).clamp(min=1e-300)
            real = batch.real[:, None, :, None]
            p[:, heads] = torch.where(real, new, p)[:, heads]
        return p

    return Reference(weights)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bert", "vit"])
def test_weights_equal_the_dense_reference(name):
    model, prompts = model_and_prompts(name)
    batch = prompts.batch(range(2))
    expected = dense_hidden(model, batch, power(batch, [0, 2], [1, 3]))
    assert_close(edited_hidden(model, prompts, [OWN[0]]), expected, batch)
    assert float((dense_hidden(model, batch, Reference()) - expected)[batch.real].abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bert", "vit", "gpt_oss"])
def test_a_normaliser_of_rows_equals_the_dense_reference(name):
    model, prompts = model_and_prompts(name)
    batch = prompts.batch(range(2))

    def weights(row):
        p = row.softmax()
        new = row.logits.square().masked_fill(~row.visible, 0)
        p[:, 2] = (new / new.sum(-1, keepdim=True).clamp(min=1e-300))[:, 2]
        return p

    assert_close(
        edited_hidden(model, prompts, [SquareWeights(heads=[2])]), dense_hidden(model, batch, Reference(weights)), batch
    )


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_gate_of_each_row_and_head_equals_the_dense_reference(name):
    model, prompts = model_and_prompts(name)
    batch = prompts.batch(range(2))

    def output(layer, out):
        gate = 1 / (1.0 + torch.arange(out.shape[2]) + torch.arange(4)[:, None]).double()
        return out * gate[None, ..., None] if layer == 1 else out

    expected = dense_hidden(model, batch, Reference(output=output))
    assert_close(edited_hidden(model, prompts, [GateRows(layers=1)]), expected, batch)


@pytest.mark.parametrize("edit", OWN, ids=NAMES)
def test_run_sweep_and_applied_agree(edit):
    model, prompts = model_and_prompts("llama")
    probes = [sk.Logits(), sk.RowSum()]
    plain = sk.run(model, prompts, probes, batch_size=2)
    reading = sk.run(model, prompts, probes, [edit], batch_size=2)
    assert float(np.abs(reading.logits - plain.logits).max()) > 1e-4
    swept = sk.sweep(model, prompts, {"own": [edit], "none": []}, probes, executor="serial", batch_size=2)
    np.testing.assert_allclose(swept.logits.sel(edit="own"), reading.logits, atol=1e-5)
    np.testing.assert_allclose(swept.logits.sel(edit="none"), plain.logits, atol=1e-5)
    if edit.conditional:
        assert "acted on" in reading.attrs["edit_notes"]
        assert "acted on 0 rows" not in reading.attrs["edit_notes"]
    alone = prompts.subset([0])
    with torch.no_grad(), sk.applied(model, [edit], alone) as tallies:
        logits = model.model(input_ids=torch.tensor(alone.ids[0])[None], use_cache=False).logits
    np.testing.assert_allclose(logits[0, -1], reading.logits[0, 0], atol=1e-4)
    assert tallies[0].touched > 0


@pytest.mark.parametrize("edit", OWN, ids=NAMES)
def test_generation_runs_under_it_and_padding_changes_nothing(edit):
    model, prompts = model_and_prompts("llama", lengths=(6, 9))
    together = sk.generate(model, prompts, [edit], max_new_tokens=4)
    for row in range(2):
        alone = sk.generate(model, prompts.subset([row]), [edit], max_new_tokens=4)
        np.testing.assert_array_equal(together.ids[row], alone.ids[0])


def test_what_is_remembered_ends_with_the_prompt():
    model, prompts = model_and_prompts("llama", lengths=(6, 9))
    for row in (0, 1, 0):
        part = prompts.subset([row])
        again = sk.generate(model, part, [ClipLoud("1.post")], max_new_tokens=3)
        np.testing.assert_array_equal(
            again.ids[0], sk.generate(model, part, [ClipLoud("1.post")], max_new_tokens=3).ids[0]
        )


@pytest.mark.parametrize("edit", OWN, ids=NAMES)
def test_json_and_text(edit):
    assert loads(dumps([edit])) == [edit]
    assert hash(loads(dumps([edit]))[0]) == hash(edit)
    assert EDITS[type(edit).__name__] is type(edit)


def test_text_form():
    assert parse("sharpen-rows power=2 layers=0,2 heads=1,3; clip-loud site=1.post times=1.5") == [
        OWN[0], ClipLoud("1.post", times=1.5),
    ]  # fmt: skip
    assert repr(OWN[0]) == "SharpenRows(2.0, layers=[0, 2], heads=[1, 3])"


def test_the_guard_judges_it():
    model, prompts = model_and_prompts("llama")
    with pytest.raises(EditError, match=r"SharpenRows\(layers=9\): this model has layers 0\.\.2"):
        sk.run(model, prompts, edits=[SharpenRows(2.0, layers=9)])
    with pytest.raises(EditError, match=r"FlipTokens\(site='7\.post'\): there is no such residual site"):
        sk.run(model, prompts, edits=[FlipTokens("7.post")])
    with pytest.raises(EditHasNoEffect, match=r"FlipTokens\('0\.post', keys='image'\) changes nothing in .*: none of"):
        sk.run(model, prompts, [sk.Logits()], [FlipTokens("0.post", keys="image")])
    with pytest.raises(EditHasNoEffect, match=r"FlipTokens\('0\.post', keys='image'\) changes nothing"):
        sk.generate(model, prompts, [FlipTokens("0.post", keys="image")], max_new_tokens=2)
    identity = sk.run(model, prompts, [sk.Logits()], [SharpenRows(1.0)])
    np.testing.assert_array_equal(identity.logits, sk.run(model, prompts, [sk.Logits()]).logits)
    quiet = sk.run(model, prompts, [sk.Logits()], [ClipLoud("1.post", times=1e6), DampBusyHeads(1.1)])
    np.testing.assert_allclose(quiet.logits, identity.logits, atol=1e-5)
    assert quiet.attrs["edit_notes"].count("acted on 0 rows") == 2


def test_heads_that_write_nothing_are_found():
    network = tiny("llama")
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight[:, 8:16] = 0
    model = load_model(network)
    prompts = sk.Prompts.from_ids([[1, 5, 6, 7], [1, 9, 12]], model)
    for edit in (SharpenRows(2.0, heads=[1]), SquareWeights(heads=[1]), GateRows(heads=[1]), Everything(heads=[1])):
        with pytest.raises(EditHasNoEffect, match="bit for bit"):
            sk.run(model, prompts, [sk.Logits()], [edit])


def test_two_edits_cannot_share_a_name():
    with pytest.raises(EditError, match=r"edit 'MaskKeys': sinkscope\.edits\.keys has an edit of this name already"):
        type("MaskKeys", (AttentionEdit,), {"__module__": "elsewhere"})


@dataclass(frozen=True, repr=False)
class Careless(AttentionEdit):
    """Give something else than what was asked for."""

    part: str

    def change_attention(self, call: EditedCall) -> None:
        if self.part == "weights":
            call.change_weights(lambda weights, tile: weights.mean(-1, keepdim=True))
        else:
            call.change_output(lambda out: out.mean(-1, keepdim=True))


@dataclass(frozen=True, repr=False)
class CarelessStream(ResidualEdit):
    """Give the stream of one dimension, which would be spread over all."""

    def change_residual(self, hidden, stream: EditedStream):
        return hidden[..., :1]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            Careless("weights"),
            r"function of weights .*lambda.* gave a tensor of shape \(\d+, \d+, 1\); what it was given",
        ),
        (
            Careless("output"),
            r"function of outputs .*lambda.* gave a tensor of shape \(\d+, \d+, \d+, 1\); what it was",
        ),
        (
            CarelessStream("embed"),
            r"change_residual of CarelessStream\('embed'\) gave a tensor of shape \(\d+, \d+, 1\)",
        ),
    ],
)
def test_what_an_edit_makes_is_never_spread_over_the_rest(edit, said):
    model, prompts = model_and_prompts("llama")
    with pytest.raises(EditError, match=said):
        sk.run(model, prompts, [sk.KeyMass()], [edit])
