"""Other projects' optimizers, as contenders of `timing.py`: each package is optional.

pip install -e ".[speed]", on a machine without a GPU after the build of torch that is for CPUs.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from timing import Contender

os.environ["KERAS_BACKEND"] = "jax"


def torch_contender(make: Callable[[Any], Any], shapes: Any) -> Contender:
  """`make` gets the parameters, a list of tensors, and returns a `torch.optim.Optimizer`."""
  import torch  # pyright: ignore[reportMissingImports]

  torch.set_num_threads(os.cpu_count() or 1)  # as many as XLA takes

  def start() -> Any:
    params = []
    for leaf in jax.tree.leaves(shapes):
      params.append(torch.full(leaf.shape, 0.02).requires_grad_())
      params[-1].grad = torch.full(leaf.shape, 0.01)
    return make(params)

  def step(optimizer: Any) -> Any:
    optimizer.step()
    return optimizer

  return Contender(start, step)


def torch_adam(shapes: Any, **options: Any) -> Contender:
  """PyTorch's own; `foreach=True` or `fused=True`."""
  import torch  # pyright: ignore[reportMissingImports]

  return torch_contender(lambda params: torch.optim.Adam(params, lr=1e-3, **options), shapes)


def torch_exadam(shapes: Any) -> Contender:
  """The package pytorch_optimizer's."""
  from pytorch_optimizer import EXAdam  # pyright: ignore[reportMissingImports]

  return torch_contender(lambda params: EXAdam(params, lr=1e-3), shapes)


def keras_caadam(shapes: Any, *, compiled: bool) -> Contender:
  """The package caadam's, in Keras on jax: compiled as `model.fit` compiles it, or called from a loop of one's own."""
  import keras  # pyright: ignore[reportMissingImports]
  from caadam import CaAdam  # pyright: ignore[reportMissingImports]

  leaves = jax.tree.leaves(shapes)
  jitted: dict[str, Any] = {}  # one program for all rounds

  def start() -> Any:
    variables = [
      keras.Variable(np.full(leaf.shape, 0.02, np.float32), name=f"variable_{i}") for i, leaf in enumerate(leaves)
    ]
    grads = [jax.numpy.full(leaf.shape, 0.01) for leaf in leaves]
    optimizer = CaAdam(learning_rate=1e-3)
    optimizer.build(variables)
    if not compiled:
      return optimizer, variables, grads
    jitted.setdefault("step", jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2)))
    return [v.value for v in optimizer.variables], [v.value for v in variables], grads

  def step(state: Any) -> Any:
    if not compiled:
      optimizer, variables, grads = state
      optimizer.apply(grads, variables)
      return state
    of_optimizer, values, grads = state
    values, of_optimizer = jitted["step"](of_optimizer, grads, values)
    return of_optimizer, values, grads

  def wait(state: Any) -> None:
    jax.block_until_ready([variable.value for variable in state[1]] if not compiled else state)

  return Contender(start, step, wait)


RIVALS: dict[str, Callable[[Any], Contender]] = {
  "torch.optim.Adam, foreach": lambda shapes: torch_adam(shapes, foreach=True),
  "torch.optim.Adam, fused": lambda shapes: torch_adam(shapes, fused=True),
  "pytorch_optimizer.EXAdam": torch_exadam,
  "caadam.CaAdam (Keras), compiled": lambda shapes: keras_caadam(shapes, compiled=True),
  "caadam.CaAdam (Keras), uncompiled": lambda shapes: keras_caadam(shapes, compiled=False),
}
