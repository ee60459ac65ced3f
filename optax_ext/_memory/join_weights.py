"""Converts split weights to float32 weights and back, for evaluation, export and checkpoints."""

from typing import Any

import jax
import jax.numpy as jnp

from optax_ext._common.dtypes import is_array, leaf_dtype
from optax_ext._common.paths import by_path, check_paths, listed, map_with_paths
from optax_ext._memory.residuals import check_residual_shape, is_narrow, is_state, joined_weight
from optax_ext._memory.two_parts import RESIDUALS, parted


def join_weights(params: Any, state: Any) -> Any:
  """Joins split weights: the float32 weights that `split_weights` trains, for evaluation, export or a checkpoint.

  Args:
    params: The parameters, bfloat16 or float16 where they are split.
    state: The optimizer's state, with a `SplitWeightsState` at any depth: in a chain, a partition, a train state.

  Returns:
    A tree like `params`, float32 where they are narrow. Leaves of other dtypes are unchanged. For stacked members with
    a state each, call `jax.vmap(join_weights)`.

  Raises:
    ValueError: the state holds no `SplitWeightsState`, or one of other parameters or of these in other dtypes; a
      residual is neither int8 nor int16, such as after a cast.

  Example:
    >>> from optax_ext import split_weights
    >>> params = {"w": jnp.array([1.0, 2.0], jnp.bfloat16)}
    >>> import optax
    >>> tx = split_weights(optax.sgd(1.0), rounding=None)
    >>> updates, state = tx.update({"w": jnp.array([-1e-3, 1e-3])}, tx.init(params), params)
    >>> params = optax.apply_updates(params, updates)
    >>> print(params["w"], join_weights(params, state)["w"])
    [1 2] [1.0010071 1.9989929]
  """
  table = _residuals(params, state)
  return map_with_paths(lambda path, leaf: joined_weight(leaf, table.get(path)), params)


def split(weights: Any, params: Any, state: Any) -> tuple[Any, Any]:
  """Splits float32 weights, such as a checkpoint's, into parameters and residuals: the inverse of `join_weights`.

  Args:
    weights: The float32 weights, a tree like `params`.
    params: The parameters, whose dtypes say what is split; `jax.ShapeDtypeStruct`s do.
    state: The state of an optimizer with `split_weights`, such as `tx.init(params)`.

  Returns:
    The parameters nearest to the weights, and the state with the residuals that belong to them. An average of weights
    that the inner optimizer keeps (`optax.ema`, `schedule_free`) stays as it is.

  Raises:
    ValueError: as for `join_weights`; a weight has another shape than its parameter.

  Example:
    >>> from optax_ext import split_weights
    >>> weights = {"w": jnp.array([0.1, 0.2, 0.3])}
    >>> params = {"w": weights["w"].astype(jnp.bfloat16)}
    >>> import optax
    >>> state = split_weights(optax.adam(1e-3)).init(params)
    >>> print(join_weights(params, state)["w"])
    [0.10009766 0.20019531 0.30078125]
    >>> params, state = split(weights, params, state)
    >>> print(join_weights(params, state)["w"])
    [0.10000038 0.20000076 0.30000305]
  """
  residuals, given = _residuals(params, state), by_path(weights)
  check_paths("The tree of weights", given, params)

  def in_parts(path: str, param: Any) -> tuple[jax.Array, jax.Array | None]:
    if not is_array(param):
      return given[path], residuals.get(path)
    if jnp.shape(given[path]) != jnp.shape(param):
      raise ValueError(
        f"The weight {path!r} has shape {jnp.shape(given[path])}, but the parameter has shape {jnp.shape(param)}."
      )
    if not is_narrow(param):
      return jnp.asarray(given[path], leaf_dtype(param)), residuals.get(path)
    bits = next(bits for bits, dtype in RESIDUALS.items() if dtype == getattr(residuals.get(path), "dtype", None))
    nearest, residual_of = parted(jnp.asarray(given[path], jnp.float32), param.dtype, bits)
    narrow = nearest.astype(param.dtype)
    return narrow, residual_of(narrow) if bits > 16 else None

  parts = {path: in_parts(path, param) for path, param in by_path(params).items()}

  def with_residuals(node: Any) -> Any:
    if not is_state(node) or node.residual is None:
      return node
    return node._replace(residual=map_with_paths(lambda path, _: parts[path][1], node.residual))

  params = map_with_paths(lambda path, _: parts[path][0], params)
  return params, jax.tree.map(with_residuals, state, is_leaf=is_state)


def _residuals(params: Any, state: Any) -> dict[str, Any]:
  """The residuals of all parts of a state, by path."""
  states = [node for node in jax.tree.leaves(state, is_leaf=is_state) if is_state(node)]
  if not states:
    raise ValueError(
      "The state holds no SplitWeightsState: give the state of an optimizer made with split_weights; of Flax NNX's "
      "nnx.Optimizer its opt_state; from a checkpoint, restored into the structure of tx.init(params)."
    )
  table, of_path = {}, by_path(params)
  for path, leaf in [item for node in states if node.residual is not None for item in by_path(node.residual).items()]:
    if path in of_path:
      check_residual_shape(path, of_path[path], leaf)
    elif leaf.shape != (1,) * leaf.ndim:
      raise ValueError(
        f"The state has a residual {path!r} of shape {leaf.shape}, which the parameters do not have: give the "
        f"parameters that the state was made for; theirs are {listed(of_path)}."
      )
    if leaf.dtype not in RESIDUALS.values():
      raise ValueError(
        f"The state has a residual {path!r} of dtype {leaf.dtype}, but residuals are int8 or int16: restore and cast "
        "them in the dtypes of tx.init(params)."
      )
    table[path] = leaf
  return table
