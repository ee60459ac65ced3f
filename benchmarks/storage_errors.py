"""What a way of storing weights and moments loses: one conversion there and back, hard gradients, and pure decay.

A `Contender` is any optimizer with such a storage. `benchmarks/flashoptim_peer.py` measures ours and another package's.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

EXPONENTS = range(-40, 11)
SPREADS = (0, 2, 4, 6)  # decades over which the magnitudes within a row lie
SHAPE = (8, 4096)
RATE = 1e-3
STEPS = 300  # of hard gradients
HARD_SHAPE = (16, 512)


@dataclasses.dataclass(frozen=True)
class Contender:
  """An optimizer and how it stores weights.

  Attributes:
    init: From weights to a state.
    step: From (weights, state, gradients) to the next (weights, state).
    join: From (weights, state) to float32 weights.
    split: From (float32 weights, weights, state) to (weights, state) that stand for the first.
    dtype: Of the weights.
  """

  init: Callable[[Any], Any]
  step: Callable[[Any, Any, Any], tuple[Any, Any]]
  join: Callable[[Any, Any], Any]
  split: Callable[[Any, Any, Any], tuple[Any, Any]]
  dtype: Any = jnp.bfloat16


def magnitudes(decades: float) -> np.ndarray:
  """Normal numbers, each times 10 to the power of minus a uniform number up to `decades`."""
  rng = np.random.default_rng(0)
  return (rng.normal(size=SHAPE) * 10.0 ** -(decades * rng.random(SHAPE))).astype(np.float32)


def errors(exact: Any, stored: Any) -> dict[str, float]:
  """How far what was stored is from what is exact.

  `norm` is the root mean square of the errors as a share of the numbers' own; `median` is the median of the errors,
  each as a share of its number; `largest` is the largest of those; `lost` is the share of numbers with an error of
  more than half of their size.
  """
  exact, stored = np.asarray(exact, np.float64), np.asarray(stored, np.float64)
  error = np.where(np.isfinite(stored), np.abs(stored - exact), np.inf)
  relative = error / np.abs(exact)
  with np.errstate(invalid="ignore"):
    norm = np.sqrt(np.mean(error**2) / np.mean(exact**2))
  return {
    "norm": float(norm),
    "median": float(np.median(relative)),
    "largest": float(relative.max()),
    "lost": float(np.mean(relative > 0.5)),
  }


def weight_errors(contender: Contender) -> dict[int, dict[str, float]]:
  """By exponent e: the errors of weights in ±[2ᵉ, 2ᵉ⁺¹) that are split and joined."""

  @jax.jit
  def there_and_back(weights: jax.Array) -> jax.Array:
    params = {"w": weights.astype(jnp.bfloat16)}
    params, state = contender.split({"w": weights}, params, contender.init(params))
    return contender.join(params, state)["w"]

  rng, found = np.random.default_rng(0), {}
  for exponent in EXPONENTS:
    sign = rng.choice([-1.0, 1.0], SHAPE)
    weights = (sign * 2.0**exponent * (1 + rng.random(SHAPE))).astype(np.float32)
    found[exponent] = errors(weights, there_and_back(weights))
  return found


Storage = Callable[[jax.Array], jax.Array]  # there and back


def moment_errors(mean: Storage, square: Storage) -> dict[str, dict[str, dict[int, dict[str, float]]]]:
  """By moment, decades of spread and exponent. A second moment is the square of such a number.

  The step is m/√v of moments that 100 gradients give, whose sizes are spread so.
  """
  mean, square = jax.jit(mean), jax.jit(square)
  found: dict[str, dict[str, dict[int, dict[str, float]]]] = {"first": {}, "second": {}, "step": {}}
  for decades in SPREADS:
    of = {kind: found[kind].setdefault(str(decades), {}) for kind in found}
    x, (m, v) = magnitudes(decades), moments(decades)
    for exponent in EXPONENTS:
      factor = np.float32(2.0**exponent)  # exact, so that only the storage is not
      of["first"][exponent] = errors(x * factor, mean(x * factor))
      of["second"][exponent] = errors((x * factor) ** 2, square((x * factor) ** 2))
      with np.errstate(divide="ignore", invalid="ignore"):
        step = np.asarray(mean(m * factor), np.float64) / np.sqrt(np.asarray(square(v * factor**2), np.float64))
      of["step"][exponent] = errors(m / np.sqrt(v), step)
  return found


def moments(decades: float) -> tuple[np.ndarray, np.ndarray]:
  """Adam's two moments after 100 normal gradients, whose sizes are spread over so many decades."""
  rng = np.random.default_rng(1)
  size = 10.0 ** -(decades * rng.random(SHAPE))
  m, v = np.zeros(SHAPE), np.zeros(SHAPE)
  for _ in range(100):
    g = rng.normal(size=SHAPE) * size
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
  return m.astype(np.float32), v.astype(np.float32)


