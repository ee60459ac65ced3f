"""Debiasing: corrects the moments of a step for their start at 0.

A **debias rule** takes the step t ≥ 1, computes its scalars once, and returns a function that maps the `Moments` of
every leaf. It plugs into `scale_by_moments`, where a moving average that starts at 0 needs it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_ext._common.arguments import Scalar, check_number, is_concrete
from optax_ext._moments.gains import Gain, decay_power, one_minus_decay_power, start_of


class Moments(NamedTuple):
  """The moments of one leaf. `square` is real and broadcasts against `mean`: it may hold one number per vector."""

  grad: jax.Array
  mean: jax.Array
  square: jax.Array


Debias = Callable[[Any], Callable[[Moments], Moments]]
"""Step t, from 1 -> a function of a leaf's moments that removes their bias."""


@dataclasses.dataclass(frozen=True)
class DebiasOfGains:
  """A debias rule whose decay rates are those of the gains that it corrects."""

  of_rates: Callable[[Scalar, Scalar], Debias]

  def __call__(self, t: Any) -> Any:
    """No rule yet.

    Raises:
      TypeError: always.
    """
    raise TypeError(
      "A debias rule without decay rates asks the gains of scale_by_moments for them: plug it in there, or give it b1 "
      "and b2."
    )

  def of(self, mean_gain: Gain, square_gain: Gain) -> Debias:
    """The rule for these gains."""
    return self.of_rates(start_of("mean_gain", mean_gain), start_of("square_gain", square_gain))


def standard(b1: Scalar | None = None, b2: Scalar | None = None) -> Debias:
  """Adam's bias correction.

      ĝ = g/c₁     m̂ = m/c₁     v̂ = v/c₂,     cᵢ = 1 − βᵢᵗ

  Args:
    b1: Decay rate of the mean, in [0, 1); by default that of the gain in `scale_by_moments`, where 0 stands for a gain
      that starts at 1, whose average has no bias.
    b2: Decay rate of the square, in [0, 1); must be given if `b1` is.

  Returns:
    A debias rule.

  Raises:
    TypeError, ValueError: a decay rate is not a number in [0, 1).

  Example:
    >>> g = jnp.array([2.0])
    >>> print(standard(0.9, 0.999)(1)(Moments(grad=g, mean=0.1 * g, square=0.001 * g**2)).mean.round(4))
    [2.]

  References:
    Kingma and Ba, `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_, 2014, Algorithm 1
  """
  if b1 is None and b2 is None:
    return DebiasOfGains(standard)
  b1, b2 = _checked(b1, b2)

  def rule(t: Any) -> Callable[[Moments], Moments]:
    scalars = 1 / one_minus_decay_power(b1, t), 1 / one_minus_decay_power(b2, t)

    def debias(moments: Moments) -> Moments:
      g, m, v = moments
      a1, a2 = (x.astype(v.dtype) for x in scalars)
      return Moments(g * a1, m * a1, v * a2)

    return debias

  return rule


