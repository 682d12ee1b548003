"""Metrics: pure functions from readings to labelled numbers, each with a named definition. No torch here.

Every result carries ``units``, ``definition``, ``reference`` and ``n``; inputs are joined exactly; a mean over nothing
is NaN with ``n`` 0.
"""

from sinkscope.metrics.arrays import (
    attention_rollout,
    collapse,
    column_entropy,
    entropy_without,
    head_divergence,
    hoyer_sparsity,
    importance_score,
    matrix_entropy,
    norm_weighted,
    phi,
    sink_logit_gap,
    vision_aware_heads,
)
from sinkscope.metrics.base import metric
from sinkscope.metrics.bimodal import Bimodality, bimodality, valley_threshold
from sinkscope.metrics.comparison import Resampling, compare, rank_correlation
from sinkscope.metrics.controls import head_list, matched_controls, random_heads
from sinkscope.metrics.dominance import Trend, by_stage, debias, modality_dominance, positional_trend
from sinkscope.metrics.drain import value_drain
from sinkscope.metrics.entropy import entropy_summary, non_vision_entropy, row_entropy
from sinkscope.metrics.massive import massive_activations, massive_dims, massive_stages
from sinkscope.metrics.normalisers import NORMALISERS, proxy_mass
from sinkscope.metrics.power import smallest_effect
from sinkscope.metrics.residual import at_block_inputs, phi_histogram, phi_sinks, relative_phi
from sinkscope.metrics.secondary import secondary_sinks
from sinkscope.metrics.sink_dims import discover_sink_dims
from sinkscope.metrics.sinks import implicit_sink, sink_mask, sink_moves, sink_rate, sink_tokens
from sinkscope.metrics.vision import (
    background_overlap,
    background_share,
    image_centric_heads,
    max_visual_attention,
    patch_background,
    split_heads,
)

__all__ = [
    "NORMALISERS", "Bimodality", "Resampling", "Trend", "at_block_inputs", "attention_rollout", "background_overlap",
    "background_share", "bimodality", "by_stage", "collapse", "column_entropy", "compare", "debias",
    "discover_sink_dims", "entropy_summary", "entropy_without", "head_divergence", "head_list", "hoyer_sparsity",
    "image_centric_heads", "implicit_sink", "importance_score", "massive_activations", "massive_dims",
    "massive_stages", "matched_controls", "matrix_entropy", "max_visual_attention", "metric", "modality_dominance",
    "non_vision_entropy", "norm_weighted", "patch_background", "phi", "phi_histogram", "phi_sinks",
    "positional_trend", "proxy_mass", "random_heads", "rank_correlation", "relative_phi", "row_entropy",
    "secondary_sinks", "sink_logit_gap", "sink_mask", "sink_moves", "sink_rate", "sink_tokens", "smallest_effect",
    "split_heads", "valley_threshold", "value_drain", "vision_aware_heads",
]  # fmt: skip
