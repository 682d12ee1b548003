"""What keeps visual tokens from spiking: the vector that all of them share.

Paper: Kang et al. 2025 (arXiv 2503.03321), section 3: visual sinks arise as the text sink does, in its dimensions. Why
a model has none is asked here: the projector's output is taken apart into its mean over pictures and patches, and the
rest. With a part of the mean taken away, do visual tokens spike in the first token's dimension? Control: as much of a
random direction taken away. Cost: seven passes over 24 prompts, three minutes on ``zoo:vlm-smol``. The mean is
that of other pictures. The answers get worse as the mean goes, so this says what the mean does to phi, nothing about
answers.

    python analyses/kang2025/common_vector.py --model zoo:vlm-smol
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import VISION_LANGUAGE_MODELS, Estimate, Study, need, visual_tau
from sinkscope.methods.var import sink_dims_or_largest
from sinkscope.tasks.examples import score_answers
from sinkscope.tasks.scene_questions import scene_questions

SHARES = (0.5, 1.0)
"""Parts of the common vector that are taken away."""


def projected(model: sk.Model, prompts: sk.Prompts) -> torch.Tensor:
    """What the projector writes for each visual token of the prompts: float32 (token d_model)."""
    seen: list[torch.Tensor] = []
    network: Any = model.model
    handle = network.model.multi_modal_projector.register_forward_hook(
        lambda _module, _given, out: seen.append(out.detach().float().flatten(0, -2))
    )
    try:
        sk.run(model, prompts, [sk.SinkDims((0,))])
    finally:
        handle.remove()
    return torch.cat(seen)


@contextmanager
def shifted(model: sk.Model, by: torch.Tensor) -> Iterator[None]:
    """Take a vector from everything that the projector writes, inside."""
    network: Any = model.model
    bias = network.model.multi_modal_projector.linear_2.bias
    before = bias.detach().clone()
    try:
        with torch.no_grad():
            bias -= by.to(bias)
        yield
    finally:
        with torch.no_grad():
            bias.copy_(before)


def measured(model: sk.Model, n: int, draws: int) -> xr.Dataset:
    """Visual tokens that pass tau at the layer where most do, and the answer's log probability: (arm share prompt).

    Arms are the common vector and the mean of ``draws`` random directions as long.
    """
    asked = scene_questions(model, n, ("colour", "shape"))
    other = scene_questions(model, max(8, n // 2), ("colour", "shape"), seed=7).prompts
    dims, _ = sink_dims_or_largest(model, other)
    tau, source = visual_tau(model, sk.run(model, other, [sk.SinkDims(dims)]))
    states = projected(model, other)
    mean = states.mean(0)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(draws, len(mean), generator=generator)
    noise = noise * (mean.norm() / noise.norm(dim=1))[:, None]
    layers = list(range(int(model.config.get_text_config().num_hidden_layers)))

    def look(by: torch.Tensor) -> xr.Dataset:
        with shifted(model, by):
            ds = sk.run(model, asked.prompts, [sk.SinkDims(dims), sk.Logits()])
        score = score_answers(ds, asked.examples)["log_probability"].reset_coords(drop=True)
        phi = metrics.at_block_inputs(ds["phi"].astype("float64"), layers).reset_coords(drop=True)
        visual = ds["token_role"].reset_coords(drop=True) == "image"
        passing = ((phi >= tau) & visual).sum("key").astype(float)
        top = passing.isel(layer=int(passing.mean("prompt").argmax("layer")))
        return xr.Dataset({"passing": top.drop_vars("layer"), "log_probability": score}, attrs=ds.attrs)

    plain = look(torch.zeros_like(mean))
    arms = {"common": [mean], "random": list(noise)}
    rows = []
    for name, vectors in arms.items():
        cells = [plain, *(xr.concat([look(s * v) for v in vectors], "draw").mean("draw") for s in SHARES)]
        rows.append(xr.concat(cells, "share", combine_attrs="override").assign_coords(share=[0.0, *SHARES], arm=name))
    joined = xr.concat(rows, "arm", combine_attrs="override")
    energy = float(mean.square().sum() / states.square().sum(-1).mean())
    return joined.assign_attrs(plain.attrs | {"tau": tau, "tau_source": source, "energy": energy})


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    network: Any = model.model
    need(
        model, hasattr(getattr(network, "model", None), "multi_modal_projector"), "a LLaVA with a projector of its own"
    )
    ds = study.reading("shifted", lambda: measured(model, 6 if study.quick else 24, 1 if study.quick else 2))
    says = (
        f"visual tokens of a picture with phi over {ds.attrs['tau']:.3g} at the input of the layer that has most, as a "
        "part of the vector that all visual tokens share is taken from each, or as much of a random direction"
    )
    values = ds["passing"].assign_attrs(long_name="visual tokens that spike, per picture", units="1")
    spread = metrics.compare(values, to=xr.zeros_like(values))
    drawn = sk.plot.described(values.mean("prompt", keep_attrs=True), ds, says)
    axes = sk.plot.sweep_curve(
        drawn,
        x="share",
        interval=(spread["low"], spread["high"]),
        reference=None,
        title="Taking the common vector away",
    )
    axes.set_xlabel("part taken away")
    study.figure(axes, "common_vector", source=ds, says=says)
    whole = values.sel(share=1.0)
    difference = Estimate.paired(whole.sel(arm="common", drop=True), whole.sel(arm="random", drop=True), "+.2f")
    lost = (ds["log_probability"].sel(share=1.0) - ds["log_probability"].sel(share=0.0)).mean("prompt")
    study.claim(
        "section 3", "Without the vector that they share, visual tokens spike as the first token does", paper="",
        number=difference,
        found=f"visual tokens a picture over tau = {ds.attrs['tau']:.3g} ({ds.attrs['tau_source']}), common vector "
        f"less random direction; the common vector holds {ds.attrs['energy']:.0%} of the energy of what the projector "
        f"writes; before {float(values.sel(share=0.0, arm='common').mean()):.2f}; the answer's log probability changes "
        f"by {float(lost.sel(arm='common')):+.2f} nat, {float(lost.sel(arm='random')):+.2f} with a random direction",
        agrees=difference.above(0.0),
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="kang2025", model=VISION_LANGUAGE_MODELS) as study:
        study.for_each(judge)
