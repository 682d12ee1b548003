"""Scores of answers, from a run of their own or from a reading that is there already."""

import pytest
import xarray as xr

import sinkscope as sk
from sinkscope.errors import PromptError
from sinkscope.tasks.examples import Examples, answer_score, score_answers


def test_one_run_serves_scores_and_other_numbers():
    model = sk.load_model("zoo:lm-python")
    prompts = sk.Prompts.from_ids([[1, 5, 9, 4], [1, 7, 3]], model)
    examples = Examples(prompts, (6, 2))
    reading = sk.run(model, prompts, [sk.KeyMass(), sk.Logits()])
    xr.testing.assert_allclose(score_answers(reading, examples), answer_score(model, examples))
    with pytest.raises(PromptError, match=r"2 prompts were read but 1 have answers"):
        score_answers(reading, examples.subset([0]))
