"""Weights in two parts: bfloat16 for the model, a residual in the optimizer's state, float32 for the optimizer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_ext._common.applied import Applied, StoredWeight, Widening
from optax_ext._common.dtypes import check_trainable, is_array, leaf_dtype
from optax_ext._common.layout import with_layout_errors
from optax_ext._common.paths import by_path, check_paths, listed, map_with_paths
from optax_ext._memory.hashes import hashes, places_of
from optax_ext._memory.rounding import Stochastic, stochastic
from optax_ext._memory.step import NO_KEY
from optax_ext._memory.stored import in_parts
from optax_ext._memory.two_parts import NARROW, RESIDUALS, joined, parted


class SplitWeightsState(NamedTuple):
  """The number of steps, what the narrow weights leave out, and the wrapped optimizer's state.

  `residual` is a tree like the parameters of int8 or int16: for a leaf that is not split, a 0 of shape (1, …). With 16
  bits there is none.
  """

  count: jax.Array
  residual: Any
  inner_state: Any


def split_weights(
  tx: optax.GradientTransformation,
  bits: int = 24,
  *,
  rounding: Stochastic | None = stochastic(0),  # noqa: B008 (frozen)
) -> optax.GradientTransformationExtraArgs:
  """Trains bfloat16 or float16 weights as float32 ones, in 3 bytes a weight: any optax optimizer sees float32.

      θ = θ' + ρ·unit                     joined: the optimizer's weights, float32
      θ ← θ + tx.update(g, θ)             one step in float32
      θ' = the nearest narrow number,     ρ = round((θ − θ')/unit)

  The parameters θ' are what the model computes with. The residual ρ stays in the optimizer's state, so that a step of
  less than half a unit in the last place of θ' is not lost. `join_weights` gives θ for evaluation, export and
  checkpoints; `split` takes float32 weights in.

  ====  ==========  =======================================  =====================
  bits  residual    what is stored                           bytes for each weight
  ====  ==========  =======================================  =====================
  16    none        θ' rounded by chance                     2
  24    int8        float32 without its last 8 bits          3
  32    int16       float32, to the last bit                 4
  ====  ==========  =======================================  =====================

  Rounded to the nearest, a step below half a unit (2⁻¹⁷ of the weight, with 24 bits) is lost for ever. Rounded by
  chance, such steps count on average. What needs no rounding stays as it is, so that a weight without an update does
  not move.

  With 8-bit moments, `split_weights(quantize_state(tx))`, parameters and state take 5 bytes for each weight.

  Args:
    tx: The optimizer. It gets float32 gradients, float32 parameters and so, by default, has float32 moments; give
      bfloat16 ones by `mu_dtype` and `nu_dtype`, or use `quantize_state`.
    bits: 16, 24 or 32, of θ' and ρ together.
    rounding: `stochastic(seed)`, or `None` to the nearest. The random bits of a weight are a function of the seed, the
      leaf's path, the weight's index and the step. With 32 bits float32 needs no rounding.

  Returns:
    A transformation whose state is a `SplitWeightsState`. It must be the last link of a chain. Updates of split leaves
    are float32, so that `optax.apply_updates` gives exactly θ'; wrappers that want updates in the gradients' dtype
    (`optax.apply_if_finite`, `optax.MultiSteps`) go inside, `split_weights(optax.MultiSteps(tx, 4))`, as do those that
    change the optimizer's updates or move the parameters (`sam`, `schedule_free`, `optax.lookahead`). `param + update`
    and `eqx.apply_updates` would make θ' float32, which the next update refuses. `update_and_apply` writes θ' without
    forming an update. Leaves of other dtypes pass as they are: float32, complex.

  Raises:
    TypeError: `rounding` is not one of the two; at init, for a parameter that is not an array of floating or complex
      numbers, or has 8 bits.
    ValueError: `bits` is not 16, 24 or 32, or is 16 without stochastic rounding; at init, when two leaves have the same
      path; at update, when `params` is missing or in other dtypes than at init, or the state has other bits.

  Example:
    A hundred steps of one thousandth of a weight's last place:

    >>> params = {"kernel": jnp.ones((64, 64), jnp.bfloat16)}
    >>> grads = {"kernel": jnp.ones((64, 64), jnp.bfloat16)}
    >>> for tx in (optax.sgd(1e-5), split_weights(optax.sgd(1e-5))):
    ...   weights, state = params, tx.init(params)
    ...   for _ in range(100):
    ...     updates, state = tx.update(grads, state, weights)
    ...     weights = optax.apply_updates(weights, updates)
    ...   joined = join_weights(weights, state) if isinstance(state, SplitWeightsState) else weights
    ...   print(weights["kernel"].dtype, f"{joined['kernel'].astype(float).mean():.5f}")
    bfloat16 1.00000
    bfloat16 0.99900

  References:
    Gonzalez Ortiz et al., `FlashOptim: Optimizers for Memory-Efficient Training <https://arxiv.org/abs/2602.23349>`_,
    2026, who round the residual to the nearest
  """
  if not isinstance(bits, int | np.integer) or bits not in RESIDUALS:
    raise ValueError(f"bits must be 16, 24 or 32, of a weight and its residual together, but was {bits!r}.")
  if not (rounding is None or isinstance(rounding, Stochastic)):
    raise TypeError(f"rounding must be None (to the nearest) or stochastic(seed), but was {rounding!r}.")
  if bits == 16 and rounding is None:
    raise ValueError(
      "bits=16 with rounding=None would lose every step below half a unit in a weight's last place: give "
      "rounding=stochastic(seed), or 24 bits."
    )
  tx, storage = optax.with_extra_args_support(tx), in_parts(bits, by_chance=rounding is not None)

  def init(params: Any) -> SplitWeightsState:
    by_path(params)  # raises if two leaves share a path, and so their random bits
    residual = map_with_paths(functools.partial(_no_residual, RESIDUALS[bits]), params) if bits > 16 else None
    return SplitWeightsState(jnp.zeros([], jnp.int32), residual, tx.init(_joined(params, residual)))

  def update(
    updates: Any, state: SplitWeightsState, params: Any = None, *, return_applied: bool = False, **extra_args: Any
  ) -> tuple[Any, SplitWeightsState]:
    if params is None:
      raise ValueError("split_weights needs the parameters: call tx.update(grads, state, params).")
    _check_kept(state.residual, params, bits)
    count = jnp.asarray(optax.safe_increment(state.count))
    keys = rounding.keys_at(count) if rounding else lambda path, leaf: NO_KEY
    residuals, weights = _of_each(params, state.residual), _joined(params, state.residual)
    if return_applied:
      extra_args["stored_weights"] = map_with_paths(functools.partial(in_memory, keys), params, residuals)
    steps, inner_state = tx.update(_widened(updates, params, weights, tx), state.inner_state, weights, **extra_args)

    def stored(path: str, step: Any, param: Any, weight: Any, residual: Any) -> Stored:
      if not _is_narrow(param):
        return Stored(step, residual)
      if isinstance(step, Applied):
        return Stored(step, step.residual)
      words = hashes(keys(path, weight), places_of(weight.shape)) if rounding else None
      nearest, residual_of = parted((weight + step).astype(jnp.float32), param.dtype, bits, words)
      old = param.astype(jnp.float32)
      narrow = (old + (nearest - old)).astype(param.dtype)  # as optax.apply_updates does
      return Stored(Applied(narrow) if return_applied else nearest - old, residual_of(narrow) if bits > 16 else None)

    new = map_with_paths(stored, steps, params, weights, residuals)
    is_stored = lambda node: node is None or isinstance(node, Stored)
    updates = jax.tree.map(lambda new: None if new is None else new.update, new, is_leaf=is_stored)
    residual = state.residual
    if bits > 16:
      residual = jax.tree.map(lambda new, old: old if new is None else new.residual, new, residual, is_leaf=is_stored)
    return updates, SplitWeightsState(count, residual, inner_state)

  def in_memory(keys: Any, path: str, param: Any, residual: Any) -> StoredWeight | None:
    if not _is_narrow(param):
      return None
    return StoredWeight(storage, (param,) if residual is None else (param, residual), keys(path, param))

  return with_layout_errors(init, update)


def join_weights(params: Any, state: Any) -> Any:
  """The float32 weights of parameters that `split_weights` trains, for evaluation, export or a checkpoint.

  Args:
    params: The parameters, bfloat16 or float16 where they are split.
    state: The optimizer's state, with a `SplitWeightsState` at any depth: in a chain, a partition, a train state.

  Returns:
    A tree like `params`, float32 where they are narrow. Leaves of other dtypes are as they are. For stacked members
    with a state each, call `jax.vmap(join_weights)`.

  Raises:
    ValueError: the state holds no `SplitWeightsState`, or one of other parameters or of these in other dtypes; a
      residual is neither int8 nor int16, such as after a cast.

  Example:
    >>> params = {"w": jnp.array([1.0, 2.0], jnp.bfloat16)}
    >>> tx = split_weights(optax.sgd(1.0), rounding=None)
    >>> updates, state = tx.update({"w": jnp.array([-1e-3, 1e-3])}, tx.init(params), params)
    >>> params = optax.apply_updates(params, updates)
    >>> print(params["w"], join_weights(params, state)["w"])
    [1 2] [1.0010071 1.9989929]
  """
  table = _residuals(params, state)
  return map_with_paths(lambda path, leaf: _join(leaf, table.get(path)), params)


def split(weights: Any, params: Any, state: Any) -> tuple[Any, Any]:
  """Takes float32 weights in, such as a checkpoint's: what `join_weights` gives back.

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
    >>> weights = {"w": jnp.array([0.1, 0.2, 0.3])}
    >>> params = {"w": weights["w"].astype(jnp.bfloat16)}
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
    if not _is_narrow(param):
      return jnp.asarray(given[path], leaf_dtype(param)), residuals.get(path)
    bits = next(bits for bits, dtype in RESIDUALS.items() if dtype == getattr(residuals.get(path), "dtype", None))
    nearest, residual_of = parted(jnp.asarray(given[path], jnp.float32), param.dtype, bits)
    narrow = nearest.astype(param.dtype)
    return narrow, residual_of(narrow) if bits > 16 else None

  parts = {path: in_parts(path, param) for path, param in by_path(params).items()}

  def with_residuals(node: Any) -> Any:
    if not _is_state(node) or node.residual is None:
      return node
    return node._replace(residual=map_with_paths(lambda path, _: parts[path][1], node.residual))

  params = map_with_paths(lambda path, _: parts[path][0], params)
  return params, jax.tree.map(with_residuals, state, is_leaf=_is_state)


