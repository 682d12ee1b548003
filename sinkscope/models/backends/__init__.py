"""Backends: how a model is driven and where its attention and residual stream are read."""
