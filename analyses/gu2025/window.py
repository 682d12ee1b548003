"""Window attention: where does the attention go when the first token has left the window, and what does that cost?

Paper: Gu et al. 2025, section on window attention (queries see the last w keys). Claim: the sink stands at the absolute
first token, not at the first token of each query's window; small windows have little sink.
Cost: one pass per window, seconds.
Different here: a small language model trained with a window of 32 is read from its training curve. Beside it the
trained models run with windows put in afterwards, on texts of 128 tokens. Xiao et al. 2024 (StreamingLLM) report that
the loss rises once the sink is out of sight, and comes back with the first tokens kept in sight; the first control has
as little context and a sink (the window's tokens behind the text's first token, at the positions of a short text).
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from recipes import emergence, seeds
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study, need, with_intervals

WINDOWS, TOKENS = (16, 32, 64), 128
SEES = ["the window", "the window and the first token"]
KEYS = ("sink_rate_after_first", "alpha_max", "oldest_max")


def shares(model: sk.Model, prompts: sk.Prompts, window: int, edits: Sequence[sk.edits.Edit] = ()) -> xr.Dataset:
    """Mean weight on the absolute first key and on the first key of the window, for queries past the window."""
    tower = model.backend.towers[model.backend.default_tower]
    maps = sk.AttentionMap(range(len(tower.attention)), range(tower.attention[0].heads))
    ds = sk.run(model, prompts, [maps, sk.TokenLoss()], edits, batch_size=4)
    rows = np.arange(window, ds.sizes["query"])
    weights = ds["attention"].isel(query=slice(window, None))
    oldest = weights.isel(key=xr.DataArray(rows - window + 1, dims="query"))
    cells = [c.reset_coords(drop=True).mean(["layer", "head", "query"]) for c in (weights.isel(key=0), oldest)]
    names = xr.Variable("which", ["first token", "oldest in window"])
    return ds.drop_vars("attention").assign(share=xr.concat(cells, dim=names))


def restarted(model: sk.Model, prompts: sk.Prompts, window: int, at: np.ndarray) -> xr.DataArray:
    """Loss of the queries ``at`` when they see the first token and the last ``window - 1`` tokens: dims (prompt,)."""
    rows = [[int(ids[0]), *ids[i - window + 2 : i + 2].tolist()] for ids in prompts.ids for i in at]
    ds = sk.run(model, sk.Prompts.from_ids(rows, model), [sk.TokenLoss()], batch_size=32)
    last = ds["token_loss"].isel(query=window - 1).values.reshape(len(prompts), -1)
    return xr.DataArray(last.mean(1), dims="prompt", coords={"prompt": np.arange(len(prompts))})


def trained(study: Study) -> None:
    """What the model trained with a window does, from the curves of its seeds."""
    rule = emergence.ARCHITECTURE["window"]
    _, pairs = emergence.common_step(emergence.compared({"window": rule}))
    pair = pairs.get("window")
    rows = zip(*(pair.own[key] for key in KEYS), strict=True) if pair else ()
    each = [
        f"{share:.0%} of the heads beyond layer 0 over .3 on the first token (queries that see it), best head "
        f"{first:.2f}; best head on the oldest key in view {oldest:.2f}"
        for share, first, oldest in rows
    ]
    number = None
    if pair:
        mean, ends = seeds.mean_and_interval(pair.own[KEYS[0]])
        number = Estimate(mean, *(ends or (np.nan, np.nan)), len(each), "of the heads over .3 on it", ".0%", "seeds")
    study.subject = "zoo:lm-python-window"
    study.claim(
        "Window attention", "Trained with a window, the sink stands at the absolute first token",
        paper="picture", number=number, found=f"window 32: {'; '.join(each) or 'no such run in the zoo'}",
        agrees=bool(emergence.holds(rule.rule, pair).all()) if pair else "no such run in the zoo",
    )  # fmt: skip


def judge(study: Study, model: sk.Model) -> None:
    """Put windows into a trained model: where the attention goes, and what it costs."""
    need(model, model.is_causal, "a decoder, whose loss per token it reads")
    prompts = study.texts("prose", n=16, tokens=TOKENS)
    whole = study.reading("window-full", lambda: shares(model, prompts, WINDOWS[0]))
    names, parts = ["full"], [whole]
    costs: list[list[Estimate]] = []
    losses: list[xr.DataArray] = []
    for window in WINDOWS:
        past, held = (
            study.reading(name, lambda w=window, k=keep: shares(model, prompts, w, [sk.LimitWindow(w, keep=k)]))
            for name, keep in ((f"window-{window}", None), (f"window-{window}-first", "first"))
        )
        at = np.arange(window, TOKENS - 1, 8)
        cost, full, kept = (ds["token_loss"].isel(query=at).mean("query") for ds in (past, whole, held))
        fresh = restarted(model, prompts, window, at)
        pairs = (cost, full), (cost, fresh), (kept, full), (kept, cost)
        costs.append([Estimate.paired(*pair, "+.2f", "nat") for pair in pairs])
        losses.append(xr.concat([cost - full, kept - full], xr.Variable("sees", SEES)).reset_coords(drop=True))
        parts.append(past)
        names.append(str(window))
    share = xr.concat([part["share"] for part in parts], dim=xr.Variable("window", names))
    table = with_intervals(share)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    for ax, found, series, label, title in (
        (left, table, "which", "mean attention weight", "Queries that lost the first token"),
        (right, with_intervals(xr.concat(losses, xr.Variable("window", names[1:]))), "sees",
         "loss less that of full attention [nat]", "What it costs"),
    ):  # fmt: skip
        sk.plot.grouped_bars(
            found["difference"].transpose("window", series), interval=(found["low"], found["high"]),
            ylabel=label, title=title, ax=ax,
        )  # fmt: skip
        ax.set_xlabel("window [tokens]")
    study.figure(
        figure, "window", source=whole,
        says=f"left: mean weight of queries past the window (full: past {WINDOWS[0]}) on two keys; right: loss per "
        "token of queries past the window; windows put in after training; 95 % intervals over prompts",
    )  # fmt: skip
    oldest = Estimate.of(table, ".1%", window="32", which="oldest in window")
    first = Estimate.of(table, ".1%", window="full", which="first token")
    study.claim(
        "Window attention", "With a window put in, attention does not move to the first key of the window",
        paper="picture, trained with it", number=oldest, agrees=oldest.below(0.5 * first.value),
        found=f"of the attention on the oldest key of a window of 32, {first} on the first token under full attention",
    )  # fmt: skip
    judge_costs(study, costs)


def judge_costs(study: Study, costs: list[list[Estimate]]) -> None:
    """What a window costs: against a context as short that has the first token, and with that token kept in sight."""
    asked = (
        ("Once the first token leaves the window the loss rises", "perplexity explodes", 0, 1,
         "against as short a context with the first token"),
        ("With the first token kept in sight the loss comes back", "perplexity recovers", 2, 3,
         "window and first token less window"),
    )  # fmt: skip
    middle = costs[WINDOWS.index(32)]
    for claim, paper, to_full, judged, what in asked:
        others = ", ".join(f"{each[judged]} at {w}" for w, each in zip(WINDOWS, costs, strict=True) if w != 32)
        number = middle[judged]
        study.claim(
            "Xiao et al. 2024", claim, paper=paper, number=number,
            agrees=number.above(0.0) if judged == 1 else number.below(0.0),
            found=f"per token beyond a window of 32, {what} ({others}); {middle[to_full]} against full attention",
        )  # fmt: skip


if __name__ == "__main__":
    with Study(__doc__, paper="gu2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
        trained(study)
