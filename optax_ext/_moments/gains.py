"""Numbers that change with the step: gains of moving averages, and EXAdam's logarithmic step size.

A **gain** maps the step t ≥ 1 to the weight w(t) = 1 − β(t) of the newest value in a moving average,

    m ← m + w(t)·(g − m).

Gains, not decay rates, because 1 − β(t) rounds to 0 in float32 as β(t) → 1. An average whose gain has w(1) = 1 starts
at its first value and needs no bias correction: Adam's correction *is* such a gain (`adam_gain`), which puts Adam,
Adafactor, AdaX and AdamNX into one family.

In float32 every gain is within 1e-6 + 1e-7·|ln w(t)| of the exact value of what it was given, a Python number or a
traced one, compiled or not, until it underflows. Measured for t from 1 to 10⁷ (`benchmarks/gain_accuracy.py`), largest
relative errors of Python numbers, with jax 0.10.2, whose errors are the larger:

    gain            parameter   to t = 10⁴   to t = 10⁷
    adam_gain           0.9       1.4e-7       1.4e-7
    adam_gain           0.999     4.0e-7       4.0e-7
    adamnx_gain         0.99      3.5e-7       3.8e-6   (where w has fallen to 1e-38)
    adamnx_gain         0.999     4.0e-7       6.2e-7
    adax_gain           1e-4      3.6e-7       3.9e-6   (the same)
    adafactor_gain      0.8       1.6e-7       2.4e-7
    1 − β₂,ₜ of AdamNX as printed, in float32:
                        0.99      2.3e-3       more than 1

A **schedule** is optax's: it maps the count of steps made, which starts at 0, to a number. The papers' t is count + 1.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_ext._common import two_floats
from optax_ext._common.arguments import Scalar, check_number, is_concrete
from optax_ext._common.two_floats import TwoFloats

Gain = Callable[[Any], jax.Array]
"""Step t, from 1 -> w(t), the weight of the newest value in an average, from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class StartingGain:
  """A gain that knows how much of an average's start is left: βᵗ after step t.

  Debias rules ask for β, so that it is said once.

  Attributes:
    weight: The gain.
    start: β; 0 where w(1) = 1, so that nothing is left.
  """

  weight: Gain
  start: Scalar = 0.0

  def __call__(self, t: Any) -> jax.Array:
    """w(t)."""
    return self.weight(t)


def start_of(name: str, gain: Gain) -> Scalar:
  """The β of a gain's start.

  Raises:
    TypeError: the gain is a function of the user's own, which does not say.
  """
  if isinstance(gain, StartingGain):
    return gain.start
  raise TypeError(
    f"{name} is {gain!r}, a function that does not say how much of its average's start is left: give the debias rule "
    "its decay rates, as standard(b1, b2) or cross_moment(b1, b2), with 0 for an average whose gain has w(1) = 1."
  )


def constant_gain(b: Scalar) -> Gain:
  """The gain of an exponential moving average with a constant decay rate.

      w(t) = 1 − β

  Args:
    b: Decay rate β in [0, 1).

  Returns:
    A function from the int32 step t ≥ 1 to a scalar, float64 under x64 and float32 otherwise.

  Raises:
    TypeError, ValueError: `b` is not a number in [0, 1).

  Example:
    >>> print(constant_gain(0.9)(1), constant_gain(0.9)(1000))
    0.1 0.1

  References:
    Kingma and Ba, `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_, 2014, Algorithm 1
  """
  check_number("b", b, "[0, 1)")
  one = float(b) if is_concrete(b) else b  # NumPy would subtract in a narrow dtype of its own
  return StartingGain(lambda t: jnp.asarray(1 - one, _time(t).dtype), start=b)


def adam_gain(b: Scalar) -> Gain:
  """The gain whose average equals Adam's average *after* bias correction, m/(1 − βᵗ).

      w(t) = (1 − β) / (1 − βᵗ),     that is, β(t) = (β − βᵗ)/(1 − βᵗ)

  Args:
    b: Decay rate β in [0, 1).

  Returns:
    A function from the int32 step t ≥ 1 to a scalar, float64 under x64 and float32 otherwise. w(1) = 1.

  Raises:
    TypeError, ValueError: `b` is not a number in [0, 1).

  Example:
    >>> print([round(float(adam_gain(0.9)(t)), 4) for t in (1, 2, 10, 1000)])
    [1.0, 0.5263, 0.1535, 0.1]

  References:
    Zhu et al., `AdamNX <https://arxiv.org/abs/2511.13465>`_, 2025, Algorithm 1 (as β₁,ₜ)
  """
  check_number("b", b, "[0, 1)")
  # A weight above 1 by rounding may overflow.
  return StartingGain(lambda t: jnp.minimum((1 - b) / one_minus_decay_power(b, t), 1))


