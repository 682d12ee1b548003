"""Stop words that draw attention, tokens that every row looks at, and maps of an object without the stop words' rows.

Paper: Kukleva et al. 2025 (RefAM, arXiv 2509.22650), on diffusion transformers. Claims: stop words collect surplus
attention; some tokens are looked at by every row alike (global sinks) and can go without harm; maps of what is asked
about are sharper without the stop words. Cost: a pass with maps for each of 48 prompts, two over all, half a minute on
the zoo model. Different here: a causal model, so the rows are the question's, not the image's; pointing is the mean of
the map in the object over its mean. Controls: shares of tokens; as many rows drawn at random; random tokens masked.

    python analyses/kukleva2025/magnets.py --model zoo:vlm-shapes
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope import metrics
from sinkscope.analysis import Estimate, Study, change_bars, compare_arms, join_arms, with_intervals
from sinkscope.prompts.labels import Words
from sinkscope.roles import ROLE_INDEX, TEXT_ROLES
from sinkscope.tasks.examples import answer_score
from sinkscope.tasks.scene_questions import SceneQuestions, scene_questions

STOP = ("What", "Where", "Is", "is", "at", "the", "a", "there")
"""Words of the questions that name nothing."""
ROWS = ("all words", "content words", "stop words", "as many at random")
GLOBAL_MEAN, GLOBAL_CV = 3.0, 0.5
"""A global sink gets three times its even share and varies by half of that at most: this project's own bounds."""


