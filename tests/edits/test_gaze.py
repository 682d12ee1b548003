"""GIFT's amplified row: the sheet's vector, the row that a model then has, and decoding."""

import numpy as np
import pytest
import torch

import sinkscope as sk
from sinkscope.edits.gaze import amplified
from sinkscope.errors import EditError

ROWS = torch.tensor(
    [[0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], [0.1, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1], [0.6, 0.05, 0.05, 0, 0.1, 0.1, 0.1],
     [0.2, 0.1, 0, 0.2, 0.2, 0.2, 0.1]]
)  # fmt: skip
WANTED = [
    [0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
    [0.068384, 0.286311, 0.371771, 0.068384, 0.068384, 0.068384, 0.068384],
    [0.539795, 0.044983, 0.044983, 0, 0.140137, 0.140137, 0.089966],
    [0.1584, 0.110532, 0, 0.1584, 0.246734, 0.246734, 0.0792],
]


def test_the_vector_of_the_sheet():
    factor = torch.exp(torch.tensor([[0, 1 / 3, 1, 0, 0, 0, 0]]))
    image, question = torch.zeros(2, 1, 7, dtype=torch.bool)
    image[:, 1:4] = True
    question[:, 4:6] = True
    # Heads tie for the second place in both halves; the sheet takes {1, 3} and {2, 3}.
    found = amplified(ROWS[None], factor, image, question, 1.0)[0]
    np.testing.assert_allclose(found, WANTED, atol=2e-6)
    gain = float((found[3, 4] / found[3, 0]) / (ROWS[3, 4] / ROWS[3, 0]))
    assert gain == pytest.approx(1.557668, abs=1e-5)


@pytest.fixture(scope="module")
def case():
    model = sk.load_model("zoo:vlm-shapes")
    picture = np.zeros((48, 48, 3), np.uint8)
    picture[10:30, 10:30] = [255, 0, 0]
    items = [{"image": picture, "text": text} for text in ("What colour is the square?", "Where is it?")]
    return model, sk.Prompts.from_chat(items, model)


def test_the_last_row_alone_turns_to_where_the_gaze_moved(case):
    model, prompts = case
    saliency = np.zeros((2, max(prompts.lengths)))
    place = np.flatnonzero(prompts.grids[0].image == 0)[5]
    saliency[:, place] = 1
    edit = sk.AmplifyGaze(saliency, alpha=2.0, layers=[1])
    probe = sk.AttentionMap([1], range(model.backend.towers["text"].attention[0].heads))
    plain, found = (sk.run(model, prompts, [probe], edits, batch_size=2).attention for edits in ((), [edit]))
    for row, length in enumerate(prompts.lengths):
        np.testing.assert_allclose(found[row, :, :, : length - 1], plain[row, :, :, : length - 1], atol=1e-6)
        np.testing.assert_allclose(found[row, 0, :, length - 1].sum("key"), 1, atol=1e-5)
        assert float(found[row, 0, :, length - 1, place].sum()) > float(plain[row, 0, :, length - 1, place].sum())
    written = sk.generate(model, prompts.subset([0]), [sk.AmplifyGaze(saliency[:1], layers=[1])], max_new_tokens=2)
    assert len(written.ids[0]) > len(prompts.ids[0])


def test_errors(case):
    model, prompts = case
    three = prompts.subset([0, 1, 0])
    with pytest.raises(EditError, match=r"its shape is \(3,\)\. Give \(prompt, key\)"):
        sk.AmplifyGaze(np.ones(3))
    with pytest.raises(EditError, match="all heads together choose which look"):
        sk.AmplifyGaze(np.ones((1, 3)), heads=[0])
    with pytest.raises(EditError, match="the last row alone is changed"):
        sk.AmplifyGaze(np.ones((1, 3)), queries="last")
    with pytest.raises(EditError, match="it holds 2 prompts, fewer than there are here"):
        sk.run(model, three, edits=[sk.AmplifyGaze(np.ones((2, 3)))], batch_size=3)
