"""Type checker of the tests: beartype, applied to array annotations (dtype and shape) alone.

Other annotations are left to pyright. Many tests hand in a wrong type on purpose, to see sinkscope's own error for it,
and names imported only for type checking do not exist at run time.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let beartype check those parameters and results whose annotation holds an array type."""
    if not hasattr(function, "__annotations__") or isinstance(function, type):
        return function
    arrays = {name: hint for name, hint in function.__annotations__.items() if _holds_array(hint)}
    if not arrays:
        return function
    function.__annotations__ = arrays
    return beartype(function)


def _holds_array(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_holds_array, get_args(hint)))
