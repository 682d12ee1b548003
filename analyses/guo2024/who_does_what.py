"""Which half does which task: attention copies back, the feed-forward block knows the bigrams.

Paper: Guo et al. 2024, bars of excess risk without attention and without MLP. Claim: a double dissociation: without
attention the back-copy fails and the bigrams stay, without the MLP the bigrams fail.
Cost: three passes, seconds.
Different here: a bigram chain made from a seed instead of Shakespeare's characters, width 64; in models of several
layers all sublayers of a kind go at once; intervals are over sequences. Excess is risk minus the best possible.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
import xarray as xr

import sinkscope as sk
from sinkscope.analysis import Study, need, with_intervals
from sinkscope.tasks.backcopy import SYMBOLS, risks, sample, zipf_chain


@contextmanager
def without(model: sk.Model, part: str) -> Iterator[None]:
    """While open, the named sublayer (``attn`` or ``mlp``) of every block gives nothing."""
    with ExitStack() as stack:
        for block in model.model.transformer.h if part else ():
            inner = block.attn.c_proj if part == "attn" else block.mlp
            stack.callback(inner.register_forward_hook(lambda _m, _a, out: torch.zeros_like(out)).remove)
        yield


with Study(__doc__, paper="guo2024", model="zoo:bb-1l") as study:
    model = study.model
    made_for = hasattr(model.config, "sinkscope_triggers")
    need(
        model, made_for, "a model trained on Bigram-Backcopy, whose triggers are known, such as zoo:bb-1l or zoo:bb-3l"
    )
    chain = zipf_chain(len(SYMBOLS), len(model.config.sinkscope_triggers))
    ids = sample(chain, 16 if study.quick else 64, model.config.n_positions, np.random.default_rng(7))
    prompts = sk.Prompts.from_ids(ids.tolist(), model)
    arms = {"full": "", "no MLP": "mlp", "no attention": "attn"}
    found = []
    for name, part in arms.items():

        def read(part: str = part) -> xr.Dataset:
            """All logits, with a part taken out."""
            with without(model, part):
                return sk.run(model, prompts, [sk.Logits("all")], batch_size=16)

        logits = torch.from_numpy(study.reading(name.replace(" ", "-"), read)["logits"].values)
        each = [risks(chain, ids[i : i + 1], logits[i : i + 1]) for i in range(len(ids))]
        found.append([[row["bigram_excess"], row["backcopy_risk"]] for row in each])
    dims = ("arm", "prompt", "task")
    risk = xr.DataArray(found, dims=dims, coords={"arm": list(arms), "task": ["bigram", "back-copy"]})
    table = with_intervals(risk)
    shown = table["difference"].assign_attrs(
        long_name="excess risk", units="nat", model_id=model.id, n_prompts=len(ids)
    )
    axes = sk.plot.grouped_bars(
        shown, interval=(table["low"], table["high"]), title="Who does what", reference=float(np.log(len(SYMBOLS))),
    )  # fmt: skip
    study.figure(
        axes, "who_does_what", source=shown,
        says="cross-entropy above the best possible, on triggers (back-copy) and on other tokens (bigram); dotted: a "
        "uniform guess; 95 % intervals over sequences",
    )  # fmt: skip

    def said(arm: str, task: str) -> str:
        """A risk with its interval."""
        row = table.sel(arm=arm, task=task)
        return f"{float(row['difference']):.2f} [{float(row['low']):.2f}, {float(row['high']):.2f}]"

    value = {(a, t): float(table["difference"].sel(arm=a, task=t)) for a in arms for t in ("bigram", "back-copy")}
    for arm, lost, kept in (("no attention", "back-copy", "bigram"), ("no MLP", "bigram", "back-copy")):
        study.claim(
            "F3", f"With {arm} the {lost} task fails and the {kept} task stays", paper="up to the uniform guess (bars)",
            found=f"{lost} {said(arm, lost)} nat from {said('full', lost)}, {kept} {said(arm, kept)} from "
            f"{said('full', kept)} (n = {len(ids)} sequences)",
            agrees=value[arm, lost] > 10 * value["full", lost] and value[arm, lost] > 0.5
            and value[arm, kept] < 0.2 * value[arm, lost],
        )  # fmt: skip
