"""The three dtypes of an optimizer: of arithmetic, of stored moments, of returned updates.

Arithmetic is float32 at least. In bfloat16, 0.999 is 1.0, so that a second moment never decays; in float16, ε = 1e-8 is
0, so that a zero gradient gives 0/0. Only what is stored is rounded.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_ext._common.arguments import check_transformation, shown
from optax_ext._common.layout import with_layout_errors
from optax_ext._common.paths import hides_leaves, map_with_paths


def leaf_dtype(leaf: Any) -> jnp.dtype:
  """The dtype of an array, of the description of one, or of a Python number, as jax has it: float64 is float32."""
  return jax.dtypes.canonicalize_dtype(leaf.dtype) if hasattr(leaf, "dtype") else jnp.dtype(jnp.result_type(leaf))


def is_array(leaf: Any) -> bool:
  """Whether a leaf is an array or the description of one; a class of NumPy, which has such attributes, is none."""
  return isinstance(getattr(leaf, "shape", None), tuple) and hasattr(leaf, "dtype")


def is_numeric(leaf: Any) -> bool:
  """Whether a leaf is an array, the description of one, or a Python number: what optax counts as a parameter."""
  return is_array(leaf) or isinstance(leaf, int | float | complex)


def arithmetic_dtype(leaf: Any) -> jnp.dtype:
  """The dtype that a leaf's moments are computed in: float32 for narrower floats, else its own.

  >>> [str(arithmetic_dtype(jnp.zeros(2, dtype))) for dtype in (jnp.float16, jnp.float32, jnp.complex64)]
  ['float32', 'float32', 'complex64']
  """
  dtype = leaf_dtype(leaf)
  return dtype if jnp.issubdtype(dtype, jnp.complexfloating) or jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def real_dtype(dtype: Any) -> jnp.dtype:
  """The dtype of the real part."""
  return jnp.finfo(dtype).dtype


def mean_dtype(leaf: Any, mu_dtype: Any) -> jnp.dtype:
  """Where the first moment is kept: in `mu_dtype`, by default in the leaf's own dtype. A complex leaf stays complex."""
  own = leaf_dtype(leaf)
  dtype = own if mu_dtype is None else jnp.dtype(mu_dtype)
  return jnp.promote_types(dtype, jnp.complex64) if jnp.issubdtype(own, jnp.complexfloating) else dtype


def square_dtype(leaf: Any, nu_dtype: Any) -> jnp.dtype:
  """Where the second moment, a real number, is kept: in `nu_dtype`, by default in the arithmetic's dtype.

  Not in a narrower dtype of the leaf, as `optax.adam` keeps it: rounded to the nearest bfloat16, a second moment cannot
  decay by less than 0.2 % a step, and β₂ = 0.999 asks for 0.1 %.
  """
  return real_dtype(arithmetic_dtype(leaf)) if nu_dtype is None else jnp.dtype(nu_dtype)


def store(x: jax.Array, dtype: Any) -> jax.Array:
  """Rounds to the nearest number of a dtype of storage. What is finite stays finite."""
  return saturate(x, dtype).astype(dtype)


def stored_like(old: Any, new: Any) -> Any:
  """What a step made of a stored value, in its dtype."""
  if not is_array(old) or not is_array(new) or old.dtype == new.dtype:
    return new
  return store(new, old.dtype) if jnp.issubdtype(old.dtype, jnp.floating) else new.astype(old.dtype)


def to_nearest(path: str, m: Any, v: Any, mu_dtype: Any, nu_dtype: Any) -> tuple[jax.Array, jax.Array]:
  """Stores the moments of a leaf, each rounded to the nearest."""
  del path
  return store(m, mu_dtype), store(v, nu_dtype)


Storing = Callable[[str, jax.Array, jax.Array, Any, Any], tuple[jax.Array, jax.Array]]
"""How moments are stored: a leaf's path, its m and v, the dtypes that they are kept in -> what is kept."""


class Rounding:
  """A way to round stored moments other than to the nearest. Not callable: that would look like a schedule."""

  def at(self, t: Any) -> Storing:
    """How the moments of step t are stored."""
    raise NotImplementedError


def check_rounding(rounding: Any) -> None:
  """Raises `TypeError` for anything but `None` and what `stochastic` returns."""
  if not (rounding is None or isinstance(rounding, Rounding)):
    raise TypeError(f"rounding must be None (to the nearest) or stochastic(seed), but was {shown(rounding)}.")


def warn_if_exact(mu: Any, nu: Any) -> None:
  """Warns if a way to round is given and there is nothing to round. What `optax.masked` hides may be narrower."""
  dtypes = {leaf.dtype for leaf in jax.tree.leaves((mu, nu))}
  if dtypes and all(dtype.itemsize >= 4 for dtype in dtypes) and not hides_leaves(mu):
    stored = ", ".join(sorted(map(str, dtypes)))
    warnings.warn(
      f"rounding has no effect, because moments are stored in {stored}: give mu_dtype and nu_dtype, jnp.bfloat16 say.",
      stacklevel=3,
    )


def saturate(x: jax.Array, dtype: Any) -> jax.Array:
  """Finite numbers into a narrower dtype's range, as they are: a float16 ends at 65504, and ∞/∞ would be NaN."""
  largest = jnp.finfo(dtype).max
  if largest >= jnp.finfo(x.dtype).max or jnp.iscomplexobj(x):
    return x
  bounded = jnp.clip(x, -largest.astype(x.dtype), largest.astype(x.dtype))
  return jnp.where(jnp.isfinite(x), bounded, x)


def check_trainable(path: str, leaf: Any) -> None:
  """Raises `TypeError` for a leaf that has no gradient: an integer, a boolean, something that is no array."""
  dtype = getattr(leaf, "dtype", type(leaf))
  if not (jnp.issubdtype(dtype, jnp.inexact) if hasattr(leaf, "dtype") else isinstance(leaf, float | complex)):
    is_a = f"has dtype {dtype}" if hasattr(leaf, "dtype") else f"is of type {dtype.__name__}"
    raise TypeError(
      f"Parameter {path!r} {is_a}, but only arrays of floating or complex numbers can be trained; hide the others with "
      "optax.masked or optax.partition, or filter them out of the tree."
    )


def cast_updates(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """Runs `inner` and casts its updates to the dtypes of the parameters, or of the gradients where none are given.

  Pieces give updates in the dtype of their arithmetic: float32 for narrower gradients. Wrap your own chain where
  updates must have the parameters' dtypes.

  Args:
    inner: The transformation.

  Returns:
    An `optax.GradientTransformationExtraArgs` whose state is `inner`'s own.

  Raises:
    ValueError: at update, where the state is one of another transformation; the first difference is named.

  Example:
    >>> tx = cast_updates(optax.scale(jnp.float32(0.5)))
    >>> weights = jnp.ones(3, jnp.bfloat16)
    >>> print(tx.update(weights, tx.init(weights), weights)[0].dtype)
    bfloat16
  """
  check_transformation("inner", inner)
  inner = optax.with_extra_args_support(inner)

  def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
    like = updates if params is None else params
    updates, state = inner.update(updates, state, params, **extra_args)
    return cast_like(like, updates), state

  return with_layout_errors(inner.init, update)


def cast_like(tree: Any, updates: Any) -> Any:
  """Updates in the dtypes of a tree's leaves."""
  return map_with_paths(lambda path, update, leaf: jnp.asarray(update, leaf_dtype(leaf)), updates, tree)
