"""The ledger of architectures: a fixed slice of it, what makes configurations small, and that it can find a fault."""

import re
from collections import Counter

import pytest
import torch

from parity.ledger import runner, shrink, table, trial
from parity.ledger.entries import entries
from parity.ledger.reference import effective, hidden
from sinkscope.attention import seam

SLICE = 3
"""Percent of the entries that every run of the tests tries; ``make parity SHARE=33`` tries a third, in CI."""


def told():
    """How each entry ends, as the committed page says."""
    page = table.PAGE.read_text(encoding="utf-8")
    listed = page.split("<!-- ledger -->")[1]
    ends = dict(re.findall(r"^\| `([\w.-]+)` \| \w+ \| (exact|refused|wrong|crash)", listed, flags=re.MULTILINE))
    unbuilt = re.findall(r"^\| `([\w.-]+)` \| ", listed.split("### Not built")[1], flags=re.MULTILINE)
    return ends | dict.fromkeys(unbuilt, "not built")


def tried(tmp_path, names):
    return runner.run([entries()[name] for name in names], tmp_path, tell=lambda _: None)


def test_a_fixed_slice_ends_as_the_page_says(tmp_path):
    chosen = [name for name, entry in entries().items() if entry.share < SLICE]
    assert 10 <= len(chosen) <= 30
    found = {row["model_type"]: row["end"] for row in tried(tmp_path, chosen)}
    said = told()
    assert found == {name: said[name] for name in chosen}
    assert not {"wrong", "crash"} & set(found.values())


def test_the_page_holds_every_entry_and_its_counts_are_those_of_its_rows():
    said = told()
    assert set(said) == set(entries())
    counted = Counter(said.values())
    page = table.PAGE.read_text(encoding="utf-8")
    assert f"{len(said)} model types, of which {len(said) - counted['not built']} run by themselves here" in page
    for end in ("exact", "refused", "wrong"):
        assert f"{counted[end]} {end}" in page


def test_rows_that_were_tried_again_are_written_beside_the_others(tmp_path):
    page = tmp_path / "page.md"
    before = table.PAGE.read_text(encoding="utf-8")
    page.write_text(before, encoding="utf-8")
    table.merge([], page)
    assert page.read_text(encoding="utf-8") == before
    row = {"model_type": "llama", "cls": "LlamaForCausalLM", "group": "text", "end": "refused", "note": "tried again"}
    table.merge([row], page)
    after = page.read_text(encoding="utf-8")
    assert "| `llama` | LlamaForCausalLM | refused |  |  | tried again |" in after.splitlines()
    changed = set(after.splitlines()) ^ set(before.splitlines())
    assert sorted(line[:9] for line in changed) == ["620 model", "620 model", "| `llama`", "| `llama`"]


def test_a_planted_fault_is_found(tmp_path, monkeypatch):
    """The control: an instrument that is off by one part in a thousand is called wrong, one that raises a crash."""
    right = seam.Call

    def scaled(*args, scale, **kwargs):
        return right(*args, scale=1.001 * scale, **kwargs)

    monkeypatch.setattr(seam, "Call", scaled)
    row = tried(tmp_path / "wrong", ["llama"])[0]
    assert row["end"] == "wrong"
    assert {"text maps", "text logits", "text edit maps"} <= set(row["note"].split(", "))
    monkeypatch.setattr(seam, "attend", lambda *_: {}["nothing"])
    assert tried(tmp_path / "crash", ["llama"])[0]["end"] == "crash"


def test_a_process_that_dies_or_hangs_ends_one_entry_alone(tmp_path, monkeypatch):
    def dies(entry):
        if entry.model_type == "bert":
            runner.os._exit(3)
        while entry.model_type == "gpt2":
            pass
        return {"end": "exact", "note": ""}

    monkeypatch.setattr(runner, "attempt", dies)
    monkeypatch.setattr(runner, "LIMIT", 1)
    rows = tried(tmp_path, ["bert", "gpt2", "llama"])
    assert [row["end"] for row in rows] == ["crash", "crash", "exact"]
    assert rows[1]["note"] == "over 1 seconds"
    monkeypatch.setattr(runner, "attempt", lambda _: pytest.fail("what was tried by the same code is not tried again"))
    assert tried(tmp_path, ["bert", "gpt2", "llama"]) == rows


@pytest.mark.parametrize(
    ("model_type", "kinds"),
    [("qwen3_next", {"linear_attention", "full_attention"}), ("gemma3_text", {"sliding_attention", "full_attention"})],
)
def test_every_kind_of_block_is_kept(model_type, kinds):
    config = shrink._shrunk(model_type)
    assert set(config.layer_types) == kinds
    assert len(config.layer_types) == config.num_hidden_layers <= shrink.BLOCKS


def test_one_entry_is_built_the_same_each_time():
    first, again = (trial.built(entries()["llama"])[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_a_hidden_key_stays_where_a_row_sees_nothing_else():
    mask = torch.zeros(1, 1, 3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), torch.finfo(torch.float32).min)
    found = hidden(mask, torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), 0)
    assert (found[0, 0, :, 0] < -1).tolist() == [False, True, True]


def test_weights_are_those_that_make_the_output():
    """Granite's returned weights sum to 1, and a sink then scales the rows."""
    weights = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = torch.randn(1, 1, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    output = (0.5 * weights @ value.repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(effective(weights, value, output), 0.5 * weights)
    torch.testing.assert_close(effective(weights, value, output + torch.rand_like(output)), weights)
