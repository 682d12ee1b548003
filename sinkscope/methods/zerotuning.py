"""ZeroTuning: scale the attention to the first token, in heads and by a factor found on calibration questions.

Han et al. 2025 (arXiv 2505.11739). Profiling: the first token is scaled in one head alone, and the head is
up-effective or down-effective as the score rises or falls. Rescaling: one gamma for all heads of the dominant class.
Supervised, gamma has the best accuracy (or loss) on labelled calibration questions; unsupervised, the lowest mean
entropy of the answer, without a label. The released code reports the best gamma on the questions it was chosen on; here
settings come from the calibration part of a task, and its test part is answered once.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import xarray as xr

from sinkscope import metrics
from sinkscope.edits.keys import ScaleKeys
from sinkscope.errors import MetricError, PromptError
from sinkscope.methods.base import MethodResult
from sinkscope.methods.zerotuning_gamma import GAMMAS, best_gamma, gamma_curve
from sinkscope.methods.zerotuning_heads import SMOOTH, check_measure, choose_heads, estimate, profile
from sinkscope.registry import method
from sinkscope.tasks import Questions, Task, evaluate, rate

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from sinkscope.models.handle import Model


@dataclass(frozen=True)
class ZeroTuningSettings:
    """What ZeroTuning fixes beforehand.

    Attributes:
        mode: what heads and gamma are chosen by: ``"accuracy"`` (label logits), ``"exact"`` (greedy token, the paper's
            score), ``"loss"``, ``"option_loss"`` (among the options), or ``"entropy"``, which reads no label.
        gammas: grid for the last choice.
        profile_gamma: gamma of the profile (Figure 5: 1.5).
        profile_by: ``"passes"``, one for each head as in the paper, or ``"gradient"``, the first-order estimate from
            one backward pass per question, for ``mode`` ``"loss"``, ``"option_loss"`` and ``"entropy"``.
        heads: class that is scaled: ``"dominant"``, ``"up"``, ``"down"``, or ``"all"``, which needs no profile.
        share: at most this part of all heads; the paper finds 0.4 to 0.7 best. None: the whole class.
        ties: ``"separate"``, or ``"down"`` as in the paper.
        keys: which token is scaled.
        batch_size: prompts per pass.
    """

    mode: str = "accuracy"
    gammas: tuple[float, ...] = GAMMAS
    profile_gamma: float = 1.5
    profile_by: str = "passes"
    heads: str = "dominant"
    share: float | None = None
    ties: str = "separate"
    keys: Any = "first"
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Check the mode and the way of profiling.

        Raises:
            MetricError: no such mode or way, or a gradient of a mode that has none.
        """
        check_measure(self.mode, "ZeroTuningSettings")
        if self.profile_by not in ("passes", "gradient"):
            raise MetricError(f"ZeroTuningSettings(profile_by={self.profile_by!r}): use 'passes' or 'gradient'.")
        if self.profile_by == "gradient" and self.mode not in SMOOTH:
            raise MetricError(
                f"ZeroTuningSettings(profile_by='gradient', mode={self.mode!r}): a derivative needs mode='loss', "
                "'option_loss' or 'entropy'. Use one of them, or profile_by='passes'."
            )
        object.__setattr__(self, "gammas", tuple(float(gamma) for gamma in self.gammas))


