"""ND-Adam's whole step as one kernel for TPUs, which reads gradient, weights and mean once and writes the new ones.

A block of whole vectors fits in a TPU core's memory, where the three sums of the chain cost no traffic. A float32
parameter takes 20 bytes, the least there is. XLA's programs read the parameters again once the sums are known.
"""

import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from optax_ext._common import tpu
from optax_ext._common.dtypes import store
from optax_ext._common.tpu import LANES, SUBLANES, compiler_params, described, thickness, unfit
from optax_ext._sphere.step import Multiplier, step_in_order

Block = tuple[tuple[int, int], tuple[int, int]]
COPIES = 12  # float32 blocks on chip: five arrays, twice each (one computed, one in transit), and intermediate results


def block_of(grad: Any, param: Any, mu: Any, along: tuple[int, ...]) -> Block | str:
  """How a leaf is cut into blocks of whole vectors: its shape as a matrix and that of a block; or why it cannot be."""
  shape, ndim = param.shape, param.ndim
  if ndim < 2 or along not in (tuple(range(ndim - 1)), (ndim - 1,)):
    return f"its vectors run along axes {along} of shape {shape}, and not along all but the last or the last alone"
  if reason := unfit(grad, param, mu, sublanes=SUBLANES):
    return reason
  rows, columns = math.prod(shape[:-1]), shape[-1]
  down = along[0] == 0
  vectors, elements, sizes = (columns, rows, (512, 256, LANES)) if down else (rows, columns, (256, 64, SUBLANES))
  size = thickness(sizes, vectors, elements, COPIES)
  if size is None:
    return f"vectors of {elements} elements do not fit on the chip"
  return (rows, columns), (rows, size) if down else (size, columns)


def kernel_step(
  grad: jax.Array,
  param: jax.Array,
  mu: jax.Array,
  nu: jax.Array,
  gains: tuple[Any, Any],
  multiplier: Multiplier,
  blocks: Block,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The new parameter, mean and second moment of a leaf, computed as the chain of pieces computes them.

  Args:
    grad: Gradient.
    param: Weights.
    mu: Mean.
    nu: Second moment, one number per vector.
    gains: Weights of the newest value in the mean and in the second moment.
    multiplier: From the new second moment to what the new mean is multiplied by.
    blocks: What `block_of` returns.

  Returns:
    Arrays like `param`, `mu` and `nu`.
  """
  matrix, block = blocks
  axis = 0 if block[0] == matrix[0] else 1
  per_vector = tuple(1 if i == axis else n for i, n in enumerate(matrix))
  # A kernel closes over no arrays: the numbers that the multiplier closes over are read off its program.
  per_vector_of_block = tuple(1 if i == axis else n for i, n in enumerate(block))
  program = jax.make_jaxpr(multiplier)(jax.ShapeDtypeStruct(per_vector_of_block, jnp.float32))
  numbers = jnp.stack([jnp.asarray(x, jnp.float32) for x in (*gains, *program.consts)])

  def kernel(numbers_ref, g_ref, w_ref, m_ref, v_ref, new_w_ref, new_m_ref, new_v_ref):
    w1, w2, *consts = (numbers_ref[i] for i in range(numbers.size))
    g, w, m = (ref[...].astype(jnp.float32) for ref in (g_ref, w_ref, m_ref))
    total = lambda x: jnp.sum(x, axis, keepdims=True)
    multiplied = lambda v: jax.core.eval_jaxpr(program.jaxpr, consts, v)[0]
    w, m, v = step_in_order(g, w, m, v_ref[...], (w1, w2), multiplied, total)
    new_w_ref[...] = w.astype(new_w_ref.dtype)
    new_m_ref[...] = store(m, new_m_ref.dtype)
    new_v_ref[...] = v

  index = (lambda i: (0, i)) if axis == 0 else (lambda i: (i, 0))
  whole = pl.BlockSpec(block, index)
  one = pl.BlockSpec(per_vector_of_block, index)
  arrays = [param.reshape(matrix), mu.reshape(matrix), nu.astype(jnp.float32).reshape(per_vector)]
  new = pl.pallas_call(
    kernel,
    grid=(matrix[1 - axis] // block[1 - axis],),
    in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), whole, whole, whole, one],
    out_specs=[whole, whole, one],
    out_shape=[described(x) for x in arrays],
    input_output_aliases={2: 0, 3: 1, 4: 2},
    compiler_params=compiler_params(),
    cost_estimate=pl.CostEstimate(
      flops=20 * grad.size,
      transcendentals=2 * nu.size,
      bytes_accessed=grad.nbytes + 2 * (param.nbytes + mu.nbytes + arrays[2].nbytes),
    ),
    interpret=bool(tpu.INTERPRETED),
    name="nd_adam",
  )(numbers, grad.reshape(matrix), *arrays)
  return new[0].reshape(param.shape), new[1].reshape(mu.shape), store(new[2], nu.dtype).reshape(nu.shape)
