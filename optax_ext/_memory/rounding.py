"""Stochastic rounding of stored moments: up or down by chance, and exact on average.

Rounding to the nearest bfloat16 stops a moving average that changes by less than 0.2 % a step. Rounding by chance keeps
such changes on average, so that a bfloat16 moment can have β₂ = 0.999.

The random bits of an element are a function of the seed, its leaf's path, its index in the whole leaf and the step.
They are the same after a restart, in every sharding under `jax.jit`, and whatever generator a program uses elsewhere.
"""

import dataclasses
import numbers
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_ext._common.arguments import shown
from optax_ext._common.dtypes import Rounding, Storing, store, to_nearest
from optax_ext._common.mesh import AxisName, explicit_sharding, in_shard_map, resolve_names, split_axes

# Words of float32 numbers: bfloat16's largest, ∞, NaN, −0. The half of a word that bfloat16 does not have.
LARGEST, INFINITY, NAN, SIGN, LOWER = np.array([0x7F7F0000, 0x7F800000, 0x7FC00000, 0x80000000, 0xFFFF], np.uint32)
OfLeaf = Callable[..., jax.Array]
"""From a leaf's path and the leaf to an array."""
THREEFRY = "threefry2x32"  # named, so that a program's own choice of generator changes nothing


@dataclasses.dataclass(frozen=True)
class Stochastic(Rounding):
  """The rounding that `stochastic` makes. Not callable, because `optax.inject_hyperparams` would take it for a
  schedule.
  """

  seed: int
  axis_name: AxisName = None

  def __post_init__(self) -> None:
    if not isinstance(self.seed, numbers.Integral) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**32:
      raise TypeError(f"seed must be an int in [0, 2³²), but was {shown(self.seed)}.")

  def at(self, t: Any) -> Storing:
    """How the moments of step t are rounded."""
    words = self.words_at(t)

    def storing(path: str, m: jax.Array, v: jax.Array, mu_dtype: Any, nu_dtype: Any) -> tuple[jax.Array, jax.Array]:
      narrow = [_is_bfloat16(path, dtype) for dtype in (mu_dtype, nu_dtype)]
      if not any(narrow):
        return to_nearest(path, m, v, mu_dtype, nu_dtype)
      # One word an element serves both: its low half rounds m, its high half v.
      low = high = words(path, m)
      if narrow[1] and v.shape != m.shape:
        if split := self._split_axes(path, m):
          raise ValueError(
            f"The second moment of {path!r} is one number per vector, which the mesh axes {split} may or may not "
            "split: inside shard_map store it in float32 (nu_dtype=None) when moments are rounded stochastically."
          )
        high = words(path, v, 1)
      return (
        round_to_bfloat16(m, low & LOWER) if narrow[0] else store(m, mu_dtype),
        round_to_bfloat16(v, high >> 16) if narrow[1] else store(v, nu_dtype),
      )

    return storing

  def words_at(self, t: Any) -> OfLeaf:
    """Threefry's random uint32 of step t, for each element of a leaf, split over the devices as the leaf is."""
    keys = self.keys_at(t)

    def words(path: str, like: jax.Array, part: int = 0) -> jax.Array:
      key = jax.random.wrap_key_data(keys(path, like), impl=THREEFRY)
      key = jax.random.fold_in(key, part) if part else key
      return jax.random.bits(key, like.shape, jnp.uint32, out_sharding=explicit_sharding(like))

    return words

  def keys_at(self, t: Any) -> OfLeaf:
    """The key of a leaf at step t, two uint32."""
    at_step = jax.random.key_data(jax.random.fold_in(jax.random.key(self.seed, impl=THREEFRY), t))

    def key(path: str, like: jax.Array) -> jax.Array:
      # Not fold_in: a scalar hash for each of a thousand leaves would cost more than the leaves.
      data = at_step ^ jnp.uint32(zlib.crc32(path.encode()))
      if split := self._split_axes(path, like):
        part = jax.random.fold_in(jax.random.wrap_key_data(data, impl=THREEFRY), jax.lax.axis_index(split))
        data = jax.random.key_data(part)
      return data

    return key

  def _split_axes(self, path: str, leaf: jax.Array) -> tuple[str, ...]:
    """The mesh axes, of a shard_map, that split a leaf."""
    if in_shard_map() and self.axis_name is None:
      raise ValueError(
        "Inside jax.shard_map a function sees one device's part of a leaf, and every part would be rounded with the "
        "same random bits: give stochastic(seed, axis_name=...) the names of the mesh axes that split the leaves, () "
        "for none."
      )
    return split_axes(resolve_names(self.axis_name)(path, leaf))