@dataclass(frozen=True, eq=False)
class ZeroTuningResult(MethodResult):
    """What :func:`zerotune` chose and found.

    Attributes:
        edit: the edit with the chosen heads and gamma, to be passed to ``run``, ``sweep`` or ``generate``.
        kind: class of the heads: ``"up"``, ``"down"``, ``"all"``, or ``"none"`` where no head moves the score.
        profile: see :func:`sinkscope.methods.zerotuning_heads.profile`; None where all heads were taken.
        calibration: the curve over gamma on the calibration questions.
        test: scores (edit, prompt) on the test questions, edits ``none`` and ``zerotuning``.
        settings: what was fixed beforehand.
        task: name of the task.
    """

    reference: ClassVar[tuple[str, ...]] = ("han2025",)

    edit: ScaleKeys
    kind: str
    profile: xr.Dataset | None
    calibration: xr.Dataset
    test: xr.Dataset
    settings: ZeroTuningSettings
    task: str

    @property
    def gamma(self) -> float:
        """Return the chosen gamma."""
        return self.edit.gamma

    @property
    def gain(self) -> xr.Dataset:
        """Accuracy of the test with less without the edit: ``difference``, ``low``, ``high``, ``p_value``, ``n``."""
        return metrics.compare(self.test["correct"], to="none").isel(edit=0)

    def table(self) -> pd.DataFrame:
        """Return the accuracy on the test without and with the edit, and the difference, each with interval and n."""
        import pandas as pd

        shares, gain = rate(self.test["correct"]), self.gain
        rows = {str(name): shares.sel(edit=name) for name in shares["edit"].values}
        columns = {"value": "difference", "low": "low", "high": "high", "n": "n"}
        data = {name: {column: found[column].item() for column in columns} for name, found in rows.items()}
        data["difference"] = {column: gain[name].item() for column, name in columns.items()}
        return pd.DataFrame.from_dict(data, orient="index")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw what gamma was chosen by over the grid, on the calibration questions."""
        from sinkscope import plot

        curve, mode = self.calibration, self.settings.mode
        edges = (curve["accuracy_low"], curve["accuracy_high"]) if mode == "accuracy" else None
        return plot.sweep_curve(curve[mode], interval=edges, title=f"ZeroTuning: {self.task}", ax=ax)

    def to_dataset(self) -> xr.Dataset:
        """Everything in one dataset that can be saved: test scores, curve (``calibration_...``), profile."""
        ds = self.test.copy()
        ds = ds.assign({f"calibration_{name}": values for name, values in self.calibration.data_vars.items()})
        if self.profile is not None:
            ds = ds.assign({f"profile_{name}": values for name, values in self.profile.data_vars.items()})
        fixed = dataclasses.asdict(self.settings) | {"keys": str(self.settings.keys)}
        ds.attrs |= {
            "method": "zerotuning", "task": self.task, "chosen": json.dumps(self.edit.to_dict()), "kind": self.kind,
            "settings": json.dumps(fixed),
        }  # fmt: skip
        return ds

    def summary(self) -> str:
        """Return one paragraph: what was chosen, what it did on the test, with n and intervals."""
        found, gain = rate(self.test["correct"]), self.gain
        words = [
            f"{name} {float(found['value'].sel(edit=name)):.1%} "
            f"[{float(found['low'].sel(edit=name)):.1%}, {float(found['high'].sel(edit=name)):.1%}]"
            for name in ("none", "zerotuning")
        ]
        moved = f"{float(gain['difference']):+.1%} [{float(gain['low']):+.1%}, {float(gain['high']):+.1%}]"
        heads = "all" if self.edit.heads is None else str(sum(map(len, self.edit.heads.values())))
        return (
            f"{self.task}: gamma {self.gamma:g} on {heads} heads ({self.kind}), chosen by {self.settings.mode} on "
            f"{self.calibration.attrs['n']} questions. Accuracy on {int(found['n'][0])} others: {', '.join(words)}; "
            f"difference {moved}."
        )


@method()
def zerotune(
    model: Model, task: Task, settings: ZeroTuningSettings | None = None, *, executor: Any = None
) -> ZeroTuningResult:
    """Profile heads and choose gamma on ``task.calibration``, then answer ``task.test`` once with and without the edit.

    Args:
        model: the model; a decoder.
        task: its parts share no prompt, which :class:`sinkscope.tasks.Task` sees to.
        settings: what is fixed beforehand.
        executor: as in :func:`sinkscope.sweep`.

    Raises:
        PromptError: ``task`` is no Task: the two parts would not be known to be apart.
        EditHasNoEffect: scaling changes nothing in some head.
    """
    if not isinstance(task, Task):
        raise PromptError(
            f"zerotune: the task is a {type(task).__name__}. Give a sinkscope.tasks.Task, whose calibration and test "
            "parts are checked to be apart."
        )
    chosen = settings or ZeroTuningSettings()
    questions = Questions.of(task.calibration, model)
    template = ScaleKeys(chosen.profile_gamma, keys=chosen.keys)
    found, kind = None, "all"
    if chosen.heads != "all":
        if chosen.profile_by == "gradient":
            found = estimate(model, questions, template, by=chosen.mode)
        else:
            found = profile(model, questions, template, by=chosen.mode, batch_size=chosen.batch_size, executor=executor)
        heads = choose_heads(found, chosen.heads, share=chosen.share, ties=chosen.ties)
        kind = str(heads.attrs["kind"]) if heads.any() else "none"
        listed = metrics.head_list(heads)
        template = dataclasses.replace(template, heads=listed, allow_empty=not listed)
    curve = gamma_curve(model, questions, template, chosen.gammas, batch_size=chosen.batch_size, executor=executor)
    edit = dataclasses.replace(template, gamma=best_gamma(curve, chosen.mode))
    asked = Questions.of(task.test, model)
    test = evaluate(model, asked, {"none": [], "zerotuning": [edit]}, batch_size=chosen.batch_size)
    return ZeroTuningResult(edit, kind, found, curve, test, chosen, task.name)
