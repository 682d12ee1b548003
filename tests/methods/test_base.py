"""Every procedure has one shape: frozen settings with defaults, and a result with table, figure and citation."""

import dataclasses
import inspect

import pytest

from sinkscope import methods
from sinkscope.methods.base import MethodResult
from sinkscope.references import REFERENCES

PROCEDURES = [
    methods.zerotune, methods.var.var, methods.sads.sads, methods.vhr.vhr,
    methods.secondary_sinks.find_secondary_sinks, methods.profile_heads, methods.explain_image,
]  # fmt: skip


@pytest.mark.parametrize("procedure", PROCEDURES, ids=lambda f: f.__name__)
def test_shape(procedure):
    found = inspect.signature(procedure).parameters
    assert next(iter(found)) == "model"
    assert found["settings"].default is None
    namespace = vars(inspect.getmodule(procedure))
    module = inspect.getmodule(procedure)
    returned = namespace[procedure.__annotations__["return"]]
    assert issubclass(returned, MethodResult)
    assert set(returned.reference) <= set(REFERENCES)
    name = procedure.__annotations__["settings"].removesuffix(" | None")
    settings = getattr(module, name)
    assert settings.__dataclass_params__.frozen
    assert settings() == settings()
    assert "settings" in {field.name for field in dataclasses.fields(returned)}
