"""A marker: a parameter that a kernel has stepped already."""

from typing import Any

import jax
import optax


class Applied:
  """A new parameter, where otherwise its update would be.

  Neither an array nor a pytree node, and without operators: a link of a chain that computes with updates fails on it,
  where it would be wrong to scale or add to a parameter as if it were an update.
  """

  __slots__ = ("param",)

  def __init__(self, param: jax.Array):
    self.param = param

  def __getattr__(self, name: str) -> Any:
    # Not an AttributeError, after which `jnp.ndim` and others go on with a default
    raise TypeError(f"Applied holds a new parameter in place of an update, and has no {name}.")


def applied(params: Any, updates: Any) -> Any:
  """`optax.apply_updates` that keeps a parameter whose update is `None`, and takes one that a kernel has stepped."""

  def apply(param: Any, update: Any) -> Any:
    if update is None:
      return param
    return update.param if isinstance(update, Applied) else optax.apply_updates(param, update)

  return jax.tree.map(apply, params, updates, is_leaf=lambda leaf: leaf is None)
