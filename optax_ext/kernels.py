"""ND-Adam's whole step as one kernel for TPUs, which reads gradient, weights and mean once and writes the new ones.

A block of whole vectors fits in a TPU core's memory, where the three sums of the chain cost no traffic: 20 bytes for a
float32 parameter, the least there is, where XLA's programs read the parameters again once the sums are known.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from optax_ext.moments import moving_average
from optax_ext.storage import leaf_dtype, store
from optax_ext.vectors import coefficient, unit

Block = tuple[tuple[int, int], tuple[int, int]]
Multiplier = Callable[[jax.Array], jax.Array]
Total = Callable[[jax.Array], jax.Array]

LANES, SUBLANES = 128, 16  # a tile of memory; 16 rows for bfloat16, 8 would do for float32
COPIES = 12  # float32 blocks on chip: five arrays, twice each (one computed, one in transit), and intermediate results


def for_tpu(kernel: Callable[..., Any], otherwise: Callable[..., Any], *args: Any) -> Any:
  """Calls the kernel in a program for TPUs, wherever it is compiled, and the other function in all other programs."""
  return jax.lax.platform_dependent(*args, tpu=kernel, default=otherwise)


def on_chip() -> int:
  """Bytes that a kernel may take: TPU v5e and v6e have 128 MiB a core, v5p and v7x 64, v4 has 16.

  What another machine compiles is taken to be for v5 or later.
  """
  early = jax.default_backend() == "tpu" and any(v in jax.devices()[0].device_kind for v in ("v2", "v3", "v4"))
  return (12 if early else 48) * 2**20


def splitting_mesh() -> Any:
  """The mesh axes and their sizes, if any may split the arrays of this program without our doing."""
  mesh = jax.sharding.get_abstract_mesh()
  splits = any(mesh.shape[name] > 1 for name in mesh.axis_names if name not in mesh.manual_axes)
  return dict(mesh.shape) if splits else None


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


def unfit(*leaves: Any, sublanes: int) -> str:
  """Why no kernel can serve a leaf, that is its gradient, parameter and what else it reads; nothing where one can."""
  shape, dtypes = leaves[0].shape, {str(leaf_dtype(leaf)) for leaf in leaves}
  if not dtypes <= {"float32", "bfloat16"}:
    return f"its dtypes are {', '.join(sorted(dtypes))}, and the kernel knows float32 and bfloat16"
  if len(shape) < 2 or shape[-2] % sublanes or shape[-1] % LANES:
    return f"the last two axes of its shape {shape} are not multiples of {sublanes} and {LANES}"
  if mesh := splitting_mesh():
    return f"{mesh} splits it, and a kernel sees whole arrays only: run the step inside jax.shard_map"
  return ""


def thickness(sizes: Sequence[int], vectors: int, elements: int, copies: int) -> int | None:
  """How many vectors make a block: the most within 2 MiB, or else the fewest, if so many copies fit on the chip."""
  for size in sizes:
    nbytes = 4 * size * elements
    if copies * nbytes <= on_chip() and (nbytes <= 2**21 or size == sizes[-1]) and vectors % size == 0:
      return size
  return None


def compiler_params() -> Any:
  """Blocks in any order, and as much of the chip's memory as they may take."""
  return pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=on_chip() * 7 // 6)


def step_in_order(
  g: jax.Array, w: jax.Array, m: jax.Array, v: jax.Array, gains: tuple[Any, Any], multiplier: Multiplier, total: Total
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """New weights, mean and second moment as the chain of pieces computes them: each sum waits for the one before."""
  g = g - coefficient(total(g * w), total(w * w)) * w
  m, v = moving_average(m, g, gains[0]), moving_average(v, total(g * g), gains[1])
  w = w + multiplier(v) * m
  return unit(w, total(w * w)), m, v


def kernel_step(
  grad: jax.Array,
  param: jax.Array,
  mu: jax.Array,
  nu: jax.Array,
  gains: tuple[Any, Any],
  multiplier: Multiplier,
  blocks: Block,
  *,
  interpret: bool = False,
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
    interpret: Run as a plain program, on any platform.

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
    interpret=interpret,
    name="nd_adam",
  )(numbers, grad.reshape(matrix), *arrays)
  return new[0].reshape(param.shape), new[1].reshape(mu.shape), store(new[2], nu.dtype).reshape(nu.shape)


def described(x: jax.Array) -> jax.ShapeDtypeStruct:
  """Shape and dtype and, inside `shard_map`, the mesh axes along which the array varies."""
  known = inspect.signature(jax.ShapeDtypeStruct).parameters
  varying: dict[str, Any] = {
    name: getattr(jax.typeof(x), name)
    for name in ("manual_axis_type", "vma")  # of jax 0.10, and before
    if name in known
  }
  return jax.ShapeDtypeStruct(x.shape, x.dtype, **varying)