def drift(square: Callable[[jax.Array, jax.Array], jax.Array], decades: float, steps: int = 3000) -> dict[str, float]:
  """A second moment of decay 0.999 that is stored in each step, beside the same in float32: mean and spread of ratios.

  The gradients are normal, of sizes that stay the same and are spread over so many decades within a row. A moment that
  is rounded to the nearest code stays where it is while its changes are below half a code. `square` gets the step, too.
  """
  shape = (4, SHAPE[-1])
  size = jnp.asarray(10.0 ** -(decades * np.random.default_rng(2).random(shape)), jnp.float32)

  def step(carry: tuple[jax.Array, jax.Array], t: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
    g = size * jax.random.normal(jax.random.fold_in(jax.random.key(2), t), shape)
    stored, exact = (v + 0.001 * (g**2 - v) for v in carry)
    return (square(stored, t), exact), None

  start = jnp.zeros(shape), jnp.zeros(shape)
  stored, exact = jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(steps))[0])()
  ratio = np.asarray(stored) / np.asarray(exact)
  return {"mean": float(ratio.mean()), "deviation": float(ratio.std()), "of the step": float((ratio**-0.5).mean())}


def _one_huge(t: jax.Array, noise: jax.Array, size: jax.Array) -> jax.Array:
  return noise.at[0, 0].set(jnp.where(t == 10, 1e25, noise[0, 0]))


def _after_a_burst(t: jax.Array, noise: jax.Array, size: jax.Array) -> jax.Array:
  """Every eighth unit has a burst of 1000 at first; the others, of size 0.01, have no gradient in every fifth step."""
  loud = jnp.arange(noise.shape[-1]) % 8 == 0
  quiet = jnp.where(t % 5 == 4, 0.0, 0.01 * noise)
  return jnp.where(loud, jnp.where(t < 3, 1e3, 1.0) * noise, quiet)


# From the step (from 0), normal numbers, and factors spread over 15 decades that stay the same, to gradients.
HARD: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
  "size 1": lambda t, noise, size: noise,
  "one element of 1e25 in step 11": _one_huge,
  "size 1e6": lambda t, noise, size: 1e6 * noise,
  "size 1e-7": lambda t, noise, size: 1e-7 * noise,
  "sizes from 1e-10 to 1e5 in a row": lambda t, noise, size: size * noise,
  "those sizes, half of the elements 0 by chance": lambda t, noise, size: size * noise * (jnp.abs(noise) > 0.67),
  "a burst in every eighth, pauses in the others": _after_a_burst,
}


def hard_gradients(contender: Contender) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """By kind of gradient: float32 weights after each step, and how many of them are not finite."""
  rng = np.random.default_rng(0)
  weights = {"w": jnp.asarray(rng.normal(size=HARD_SHAPE), jnp.bfloat16).astype(contender.dtype)}
  size = jnp.asarray(10.0 ** rng.uniform(-10, 5, HARD_SHAPE), jnp.float32)

  @jax.jit  # once for all kinds
  def run(kind: jax.Array, weights: Any) -> jax.Array:
    def step(carry: Any, t: jax.Array) -> tuple[Any, jax.Array]:
      noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), t), HARD_SHAPE)
      gradient = jax.lax.switch(kind, list(HARD.values()), t, noise, size)
      grads = {"w": gradient.astype(jnp.bfloat16).astype(contender.dtype)}
      params, state = contender.step(carry[0], carry[1], grads)
      return (params, state), contender.join(params, state)["w"]

    return jax.lax.scan(step, (weights, contender.init(weights)), jnp.arange(STEPS))[1]

  found = {}
  for i, name in enumerate(HARD):
    of_steps = np.asarray(run(jnp.int32(i), weights))
    found[name] = of_steps, np.sum(~np.isfinite(of_steps), axis=(1, 2))
  return found


def beside(exact: tuple[np.ndarray, np.ndarray], stored: tuple[np.ndarray, np.ndarray]) -> dict[str, float | None]:
  """What hard gradients did to a contender, beside what they did to Adam in float32.

  `first` is the first step (from 1) after which a weight is not finite or 100 rates from Adam's; `not finite` counts
  weights at the end; `mean` and `largest` are distances from Adam's at the end, of finite weights, in rates.
  """
  (adam, _), (of_steps, bad) = exact, stored
  with np.errstate(invalid="ignore"):
    distance = np.abs(of_steps - adam) / RATE
  wrong = (bad > 0) | np.any(np.nan_to_num(distance, nan=np.inf) > 100, axis=(1, 2))
  last = distance[-1][np.isfinite(distance[-1])]
  return {
    "first": int(np.argmax(wrong)) + 1 if wrong.any() else None,
    "not finite": int(bad[-1]),
    "mean": float(last.mean()) if last.size else None,
    "largest": float(last.max()) if last.size else None,
  }


def decayed(contender: Contender, weights: Any, steps: int) -> np.ndarray:
  """Float32 weights after so many steps with a gradient of zero."""
  params = {"w": jnp.asarray(weights, contender.dtype)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  step = lambda carry, _: (contender.step(carry[0], carry[1], zeros), None)
  run = jax.jit(lambda start: jax.lax.scan(step, start, length=steps)[0])
  params, state = run((params, contender.init(params)))
  return np.asarray(contender.join(params, state)["w"])
