"""Channels of the residual stream: the first token, a visual sink and an ordinary visual token.

Paper: Kang et al. 2025 (arXiv 2503.03321), figures 2 and 7. Claim: a visual sink spikes in the channels in which the
first token spikes, an ordinary visual token in none. Cost: one pass over 24 short prompts, seconds. Different here: at
the block input where the highest phi of a visual token is highest; the sink is the visual token with the highest phi
there, the ordinary one that with the median phi; spikes are told by the rank of the first token's largest channel.

    python analyses/kang2025/channels.py --model zoo:vlm-smol
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import VISION_LANGUAGE_MODELS, Study, describe_difference, has_sign
from sinkscope.methods.residual import residual_stream
from sinkscope.methods.var import sink_dims_or_largest
from sinkscope.metrics import phi
from sinkscope.plot.theme import SINK
from sinkscope.roles import ROLE_INDEX
from sinkscope.tasks.scene_questions import scene_questions


def measured(model: sk.Model, prompts: sk.Prompts, dims: list[int]) -> xr.Dataset:
    """Magnitudes over the root mean square of three tokens of each prompt: dims (token prompt channel)."""
    streams = [residual_stream(model, prompts, index) for index in range(len(prompts))]
    images = [np.flatnonzero(roles == ROLE_INDEX["image"]) for roles in prompts.roles]
    sites = [name for name in streams[0] if name.endswith("post")][:-1]
    high = [
        np.mean([phi(states[site][image], dims).max() for states, image in zip(streams, images, strict=True)])
        for site in sites
    ]
    site = sites[int(np.argmax(high))]
    rows: dict[str, list[np.ndarray]] = {"first token": [], "visual sink": [], "ordinary visual token": []}
    for states, image in zip(streams, images, strict=True):
        order = image[np.argsort(phi(states[site][image], dims), kind="stable")]
        for name, place in zip(rows, (0, order[-1], order[len(order) // 2]), strict=True):
            state = states[site][place]
            rows[name].append(np.abs(state) / np.sqrt((state**2).mean()))
    values = np.stack([np.stack(each) for each in rows.values()])
    attrs = sk.run(model, prompts, [sk.SinkDims(dims)]).attrs
    return xr.Dataset(
        {"size": (("token", "prompt", "channel"), values)}, coords={"token": list(rows), "prompt": range(len(prompts))},
        attrs=attrs | {"site": site},
    )  # fmt: skip


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    shapes = scene_questions(model, 6 if study.quick else 24)
    dims = [int(dim) for dim in sink_dims_or_largest(model, shapes.prompts)[0]]
    ds = study.reading("channels", lambda: measured(model, shapes.prompts, dims))
    figure, panels = plt.subplots(1, 3, figsize=(9.6, 3.2), layout="constrained", sharey=True)
    for axes, name in zip(panels, ds["token"].values.tolist(), strict=True):
        one = ds["size"].sel(token=name).isel(prompt=0).values
        axes.plot(one, linewidth=0.8)
        for dim in sorted(dims, key=lambda dim: -one[dim])[:2]:
            axes.plot(dim, one[dim], "o", color=SINK)
            axes.annotate(str(dim), (dim, one[dim]), (-6, 0), textcoords="offset points", ha="right", va="center",
                          color=SINK)  # fmt: skip
        axes.set(title=name, xlabel="channel")
    panels[0].set_ylabel("over root mean square")
    study.figure(figure, "channels", source=ds, says="magnitude of each channel "
                 f"in one prompt, behind block {ds.attrs['site'].split('.')[0]}; dots: sink dimensions")  # fmt: skip
    top = ds["size"].sel(token="first token").argmax("channel").reset_coords(drop=True)
    ratio = ds["size"].isel(channel=top).reset_coords(drop=True)
    sink, plain = (ratio.sel(token=name, drop=True) for name in ("visual sink", "ordinary visual token"))
    words, found = describe_difference(sink, plain, digits=2)
    first = float(ratio.sel(token="first token").mean())
    verdict = has_sign(found)
    study.claim(
        "Figs. 2 and 7", "A visual sink spikes where the first token does, an ordinary visual token does not",
        paper="same channels (pictures)",
        found=f"in the first token's largest channel, where it has {first:.1f} root mean squares: sink "
        f"{float(sink.mean()):.1f}, ordinary {float(plain.mean()):.1f}, difference {words}",
        agrees=verdict if verdict is None else bool(verdict and float(sink.mean()) > 0.5 * first),
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="kang2025", model=VISION_LANGUAGE_MODELS) as study:
        study.for_each(judge)
