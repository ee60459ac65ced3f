"""Reads from a model's computation, its jaxpr, how each parameter enters it."""
