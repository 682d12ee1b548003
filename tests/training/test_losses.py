"""The decorrelation loss: the sheet's vector, its gradient, padding, and what training on it does."""

import pytest
import torch

from sinkscope.errors import PromptError
from sinkscope.testing import text_ids, tiny
from sinkscope.training.losses import decorrelation, first_token_alignment

STATES = torch.tensor([[[1.0, 0], [1, 1], [0, 2], [-3, 0]]])


def test_the_vector_of_the_sheet():
    assert float(first_token_alignment(STATES)) == pytest.approx(0.5)
    other = torch.ones(1, 4, 2)
    assert float(decorrelation([other, STATES, STATES, other])) == pytest.approx(0.5e4)
    assert float(decorrelation([other, STATES, other, other], weight=2)) == pytest.approx(0.5 + 1)


def test_padding_on_either_side_does_not_count():
    mask = torch.tensor([[1, 1, 1, 1]])
    pad = torch.nn.functional.pad
    for side in ((2, 0), (0, 2)):
        padded = pad(STATES, (0, 0, *side), value=7.0)
        assert float(first_token_alignment(padded, pad(mask, side))) == pytest.approx(0.5)


def test_the_gradient_moves_the_first_token_too():
    states = STATES.clone().requires_grad_()
    first_token_alignment(states).backward()
    assert states.grad is not None
    assert float(states.grad[0, 0].abs().max()) > 0
    assert float(states.grad[0, 3].abs().max()) == pytest.approx(0, abs=1e-6)  # already opposite: a maximum


def test_training_on_it_turns_the_states_away():
    model = tiny("llama")
    ids = text_ids(model, 2, 8)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    found = []
    for _ in range(12):
        penalty = decorrelation(model(input_ids=ids, output_hidden_states=True).hidden_states, weight=1.0)
        optimiser.zero_grad()
        penalty.backward()
        optimiser.step()
        found.append(penalty.item())
    assert found[-1] < 0.5 * found[0]


def test_too_few_states():
    with pytest.raises(PromptError, match=r"decorrelation: 2 hidden states\. Give what the model returns"):
        decorrelation([STATES, STATES])
