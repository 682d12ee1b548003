"""Training recipes of the zoo: one ``python -m`` command per kind of model."""
