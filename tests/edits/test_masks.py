"""The mask edited: keys opened to queries before them (a prefix LM, an image that reads the question), windows."""

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope.errors import EditError, EditHasNoEffect
from sinkscope.roles import ROLE_INDEX
from sinkscope.testing import pixels, tiny
from tests.models import test_variants_parity as llama


def prompts_of(model, lengths=(7, 11)):
    ids = [torch.randint(0, 29, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    return ids, sk.Prompts.from_ids([row.tolist() for row in ids], model)


def test_opened_first_keys_make_the_mask_of_a_prefix_model():
    network = llama.network("key")
    model, spec = sk.load_model(network), {**llama.VARIANTS["key"], "prefix": 3}
    ids, prompts = prompts_of(model)
    probes = [sk.Logits(positions="all"), sk.AttentionMap([0, 1], range(4))]
    arms = {"open": [sk.OpenKeys(range(3))], "one layer": [sk.OpenKeys(range(3), layers=[1])]}
    swept = sk.sweep(model, prompts, arms, probes, batch_size=2)
    found = sk.run(model, prompts, probes, edits=arms["open"], batch_size=2)
    for i, row in enumerate(ids):
        n = len(row)
        with torch.no_grad():
            logits, maps = llama.reference(network, row, spec)
            plain = llama.reference(network, row, llama.VARIANTS["key"])[1]
        for ds in (found, swept.sel(edit="open")):
            np.testing.assert_allclose(ds["logits"].isel(prompt=i, position=slice(n)).values, logits, atol=5e-5)
            np.testing.assert_allclose(ds["attention"].isel(prompt=i, query=slice(n), key=slice(n)).values, maps,
                                       atol=1e-5)  # fmt: skip
        one = swept.sel(edit="one layer")["attention"].isel(prompt=i, query=slice(n), key=slice(n)).values
        np.testing.assert_allclose(one[0], plain[0], atol=1e-5)
        assert one[1][:, 0, 1:3].min() > 0
        assert one[1][:, 0, 3:].max() == 0


def test_image_tokens_read_the_question_and_nobody_else_looks_ahead():
    model = sk.load_model(tiny("llava"))
    prompts = sk.Prompts.from_inputs(_llava_inputs(model), model)
    image, text = (np.asarray(prompts.roles[0]) == ROLE_INDEX[name] for name in ("image", "text"))
    edit = sk.OpenKeys("text", queries="image")
    probe = sk.AttentionMap([0, 1], [0, 1])
    weights = sk.run(model, prompts, [probe], edits=[edit])["attention"].isel(prompt=0).values
    ahead = np.triu(np.ones(weights.shape[-2:], bool), 1)
    opened = ahead & image[:, None] & text[None]
    assert opened.any()
    assert weights[..., opened].min() > 0
    assert weights[..., ahead & ~opened].max() == 0
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    plain = sk.run(model, prompts, [probe])["attention"].isel(prompt=0).values
    assert plain[..., ahead].max() == 0
    np.testing.assert_allclose(weights[0][:, ~image], plain[0][:, ~image], atol=1e-6)


def _llava_inputs(model):
    network = model.model
    token = network.config.image_token_id
    patches = (network.config.vision_config.image_size // network.config.vision_config.patch_size) ** 2
    ids = torch.tensor([[1, 5, *[token] * patches, 7, 8, 9]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels(network, 1)}


def test_what_is_written_after_it_goes_on_from_the_opened_prompt():
    model = sk.load_model(llama.network("key"))
    _, prompts = prompts_of(model, (7, 9))
    edit = sk.OpenKeys(range(7))  # positions of the prompt: what is written later is opened to nobody
    longer, first = sk.generate(model, prompts, [edit], max_new_tokens=2, pad_token_id=29), []
    for length in (0, 1):
        part = [ids.tolist()[: n + length] for ids, n in zip(longer.ids, prompts.lengths, strict=True)]
        at = sk.run(model, sk.Prompts.from_ids(part, model), [sk.Logits()], [edit])
        first.append(at["logits"].isel(position=-1).argmax("vocab").values.tolist())
    written = [ids.tolist()[n:] for ids, n in zip(longer.ids, prompts.lengths, strict=True)]
    assert written == list(map(list, zip(*first, strict=True)))


def test_what_cannot_be_opened_is_refused():
    model = sk.load_model(tiny("llama"))
    _, prompts = prompts_of(model)
    with pytest.raises(EditError, match=r"heads.*share one mask"):
        sk.OpenKeys("first", heads=[0])
    for nothing in (sk.OpenKeys("first"), sk.OpenKeys("last", queries="last")):
        with pytest.raises(EditHasNoEffect):
            sk.run(model, prompts, [sk.KeyMass()], edits=[nothing])
    seeing = sk.load_model(tiny("bert"))
    ids = sk.Prompts.from_ids([[1, 2, 3]], seeing)
    with pytest.raises(EditHasNoEffect):
        sk.run(seeing, ids, [sk.KeyMass()], edits=[sk.OpenKeys("last")])
    out = sk.run(model, prompts, [sk.KeyMass()], edits=[sk.OpenKeys("last")], batch_size=2)
    assert np.isfinite(out["key_mass"].isel(prompt=1)).all()


@pytest.mark.parametrize(("window", "keep"), [(3, None), (3, [0, 1]), (1, "first"), (4, "last")])
@pytest.mark.parametrize("queries", [None, [5, 6]])
def test_a_window_and_what_is_kept_beside_it_are_those_of_the_formula(window, keep, queries):
    network = llama.network("alibi")
    model, spec = sk.load_model(network), llama.VARIANTS["alibi"]
    ids, prompts = prompts_of(model)
    edit = sk.LimitWindow(window, keep=keep, queries=queries, layers=[1])
    found = sk.run(model, prompts, [sk.AttentionMap([0, 1], range(4))], [edit], batch_size=2)["attention"]
    for i, row in enumerate(ids):
        n = len(row)
        with torch.no_grad():
            plain = llama.reference(network, row, spec)[1]
        rows, columns = np.arange(n)[:, None], np.arange(n)[None]
        kept = np.isin(columns, [n - 1] if keep == "last" else [0] if keep == "first" else keep or [])
        seen = (rows - columns < window) | kept
        if queries:
            seen = seen | ~np.isin(rows, queries)
        wanted = np.asarray(plain[1]) * seen
        wanted = wanted / wanted.sum(-1, keepdims=True)
        own = found.isel(prompt=i, query=slice(n), key=slice(n)).values
        np.testing.assert_allclose(own[0], plain[0], atol=1e-5)
        np.testing.assert_allclose(own[1], wanted, atol=1e-5)


def test_an_encoder_sees_a_window_on_both_sides():
    model = sk.load_model(tiny("bert"))
    prompts = sk.Prompts.from_ids([[1, 2, 3, 4, 5, 6]], model)
    seen = sk.run(model, prompts, [sk.AttentionMap([0], [0])], [sk.LimitWindow(2)])["attention"].values[0, 0, 0] > 0
    np.testing.assert_array_equal(seen, np.abs(np.subtract.outer(np.arange(6), np.arange(6))) < 2)


def test_a_window_holds_while_writing():
    model = sk.load_model(llama.network("key"))
    _, prompts = prompts_of(model, (7, 9))
    edit = sk.LimitWindow(3, keep="first")
    written = sk.generate(model, prompts, [edit], max_new_tokens=4, pad_token_id=29)
    at_once = sk.run(model, written, [sk.Logits(positions="all")], [edit], batch_size=2).logits
    for row, start in enumerate(prompts.lengths):
        ids = written.ids[row]
        # What each step chose, with its cache, is what one pass over the whole chooses.
        np.testing.assert_array_equal(ids[start:], at_once.values[row, start - 1 : len(ids) - 1].argmax(-1))


def test_windows_that_cannot_be_or_change_nothing():
    model = sk.load_model(tiny("llama"))
    _, prompts = prompts_of(model)
    for wrong in (0, True, 2.5):
        with pytest.raises(EditError, match=r"window must be a whole number of at least 1"):
            sk.LimitWindow(wrong)
    with pytest.raises(EditError, match=r"heads.*share one mask"):
        sk.LimitWindow(4, heads=[0])
    with pytest.raises(EditHasNoEffect):
        sk.run(model, prompts, [sk.KeyMass()], [sk.LimitWindow(11)])
    both = sk.load_model(tiny("t5"))
    pairs = sk.Prompts.from_pairs([([1, 2, 3], [1, 4])], both)
    with pytest.raises(EditError, match=r"in cross-attention no key is near its query"):
        sk.run(both, pairs, [], [sk.LimitWindow(2)], tower="cross")
