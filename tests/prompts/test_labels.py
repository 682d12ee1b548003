"""Labels of the user's own: from words, positions and images, as selections and as groups of a share."""

import numpy as np
import pytest
import xarray as xr

import sinkscope as sk
from sinkscope.errors import EditError, ProbeError, PromptError
from sinkscope.prompts.labels import Image, Words

TEXTS = ["The ferry left the harbour at six.", "The harbour was calm."]


@pytest.fixture(scope="module")
def case():
    model = sk.load_model("zoo:lm-python")
    return model, sk.Prompts.from_texts(TEXTS, model)


def marked(prompts, labels, name):
    return [
        "".join(np.array(tokens)[labels[row, : len(tokens)].values == name])
        for row, tokens in enumerate(prompts.tokens)
    ]


def test_words_of_several_tokens_are_found_whole(case):
    _, prompts = case
    labels = sk.label_tokens(prompts, {"stop": Words("the", case=False), "place": Words("harbour")})
    assert labels.dims == ("prompt", "key")
    assert [text.split() for text in marked(prompts, labels, "stop")] == [["The", "the"], ["The"]]
    assert [text.split() for text in marked(prompts, labels, "place")] == [["harbour"], ["harbour"]]


def test_a_part_of_a_word_is_no_word(case):
    _, prompts = case
    labels = sk.label_tokens(prompts, {"part": Words("harb", "har", "fer")})
    assert not (labels == "part").any()


def test_shares_by_label_are_sums_of_key_mass(case):
    model, prompts = case
    labels = sk.label_tokens(prompts, {"sink": "first", "place": Words("harbour")})
    both = [sk.RoleShare("last"), sk.RoleShare("last", groups=labels), sk.KeyMass(queries="last")]
    found = sk.run(model, prompts, both, batch_size=2)
    assert list(found.group.values) == ["place", "sink"]
    assert found.group_share.dims == ("prompt", "layer", "head", "group")
    for name in ("sink", "place"):
        wanted = found.key_mass.where(labels == name).sum("key")
        np.testing.assert_allclose(found.group_share.sel(group=name), wanted, atol=1e-5)
    assert found.role_share.sizes["role"] > 2
    mapped = sk.run(model, prompts, [sk.RoleShare("last", groups={"sink": [0], "all": "all"})])
    np.testing.assert_allclose(mapped.group_share.sel(group="sink"), found.group_share.sel(group="sink"), atol=1e-5)
    np.testing.assert_allclose(mapped.group_share.sel(group="all"), 1, atol=1e-5)
    assert sk.schema.validate(found) is found


def test_a_label_selects_for_an_edit(case):
    model, prompts = case
    labels = sk.label_tokens(prompts, {"sink": "first"})
    by_label, by_name = (
        sk.run(model, prompts, [sk.Logits()], [sk.MaskKeys(keys)]).logits for keys in (labels == "sink", "first")
    )
    np.testing.assert_array_equal(by_label, by_name)


def test_images_are_told_apart():
    model = sk.load_model("zoo:vlm-shapes")
    picture = np.zeros((48, 48, 3), np.uint8)
    item = {"image": [picture, picture + 255], "text": "Where is the red circle?"}
    prompts = sk.Prompts.from_chat([item], model)
    labels = sk.label_tokens(prompts, {"demonstration": Image(0), "query": Image(1)})
    counts = [int((labels == name).sum()) for name in ("demonstration", "query")]
    assert counts[0] == counts[1] > 0
    with pytest.raises(PromptError, match=r"no prompt has an image 2\. Images count from 0"):
        sk.label_tokens(prompts, {"third": Image(2)})


def test_errors(case):
    _, prompts = case
    with pytest.raises(PromptError, match="no group is named"):
        sk.label_tokens(prompts, {})
    with pytest.raises(PromptError, match=r"token 0 of prompt 0 is in 'a' and in 'b'"):
        sk.label_tokens(prompts, {"a": "first", "b": "all"})
    with pytest.raises(PromptError, match="there is no role or selection 'nowhere'"):
        sk.label_tokens(prompts, {"a": "nowhere"})
    with pytest.raises(ProbeError, match="a DataArray here holds names, one per token; this one holds float64"):
        sk.RoleShare(groups=xr.DataArray(np.zeros((2, 3)), dims=("prompt", "key")))
    with pytest.raises(ProbeError, match="no group is named"):
        sk.RoleShare(groups=xr.DataArray(np.full((2, 3), ""), dims=("prompt", "key")))
    with pytest.raises(EditError, match="not booleans"):
        sk.MaskKeys(sk.label_tokens(prompts, {"a": "first"}))
