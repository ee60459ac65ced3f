"""Norms, update ratios and angles of every layer during training, for a logger."""

import functools
import math
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import tree_map_with_path

from optax_ext._common.arguments import check_transformation, check_whole
from optax_ext._common.dtypes import arithmetic_dtype, check_trainable, real_dtype, store
from optax_ext._common.paths import by_path, check_paths, is_box, listed, map_with_paths, named_leaves, path_string
from optax_ext._common.retrace import once_per_shape
from optax_ext._network.facts import check_shape
from optax_ext._network.structure import Structure, check_structure

NAMES = ("gradient_norm", "update_norm", "parameter_norm", "update_ratio", "gradient_zeros", "angle")


class LayerStatisticsState(NamedTuple):
  """State of `layer_statistics`: the count of steps, the watched optimizer's state, and the numbers of each leaf.

  `statistics` is a tree like the parameters. Each leaf is a float32 array whose last axis holds the six numbers, in the
  order of the table of `layer_statistics`. The axes before count scanned layers.
  """

  count: jax.Array
  inner_state: Any
  statistics: Any


def layer_statistics(
  inner: optax.GradientTransformation | None = None, *, every: int = 1, structure: Structure | None = None
) -> optax.GradientTransformationExtraArgs:
  """Measures gradient, update and parameter of every leaf during training: norms, update ratio, zeros, angle.

  With gradient g, update u and parameter w of one leaf, before the update is applied:

  ==============  =================================================================
  name            number
  ==============  =================================================================
  gradient_norm   ‖g‖
  update_norm     ‖u‖
  parameter_norm  ‖w‖
  update_ratio    ‖u‖ / ‖w‖; 0 where u = 0, also where w = 0; else ∞ where w = 0
  gradient_zeros  the share of the elements of g that are 0
  angle           atan2(‖u − c·w‖, (1 + c)·‖w‖) with c = ⟨u, w⟩ / ‖w‖², in radians
  ==============  =================================================================

  The angle is between w and w + u, accurate however small it is. Where w = 0 the angle is π/2, or 0 if u is 0, too.
  Where w + u = 0 there is no angle, and the number is arbitrary. Norms are scaled by the largest element, so that
  squares neither overflow nor vanish. No number is NaN where g, u and w are finite. Arithmetic is float32, float64 for
  float64; the state keeps float32.

  The numbers are in the optimizer's state; `read_statistics` reads them. They are 0 before the first step. A step
  measures where its count is 0, `every`, 2·`every`, …; all other steps keep the numbers. A leaf whose gradient is
  `None` keeps its numbers, too. The updates of `inner` pass unchanged.

  With `every` > 1 the measurement is in a branch of its own, which computes the update a second time. So a step that
  does not measure moves the same bytes as `inner` alone. Bytes per float32 parameter on TPU and H100, with Adam:

  =================================================  =============  =============
  optimizer                                          not measuring  measuring
  =================================================  =============  =============
  adam                                               28
  layer_statistics(adam), `every` > 1                28             68
  layer_statistics(adam), `every` = 1                               52
  chain(layer_statistics(), adam), `every` > 1       28             52
  chain(adam, layer_statistics()), `every` > 1       36             60
  =================================================  =============  =============

  - A step that measures computes the update twice if `every` > 1. This is slow if `inner` does much arithmetic, like
    Muon.
  - The program needs memory for the update of the largest leaf; on a mesh, for the updates of all leaves.
  - The branch needs all gradients in memory at once, as `optax.clip_by_global_norm` does. If the same program computes
    the gradients, XLA could otherwise use each one up at once; on TPU that also saves 8 bytes in every step.
  - Under `jax.vmap` every step measures. Inside `jax.shard_map` each device must hold whole leaves.

  Args:
    inner: The optimizer to watch. With `None` this is a link of a chain: gradient and update are both what flows along
      the chain at this place, which passes unchanged.
    every: Number of steps from one measurement to the next.
    structure: The facts of the model. A leaf whose layers are stacked for `jax.lax.scan` then has six numbers for each
      layer, along its `scanned_axes`; without a structure every leaf counts as one layer.

  Returns:
    A transformation whose state is a `LayerStatisticsState`. Its `update` needs `params`.

  Raises:
    TypeError: `inner` is no transformation, or `structure` no structure; at init, if a parameter cannot be trained.
    ValueError: `every` is not a whole number of at least 1; at init, if the structure is of another model, or two
      leaves have the same path; at update, if `params` are missing.

  Example:
    >>> tx, params = layer_statistics(optax.sgd(0.1)), {"kernel": jnp.array([3.0, 4.0])}
    >>> state = tx.init(params)
    >>> updates, state = tx.update({"kernel": jnp.array([-4.0, 3.0])}, state, params)
    >>> for name, number in read_statistics(state)["kernel"].items():
    ...   print(f"{name:15}{number:.4f}")
    gradient_norm  5.0000
    update_norm    0.5000
    parameter_norm 5.0000
    update_ratio   0.1000
    gradient_zeros 0.0000
    angle          0.0997
  """
  if inner is not None:
    check_transformation("inner", inner, ", or None for a link of a chain")
  check_whole("every", every)
  check_structure(structure)
  watched = optax.with_extra_args_support(optax.identity() if inner is None else inner)
  known = {} if structure is None else structure.by_path()

  def init(params: optax.Params) -> LayerStatisticsState:
    by_path(params)  # raises if two leaves share a path
    if structure is not None:
      check_paths("The structure", known, params, more=True)

    def zeros(path: tuple[Any, ...], node: Any) -> jax.Array:
      (param,), name = jax.tree.leaves(node), path_string(path)
      check_trainable(name, param)
      if name in known:
        check_shape(known[name], param)
      return jnp.zeros((*(jnp.shape(param)[axis] for axis in scanned_axes(name)), len(NAMES)), jnp.float32)

    # Not in the boxes of Flax, whose metadata would split the numbers as a mesh splits the parameter
    statistics = tree_map_with_path(zeros, params, is_leaf=is_box)
    return LayerStatisticsState(jnp.zeros([], jnp.int32), watched.init(params), statistics)

  def scanned_axes(path: str) -> tuple[int, ...]:
    return known[path].scanned_axes if path in known else ()

  def update(
    updates: Any, state: Any, params: Any = None, *, return_applied: bool = False, **extra_args: Any
  ) -> tuple[Any, Any]:
    if params is None:
      raise ValueError(
        "layer_statistics needs the current value of the parameters, but you are not passing `params` when calling "
        "`update`."
      )
    numbers_of = once_per_shape(_numbers, state.count, static_argnums=(0,))
    grads, inner_state, statistics = updates, state.inner_state, state.statistics

    def measured(updates: Any) -> Any:
      def of(path: str, old: jax.Array, *nodes: Any) -> jax.Array:
        leaves = jax.tree.leaves(nodes)  # without Flax's boxes, without None
        return numbers_of(scanned_axes(path), *leaves) if len(leaves) == len(nodes) else old

      return map_with_paths(of, state.statistics, grads, updates, params)

    def computed_again() -> Any:
      return measured(watched.update(grads, inner_state, params, **extra_args)[0])

    if every > 1:
      statistics = jax.lax.cond(state.count % every == 0, computed_again, lambda: state.statistics)
      # The branch comes first: XLA would otherwise copy parameters and state for it, which the step overwrites (on TPUs
      # 59.6 bytes a parameter in place of 39.6, gradients included; `tests/test_aot.py`).
      grads, inner_state, statistics = jax.lax.optimization_barrier((grads, inner_state, statistics))
    applied = {"return_applied": True} if return_applied else {}
    updates, new = watched.update(grads, inner_state, params, **extra_args, **applied)
    if every == 1:
      statistics = computed_again() if return_applied else measured(updates)
    return updates, LayerStatisticsState(jnp.asarray(optax.safe_increment(state.count)), new, statistics)

  return optax.GradientTransformationExtraArgs(init, update)


