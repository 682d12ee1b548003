"""Whether the letters of a figure can be read once it stands on a page."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.text import Text

from sinkscope.plot.naming import LineNames

PAGE = 6.6
"""Width in inches at which figures of several panels stand on a page: both columns of a paper."""
SMALLEST = 6.0
"""Points below which letters are not read on paper; a rule of this project's own."""


def smallest_text(figure: Figure) -> tuple[float, str]:
    """Return the size in points of the smallest text once the figure is as wide as a page, and that text.

    The caption is left out: a paper sets its own. A figure that is narrower than a page is not enlarged.

    Args:
        figure: a figure that was drawn once, so that names beside lines have their final size.
    """
    scale = min(1.0, PAGE / float(figure.get_size_inches()[0]))
    texts = [text for text in figure.findobj(Text) if text is not getattr(figure, "_supxlabel", None)]
    texts += [text for names in figure.findobj(LineNames) if isinstance(names, LineNames) for text in names.texts]
    found = [
        (scale * float(text.get_fontsize()), text.get_text())
        for text in texts
        if isinstance(text, Text) and text.get_visible() and text.get_text().strip()
    ]
    return min(found, default=(float("inf"), ""))