def cross_moment(b1: Scalar | None = None, b2: Scalar | None = None, eps: Scalar = 1e-8) -> Debias:
  """EXAdam's debiasing, in which each moment corrects the other.

      d₁ = 1 + β₂ᵗ·v/(v+ε)     d₂ = 1 + β₁ᵗ·m²/(m²+ε)
      g̃ = g/c₁·d₁     m̃ = m/c₁·d₁     ṽ = v/c₂·d₂,     cᵢ = 1 − βᵢᵗ

  Both d₁ and d₂ lie in [1, 2] and tend to 1, so that the rule tends to `standard`. At 0 both fractions are 0.

  Args:
    b1: Decay rate of the mean, in [0, 1); by default that of the gain in `scale_by_moments`, where 0 stands for a gain
      that starts at 1, as AdamNX's, whose average has no bias.
    b2: Decay rate of the square, in [0, 1); must be given if `b1` is.
    eps: ε, not negative.

  Returns:
    A debias rule.

  Raises:
    TypeError, ValueError: a decay rate is not a number in [0, 1), or `eps` is negative.

  Example:
    >>> g = jnp.array([2.0])
    >>> mean = cross_moment(0.9, 0.999)(1)(Moments(grad=g, mean=0.1 * g, square=0.001 * g**2)).mean
    >>> print(mean.round(4))  # 1.999 times Adam's
    [3.998]

  References:
    Adly, `EXAdam: The Power of Adaptive Cross-Moments <https://arxiv.org/abs/2412.20302>`_, 2024, Equation 1
  """
  check_number("eps", eps)
  if b1 is None and b2 is None:
    return DebiasOfGains(lambda b1, b2: cross_moment(b1, b2, eps))
  b1, b2 = _checked(b1, b2)

  def rule(t: Any) -> Callable[[Moments], Moments]:
    c1, c2 = one_minus_decay_power(b1, t), one_minus_decay_power(b2, t)
    p1, p2 = decay_power(b1, t), decay_power(b2, t)
    # d₁/c₁ = 1/c₁ + (β₂ᵗ/c₁)·v/(v+ε), d₂/c₂ likewise: of these, all but the fractions are scalars
    scalars = 1 / c1, p2 / c1, 1 / c2, p1 / c2

    def debias(moments: Moments) -> Moments:
      g, m, v = moments
      a1, q1, a2, q2 = (x.astype(v.dtype) for x in scalars)
      k1 = a1 + q1 * _fraction(v, eps)
      k2 = a2 + q2 * _fraction(abs_sq(m), eps)
      return Moments(g * k1, m * k1, v * k2)

    return debias

  return rule


def nesterov(b1: Scalar, b2: Scalar) -> Debias:
  """Nadam's moments, whose sum mean + grad is Nesterov's numerator; use it with `accelerated_ratio`.

      ĝ = (1−β₁)·g/(1−β₁ᵗ)     m̂ = β₁·m/(1−β₁ᵗ⁺¹)     v̂ = v/(1−β₂ᵗ)

  Args:
    b1: Decay rate of the mean, in [0, 1).
    b2: Decay rate of the square, in [0, 1).

  Returns:
    A debias rule for averages with `constant_gain(b1)` and `constant_gain(b2)`.

  Raises:
    TypeError, ValueError: a decay rate is not a number in [0, 1).

  Example:
    >>> g = jnp.array([2.0])
    >>> moments = nesterov(0.9, 0.999)(1)(Moments(grad=g, mean=0.1 * g, square=0.001 * g**2))
    >>> print(f"{(moments.mean + moments.grad)[0]:.4f}")
    2.9474

  References:
    Dozat, `Incorporating Nesterov Momentum into Adam <https://openreview.net/pdf?id=OM0jvwB8jIp57ZJjtNEZ>`_, 2016, as
    `optax.nadam` computes it
  """
  correct = standard(*_checked(b1, b2))

  def rule(t: Any) -> Callable[[Moments], Moments]:
    corrected = correct(t)
    grad_weight = jnp.asarray(1 - b1, jnp.result_type(float))
    mean_weight = (
      b1 * one_minus_decay_power(b1, t) / one_minus_decay_power(b1, jnp.asarray(t, jnp.result_type(float)) + 1)
    )

    def debias(moments: Moments) -> Moments:
      g, m, v = corrected(moments)
      return Moments(g * grad_weight.astype(v.dtype), m * mean_weight.astype(v.dtype), v)

    return debias

  return rule


def _checked(b1: Any, b2: Any) -> tuple[Scalar, Scalar]:
  check_number("b1", b1, "[0, 1)")
  check_number("b2", b2, "[0, 1)")
  return b1, b2


def abs_sq(x: jax.Array) -> jax.Array:
  """|x|², real for complex x."""
  return x.real**2 + x.imag**2 if jnp.iscomplexobj(x) else x * x


def _fraction(x: jax.Array, eps: Scalar) -> jax.Array:
  """x/(x+ε) for x ≥ 0, written so that it is 0 at x = 0 and 1 at x = ∞, whatever ε ≥ 0."""
  tiny = float(jnp.finfo(x.dtype).tiny)
  eps = max(eps, tiny) if is_concrete(eps) else jnp.maximum(jnp.asarray(eps, x.dtype), tiny)
  return 1 - eps / (x + eps)
