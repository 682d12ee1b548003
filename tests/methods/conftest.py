"""The constructed model with secondary sinks, its prompts and what is detected there: shared by what builds on it."""

import pytest

import sinkscope as sk
from methods.secondary_models import load
from sinkscope.methods import secondary_sinks


@pytest.fixture(scope="package")
def secondary_case():
    constructed = load()
    model = constructed.build(0)
    prompts = sk.Prompts.from_ids(constructed.token_ids(1, 40, 5), model)
    return model, prompts, secondary_sinks.detect(model, prompts)
