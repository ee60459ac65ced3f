"""The step on 8-bit moments in the shape of their blocks: which leaves it serves, and its form for XLA."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from optax_ext._common.tpu import for_platform, platform_of_kernels, splitting_mesh, thickness, unfit
from optax_ext._memory.codes import CODES, in_blocks, largest_of, per_block
from optax_ext._memory.elementwise import Elementwise, NotServedError
from optax_ext._memory.hashes import places_of, words_of
from optax_ext._memory.stored import Parts, Storage

SUBLANES = 32  # rows of a tile of 8-bit numbers
COPIES = 24  # float32 blocks on chip: four arrays, twice each (one computed, one in transit), and intermediate results
LONGEST = 8192  # elements of a row that a GPU's kernel holds in registers
TILE = 1024  # elements of a block on GPUs, where rows are shorter


class Stepped(NamedTuple):
  """A leaf after a step: how its weights, and each of its moments, are kept."""

  weights: Parts
  moments: list[Parts]


NO_KEY = np.zeros(2, np.uint32)  # of steps that round nothing by chance


def check_codes(codes: Sequence[Any], scales: Sequence[Any]) -> None:
  """Raises `NotServedError` for a leaf whose moments are not all in codes, of one layout."""
  if any(getattr(leaf, "dtype", None) not in CODES for leaf in codes) or len({s.shape for s in scales}) > 1:
    raise NotServedError("not all of its moments have codes, in one layout")


def rows_of(grad: Any, param: Any, scale: Any) -> int:
  """How many rows of a leaf make a block.

  Raises:
    NotServedError: the leaf cannot be cut into blocks of whole rows.
  """
  shape, rows = param.shape, math.prod(param.shape[:-1])
  if scale.shape != (*shape[:-1], 1):
    raise NotServedError("it has not one scale for each row of the last axis")
  if reason := unfit(grad, param, sublanes=SUBLANES):
    raise NotServedError(reason)
  size = thickness((256, 128, 64, SUBLANES), rows, shape[-1], COPIES)
  if size is None:
    raise NotServedError(f"rows of {shape[-1]} elements do not fit on the chip")
  return size


def tile_of(grad: Any, param: Any, scale: Any) -> tuple[int, int, int]:
  """How a GPU cuts a leaf: rows of a block, elements that share a scale, and elements of a row of a block.

  Raises:
    NotServedError: the leaf cannot be cut so.
  """
  shape, dtypes = param.shape, {str(leaf.dtype) for leaf in (grad, param)}
  columns = math.prod(shape) // math.prod(scale.shape)
  if scale.shape != (*shape[:-1], shape[-1] // columns):
    raise NotServedError("its scales are not for blocks or rows of the last axis")
  if not dtypes <= {"float32", "bfloat16"}:
    raise NotServedError(f"its dtypes are {', '.join(sorted(dtypes))}, and the kernel knows float32 and bfloat16")
  if columns > LONGEST:
    raise NotServedError(f"rows of {columns} elements do not fit in registers: set block")
  if mesh := splitting_mesh():
    raise NotServedError(f"{mesh} splits it, and a kernel sees whole arrays only: run the step inside jax.shard_map")
  width = 1 << (columns - 1).bit_length()
  return max(TILE // width, 1), columns, width


def kernel_of(
  step: Elementwise, kinds: Sequence[Storage], grad: Any, parts: Sequence[Parts]
) -> Callable[..., list[Parts]]:
  """A function like `step_in_xla(step, kinds, ...)`, that is the kernel in programs for the platform at hand.

  Raises:
    NotServedError: there is no kernel for such a leaf.
  """
  platform, param, scale = platform_of_kernels(), parts[0][0], parts[1][1]
  if grad.size >= 2**31:  # places within an array are counted in int32
    raise NotServedError("it has 2³¹ elements or more")
  # Pallas takes longer to import than all of optax_ext
  if platform == "cuda":
    tile = tile_of(grad, param, scale)
    try:
      from optax_ext._memory.gpu_kernel import step_on_gpu
    except ImportError as error:  # Triton is deprecated in Pallas since jax 0.11
      raise NotServedError(f"this jax has no Pallas for Triton ({error})") from error
    kernel = functools.partial(step_on_gpu, step, kinds, tile)
  else:
    rows = rows_of(grad, param, scale)
    from optax_ext._memory.tpu_kernel import step_on_tpu

    kernel = functools.partial(step_on_tpu, step, kinds, rows)
  return functools.partial(for_platform, platform, kernel, functools.partial(step_in_xla, step, kinds))


def step_in_xla(
  step: Elementwise, kinds: Sequence[Storage], numbers: Any, keys: Any, grad: Any, parts: Sequence[Parts]
) -> list[Parts]:
  """A step in two passes over memory, of 22 bytes and the scales.

  All of it is in the shape of blocks, from before the codes are cast to after the update is applied: XLA fuses no
  arithmetic across a change of shape, and would write arrays of float32 to memory. (`tx.update` on blocks moves 86
  bytes on v5e, 50 on H100.)
  """
  shape, layout = grad.shape, parts[1][1].shape
  blocks = lambda x: per_block(x, shape) if x.shape == layout else in_blocks(x, layout)
  old = jax.tree.map(blocks, (grad, *parts))
  words = words_of(keys, places_of(old[0].shape), len(parts) - 1)

  def stepped(grad: Any, *parts: Parts) -> list[jax.Array]:
    return step(numbers, grad, *(kind.read(*of_one) for kind, of_one in zip(kinds, parts, strict=True)))

  first = zip(stepped(*old)[1:], old[2:], strict=True)
  # Maxima go through the barrier, not scales, which would be copied twice (22.63 bytes in place of 22.56).
  largest = [largest_of(moment, scale.shape, codes.dtype) for moment, (codes, scale) in first]
  old, largest = jax.lax.optimization_barrier((old, largest))
  new_weights, *moments = stepped(*old)
  new = [kinds[0].write(new_weights, words[0], *old[1])]
  for kind, moment, bits, of_block, of_one in zip(kinds[1:], moments, words[1:], largest, old[2:], strict=True):
    new.append(kind.write(moment, bits, *of_one, largest=of_block))
  return jax.tree.map(lambda x, old: x.reshape(old.shape), new, list(parts))
