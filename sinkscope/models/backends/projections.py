"""Output projections as linear maps: W_O is whatever the module does to its input.

It is found by giving the module one basis vector after another, so adapters, quantised weights and hooks are part of
it, and a module that is not linear is refused.
"""

from __future__ import annotations

import torch
from jaxtyping import Float

from sinkscope.errors import UnsupportedModelError
from sinkscope.models.backends.base import AttentionSite
from sinkscope.prompts.placing import device_of

Factor = Float[torch.Tensor, "head rank dim"]
"""Per head a triangular matrix R with |R v| = |W_O v|."""


def write_norms(
    factor: Factor, value: Float[torch.Tensor, "batch kv_head key dim"]
) -> Float[torch.Tensor, "batch head key"]:
    """Return the norm of what each head writes for each key that it gives weight 1: |W_O v|."""
    kv_heads = value.shape[1]
    # The heads of a group read one value: their factors one below the other make it one product, without repeats.
    stacked = factor.reshape(kv_heads, -1, factor.shape[-1])
    written = torch.matmul(stacked, value.float().transpose(2, 3)).unflatten(2, (factor.shape[0] // kv_heads, -1))
    return written.square_().sum(3).sqrt_().flatten(1, 2)


class OutputProjections:
    """Triangular factors of each head's slice of W_O, |R v| = |W_O v|, kept while the projections answer alike."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self._kept: dict[str, tuple[torch.Tensor, Factor]] = {}

    def factor(self, site: AttentionSite) -> Factor | None:
        """Return the factors of one site; None where no output projection was found.

        Raises:
            UnsupportedModelError: the projection is not linear.
        """
        if site.output_path is None:
            return None
        module = self.model.get_submodule(site.output_path)
        width = site.heads * site.head_dim
        probe = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
        answer = _apply(module, probe)
        kept = self._kept.get(site.output_path)
        if kept is None or not torch.equal(kept[0], answer):
            # QR at head width: the length of what a head writes costs dim x dim, not dim x d_model.
            slices = self._slices(module, site, probe, answer)
            kept = answer, torch.linalg.qr(slices.transpose(1, 2), mode="r").R.float()
            self._kept[site.output_path] = kept
        return kept[1]

    def _slices(
        self, module: torch.nn.Module, site: AttentionSite, probe: torch.Tensor, answer: torch.Tensor
    ) -> Float[torch.Tensor, "head dim d_model"]:
        width = site.heads * site.head_dim
        bias = _apply(module, torch.zeros(1, width)).double()
        slices = [
            _apply(module, torch.eye(width)[head * site.head_dim : (head + 1) * site.head_dim]).double() - bias
            for head in range(site.heads)
        ]
        found = torch.stack(slices)
        wanted = answer.double() - bias
        worst = (probe.to(found).double() @ found.flatten(0, 1) - wanted).abs().max()
        if not worst <= _tolerance(module) * wanted.abs().max():
            raise UnsupportedModelError(
                f"Contribution(): the output projection of layer {site.layer} ({site.output_path}, "
                f"{type(module).__name__}) is not linear, so no head's part can be told from the others'. "
                "Use ValueNorm() instead."
            )
        return found


def _apply(module: torch.nn.Module, rows: Float[torch.Tensor, "row width"]) -> Float[torch.Tensor, "row d_model"]:
    like = next((p for p in (*module.parameters(), *module.buffers()) if p.is_floating_point()), None)
    dtype = like.dtype if like is not None and like.dtype.itemsize > 1 else torch.float32
    with torch.no_grad(), torch.autocast(device_of(module).type, enabled=False):
        return module(rows.to(device=device_of(module), dtype=dtype)).detach()


def _tolerance(module: torch.nn.Module) -> float:
    """Share of the answer that rounding may take: quantised and half-precision weights round coarsely."""
    types = {p.dtype for p in module.parameters()}
    return 1e-4 if types and types <= {torch.float32, torch.float64} else 5e-2
