"""Random words from a hash of each element's place: few operations, the same in XLA's programs and in kernels.

Neither of jax's kernel compilers for GPUs knows Threefry. On TPUs Threefry makes a step of split weights so long that
XLA takes several passes over memory.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

GOLDEN = np.uint32(0x9E3779B9)  # 2³² over the golden ratio


def hashes(key: Any, places: jax.Array) -> jax.Array:
  """A random uint32 for each place.

      word = mix(k₁ ⊕ mix(k₀ + φ·place))

  Args:
    key: Two uint32 words, k₀ and k₁.
    places: uint32.

  Returns:
    An array like `places`.

  References:
    Steele et al., `Fast Splittable Pseudorandom Number Generators <https://doi.org/10.1145/2660193.2660195>`_, 2014
    (steps of φ); Appleby, MurmurHash3, 2011 (mix)
  """
  return _mixed(key[1] ^ _mixed(key[0] + GOLDEN * places))


def words_of(keys: Any, places: jax.Array, moments: int) -> list[Callable[[], jax.Array]]:
  """Random bits for a leaf's weights, 32 for each place, and for each of its moments, 16, as functions that make them.

  Args:
    keys: Four uint32 words: the key for the weights, then the key for the moments.
    places: uint32.
    moments: How many there are.
  """
  weights, key = (keys[0], keys[1]), (keys[2], keys[3])
  of_moment = [functools.partial(half_words, key, places, i) for i in range(moments)]
  return [functools.partial(hashes, weights, places), *of_moment]


def half_words(key: Any, places: jax.Array, i: int) -> jax.Array:
  """16 random bits for each place, in a uint32. Two values of `i` share a word: its lower half, and its upper.

  No word is one of `hashes(key, places)`, so that weights and moments may have the same key.
  """
  words = hashes((key[0], key[1] + np.uint32(1 + i // 2)), places)
  return words >> np.uint32(16) if i % 2 else words & np.uint32(0xFFFF)


def places_of(shape: Sequence[int]) -> jax.Array:
  """Where each element lies in the flattened array, modulo 2³², as uint32."""
  places = jnp.zeros(shape, jnp.uint32)
  for axis, n in enumerate(shape):
    places = places * jnp.asarray(n).astype(jnp.uint32) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
  return places


def _mixed(word: jax.Array) -> jax.Array:
  """MurmurHash3's mixture of 32 bits, one to one."""
  word = (word ^ (word >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  word = (word ^ (word >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return word ^ (word >> np.uint32(16))
