"""Models: the handle, where models come from, and the backends that drive them."""
