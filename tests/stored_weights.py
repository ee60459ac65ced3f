"""Weights in two parts that are rounded by chance, and a step on them, for the tests of kernels."""

import jax
import jax.numpy as jnp
import numpy as np

from optax_ext._memory.elementwise import Program
from optax_ext._memory.stored import IN_CODES, Storage


def _joined(upper, rest):
  word = jax.lax.bitcast_convert_type(upper.astype(jnp.float32), jnp.int32) + (rest.astype(jnp.int32) << 8)
  return jax.lax.bitcast_convert_type(word, jnp.float32)


def _split(x, words, upper, rest):
  del upper, rest
  random = (words() & np.uint32(0xFF)).astype(jnp.int32)
  word = (jax.lax.bitcast_convert_type(x, jnp.int32) + random) >> 8  # 24 bits, up or down by chance
  upper = (word + 128) >> 8
  as_float = jax.lax.bitcast_convert_type(upper << 16, jnp.float32)
  return as_float.astype(jnp.bfloat16), (word - (upper << 8)).astype(jnp.int8)


IN_TWO_PARTS = Storage(_joined, _split)
KINDS = (IN_TWO_PARTS, IN_CODES, IN_CODES)


def adam(shape):
  """An elementwise step, taken from its program."""

  def step(g, w, m, v):
    g = g.astype(jnp.float32)
    m, v = m + 0.1 * (g - m), v + 0.01 * (g * g - v)
    return w - 0.01 * m / (jnp.sqrt(v) + 1e-8), m, v

  arrays = jax.ShapeDtypeStruct(shape, jnp.bfloat16), *[jax.ShapeDtypeStruct(shape, jnp.float32)] * 3
  program, results = Program.of(step, arrays)
  return program.elementwise(program.inputs, results)


def parts_of(shape, scales, abstract=False):
  """Stored weights and moments."""

  def make():
    weights, mu, nu = (jax.random.normal(jax.random.key(i), shape) for i in range(3))
    codes = lambda x, dtype: IN_CODES.write(x, None, jnp.zeros(shape, dtype), jnp.ones(scales))
    split = IN_TWO_PARTS.write(weights, lambda: jnp.zeros(shape, jnp.uint32), None, None)
    return [split, codes(mu, jnp.int8), codes(nu * nu, jnp.uint8)]

  return jax.eval_shape(make) if abstract else make()
