"""A step on 8-bit moments in the shape of their blocks: which leaves it serves, and its form for XLA."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from optax_ext._common.tpu import thickness, unfit
from optax_ext._memory.codes import CODES, decode, encode, in_blocks, largest_of, per_block, scale_of
from optax_ext._memory.elementwise import Elementwise, NotServedError

SUBLANES = 32  # rows of a tile of 8-bit numbers
COPIES = 24  # float32 blocks on chip: four arrays, twice each (one computed, one in transit), and intermediate results


class Stepped(NamedTuple):
  """A leaf after a step."""

  param: jax.Array
  codes: list[jax.Array]
  scales: list[jax.Array]


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


def step_in_xla(
  step: Elementwise, numbers: Any, grad: Any, param: Any, codes: Sequence[Any], scales: Sequence[Any]
) -> Stepped:
  """A step in two passes over memory, of 22 bytes and the scales.

  All of it is in the shape of blocks, from before the codes are cast to after the update is applied: XLA fuses no
  arithmetic across a change of shape, and would write arrays of float32 to memory.
  """
  shape, layout, dtypes = param.shape, scales[0].shape, [leaf.dtype for leaf in codes]
  old = [in_blocks(leaf, layout) for leaf in (grad, param, *codes)], [per_block(scale, shape) for scale in scales]

  def stepped(arrays: Any, scales: Any) -> list[jax.Array]:
    grad, param, *codes = arrays
    return step(numbers, grad, param, *(decode(c, s) for c, s in zip(codes, scales, strict=True)))

  first = zip(stepped(*old)[1:], old[1], dtypes, strict=True)
  largest = [largest_of(moment, scale.shape, dtype) for moment, scale, dtype in first]
  old, largest = jax.lax.optimization_barrier((old, largest))
  new_scales = [scale_of(of_block, dtype) for of_block, dtype in zip(largest, dtypes, strict=True)]
  new_param, *moments = stepped(*old)
  new_codes = [encode(m, s, dtype) for m, s, dtype in zip(moments, new_scales, dtypes, strict=True)]
  whole = lambda new, old: [x.reshape(y.shape) for x, y in zip(new, old, strict=True)]
  return Stepped(new_param.reshape(shape), whole(new_codes, codes), whole(new_scales, scales))
