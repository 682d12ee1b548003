"""A loaded model beside the report of a reading: what the page asks of it, and the answers as packed pages."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkscope import edits, probes
from sinkscope.cli.live.again import TokensAgain
from sinkscope.cli.live.asked import MAX_GAMMA, Trial, whole
from sinkscope.engine.run import run
from sinkscope.errors import ModelError, PromptError, SchemaError
from sinkscope.plot.theme import ROLE_COLOURS, SEQUENTIAL_STOPS
from sinkscope.prompts import Prompts
from sinkscope.prompts.vocabulary import Vocabulary
from sinkscope.report.findings import findings
from sinkscope.report.heads import MAX_MAP_TOKENS, MAX_TOKENS, head_data
from sinkscope.report.massive_panel import massive_data
from sinkscope.report.payload import Payload
from sinkscope.report.runs import ShownRun, leading_dims
from sinkscope.report.sinks import Sinks
from sinkscope.report.text import visible

if TYPE_CHECKING:
    import xarray as xr

    from sinkscope.models.handle import Model

KEPT = 16
"""Readings of typed texts that are kept, so that moving gamma measures the text as it is only once."""
NEXT = 8
"""Next tokens that are shown of each run."""


class LiveModel:
    """A model that answers the page of a reading. One thing is measured at a time; others wait."""

    def __init__(self, model: Model, ds: xr.Dataset) -> None:
        """Check that the page and the model go together.

        Raises:
            SchemaError: the reading has no ``key_mass`` by prompt, so there is no head to show.
            ModelError: the model reads no text, or is not the one that was read.
        """
        if "key_mass" not in ds or "prompt" not in ds["key_mass"].dims:
            raise SchemaError("serve: this reading holds no key_mass of single prompts. Measure with --probe key-mass.")
        if model.kind not in ("decoder", "encoder", "vlm") or model.tokenizer is None:
            raise ModelError(
                f"serve: {model.id} is no model of texts ({model.kind}). Write its page: sinkscope report."
            )
        if model.fingerprint != ds.attrs["model_fingerprint"]:
            raise ModelError(
                f"serve: the weights of {model.id} are not those that were read ({ds.attrs['model_id']}, "
                f"{ds.attrs['dtype']}). Name the same model with --model, and its type with --dtype."
            )
        self.model, self.ds = model, ds
        self.layers = ds.sizes["layer"]
        self.predicts = model.kind != "encoder" and model.model.get_output_embeddings() is not None
        self._leading = leading_dims(ds)
        self._vocabulary = Vocabulary.of(model)
        self._again = TokensAgain(model, self._vocabulary, ds)
        self._kept: OrderedDict[Trial, xr.Dataset] = OrderedDict()
        self._lock = threading.Lock()

    def facts(self) -> dict[str, Any]:
        """Return what the page must know of the model: its name, its layers, which rows it can read again."""
        return {
            "model": self.model.id,
            "layers": [str(layer) for layer in self.ds["layer"].values.tolist()],
            "most_tokens": self.most_tokens,
            "most_gamma": MAX_GAMMA,
            "predicts": self.predicts,
            "rows": self._leading in ([], ["edit"]),
        }

    @property
    def most_tokens(self) -> int:
        """Most tokens of a typed text: what a page shows, or what the model takes."""
        return min(MAX_TOKENS, self.model.context_length or MAX_TOKENS)

    def try_text(self, asked: Mapping[str, Any]) -> str:
        """Measure a typed text, as it is and with one key scaled, and return a packed page of it.

        Args:
            asked: ``text``, ``gamma``, ``key`` (a position), ``first`` and ``last`` (layers).

        Raises:
            PromptError: no text, one of too many tokens, or no such position.
            SinkscopeError: as :func:`sinkscope.run`.
        """
        trial = Trial.read(asked, self.layers)
        prompts = self._prompts(trial)
        with self._lock:
            runs = [ShownRun("as it is", "no edits", self._read(Trial(trial.text), prompts))]
            if trial.gamma != 1:
                runs.append(ShownRun(f"gamma {trial.gamma:g}", repr(self._edit(trial)), self._read(trial, prompts)))
        return _packed(runs, trial, self._vocabulary)

    def rows(self, asked: Mapping[str, Any]) -> str:
        """Read the rows of one head on one prompt, and return them as a packed page: ``{"rows": reference}``.

        Args:
            asked: ``layer`` and ``head`` (places on the map), and either ``run`` and ``prompt`` of the reading, or what
                :meth:`try_text` takes, with ``run`` 0 for the text as it is and 1 for the edited one.

        Raises:
            PromptError: out of range, or the prompt of the reading cannot be made again.
            SinkscopeError: as :func:`sinkscope.run`.
        """
        layer, head = whole(asked, "layer", self.layers), whole(asked, "head", self.ds.sizes["head"])
        if "text" in asked:
            trial = Trial.read(asked, self.layers)
            edited = whole(asked, "run", 2) and trial.gamma != 1
            prompts, changes = self._prompts(trial), [self._edit(trial)] if edited else []
        else:
            prompts = self._again.prompt(whole(asked, "prompt", self.ds.sizes["prompt"]))
            changes = self._edits_of(asked)
        number = int(self.ds["layer"].values[layer])
        probe = probes.AttentionMap(layers=[number], heads=[int(self.ds["head"].values[head])])
        with self._lock:
            ds = run(self.model, prompts, [probe], changes)
        found = ds["attention"].isel(prompt=0).transpose("layer", "head", "query", "key").values
        payload, most = Payload(), MAX_MAP_TOKENS
        rows = found.reshape(-1, *found.shape[2:])[0, :most, :most]
        return payload.pack({"rows": payload.add(rows, "single")})

    def _prompts(self, trial: Trial) -> Prompts:
        prompts = Prompts.from_texts([trial.text], self.model)
        count = prompts.lengths[0]
        if count > self.most_tokens:
            raise PromptError(
                f"This text has {count} tokens; up to {self.most_tokens} are measured here. Shorten it, or measure it "
                "with sinkscope run."
            )
        if trial.key >= count:
            raise PromptError(f"Position {trial.key} is not in this text of {count} tokens. Choose one of its tokens.")
        return prompts

    def _edit(self, trial: Trial) -> edits.Edit:
        layers = [int(n) for n in self.ds["layer"].values[trial.first : trial.last + 1]]
        return edits.ScaleKeys(trial.gamma, keys=[trial.key], layers=None if len(layers) == self.layers else layers)

    def _read(self, trial: Trial, prompts: Prompts) -> xr.Dataset:
        if trial in self._kept:
            self._kept.move_to_end(trial)
            return self._kept[trial]
        asked: list[Any] = [probes.KeyMass(), probes.Entropy(), probes.ValueNorm(), probes.MassiveActivations()]
        if self.predicts:
            asked += [probes.TokenLoss(), probes.Logits(positions="last")]
        ds = run(self.model, prompts, asked, [] if trial.gamma == 1 else [self._edit(trial)])
        self._kept[trial] = ds
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return ds

    def _edits_of(self, asked: Mapping[str, Any]) -> list[edits.Edit]:
        """Edits under which a run of the reading was made."""
        if not self._leading:
            return edits.loads(str(self.ds.attrs["edits"]))
        if self._leading != ["edit"]:
            raise PromptError("Rows of a grid's runs are not read again. Record them with AttentionMap in the sweep.")
        label = str(self.ds["edit"].values[whole(asked, "run", self.ds.sizes["edit"])])
        held = json.loads(str(self.ds.attrs["edits"]))
        return edits.loads(json.dumps(held.get(label, [])))


def _packed(runs: Sequence[ShownRun], trial: Trial, vocabulary: Vocabulary) -> str:
    payload, plain = Payload(), runs[0].ds
    told, sinks = findings(plain)
    header = {
        "base": 0,
        "compared": len(runs) > 1,
        "colours": {"sequential": list(SEQUENTIAL_STOPS), "roles": ROLE_COLOURS},
        "heads": head_data(runs, payload, sinks),
        "massive": massive_data(runs, payload),
        "told": [{"heading": f.heading, "text": f.text, "state": f.state} for f in told[:3]],
        "tried": {
            "text": trial.text, "gamma": trial.gamma, "key": trial.key, "first": trial.first, "last": trial.last,
            "received": [payload.add(_received(run.ds), "single") for run in runs],
            "loss": [payload.add(run.ds["token_loss"].values[0], "single") for run in runs if "token_loss" in run.ds],
            "next": _next(runs, vocabulary) if "logits" in plain else [],
            "sinks": _sink_tokens(sinks),
        },
    }  # fmt: skip
    return payload.pack(header)


def _received(ds: xr.Dataset) -> np.ndarray:
    """Attention that each token gets from the queries that see it, mean over all layers and heads (key)."""
    return ds["key_mass"].mean(["prompt", "layer", "head"]).values


def _sink_tokens(sinks: Sinks | None) -> list[int]:
    return [] if sinks is None or not sinks.found else np.flatnonzero(sinks.mask.values[0]).tolist()


def _next(runs: Sequence[ShownRun], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Probabilities of the next token in each run: the most likely ones of any, in the order of the first run."""
    logits = [run.ds["logits"].values[0, -1].astype(np.float64) for run in runs]
    shares = [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in logits]
    chosen = {int(i) for row in shares for i in np.argsort(row)[::-1][:NEXT]}
    ordered = sorted(chosen, key=lambda i: -shares[0][i])
    return [{"token": visible(vocabulary.show(i)[0], 40), "shares": [float(row[i]) for row in shares]} for i in ordered]
