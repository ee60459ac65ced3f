"""Small things without any knowledge of optimizers: arguments, dtypes, paths, meshes, kernels."""