def measured(model: sk.Model, asked: SceneQuestions) -> xr.Dataset:
    """Magnets (layer prompt), global sinks (layer prompt token), pointing by rows (rows prompt)."""
    tower = model.backend.towers[model.backend.default_tower]
    layers, heads = range(tower.depth), range(tower.attention[0].heads)
    stop = (sk.label_tokens(asked.prompts, {"stop": Words(*STOP)}) == "stop").values
    reading = sk.run(model, asked.prompts, [sk.KeyMass("image"), sk.Logits()])
    on = (asked.covered(reading, "about") > 0.5).values
    shape = len(asked.prompts), max(asked.prompts.lengths)
    share, fair = np.full((tower.depth, shape[0]), np.nan), np.full(shape[0], np.nan)
    mean, variation = np.full((tower.depth, *shape), np.nan), np.full((tower.depth, *shape), np.nan)
    pointing, rng = np.full((len(ROWS), shape[0]), np.nan), np.random.default_rng(0)
    for which, roles in enumerate(asked.prompts.roles):
        length, found = len(roles), np.asarray(roles)
        image = np.flatnonzero(found == ROLE_INDEX["image"])
        words = np.flatnonzero((found == ROLE_INDEX["text"]) & (np.arange(length) > image[-1]))
        behind = np.arange(image[-1] + 1, length)
        maps = sk.run(model, asked.prompts.subset([which]), [sk.AttentionMap(layers, heads)])["attention"][0]
        weights = maps.transpose("layer", "head", "query", "key").values.mean(1)
        spoken = np.flatnonzero(np.isin(found, [ROLE_INDEX[role] for role in TEXT_ROLES]))
        share[:, which] = metrics.magnet_share(weights[:, -1, spoken], stop[which, spoken])
        fair[which] = stop[which, spoken].mean()
        # Keys that every row behind the picture sees.
        seen = slice(0, int(behind[0]))
        mean[:, which, seen], variation[:, which, seen] = metrics.global_sinks(weights[:, behind, seen])
        content = words[~stop[which, words]]
        chosen = {"all words": words, "content words": content, "stop words": words[stop[which, words]],
                  "as many at random": rng.choice(words, len(content), replace=False)}  # fmt: skip
        for place, name in enumerate(ROWS):
            if len(chosen[name]) and on[which, image].any():
                one = weights[tower.depth // 3 :, chosen[name]].mean((0, 1))[image]
                pointing[place, which] = one[on[which, image]].mean() / one.mean()
    data = {
        "share": (("layer", "prompt"), share), "fair": ("prompt", fair), "pointing": (("rows", "prompt"), pointing),
        "mean": (("layer", "prompt", "token"), mean), "variation": (("layer", "prompt", "token"), variation),
        "roles": (("prompt", "token"), reading["token_role"].values.astype(str)),
    }  # fmt: skip
    coords = {"prompt": reading["prompt"].values, "layer": list(layers), "rows": list(ROWS)}
    return xr.Dataset(data, coords=coords, attrs=reading.attrs)


def is_global(ds: xr.Dataset) -> xr.DataArray:
    """Which tokens are global sinks in some layer: bool (prompt key)."""
    even = 1.0 / ds["mean"].notnull().sum("token")
    found = (ds["mean"] > GLOBAL_MEAN * even) & (ds["variation"] < GLOBAL_CV)
    return found.any("layer").rename(token="key")


def masked(model: sk.Model, asked: SceneQuestions, sinks: xr.DataArray) -> xr.Dataset:
    """Answers without the global sinks, and without as many random tokens that are none (arm prompt)."""
    rng, random = np.random.default_rng(0), sinks.copy(data=np.zeros(sinks.shape, dtype=bool))
    for which, roles in enumerate(asked.prompts.roles):
        free = np.flatnonzero((np.asarray(roles) == ROLE_INDEX["image"]) & ~sinks.values[which, : len(roles)])
        random.values[which, rng.choice(free, int(sinks.values[which].sum()), replace=False)] = True
    arms = {"plain": answer_score(model, asked.examples)}
    for name, keys in (("global sinks masked", sinks), ("random visual tokens masked", random)):
        edits = [sk.MaskKeys(keys, queries="after_image")] if bool(keys.any()) else []
        arms[name] = answer_score(model, asked.examples, edits)
    return join_arms(arms)


def draw(study: Study, ds: xr.Dataset) -> None:
    """Magnet share by layer, mean and variation of keys, and pointing by rows."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 3.6), layout="constrained")
    row = with_intervals(ds["share"])
    left.plot(ds["layer"], row["difference"], marker="o", markersize=3, label="stop words")
    left.fill_between(ds["layer"], row["low"], row["high"], alpha=0.15)
    left.axhline(float(ds["fair"].mean()), linestyle=":", color="0.5", label="share of the text tokens")
    left.set(xlabel="layer", ylabel="part of the attention on text", title="Magnets", ylim=(0, 1))
    left.legend()
    count = ds["mean"].notnull().sum("token")
    times = (ds["mean"] * count).values
    roles = np.broadcast_to(ds["roles"].values, times.shape)
    for colour, role in enumerate(("image", "text", "bos")):
        at = (roles == role) & np.isfinite(times)
        if at.any():
            middle.plot(
                times[at], ds["variation"].values[at], ".", markersize=2, alpha=0.3, color=f"C{colour}", label=role
            )
    middle.axvline(GLOBAL_MEAN, linestyle=":", color="0.5")
    middle.axhline(GLOBAL_CV, linestyle=":", color="0.5")
    middle.set(
        xscale="log", xlabel="mean over the even share", ylabel="variation over rows", title="Global sinks: below right"
    )
    middle.legend(markerscale=4)
    sk.plot.interval_dots(with_intervals(ds["pointing"]), reference=1.0, title="Maps of the object", ax=right)
    right.set_xlabel("object over whole map")
    study.figure(figure, "magnets", source=ds, says="mean of heads; rows of the question; 95 % bootstrap intervals")


def main() -> None:
    """Measure, draw, and state what was found."""
    with Study(__doc__, paper="kukleva2025", model="zoo:vlm-shapes") as study:
        model, n = study.model, 6 if study.quick else 48
        asked = scene_questions(model, n, ("colour", "shape", "place"), seed=67)
        ds = study.reading("magnets", lambda: measured(model, asked))
        draw(study, ds)
        over = Estimate.paired(ds["share"].mean("layer"), ds["fair"], "+.3f")
        study.claim(
            "abstract", "Stop words collect more than their share of the attention on text", paper="yes", number=over,
            found=f"the last row gives them {float(ds['share'].mean()):.0%}, they are {float(ds['fair'].mean()):.0%} "
            "of the text tokens", agrees=over.above(0.0),
        )  # fmt: skip
        pointing = ds["pointing"]
        for rows, against, claim, paper in (
            ("content words", "all words", "Maps are sharper without the stop words' rows", "yes"),
            ("content words", "as many at random", "They are sharper than those of as many random rows", ""),
        ):
            gap = Estimate.paired(pointing.sel(rows=rows, drop=True), pointing.sel(rows=against, drop=True), "+.2f")
            study.claim("abstract", claim, paper=paper, number=gap, agrees=gap.above(0.0))
        sinks = is_global(ds)
        scores = study.reading("masked", lambda: masked(model, asked, sinks))
        value = change_bars(study, scores, "masked", "Global sinks masked")
        words, agrees = compare_arms(value, "global sinks masked", "random visual tokens masked", 1)
        each = float(sinks.sum("key").mean())
        roles = ds["roles"].values[sinks.values]
        kinds = ", ".join(f"{int((roles == kind).sum())} {kind}" for kind in sorted(set(roles.tolist()))) or "none"
        study.claim(
            "abstract", "Global sinks can go with less harm than random tokens", paper="without harm",
            found=f"{each:.2f} a prompt ({kinds}); {words}", agrees=agrees if each else "there are none",
        )  # fmt: skip


if __name__ == "__main__":
    main()