def stochastic(seed: int, *, axis_name: AxisName = None) -> Stochastic:
  """Rounds stored numbers up or down by chance, so that their expectation is exact: a value for `rounding=`.

      P(x is rounded up) = (x − below)/(above − below),     E[rounded] = x

  where below and above are the numbers that can be stored on either side of x. Representable numbers stay, as do ∞ and
  NaN. Finite numbers stay finite, so that the last numbers before ∞ saturate.

  `quantize_state` rounds 8-bit codes so, and `split_weights` what it keeps of weights. The optimizers and
  `scale_by_moments` round moments that are stored in bfloat16: with `mu_dtype=jnp.bfloat16`, with
  `nu_dtype=jnp.bfloat16`, and the mean of bfloat16 parameters. Wider dtypes need no rounding; narrower ones are
  refused. In float64 arithmetic a moment is first rounded to the nearest float32. Under `jax.vmap` all members share
  their random bits.

  Args:
    seed: An int in [0, 2³²). Runs of the same seed agree to the bit.
    axis_name: Inside `jax.shard_map`, where it must be given: the mesh axes that split the leaves, as a name, a tuple
      of names, or a function `axis_name(path, leaf)` that returns one; `()` for leaves that every device holds whole.
      The bits then depend on the mesh. Under `jax.jit` no `axis_name` is needed, and the bits do not depend on the
      mesh.

  Returns:
    A value for `rounding=` of `scale_by_moments`, `exadam`, `adamnx`, `caadam`, `nd_adam`, `quantize_state` and
    `split_weights`.

  Raises:
    TypeError: `seed` is not such an int.
    ValueError: at update, where `mu_dtype` or `nu_dtype` is float16 or narrower, or `axis_name` is missing.

  Example:
    A second moment that starts at 1 and decays towards 0.5 by 0.05 % in its first step:

    >>> from optax_ext import constant_gain, scale_by_moments
    >>> params = jnp.zeros(1000)
    >>> for rounding in (None, stochastic(0)):
    ...   tx = scale_by_moments(constant_gain(0.9), constant_gain(0.999), nu_dtype=jnp.bfloat16, rounding=rounding)
    ...   state = tx.init(params)._replace(nu=jnp.ones(1000, jnp.bfloat16))
    ...   for _ in range(100):
    ...     _, state = tx.update(params + 0.5**0.5, state)
    ...   print(f"{state.nu.astype(float).mean():.2f}")  # exact: 0.5 + 0.5·0.999¹⁰⁰ = 0.95
    1.00
    0.95

  References:
    Gupta et al., `Deep Learning with Limited Numerical Precision <https://arxiv.org/abs/1502.02551>`_, 2015
  """
  return Stochastic(seed, axis_name)


def round_to_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
  """Rounds to one of the two neighbouring bfloat16 numbers, from 16 random bits in a uint32.

  A bfloat16 is the upper half of a float32. A random number is added to the lower half, which is then cut off: the
  carry comes with the probability that the lower half says, in every binade. In integers throughout, because floating
  point arithmetic may take subnormal numbers for 0.
  """
  word = jax.lax.bitcast_convert_type(store(x, jnp.float32), jnp.uint32)
  sign, magnitude = word & SIGN, word & ~SIGN
  carried = jnp.minimum(magnitude, LARGEST) + bits
  rounded = jnp.where(magnitude < INFINITY, carried, jnp.where(magnitude == INFINITY, INFINITY, NAN)) | sign
  return jax.lax.bitcast_convert_type(rounded & ~LOWER, jnp.float32).astype(jnp.bfloat16)


def _is_bfloat16(path: str, dtype: Any) -> bool:
  if dtype == jnp.bfloat16 or jnp.finfo(dtype).bits >= 32:
    return dtype == jnp.bfloat16
  raise ValueError(
    f"Stochastic rounding is to bfloat16, but a moment of {path!r} is stored in {jnp.dtype(dtype)}: give "
    "jnp.bfloat16 or jnp.float32 for mu_dtype or nu_dtype."
  )
