"""Probes: what to read from a run. Each is a frozen dataclass; ``base`` says how to add one."""

from typing import TYPE_CHECKING

from sinkscope.errors import public_names, unknown_name
from sinkscope.probes import attention, base, gradient, output, residual, vectors
from sinkscope.probes.attention import *
from sinkscope.probes.base import *
from sinkscope.probes.gradient import *
from sinkscope.probes.output import *
from sinkscope.probes.residual import *
from sinkscope.probes.vectors import *

__all__: list[str] = []
__all__ += base.__all__
__all__ += attention.__all__
__all__ += gradient.__all__
__all__ += output.__all__
__all__ += residual.__all__
__all__ += vectors.__all__

if not TYPE_CHECKING:  # a type checker shall complain of a name that does not exist
    __getattr__ = unknown_name(__name__, __all__)
    __dir__ = public_names(globals())
