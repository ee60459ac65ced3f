"""8-bit codes for moments: dynamic codes, with one scale for many numbers.

A code is a decade and a place in it, so that numbers from 1 down to 10⁻⁷ of the largest keep some digits and the large
ones more. Linear codes would take every small second moment for 0, and its element's next step would be infinite.

Codes are computed, not looked up: a table's gathers do not fuse with the optimizer's arithmetic on a TPU.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CODES = (jnp.int8, jnp.uint8)
EXPONENT = np.uint32(0x7F800000)  # the bits of a float32 that hold its exponent
FRACTION = np.int32(0x007FFFFF)  # those of its significand
ONE = np.int32(0x3F800000)  # the float32 1
SMALLEST_SCALE = 2.0**-100  # of a block: its reciprocal is finite, and times the lowest code it is a normal number
LARGEST_SCALE = 2.0**126  # its reciprocal is a normal number
OUTLIER = 2.0**60  # for β₁ = 0.9, of a mean of which one gradient's square overflows in float32


def decode(codes: jax.Array, scale: jax.Array) -> jax.Array:
  """The float32 numbers that codes stand for.

      code = ±k,  k = 2ᵉ + f,  0 ≤ f < 2ᵉ:     scale · ±10^(e−E) · (0.1 + 0.9·(f + ½)/2ᵉ),     0 for k = 0

  E is 6 for int8, 7 for uint8 codes (without sign). 2ᵉ and 1 + (f + ½)/2ᵉ are the exponent and the significand of the
  float32 number k + ½. (As the maximum of a line for each decade, decoding had so many operations that on tpu7x XLA
  kept the moments of a step's first pass, 38 bytes of traffic in place of 22.) In uint8 the largest code, 255, stands
  for ∞: the square of a large gradient overflows.

  Args:
    codes: int8 or uint8, of any shape.
    scale: float32, of the same rank; each axis of it has the codes' size, or a divisor of it, which makes blocks.

  Returns:
    An array like `codes`.
  """
  codes_, scale_ = in_blocks(codes, scale.shape), per_block(scale, codes.shape)
  signed = codes_.astype(jnp.float32)
  word = jax.lax.bitcast_convert_type(jnp.abs(signed) + 0.5, jnp.int32)
  significand = jax.lax.bitcast_convert_type((word & FRACTION) | ONE, jnp.float32)
  decade = ((word - ONE) >> 23).astype(jnp.float32) - _decades(codes.dtype)[0][1]  # e − E
  size = jnp.where(signed == 0, 0, jnp.exp2(math.log2(10) * decade) * (0.9 * significand - 0.8))
  if codes.dtype == jnp.uint8:
    size = jnp.where(signed == jnp.iinfo(jnp.uint8).max, jnp.inf, size)
  return (jnp.where(signed < 0, -size, size) * scale_).reshape(codes.shape)


def encode(x: jax.Array, scale: jax.Array, dtype: Any, bits: jax.Array | None = None) -> jax.Array:
  """The nearest codes, or codes by chance: int8 for any numbers, uint8 for those that are not negative.

      by chance: P(the code above x) = (x − below)/(above − below),     E[decode(encode(x))] = x

  0 has code 0 and, in uint8, no other number has: a second moment does not vanish, and one below the smallest code is
  stored as that, by chance too. A number beyond the largest one that its block's scale was made for is stored as that
  one.

  Args:
    x: The numbers, of any shape.
    scale: As for `decode`.
    dtype: int8 or uint8.
    bits: 16 random bits in a uint32 for each number; `None` for the nearest codes.

  Returns:
    Codes, an array like `x`.
  """
  x_, scale_ = in_blocks(x.astype(jnp.float32), scale.shape), per_block(scale, x.shape)
  size = jnp.abs(x_) * (1 / scale_)
  lines = [(2**e / 0.9 * 10.0**i, 2**e * 8 / 9) for i, e in _decades(dtype)]
  place = functools.reduce(jnp.minimum, [slope * size + start for slope, start in lines])
  word = jax.lax.bitcast_convert_type(place, jnp.uint32)
  decade = jax.lax.bitcast_convert_type(word & EXPONENT, jnp.float32)  # 2ᵉ
  code = _nearest(place, decade) if bits is None else _by_chance(place, decade, in_blocks(bits, scale.shape))
  # In float32 up to the last cast: from int32, XLA's TPU compiler would cast in a pass over memory of its own, 28 bytes
  # in place of 22.
  largest = jnp.where(x_ == jnp.inf, 255, 254) if dtype == jnp.uint8 else 127
  code = jnp.clip(code, x_ > 0 if dtype == jnp.uint8 else 0, largest)
  return jnp.where(x_ < 0, -code, code).astype(dtype).reshape(x.shape)


def _nearest(place: jax.Array, decade: jax.Array) -> jax.Array:
  """The code whose number is nearest.

  Codes stand for the middles of their intervals. Where one decade meets the next, whose intervals are five times as
  wide, the nearer of both middles is the lower one up to a fifth of the wide interval.
  """
  return jnp.floor(place) - jnp.where(place - decade < 0.2, 1, 0)


def _by_chance(place: jax.Array, decade: jax.Array, bits: jax.Array) -> jax.Array:
  """One of the two codes whose numbers are on either side.

  Two middles are one interval apart within a decade. From the last of a decade to the first of the next there are half
  a narrow and half a wide interval: 0.6 wide ones, or 3 narrow ones. From 0 to code 1, whose decade has one interval,
  place is linear: 8/9 at 0, and 1.5 at code 1.
  """
  into, lower = place - decade, jnp.floor(place - 0.5)
  part = place - 0.5 - lower
  part = jnp.where(into > decade - 0.5, (into - (decade - 0.5)) / 3, part)
  below = into < 0.5  # the first middle of a decade
  lower, part = jnp.where(below, decade - 1, lower), jnp.where(below, (into + 0.1) / 0.6, part)
  zero = place < 1.5
  lower, part = jnp.where(zero, 0, lower), jnp.where(zero, (place - 8 / 9) / (1.5 - 8 / 9), part)
  return lower + jnp.where((bits.astype(jnp.float32) + 0.5) * 2.0**-16 < part, 1, 0)


def scale_for(x: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """The scales of `x`, of the given shape: the largest finite code stands for the largest size in a block, exactly.

  That size is the middle of the code's interval. At the interval's end, 1, it would lose 0.7 % in each step.

  - Finite numbers have finite scales. From 2¹²⁶ on uint8 numbers are stored as 2¹²⁶.
  - ∞ has a code in uint8, and no say in its block's scale. As the top of the scale it would stop the whole block for
    about 80,000 steps, while v falls by 0.1 % a step. Stored as the largest finite number, its element would jump.
  - A number from 2⁶⁰ on has no say in an int8 scale. A gradient so large overflows in its square, after which its
    element takes no step. In the scale it would make the means of all others 0 for hundreds of steps. It is stored as
    the block's largest, which spares momentum and Lion thousands of steps in one direction.
  - A block that holds NaN and, for int8, ∞, or for uint8, a negative number has the scale NaN, and decodes to NaN.

  Signs of scales as flags, with both codes kept, were tried. They need four maxima instead of two, which are no single
  pass on an H100: 38 bytes in place of 22.
  """
  return scale_of(largest_of(x, shape, dtype), dtype)


def largest_of(x: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """The largest size in each block of those that have a say in its scale; ∞ where it holds what has no code."""
  size = jnp.abs(x).astype(jnp.float32)
  # NaN by name: a maximum on CPU may lose it, and of a size XLA takes for granted that it is not less than 0.
  if dtype == jnp.int8:
    broken, counts = jnp.isnan(x) | (size == jnp.inf), size < OUTLIER
  else:
    broken, counts = jnp.isnan(x) | (x < 0), size < jnp.inf
  size = jnp.where(broken, jnp.inf, jnp.where(counts, size, 0))
  inside = tuple(i for i, (n, blocks) in enumerate(_layout(x.shape, shape)) if blocks != n)
  return jnp.max(in_blocks(size, shape), inside, keepdims=True).reshape(shape)


def scale_of(largest: jax.Array, dtype: Any) -> jax.Array:
  """The scale of blocks with such largest sizes."""
  top = _decades(dtype)[0][1]
  of_largest_code = 1 - (1.35 if dtype == jnp.uint8 else 0.45) / 2**top  # 254 or 127
  scale = jnp.clip(largest / of_largest_code, SMALLEST_SCALE, LARGEST_SCALE)
  return jnp.where(jnp.isinf(largest), jnp.nan, scale)


def scale_shape(shape: tuple[int, ...], axis: int, block: int | None) -> tuple[int, ...]:
  """One scale for every `block` elements along `axis` where that divides it, else for all along the last axis.

  The last axis is the last that has more than one element; a symbol in a shape has.
  """
  axis = max(axis, -len(shape))
  if block and shape[axis] % block == 0:
    return (*shape[: len(shape) + axis], shape[axis] // block, *shape[len(shape) + axis + 1 :])
  last = max((i for i, n in enumerate(shape) if n != 1), default=0)
  return (*shape[:last], 1, *shape[last + 1 :])


def _decades(dtype: Any) -> list[tuple[int, int]]:
  """Pairs of i and e for each decade 10⁻ⁱ, which has 2ᵉ codes."""
  top = 6 if dtype == jnp.int8 else 7
  return [(i, top - i) for i in range(top + 1)]


def _layout(shape: tuple[int, ...], scale: tuple[int, ...]) -> list[tuple[int, int]]:
  """The sizes of an array and of its scales, once an axis that holds several blocks is two: blocks, and elements."""
  layout = []
  for n, blocks in zip(shape, scale, strict=True):
    layout += [(n, blocks)] if blocks in (1, n) else [(blocks, blocks), (n // blocks, 1)]
  return layout


def in_blocks(x: jax.Array, scale: tuple[int, ...]) -> jax.Array:
  """An array so that each axis lies within a block or across blocks, and scales `per_block` broadcast against it."""
  return x.reshape([size for size, _ in _layout(x.shape, scale)])


def per_block(scale: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """The scales of an array of this shape, with the rank that it has in blocks."""
  return scale.reshape([size for _, size in _layout(shape, scale.shape)])
