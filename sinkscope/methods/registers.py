"""Register neurons of a vision transformer, and registers that are added at test time (Jiang et al. 2025).

A few MLP units fire at a few patches and make them outliers of large norm, which attention then sinks into. What they
write there can be moved to a token of zeros that stands behind the patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from sinkscope.arguments import checked, is_whole, shown
from sinkscope.edits import Edit, Patch
from sinkscope.edits.patch import record
from sinkscope.engine.run import find_tower
from sinkscope.errors import MetricError, PromptError, UnsupportedModelError
from sinkscope.methods.secondary_mlp import mlp_of
from sinkscope.metrics import valley_threshold
from sinkscope.prompts.identity import check_prompts
from sinkscope.prompts.model import check_model
from sinkscope.registry import method
from sinkscope.roles import ROLE_INDEX

if TYPE_CHECKING:
    from sinkscope.models.handle import Model
    from sinkscope.prompts import Prompts

Units = Float[torch.Tensor, "... token unit"]
FILLS = ("zero", "mean", "keep")


@checked(MetricError)
def outlier_threshold(norms: ArrayLike) -> float:
    """Return the norm above which a patch is an outlier: the valley between two humps, else mean plus 3 deviations.

    Darcet et al. choose the number by eye for each model (150 for DINOv2-g); Jiang et al. give the second rule.

    Raises:
        MetricError: no finite number.
    """
    values = np.asarray(norms, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        raise MetricError("outlier_threshold: none of the norms is finite. Give norms of patches.")
    valley = float(valley_threshold(values))
    return valley if np.isfinite(valley) else float(values.mean() + 3 * values.std())


@method()
def register_neurons(
    model: Model, prompts: Prompts, *, layer: int | None = None, threshold: float | None = None,
    top_layer: int | None = None, top: int = 10,
) -> xr.Dataset:  # fmt: skip
    """Return the MLP units that fire most at outlier patches (FindRegisterNeurons), strongest first.

    Args:
        model: a vision encoder.
        prompts: pictures, from ``Prompts.from_images``.
        layer: block behind which norms are read; None takes the last. They are those of the residual stream, before
            the final norm.
        threshold: norm of an outlier; None takes :func:`outlier_threshold` over all pictures.
        top_layer: last block whose units are searched; None takes ``layer``. The paper takes the one where norms jump.
        top: how many units.

    Variables over ``neuron``: ``layer``, ``unit``, ``activation`` (mean behind the nonlinearity at outliers, mean over
    pictures that have any) and ``elsewhere`` (at the other patches). Empty where no patch is an outlier; attributes
    ``threshold``, ``outliers`` and ``images`` (that have one). Source: Jiang et al. 2025 (jiang2025), algorithm 1.

    Raises:
        UnsupportedModelError: not a vision encoder, no such block, or an MLP that was not found.
    """
    depth = _encoder(model, prompts, "register_neurons")
    last = depth - 1 if layer is None else layer
    _need_blocks(depth, last, last if top_layer is None else top_layer, top)
    search = range((last if top_layer is None else top_layer) + 1)
    patches = [np.flatnonzero(roles == ROLE_INDEX["image"]) for roles in prompts.roles]
    norms, hidden = [], []
    for index in range(len(prompts)):
        seen, inner = _pass(model, prompts, index, search)
        norms.append(np.linalg.norm(seen[last][0], axis=-1)[patches[index]])
        hidden.append([inner[at][patches[index]] for at in search])
    edge = outlier_threshold(np.concatenate(norms)) if threshold is None else float(threshold)
    found = [(own > edge, units) for own, units in zip(norms, hidden, strict=True) if (own > edge).any()]
    attrs = {
        "method": "register_neurons", "reference": "jiang2025", "threshold": edge, "images": len(found),
        "outliers": int(sum(high.sum() for high, _ in found)),
    }  # fmt: skip
    if not found:
        empty = {name: ("neuron", np.zeros(0, kind)) for name, kind in (("layer", int), ("unit", int))}
        return xr.Dataset(empty | {name: ("neuron", np.zeros(0)) for name in ("activation", "elsewhere")}, attrs=attrs)
    at, rest = ([_mean_units(found, i, inside) for i in range(len(search))] for inside in (True, False))
    widths = np.cumsum([0, *map(len, at)])
    flat, others = np.concatenate(at), np.concatenate(rest)
    order = np.argsort(-flat, kind="stable")[:top]
    layers = np.searchsorted(widths, order, side="right") - 1
    data = {"layer": layers, "unit": order - widths[layers], "activation": flat[order], "elsewhere": others[order]}
    return xr.Dataset({name: ("neuron", values) for name, values in data.items()}, attrs=attrs)


def _mean_units(found: Sequence[tuple[np.ndarray, list[np.ndarray]]], block: int, inside: bool) -> np.ndarray:
    """Mean activation of a block's units at outliers or at other patches, over pictures that have any; else NaN."""
    rows = [units[block][high == inside].mean(0) for high, units in found if (high == inside).any()]
    return np.mean(rows, 0) if rows else np.full(found[0][1][block].shape[-1], np.nan)


