"""One model under the instrument and by its own eager path: everything that is read, and how far it is apart."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

import sinkscope as sk
from parity.ledger import inputs as inputs_
from parity.ledger.reference import Eager, answer
from sinkscope.attention.view import Ask, Wants
from sinkscope.models.backends.base import Instruments
from sinkscope.models.backends.discovery import no_cache
from sinkscope.models.backends.vision import trial_picture

KEY = 1
"""The key that the edit hides: every query of a decoder behind the first sees another beside it."""

NEW_TOKENS = 3

FORBIDDEN = -1e38
"""Logits below this mean never, whatever the type of numbers."""


@dataclass
class Found:
    """Largest differences by what was compared, and what could not be compared and why."""

    off: dict = field(default_factory=dict)
    left_out: dict = field(default_factory=dict)

    def add(self, what, found, wanted):
        """Note how far two arrays are apart, relative to the largest number above 1."""
        found, wanted = (
            np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, dtype=float) for x in (found, wanted)
        )
        if found.shape != wanted.shape:
            self.left_out[f"{what} shape"] = f"{found.shape} for {wanted.shape}"
            difference = np.inf
        elif not np.isfinite(np.where(wanted < FORBIDDEN, 0.0, wanted)).all():
            self.left_out[what] = "the model's own numbers are not finite"
            return
        else:
            # Logits of tokens that a model never writes (Chameleon's images): as low as the type of numbers goes.
            never = (found < FORBIDDEN) & (wanted < FORBIDDEN)
            found, wanted = np.where(never, 0.0, found), np.where(never, 0.0, wanted)
            difference = float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max())) if found.size else 0.0
            difference = np.inf if np.isnan(difference) else difference
        self.off[what] = max(self.off.get(what, 0.0), difference)


def _outwards(path):
    """The path of a module, then those of the modules that it is in."""
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


class Comparison:
    """Runs every tower of one model both ways. ``rows`` are forward arguments of single prompts."""

    def __init__(self, network, model, kind, rows):
        self.network, self.model, self.kind, self.rows = network, model, kind, rows
        self.found = Found()

    def everything(self):
        """Compare all towers, then generation."""
        backend = self.model.backend
        prompts = self._prompts()
        for name in backend.towers:
            try:
                tower = backend.towers[name]
            except sk.errors.UnsupportedModelError as error:
                self.found.left_out[name] = str(error)
                continue
            if name == "vision" and self.kind in ("text", "both", "whole"):
                self._vision(tower)
            elif name != "cross" or self.kind != "text":  # keys of an image: with that image
                self._tower(name, tower, prompts)
        if self.kind in ("text", "pair"):
            self._generation(prompts)
        if self.kind == "text" and getattr(self.network.config, "vision_config", None) is not None:
            self._image()
        return self.found

    def _image(self):
        """One prompt with an image in it, whole."""
        given = inputs_.with_image(self.network)
        if given is None:
            self.found.left_out["image"] = "what its processor makes of an image is not known here"
            return
        whole = Comparison(self.network, self.model, "whole", [given])
        towers = self.model.backend.towers
        try:
            for name in (self.model.backend.default_tower, *(["cross"] if "cross" in towers else [])):
                whole._tower(name, towers[name], whole._prompts())
        except sk.errors.SinkscopeError as error:
            self.found.left_out["image"] = str(error)
        self.found.off |= {f"image {name}": value for name, value in whole.found.off.items()}

    def _prompts(self):
        if self.kind in ("text", "both"):
            return sk.Prompts.from_ids([row["input_ids"][0].tolist() for row in self.rows], self.model)
        if self.kind == "pair" and "input_ids" in self.rows[0]:
            pairs = [(row["input_ids"][0].tolist(), row["decoder_input_ids"][0].tolist()) for row in self.rows]
            return sk.Prompts.from_pairs(pairs, self.model)
        if self.kind == "pair":
            self.rows = self.rows[:1]
        return sk.Prompts.from_inputs(self.rows[0], self.model)

    def _tower(self, name, tower, prompts):
        layers = sorted({site.layer for site in tower.attention})
        heads = range(max((site.heads for site in tower.attention), default=0))
        probes = [sk.AttentionMap(layers, list(heads))]
        if self.model.backend.reading == "streaming":
            probes.append(sk.ValueNorm())
        if tower.residual:
            probes.append(sk.ResidualNorm())
        if self._logits_of(name):
            probes.append(sk.Logits("all"))
        lens = self.model.backend.name == "lens"
        blocks = [] if lens else [(block.path, block.turn, block.layer) for block in tower.blocks]
        eager = Eager(self.network, blocks)
        only = set() if lens else {id(self.network.get_submodule(site.path)) for site in tower.attention}
        edits = [("", [], None)]
        if lens and self.model.backend.edits:
            self.found.left_out[f"{name} edit"] = "the model's own attention cannot be edited in place"
        elif self.model.backend.edits:
            edits.append(("edit ", [sk.MaskKeys([KEY])], KEY))
        for label, edit, hide in edits:
            try:
                reading = self._read(prompts, probes, edit, name)
            except sk.errors.EditHasNoEffect:
                self._without_effect(name, eager, only)
                continue
            for index, row in enumerate(self.rows):
                heard = eager.run(partial(self._own, row, hide is None), hide, only)
                self._reading(f"{name} {label}", reading.isel(prompt=index), tower, heard, row)
                if hide is not None and "logits" not in reading and not tower.residual:
                    self.found.left_out[f"{name} edit"] = "maps alone were compared"

    def _without_effect(self, name, eager, only):
        """What the instrument says of an edit, that it changes nothing, is to hold of the model's own attention."""
        for row in self.rows:
            plain, hidden = (
                answer(eager.run(partial(self._own, row, False), hide, only).output) for hide in (None, KEY)
            )
            self.found.add(f"{name} edit logits", plain, hidden)
        self.found.left_out[f"{name} edit"] = "hiding that key changes nothing, by the model's own attention either"

    def _read(self, prompts, probes, edit, name):
        """Both prompts in one padded batch; one by one where the model is told to compute padding into a prompt."""
        try:
            return sk.run(self.model, prompts, probes, edit, batch_size=2, tower=name)
        except sk.errors.UnsupportedModelError as error:
            if "batch_size=1" not in str(error):
                raise
            self.found.left_out["padding"] = str(error)
            return sk.run(self.model, prompts, probes, edit, batch_size=1, tower=name)

    def _logits_of(self, name):
        if self.kind in ("text", "whole"):  # cross-attention to an image has the logits of the text
            return self.model.model.get_output_embeddings() is not None
        return self.kind == "pair" and name == "decoder" and self.model.model.get_output_embeddings() is not None

    def _own(self, row, maps=True):
        network = self.network
        if self.kind == "both":
            network = getattr(network, "text_model", network)
            row = {name: row[name] for name in ("input_ids", "attention_mask")}
        given = row | no_cache(network)
        if not maps:
            return network(**given)
        try:
            return network(**given, output_attentions=True, output_hidden_states=True)
        except Exception:  # the model does not know them, or cannot
            return network(**given)

    def _reading(self, label, reading, tower, heard, row):
        maps = self._maps(tower, heard)
        if maps is None:
            self.found.left_out[f"{label}maps"] = "the model's own path gives none"
        for site, call in zip(tower.attention, maps or [], strict=False):
            at = reading.sel(layer=site.layer)
            at = at.isel(call=site.call) if "call" in at.dims else at
            weights, value = call
            queries, keys = weights.shape[-2:]
            if "attention" in at:
                self.found.add(f"{label}maps", at.attention.values[: weights.shape[1], :queries, :keys], weights[0])
            if "value_norm" in at and value is not None:
                self.found.add(
                    f"{label}values", at.value_norm.values[: value.shape[1], :keys], value[0].double().norm(dim=-1)
                )
        if "residual_norm" in reading:
            self._streams(label, reading, tower, heard)
        if "logits" in reading:
            wanted = answer(heard.output)[0]
            self.found.add(f"{label}logits", reading.logits.values[: len(wanted)], wanted)

    def _streams(self, label, reading, tower, heard):
        states = [s for s in getattr(heard.output, "hidden_states", None) or () if isinstance(s, torch.Tensor)]
        if not heard.streams and len(states) == tower.depth + 1:  # read through TransformerLens: the last is normalised
            heard.streams = {n: (states[n], states[n + 1] if n + 2 < len(states) else None) for n in range(tower.depth)}
        for block in tower.blocks:
            given, made = heard.streams.get(block.layer, (None, None))
            after = heard.streams.get(block.layer + 1, (None, None))[0]
            # Qwen3-VL adds features between blocks: the stream behind one is what the next one gets.
            made = after if after is not None and made is not None and after.shape == made.shape else made
            sites = (("embed", given),) if block.layer == 0 else ()
            for site, states in (*sites, (f"{block.layer}.post", made)):
                if states is None or states.ndim not in (3, 4) or site not in reading.site:
                    continue
                where = next(each for each in tower.residual if each.name == site)
                states = states.mean(where.streams) if states.ndim == 4 and where.streams is not None else states
                wanted = states[0].double().norm(dim=-1)
                if wanted.ndim == 1:
                    self.found.add(
                        f"{label}streams", reading.residual_norm.sel(site=site).values[: len(wanted)], wanted
                    )

    def _maps(self, tower, heard):
        """Map and values of each call of a tower: of the modules' own calls, else what they or the model return."""
        if getattr(self.model.backend, "inside", False):
            return [(next(heard.inner[p] for p in _outwards(site.path) if p in heard.inner), None)
                    for site in tower.attention]  # fmt: skip
        calls = {}
        for call in heard.calls:
            calls.setdefault(id(call.module), []).append(call)
        found = []
        for site in tower.attention if calls else ():
            own = calls.get(id(self.network.get_submodule(site.path)))
            if not own:
                break
            call = own.pop(0)
            found.append((call.weights, call.value))
        if len(found) == len(tower.attention):
            return found
        for name in (f"{tower.name}_attentions", "attentions"):
            maps = [each for each in getattr(heard.output, name, None) or () if isinstance(each, torch.Tensor)]
            if len(maps) == len(tower.attention) and all(each.ndim == 4 for each in maps):
                return [(each, None) for each in maps]
        return None

    @torch.no_grad()
    def _vision(self, tower):
        """The vision part by itself, as a tower inside a larger model."""
        root = self.model.backend.vision_root()
        module = self.network.get_submodule(root) if root else None
        if module is None:
            self.found.left_out["vision"] = "its module was not found"
            return
        given = trial_picture(module)
        maps = {}
        wants = {
            site.layer: Wants(Ask("map", {"heads": tuple(range(site.heads))}), "value_norm") for site in tower.attention
        }
        instruments = Instruments(
            wants=wants, collect=lambda site, stats: maps.setdefault((site.layer, site.call), stats)
        )
        hidden = self.model.backend.forward(given, tower, instruments).hidden
        heard = Eager(self.network).run(lambda: module(**given))
        self.found.add("vision output", hidden, answer(heard.output))
        own = self._maps(tower, heard)
        for site, call in zip(tower.attention, own or [], strict=False):
            stats = maps[site.layer, site.call]
            if stats["map"].shape == call[0].shape:  # a tower with windows gives several maps for a layer
                self.found.add("vision maps", stats["map"], call[0])

    def _generation(self, prompts):
        if not self.network.can_generate():
            return
        own, options = [], {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0}
        try:
            for row in self.rows:
                given = {name: tensor for name, tensor in row.items() if name != "decoder_input_ids"}
                mask = {"attention_mask": torch.ones_like(row["input_ids"])} if "input_ids" in row else {}
                start = {"decoder_input_ids": row["decoder_input_ids"]} if self.kind == "pair" else {}
                start |= {"decoder_start_token_id": int(row["decoder_input_ids"][0, 0])} if start else {}
                eager = Eager(self.network)
                ids = eager.run(lambda given=given | mask | start: self.network.generate(**given, **options)).output
                own.append(ids[0, -NEW_TOKENS:].tolist())
        except Exception as error:  # the model's own generation: nothing to compare with
            self.found.left_out["generate"] = f"the model's own: {type(error).__name__}: {first_line(error)}"
            return
        try:
            same = self._written(prompts, 2) == own
            if not same and self._written(prompts, 1) == own and self._own_batch(options) != own:
                self.found.left_out["generate"] = "padded on the left the model itself writes other tokens than alone"
                return
        except sk.errors.SinkscopeError as error:
            self.found.left_out["generate"] = str(error)
            return
        self.found.off["generate"] = 0.0 if same else np.inf

    def _written(self, prompts, batch_size):
        made = sk.generate(self.model, prompts, eos_token_id=None, max_new_tokens=NEW_TOKENS, batch_size=batch_size)
        side = made if made.other is None else made.other
        return [ids[-NEW_TOKENS:].tolist() for ids in side.ids]

    def _own_batch(self, options):
        """What the model itself writes for both prompts in one batch, padded on the left."""
        ids = [row["input_ids"][0] for row in self.rows]
        longest = max(map(len, ids))
        given = torch.stack([torch.nn.functional.pad(one, (longest - len(one), 0)) for one in ids])
        mask = torch.stack([torch.nn.functional.pad(torch.ones_like(one), (longest - len(one), 0)) for one in ids])
        run = partial(self.network.generate, given, attention_mask=mask, **options)
        return Eager(self.network).run(run).output[:, -NEW_TOKENS:].tolist()


def first_line(error):
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [""])[0][:160]
