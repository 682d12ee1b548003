"""Which token to scale: the first, or another?

Paper: Han et al. 2025, figure 2. Accuracy against the factor gamma on the attention to one token, in all heads. Claim:
scaling the first token has the largest and most stable effect.
Control: a random token of each question, three draws. Cost: 32 passes per question, some minutes per language model;
``layer_groups.py`` shares 16 of them.
Different here: without a network and for models of the zoo, tasks made of held-out source code (else SST-2, BoolQ and
LogiQA), of which a large model is asked fewer questions. The other tokens stand at fixed places near the start.
Accuracy is exact match of the greedy token, as in the paper; the size of the effect is the mean absolute change of the
log probability of the right option, paired over questions.
"""

from functools import partial

import panels

import sinkscope as sk
from sinkscope.analysis import LANGUAGE_MODELS, Estimate, Study

TOKENS = {"first": "first", "second": [1], "third": [2], "fifth": [4], "ninth": [8]}


def judge(study: Study, model: sk.Model) -> None:
    """Scale each token on each task, draw the curves, compare the sizes of the effects."""
    measure = partial(panels.evaluated, study, arms={name: {"keys": keys} for name, keys in TOKENS.items()})
    figure, ds, size, names = panels.draw(study, "scaled_token", measure, ("token", "first"))
    says = "exact match when one token is scaled by gamma in all heads; band: 95 % Wilson interval, first token"
    study.figure(figure, "scaled_token", source=ds, says=f"{says}; grey: range of {panels.RANDOM}s, another each draw")

    others = size.sel(token=[name for name in TOKENS if name != "first"])
    first = size.sel(token="first", drop=True)
    more = Estimate.paired(first, others.mean("token"), "+.3f", "nat")
    rivals = others.mean("prompt")
    strongest = str(rivals["token"].values[int(rivals.values.argmax())])
    study.claim(
        "Fig. 2", "Scaling the first token changes answers more than scaling another", number=more,
        paper="largest effect on SST-2, BoolQ and LogiQA", agrees=more.above(0.0),
        found=f"log probability of the right option, first token {float(first.mean()):.3f}, less the mean of four "
        f"others near the start (strongest: {strongest}, {float(rivals.max()):.3f}); mean over "
        f"{len(panels.GAMMAS) - 1} gammas, questions of {', '.join(names)}",
    )  # fmt: skip
    panels.claim_control(study, "Fig. 2", first, size, "token")


if __name__ == "__main__":
    with Study(__doc__, paper="han2025", model=LANGUAGE_MODELS) as study:
        study.for_each(judge)
