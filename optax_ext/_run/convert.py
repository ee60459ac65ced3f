"""Moves a training run from one optimizer to another, with its moments."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_ext._common.arguments import Scalar, check_number, is_concrete, shown
from optax_ext._common.dtypes import arithmetic_dtype
from optax_ext._common.paths import by_path, check_paths, map_with_paths
from optax_ext._moments.gains import one_minus_decay_power

Decays = tuple[Scalar, Scalar]
_TAKEN_IN = (
  "start from the float32 weights, join_weights(params, state), and take them in with split where new_state has "
  "split weights."
)


def convert_moments(state: Any, new_state: Any, *, decays: Decays, new_decays: Decays, schedules: str = "keep") -> Any:
  """Converts the state of one optimizer into another's in mid-run: moments, count, schedules.

      m ← m·(1 − β₁'ᵗ)/(1 − β₁ᵗ)     v ← v·(1 − β₂'ᵗ)/(1 − β₂ᵗ)

  `optax.adam`, `optax.adamw`, `optax.nadam`, `exadam` and `caadam` store averages that start at 0 and are too small by
  the factor 1 − βᵗ; pass their b1 and b2. `adamnx` stores averages of the right size; pass 0 for both, whatever its b1
  and b2. Where the old and the new β agree the moments are copied.

  ===================================  =============================
  optimizer                            decays
  ===================================  =============================
  adam, adamw, nadam, exadam, caadam   (b1, b2), mostly (0.9, 0.999)
  adamnx                               (0, 0)
  ===================================  =============================

  Every `optax.ScaleByAdamState` of `new_state` gets its moments from the one in the same place in `state`. So wrappers
  (`optax.masked`, `partition`, `MultiSteps`, `inject_hyperparams`) must be the same on both sides. Weight decay, masks
  and schedules of the two chains may differ. Every schedule of `new_state` goes on at the count of the moments before
  it, or starts again. Residuals of `split_weights`, a part of the weights, go on. Everything else (injected
  hyperparameters, the counts and the gradients of `MultiSteps`) stays as in `new_state`.

  ND-Adam cannot be converted: it keeps one second moment for each vector, not for each weight, and its parameters are
  unit vectors. Start it anew, from `normalize_vectors`.

  Args:
    state: The state of the old optimizer, after t updates.
    new_state: `tx.init(params)` of the new optimizer.
    decays: (β₁, β₂) of the averages in `state`.
    new_decays: (β₁', β₂') of the averages in `new_state`.
    schedules: `"keep"` lets schedules (learning rate, weight decay) go on at count t; `"restart"` starts them at 0, for
      a new warm-up or another cosine. Moments and their bias corrections go on at t in both cases.

  Returns:
    A tree like `new_state`, with the same dtypes. It can be computed under `jax.jit`.

  Raises:
    TypeError: a decay rate is not a number.
    ValueError: a decay rate is not in [0, 1); `schedules` is neither of the two; one of the states has no moments, or
      not as many as the other; their leaves differ in paths or shapes, or are codes of `quantize_state`; residuals of
      split weights have no place of their own kind in `new_state`.

  Example:
    From AdamW to AdamNX, in the middle of a run:

    >>> from optax_ext import adamnx
    >>> params, grads = jnp.array([1.0, 2.0]), jnp.array([0.5, -3.0])
    >>> old = optax.adamw(1e-3)
    >>> state = old.init(params)
    >>> for _ in range(10):
    ...   _, state = old.update(grads, state, params)
    >>> new = adamnx(1e-3)
    >>> new_state = convert_moments(state, new.init(params), decays=(0.9, 0.999), new_decays=(0, 0))
    >>> for moments in state[0], new_state[0]:  # too small by 1 − 0.9¹⁰ = 0.65, and not
    ...   print(f"m = {moments.mu[0]:.4f} {moments.mu[1]:.4f} after {moments.count} steps")
    m = 0.3257 -1.9540 after 10 steps
    m = 0.5000 -3.0000 after 10 steps
  """
  for name, pair in ("decays", decays), ("new_decays", new_decays):
    if not isinstance(pair, tuple) or len(pair) != 2:
      raise TypeError(f"{name} must be a tuple of two numbers (b1, b2), but was {shown(pair)}.")
    for i, b in enumerate(pair):
      check_number(f"{name}[{i}]", b, "[0, 1)")
  if schedules not in ("keep", "restart"):
    raise ValueError(f'schedules must be "keep" or "restart", but was {schedules!r}.')
  old, new = _moments(state), _moments(new_state)
  if len(old) != len(new) or not old:
    raise ValueError(
      f"state holds moments (optax.ScaleByAdamState) of {len(old)} transformations and new_state of {len(new)}, but "
      "there must be as many in both, and one at least: wrap the two optimizers in the same way."
    )
  count = jax.tree.leaves(old[0].count)[0]
  converted = iter([_convert(a, b, decays, new_decays) for a, b in zip(old, new, strict=True)])

  def go_on(node: Any) -> Any:
    nonlocal count
    if _is_moments(node):
      moments = next(converted)
      count = jax.tree.leaves(moments.count)[0]
      return moments
    if _is_count(node) and schedules == "keep":
      return node._replace(count=_with_value(node.count, count))
    return node

  new_state = jax.tree.map(go_on, new_state, is_leaf=lambda node: _is_moments(node) or _is_count(node))
  return _with_residuals_of(state, new_state)


def _with_residuals_of(state: Any, new_state: Any) -> Any:
  """A state with the residuals of split weights of an old one: a part of the weights, whatever steps them."""
  split = jax.tree.leaves(state, is_leaf=_is_split)
  residuals = iter([node for node in split if _is_split(node)])

  def go_on(node: Any) -> Any:
    old = next(residuals, None) if _is_split(node) else None
    if old is None:
      return node
    described = [jax.tree.map(lambda x: (x.shape, x.dtype), residual) for residual in (old.residual, node.residual)]
    if described[0] != described[1]:
      raise ValueError(f"state and new_state have residuals of split weights that differ in paths or bits: {_TAKEN_IN}")
    residual = jax.tree.map(jnp.array, old.residual)  # in buffers of its own
    return node._replace(residual=residual, count=_with_value(node.count, jax.tree.leaves(old.count)[0]))

  new_state = jax.tree.map(go_on, new_state, is_leaf=_is_split)
  if next(residuals, None) is not None:
    raise ValueError(f"state holds residuals of split weights, for which new_state has no place: {_TAKEN_IN}")
  return new_state


def _convert(old: Any, new: Any, decays: Decays, new_decays: Decays) -> Any:
  t = jax.tree.leaves(old.count)[0]

  def moment(name: str, b: Scalar, new_b: Scalar) -> Any:
    stored = by_path(getattr(old, name))
    check_paths("The optimizer state that is to be converted", stored, getattr(new, name))
    bias, new_bias = one_minus_decay_power(b, t), one_minus_decay_power(new_b, t)
    same = b is new_b or (is_concrete(b) and is_concrete(new_b) and b == new_b)
    factor = 1 if same else jnp.where(t > 0, new_bias / jnp.where(t > 0, bias, 1), 1)

    def convert(path: str, leaf: Any) -> Any:
      if leaf is None:
        return None
      value = stored[path]
      if jnp.shape(value) != leaf.shape:
        raise ValueError(
          f"{name} of {path!r} has shape {jnp.shape(value)} in state and {leaf.shape} in new_state, which cannot be "
          "made of each other: nd_adam keeps one second moment for each vector, other optimizers one for each weight."
        )
      for which, dtype in ("state", jnp.result_type(value)), ("new_state", leaf.dtype):
        if jnp.issubdtype(dtype, jnp.integer):
          raise ValueError(
            f"{name} of {path!r} is codes of quantize_state in {which} ({dtype}), but convert_moments needs moments in "
            "floating point on both sides."
          )
      if not jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        value = jnp.real(value)  # optax keeps the squares of complex gradients as complex numbers
      dtype = arithmetic_dtype(value)
      return (jnp.asarray(value, dtype) * jnp.asarray(factor, dtype)).astype(leaf.dtype)

    return map_with_paths(convert, getattr(new, name))

  (b1, b2), (new_b1, new_b2) = decays, new_decays
  mu, nu = moment("mu", b1, new_b1), moment("nu", b2, new_b2)
  return new._replace(count=_with_value(new.count, t), mu=mu, nu=nu)


def _is_moments(node: Any) -> bool:
  return isinstance(node, optax.ScaleByAdamState)


def _is_count(node: Any) -> bool:
  """Whether a node is the state of a schedule, which is a count and nothing else."""
  return getattr(node, "_fields", None) == ("count",)


def _is_split(node: Any) -> bool:
  """Whether a node is the state of `split_weights`."""
  return getattr(node, "_fields", None) == ("count", "residual", "inner_state")


def _moments(state: Any) -> list[Any]:
  return [node for node in jax.tree.leaves(state, is_leaf=_is_moments) if _is_moments(node)]


def _with_value(like: Any, count: jax.Array) -> Any:
  """A count of its own buffer, so that states can be donated; boxed as `like` is (Flax NNX boxes it)."""
  return jax.tree.map(lambda leaf: jnp.array(count, leaf.dtype), like)
