"""The residuals of split weights: their tree, its checks, and the float32 weights that it gives with the parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_ext._common.dtypes import check_trainable, is_array, leaf_dtype
from optax_ext._common.paths import by_path, map_with_paths
from optax_ext._memory.two_parts import NARROW, RESIDUALS, joined

TAKEN_IN = "take the weights in: split(join_weights(params, state), params, tx.init(params))."


class SplitWeightsState(NamedTuple):
  """State of `split_weights`: the number of steps, the residuals, and the wrapped optimizer's state.

  `residual` is a tree like the parameters, of int8 or int16: what the narrow weights leave out. A leaf that is not
  split has a 0 of shape (1, …). With 16 bits there is no tree.
  """

  count: jax.Array
  residual: Any
  inner_state: Any


def is_narrow(leaf: Any) -> bool:
  return is_array(leaf) and leaf.dtype in NARROW


def is_state(node: Any) -> bool:
  return isinstance(node, SplitWeightsState)


def check_weight(path: str, leaf: Any) -> None:
  """Raises `TypeError` for a parameter that cannot be trained, or not so."""
  check_trainable(path, leaf)
  if jnp.finfo(leaf_dtype(leaf)).bits < 16:
    raise TypeError(
      f"Parameter {path!r} has dtype {leaf_dtype(leaf)}, but split_weights knows bfloat16 and float16 weights, and "
      "leaves wider ones as they are."
    )


def first_residual(dtype: Any, leaf: Any) -> jax.Array:
  """The residual of weights at the start."""
  return jnp.zeros_like(leaf, dtype) if is_narrow(leaf) else jnp.zeros(residual_shape(leaf), dtype)


def residual_shape(leaf: Any) -> tuple[int, ...]:
  """The shape of a parameter's residual."""
  return leaf.shape if is_narrow(leaf) else (1,) * jnp.ndim(leaf)


def check_residuals(residual: Any, params: Any, bits: int) -> None:
  """Raises `ValueError` for residuals of another number of bits, which mean other weights, or of other parameters."""
  if (residual is None) != (bits == 16):
    kept = "no residual" if residual is None else "a residual"
    raise ValueError(f"The state has {kept}, but bits={bits}: {TAKEN_IN}")
  if residual is None:
    return

  def check(path: str, param: Any, rest: Any) -> None:
    if not is_narrow(param) and rest is None:  # what the optimizer was not made for, such as a model's functions
      return
    if rest.dtype != RESIDUALS[bits]:
      raise ValueError(
        f"The state has a residual {path!r} of dtype {rest.dtype}, but with bits={bits} it is "
        f"{jnp.dtype(RESIDUALS[bits])}: leave residuals out of a cast; for a state of other bits, {TAKEN_IN}"
      )
    check_residual_shape(path, param, rest)

  known = by_path(residual, lambda node: node is None)
  for path, param in by_path(params).items():
    if path in known:  # else the state is of other parameters, and the step fails
      check(path, param, known[path])


def check_residual_shape(path: str, param: Any, rest: Any) -> None:
  if rest.shape != residual_shape(param):
    raise ValueError(
      f"Parameter {path!r} is {leaf_dtype(param)} of shape {jnp.shape(param)}, but the state has a residual of shape "
      f"{rest.shape} for it: give the parameters that the state was made for, in their dtypes. optax.apply_updates and "
      "update_and_apply keep dtypes; param + update and eqx.apply_updates make float32."
    )


def joined_weight(leaf: Any, residual: Any) -> Any:
  if not is_narrow(leaf):
    return leaf
  return leaf.astype(jnp.float32) if residual is None else joined(leaf, residual)


def of_each(params: Any, residual: Any) -> Any:
  """A residual, or `None`, for each parameter."""
  return map_with_paths(lambda path, leaf: None, params) if residual is None else residual


def joined_weights(params: Any, residual: Any) -> Any:
  """The weights that the optimizer sees."""
  return map_with_paths(lambda path, leaf, rest: joined_weight(leaf, rest), params, of_each(params, residual))