def moved(
    hidden: Units, units: Sequence[int], patches: Int[torch.Tensor, " patch"], *, register: int | None = -1,
    joint: bool = False, fill: str = "zero",
) -> Units:  # fmt: skip
    """Return activations with those of register units taken from the patches and given to the register.

    ``register`` gets each unit's value of largest magnitude over all tokens; with ``joint`` the largest over these
    units together, as the released code has it; None leaves it out. ``fill`` says what patches keep: nothing, their
    mean, or what they had.
    """
    new, chosen = hidden.clone(), list(units)
    part = hidden[..., chosen]
    if fill != "keep":
        mean = part[..., patches, :].mean(-2, keepdim=True) if fill == "mean" else torch.zeros_like(part[..., :1, :])
        kept = part.clone()
        kept[..., patches, :] = mean.expand_as(part[..., patches, :])
        new[..., chosen] = kept
    if register is not None:
        pool = part.flatten(-2)[..., None] if joint else part
        largest = pool.gather(-2, pool.abs().argmax(-2, keepdim=True))[..., 0, :]
        new[..., register, chosen] = largest.expand_as(new[..., register, chosen])
    return new


@method()
def with_registers(
    model: Model, prompts: Prompts, neurons: xr.Dataset, *, register: bool = True, joint: bool = False,
    fill: str = "zero",
) -> xr.Dataset:  # fmt: skip
    """Return what the encoder computes with a token of zeros behind the patches that takes the register units' values.

    Args:
        model: a vision encoder with learned positions.
        prompts: pictures, from ``Prompts.from_images``.
        neurons: what :func:`register_neurons` found, on other pictures.
        register: False adds no token: the units are silenced at the patches, the paper's control.
        joint: one value for all units of a block, as the released code has it.
        fill: what patches keep of the units: ``"zero"``, their ``"mean"``, or ``"keep"``.

    Variables: ``norm`` (prompt, layer, token) of the residual stream behind each block, ``role`` (token), the register
    last; ``cls_cosine`` (prompt), the first token's state behind the last block against that without any change.
    Source: Jiang et al. 2025 (jiang2025), algorithm 2.

    Raises:
        UnsupportedModelError: not a vision encoder, or one that turns positions inside its blocks.
    """
    depth = _encoder(model, prompts, "with_registers")
    if not isinstance(cast("object", neurons), xr.Dataset) or not {"layer", "unit"} <= set(neurons.variables):
        raise PromptError(f"with_registers(neurons={shown(neurons)}): give what register_neurons returns.")
    if fill not in FILLS:
        raise UnsupportedModelError(f"with_registers(fill={fill!r}): use one of {list(FILLS)}.")
    units = {
        int(layer): neurons["unit"].values[neurons["layer"].values == layer].tolist()
        for layer in np.unique(neurons["layer"].values)
    }
    norms: list[np.ndarray] = []
    cosine: list[float] = []
    for index in range(len(prompts)):
        places = torch.as_tensor(np.flatnonzero(prompts.roles[index] == ROLE_INDEX["image"]))
        plain, _ = _pass(model, prompts, index, ())
        with _changed(model, units, places, (register, joint, fill)):
            states, _ = _pass(model, prompts, index, ())
        norms.append(np.stack([np.linalg.norm(states[layer][0], axis=-1) for layer in range(depth)]))
        one, other = plain[depth - 1][0, 0], states[depth - 1][0, 0]
        cosine.append(float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)))
    names = [*_roles(prompts), *(["added"] if register else [])]
    attrs = {"method": "with_registers", "reference": "jiang2025", "register": int(register), "fill": fill}
    data = {"norm": (("prompt", "layer", "token"), np.stack(norms)), "cls_cosine": ("prompt", np.asarray(cosine))}
    return xr.Dataset(data, coords={"role": ("token", names), "layer": np.arange(depth)}, attrs=attrs)


