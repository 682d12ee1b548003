"""``explain-image``: where an answer about a picture comes from, as a paragraph and a figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sinkscope import schema
from sinkscope.cli.options import ModelOptions, Output, Whole, load
from sinkscope.errors import OutputError, PromptError
from sinkscope.files import replacing


@Parameter(name="*")
@dataclass(frozen=True)
class ExplainOptions:
    """What is explained, and where the figure goes.

    Attributes:
        answer: Answer to explain. Default: the first token of the model's own.
        draws: Sets of random patches that each masking is compared with.
        output: Figure to write: png, pdf or svg.
        overwrite: Replace the figure if it exists.
    """

    answer: str | None = None
    draws: Whole = 20
    output: Output = Path("explanation.png")
    overwrite: Annotated[bool, Parameter(negative=())] = False


def explain_image(
    model: str,
    image: Path,
    question: str,
    *,
    options: ExplainOptions | None = None,
    loading: ModelOptions | None = None,
) -> None:
    """Explain one answer about a picture: where it looked, which visual tokens are sinks, what it rests on.

    Args:
        model: A vision-language model: zoo:NAME, a local folder or a hub id.
        image: The picture.
        question: What is asked about it.
    """
    options = options or ExplainOptions()
    target = schema.check_output(options.output, overwrite=options.overwrite)
    if target.suffix not in (".png", ".pdf", ".svg"):
        raise OutputError(
            f"explain-image --output {target}: figures are png, pdf or svg. Give it one of these endings."
        )
    if options.draws < 2:
        raise PromptError(f"explain-image --draws {options.draws}: give 2 or more; 20 can tell an effect from chance.")

    from sinkscope.methods.explain_image import ExplainSettings, explain_image

    settings = ExplainSettings(answer=options.answer, draws=options.draws)
    found = explain_image(load(model, loading or ModelOptions()), image, question, settings)
    with replacing(target) as temporary:
        found.figure().savefig(temporary, format=target.suffix[1:])
    print(found.verdict)
    print(f"\n{found.table().to_string(float_format=lambda x: f'{x:.4g}')}\nSaved {target}.")
