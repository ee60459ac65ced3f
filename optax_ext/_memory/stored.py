"""The forms in which a leaf is stored: plain, as codes and scales, or in parts. A step reads and writes each."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_ext._memory.codes import decode, encode, largest_of, scale_of
from optax_ext._memory.two_parts import joined, parted

Parts = tuple[jax.Array, ...]
"""The arrays that hold the numbers of one array: some of its shape, others with one number for each row or block."""
Words = Callable[[], jax.Array]
"""Gives random bits for each element, to round with, in a uint32; what is never called costs nothing."""


class Storage(NamedTuple):
  """A way to keep numbers in parts.

      numbers = read(*parts),     parts = write(numbers, words, *old parts)

  Both work on whole arrays and on any block of whole rows.
  """

  read: Callable[..., jax.Array]
  write: Callable[..., Parts]


def _written(x: jax.Array, words: Words, old: jax.Array) -> Parts:
  del words
  return (x.astype(old.dtype),)


def in_codes(*, by_chance: bool) -> Storage:
  """8-bit codes and their scales. `write` takes the `largest_of` each block where it is known."""

  def write(x: jax.Array, words: Words, codes: jax.Array, scale: jax.Array, largest: jax.Array | None = None) -> Parts:
    if largest is None:
      largest = largest_of(x, scale.shape, codes.dtype)
    scale = scale_of(largest, codes.dtype)
    return encode(x, scale, codes.dtype, words() if by_chance else None), scale

  return Storage(decode, write)


def in_parts(bits: int, *, by_chance: bool) -> Storage:
  """Split weights: a narrow number, and a residual where there are more than 16 bits."""

  def read(narrow: jax.Array, *residual: jax.Array) -> jax.Array:
    return joined(narrow, *residual) if residual else narrow.astype(jnp.float32)

  def write(x: jax.Array, words: Words, narrow: jax.Array, *residual: jax.Array) -> Parts:
    nearest, residual_of = parted(x, narrow.dtype, bits, words() if by_chance else None)
    narrow = nearest.astype(narrow.dtype)
    return (narrow, residual_of(narrow)) if residual else (narrow,)

  return Storage(read, write)


AS_IS = Storage(lambda x: x, _written)


def step_stored(
  step: Callable[..., Sequence[jax.Array]],
  kinds: Sequence[Storage],
  numbers: Any,
  grad: jax.Array,
  parts: Sequence[Parts],
  words: Sequence[Words],
) -> list[Parts]:
  """A step on arrays as they are stored: the weights first, then the moments."""
  old = [kind.read(*of_one) for kind, of_one in zip(kinds, parts, strict=True)]
  new = step(numbers, grad, *old)
  return [kind.write(x, bits, *of_one) for kind, x, bits, of_one in zip(kinds, new, words, parts, strict=True)]
