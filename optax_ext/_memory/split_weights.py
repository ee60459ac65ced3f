"""Split weights: bfloat16 for the model, a residual in the optimizer's state, float32 for the optimizer."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_ext._common.applied import Applied, StoredWeight, Widening
from optax_ext._common.arguments import check_transformation, static
from optax_ext._common.dtypes import check_rounding
from optax_ext._common.layout import with_layout_errors
from optax_ext._common.paths import by_path, described, field, hides_leaves, map_with_paths
from optax_ext._common.retrace import once_per_shape
from optax_ext._memory.hashes import hashes, places_of
from optax_ext._memory.residuals import (
  SplitWeightsState,
  check_residuals,
  check_weight,
  first_residual,
  is_narrow,
  joined_weights,
  of_each,
)
from optax_ext._memory.rounding import Stochastic, stochastic
from optax_ext._memory.step import NO_KEY
from optax_ext._memory.stored import in_parts
from optax_ext._memory.two_parts import RESIDUALS, parted


def split_weights(
  tx: optax.GradientTransformation,
  bits: int = 24,
  *,
  rounding: Stochastic | None = stochastic(0),  # noqa: B008 (frozen)
) -> optax.GradientTransformationExtraArgs:
  """Trains bfloat16 or float16 weights as float32 weights, in 3 bytes each: any optax optimizer sees float32.

      θ = θ' + ρ·unit                     joined: the optimizer's weights, float32
      θ ← θ + tx.update(g, θ)             one step in float32
      θ' = the nearest narrow number,     ρ = round((θ − θ')/unit)

  The model computes with the parameters θ'. The residual ρ stays in the optimizer's state, so that a step of less than
  half a unit in the last place of θ' is not lost. `join_weights` gives θ for evaluation, export and checkpoints;
  `split` starts from float32 weights.

  ====  ==========  =======================================  =====================
  bits  residual    what is stored                           bytes for each weight
  ====  ==========  =======================================  =====================
  16    none        θ' rounded by chance                     2
  24    int8        float32 without its last 8 bits          3
  32    int16       float32, to the last bit                 4
  ====  ==========  =======================================  =====================

  Rounding to the nearest loses a step below half a unit (2⁻¹⁷ of the weight, with 24 bits) for ever. Rounding by chance
  keeps such steps on average. A number that needs no rounding stays unchanged, so that a finite weight without an
  update does not move.

  With 8-bit moments, `split_weights(quantize_state(tx))`, parameters and state take 5 bytes for each weight.

  Args:
    tx: The optimizer. It gets float32 gradients and float32 parameters, and so by default has float32 moments. For
      bfloat16 moments set its `mu_dtype` and `nu_dtype`, or use `quantize_state`.
    bits: 16, 24 or 32, of θ' and ρ together.
    rounding: `stochastic(seed)`, or `None` to the nearest. The random bits of a weight are a function of the seed, the
      leaf's path, the weight's index and the step. With 32 bits float32 needs no rounding.

  Returns:
    A transformation whose state is a `SplitWeightsState`. It must be the last link of a chain. Updates of split leaves
    are float32, so that `optax.apply_updates` gives exactly θ'. Wrappers that want updates in the gradients' dtype
    (`optax.apply_if_finite`, `optax.MultiSteps`) go inside: `split_weights(optax.MultiSteps(tx, 4))`. Wrappers that
    change the optimizer's updates or move the parameters (`sam`, `schedule_free`, `optax.lookahead`) go inside, too.
    `param + update` and `eqx.apply_updates` would make θ' float32, which the next update refuses. `update_and_apply`
    writes θ' without forming an update. Leaves of other dtypes (float32, complex) pass unchanged.

  Raises:
    TypeError: `rounding` is not one of the two; at init, for a parameter that is not an array of floating or complex
      numbers, or has 8 bits.
    ValueError: `bits` is not 16, 24 or 32, or is 16 without stochastic rounding; at init, when two leaves have the same
      path; at update, when `params` is missing or in other dtypes than at init, or the state has other bits.

  Warns:
    UserWarning: at init, when no parameter is bfloat16 or float16.

  Example:
    A hundred steps of one thousandth of a weight's last place:

    >>> from optax_ext import join_weights
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
  check_transformation("tx", tx)
  if not isinstance(bits, int | np.integer) or bits not in RESIDUALS:
    hint = static("bits", bits)
    raise ValueError(f"bits must be 16, 24 or 32, of a weight and its residual together, but was {bits!r}{hint}.")
  check_rounding(rounding)
  if bits == 16 and rounding is None:
    raise ValueError(
      "bits=16 with rounding=None would lose every step below half a unit in a weight's last place: give "
      "rounding=stochastic(seed), or 24 bits."
    )
  tx, storage = optax.with_extra_args_support(tx), in_parts(bits, by_chance=rounding is not None)

  def init(params: Any) -> SplitWeightsState:
    by_path(params)  # raises if two leaves share a path, and so their random bits
    map_with_paths(check_weight, params)
    _warn_if_none_is_narrow(params)
    residual = jax.tree.map(functools.partial(first_residual, RESIDUALS[bits]), params) if bits > 16 else None
    return SplitWeightsState(jnp.zeros([], jnp.int32), residual, tx.init(joined_weights(params, residual)))

  def update(
    updates: Any, state: SplitWeightsState, params: Any = None, *, return_applied: bool = False, **extra_args: Any
  ) -> tuple[Any, SplitWeightsState]:
    count = jnp.asarray(optax.safe_increment(state.count))
    keys = rounding.keys_at(count) if rounding else lambda path, leaf: NO_KEY
    residuals, weights = of_each(params, state.residual), joined_weights(params, state.residual)
    if return_applied:
      extra_args["stored_weights"] = map_with_paths(functools.partial(in_memory, keys), params, residuals)
    steps, inner_state = tx.update(_widened(updates, params, weights, tx), state.inner_state, weights, **extra_args)

    def moved(step: jax.Array, param: jax.Array, weight: jax.Array, key: Any) -> tuple[Any, ...]:
      words = hashes(key, places_of(weight.shape)) if rounding else None
      nearest, residual_of = parted((weight + step).astype(jnp.float32), param.dtype, bits, words)
      old = param.astype(jnp.float32)
      # `nearest`, unless a weight falls to a 2¹⁵th: from `old`, as optax.apply_updates computes it, or from `weight`.
      # XLA for TPUs takes one pass where several of its results read the same arrays.
      base = weight if return_applied else old
      narrow = (base + (nearest - base)).astype(param.dtype)
      return nearest - old, narrow, residual_of(narrow) if bits > 16 else None

    moved = once_per_shape(moved, count)

    def stored(path: str, step: Any, param: Any, weight: Any, residual: Any) -> Stored:
      if not is_narrow(param):
        return Stored(step, residual)
      if isinstance(step, Applied):
        return Stored(step, step.residual)
      update, narrow, rest = moved(step, param, weight, keys(path, weight))
      return Stored(Applied(narrow) if return_applied else update, rest)

    new = map_with_paths(stored, steps, params, weights, residuals)
    residual = field(Stored, new, 1, state.residual) if bits > 16 else None
    return field(Stored, new, 0, steps), SplitWeightsState(count, residual, inner_state)

  def in_memory(keys: Any, path: str, param: Any, residual: Any) -> StoredWeight | None:
    if not is_narrow(param):
      return None
    return StoredWeight(storage, (param,) if residual is None else (param, residual), keys(path, param))

  def check(state: Any, params: Any) -> None:
    if params is None:
      raise ValueError("split_weights needs the parameters: call tx.update(grads, state, params).")
    if isinstance(state, SplitWeightsState):
      check_residuals(state.residual, params, bits)

  return with_layout_errors(init, update, check)


class Stored(NamedTuple):
  """What one step gives for one leaf."""

  update: Any
  residual: Any


def _warn_if_none_is_narrow(params: Any) -> None:
  leaves = jax.tree.leaves(params)
  if leaves and not any(map(is_narrow, leaves)) and not hides_leaves(params):
    warnings.warn(
      f"split_weights splits no parameter, because none of these has 16 bits: {described(params)}. Make the model's "
      "weights bfloat16.",
      stacklevel=3,
    )


def _widened(updates: Any, params: Any, weights: Any, tx: optax.GradientTransformation) -> Any:
  """Gradients in float32 where the weights are, unless the optimizer widens them itself."""
  if isinstance(tx, Widening):
    return updates

  def widened(path: str, g: Any, param: Any, weight: Any) -> Any:
    return jnp.asarray(g, weight.dtype if is_narrow(param) else jnp.result_type(g, weight))

  return map_with_paths(widened, updates, params, weights)
