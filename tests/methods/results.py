"""What the tests of every procedure ask of its result."""

import matplotlib.pyplot as plt
import pandas as pd


def check_result(result):
    """A result's table has rows, its figure is drawn, and it cites its paper."""
    frame = result.table()
    assert isinstance(frame, pd.DataFrame)
    assert len(frame)
    axes = result.plot()
    assert axes.get_title(loc="left") or axes.get_title()
    plt.close(axes.figure)
    for key in result.reference:
        assert "{" + key + "," in result.cite()
    assert "sinkscope" in result.cite()
    return frame