@method()
def held_at_mean(model: Model, reference: Prompts, keys: Any = "register") -> list[Edit]:
    """Return edits that hold tokens at their mean over other pictures behind every block but the last (Fix-Reg-Mean).

    Where the registers of a vision encoder act as biases, nothing is lost under them; hold as many patches for a
    control. Run them on pictures that are not among ``reference``: ``sk.run(model, prompts, probes, edits)``.

    Source: Sun et al. 2024 (sun2024), section 5.

    Args:
        model: a vision encoder, or any model whose prompts have the same tokens at the same places.
        reference: what the mean is taken over, all of one length.
        keys: the tokens, as in any edit: a role, positions, labels.

    Raises:
        PromptError: prompts of several lengths, in which a place has no one token.
        UnsupportedModelError: a model of one block, which has none but the last.
    """
    check_prompts(reference, model, "held_at_mean")
    if len(set(reference.lengths)) != 1:
        raise PromptError(
            f"held_at_mean: prompts of {sorted(set(reference.lengths))} tokens. Give pictures of one size, so that a "
            "place is the same token in each."
        )
    depth = find_tower(model, None).depth
    if depth < 2:
        raise UnsupportedModelError(
            f"held_at_mean: {model.id} has one block, and behind the last one nothing is held. Take a deeper model."
        )
    states = record(model, reference, "state", range(depth - 1))
    return [
        Patch("state", layer=layer, source=state.mean(0, keepdims=True), keys=keys) for layer, state in states.items()
    ]


def _need_blocks(depth: int, layer: Any, top_layer: Any, top: Any) -> None:
    for name, value, low, high in (("layer", layer, 0, depth - 1), ("top_layer", top_layer, 0, depth - 1)):
        if not is_whole(value) or not low <= value <= high:
            raise UnsupportedModelError(
                f"register_neurons({name}={shown(value)}): the model has {depth} blocks. Use a whole number from "
                f"{low} to {high}."
            )
    if not is_whole(top) or top < 1:
        raise UnsupportedModelError(f"register_neurons(top={shown(top)}): give a whole number from 1 on.")


def _roles(prompts: Prompts) -> list[str]:
    """Return the role of each token of the first picture, by name."""
    names = {index: name for name, index in ROLE_INDEX.items()}
    return [names[int(role)] for role in prompts.roles[0]]


def _encoder(model: Model, prompts: Prompts, name: str) -> int:
    check_model(model, name)
    if model.kind != "vision":
        raise UnsupportedModelError(f"{model.id}: registers are added to a vision encoder. Load its tower alone.")
    check_prompts(prompts, model, name)
    if len(set(prompts.lengths)) > 1:
        raise UnsupportedModelError("registers: the pictures have different numbers of patches. Give one size.")
    return find_tower(model, None).depth


def _pass(
    model: Model, prompts: Prompts, index: int, layers: Sequence[int]
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """States behind every block (batch token dim), and activations of some blocks' units (token unit)."""
    states: dict[int, np.ndarray] = {}
    inner: dict[int, np.ndarray] = {}

    def keep_state(layer: int) -> Any:
        def hook(_module: Any, _args: Any, out: Any) -> None:
            states[layer] = (out[0] if isinstance(out, tuple) else out).detach().float().cpu().numpy()

        return hook

    def keep_units(layer: int) -> Any:
        def hook(_module: Any, args: Any) -> None:
            inner[layer] = args[0].detach().float().reshape(-1, args[0].shape[-1]).cpu().numpy()

        return hook

    blocks = find_tower(model, None).blocks
    with torch.no_grad(), model.evaluating(), ExitStack() as stack:
        for block in blocks:
            handle = model.model.get_submodule(block.path).register_forward_hook(keep_state(block.layer))
            stack.callback(handle.remove)
        for layer in layers:
            stack.callback(_writer(model, layer).register_forward_pre_hook(keep_units(layer)).remove)
        model.model(**prompts.batch([index], model.device).inputs)
    return states, inner


def _writer(model: Model, layer: int) -> torch.nn.Module:
    """The projection by which an MLP writes: the last of its matrices."""
    return [m for m in mlp_of(model, layer).modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 2][-1]


@contextmanager
def _changed(
    model: Model, units: dict[int, list[int]], places: torch.Tensor, how: tuple[bool, bool, str]
) -> Iterator[None]:
    """While open, a token of zeros stands behind the patches and takes what the units write."""
    register, joint, fill = how

    def add(_module: Any, args: Any, given: dict[str, Any]) -> Any:
        if given.get("position_embeddings") is not None:
            raise UnsupportedModelError(
                f"{model.id} turns positions inside its blocks, where an added token has none. Use register=False."
            )
        return (torch.cat([args[0], torch.zeros_like(args[0][:, :1])], 1), *args[1:]), given

    def change(chosen: list[int]) -> Any:
        def hook(_module: Any, args: Any) -> Any:
            place = -1 if register else None
            return (moved(args[0], chosen, places.to(args[0].device), register=place, joint=joint, fill=fill),)

        return hook

    first = model.model.get_submodule(find_tower(model, None).blocks[0].path)
    with model.exclusive(), ExitStack() as stack:
        if register:
            stack.callback(first.register_forward_pre_hook(add, with_kwargs=True).remove)
        for layer, chosen in units.items():
            stack.callback(_writer(model, layer).register_forward_pre_hook(change(chosen)).remove)
        yield
