"""`scale_by_moments`: keeps the moments m and v, and makes the update of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_ext._common.arguments import check_dtype, check_function
from optax_ext._common.dtypes import (
  Rounding,
  arithmetic_dtype,
  check_rounding,
  check_trainable,
  mean_dtype,
  real_dtype,
  square_dtype,
  to_nearest,
  warn_if_exact,
)
from optax_ext._common.paths import by_path, field, map_with_paths
from optax_ext._common.retrace import once_per_shape
from optax_ext._moments.debias import Debias, DebiasOfGains, Moments
from optax_ext._moments.gains import Gain
from optax_ext._moments.ratios import Ratio, Square, adam_ratio, elementwise


def scale_by_moments(
  mean_gain: Gain,
  square_gain: Gain,
  *,
  debias: Debias | None = None,
  ratio: Ratio | None = None,
  square: Square = elementwise,
  mu_dtype: Any = None,
  nu_dtype: Any = None,
  rounding: Rounding | None = None,
) -> optax.GradientTransformation:
  """Replaces the gradient by a ratio of its moments, which are moving averages with time-varying gains.

      t ← count + 1
      m ← m + w₁(t)·(g − m)                 mean_gain
      v ← v + w₂(t)·(square(path, g) − v)   square_gain
      update = ratio(debias(t)(Moments(g, m, v)))

  Args:
    mean_gain: w₁, from the int32 step t ≥ 1 to a scalar; see `constant_gain`, `adam_gain`.
    square_gain: w₂, such a function too; see also `adamnx_gain`, `adax_gain`, `adafactor_gain`.
    debias: Corrects the moments for their start at 0: `standard()`, `cross_moment()`, `nesterov(b1, b2)`. `None`
      corrects nothing, which is right for gains with w(1) = 1.
    ratio: Makes the update of the moments; `adam_ratio()` by default.
    square: A function of a leaf's path and gradient that returns what v averages: a real array that broadcasts against
      the gradient and is 0 where the gradient is 0. By default |g|² of every element; `per_vector` makes one number per
      weight vector.
    mu_dtype: Stores m; by default the parameter's dtype. Means of complex parameters stay complex.
    nu_dtype: Stores v; by default float32 for narrower parameters, else the parameter's (real) dtype.
    rounding: How moments are rounded to a bfloat16 `mu_dtype` or `nu_dtype`: to the nearest, or by chance with
      `stochastic(seed)`.

  Returns:
    A transformation whose state is `optax.ScaleByAdamState(count, mu, nu)`; count is int32, starts at 0 and stays at
    its largest value. Updates have the dtype of the arithmetic: float32 for narrower gradients, else the gradient's.

  Raises:
    TypeError: a gain, a rule, a ratio or a square is no function, a dtype is no floating-point dtype, `rounding` is
      neither of the two; at init, for a parameter that is not an array of floating or complex numbers. Its path is
      named.
    ValueError: at init, when two leaves have the same path, as in `{"a/b": x, "a": {"b": y}}`.

  Warns:
    UserWarning: at init, when `rounding` is given and no moment is stored in bfloat16.

  Example:
    Adam with AdamNX's second-moment decay:

    >>> import optax
    >>> from optax_ext import adam_gain, adamnx_gain
    >>> tx = optax.chain(scale_by_moments(adam_gain(0.9), adamnx_gain(0.99)), optax.scale_by_learning_rate(0.1))
    >>> params = jnp.array([1.0, -2.0])
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...   updates, state = tx.update(2 * params, state, params)  # the gradient of x²
    ...   params = optax.apply_updates(params, updates)
    ...   print(f"{params[0]:.3f} {params[1]:.3f}")
    0.900 -1.900
    0.800 -1.800
    0.702 -1.701

  References:
    Kingma and Ba, `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_, 2014
  """
  debias = (lambda t: lambda moments: moments) if debias is None else debias
  ratio = adam_ratio() if ratio is None else ratio
  check_function("mean_gain", mean_gain, "constant_gain(0.9)", "t")
  check_function("square_gain", square_gain, "constant_gain(0.999)", "t")
  check_function("debias", debias, "standard()", "t")
  check_function("ratio", ratio, "adam_ratio()", "moments")
  check_function("square", square, "per_vector(axes)", "path", "grad")
  check_dtype("mu_dtype", mu_dtype, jnp.inexact)
  check_dtype("nu_dtype", nu_dtype)
  check_rounding(rounding)
  if isinstance(debias, DebiasOfGains):
    debias = debias.of(mean_gain, square_gain)

  def init(params: optax.Params) -> optax.ScaleByAdamState:
    by_path(params)  # raises if two leaves share a path, and so their random bits and whatever else goes by paths

    def zero_mean(path: str, leaf: Any) -> jax.Array:
      check_trainable(path, leaf)
      return jnp.zeros_like(leaf, dtype=mean_dtype(leaf, mu_dtype))

    def zero_square(path: str, leaf: Any) -> jax.Array:
      return square(path, jnp.zeros_like(leaf, dtype=arithmetic_dtype(leaf))).astype(square_dtype(leaf, nu_dtype))

    mu, nu = map_with_paths(zero_mean, params), map_with_paths(zero_square, params)
    if rounding:
      warn_if_exact(mu, nu)
    return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=mu, nu=nu)

  def update(updates: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[optax.Updates, Any]:
    del params
    t = optax.safe_increment(state.count)
    w1, w2, debiased = mean_gain(t), weight_of_square(square_gain, t), debias(t)
    storing = rounding.at(t) if rounding else to_nearest

    def moved(g: jax.Array, mu: jax.Array, nu: jax.Array, squared: jax.Array) -> Step:
      dtype, real = g.dtype, real_dtype(g.dtype)
      m = moving_average(mu.astype(dtype), g, jnp.asarray(w1, real))
      v = moving_average(nu.astype(real), squared, jnp.asarray(w2, real))
      update = ratio(debiased(Moments(g, m, v))).astype(dtype)
      # A square that overflowed allows no step. The correction of a finite mean may overflow too, and ∞/∞ would be NaN.
      overflowed = (v == jnp.inf) & _is_finite(m)
      return Step(jax.lax.select(overflowed, jnp.zeros_like(update), update), m, v)

    moved = once_per_shape(moved, t)

    def step(path: str, grad: Any, mu: jax.Array, nu: jax.Array) -> Step:
      check_trainable(path, grad)
      g = jnp.asarray(grad, arithmetic_dtype(grad))
      update, m, v = moved(g, mu, nu, square(path, g))
      return Step(update, *storing(path, m, v, mu.dtype, nu.dtype))

    steps = map_with_paths(step, updates, state.mu, state.nu)
    updates, mu, nu = (field(Step, steps, i, old) for i, old in enumerate((updates, state.mu, state.nu)))
    return updates, optax.ScaleByAdamState(count=t, mu=mu, nu=nu)

  return optax.GradientTransformation(init, update)


class Step(NamedTuple):
  """What one step gives for one leaf."""

  update: jax.Array
  mu: jax.Array
  nu: jax.Array


def moving_average(average: jax.Array, value: jax.Array, weight: jax.Array) -> jax.Array:
  """The average a + w·(x − a), accurate as w → 0; an overflow stays infinite, where ∞ − ∞ would be NaN."""
  return jax.lax.select(_is_finite(average), average + weight * (value - average), average)


def weight_of_square(gain: Gain, t: Any) -> jax.Array:
  """A gain, and the smallest number where the gain has underflowed: of a square that overflowed, 0·∞ would be NaN."""
  weight = jnp.asarray(gain(t))
  return jnp.maximum(weight, jnp.finfo(weight.dtype).tiny)


def _is_finite(x: jax.Array) -> jax.Array:
  """`jnp.isfinite` as one equation of the program, where it can be: it is traced for every leaf."""
  return jnp.isfinite(x) if jnp.iscomplexobj(x) else jax.lax.is_finite(x)
