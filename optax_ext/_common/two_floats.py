"""Numbers as sums of two floats, for logarithms that are multiplied by a step count.

    x = high + low,   |low| ≤ ulp(high)/2

In float32 such a number has about 48 bits. The decay rates that it serves come as Python numbers, or traced, when
double precision may be out of reach.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LN2 = math.log(2)
HALF = 11  # bits behind the leading one that half a float32 keeps: the product of two such halves is exact


class TwoFloats(NamedTuple):
  """A number high + low, where low is what the first float rounds off."""

  high: Any
  low: Any


def split(x: float) -> TwoFloats:
  """A Python number as a float, of the precision that jax has now, and the rest."""
  return TwoFloats(high := float(np.asarray(x, jnp.result_type(float))), x - high)


def add(a: Any, b: Any) -> TwoFloats:
  """The exact sum of two floats (Knuth)."""
  total = jax.lax.optimization_barrier(a + b)  # XLA takes (1 + b) − 1 for b, in jax up to 0.10
  of_b = total - a
  return TwoFloats(total, (a - (total - of_b)) + (b - of_b))


def multiply(a: TwoFloats, b: TwoFloats) -> TwoFloats:
  """The product, to about 2⁻⁴⁵ of its size."""
  a1, b1 = _half(a.high), _half(b.high)
  a2, b2 = a.high - a1, b.high - b1
  return add(a1 * b1, (a1 * b2 + a2 * b1) + (a2 * b2 + a.high * b.low + a.low * b.high))


@jax.custom_jvp
def log(x: Any) -> TwoFloats:
  """The natural logarithm of a positive normal float, in float32 to 4·10⁻⁸ of its size.

  With x = 2ᵉ·(1 + d), √½ ≤ 1 + d < √2, and s = d/(2 + d),

      ln x = e·ln 2 + d − (d·s − 2s³·(1/3 + s²/5 + s⁴/7 + …))

  where d and the high half of e·ln 2 are exact.
  """
  m, e = jnp.frexp(x)
  below = m < math.sqrt(0.5)
  d = jnp.where(below, 2 * m, m) - 1
  e = (e - below).astype(d.dtype)
  s = d / (2 + d)
  tail = sum(s ** (2 * j) / (2 * j + 3) for j in range(10))
  half = float(np.float32(round(LN2 * 2**12) / 2**12))
  of_e = add(e * half, d)
  return add(of_e.high, of_e.low + e * (LN2 - half) - (d * s - 2 * s**3 * tail))


@log.defjvp
def _of_log(primals: Any, tangents: Any) -> tuple[TwoFloats, TwoFloats]:
  """Derivative dx/x: the bits that `frexp` takes apart have none."""
  (x,), (dx,) = primals, tangents
  return log(x), TwoFloats(dx / x, jnp.zeros_like(dx))


def _half(x: Any) -> jax.Array:
  return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=HALF)
