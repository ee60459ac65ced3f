"""Messages between an optimizer and a kernel inside it: how a parameter is stored, and that it has been stepped."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax


class StoredWeight(NamedTuple):
  """A parameter as it lies in memory, for a kernel that reads and writes it there.

  A tree of them, and of `None` for parameters that are as they are, is the extra argument `stored_weights` of `update`.
  """

  storage: Any
  parts: tuple[jax.Array, ...]
  key: Any


class Applied:
  """A new parameter, where otherwise its update would be, and what is stored besides it.

  Neither an array nor a pytree node, and without operators: a link of a chain that computes with updates fails on it,
  where it would be wrong to scale or add to a parameter as if it were an update.
  """

  __slots__ = ("param", "residual")

  def __init__(self, param: jax.Array, residual: jax.Array | None = None):
    self.param, self.residual = param, residual

  def __getattr__(self, name: str) -> Any:
    # Not an AttributeError, after which `jnp.ndim` and others go on with a default
    raise TypeError(f"Applied holds a new parameter in place of an update, and has no {name}.")


class Widening(optax.GradientTransformationExtraArgs):
  """A transformation that makes gradients as wide as their parameters itself."""


def applied(params: Any, updates: Any, moved: Callable[[Any, Any], Any] = optax.apply_updates) -> Any:
  """`optax.apply_updates` that keeps a parameter whose update is `None`, and takes one that a kernel has stepped.

  `moved` is that function, or one with the same results, for one leaf.
  """

  def apply(param: Any, update: Any) -> Any:
    if update is None:
      return param
    return update.param if isinstance(update, Applied) else moved(param, update)

  return jax.tree.map(apply, params, updates, is_leaf=lambda leaf: leaf is None)
