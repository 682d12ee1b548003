"""Metrics: pure functions from readings to labelled numbers, each with a named definition. No torch here.

Every result carries ``units``, ``definition``, ``reference`` and ``n``; inputs are joined exactly; a mean over nothing
is NaN with ``n`` 0.
"""

from typing import TYPE_CHECKING

from sinkscope.errors import public_names, unknown_name
from sinkscope.metrics.answers import box_iou, chair, mask_iou, objects_named, pope_scores, says_yes
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
    residual_sinks,
    sink_logit_gap,
    vision_aware_heads,
)
from sinkscope.metrics.base import metric
from sinkscope.metrics.bimodal import Bimodality, bimodality, valley_threshold
from sinkscope.metrics.comparison import Resampling, compare, rank_correlation
from sinkscope.metrics.controls import head_list, matched_controls, random_heads
from sinkscope.metrics.copying import exit_layer, paint_tokens, recovery_rate, retrieval_score, sublayer_peak
from sinkscope.metrics.dominance import (
    Trend,
    by_stage,
    debias,
    keep_frequency,
    modality_dominance,
    padding_patches,
    positional_trend,
)
from sinkscope.metrics.drain import value_drain
from sinkscope.metrics.entropy import entropy_summary, non_vision_entropy, row_entropy
from sinkscope.metrics.looking import (
    attention_ratio,
    best_crop,
    colour_complexity,
    funnel_crops,
    fused_contrast,
    gaze_shift,
    kept_region,
    map_entropy,
    patch_entropy,
    relative_attention,
    texture_complexity,
    token_saliency,
)
from sinkscope.metrics.maps import (
    concentration,
    effective_attention,
    global_sinks,
    head_diversity,
    local_focus,
    magnet_share,
    sink_type,
    stable_rank,
)
from sinkscope.metrics.massive import massive_activations, massive_dims, massive_stages
from sinkscope.metrics.normalisers import NORMALISERS, proxy_mass
from sinkscope.metrics.power import smallest_effect
from sinkscope.metrics.residual import at_block_inputs, phi_gap, phi_histogram, phi_sinks, relative_phi
from sinkscope.metrics.secondary import secondary_sinks
from sinkscope.metrics.sink_dims import discover_sink_dims
from sinkscope.metrics.sinks import implicit_sink, sink_mask, sink_moves, sink_rate, sink_scores, sink_tokens
from sinkscope.metrics.vision import (
    background_overlap,
    background_share,
    image_centric_heads,
    max_visual_attention,
    patch_background,
    split_heads,
)

__all__ = [
    "NORMALISERS", "Bimodality", "Resampling", "Trend", "at_block_inputs", "attention_ratio", "attention_rollout",
    "background_overlap", "background_share", "best_crop", "bimodality", "box_iou", "by_stage", "chair", "collapse",
    "colour_complexity", "column_entropy", "compare", "concentration", "debias", "discover_sink_dims",
    "effective_attention", "entropy_summary", "entropy_without", "exit_layer", "funnel_crops", "fused_contrast",
    "gaze_shift", "global_sinks", "head_divergence", "head_diversity", "head_list", "hoyer_sparsity",
    "image_centric_heads", "implicit_sink", "importance_score", "keep_frequency", "kept_region", "local_focus",
    "magnet_share", "map_entropy", "mask_iou", "massive_activations", "massive_dims", "massive_stages",
    "matched_controls", "matrix_entropy", "max_visual_attention", "metric", "modality_dominance",
    "non_vision_entropy", "norm_weighted", "objects_named", "padding_patches", "paint_tokens", "patch_background",
    "patch_entropy", "phi", "phi_gap", "phi_histogram", "phi_sinks", "pope_scores", "positional_trend",
    "proxy_mass", "random_heads", "rank_correlation", "recovery_rate", "relative_attention", "relative_phi",
    "residual_sinks", "retrieval_score", "row_entropy", "says_yes", "secondary_sinks", "sink_logit_gap",
    "sink_mask", "sink_moves",
    "sink_rate", "sink_scores", "sink_tokens", "sink_type", "smallest_effect", "split_heads", "stable_rank",
    "sublayer_peak", "texture_complexity", "token_saliency", "valley_threshold", "value_drain",
    "vision_aware_heads",
]  # fmt: skip

if not TYPE_CHECKING:  # a type checker shall complain of a name that does not exist
    __getattr__ = unknown_name(__name__, __all__)
    __dir__ = public_names(globals())
