"""The residual stream of one prompt, whole: for procedures that compare vectors rather than norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from sinkscope.edits import Edit
from sinkscope.engine.plan import Plan
from sinkscope.engine.run import find_tower
from sinkscope.models.backends.base import Instruments

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts


def residual_stream(
    model: Model, prompts: Prompts, index: int, edits: Sequence[Edit] = ()
) -> dict[str, Float[np.ndarray, "key d_model"]]:
    """Return the residual stream of one prompt at every site (``embed``, ``0.mid``, ``0.post``, ...), under edits."""
    tower = find_tower(model, None)
    batch = prompts.batch([index], model.device)
    plan = Plan(edits, tower, prompts, batch)
    found: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        return lambda hidden: found.update({name: hidden[0].detach().float().cpu().numpy().copy()})

    with torch.no_grad(), model.evaluating():
        hooks = {name: [*plan.residual.get(name, []), keep(name)] for name in tower.site_names}
        model.backend.forward(batch.inputs, tower, Instruments(edits=plan.call_edits, residual=hooks))
    return found