TAKEN_IN = "take the weights in: split(join_weights(params, state), params, tx.init(params))."


class Stored(NamedTuple):
  """What one step gives for one leaf."""

  update: Any
  residual: Any


def _is_narrow(leaf: Any) -> bool:
  return is_array(leaf) and leaf.dtype in NARROW


def _is_state(node: Any) -> bool:
  return isinstance(node, SplitWeightsState)


def _widened(updates: Any, params: Any, weights: Any, tx: optax.GradientTransformation) -> Any:
  """Gradients in float32 where the weights are, unless the optimizer widens them itself."""
  if isinstance(tx, Widening):
    return updates

  def widened(path: str, g: Any, param: Any, weight: Any) -> Any:
    return g.astype(weight.dtype if _is_narrow(param) else jnp.promote_types(g.dtype, weight.dtype))

  return map_with_paths(widened, updates, params, weights)


def _no_residual(dtype: Any, path: str, leaf: Any) -> jax.Array:
  """The residual of weights at the start."""
  check_trainable(path, leaf)
  if jnp.finfo(leaf_dtype(leaf)).bits < 16:
    raise TypeError(
      f"Parameter {path!r} has dtype {leaf_dtype(leaf)}, but split_weights knows bfloat16 and float16 weights, and "
      "leaves wider ones as they are."
    )
  return jnp.zeros_like(leaf, dtype) if _is_narrow(leaf) else jnp.zeros(_kept_shape(leaf), dtype)


