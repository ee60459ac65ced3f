"""Splits a float32 number in two: the nearest bfloat16 or float16 number, and a small integer for the rest.

    θ = θ' + ρ·unit,     unit = 2^(e−f−b),     −2ᵇ⁻¹ ≤ ρ < 2ᵇ⁻¹

e is the exponent of θ, f the bits of the narrow dtype's fraction (7 in bfloat16, 10 in float16) and b those of ρ. So θ
is any floating-point number with f + b bits of fraction: with bfloat16, 24 bits in all are a float32 number without its
last 8, and 32 bits are float32.

Units are powers of two. So a number that needs no rounding is stored exactly, and 24 bits have half a unit of error
below a power of two, where θ' + ρ/127·ulp/2 would have a whole one. Rounding by chance comes before the split: after it
a weight would stick at the end of ρ's range. XLA for TPUs fuses this arithmetic in floats with the step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NARROW = (jnp.bfloat16, jnp.float16)
RESIDUALS: dict[int, Any] = {16: None, 24: jnp.int8, 32: jnp.int16}
"""The dtype of the residual, by the bits of both numbers together."""
EXPONENT = np.int32(0x7F800000)  # the bits of a float32 that hold its exponent, to which 127 is added
FRACTION = 23  # bits of a float32's fraction


def joined(narrow: jax.Array, residual: jax.Array) -> jax.Array:
  """The float32 numbers θ of two parts, exactly."""
  wide, integer = narrow.astype(jnp.float32), residual.astype(jnp.float32)
  # The numbers below a power of two have its exponent less one.
  below = (wide * integer < 0).astype(jnp.int32)
  return wide + integer * _unit(_word(wide) - below, narrow.dtype, jnp.iinfo(residual.dtype).bits)


def parted(
  x: jax.Array, dtype: Any, bits: int, words: jax.Array | None = None
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
  """The narrow number nearest to θ, and the residual.

      k = round(θ/unit)     θ' = 2ᵇ·⌊k/2ᵇ + ½⌋·unit     ρ = k − θ'/unit

  Args:
    x: θ, float32.
    dtype: bfloat16 or float16.
    bits: Of both numbers together: 16 (no residual), 24 or 32.
    words: A random uint32 for each element. What lies between two units is rounded up with the probability of its
      distance from below, so that its expectation is exact. `None` rounds to the nearest.

  Returns:
    θ' as float32, which `dtype` can hold. What is finite stays finite.
    A function from the narrow numbers that are stored, θ' mostly, to ρ: int8 or int16.
  """
  b = bits - 16
  unit = _unit(_word(x), dtype, b)
  per_unit = jax.lax.bitcast_convert_type(np.int32(254 << FRACTION) - _word(unit), jnp.float32)  # its reciprocal
  units = _rounded(x * per_unit, FRACTION - jnp.finfo(dtype).nmant - b, words)
  largest = float(jnp.finfo(dtype).max)
  nearest = jnp.clip(jnp.floor(units * 2.0**-b + 0.5) * (unit * 2.0**b), -largest, largest)

  def residual(narrow: jax.Array) -> jax.Array:
    # Of the number as it is stored, not of `nearest`: XLA for TPUs then computes both in one pass over memory.
    left = units - narrow.astype(jnp.float32) * per_unit
    return jnp.clip(left, -(2.0 ** (b - 1)), 2.0 ** (b - 1) - 1).astype(RESIDUALS[bits])

  return jnp.where(jnp.isfinite(x), nearest, x), residual


def _rounded(units: jax.Array, digits: int, words: jax.Array | None) -> jax.Array:
  """A whole number of units: the nearest, or by chance one of both beside. `digits` binary ones follow the point."""
  if words is None or digits <= 0:
    return jnp.round(units)
  return jnp.floor(units + (words >> (32 - digits)).astype(jnp.float32) * 2.0**-digits)  # the sum is exact


def _word(x: jax.Array) -> jax.Array:
  """The bits of a float32's size, as an int32."""
  return jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32)


def _unit(word: jax.Array, dtype: Any, b: int) -> jax.Array:
  """2^(e−f−b), for the exponent e of a float32 with these bits; in float16 e is −14 or more, as float16's own.

  A unit is 2⁻¹²⁶ or more, float32's smallest normal number: TPUs and GPUs may take smaller ones for 0.
  """
  digits = jnp.finfo(dtype).nmant + b
  least = max(jnp.finfo(dtype).minexp, digits - 126)
  exponent = jnp.maximum(word & EXPONENT, np.int32((least + 127) << FRACTION))
  return jax.lax.bitcast_convert_type(exponent - np.int32(digits << FRACTION), jnp.float32)
