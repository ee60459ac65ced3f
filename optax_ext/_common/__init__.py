"""Helpers that know nothing of optimizers: arguments, dtypes, paths, meshes, kernels."""