def _kept_shape(leaf: Any) -> tuple[int, ...]:
  """The shape of a parameter's residual."""
  return leaf.shape if _is_narrow(leaf) else (1,) * jnp.ndim(leaf)


def _check_kept(residual: Any, params: Any, bits: int) -> None:
  """Raises `ValueError` for residuals of another number of bits, which mean other weights, or of other parameters."""
  if (residual is None) != (bits == 16):
    kept = "no residual" if residual is None else "a residual"
    raise ValueError(f"The state has {kept}, but bits={bits}: {TAKEN_IN}")

  def check(path: str, param: Any, rest: Any) -> None:
    if not _is_narrow(param) and rest is None:  # what the optimizer was not made for, such as a model's functions
      return
    if rest.dtype != RESIDUALS[bits]:
      raise ValueError(
        f"The state has a residual {path!r} of dtype {rest.dtype}, but with bits={bits} it is "
        f"{jnp.dtype(RESIDUALS[bits])}: leave residuals out of a cast; for a state of other bits, {TAKEN_IN}"
      )
    _check_shape(path, param, rest)

  if residual is not None:
    map_with_paths(check, params, residual)


def _check_shape(path: str, param: Any, rest: Any) -> None:
  if rest.shape != _kept_shape(param):
    raise ValueError(
      f"The state has a residual {path!r} of shape {rest.shape}, which the parameters do not have: theirs is "
      f"{leaf_dtype(param)} of shape {jnp.shape(param)}. Give the parameters that the state was made for, in their "
      "dtypes; optax.apply_updates and update_and_apply keep these, param + update and eqx.apply_updates do not."
    )


def _join(leaf: Any, residual: Any) -> Any:
  if not _is_narrow(leaf):
    return leaf
  return leaf.astype(jnp.float32) if residual is None else joined(leaf, residual)


def _of_each(params: Any, residual: Any) -> Any:
  """A residual, or `None`, for each parameter."""
  return map_with_paths(lambda path, leaf: None, params) if residual is None else residual


def _joined(params: Any, residual: Any) -> Any:
  """The weights that the optimizer sees."""
  return map_with_paths(lambda path, leaf, rest: _join(leaf, rest), params, _of_each(params, residual))


def _residuals(params: Any, state: Any) -> dict[str, Any]:
  """The residuals of all parts of a state, by path."""
  states = [node for node in jax.tree.leaves(state, is_leaf=_is_state) if _is_state(node)]
  if not states:
    raise ValueError(
      "The state holds no SplitWeightsState: give the state of an optimizer made with split_weights; from a "
      "checkpoint, restored into the structure of tx.init(params)."
    )
  table, of_path = {}, by_path(params)
  for path, leaf in [item for node in states if node.residual is not None for item in by_path(node.residual).items()]:
    if path in of_path:
      _check_shape(path, of_path[path], leaf)
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
