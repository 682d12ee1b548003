"""The check of shapes checks something, and leaves other types alone."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from shapecheck import check_shapes


@jaxtyped(typechecker=check_shapes)
def product(a: Float[torch.Tensor, "row inner"], b: Float[torch.Tensor, "inner column"], note: int = 0) -> float:
    return float((a @ b).sum())


def test_right_shapes_pass_and_other_types_are_not_checked() -> None:
    assert product(torch.ones(2, 3), torch.ones(3, 4), note="not a number") == 24.0


@pytest.mark.parametrize("b", [torch.ones(2, 4), torch.ones(3), torch.ones(3, 4, dtype=torch.int64)])
def test_wrong_shape_or_dtype_is_refused(b: torch.Tensor) -> None:
    with pytest.raises(TypeCheckError, match="product"):
        product(torch.ones(2, 3), b)


def test_sinkscope_itself_is_checked() -> None:
    from sinkscope.prompts.selection import positions

    with pytest.raises(TypeCheckError, match="positions"):
        positions(torch.ones(2, 3))
