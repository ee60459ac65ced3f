"""Ratios: the direction of a step from debiased moments. And squares: what the second moment averages."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optax_ext._common.arguments import Scalar, check_number
from optax_ext._moments.debias import Moments, abs_sq

Ratio = Callable[[Moments], jax.Array]
"""Debiased moments of a leaf -> its update's direction."""
Square = Callable[[str, jax.Array], jax.Array]
"""A leaf's path and gradient -> what its second moment averages."""


def adam_ratio(eps: Scalar = 1e-8, eps_root: Scalar = 0.0) -> Ratio:
  """Adam's direction, m/(√(v + ε̄) + ε).

  Args:
    eps: ε ≥ 0, outside the root.
    eps_root: ε̄ ≥ 0, inside the root; needed to differentiate through an update.

  Returns:
    A function of the debiased `Moments` of a leaf, for `scale_by_moments`.

  Raises:
    TypeError, ValueError: an ε is not a number, or negative.

  Example:
    >>> print(adam_ratio()(Moments(grad=jnp.array([3.0]), mean=jnp.array([2.0]), square=jnp.array([4.0]))))
    [1.]

  References:
    Kingma and Ba, `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_, 2014, Algorithm 1
  """
  return _over_root(lambda moments: moments.mean, eps, eps_root)


def accelerated_ratio(eps: Scalar = 1e-8, eps_root: Scalar = 0.0) -> Ratio:
  """EXAdam's direction, (m + g)/(√(v + ε̄) + ε): the newest gradient counts once more.

  With the moments that `cross_moment` makes this is EXAdam's m̃ + g̃, with those of `nesterov` Nadam's numerator.

  Args:
    eps: ε ≥ 0, outside the root.
    eps_root: ε̄ ≥ 0, inside the root.

  Returns:
    A function of the debiased `Moments` of a leaf, for `scale_by_moments`.

  Raises:
    TypeError, ValueError: an ε is not a number, or negative.

  Example:
    >>> print(accelerated_ratio()(Moments(grad=jnp.array([3.0]), mean=jnp.array([2.0]), square=jnp.array([4.0]))))
    [2.5]

  References:
    Adly, `EXAdam: The Power of Adaptive Cross-Moments <https://arxiv.org/abs/2412.20302>`_, 2024, Section 2.2
  """
  return _over_root(lambda moments: moments.mean + moments.grad, eps, eps_root)


def elementwise(path: str, grad: jax.Array) -> jax.Array:
  """|g|² of every element: what Adam's second moment averages, and the default `square` of `scale_by_moments`.

  Args:
    path: Of the leaf; not looked at.
    grad: Its gradient, real or complex.

  Returns:
    A real array of the gradient's shape.

  Example:
    >>> print(elementwise("kernel", jnp.array([3.0, -2.0])))
    [9. 4.]

  References:
    Kingma and Ba, `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_, 2014, Algorithm 1
  """
  del path
  return abs_sq(grad)


def _over_root(numerator: Callable[[Moments], jax.Array], eps: Any, eps_root: Any) -> Ratio:
  check_number("eps", eps)
  check_number("eps_root", eps_root)

  def ratio(moments: Moments) -> jax.Array:
    denominator = jnp.sqrt(moments.square + eps_root) + eps
    # 0/0 is 0 where ε = 0. No root of a normal number is below this floor. The smallest normal number itself would be
    # too small: XLA multiplies a bias correction of 0.1 onto it, and flushes the product to 0.
    return numerator(moments) / jnp.maximum(denominator, jnp.finfo(denominator.dtype).tiny ** 0.5)

  return ratio
