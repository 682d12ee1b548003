"""The sink logit in the theorem's own model: gradient flow with the value of <s> held at zero.

Paper: Guo et al. 2024, theorem on the sink logit. Claim: with the value of <s> held at zero the logit grows like half
ln(t).
Cost: under a minute of one core.
Different here: the simplified model of the theorem, not a transformer. The feed-forward part knows the bigram law, each
other key writes its own token with strength 4, all their logits are 0; what moves is one sink logit per token that is
no trigger. The loss is the excess risk on sampled sequences, its gradient is taken by autograd, and the flow is
integrated in ln(t), so late growth is not a matter of the step size. It is followed to t = 10^10, as it rises faster
before about 10^6. Five chains, the chain as the unit. That the zoo's models, which train everything, do otherwise is
told by dynamics.py.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import solve_ivp

from recipes import seeds
from sinkscope.analysis import Estimate, Study
from sinkscope.tasks.backcopy import Chain, sample, zipf_chain

STRENGTH = 4.0
"""What a key other than ``<s>`` adds to the logit of its own token."""
LAST_DECADES = 2.0
"""The slope is fitted over the last two decades of time."""


@dataclass(frozen=True)
class SimplifiedModel:
    """The model of the theorem on the rows of sampled sequences whose query is no trigger."""

    law: Float[torch.Tensor, "row vocab"]
    """Law of the next token: what the feed-forward part writes, as log probabilities."""
    counts: Float[torch.Tensor, "row vocab"]
    """How often each token stands among the keys, the query included, ``<s>`` not."""
    token: Int[torch.Tensor, " row"]
    """The query's token, counted from the first that is no trigger."""

    @classmethod
    def of(cls, chain: Chain, rng: np.random.Generator, sequences: int = 16, length: int = 64) -> "SimplifiedModel":
        """Take the rows from sequences of the chain."""
        ids = sample(chain, sequences, length, rng)[:, 1:]
        counts = torch.nn.functional.one_hot(ids, chain.bos).double().cumsum(1)
        plain = ids >= chain.triggers
        law = torch.from_numpy(chain.conditional)[ids[plain]]
        return cls(law, counts[plain], ids[plain] - chain.triggers)

    def excess_risk(self, sink_logit: Float[torch.Tensor, " token"]) -> Float[torch.Tensor, ""]:
        """Return the mean divergence of the model's law from the chain's, in nats."""
        others = self.counts.sum(-1)
        share = torch.sigmoid(sink_logit[self.token] - others.log())
        written = (1 - share)[:, None] * STRENGTH * self.counts / others[:, None]
        log_law = self.law.clamp(min=1e-300).log()
        return (self.law * (log_law - torch.log_softmax(log_law + written, -1))).sum(-1).mean()


def flow(model: SimplifiedModel, tokens: int, times: NDArray[np.float64]) -> xr.DataArray:
    """Follow the gradient flow from zero: the sink logit (step token)."""

    def downhill(log_time: float, at: NDArray[np.float64]) -> NDArray[np.float64]:
        state = torch.tensor(at, requires_grad=True)
        (slope,) = torch.autograd.grad(model.excess_risk(state), state)
        return -np.exp(log_time) * slope.numpy()

    grid = np.log(times)
    path = solve_ivp(downhill, (grid[0], grid[-1]), np.zeros(tokens), t_eval=grid, rtol=1e-5, atol=1e-7).y.T
    return xr.DataArray(path, {"step": times}, ("step", "token"), "sink_logit")


def growth(sink_logit: xr.DataArray) -> float:
    """Slope of the mean sink logit in ln(t) over the last decades."""
    mean = sink_logit.mean("token")
    late = mean.where(mean["step"] >= mean["step"][-1] / 10**LAST_DECADES, drop=True)
    return float(stats.linregress(np.log(late["step"].values), late.values).slope)


def draw(study: Study, runs: list[xr.DataArray]) -> None:
    """Mean sink logit over time, one thin line per chain, beside the slope of one half."""
    figure, ax = plt.subplots(figsize=(6.4, 4.2))
    for index, run in enumerate(runs):
        ax.plot(run["step"], run.mean("token"), color="C0", lw=1, label=None if index else "gradient flow, by chain")
    first = runs[0].mean("token")
    ax.plot(first["step"], first[-1] + 0.5 * np.log(first["step"] / first["step"][-1]), "k:", label="half ln(t)")
    ax.set(xscale="log", xlabel="time of the gradient flow", ylabel="mean sink logit", ylim=(-0.2, None))
    ax.legend(frameon=False)
    source = runs[0].to_dataset().assign_attrs(model_id=study.subject)
    study.figure(figure, "theorem", source=source, says=f"{len(runs)} chains, value of <s> held at zero")


def main() -> None:
    """Follow the flow on every chain and judge its growth."""
    with Study(__doc__, paper="guo2024", model=()) as study:
        study.subject = "theorem's model"
        runs = []
        for seed in range(3 if study.quick else 5):
            chain = zipf_chain(seed=seed)
            model = SimplifiedModel.of(chain, np.random.default_rng(seed))
            times = np.logspace(-1, 10, 67)
            runs.append(flow(model, chain.bos - chain.triggers, times))
        draw(study, runs)
        mean, ends = seeds.mean_and_interval([growth(run) for run in runs])
        slope = Estimate(mean, *(ends or (mean, mean)), len(runs), "", ".3f")
        low, high = slope.above(0.4), slope.below(0.6)
        study.claim(
            "Theorem", "The sink logit grows like half ln(t) while the value of <s> is held at zero",
            paper="slope 1/2", number=slope, found="slope in ln(t) over the last two decades of time",
            agrees=low if isinstance(low, str) else high if isinstance(high, str) else low and high,
        )  # fmt: skip


if __name__ == "__main__":
    main()
