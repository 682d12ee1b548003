"""Would a middle layer answer better than the last? Accuracy by layer, read with the logit lens.

Paper: Kan et al. 2025 (RAR, OpenReview xTbFeDhdRG), figure 2. Claim: accuracy by output layer rises and then falls.
Cost: one pass over 320 prompts. Different here: the source does not say how a middle layer is decoded; here the model's
own final norm and output layer are applied to each state of the last position, and an answer is right when it leads the
other answers to such questions, each with and without a space before it, as the layers before SmolLM2's last put one
there. Accuracy by question family.

    python analyses/kan2025/layerwise_accuracy.py --model zoo:vlm-smol
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import VISION_LANGUAGE_MODELS, Study, describe_difference, has_sign, is_large
from sinkscope.models.backends.base import Tower
from sinkscope.probes.base import Probe, ProbeContext
from sinkscope.schema import Variable
from sinkscope.tasks.scene_questions import SceneQuestions, first_tokens, scene_questions
from sinkscope.tasks.scenes import FAMILIES


@dataclass(frozen=True)
class LastState(Probe):
    """State of the last position at every block output. Makes ``last_state`` (prompt, site, d_model)."""

    variables: ClassVar[Mapping[str, Variable]] = {
        "last_state": Variable(("prompt", "site", "d_model"), "activation", "residual stream at the last position")
    }

    def sites(self, tower: Tower) -> tuple[str, ...]:
        """All sites."""
        return tower.site_names

    def at_site(self, hidden: torch.Tensor, context: ProbeContext) -> dict[str, torch.Tensor]:
        """The last real token of each prompt."""
        places = torch.arange(hidden.shape[1], device=hidden.device) * context.batch.real
        return {"last_state": hidden[torch.arange(len(hidden)), places.argmax(-1)].float()}


def spellings(model: sk.Model, family: str) -> np.ndarray:
    """First tokens of a family's answers, as the template puts them and after a space: ids (spelling answer).

    A spelling that does not tell the answers apart is left out.
    """
    words = FAMILIES[family]
    said = first_tokens(model, ["What?"] * len(words), words)
    spaced = [model.tokenizer(f" {word}", add_special_tokens=False).input_ids[0] for word in words]
    return np.array([ids for ids in (said, spaced) if len(set(ids)) == len(words)])


@torch.no_grad()
def measure(model: sk.Model, shapes: SceneQuestions) -> xr.Dataset:
    """Whether the answer leads the other answers of its family after each layer: dims (prompt layer)."""
    ds = sk.run(model, shapes.prompts, [LastState()])
    network: Any = model.model
    decoder = network.get_decoder() if hasattr(network, "get_decoder") else network.model
    depth = int(model.config.get_text_config().num_hidden_layers)
    states = torch.from_numpy(ds["last_state"].sel(site=[f"{i}.post" for i in range(depth)]).values)
    logits = (
        network.get_output_embeddings()(decoder.norm(states.to(model.dtype).to(model.device))).float().cpu().numpy()
    )
    family = np.array(shapes.families)
    tokens = {name: spellings(model, name) for name in set(shapes.families)}
    right = np.zeros(logits.shape[:2])
    for row, question in enumerate(shapes.questions):
        led = logits[row][:, tokens[question.family]].max(1).argmax(-1)  # logits: (layer spelling answer)
        right[row] = led == FAMILIES[question.family].index(question.answer)
    found = xr.Dataset({"right": (("prompt", "layer"), right)}, coords={"layer": np.arange(depth)})
    return found.assign_coords(prompt=ds["prompt"].values, family=("prompt", family)).assign_attrs(ds.attrs)


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    shapes = scene_questions(model, 20 if study.quick else 200 if is_large(model) else 320)
    ds = study.reading("among_answers", lambda: measure(model, shapes))
    right = ds["right"]
    lines = right.groupby("family").mean("prompt").transpose("family", "layer")
    says = "share of right answers when each layer's state is read by the final norm and output layer (logit lens)"
    axes = sk.plot.layer_profile(
        sk.plot.described(lines, ds), ylabel="share of right answers", title="Accuracy by layer"
    )
    axes.set_ylim(0, 1.02)
    study.figure(axes, "accuracy_by_layer", source=ds, says=says)
    bare = right.reset_coords(drop=True)
    mean = bare.mean("prompt").values
    order = np.random.default_rng(0).permutation(len(bare))
    half = len(order) // 2
    best = int(bare.isel(prompt=order[:half]).mean("prompt").values[:-1].argmax())
    rest = bare.isel(prompt=order[half:])
    words, found = describe_difference(rest.isel(layer=best), rest.isel(layer=-1).drop_vars("layer"))
    study.claim(
        "Fig. 2", "Some layer before the last answers better than the last", paper="rises, then falls",
        found=f"by layer {', '.join(f'{v:.2f}' for v in mean)}; the best earlier layer on half of the prompts "
        f"is {best}; on the others it differs from the last by {words}", agrees=has_sign(found),
    )  # fmt: skip
    difference = metrics.compare(bare.isel(layer=-1).drop_vars("layer"), to=bare.isel(layer=0).drop_vars("layer"))
    study.claim(
        "Fig. 2", "Accuracy rises over the first layers", paper="yes",
        found=f"last less first layer {float(difference['difference']):+.3f} "
        f"[{float(difference['low']):+.3f}, {float(difference['high']):+.3f}]", agrees=has_sign(difference),
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="kan2025", model=VISION_LANGUAGE_MODELS) as study:
        study.for_each(judge)
