"""Bigram-Backcopy: a head that works on triggers and sleeps on everything else, and its empty first value.

Paper: Guo et al. 2024, figures of attention maps and of value norms on the Bigram-Backcopy task. Claims: queries that
are no triggers attend to <s> (dormant), triggers attend to the token before (active); the value of <s> is the smallest
of all tokens.
Cost: one pass, seconds.
Different here: a bigram chain made from a seed instead of Shakespeare's characters, width 64 (see the card of
``zoo:bb-1l``). Non-trigger queries that choose a trigger key are counted apart: its value is drained too, a second way
to do nothing. Value norms are of W_O v. Intervals are over sequences.
"""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study, need, with_intervals
from sinkscope.tasks.backcopy import SYMBOLS, sample, zipf_chain


def value_norms(model: sk.Model) -> xr.DataArray:
    """Norm of W_O v of every token where it stands at position 1, and of <s> at position 0: dims (vocab,)."""
    block, network = model.model.transformer.h[0], model.model.transformer
    ids = np.arange(model.config.vocab_size)
    position = (ids != model.config.bos_token_id).astype(int)
    embedding = network.wte.weight[ids] + network.wpe.weight[position]
    value = block.attn.c_attn(block.ln_1(embedding)).chunk(3, -1)[2]
    return xr.DataArray((value @ block.attn.c_proj.weight).norm(dim=-1).detach().numpy(), dims="vocab")


def split_attention(ds: xr.Dataset, ids: np.ndarray, triggers: int) -> dict[str, xr.DataArray]:
    """Mean weights per prompt, non-triggers on <s> and on <s> or a trigger, triggers on <s> and on the one before."""
    weights = ds["attention"].isel(layer=0, head=0).transpose("prompt", "query", "key").values
    is_trigger = ids < triggers
    drained = np.concatenate([np.ones_like(ids[:, :1], bool), is_trigger[:, 1:]], 1)
    queries = np.arange(1, ids.shape[1])
    before = weights[:, queries, queries - 1]
    to = {"sink": weights[:, 1:, 0], "drained": (weights * drained[:, None]).sum(-1)[:, 1:], "before": before}
    rows = is_trigger[:, 1:]
    wanted = {
        "dormant": ("sink", ~rows),
        "drained": ("drained", ~rows),
        "active": ("sink", rows),
        "copy": ("before", rows),
    }
    means = {name: np.nanmean(np.where(mask, to[key], np.nan), axis=1) for name, (key, mask) in wanted.items()}
    return {name: xr.DataArray(mean, dims="prompt") for name, mean in means.items()}


with Study(__doc__, paper="guo2024", model="zoo:bb-1l") as study:
    model = study.model
    made_for = hasattr(model.config, "sinkscope_triggers")
    need(
        model, made_for, "a model trained on Bigram-Backcopy, whose triggers are known, such as zoo:bb-1l or zoo:bb-3l"
    )
    triggers = len(model.config.sinkscope_triggers)
    chain = zipf_chain(len(SYMBOLS), triggers)
    ids = sample(chain, 8 if study.quick else 48, model.config.n_positions, np.random.default_rng(7)).numpy()
    prompts = sk.Prompts.from_ids(ids.tolist(), model)
    ds = study.reading("maps", lambda: sk.run(model, prompts, [sk.AttentionMap([0], [0])], batch_size=8))
    means = split_attention(ds, ids, triggers)
    rows = {name: with_intervals(mean) for name, mean in means.items()}

    figure, axes = plt.subplots(1, 2, figsize=(6.6, 4.0), width_ratios=(1.15, 1))
    one = ds["attention"].isel(prompt=0, layer=0, head=0, query=slice(0, 18), key=slice(0, 18))
    sk.plot.attention_map(one, title="Layer 0; triggers in red", ax=axes[0])
    for labels in (axes[0].get_xticklabels(), axes[0].get_yticklabels()):
        for label, token in zip(labels, ids[0], strict=False):
            label.set_color("#D62728" if token < triggers else "black")
    norms = value_norms(model)
    order = np.argsort(norms.values)
    kinds = np.where(order == chain.bos, 0, np.where(order < triggers, 1, 2))
    for kind, (colour, name) in enumerate((("#E69F00", "<s>"), ("#D62728", "triggers"), ("#0072B2", "other tokens"))):
        at = np.flatnonzero(kinds == kind)
        axes[1].bar(at, norms.values[order][at], color=colour, label=name)
    axes[1].set(xlabel="token, sorted", ylabel="norm of W_O v", title="Value of each token", xticks=[])
    axes[1].legend()
    study.figure(figure, "backcopy_picture", source=ds, says="attention of the only head; |W_O v| in the first block")

    def said(name: str) -> str:
        """A mean with its interval."""
        return (
            f"{float(rows[name]['difference']):.2f} [{float(rows[name]['low']):.2f}, {float(rows[name]['high']):.2f}]"
        )

    n, place = len(ids), int(np.flatnonzero(order == chain.bos)[0])
    study.claim(
        "F1", "Queries that are no triggers attend to <s>", paper="near 1 (picture)",
        found=f"{said('dormant')}; {said('drained')} on <s> or a trigger, whose values are drained too (n = {n})",
        agrees=float(rows["dormant"]["low"]) > 0.7,
    )  # fmt: skip
    study.claim(
        "F1", "Triggers attend to the token before", paper="near 1 (picture)",
        found=f"{said('copy')} on the token before, {said('active')} on <s> (n = {n} sequences)",
        agrees=float(rows["copy"]["low"]) > 0.7 and float(rows["active"]["high"]) < 0.1,
    )  # fmt: skip
    others = float(np.median(norms.values[triggers : chain.bos]))
    study.claim(
        "F2", "The value of <s> is the smallest of all tokens", paper="near 0 of 20, the lowest bar",
        found=f"{float(norms[chain.bos]):.2f}, median of the non-triggers {others:.2f}; {place} of {len(order)} tokens "
        "are smaller (n = 1 model)", agrees=place == 0 and float(norms[chain.bos]) < 0.2 * others,
    )  # fmt: skip
