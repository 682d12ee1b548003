"""Prompts: token ids with roles, further model inputs, and for images the patch grid."""

from sinkscope.prompts.data import PAD, Batch, Prompts

__all__ = ["PAD", "Batch", "Prompts"]
