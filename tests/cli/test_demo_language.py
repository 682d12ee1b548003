"""The story of the pretrained language model says what its readings hold, and what was left out."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sinkscope.cli import demo, demo_language
from sinkscope.models.handle import load_model
from sinkscope.models.sources import SOURCES, ModelSource
from sinkscope.tasks import corpora


def traced(value: list[float], other: list[float]) -> xr.Dataset:
    """A dimension of one prompt through the blocks: at the first token, and at the token of position 3."""
    layers = len(value)
    return xr.Dataset(
        {
            "value": ("layer", value),
            "median": ("layer", [1.0] * layers),
            "others": (("prompt", "layer", "rank"), np.array(other).reshape(1, layers, 1)),
            "position": (("prompt", "layer", "rank"), np.full((1, layers, 1), 3.0)),
        },
        coords={"layer": range(layers)},
        attrs={"dim": 7},
    )


def test_stages_are_the_runs_of_blocks_at_half_of_their_peak() -> None:
    found = demo_language.stages(
        traced([5, 190, 700, 690, 110, 20, 20000, 21000, 8000, 200], [1, 9, 400, 500, 9, 9, 90, 90, 9, 9])
    )
    assert [(s.dim, s.first, s.last, s.peak, s.tokens) for s in found] == [
        (7, 2, 3, 700.0, [(0, 3)]),
        (7, 6, 7, 21000.0, []),
    ]


def test_nothing_massive_is_no_stage() -> None:
    found = demo_language.stages(traced([5, 50, np.nan], [1, 1, 1]))
    assert found == []
    assert "No dimension passes 100 times the median" in demo_language.tell_stages(found, xr.Dataset())


def test_a_bound_is_rounded_up() -> None:
    assert [demo_language.at_most(value) for value in (0.00135, 0.002, 0.1146)] == ["0.002", "0.002", "0.115"]


def test_every_text_is_long_enough() -> None:
    texts = corpora.texts()
    assert len(texts) == 24
    assert min(len(text) for text in texts) > 100
    if SOURCES["smollm2-135m"].here():
        tokenizer = load_model("smollm2-135m").tokenizer
        assert min(len(tokenizer(text).input_ids) for text in texts) >= 30


def test_without_the_model_the_demo_says_what_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    monkeypatch.setattr(ModelSource, "here", lambda source: False)
    for name in ("pretrained", "encoder", "language_model"):
        monkeypatch.setattr(demo, name, lambda output, name=name: told.append(name))
    monkeypatch.setattr(demo, "planted", lambda output: True)
    assert demo.main(tmp_path)
    assert told == ["encoder", "language_model"]
    said = " ".join(capsys.readouterr().out.split())
    assert "* Left out: SmolLM2-135M-Instruct, a language model." in said
    assert SOURCES["smollm2-135m"].install() in said
