"""Keras' optimizers, whose details differ from optax's, put together from the pieces of this library.

Keras 3: ε = 1e-7 everywhere; Adam's ε counts before bias correction; AdamW decays everything by 0.004; Nadam has a
schedule of its momentum.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_ext import Moments, accelerated_ratio, adam_ratio, constant_gain, scale_by_moments, scale_by_structure

B1, B2, EPS = 0.9, 0.999, 1e-7


def adam(learning_rate: Any, decay: float = 0.0, scales: Any = None) -> optax.GradientTransformation:
  """θ ← θ − α·S·√c₂/c₁·m/(√v + ε) − α·λ·θ: Adam, AdamW, and with scales S the code of CaAdam's authors."""
  return optax.chain(
    scale_by_moments(constant_gain(B1), constant_gain(B2), debias=eps_before_correction, ratio=adam_ratio(EPS)),
    optax.identity() if scales is None else scale_by_structure(scales),
    optax.add_decayed_weights(decay),
    optax.scale_by_learning_rate(learning_rate),
  )


def eps_before_correction(t: jax.Array) -> Any:
  """A debias rule: m ← √c₂/c₁·m, and v as it is, with cᵢ = 1 − βᵢᵗ."""
  c1, c2 = (-jnp.expm1(t * jnp.log(jnp.float32(b))) for b in (B1, B2))
  return lambda moments: moments._replace(mean=jnp.sqrt(c2) / c1 * moments.mean)


def adamw(learning_rate: Any) -> optax.GradientTransformation:
  """Adam with decoupled decay of every parameter."""
  return adam(learning_rate, decay=0.004)


# μₜ = β₁·(1 − ½·0.96ᵗ) and its products from 1 to t, for t up to 1,000; later μ is β₁ to rounding.
MOMENTUM = B1 * (1 - 0.5 * 0.96 ** np.arange(1.0, 1002))
PRODUCT = np.cumprod(MOMENTUM)


def nadam(learning_rate: Any) -> optax.GradientTransformation:
  """θ ← θ − α·(μₜ₊₁·m/(1 − Πₜ₊₁) + (1 − μₜ)·g/(1 − Πₜ))/(√(v/c₂) + ε), with Πₜ = μ₁·…·μₜ."""

  def debias(t: jax.Array) -> Any:
    now = jnp.minimum(t, len(MOMENTUM) - 1) - 1
    momentum, rest = jnp.asarray(MOMENTUM, jnp.float32), jnp.asarray(1 - PRODUCT, jnp.float32)
    of_mean, of_grad = momentum[now + 1] / rest[now + 1], (1 - momentum[now]) / rest[now]
    c2 = -jnp.expm1(t * jnp.log(jnp.float32(B2)))
    return lambda moments: Moments(of_grad * moments.grad, of_mean * moments.mean, moments.square / c2)

  moments = scale_by_moments(constant_gain(B1), constant_gain(B2), debias=debias, ratio=accelerated_ratio(EPS))
  return optax.chain(moments, optax.scale_by_learning_rate(learning_rate))


class AdamaxState(NamedTuple):
  """Moments: a mean and a decaying maximum."""

  count: jax.Array
  mu: Any
  nu: Any


def adamax(learning_rate: Any) -> optax.GradientTransformation:
  """With m ← m + (1−β₁)·(g − m):  u ← max(β₂·u, |g|);  θ ← θ − α/c₁·m/(u + ε)."""

  def init(params: Any) -> AdamaxState:
    zeros = optax.tree.zeros_like(params)
    return AdamaxState(jnp.zeros([], jnp.int32), zeros, zeros)

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AdamaxState]:
    count: Any = optax.safe_increment(state.count)
    mu = jax.tree.map(lambda m, g: m + (1 - B1) * (g - m), state.mu, updates)
    nu = jax.tree.map(lambda u, g: jnp.maximum(B2 * u, jnp.abs(g)), state.nu, updates)
    c1 = -jnp.expm1(count * jnp.log(jnp.float32(B1)))
    return jax.tree.map(lambda m, u: m / (c1 * (u + EPS)), mu, nu), AdamaxState(count, mu, nu)

  return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate))