def _numbers(scanned: tuple[int, ...], gradient: Any, update: Any, param: Any) -> jax.Array:
  """The six numbers of a leaf, or of each of its layers: a float32 array of shape (layers..., 6)."""
  leaves = [jnp.asarray(leaf, arithmetic_dtype(leaf)) for leaf in (gradient, update, param)]
  g, u, w = jax.lax.stop_gradient(leaves)  # the derivative of a norm at 0 is none, and 0·∞ would be NaN
  rest = tuple(axis for axis in range(w.ndim) if axis not in scanned)
  total = functools.partial(jnp.sum, axis=rest, keepdims=True)

  def norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(total(jnp.square(jnp.abs(x))))

  def scaled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest size s of an element, within bounds that make x/s and 1/s normal numbers, and x/s."""
    largest, limits = jnp.max(jnp.abs(x), axis=rest, keepdims=True, initial=0), jnp.finfo(x.dtype)
    s = jnp.clip(largest, 64 * limits.tiny, limits.max / 256)
    return s, x / s

  zeros = total((g == 0).astype(real_dtype(w.dtype))) / max(math.prod(w.shape[axis] for axis in rest), 1)
  (sg, g), (su, u), (sw, w) = map(scaled, (g, u, w))
  g_norm, u_norm, w_norm = map(norm, (g, u, w))
  c, s = total(jnp.real(jnp.conj(w) * u)) / jnp.where(w_norm > 0, w_norm**2, 1), jnp.maximum(su, sw)
  numbers = (
    sg * g_norm,
    su * u_norm,
    sw * w_norm,
    jnp.where(u_norm == 0, 0, (su / sw) * (u_norm / w_norm)),
    zeros,
    jnp.arctan2((su / s) * norm(u - c * w), (sw / s + (su / s) * c) * w_norm),
  )
  stacked = jnp.stack([store(number, jnp.float32) for number in numbers], axis=-1)
  return stacked.transpose(*scanned, *rest, w.ndim).reshape(*(w.shape[axis] for axis in scanned), len(NAMES))


def read_statistics(state: Any) -> dict[str, dict[str, float | np.ndarray]]:
  """Reads the numbers that `layer_statistics` measured last, as plain floats for any logger.

  Args:
    state: The state of an optimizer with a `layer_statistics` anywhere in it: in a chain, inside other wrappers, in the
      `opt_state` of Flax's optimizers. Several are joined if they measured different leaves, as under
      `optax.partition`.

  Returns:
    A dict from the path of each leaf to a dict from the names in the table of `layer_statistics` to numbers: floats, or
    an array of one number for each layer where layers are scanned.

  Raises:
    ValueError: the state has no `LayerStatisticsState`; or several that measured the same leaf.

  Example:
    >>> tx, params = optax.chain(layer_statistics(every=10), optax.adam(1e-3)), {"w": jnp.array([3.0, 4.0])}
    >>> _, state = tx.update(params, tx.init(params), params)
    >>> log = {f"{path}/{name}": x for path, row in read_statistics(state).items() for name, x in row.items()}
    >>> print(log["w/gradient_norm"])
    5.0
  """
  found = _states(state)
  if not found:
    raise ValueError(
      "The optimizer's state has no LayerStatisticsState: wrap the optimizer in layer_statistics before `init`."
    )
  leaves = [leaf for node in found for leaf in named_leaves(jax.device_get(node.statistics))]
  if twice := [path for path, times in Counter(path for path, _ in leaves).items() if times > 1]:
    raise ValueError(
      f"Several layer_statistics of this optimizer measured {listed(twice)}: call read_statistics on the part of the "
      "state that belongs to one of them."
    )
  rows = ((path, np.moveaxis(np.asarray(leaf), -1, 0)) for path, leaf in leaves)
  return {
    path: {name: float(x) if np.ndim(x) == 0 else x for name, x in zip(NAMES, row, strict=True)} for path, row in rows
  }


def _states(tree: Any) -> list[LayerStatisticsState]:
  """Every `LayerStatisticsState` in a tree, those inside another included."""
  is_state = lambda node: isinstance(node, LayerStatisticsState)
  found = [node for node in jax.tree.leaves(tree, is_leaf=is_state) if is_state(node)]
  return [state for node in found for state in (node, *_states(node.inner_state))]
