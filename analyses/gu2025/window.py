"""Window attention: where does the attention go when the first token has left the window, and what does that cost?

Paper: Gu et al. 2025, section on window attention (queries see the last w keys). Claim: the sink stands at the absolute
first token, not at the first token of each query's window; small windows have little sink.
Cost: one pass per window, seconds.
Different here: a small language model trained with a window of 32 is read from its training curve. Beside it the
weights of a Llama model (``--model``) run with windows put in afterwards, on texts of 128 tokens. Xiao et al. 2024
(StreamingLLM) report that the loss rises once the sink is out of sight; the control has as little context and keeps the
sink (the window's tokens behind the model's first token).
"""

import numpy as np
import xarray as xr
from transformers import MistralConfig, MistralForCausalLM

import sinkscope as sk
from recipes import emergence
from sinkscope.analysis import Study

WINDOWS, TOKENS = (16, 32, 64), 128
KEYS = ("sink_rate_after_first", "alpha_max", "oldest_max")


def with_window(model: sk.Model, window: int) -> sk.Model:
    """The same weights in an architecture that differs from Llama by the window alone."""
    config = MistralConfig(**{**model.config.to_dict(), "sliding_window": window, "model_type": "mistral"})
    network = MistralForCausalLM(config).eval()
    network.load_state_dict(model.model.state_dict())
    network.name_or_path = f"{model.id}, window {window}"
    return sk.load_model(network, tokenizer=model.tokenizer)


def shares(ds: xr.Dataset, window: int) -> xr.DataArray:
    """Mean weight on the absolute first key and on the first key of the window, for queries past the window."""
    rows = np.arange(window, ds.sizes["query"])
    maps = ds["attention"].isel(query=slice(window, None))
    oldest = maps.isel(key=xr.DataArray(rows - window + 1, dims="query"))
    cells = [c.reset_coords(drop=True).mean(["layer", "head", "query"]) for c in (maps.isel(key=0), oldest)]
    return xr.concat(cells, dim=xr.Variable("key", ["first token", "oldest in window"]))


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
    study.claim(
        "Window attention", "Trained with a window, the sink stands at the absolute first token",
        paper="picture", found=f"window 32: {'; '.join(each) or 'no such run in the zoo'} (n = {len(each)} seeds)",
        agrees=bool(emergence.holds(rule.rule, pair).all()) if pair else None,
    )  # fmt: skip


with Study(__doc__, paper="gu2025") as study:
    prompts = study.texts("prose", n=16, tokens=TOKENS)
    llama = study.model.config.model_type == "llama" and type(study.model.model).__name__ == "LlamaForCausalLM"
    tower = study.model.backend.towers[study.model.backend.default_tower]
    maps = sk.AttentionMap(range(len(tower.attention)), range(tower.attention[0].heads))
    arms = {"full": study.model} | ({f"{w}": with_window(study.model, w) for w in WINDOWS} if llama else {})
    readings = {
        name: study.reading(
            f"window-{name}", lambda m=model: sk.run(m, prompts, [maps, sk.TokenLoss(), sk.KeyMass()], batch_size=4)
        )
        for name, model in arms.items()
    }
    plain = readings["full"]
    cells, costs = [], []
    for window in WINDOWS if llama else ():
        past = readings[str(window)]
        cells.append(shares(past, window))
        at = np.arange(window, TOKENS - 1, 8)
        cost, full = (ds["token_loss"].isel(query=at).mean("query") for ds in (past, plain))
        fresh = restarted(study.model, prompts, window, at)
        costs.append((sk.metrics.compare(cost, to=full), sk.metrics.compare(cost, to=fresh)))
    if llama:
        share = xr.concat([shares(plain, WINDOWS[0]), *cells], dim=xr.Variable("window", list(readings)))
        table = sk.metrics.compare(share, to=share * 0)
        shown = table["difference"].transpose("window", "key")
        axes = sk.plot.grouped_bars(
            shown, interval=(table["low"], table["high"]), ylabel="mean attention weight",
            title="Queries that no longer see the first token",
        )  # fmt: skip
        axes.set_xlabel("window [tokens]")
        study.figure(
            axes, "window", source=plain,
            says=f"mean weight of queries past the window (full: past {WINDOWS[0]}) on two keys; windows put in after "
            "training; 95 % intervals over prompts",
        )  # fmt: skip
    trained(study)
    n = len(prompts)
    oldest = f"{float(table['difference'].sel(window='32', key='oldest in window')):.1%}" if llama else "not measured"
    whole = f"{float(table['difference'].sel(window='full', key='first token')):.1%}" if llama else "not measured"
    study.claim(
        "Window attention", "With a window put in, attention does not move to the first key of the window",
        paper="picture", found=f"window 32: {oldest} of the attention on the oldest key of the window, {whole} on the "
        f"first token under full attention (n = {n} prompts); not trained with a window", agrees=None,
    )  # fmt: skip
    for window, (against_full, against_fresh) in zip(WINDOWS, costs, strict=False):
        said = [
            f"{float(row['difference']):+.2f} nat [{float(row['low']):+.2f}, {float(row['high']):+.2f}]"
            for row in (against_full, against_fresh)
        ]
        study.claim(
            "Xiao et al. 2024", "Once the first token leaves the window the loss rises", paper="perplexity explodes",
            found=f"window {window}: {said[0]} per token beyond it against full attention, {said[1]} against as short "
            f"a context with the first token (n = {n} prompts)", agrees=float(against_fresh["low"]) > 0,
        )  # fmt: skip
