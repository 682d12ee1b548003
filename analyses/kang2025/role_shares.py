"""Where a vision-language model's answer looks: shares of attention on the first token, the picture and the text.

Paper: Kang et al. 2025 (arXiv 2503.03321), section on attention budgets, beside Chen et al.'s finding that visual
tokens, most of the prompt, get a small part of the attention. Claims: the text sink takes a large part in late layers;
visual tokens get less than their number would give them; most of it in the early layers. Cost: one pass, seconds.
Different here: rows are the tokens after the picture; the zoo model's picture is 64 of about 80 tokens.

    python analyses/kang2025/role_shares.py --model zoo:vlm-smol
"""

from __future__ import annotations

import xarray as xr

import sinkscope as sk
from sinkscope.analysis import VISION_LANGUAGE_MODELS, Study, describe_difference, has_sign
from sinkscope.tasks.scene_questions import scene_questions


def judge(study: Study, model: sk.Model) -> None:
    """Measure, draw, and state what was found on one model."""
    shapes = scene_questions(model, 10 if study.quick else 64)
    ds = study.reading("roles", lambda: sk.run(model, shapes.prompts, [sk.RoleShare(queries="after_image")]))
    share = ds["role_share"].mean("head").fillna(0.0).reset_coords(drop=True)
    present = [role for role in share["role"].values.tolist() if float(share.sel(role=role).max()) > 0]
    says = "share of attention on the keys of each role, from the rows after the picture, mean over heads"
    drawn = sk.plot.described(share.sel(role=present).mean("prompt"), ds, says)
    study.figure(sk.plot.role_share_by_layer(drawn), "role_shares", source=ds, says=says)

    roles = ds["token_role"].values
    tokens = xr.DataArray((roles == "image").sum(1) / ((roles != "pad") & (roles != "")).sum(1), dims="prompt")
    tokens = tokens.assign_coords(prompt=ds["prompt"].values)
    layers = share["layer"].values
    early, late = layers[: len(layers) // 2], layers[len(layers) // 2 :]
    image = share.sel(role="image")
    first = share.sel(role="bos") if "bos" in present else xr.zeros_like(image)
    per_token = image.mean("layer") / tokens
    study.claim(
        "section 3", "Visual tokens get less attention than their number would give them",
        paper="far less: most of the prompt, a small part of the attention",
        found=f"share of attention over share of tokens {describe_difference(per_token)[0]}; "
        f"the picture is {float(tokens.mean()):.0%} of the tokens", agrees=float(per_token.mean()) < 1,
    )  # fmt: skip
    fall = image.sel(layer=early).mean("layer") - image.sel(layer=late).mean("layer")
    words, found = describe_difference(fall)
    study.claim(
        "section 3", "The picture gets more attention in the early half of the layers than in the late half",
        paper="yes", found=f"difference of shares {words}", agrees=has_sign(found),
    )  # fmt: skip
    taken = first.sel(layer=late).mean("layer")
    words = f"share on the first token {describe_difference(taken)[0]}, late half of the layers"
    study.claim(
        "Fig. 2", "The first token takes a large part of the attention of late layers", paper="most of it",
        found=words if "bos" in present else "this model's prompts have no first token of their own",
        agrees=float(taken.mean()) > 0.5 if "bos" in present else None,
    )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="kang2025", model=VISION_LANGUAGE_MODELS) as study:
        study.for_each(judge)
