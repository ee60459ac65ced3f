"""Weights in two parts and moments in codes, all rounded by chance, and a step on them, for the tests of kernels."""

import jax
import jax.numpy as jnp

from optax_ext._memory.elementwise import Program
from optax_ext._memory.stored import in_codes, in_parts

IN_TWO_PARTS = in_parts(24, by_chance=True)
IN_CODES = in_codes(by_chance=True)
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
    no_bits = lambda: jnp.zeros(shape, jnp.uint32)
    codes = lambda x, dtype: IN_CODES.write(x, no_bits, jnp.zeros(shape, dtype), jnp.ones(scales))
    split = IN_TWO_PARTS.write(weights, no_bits, jnp.zeros(shape, jnp.bfloat16), jnp.zeros(shape, jnp.int8))
    return [split, codes(mu, jnp.int8), codes(nu * nu, jnp.uint8)]

  return jax.eval_shape(make) if abstract else make()
