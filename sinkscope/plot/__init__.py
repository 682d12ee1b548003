"""Figures: ``DataArray -> matplotlib Axes``. They select and draw; ``sinkscope.metrics`` measures."""

from typing import TYPE_CHECKING

from sinkscope.errors import public_names, unknown_name
from sinkscope.plot.distributions import max_attention_histogram, value_drain
from sinkscope.plot.dots import interval_dots
from sinkscope.plot.effects import effect_bars, masking_curve, sweep_curve
from sinkscope.plot.groups import grouped_bars
from sinkscope.plot.head_curves import head_curves
from sinkscope.plot.images import mark_patches, patch_overlay, phi_vs_attention
from sinkscope.plot.labels import log_scale, token_label, token_labels
from sinkscope.plot.maps import attention_map, effect_map, entropy_map, head_class_map, sink_map
from sinkscope.plot.massive import massive_activations_picture
from sinkscope.plot.pairs import pair_map
from sinkscope.plot.panels import panels
from sinkscope.plot.profiles import layer_profile, norm_profile, role_share_by_layer, top_values_by_layer
from sinkscope.plot.surface import activation_surface
from sinkscope.plot.theme import caption, caption_text, described, theme

__all__ = [
    "activation_surface", "attention_map", "caption", "caption_text", "described", "effect_bars", "effect_map",
    "entropy_map", "grouped_bars", "head_class_map", "head_curves", "interval_dots", "layer_profile", "log_scale",
    "mark_patches", "masking_curve",
    "massive_activations_picture", "max_attention_histogram", "norm_profile", "pair_map", "panels", "patch_overlay",
    "phi_vs_attention", "role_share_by_layer", "sink_map", "sweep_curve", "theme", "token_label", "token_labels",
    "top_values_by_layer", "value_drain",
]  # fmt: skip

if not TYPE_CHECKING:  # a type checker shall complain of a name that does not exist
    __getattr__ = unknown_name(__name__, __all__)
    __dir__ = public_names(globals())
