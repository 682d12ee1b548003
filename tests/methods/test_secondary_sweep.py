"""The direction that makes a built-in secondary sink is found among the inputs' own, and no random one does it."""

import numpy as np
import pytest

from sinkscope.errors import MetricError
from sinkscope.methods.secondary_sweep import direction_sweep


def test_a_principal_direction_writes_the_primarys_and_a_random_one_does_not(secondary_case):
    found = direction_sweep(*secondary_case, components=3)
    assert found["cosine"].dims == ("direction", "scale")
    own = abs(found["cosine"]).drop_sel(direction="random")
    assert float(own.max()) > 0.98
    assert float(abs(found["cosine"]).sel(direction="random").max()) < 0.7
    best = own.max("scale").argmax("direction")
    strong = found["norm"].isel(direction=int(best))
    assert float(strong.max()) > 5 * float(strong.sel(scale=0.0, method="nearest"))
    np.testing.assert_allclose(found["explained"].sum() <= 1 + 1e-9, True)
    ends = found["projection"].groupby("who").mean("token")
    spread = float(abs(ends.sel(who="sink") - ends.sel(who="other")).max())
    assert spread > 2 * float(found["projection"].where(found["who"] == "sink", drop=True).std("token").min())
    assert found.attrs["n"] == int((found["who"] == "sink").sum())


def test_no_sink_is_an_error(secondary_case):
    model, prompts, found = secondary_case
    with pytest.raises(MetricError, match=r"direction_sweep: no secondary sink was found"):
        direction_sweep(model, prompts, found.assign(kind=found["kind"].copy(data=np.full(found["kind"].shape, ""))))
