"""Attention variants of the zoo's models: what Gu et al., Sun et al. and Qiu et al. train beside the softmax.

Keys of a model's config say what it is, and everything that reads attention looks at the same few attributes:
``sinkscope_normaliser`` (``"softmax"`` when absent), and on an attention module ``extra_key`` and ``extra_value`` (a
learned key, and its value), ``value_bias``, a bias on the logits for positions, and how many first keys every query
sees. One plain, dense, differentiable attention function serves them all under the name ``"sinkscope_dense"``; it is
registered when this package is imported.
"""

from sinkscope.models.variants.blocks import LearnedPositionLlama, VariantLlamaAttention
from sinkscope.models.variants.build import POSITIONS, build, load, save
from sinkscope.models.variants.dense import NAME, NORMALISERS, dense_attention, normalise

__all__ = [
    "NAME", "NORMALISERS", "POSITIONS", "LearnedPositionLlama", "VariantLlamaAttention", "build", "dense_attention",
    "load", "normalise", "save",
]  # fmt: skip