def adamnx_gain(b2: Scalar) -> Gain:
  """AdamNX's second-moment gain, from a decay rate that tends to 1.

      β(t) = (1 − β₂^{k(t−1)}) / (1 − β₂^{kt}),   k = 1 − β₂
      w(t) = e^{L(t−1)} · expm1(L) / expm1(L·t),   L = k·ln β₂

  It is AdaX's gain at another parameter: `adamnx_gain(b2)` equals `adax_gain(expm1(-(1 - b2) * log(b2)))`. Its time
  constant is 1/|L| steps, 9,950 at β₂ = 0.99. After 3·10⁴ steps all gains still to come add up to 5 %, after 5·10⁴ to
  0.7 %: the second moment is in effect frozen.

  Args:
    b2: Decay rate β₂ in (0, 1).

  Returns:
    A function from the int32 step t ≥ 1 to a scalar, float64 under x64 and float32 otherwise. w(1) = 1, and w(t) ≤ 1/t.

  Raises:
    TypeError, ValueError: `b2` is not a number in (0, 1).

  Example:
    >>> gain = adamnx_gain(0.99)
    >>> print([f"{float(gain(t)):.3g}" for t in (1, 2, 10_000, 100_000)])
    ['1', '0.5', '5.8e-05', '4.34e-09']

  References:
    Zhu et al., `AdamNX <https://arxiv.org/abs/2511.13465>`_, 2025, Equation 11
  """
  check_number("b2", b2, "(0, 1)")

  def growth() -> TwoFloats:
    if is_concrete(b2):
      return two_floats.split((1 - b2) * math.log(b2))
    traced = _positive(b2)
    return two_floats.multiply(two_floats.add(1, -traced), two_floats.log(traced))

  return StartingGain(lambda t: _growing(growth(), t))


def adax_gain(b2: Scalar = 1e-4) -> Gain:
  """AdaX's second-moment gain: v ← (1 + β₂)·v + β₂·g², divided by (1 + β₂)ᵗ − 1.

      w(t) = β₂ / ((1 + β₂)ᵗ − 1)

  Args:
    b2: Growth rate β₂ > 0.

  Returns:
    A function from the int32 step t ≥ 1 to a scalar, float64 under x64 and float32 otherwise. w(1) = 1, and w(t) ≤ 1/t.

  Raises:
    TypeError, ValueError: `b2` is not a number in (0, ∞).

  Warns:
    UserWarning: `b2` is 0.5 or more, as a decay rate is.

  Example:
    >>> print([f"{float(adax_gain(1e-4)(t)):.3g}" for t in (1, 2, 10_000, 100_000)])
    ['1', '0.5', '5.82e-05', '4.54e-09']

  References:
    Li et al., `AdaX: Adaptive Gradient Descent with Exponential Long Term Memory <https://arxiv.org/abs/2004.09740>`_,
    2020
  """
  check_number("b2", b2, "(0, inf)")
  if is_concrete(b2) and b2 >= 0.5:
    warnings.warn(
      f"adax_gain has b2={b2}, a decay rate by its size: its b2 is a growth rate, such as 1e-4.", stacklevel=2
    )

  def growth() -> TwoFloats:
    return two_floats.split(-math.log1p(b2)) if is_concrete(b2) else _minus_log1p(_positive(b2))

  return StartingGain(lambda t: _growing(growth(), t))


def adafactor_gain(power: Scalar = 0.8) -> Gain:
  """Adafactor's second-moment gain: a power of the step.

      w(t) = t^{−c}

  Args:
    power: Exponent c in [0, ∞). 0 keeps the newest value alone, 1 gives the mean of all values.

  Returns:
    A function from the int32 step t ≥ 1 to a scalar, float64 under x64 and float32 otherwise. w(1) = 1.

  Raises:
    TypeError, ValueError: `power` is not a number in [0, ∞).

  Example:
    >>> print([round(float(adafactor_gain()(t)), 4) for t in (1, 2, 10, 1000)])
    [1.0, 0.5743, 0.1585, 0.004]

  References:
    Shazeer and Stern, `Adafactor <https://arxiv.org/abs/1804.04235>`_, 2018, Section 7.2
  """
  check_number("power", power)
  return StartingGain(lambda t: _time(t) ** -power)


def one_minus_decay_power(b: Scalar, t: Any) -> jax.Array:
  """1 − βᵗ, free of cancellation: −expm1(t·ln β)."""
  return -jnp.expm1(_time(t) * _log(b))


def decay_power(b: Scalar, t: Any) -> jax.Array:
  """βᵗ, as exp(t·ln β)."""
  return jnp.exp(_time(t) * _log(b))


def _time(t: Any) -> jax.Array:
  """The step as a float, before any arithmetic: float64 under x64, else float32."""
  return jnp.asarray(t, jnp.result_type(float))


def _log(b: Scalar) -> Any:
  """The logarithm ln β, in double precision where β is a Python number."""
  if is_concrete(b):
    return math.log(b) if b > 0 else -math.inf
  return jnp.log(jnp.asarray(b, jnp.result_type(float)))


def _positive(b: Any) -> jax.Array:
  """A traced rate as a float, not less than the smallest whose logarithm is finite."""
  b = jnp.asarray(b, jnp.result_type(float))
  return jnp.maximum(b, jnp.finfo(b.dtype).tiny)


def _minus_log1p(x: jax.Array) -> TwoFloats:
  """−ln(1 + x): from the sum as two floats, ln(h + l) = ln h + l/h + …"""
  one_more = two_floats.add(1, x)
  log = two_floats.log(one_more.high)
  return two_floats.add(-log.high, -log.low - one_more.low / one_more.high)


def _growing(growth: TwoFloats, t: Any) -> jax.Array:
  """w(t) = e^{L(t−1)}·expm1(L)/expm1(L·t), for L < 0.

  L is the sum of two floats, because its error is multiplied by t: what one float rounds off would be lost in the
  exponent. The small part has no exponential of its own, which could overflow where the large part's is 0.
  """
  t, (high, low) = _time(t), growth
  return jnp.exp(high * (t - 1)) * (1 + low * (t - 1)) * (jnp.expm1(high) / jnp.expm1(high * t))
